"""The model, its processor and its pipeline: what travels to the Hub with a checkpoint.

Always imported as `hivg_hf.modeling`. Importing it registers HiVG with transformers, so that `AutoModel`,
`AutoProcessor` and `pipeline("visual-grounding")` know it without `trust_remote_code`; and saving copies these files
beside the weights, so that people who have not installed `hivg_hf` can load them with it.
"""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForZeroShotObjectDetection,
    AutoProcessor,
)
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_hivg import HiVGConfig
from .image_processing_hivg import HiVGImageProcessor
from .modeling_hivg import HiVGForVisualGrounding, HiVGOutput, HiVGPreTrainedModel
from .pipeline_hivg import VisualGroundingPipeline
from .processing_hivg import HiVGProcessor, HiVGProcessorKwargs


def _register() -> None:
    AutoConfig.register("hivg", HiVGConfig, exist_ok=True)
    AutoModel.register(HiVGConfig, HiVGForVisualGrounding, exist_ok=True)
    AutoModelForZeroShotObjectDetection.register(HiVGConfig, HiVGForVisualGrounding, exist_ok=True)
    AutoImageProcessor.register(HiVGConfig, image_processor_classes={"pil": HiVGImageProcessor}, exist_ok=True)
    AutoProcessor.register(HiVGConfig, HiVGProcessor, exist_ok=True)
    PIPELINE_REGISTRY.register_pipeline(
        "visual-grounding", pipeline_class=VisualGroundingPipeline, pt_model=AutoModel, type="multimodal"
    )
    HiVGConfig.register_for_auto_class()
    HiVGForVisualGrounding.register_for_auto_class("AutoModel")
    HiVGImageProcessor.register_for_auto_class()
    HiVGProcessor.register_for_auto_class()


_register()

__all__ = [
    "HiVGConfig",
    "HiVGForVisualGrounding",
    "HiVGImageProcessor",
    "HiVGOutput",
    "HiVGPreTrainedModel",
    "HiVGProcessor",
    "HiVGProcessorKwargs",
    "VisualGroundingPipeline",
]
