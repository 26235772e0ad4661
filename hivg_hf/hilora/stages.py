"""HiLoRA on a model: stages, from shallow layers to deep ones or back, as named PEFT adapters.

In every stage the bridge and ``grounding_head`` train fully and CLIP's own weights never.

Example:
    >>> config = HiLoraConfig.for_model(model.config)
    >>> model = start_stage(model, config, 1)      # a PeftModel; train it with any Trainer
    >>> model = start_stage(model, config, 2)
    >>> plain = merge_stages(model)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from peft import PeftModel, get_peft_model
from torch import nn

from .config import HiLoraConfig
from .options import check_patterns

if TYPE_CHECKING:
    from hivg_hf.modeling.modeling_hivg import HiVGForVisualGrounding

NEW_MODULES = ("bridge", "grounding_head")
_NEW_MODULE_PATTERN = re.compile(r"(^|\.)(bridge|grounding_head)\.")
_TOWER_LAYER_PATTERN = re.compile(r"(vision_model|text_model)\.encoder\.layers\.(\d+)\.")


def start_stage(model: nn.Module, config: HiLoraConfig, stage: int) -> PeftModel:
    """Add (or reuse) the adapter of a stage and set what trains.

    Args:
        model: A plain ``HiVGForVisualGrounding`` (no adapter yet) or the ``PeftModel`` of an earlier stage. Changed in
            place: PEFT injects its layers into it.
        config: All stages.
        stage: Counted from 1.

    Returns:
        The PeftModel with the adapters of stages 1..``stage`` active; only the newest, the bridge and
        ``grounding_head`` have gradients. A stage whose adapter was rejected earlier is simply not there.

    Raises:
        ValueError: If the stage does not exist or the model is shallower than it asks for.
    """
    if not 1 <= stage <= len(config.stages):
        raise ValueError(f"stage must be between 1 and {len(config.stages)}. Got {stage}.")
    _check_depth(model, config, stage)
    name = config.adapter_name(stage)
    try:
        check_patterns(config.lora_config(stage), [path for path, _ in model.named_modules()])
    except ValueError as error:
        raise ValueError(f"HiLoraConfig.lora_options: {error}.") from None
    if not isinstance(model, PeftModel):
        model = get_peft_model(model, config.lora_config(stage), adapter_name=name)
    elif name not in model.peft_config:
        model.add_adapter(name, config.lora_config(stage))
    activate_stage(model, config, stage)
    return model


def activate_stage(model: PeftModel, config: HiLoraConfig, stage: int, train: bool = True) -> None:
    """Make the adapters of stages 1..``stage`` active; let the newest, the bridge and the head train, nothing else."""
    newest = config.adapter_name(stage)
    wanted = [config.adapter_name(number) for number in range(1, stage + 1)]
    active = [name for name in dict.fromkeys(wanted) if name in model.peft_config]
    # PeftModel.set_adapter takes one name only; every set_adapter switches gradients on for all it lists
    model.base_model.set_adapter(active, inference_mode=True)
    reach = config.layers_of(config.stages[stage - 1])
    for name, parameter in model.named_parameters():
        is_newest = f".{newest}." in name and "lora_" in name and _within(name, reach)
        is_own = is_new_parameter(name) and "lora_" not in name
        parameter.requires_grad_(train and (is_newest or is_own))


def merge_stages(model: PeftModel) -> HiVGForVisualGrounding:
    """Fold all active adapters into the weights and return the plain model, in place.

    ``merge_and_unload()`` without names merges whatever is active; an adapter that is present but inactive would be
    dropped without a word, hence the check.

    Raises:
        ValueError: If an adapter is not active.
    """
    idle = sorted(set(model.peft_config) - set(model.base_model.active_adapters))
    if idle:
        raise ValueError(f"Merging would lose the inactive adapters {idle}; activate them or delete them first.")
    return model.merge_and_unload(adapter_names=list(model.base_model.active_adapters))


def is_new_parameter(name: str) -> bool:
    """Whether a parameter belongs to what HiVG adds to CLIP: the bridge or ``grounding_head``."""
    return _NEW_MODULE_PATTERN.search(name) is not None


def _within(name: str, layers: Mapping[str, range]) -> bool:
    match = _TOWER_LAYER_PATTERN.search(name)
    return match is not None and int(match[2]) in layers[match[1]]


def _check_depth(model: nn.Module, config: HiLoraConfig, stage: int) -> None:
    clip = model.config.clip_config if not isinstance(model, PeftModel) else model.get_base_model().config.clip_config
    depth, text_depth = clip.vision_config.num_hidden_layers, clip.text_config.num_hidden_layers
    reach, last = config.stages[stage - 1], config.stages[-1]
    if reach.vision_layers > depth or reach.text_layers > text_depth:
        raise ValueError(
            f"Stage {reach.name!r} adapts {reach.vision_layers} vision and {reach.text_layers} text layers, but the "
            f"model has {depth} and {text_depth}."
        )
    if config.order == "deep_to_shallow" and (
        last.vision_layers not in (0, depth) or last.text_layers not in (0, text_depth)
    ):
        raise ValueError(
            f"From deep to shallow, the last stage reaches all layers of a tower: {last.name!r} adapts "
            f"{last.vision_layers} vision and {last.text_layers} text layers, but the model has {depth} and "
            f"{text_depth}."
        )
