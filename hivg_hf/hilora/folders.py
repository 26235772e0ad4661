"""HiLoRA on disk: folders that plain PEFT and transformers calls read.

    base/               CLIP, and bridge and head as at the end of the last stage      AutoModel.from_pretrained
    adapters/<stage>/   low-rank terms only, active together on base/                  PeftModel.from_pretrained, ...
    exports/<stage>/    stages 1..k as one adapter, with the bridge and head of then   PeftModel.from_pretrained
    merged/             everything folded into a plain model                           AutoModel.from_pretrained

Adapters are trained together with one bridge and head, so each folder records their hash, and `load_stages` refuses
another base.
"""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file

from hivg_hf.utils.atomic import atomic_folder, write_json

from .stages import NEW_MODULES, is_new_parameter, merge_stages

ADAPTER_CONFIG_FILE = "adapter_config.json"
ADAPTER_FILE = "adapter_model.safetensors"
NEW_MODULES_FILE = "new_modules.safetensors"
RECORD_FILE = "hilora.json"
PEFT_PREFIX = "base_model.model."


def publish_stages(model: PeftModel, folder: str | Path, stage: str | None, processor: Any = None) -> None:
    """Write base/, adapters/, merged/ and, for the stage just finished, exports/<stage>/; each folder atomically.

    Args:
        model: With the adapters to publish active.
        folder: Holds the four folders.
        stage: Name of the finished stage, whose export is written; None writes no export (a rejected stage).
        processor: Saved beside every model that can be used on its own.

    Low-rank terms inside the bridges (`bridge_lora`) are folded in all of them; the model keeps its own.
    """
    folder, model = Path(folder), with_folded_bridges(model)
    save_base(model, folder / "base", processor)
    for position, name in enumerate(model.base_model.active_adapters):
        save_adapter(model, name, folder / "adapters" / name, base=folder / "base", position=position)
    if stage is not None:
        save_export(model, folder / "exports" / stage, base=folder / "base", processor=processor)
    with atomic_folder(folder / "merged") as target:
        merge_stages(copy.deepcopy(model)).save_pretrained(target)
        if processor is not None:
            processor.save_pretrained(target)


def with_folded_bridges(model: PeftModel) -> PeftModel:
    """The model itself, or, where it has low-rank terms inside its bridges, a copy with these folded."""
    if model.get_base_model().config.bridge_lora:
        model = copy.deepcopy(model)
        model.get_base_model().fold_bridge_lora()
    return model


def with_merged_bridges(model: PeftModel) -> PeftModel:
    """The model itself, or, where adapters reach into its bridges, a copy whose bridges have them in their weights."""
    if not any(isinstance(module, LoraLayer) and ".bridge." in name for name, module in model.named_modules()):
        return model
    model, adapters = copy.deepcopy(model), list(model.base_model.active_adapters)
    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer) and ".bridge." in name:
            module.merge(adapter_names=adapters)
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, module.get_base_layer())
    return model


def save_base(model: PeftModel, target: str | Path, processor: Any = None) -> None:
    """Write the model without its adapters."""
    base = model.get_base_model()
    state = {
        name.replace(".base_layer.", "."): tensor for name, tensor in base.state_dict().items() if "lora_" not in name
    }
    with atomic_folder(target) as folder:
        base.save_pretrained(folder, state_dict=state)
        if processor is not None:
            processor.save_pretrained(folder)
        _write_record(folder, bridge_and_head_sha256=bridge_and_head_hash(model))


def save_adapter(model: PeftModel, name: str, target: str | Path, base: str | Path, position: int = 0) -> None:
    """Write one adapter's low-rank terms, with the hash of the bridge and head that belong to it."""
    with atomic_folder(target) as folder:
        config = copy.deepcopy(model.peft_config[name])
        config.base_model_name_or_path = str(Path(base).resolve())
        config.inference_mode = True
        config.save_pretrained(folder)
        save_file(_contiguous(get_peft_model_state_dict(model, adapter_name=name)), folder / ADAPTER_FILE)
        _write_record(folder, bridge_and_head_sha256=bridge_and_head_hash(model), position=position)


def save_export(model: PeftModel, target: str | Path, base: str | Path, processor: Any = None) -> None:
    """Write all active adapters as one, with bridge and head in `modules_to_save`: what is shared.

    `PeftModel.from_pretrained(base_model, target)` gives the model of this moment on any HiVG model with the same CLIP
    weights.
    """
    model = with_merged_bridges(model)
    config, state = concatenated_adapter(model)
    if isinstance(config.target_modules, str) and "bridge" in config.target_modules:  # in the bridge's weights now
        config.target_modules = rf"(?!.*\.bridge\.){config.target_modules}"
    config.base_model_name_or_path = str(Path(base).resolve())
    if not Path(base).exists():  # a repository on the Hub
        config.base_model_name_or_path, _, revision = str(base).partition("@")
        config.revision = revision or None
    config.modules_to_save = [name for name in NEW_MODULES if _has_module(model, name)]
    state.update({f"base_model.model.{name}": tensor for name, tensor in new_modules_state(model).items()})
    with atomic_folder(target) as folder:
        config.save_pretrained(folder)
        save_file(_contiguous(state), folder / ADAPTER_FILE)
        if processor is not None:
            processor.save_pretrained(folder)
        _write_record(folder, adapters=list(model.base_model.active_adapters))


