"""A recipe becomes a checkpoint: recipe, own data, trainer, phases, run folder, plan."""

from typing import TYPE_CHECKING

from hivg_hf.utils.lazy import lazy_names

if TYPE_CHECKING:
    from .arguments import HiVGTrainingArguments
    from .phase_kinds import AllPhase, HeadsPhase, LoraPhase
    from .phases import GroundingPhase, Phase
    from .plan import describe_plan, plan_training
    from .preflight import check_before_training
    from .recipe import Recipe, load_recipe, parse_recipe
    from .staged import StagedTraining
    from .trainer import HiVGTrainer
    from .user_data import plan_user_training

__all__ = [
    "AllPhase",
    "GroundingPhase",
    "HeadsPhase",
    "HiVGTrainer",
    "HiVGTrainingArguments",
    "LoraPhase",
    "Phase",
    "Recipe",
    "StagedTraining",
    "check_before_training",
    "describe_plan",
    "load_recipe",
    "parse_recipe",
    "plan_training",
    "plan_user_training",
]

__getattr__ = lazy_names(
    __name__,
    {
        "AllPhase": "phase_kinds",
        "GroundingPhase": "phases",
        "HeadsPhase": "phase_kinds",
        "HiVGTrainer": "trainer",
        "HiVGTrainingArguments": "arguments",
        "LoraPhase": "phase_kinds",
        "Phase": "phases",
        "Recipe": "recipe",
        "StagedTraining": "staged",
        "check_before_training": "preflight",
        "describe_plan": "plan",
        "load_recipe": "recipe",
        "parse_recipe": "recipe",
        "plan_training": "plan",
        "plan_user_training": "user_data",
    },
)
