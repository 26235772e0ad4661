"""Data: every annotation format to one schema, augmentation, collation, order, and the RefShapes generator."""

from typing import TYPE_CHECKING

from hivg_hf.utils.lazy import lazy_names

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

__getattr__ = lazy_names(
    __name__,
    {
        "EpochSampler": "order",
        "GroundingAugmentation": "augmentation",
        "GroundingCollator": "collator",
        "KeyedDataset": "order",
        "NegativeRows": "negatives",
        "Negatives": "negatives",
        "UniqueImageSampler": "order",
        "load_grounding_dataset": "loading",
        "mix_datasets": "mixture",
    },
)
