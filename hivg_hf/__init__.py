"""Visual grounding at CLIP's cost: an image and a referring expression in, the right box out.

Importing this package registers HiVG with transformers: `AutoModel.from_pretrained`, `AutoProcessor.from_pretrained`
and `pipeline("visual-grounding")` know it from then on, without `trust_remote_code`. Everything that needs more than
torch and transformers (PEFT, datasets, plots) is loaded when it is first used. The `hivg` command alone registers when
it runs a verb, so that its help and its refusals come at once.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .checkpoints import TINY_CHECKPOINT
from .utils.program import is_command
from .utils.stops import listen
from .utils.version import __version__

if TYPE_CHECKING:
    from .conversion import load_official_checkpoint
    from .data import load_grounding_dataset
    from .hilora import HiLoraConfig, HiLoraStage, merge_stages, start_stage
    from .metrics import compute_grounding_metrics
    from .modeling import (
        HiVGConfig,
        HiVGForVisualGrounding,
        HiVGImageProcessor,
        HiVGOutput,
        HiVGPreTrainedModel,
        HiVGProcessor,
        HiVGProcessorKwargs,
        VisualGroundingPipeline,
    )
    from .training import HiVGTrainer, HiVGTrainingArguments
    from .visualize import draw_grounding

_HOME_OF = {
    "HiVGConfig": ".modeling",
    "HiVGForVisualGrounding": ".modeling",
    "HiVGImageProcessor": ".modeling",
    "HiVGOutput": ".modeling",
    "HiVGPreTrainedModel": ".modeling",
    "HiVGProcessor": ".modeling",
    "HiVGProcessorKwargs": ".modeling",
    "VisualGroundingPipeline": ".modeling",
    "load_official_checkpoint": ".conversion",
    "load_grounding_dataset": ".data",
    "HiLoraConfig": ".hilora",
    "HiLoraStage": ".hilora",
    "merge_stages": ".hilora",
    "start_stage": ".hilora",
    "compute_grounding_metrics": ".metrics",
    "HiVGTrainer": ".training",
    "HiVGTrainingArguments": ".training",
    "draw_grounding": ".visualize",
}


def _zero_shot(*args: Any, **kwargs: Any) -> Any:
    """What `pipeline("visual-grounding", clip, mode="zero-shot")` gives; loaded when it is asked for."""
    return importlib.import_module(".zero_shot", __name__).ZeroShotGrounder.from_pipeline(*args, **kwargs)


def register() -> None:
    """Make transformers know HiVG: its classes by importing them, its zero-shot mode by name."""
    from transformers.pipelines import PIPELINE_REGISTRY

    from .modeling import VisualGroundingPipeline

    # Without a model; the files of modeling/ do not know where this package's folders are.
    PIPELINE_REGISTRY.supported_tasks["visual-grounding"]["default"] = {"model": (TINY_CHECKPOINT, "main")}

    VisualGroundingPipeline.modes["zero-shot"] = _zero_shot


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    register()
    value = getattr(importlib.import_module(_HOME_OF[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME_OF])


__all__ = [
    "TINY_CHECKPOINT",
    "HiLoraConfig",
    "HiLoraStage",
    "HiVGConfig",
    "HiVGForVisualGrounding",
    "HiVGImageProcessor",
    "HiVGOutput",
    "HiVGPreTrainedModel",
    "HiVGProcessor",
    "HiVGProcessorKwargs",
    "HiVGTrainer",
    "HiVGTrainingArguments",
    "VisualGroundingPipeline",
    "__version__",
    "compute_grounding_metrics",
    "draw_grounding",
    "load_grounding_dataset",
    "load_official_checkpoint",
    "merge_stages",
    "start_stage",
]

if is_command():
    listen()
else:
    register()
