"""Official files and plain CLIP weights to HiVG: the one place that knows their names."""

from typing import TYPE_CHECKING

from hivg_hf.utils.lazy import lazy_names

if TYPE_CHECKING:
    from .check import published_clip_config
    from .files import OfficialFile
    from .load import (
        Conversion,
        convert_official_checkpoint,
        load_official_checkpoint,
        load_official_clip,
        official_clip,
        official_processor,
    )
    from .names import OFFICIAL_LOSS_NAMES, official_parameter_name
    from .report import ConversionReport

__all__ = [
    "OFFICIAL_LOSS_NAMES",
    "Conversion",
    "ConversionReport",
    "OfficialFile",
    "convert_official_checkpoint",
    "load_official_checkpoint",
    "load_official_clip",
    "official_clip",
    "official_parameter_name",
    "official_processor",
    "published_clip_config",
]

__getattr__ = lazy_names(
    __name__,
    {
        "Conversion": "load",
        "ConversionReport": "report",
        "OFFICIAL_LOSS_NAMES": "names",
        "OfficialFile": "files",
        "convert_official_checkpoint": "load",
        "load_official_checkpoint": "load",
        "load_official_clip": "load",
        "official_clip": "load",
        "official_parameter_name": "names",
        "official_processor": "load",
        "published_clip_config": "check",
    },
)
