"""Data: every annotation format to one schema, augmentation, collation, order, and the RefShapes generator."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .augmentation import GroundingAugmentation
    from .collator import GroundingCollator
    from .loading import load_grounding_dataset
    from .mixture import mix_datasets
    from .negatives import NegativeRows, Negatives
    from .order import EpochSampler, KeyedDataset, UniqueImageSampler

__all__ = [
    "EpochSampler",
    "GroundingAugmentation",
    "GroundingCollator",
    "KeyedDataset",
    "NegativeRows",
    "Negatives",
    "UniqueImageSampler",
    "load_grounding_dataset",
    "mix_datasets",
]

_HOME = {
    "EpochSampler": "order",
    "GroundingAugmentation": "augmentation",
    "GroundingCollator": "collator",
    "KeyedDataset": "order",
    "NegativeRows": "negatives",
    "Negatives": "negatives",
    "UniqueImageSampler": "order",
    "load_grounding_dataset": "loading",
    "mix_datasets": "mixture",
}


def __getattr__(name: str) -> Any:
    """Import on first use: a reader of files should not have to wait for torch's model code."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
