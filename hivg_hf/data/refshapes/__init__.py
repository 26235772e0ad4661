"""RefShapes: rendered scenes of shapes, and expressions that name exactly one object."""

from typing import TYPE_CHECKING

from hivg_hf.utils.lazy import lazy_names

if TYPE_CHECKING:
    from .dataset import refshapes_dataset
    from .examples import example_scenes
    from .samples import SPLITS, SampleOptions, refshapes_samples
    from .tokenizer import build_tokenizer

__all__ = [
    "SPLITS",
    "SampleOptions",
    "build_tokenizer",
    "example_scenes",
    "refshapes_dataset",
    "refshapes_samples",
]

__getattr__ = lazy_names(
    __name__,
    {
        "SPLITS": "samples",
        "SampleOptions": "samples",
        "build_tokenizer": "tokenizer",
        "example_scenes": "examples",
        "refshapes_dataset": "dataset",
        "refshapes_samples": "samples",
    },
)
