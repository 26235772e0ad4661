"""Open any picture as upright 8-bit RGB, or say in one sentence what is wrong with it.

`PIL.Image.convert("RGB")` alone shows many pictures wrongly: it drops transparency, saturates 16-bit samples and
ignores the EXIF orientation. Everything in this package opens pictures through `load_grounding_image`, so that a box
means the same pixels everywhere: those of the picture as a viewer shows it.
"""

import base64
import binascii
import os
import urllib.error
import urllib.request
import warnings
from io import BytesIO
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch

EXIF_ORIENTATION = 0x0112
DOWNLOAD_TIMEOUT_SECONDS = 30.0
# 16-bit to 8-bit: 65535 / 255. Dividing by 256 would turn white into 255.996 and black ink into a lighter grey.
SIXTEEN_BIT_STEP = 257


def load_grounding_image(source: Any, timeout: float | None = None) -> PIL.Image.Image:
    """Upright RGB picture from a path, URL, `data:image/...` string, bytes, PIL image, or numpy/torch array.

    EXIF orientation is applied, transparency is composited on white, grey, palette and CMYK pictures are converted,
    and 16-bit samples are scaled (not cut) to 8 bits. Of an animated picture the first frame is taken. Arrays are
    (H, W), (H, W, C) or (C, H, W) with 1, 3 or 4 channels: integers in 0..255, uint16 in 0..65535, floats in 0..1.

    Args:
        source: the picture; `{"path": ..., "bytes": ...}` as stored by `datasets` is understood too.
        timeout: seconds to wait for a download, 30 unless told.

    Raises:
        FileNotFoundError: there is no such file.
        ConnectionError: a URL could not be fetched.
        TypeError: the source is none of the supported kinds.
        ValueError: the file is empty, truncated or no image, or an array is ambiguous, out of range or not finite.
    """
    if isinstance(source, dict) and ("bytes" in source or "path" in source):
        source = source["bytes"] if source.get("bytes") is not None else source.get("path")
    if isinstance(source, torch.Tensor):
        source = _tensor_to_array(source)
    if isinstance(source, np.ndarray):
        return _to_rgb(_array_to_image(source), f"the image array of shape {source.shape}")
    if isinstance(source, PIL.Image.Image):
        return _decode(source, _name_of(source))
    if isinstance(source, (bytes, bytearray)):
        return _open_bytes(bytes(source), f"the image given as {len(source)} bytes")
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        return _open_bytes(_download(source, timeout), f"the image at '{source}'")
    if isinstance(source, str) and source.startswith("data:"):
        return _open_bytes(_data_url_bytes(source), "the image in the data URL")
    if isinstance(source, (str, os.PathLike)):
        return _open_file(os.fspath(source))
    raise TypeError(
        f"An image must be a path, a URL, a PIL image, bytes, or a numpy or torch array, not {type(source).__name__}."
    )


def _open_file(path: str) -> PIL.Image.Image:
    if os.path.isdir(path):
        raise ValueError(f"'{path}' is a folder, where one image file was expected.")
    if not os.path.exists(path):
        raise FileNotFoundError(f"There is no image file '{path}'.")
    with open(path, "rb") as file:
        return _open_bytes(file.read(), f"the image file '{path}'")


def _open_bytes(data: bytes, name: str) -> PIL.Image.Image:
    if not data:
        raise ValueError(f"{_capital(name)} is empty (0 bytes).")
    try:
        image = PIL.Image.open(BytesIO(data))
    except PIL.UnidentifiedImageError:
        raise ValueError(f"{_capital(name)} is not an image that Pillow can read.") from None
    except PIL.Image.DecompressionBombError as error:
        raise ValueError(f"{_capital(name)} is too large to open safely: {error}") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{_capital(name)} is truncated or damaged ({error}).") from None
    return _decode(image, name)


def _download(url: str, timeout: float | None) -> bytes:
    request = urllib.request.Request(url, headers={"User-Agent": "hivg_hf"})
    try:
        with urllib.request.urlopen(request, timeout=timeout or DOWNLOAD_TIMEOUT_SECONDS) as response:
            return response.read()
    except urllib.error.HTTPError as error:
        raise ConnectionError(f"The image '{url}' could not be fetched: HTTP {error.code} {error.reason}.") from None
    except (OSError, ValueError) as error:
        raise ConnectionError(f"The image '{url}' could not be fetched: {error}.") from None


def _data_url_bytes(url: str) -> bytes:
    header, _, payload = url.partition(",")
    if not header.startswith("data:image/") or not header.endswith(";base64"):
        raise ValueError(f"A data URL must start with 'data:image/...;base64,', this one starts with '{url[:30]}'.")
    try:
        return base64.b64decode(payload, validate=True)
    except binascii.Error as error:
        raise ValueError(f"The data URL does not hold valid base64: {error}.") from None


