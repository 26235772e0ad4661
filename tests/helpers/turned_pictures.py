"""Pictures as cameras store them: turned, with a tag that says how to show them."""

from pathlib import Path
from typing import Any

import PIL.Image

ORIENTATION = 0x0112
# What has to be done to an upright picture so that a viewer, who obeys the tag, shows it upright again.
UNDONE = {
    1: None,
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_90,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_270,
}


def save_turned(upright: PIL.Image.Image, path: Path, orientation: int, **options: Any) -> PIL.Image.Image:
    """Write a file that viewers show as `upright`; returns the pixels as they are stored."""
    undo = UNDONE[orientation]
    stored = upright if undo is None else upright.transpose(undo)
    exif = PIL.Image.Exif()
    exif[ORIENTATION] = orientation
    stored.save(path, exif=exif, **options)
    return stored
