"""Any tuner of PEFT on a HiVG: its config checked, its adapter on the towers, bridge and head training beside it."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

from peft import PeftConfig, PeftModel, PeftType, PromptLearningConfig, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer

from hivg_hf.utils.strict_mapping import nearest, refuse_unknown

from .config import ATTENTION_TARGETS, check_adapter_name, target_pattern
from .options import MOST_RANK, check_patterns
from .stages import is_new_parameter

_OWN_FIELDS = (
    *("modules_to_save", "base_model_name_or_path", "inference_mode", "task_type", "auto_mapping", "revision"),
    *("peft_version", "runtime_config"),
)
REFUSED_TUNERS = {
    "LORA": "a phase that trains `lora` takes its options, and its stages",
    "ADALORA": "its ranks change by a call of its own in every step, which the trainer does not make",
    "POLY": "it needs a task's number with every row",
    "XLORA": "it mixes adapters that are trained before",
    "TRAINABLE_TOKENS": "it tunes rows of an embedding, which this package keeps as they are",
}


def tuner_config(content: Mapping[str, Any], targets: Iterable[str] = ATTENTION_TARGETS) -> PeftConfig:
    """The config that a mapping as in `adapter_config.json` describes.

    Args:
        content: `peft_type` and fields of its config; `target_modules` is the towers' `targets` unless given.
        targets: Linear layers of every layer of the towers, as for `HiLoraConfig`.

    Raises:
        ValueError: The tuner is unknown, it does not fit here, or it does not take a field or its value.
    """
    given = dict(content)
    name = given.pop("peft_type", None)
    known = sorted(kind.value for kind in PEFT_TYPE_TO_CONFIG_MAPPING)
    if name not in known:
        raise ValueError(f"`peft_type` must be a tuner of PEFT, got {name!r}: {nearest(name, known)}")
    kind = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(name)]
    fields = {field.name for field in dataclasses.fields(kind)}
    if name in REFUSED_TUNERS:
        raise ValueError(f"The tuner {name} cannot be taken: {REFUSED_TUNERS[name]}.")
    if issubclass(kind, PromptLearningConfig) or "target_modules" not in fields:
        raise ValueError(f"The tuner {name} is put on no linear layers, so it cannot adapt the towers: take another.")
    if own := sorted(set(given) & set(_OWN_FIELDS)):
        raise ValueError(f"`{own[0]}` is set by the phase, which always trains bridge and grounding_head: omit it.")
    if isinstance(rank := given.get("r"), int) and rank > MOST_RANK:
        raise ValueError(f"`r` of the tuner {name} may be at most {MOST_RANK:,}.")
    refuse_unknown(given, sorted(fields - {"peft_type", *_OWN_FIELDS}), f"the config of {name}")
    try:
        return kind(**{"target_modules": target_pattern(None, None, targets), **given})
    except (ValueError, TypeError, ImportError) as error:
        raise ValueError(f"PEFT does not take this config of {name}: {' '.join(str(error).split())}") from error


def add_tuner(model: Any, config: PeftConfig, name: str) -> PeftModel:
    """Put a tuner's adapter on a plain model, in place, and let it, the bridge and `grounding_head` train.

    Raises:
        ValueError: PEFT cannot put it on this model, it reaches into what trains whole, or it could not be merged.
    """
    kind, own = config.peft_type.value, is_new_parameter
    try:
        check_patterns(config, [path for path, _ in model.named_modules()])
        adapted = get_peft_model(model, copy.deepcopy(config), adapter_name=check_adapter_name(name))
    except (ValueError, TypeError, ImportError, RuntimeError, re.error) as error:
        raise ValueError(f"PEFT cannot put {kind} on this model: {' '.join(str(error).split())}") from error
    layers = [path for path, module in adapted.named_modules() if isinstance(module, BaseTunerLayer)]
    if inside := [path.removeprefix("base_model.model.") for path in layers if own(f"{path}.")]:
        raise ValueError(
            f"{kind} reaches {inside[0]}, and bridge and grounding_head train whole: name layers of the towers in "
            "`target_modules`, as in `clip.vision_model.*q_proj`."
        )
    try:
        copy.deepcopy(adapted).merge_and_unload()
    except (NotImplementedError, AttributeError) as error:
        raise ValueError(f"PEFT cannot merge {kind}, and a phase ends with a plain model: take another.") from error
    for path, parameter in adapted.named_parameters():
        if own(path):
            parameter.requires_grad_(True)
    return adapted
