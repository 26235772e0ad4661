"""Open any picture as 8-bit RGB, or say in one sentence what is wrong with it: the one place where this is done.

`PIL.Image.convert("RGB")` alone shows many pictures wrongly: it drops transparency, saturates 16-bit samples and
ignores the EXIF orientation. Everything in this package opens pictures here, so that a box means the same pixels
everywhere. Files, URLs and bytes are opened upright, as a viewer shows them. PIL images and arrays are taken as they
are held: a box fits the object that was passed, and nothing is turned twice.

Formats are those of `FORMATS`: some of Pillow's others start programs (EPS) or need libraries that are not checked
here. What a header announces is checked before any pixel is decoded.
"""

import os
import re
import warnings
from io import BytesIO
from typing import Any, BinaryIO, TypeGuard

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch

from .image_arrays_hivg import channels_last, tensor_to_array, to_8_bit
from .image_sources_hivg import (
    base64_bytes,
    capital,
    data_url_bytes,
    download,
    file_object_bytes,
    file_url_path,
    open_regular_file,
    shown,
)

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "WEBP", "TIFF", "AVIF")
FORMATS_WITH_VARIANTS = (*FORMATS, "MPO", "DIB")  # as Pillow calls some files that it opens for these
# Room for the photographs of today's telephones (108 megapixels), which then take 0.4 GB.
MAX_PIXELS = 2**27
EXIF_ORIENTATION = 0x0112
_FULL_SIZE = "_hivg_full_size"  # attribute of a reduced picture: (height, width) of the whole one


def load_grounding_image(
    source: Any, timeout: float | None = None, input_data_format: Any = None, max_pixels: int = MAX_PIXELS
) -> PIL.Image.Image:
    """RGB picture from a path, URL, base64 text, bytes, file object, PIL image, or numpy/torch array.

    URLs may be `http:`, `https:`, `file:` (of this machine) and `data:`; base64 may have line breaks.
    Transparency is composited on white, gray, palette and CMYK pictures are converted, and 16-bit samples are scaled
    (not cut) to 8 bits; samples up to 255 are taken for 8 bits in any container. Of an animated picture the first
    frame is taken. Arrays are (H, W), (H, W, C) or (C, H, W) with 1, 3 or 4 channels: integers in 0..255, uint16 in
    0..65535, floats in 0..1 or 0..255.

    Args:
        source: The picture; `{"path": ..., "bytes": ...}` as stored by `datasets` is understood too.
        timeout: Seconds for a download. Defaults to 30.
        input_data_format: Where an array has its channels, needed where its shape does not tell.
        max_pixels: Largest picture to decode; PIL images and arrays, which are in memory already, may be larger.

    Raises:
        FileNotFoundError: If the file is missing.
        ConnectionError: If a URL could not be fetched.
        TypeError: If the source is none of the supported kinds.
        ValueError: If the file is empty, truncated, too large or not an image, or an array is ambiguous, out of range
            or not finite.
    """
    opened = open_image(source, timeout, input_data_format, max_pixels)
    return array_to_image(opened) if isinstance(opened, np.ndarray) else opened


