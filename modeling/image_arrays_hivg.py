"""Arrays of pixels: which axis is which, and what their numbers mean."""

from typing import Any

import numpy as np
import torch

# 16-bit to 8-bit: 65535 / 255. Dividing by 256 would turn white into 255.996 and black ink into a lighter gray.
SIXTEEN_BIT_STEP = 257
# How far rounding and resizing may carry floats beyond their range.
OVERSHOOT = 1e-3
# Floats that are not whole numbers and end in (1, 3) may be pixels of either range, overshoot, or normalized.
UNCLEAR_BELOW = 3.0


def tensor_to_array(tensor: torch.Tensor) -> np.ndarray:
    try:
        tensor = tensor.detach().cpu()
        return (tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor).numpy()
    except (RuntimeError, NotImplementedError, TypeError) as error:  # meta, sparse and quantized tensors
        reason = str(error).splitlines()[0]
        raise TypeError(f"An image tensor of type {tensor.dtype} cannot be read ({reason}).") from None


def channels_last(array: np.ndarray, input_data_format: Any = None) -> np.ndarray:
    """Checked pixels as (H, W, C) with 1, 3 or 4 channels; (H, W) stays as it is. The numbers are unchanged.

    Args:
        array: (H, W), (H, W, C) or (C, H, W).
        input_data_format: `"channels_first"` or `"channels_last"`; needed where the shape alone does not tell.

    Raises:
        TypeError: If the array does not hold integers, floats or bools.
        ValueError: If the shape is not an image's or can be read in two ways, or a number is not finite.
    """
    if array.dtype.kind not in "buif":
        raise TypeError(f"An image array must hold integers or floats, its type is {array.dtype}.")
    if array.ndim not in (2, 3):
        raise ValueError(f"An image array must have 2 or 3 axes, this one has shape {array.shape}.")
    if 0 in array.shape:
        raise ValueError(f"An image array must have pixels, its shape is {array.shape}.")
    if array.dtype.kind == "f" and not (np.isfinite(array.min()) and np.isfinite(array.max())):
        raise ValueError(f"The image array of shape {array.shape} has pixels that are not finite (NaN or infinity).")
    if array.ndim == 2:
        return array
    first, last = array.shape[0] in (1, 3, 4), array.shape[-1] in (1, 3, 4)
    if input_data_format is not None:
        layout = str(getattr(input_data_format, "value", input_data_format))
        if layout not in ("channels_first", "channels_last"):
            raise ValueError(f"input_data_format must be 'channels_first' or 'channels_last', got {layout!r}.")
        if not (first if layout == "channels_first" else last):
            raise ValueError(
                f"An image array of shape {array.shape} does not have 1, 3 or 4 channels as {layout} says."
            )
        first, last = layout == "channels_first", layout == "channels_last"
    if first and last:
        raise ValueError(
            f"In an image array of shape {array.shape} the channels may be the first or the last axis: "
            "pass input_data_format='channels_first' or 'channels_last', or a PIL image."
        )
    if not first and not last:
        raise ValueError(f"An image array must have 1, 3 or 4 channels first or last, its shape is {array.shape}.")
    return np.moveaxis(array, 0, -1) if first else array  # (C, H, W) -> (H, W, C)


def is_unit_range(array: np.ndarray) -> bool:
    """Whether these are floats in 0..1, pixels that were rescaled already."""
    return array.dtype.kind == "f" and float(array.max()) <= 1 + OVERSHOOT and float(array.min()) >= -OVERSHOOT


def to_8_bit(array: np.ndarray) -> np.ndarray:
    """Checked pixels of any type -> uint8 of the same shape.

    Integers are 0..255, uint16 with a larger value 0..65535, floats 0..1 or, as CLIP's image processor takes them,
    0..255.

    Raises:
        ValueError: If a value lies outside these ranges, or floats may be pixels of either range.
    """
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * 255
    low, high = float(array.min()), float(array.max())
    is_float, is_16_bit = array.dtype.kind == "f", array.dtype.kind == "u" and array.dtype.itemsize == 2 and high > 255
    if is_16_bit:
        # Half of the odd step never occurs, so that this rounds to the nearest.
        return ((array.astype(np.uint32) + SIXTEEN_BIT_STEP // 2) // SIXTEEN_BIT_STEP).astype(np.uint8)
    if is_float and is_unit_range(array):
        return np.rint(array.clip(0, 1) * 255.0).astype(np.uint8)
    slack = 255 * OVERSHOOT if is_float else 0
    if low < -slack or high > 255 + slack:
        limits = "0 to 1 or 0 to 255" if is_float else "0 to 255"
        raise ValueError(
            f"An image array of type {array.dtype} must have values from {limits}, found {low:g} to {high:g}; "
            "pixels that are already normalized need do_rescale=False and do_normalize=False."
        )
    if is_float and high < UNCLEAR_BELOW and (array != np.rint(array)).any():
        raise ValueError(
            f"An image array of type {array.dtype} has values from {low:g} to {high:g}, where 0 to 1 or 0 to 255 was "
            "expected: clip it to 0..1, or pass do_rescale=False (and do_normalize=False if it is already normalized)."
        )
    return np.rint(array.clip(0, 255)).astype(np.uint8)


def to_unscaled_rgb(array: np.ndarray) -> np.ndarray:
    """Checked pixels -> float32 (H, W, 3) with the numbers they have; transparency is composited on white."""
    white = 255.0 if array.dtype.kind in "ui" else 1.0
    pixels = array.astype(np.float32)
    if pixels.ndim == 2:
        pixels = pixels[..., None]  # (H, W) -> (H, W, 1)
    if pixels.shape[-1] == 4:
        alpha = pixels[..., 3:] / white
        pixels = pixels[..., :3] * alpha + white * (1 - alpha)
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))


__all__ = ["channels_last", "is_unit_range", "tensor_to_array", "to_8_bit", "to_unscaled_rgb"]
