"""HiLoRA: what the stages are (`config`), as named PEFT adapters of a model (`stages`), in folders (`folders`,
`loading`); its rival CoTo (`coto`), and PEFT's other tuners (`tuners`)."""

from typing import TYPE_CHECKING

from hivg_hf.utils.lazy import lazy_names

if TYPE_CHECKING:
    from .config import PROGRESSIVE_ADAPTER, HiLoraConfig, HiLoraStage, named_targets, target_pattern
    from .coto import CoTo, CoToCallback
    from .folders import bridge_and_head_hash, publish_stages, save_adapter_state
    from .loading import add_stages, load_adapter_state, load_stages
    from .stages import NEW_MODULES, activate_stage, is_new_parameter, merge_stages, start_stage
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
        "HiLoraConfig": "config",
        "HiLoraStage": "config",
        "NEW_MODULES": "stages",
        "PROGRESSIVE_ADAPTER": "config",
        "activate_stage": "stages",
        "bridge_and_head_hash": "folders",
        "is_new_parameter": "stages",
        "add_stages": "loading",
        "add_tuner": "tuners",
        "load_adapter_state": "loading",
        "load_stages": "loading",
        "merge_stages": "stages",
        "named_targets": "config",
        "publish_stages": "folders",
        "save_adapter_state": "folders",
        "start_stage": "stages",
        "target_pattern": "config",
        "tuner_config": "tuners",
    },
)