def open_image(
    source: Any,
    timeout: float | None = None,
    input_data_format: Any = None,
    max_pixels: int = MAX_PIXELS,
    reduce_to: int | None = None,
) -> PIL.Image.Image | np.ndarray:
    """As `load_grounding_image`, but arrays, and pictures of deeper samples, keep their numbers.

    Args:
        source, timeout, input_data_format, max_pixels: As there.
        reduce_to: Decode a JPEG file at a half, quarter or eighth of its size, while its longer side stays at least
            this many pixels: several times faster, other pixels than those of the full picture made small.
            `image_size` still gives the size of the full picture. Other pictures are opened as ever.

    Returns:
        An RGB picture, or an array (H, W) or (H, W, C).
    """
    if isinstance(source, dict) and ("bytes" in source or "path" in source):
        source = source["bytes"] if source.get("bytes") is not None else source.get("path")
    if isinstance(source, torch.Tensor):
        source = tensor_to_array(source)
    if isinstance(source, np.ndarray):
        return channels_last(source, input_data_format)
    if isinstance(source, PIL.Image.Image):
        return _decode_held(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        source = bytes(source)
        data = base64_bytes(source.decode("ascii")) if source.isascii() else None  # what `b64encode` gives
        name = f"the image given as {len(source)} bytes" + ("" if data is None else " of base64")
        return _decode_bytes(source if data is None else data, name, max_pixels, reduce_to)
    if isinstance(source, str) and source.lstrip()[:5].lower() == "data:":
        return _decode_bytes(data_url_bytes(source.lstrip()), "the image in the data URL", max_pixels, reduce_to)
    if isinstance(source, str) and source[:8].lower().startswith(("http://", "https://")):
        return _decode_bytes(download(source, timeout), f"the image at {shown(source)}", max_pixels, reduce_to)
    if isinstance(source, str) and source[:5].lower() == "file:":
        return _open_named(file_url_path(source), max_pixels, reduce_to)
    if isinstance(source, (str, os.PathLike)):
        return _open_named(os.fsdecode(source), max_pixels, reduce_to)
    if hasattr(source, "read"):
        name = getattr(source, "name", None)
        name = f"the image file {shown(name)}" if isinstance(name, str) else "the image in the file object"
        return _decode_bytes(file_object_bytes(source, name), name, max_pixels, reduce_to)
    raise TypeError(
        "An image must be a path, a URL, a PIL image, bytes, a file object, or a numpy or torch array, not "
        f"{type(source).__name__}."
    )


def image_size(opened: PIL.Image.Image | np.ndarray) -> tuple[int, int]:
    """(height, width) of what `open_image` gives; of the whole picture where it was reduced."""
    if is_reduced(opened):
        return vars(opened)[_FULL_SIZE]
    return (opened.shape[0], opened.shape[1]) if isinstance(opened, np.ndarray) else (opened.height, opened.width)


def is_reduced(opened: PIL.Image.Image | np.ndarray) -> TypeGuard[PIL.Image.Image]:
    """Whether `open_image` decoded this picture at a smaller scale, for `reduce_to`."""
    return isinstance(opened, PIL.Image.Image) and _FULL_SIZE in vars(opened)


def array_to_image(array: np.ndarray) -> PIL.Image.Image:
    """Checked pixels (H, W) or (H, W, C) -> RGB picture."""
    pixels = to_8_bit(array)
    pixels = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[-1] == 1 else pixels
    picture = _to_rgb(PIL.Image.fromarray(np.ascontiguousarray(pixels)), f"the image array of shape {array.shape}")
    assert isinstance(picture, PIL.Image.Image)
    return picture


def read_header(file: BinaryIO, name: str, max_pixels: int = MAX_PIXELS) -> PIL.Image.Image:
    """The picture in a binary file with nothing decoded yet: its `size`, `format`, `mode` and EXIF block can be read.

    Raises:
        ValueError: If it is not in one of `FORMATS`, its header is damaged, or it announces too many pixels.
    """
    try:
        image = PIL.Image.open(file, formats=FORMATS)
    except PIL.UnidentifiedImageError:
        file.seek(0)
        formats = ", ".join(FORMATS)
        start = file.read(12)
        raise ValueError(
            f"{capital(name)} is not an image in a supported format ({formats}): it begins with {start!r}."
        ) from None
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:
        raise ValueError(f"{capital(name)} is too large to open safely: {error}") from None
    except Exception as error:  # a decoder may raise anything on bytes that somebody made up
        raise ValueError(f"{capital(name)} is truncated or damaged ({_reason(error)}).") from None
    if image.width * image.height > max_pixels:
        size = f"{image.width} x {image.height} = {image.width * image.height} pixels"
        raise ValueError(f"{capital(name)} is too large to open safely: {size}, and at most {max_pixels} are allowed.")
    if min(image.size) < 1:
        raise ValueError(f"{capital(name)} has no pixels: its size is {image.width} x {image.height}.")
    return image


def _open_named(path: str, max_pixels: int, reduce_to: int | None = None) -> PIL.Image.Image | np.ndarray:
    if not os.path.exists(path):
        scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]+)://", path)
        if scheme:
            raise ValueError(f"The image {shown(path)} is neither a path nor an http or https URL.")
        data = base64_bytes(path)
        if data is not None:
            return _decode_bytes(data, "the image given as base64", max_pixels, reduce_to)
    name = f"the image file {shown(path)}"
    with open_regular_file(path) as file:
        return _decode(read_header(file, name, max_pixels), name, reduce_to)