def concatenated_adapter(model: PeftModel) -> tuple[LoraConfig, dict[str, torch.Tensor]]:
    """One adapter that equals the sum of the active ones: A stacked, B (times its scale) side by side.

    Layers that fewer adapters reach are filled up with zeros to the common rank.

    Returns:
        Its configuration and its state dict by the names of a saved adapter.
    """
    names = list(model.base_model.active_adapters)
    deepest = model.peft_config[names[-1]]
    if len(names) == 1:
        config = copy.deepcopy(deepest)
        config.inference_mode = True
        return config, get_peft_model_state_dict(model, adapter_name=names[0])
    state: dict[str, torch.Tensor] = {}
    for path, module in model.named_modules():
        present = [name for name in names if name in getattr(module, "lora_A", {})]
        if present:
            state[f"{path}.lora_A.weight"] = torch.cat([module.lora_A[name].weight for name in present])  # (r, d_in)
            # a uniform scale of 1: each B carries its own, so stages of different size and rsLoRA add up too
            ups = [module.lora_B[name].weight * module.scaling[name] for name in present]
            state[f"{path}.lora_B.weight"] = torch.cat(ups, dim=1)  # (d_out, r)
            if deepest.lora_bias:
                biases = [module.lora_B[name].bias * module.scaling[name] for name in present]
                state[f"{path}.lora_B.bias"] = torch.stack(biases).sum(0)
    # the widest layer's, which a rank_pattern may take beyond the stages' own ranks
    rank = max(tensor.shape[0] for name, tensor in state.items() if name.endswith(".lora_A.weight"))
    for name, tensor in state.items():
        if name.endswith(".lora_A.weight"):
            state[name] = torch.nn.functional.pad(tensor, (0, 0, 0, rank - tensor.shape[0]))
        elif name.endswith(".lora_B.weight"):
            state[name] = torch.nn.functional.pad(tensor, (0, rank - tensor.shape[1]))
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        bias="none",
        target_modules=deepest.target_modules,
        exclude_modules=deepest.exclude_modules,
        lora_bias=deepest.lora_bias,
        inference_mode=True,
    )
    return config, state


def bridge_and_head_hash(model: torch.nn.Module) -> str:
    """SHA-256 over the names and bytes of what HiVG adds to CLIP."""
    digest = hashlib.sha256()
    for name, tensor in sorted(new_modules_state(model).items()):
        digest.update(name.encode())
        digest.update(tensor.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def new_modules_state(model: torch.nn.Module, state: dict[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    """Bridge and `grounding_head` tensors on the CPU, by their names in the plain model.

    Args:
        model: Plain, or with adapters.
        state: The model's whole state, gathered from the processes of a sharded model; the model's own by default.
    """
    return _contiguous(own_new_modules(model.state_dict() if state is None else state))


def own_new_modules(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Bridge and `grounding_head` tensors of a state, by their names in the plain model."""
    return {
        name.removeprefix(PEFT_PREFIX).replace(".base_layer.", "."): tensor
        for name, tensor in state.items()
        if is_new_parameter(name) and "lora_" not in name
    }


def save_adapter_state(model: PeftModel, folder: str | Path, state: dict[str, torch.Tensor] | None = None) -> None:
    """Write every adapter to a subfolder, and bridge and head beside them: all that HiLoRA trains.

    Args:
        model: With the adapters.
        folder: To write to.
        state: As for `new_modules_state`.
    """
    folder = Path(folder)
    for name, config in model.peft_config.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        config.save_pretrained(folder / name)
        tensors = get_peft_model_state_dict(model, state_dict=state, adapter_name=name)
        save_file(_contiguous(tensors), folder / name / ADAPTER_FILE)
    save_file(new_modules_state(model, state), folder / NEW_MODULES_FILE)


def _contiguous(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    # copies: the layers of some tuners share tensors, which safetensors refuses
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}


def _has_module(model: PeftModel, name: str) -> bool:
    return any(path.split(".")[-1] == name for path, _ in model.get_base_model().named_modules())


def _write_record(folder: Path, **content: Any) -> None:
    write_json(folder / RECORD_FILE, content)
