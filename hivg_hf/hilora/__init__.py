"""HiLoRA: stages as named PEFT adapters (`stages`), their folders (`folders`), its rival CoTo (`coto`),
and PEFT's other tuners (`tuners`)."""

from typing import TYPE_CHECKING

from hivg_hf.utils.lazy import lazy_names

if TYPE_CHECKING:
    from .coto import CoTo, CoToCallback
    from .folders import (
        add_stages,
        bridge_and_head_hash,
        load_adapter_state,
        load_stages,
        publish_stages,
        save_adapter_state,
    )
    from .stages import (
        NEW_MODULES,
        PROGRESSIVE_ADAPTER,
        HiLoraConfig,
        HiLoraStage,
        activate_stage,
        is_new_parameter,
        merge_stages,
        named_targets,
        start_stage,
        target_pattern,
    )
    from .tuners import add_tuner, tuner_config

__all__ = [
    "NEW_MODULES",
    "PROGRESSIVE_ADAPTER",
    "CoTo",
    "CoToCallback",
    "HiLoraConfig",
    "HiLoraStage",
    "activate_stage",
    "add_stages",
    "add_tuner",
    "bridge_and_head_hash",
    "is_new_parameter",
    "load_adapter_state",
    "load_stages",
    "merge_stages",
    "named_targets",
    "publish_stages",
    "save_adapter_state",
    "start_stage",
    "target_pattern",
    "tuner_config",
]

__getattr__ = lazy_names(
    __name__,
    {
        "CoTo": "coto",
        "CoToCallback": "coto",
        "HiLoraConfig": "stages",
        "HiLoraStage": "stages",
        "NEW_MODULES": "stages",
        "PROGRESSIVE_ADAPTER": "stages",
        "activate_stage": "stages",
        "bridge_and_head_hash": "folders",
        "is_new_parameter": "stages",
        "add_stages": "folders",
        "add_tuner": "tuners",
        "load_adapter_state": "folders",
        "load_stages": "folders",
        "merge_stages": "stages",
        "named_targets": "stages",
        "publish_stages": "folders",
        "save_adapter_state": "folders",
        "start_stage": "stages",
        "target_pattern": "stages",
        "tuner_config": "tuners",
    },
)