def _decode_bytes(
    data: bytes, name: str, max_pixels: int, reduce_to: int | None = None
) -> PIL.Image.Image | np.ndarray:
    if not data:
        raise ValueError(f"{capital(name)} is empty (0 bytes).")
    return _decode(read_header(BytesIO(data), name, max_pixels), name, reduce_to)


def _decode_held(image: PIL.Image.Image) -> PIL.Image.Image | np.ndarray:
    """A PIL image as it is held: its EXIF orientation, which `convert` and `transpose` keep, says nothing of it."""
    filename = getattr(image, "filename", "")
    name = f"the image file {shown(str(filename))}" if filename else f"the {image.width} x {image.height} image"
    if getattr(image, "tile", None):  # not decoded yet
        if getattr(image, "fp", None) is None:
            raise ValueError(f"{capital(name)} was closed before its pixels were read: call its load() before.")
        if image.format not in FORMATS_WITH_VARIANTS:
            formats = ", ".join(FORMATS)
            raise ValueError(f"{capital(name)} is in the format {image.format}, expected one of {formats}.")
    _load(image, name)
    return _to_rgb(image, name)


def _decode(image: PIL.Image.Image, name: str, reduce_to: int | None = None) -> PIL.Image.Image | np.ndarray:
    width, height = image.size
    if reduce_to is not None and image.format == "JPEG":
        # Pillow takes the smallest scale at which neither side is smaller than asked for.
        share = min(1.0, reduce_to / max(image.size))
        image.draft("RGB", (max(1, int(width * share)), max(1, int(height * share))))
    reduced = image.size != (width, height)
    _load(image, name)
    turned = _turn_upright(image)
    opened = _to_rgb(turned, name)
    if not reduced:
        return opened
    on_its_side = turned is not image and image.getexif().get(EXIF_ORIENTATION) in (5, 6, 7, 8)
    vars(opened)[_FULL_SIZE] = (width, height) if on_its_side else (height, width)
    return opened


def _load(image: PIL.Image.Image, name: str) -> None:
    """Read the pixels: `PIL.Image.open` reads only the header."""
    try:
        image.load()
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:
        raise ValueError(f"{capital(name)} is too large to open safely: {error}") from None
    except Exception as error:  # a decoder may raise anything on bytes that somebody made up
        raise ValueError(f"{capital(name)} is truncated or damaged ({_reason(error)}).") from None
    if min(image.size) < 1:
        raise ValueError(f"{capital(name)} has no pixels: its size is {image.width} x {image.height}.")


def _turn_upright(image: PIL.Image.Image) -> PIL.Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about unreadable EXIF tags other than the one needed here
            if image.getexif().get(EXIF_ORIENTATION, 1) == 1:
                return image
            return PIL.ImageOps.exif_transpose(image)
    except Exception:  # whatever a damaged EXIF block raises: viewers show such a picture unrotated
        return image


def _to_rgb(image: PIL.Image.Image, name: str) -> PIL.Image.Image | np.ndarray:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _deep_samples(image, name)
    try:
        if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
            if image.mode != "RGBA":  # converting it would copy it
                image = image.convert("RGBA") if image.mode != "La" else image.convert("LA").convert("RGBA")
            white = PIL.Image.new("RGBA", image.size, (255, 255, 255, 255))
            return PIL.Image.alpha_composite(white, image).convert("RGB")
        return image.convert("RGB")
    except Exception as error:  # a damaged palette or transparency shows here
        raise ValueError(
            f"{capital(name)} has mode {image.mode}, which Pillow cannot turn into RGB: {_reason(error)}."
        ) from None


def _deep_samples(image: PIL.Image.Image, name: str) -> np.ndarray:
    """(H, W) samples of a 16-bit, 32-bit or float gray picture, as uint16 or floats."""
    samples = np.asarray(image)
    if samples.dtype.kind == "f":
        if not (np.isfinite(samples.min()) and np.isfinite(samples.max())):
            raise ValueError(f"{capital(name)} has pixels that are not finite (NaN or infinity).")
        return samples
    low, high = int(samples.min()), int(samples.max())
    if low < 0 or high > 65535:
        raise ValueError(f"{capital(name)} has samples from {low} to {high}, expected 0 to 65535.")
    return samples.astype(np.uint16)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


__all__ = ["array_to_image", "image_size", "is_reduced", "load_grounding_image", "open_image", "read_header"]
