"""Is an image file there, whole, and as large as its annotation says? Answered without decoding every picture.

The header gives the size. A JPEG or PNG that is cut short lacks its end marker, so the last bytes decide; only a file
whose end looks wrong (or whose format has no marker) is decoded to be sure.
"""

import functools
import io
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from hivg_hf.modeling.image_loading_hivg import load_grounding_image, read_header
from hivg_hf.modeling.image_sources_hivg import open_regular_file

END_MARKERS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
TAIL_BYTES = 64  # some writers add a few bytes after the marker
EXIF_ORIENTATION = 0x0112
QUARTER_TURNS = (5, 6, 7, 8)
PNG_EXIF = {"exif", "XML:com.adobe.xmp", "Raw profile type exif"}  # where a PNG may say how it is turned


@dataclass(frozen=True)
class ImageFacts:
    """Size of an image as it is opened (upright), in pixels, and what is wrong with it, None where nothing is."""

    width: int | None
    height: int | None
    problem: str | None = None
    kind: str | None = None


def image_facts(image: Any, decode: bool = False) -> ImageFacts:
    """Check one image.

    Args:
        image: path, or `{"path", "bytes"}` as `datasets` stores it.
        decode: decode it in any case, which finds damage in the middle too.
    """
    data = image.get("bytes") if isinstance(image, Mapping) else None
    if data is not None:
        return _facts(io.BytesIO(data), len(data), "the embedded image", decode)
    path = image.get("path") if isinstance(image, Mapping) else image
    if not path:
        return ImageFacts(None, None, "it has no image", "missing image")
    return _facts_of_file(str(path), decode)


@functools.lru_cache(maxsize=200_000)
def _cached_facts(path: str, decode: bool, size: int, modified_ns: int) -> ImageFacts:
    with open_regular_file(path) as file:
        return _facts(file, size, f"the image file {path}", decode)


def _facts_of_file(path: str, decode: bool) -> ImageFacts:
    try:
        status = Path(path).stat()
        if stat.S_ISREG(status.st_mode) and status.st_size == 0:
            return ImageFacts(None, None, f"the image file {path} is empty", "unreadable image")
        # Several expressions share a picture; size and time tell a file that was replaced meanwhile.
        return _cached_facts(path, decode, status.st_size, status.st_mtime_ns)
    except FileNotFoundError:
        return ImageFacts(None, None, f"image file not found: {path}", "missing image")
    except OSError as error:
        return ImageFacts(None, None, f"the image file {path} cannot be read ({error})", "unreadable image")
    except ValueError as error:  # a folder, a pipe, a device, an empty or a huge file
        return ImageFacts(None, None, _clause(error), "unreadable image")


def _facts(stream: BinaryIO, length: int, name: str, decode: bool) -> ImageFacts:
    """Check an open file or buffer of `length` bytes."""
    if length == 0:
        return ImageFacts(None, None, f"{name} is empty", "unreadable image")
    try:
        picture = read_header(stream, "it")
        width, height = picture.size
        # Of a PNG, getexif would decode the whole picture to look for a block behind it.
        turned = picture.getexif() if picture.format != "PNG" or PNG_EXIF & picture.info.keys() else {}
        if turned.get(EXIF_ORIENTATION, 1) in QUARTER_TURNS:
            width, height = height, width
        stream.seek(max(length - TAIL_BYTES, 0))
        marker = END_MARKERS.get(picture.format or "")
        if decode or marker is None or marker not in stream.read():
            stream.seek(0)
            width, height = load_grounding_image(stream.read()).size
    except (OSError, SyntaxError, ValueError) as error:
        return ImageFacts(
            None, None, f"{name} cannot be read as a picture: {_reason(stream, error)}", "unreadable image"
        )
    return ImageFacts(width, height)


def _reason(stream: BinaryIO, error: Exception) -> str:
    stream.seek(0)
    if stream.read(200).lstrip()[:1] == b"<":
        return "it holds HTML or XML, probably the page of a failed download"
    return _clause(error)


def _clause(error: Exception) -> str:
    """A sentence as a part of another one."""
    sentence = str(error).replace("\n", " ").rstrip(".")
    return sentence[:1].lower() + sentence[1:]
