"""Adapters from their folders into a model, whole or not at all; `folders.py` writes them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, PeftType, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.tensor import DTensor

from hivg_hf.modeling.modeling_hivg import HiVGForVisualGrounding
from hivg_hf.utils.whole_weights import check_fit, load_whole

from .config import check_adapter_name
from .folders import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_FILE,
    NEW_MODULES_FILE,
    PEFT_PREFIX,
    RECORD_FILE,
    bridge_and_head_hash,
    own_new_modules,
)
from .options import check_patterns, check_stored_options
from .stages import is_new_parameter


def load_stages(folder: str | Path) -> PeftModel:
    """Load base/ with all of adapters/ active, in the order of their stages; nothing trains.

    Raises:
        FileNotFoundError: If base/ or adapters/ is not there.
        ValueError: If an adapter was trained with another bridge and head than base/ has.
    """
    folder = Path(folder)
    for part in ("base", "adapters"):
        if not (folder / part).is_dir():
            raise FileNotFoundError(f"{folder} has no folder {part}/; it must hold what a HiLoRA training wrote.")
    base = load_whole(HiVGForVisualGrounding, folder / "base", dtype=torch.float32)
    positions = {path.parent: _read_record(path)["position"] for path in folder.glob(f"adapters/*/{RECORD_FILE}")}
    if not positions:
        raise FileNotFoundError(f"{folder / 'adapters'} has no adapter.")
    stages = sorted(positions, key=lambda path: positions[path])
    return add_stages(base, {check_adapter_name(path.name): path for path in stages}, f"those in {folder / 'base'}")


def add_stages(model: HiVGForVisualGrounding, stages: Mapping[str, Path], own: str = "the base has") -> PeftModel:
    """Add trained adapters to a plain model, all active together; nothing trains.

    Args:
        model: The base; changed in place.
        stages: Name in the model -> folder, in the order of training: of low-rank terms alone, or an export, which
            holds a bridge and head of its own.
        own: The base's bridge and head, for the message.

    Raises:
        FileNotFoundError: A folder has no adapter.
        ValueError: An adapter was trained with another bridge and head, or does not fit.
    """
    digest = bridge_and_head_hash(model)
    for folder in stages.values():
        record = folder / RECORD_FILE
        if record.is_file() and _recorded_hash(record) not in (None, digest):
            raise ValueError(
                f"The adapter {folder} was trained with another bridge and head than {own}: take a base and stages of "
                "the same run and stage, or an exported adapter (exports/), which holds its own."
            )
    adapted: Any = model
    for name, folder in stages.items():
        adapted = add_trained_adapter(adapted, folder, name)
    adapted.base_model.set_adapter(list(adapted.peft_config), inference_mode=True)
    return adapted


def add_trained_adapter(model: torch.nn.Module, folder: str | Path, name: str) -> PeftModel:
    """Add an adapter from its folder, whole: PEFT itself takes what fits and leaves the rest at its start.

    Args:
        model: A plain model or one with adapters; changed in place.
        folder: What `save_pretrained` of PEFT wrote.
        name: Of the adapter in the model.

    Raises:
        FileNotFoundError: The folder has no adapter.
        ValueError: Its weights are not exactly those that its config describes on this model, or are not finite; or
            it has an option that cannot be loaded exactly.
    """
    folder = Path(folder)
    for file in (ADAPTER_CONFIG_FILE, ADAPTER_FILE):
        if not (folder / file).is_file():
            raise FileNotFoundError(f"The adapter {folder} has no {file}; publish or download it again.")
    check_stored_options(folder / ADAPTER_CONFIG_FILE)
    try:
        config = PeftConfig.from_pretrained(folder)
        config.inference_mode = True
        check_patterns(config, [name for name, _ in model.named_modules()])
        if isinstance(model, PeftModel):
            model.add_adapter(name, config)
        else:
            model = PeftModel(model, config, name)
        state = load_file(folder / ADAPTER_FILE)
    except (ValueError, TypeError, KeyError, re.error, SafetensorError) as error:
        raise ValueError(
            f"The adapter {folder} cannot be put on this model: {' '.join(str(error).split())}"
        ) from error
    expected = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    check_fit(folder / ADAPTER_FILE, state, expected)
    set_peft_model_state_dict(model, state, adapter_name=name)
    return model


def load_adapter_state(model: PeftModel, folder: str | Path) -> None:
    """Load what `save_adapter_state` wrote into a model with the same adapters; what trains stays as it is.

    Raises:
        FileNotFoundError: If the folder lacks an adapter of the model.
        ValueError: If its tensors do not fit the model.
    """
    folder, whole = Path(folder), {}
    for name in model.peft_config:
        path = folder / name / ADAPTER_FILE
        if not path.is_file():
            raise FileNotFoundError(f"{folder} has no adapter {name!r}, which the model has.")
        state = load_file(path)
        check_fit(path, state, get_peft_model_state_dict(model, adapter_name=name))
        if model.peft_config[name].peft_type != PeftType.LORA:
            set_peft_model_state_dict(model, state, adapter_name=name)
            continue
        whole.update({_with_adapter_name(key, name): tensor for key, tensor in state.items()})
    path = folder / NEW_MODULES_FILE
    state = load_file(path)
    check_fit(path, state, own_new_modules(model.state_dict()))
    # an adapter that reaches into a bridge stands around its layers
    names = {name.replace(".base_layer.", "."): name for name in model.state_dict() if is_new_parameter(name)}
    whole.update({names[f"{PEFT_PREFIX}{key}"]: tensor for key, tensor in state.items()})
    _load_by_name(model, whole)


def _load_by_name(model: torch.nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Load some of a model's tensors; into a sharded model each process takes its part."""
    if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        set_model_state_dict(model, state, options=StateDictOptions(full_state_dict=True, strict=False))
        return
    unexpected = model.load_state_dict(state, strict=False).unexpected_keys
    assert not unexpected, unexpected


def _with_adapter_name(key: str, adapter: str) -> str:
    """A saved adapter's key to the model's: PEFT leaves the adapter's name (and DoRA's `.weight`) out on disk."""
    path, _, last = key.rpartition(".")
    return f"{key}.{adapter}.weight" if last == "lora_magnitude_vector" else f"{path}.{adapter}.{last}"


def _recorded_hash(path: Path) -> str | None:
    """The hash of the bridge and head that an adapter belongs to; None for an export, which holds its own."""
    try:
        return json.loads(path.read_text(encoding="utf-8")).get("bridge_and_head_sha256")
    except (ValueError, AttributeError, RecursionError):
        raise ValueError(f"{path} is damaged: download or publish the adapter again.") from None


def _read_record(path: Path) -> dict[str, Any]:
    """Of a stage's adapter: its position and the hash of the bridge and head it belongs to."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(record["position"], int) and isinstance(record["bridge_and_head_sha256"], str):
            return record
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise ValueError(f"{path} does not say which stage the adapter is and which base it belongs to; publish it again.")