def _decode(image: PIL.Image.Image, name: str) -> PIL.Image.Image:
    """Read the pixels (`PIL.Image.open` reads only the header), turn the picture upright and make it RGB."""
    try:
        image.load()
    except PIL.Image.DecompressionBombError as error:
        raise ValueError(f"{_capital(name)} is too large to open safely: {error}") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise ValueError(f"{_capital(name)} is truncated or damaged ({error}).") from None
    if min(image.size) < 1:
        raise ValueError(f"{_capital(name)} has no pixels: its size is {image.width} x {image.height}.")
    return _to_rgb(_turn_upright(image), name)


def _turn_upright(image: PIL.Image.Image) -> PIL.Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about unreadable EXIF tags other than the one needed here
            if image.getexif().get(EXIF_ORIENTATION, 1) == 1:
                return image
            return PIL.ImageOps.exif_transpose(image)
    except Exception:  # whatever a damaged EXIF block raises: viewers show such a picture unrotated
        return image


def _to_rgb(image: PIL.Image.Image, name: str) -> PIL.Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _array_to_image(_deep_samples_to_8_bit(np.asarray(image), name)).convert("RGB")
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        image = image.convert("RGBA") if image.mode != "La" else image.convert("LA").convert("RGBA")
        white = PIL.Image.new("RGBA", image.size, (255, 255, 255, 255))
        return PIL.Image.alpha_composite(white, image).convert("RGB")
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise ValueError(
            f"{_capital(name)} has mode {image.mode}, which Pillow cannot turn into RGB: {error}."
        ) from None


def _deep_samples_to_8_bit(samples: np.ndarray, name: str) -> np.ndarray:
    """(H, W) grey samples of a 16-bit, 32-bit or float picture -> uint8 (H, W)."""
    if not np.isfinite(samples).all():
        raise ValueError(f"{_capital(name)} has pixels that are not finite (NaN or infinity).")
    low, high = float(samples.min()), float(samples.max())
    if samples.dtype.kind == "f":
        limit, scale = (1.0, 255.0) if high <= 1.0 else (255.0, 1.0)
    else:
        # Pillow reads 16-bit PNG and PGM files into mode "I" (32 bits) or "I;16", depending on its version.
        limit, scale = 65535.0, 1.0 / SIXTEEN_BIT_STEP
    if low < 0 or high > limit:
        raise ValueError(f"{_capital(name)} has samples from {low:g} to {high:g}, expected 0 to {limit:g}.")
    return np.rint(samples * scale).astype(np.uint8)


def _tensor_to_array(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor).numpy()


def _array_to_image(array: np.ndarray) -> PIL.Image.Image:
    """Array of 1, 3 or 4 channels -> 8-bit PIL image of mode L, RGB or RGBA."""
    array = _channels_last(array)
    if 0 in array.shape:
        raise ValueError(f"An image array must have pixels, its shape is {array.shape}.")
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError(f"The image array of shape {array.shape} has pixels that are not finite (NaN or infinity).")
    if array.dtype != np.uint8:
        array = _array_to_8_bit(array)
    channels = array.shape[-1]
    return PIL.Image.fromarray(array[..., 0] if channels == 1 else np.ascontiguousarray(array))


def _array_to_8_bit(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "uif":
        raise TypeError(f"An image array must hold integers or floats, its type is {array.dtype}.")
    low, high = float(array.min()), float(array.max())
    limit = 1.0 if array.dtype.kind == "f" else 65535.0 if array.dtype == np.uint16 else 255.0
    if low < 0 or high > limit:
        raise ValueError(
            f"An image array of type {array.dtype} must have values from 0 to {limit:g}, found {low:g} to {high:g}; "
            "if it is already normalised, pass the picture from before that."
        )
    return np.rint(array * (255.0 / limit)).astype(np.uint8)


def _channels_last(array: np.ndarray) -> np.ndarray:
    if array.ndim == 2:
        return array[..., None]  # (H, W) -> (H, W, 1)
    if array.ndim != 3:
        raise ValueError(f"An image array must have 2 or 3 axes, this one has shape {array.shape}.")
    first, last = array.shape[0] in (1, 3, 4), array.shape[-1] in (1, 3, 4)
    if first and last:
        raise ValueError(
            f"In an image array of shape {array.shape} the channels may be the first or the last axis: "
            "pass a PIL image instead."
        )
    if not first and not last:
        raise ValueError(f"An image array must have 1, 3 or 4 channels first or last, its shape is {array.shape}.")
    return np.moveaxis(array, 0, -1) if first else array  # (C, H, W) -> (H, W, C)


def _name_of(image: PIL.Image.Image) -> str:
    filename = getattr(image, "filename", "")
    return f"the image file '{filename}'" if filename else f"the {image.width} x {image.height} image"


def _capital(name: str) -> str:
    return name[:1].upper() + name[1:]


__all__ = ["load_grounding_image"]
