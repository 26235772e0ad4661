"""From a recipe to the things that train: model, processor, rows, arguments."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer

from hivg_hf.conversion import load_official_clip
from hivg_hf.data import load_grounding_dataset
from hivg_hf.data.loading import refuse_several_targets
from hivg_hf.hilora import PROGRESSIVE_ADAPTER, is_new_parameter
from hivg_hf.hilora.folders import add_trained_adapter
from hivg_hf.hub import resolve_model
from hivg_hf.modeling.configuration_hivg import HiVGConfig
from hivg_hf.modeling.modeling_hivg import HiVGForVisualGrounding
from hivg_hf.modeling.presets_hivg import preset_fields
from hivg_hf.modeling.processing_hivg import HiVGProcessor
from hivg_hf.utils.imports import is_package_available
from hivg_hf.utils.whole_weights import load_whole

from .arguments import HiVGTrainingArguments
from .launch import wants_cpu
from .phases import GroundingPhase, Phase
from .recipe import ModelRecipe, Recipe

OFFICIAL_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")
PARTS = ("CLIP vision", "CLIP text", "CLIP other", "bridge", "grounding head", "LoRA vision", "LoRA text")


def build_model(recipe: ModelRecipe, **changes: Any) -> Any:
    """The model that the first phase starts from, in float32; new weights come from torch's random state.

    Where its folder holds an adapter to go on with, a `PeftModel` around it.

    Args:
        recipe: Where it comes from.
        changes: Config fields that the first phase changes.
    """
    fields = {**recipe.config, **changes}
    if recipe.checkpoint:
        model = load_growing(resolve_model(plain_checkpoint(recipe.checkpoint)), fields)
        if adapter := continued_adapter(recipe):
            return add_trained_adapter(model, adapter, PROGRESSIVE_ADAPTER)
    elif recipe.clip:
        shape = preset_fields(recipe.preset) if recipe.preset else {}
        shape.pop("clip_config", None)
        model = _around_clip(_place(recipe.clip), {**shape, **fields})
    else:
        config = HiVGConfig.preset(recipe.preset or "", **fields)
        tokenizer = load_tokenizer(recipe)
        text = config.clip_config.text_config
        text.vocab_size, text.bos_token_id, text.eos_token_id = (
            len(tokenizer),
            tokenizer.bos_token_id,
            tokenizer.eos_token_id,
        )
        model = HiVGForVisualGrounding(config)
    return model


def continued_adapter(recipe: ModelRecipe) -> Path | None:
    """The adapter that a run goes on training: that of `hivg convert --lora adapter`, or of progressive HiLoRA."""
    folder = Path(recipe.checkpoint or "") / "adapters" / PROGRESSIVE_ADAPTER
    return folder if recipe.checkpoint and folder.is_dir() else None


def plain_checkpoint(checkpoint: str) -> str:
    """The model itself: `base/` of a folder that also holds adapters."""
    base = Path(checkpoint) / "base"
    return str(base) if base.is_dir() else checkpoint


def load_growing(source: str | Path, changes: Mapping[str, Any]) -> HiVGForVisualGrounding:
    """A model in float32 whose weights are whole; with changed config fields, bridge and head may have new ones.

    Args:
        source: Folder or Hub id.
        changes: Config fields that differ from the stored ones.
    """
    return load_whole(
        HiVGForVisualGrounding,
        source,
        may_be_new=lambda name: bool(changes) and is_new_parameter(name),
        dtype=torch.float32,
        **changes,
    )


def _around_clip(clip: str, fields: Mapping[str, Any]) -> HiVGForVisualGrounding:
    """A new model around a CLIP folder or Hub id, or around an official CLIP file, from which the authors start."""
    if clip.endswith(OFFICIAL_SUFFIXES):
        return load_official_clip(clip, **fields)
    return HiVGForVisualGrounding.from_clip(clip, **{**fields, "dtype": torch.float32})


def build_processor(recipe: ModelRecipe, config: HiVGConfig) -> HiVGProcessor:
    """The checkpoint's own processor, or one that fits the config with the recipe's (or CLIP's) tokenizer."""
    if recipe.checkpoint and not recipe.tokenizer:
        return HiVGProcessor.from_pretrained(resolve_model(plain_checkpoint(recipe.checkpoint)))
    return HiVGProcessor.for_config(config, load_tokenizer(recipe))


def load_tokenizer(recipe: ModelRecipe) -> Any:
    """The tokenizer that the recipe names, or CLIP's own."""
    if recipe.tokenizer == "refshapes":
        from hivg_hf.data.refshapes import build_tokenizer

        return build_tokenizer()
    source = recipe.tokenizer or recipe.clip
    if source is None or Path(source).is_file():
        raise ValueError("The file in model.clip holds no tokenizer: name CLIP's folder or Hub id in model.tokenizer.")
    return AutoTokenizer.from_pretrained(_place(source))


def _place(name: str) -> str:
    """Where a CLIP or a tokenizer lies: a file or folder as it is, else what the name of a model stands for."""
    return name if Path(name).exists() else resolve_model(name)


def row_options(spec: Mapping[str, Any]) -> dict[str, Any]:
    """What a description of rows, `{source, split, **options}`, says beside source and split."""
    return {name: value for name, value in spec.items() if name not in ("source", "split")}


class RowCache:
    """Datasets by their description, each loaded once however many phases use it."""

    def __init__(self) -> None:
        self._loaded: dict[str, Any] = {}

    def load(self, spec: dict[str, Any]) -> Any:
        """Rows of the schema for `{source, split, **options}`."""
        key = repr(sorted(spec.items(), key=lambda item: item[0]))
        if key not in self._loaded:
            rows = load_grounding_dataset(spec["source"], spec["split"], **row_options(spec))
            refuse_several_targets(rows)
            self._loaded[key] = rows
        return self._loaded[key]

    def training_rows(self, recipe: Recipe, phase: Phase) -> Any:
        """Rows that a phase trains on."""
        return self.load(phase.data or recipe.data.train)


def build_arguments(
    recipe: Recipe, phase: Phase, folder: Path, evaluates: bool, rows: int, has_unused: bool = True
) -> HiVGTrainingArguments:
    """The Trainer's arguments of a phase.

    Args:
        recipe: The run.
        phase: The phase.
        folder: Where its checkpoints go.
        evaluates: Whether it evaluates on the validation rows.
        rows: Training rows.
        has_unused: Whether parameters that train may get no gradient, which DDP has to look for in every step.
    """
    # Everything is counted in steps, epochs too: where an evaluation and a checkpoint fall on one step, transformers
    # evaluates first, so that a run that is killed in between and resumed still meets every evaluation.
    eval_steps = phase.evaluate_every or max(rows // phase.batch_size, 1)
    return HiVGTrainingArguments(
        output_dir=str(folder),
        seed=recipe.seed,
        global_batch_size=phase.batch_size,
        per_device_train_batch_size=min(phase.per_device_batch_size, phase.batch_size),
        per_device_eval_batch_size=phase.eval_batch_size,
        num_train_epochs=phase.epochs or 1,
        max_steps=phase.steps or -1,
        learning_rate=phase.learning_rate,
        weight_decay=phase.weight_decay,
        decay_all=phase.decay_all,
        adam_beta1=phase.betas[0],
        adam_beta2=phase.betas[1],
        warmup_steps=phase.warmup,
        max_grad_norm=phase.max_grad_norm,
        lr_scheduler_type=phase.schedule.removesuffix("_by_epoch"),
        schedule_by_epoch=phase.schedule.endswith("_by_epoch"),
        eval_strategy="steps" if evaluates else "no",
        eval_steps=eval_steps,
        save_strategy="steps",
        save_steps=phase.save_every or eval_steps,
        logging_steps=phase.log_every,
        early_stop=phase.early_stop if evaluates and isinstance(phase, GroundingPhase) else None,
        metric_for_best_model="accuracy" if evaluates else None,
        unique_images=recipe.data.unique_images,
        protocol=recipe.data.protocol,
        dataloader_num_workers=recipe.workers,
        bf16=recipe.precision == "bf16",
        fp16=recipe.precision == "fp16",
        activation_checkpointing=recipe.activation_checkpointing,
        ddp_find_unused_parameters=has_unused,
        report_to=_reports(),
        disable_tqdm=not sys.stderr.isatty(),
        use_cpu=wants_cpu(),
    )


def _reports() -> list[str]:
    return ["tensorboard"] if is_package_available("tensorboard") or is_package_available("tensorboardX") else []


def count_parameters(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Part of the model -> (parameters that train, parameters), in the order of `PARTS`; empty parts are left out."""
    counts = {part: [0, 0] for part in PARTS}
    for name, parameter in model.named_parameters():
        part = _part(name)
        counts.setdefault(part, [0, 0])
        counts[part][0] += parameter.numel() * parameter.requires_grad
        counts[part][1] += parameter.numel()
    return {part: (train, total) for part, (train, total) in counts.items() if total}


def _part(name: str) -> str:
    tower = "vision" if "vision_model." in name else "text" if "text_model." in name else "other"
    if "lora_" in name:
        return f"LoRA {tower}"
    if is_new_parameter(name):
        return "bridge" if ".bridge." in name else "grounding head"
    return f"CLIP {tower}" if "clip." in name else "pre-training heads"
