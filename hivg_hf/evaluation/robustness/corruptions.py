"""Fifteen ways in which pictures go wrong, each in five strengths.

The kinds are those of Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations" (ICLR 2019): noise, blur, weather, digital. The implementations are this package's own, with NumPy,
SciPy and Pillow alone; frost and snow are drawn rather than pasted from photographs. Strengths are chosen to span
"hardly visible" to "hard for people" and scale with the picture, so figures compare models measured here with each
other, not with ImageNet-C.

A corruption takes an RGB picture as floats (H, W, 3) in 0..1, a strength from 1 to 5 and a random generator, and
returns the same shape. None moves an object by more than a few percent of the picture, so boxes stay valid.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image
from scipy import ndimage

Corruption = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]
STRENGTHS = (1, 2, 3, 4, 5)
_REFERENCE_SIDE = 224  # radii below are for a picture whose shorter side is this


def corrupt_image(image: Image.Image, name: str, strength: int, seed: tuple[int, ...]) -> Image.Image:
    """A corrupted copy of a picture.

    Args:
        image: Any picture; it is converted to RGB.
        name: One of `CORRUPTIONS`.
        strength: 1 to 5.
        seed: Integers that fix the randomness.

    Returns:
        An RGB picture of the same size.

    Raises:
        ValueError: If the name or the strength is unknown.
    """
    if name not in CORRUPTIONS or strength not in STRENGTHS:
        raise ValueError(
            f"Expected one of {', '.join(CORRUPTIONS)} and a strength from 1 to 5, got {name!r} and {strength!r}."
        )
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32) / 255  # (H, W, 3)
    changed = CORRUPTIONS[name](pixels, strength, np.random.default_rng(seed))
    return Image.fromarray((np.clip(changed, 0, 1) * 255).round().astype(np.uint8))


# ---------------------------------------------------------------------------------------------------------------------
# Noise
# ---------------------------------------------------------------------------------------------------------------------


def gaussian_noise(pixels: np.ndarray, strength: int, rng: np.random.Generator) -> np.ndarray:
    return pixels + rng.normal(scale=(0.04, 0.08, 0.12, 0.18, 0.26)[strength - 1], size=pixels.shape)


def shot_noise(pixels: np.ndarray, strength: int, rng: np.random.Generator) -> np.ndarray:
    photons = (250, 100, 50, 25, 12)[strength - 1]  # that a white pixel collects
    return rng.poisson(pixels * photons) / photons


def impulse_noise(pixels: np.ndarray, strength: int, rng: np.random.Generator) -> np.ndarray:
    share = (0.01, 0.03, 0.06, 0.11, 0.18)[strength - 1]
    dice = rng.random(pixels.shape)
    return np.where(dice < share / 2, 0.0, np.where(dice < share, 1.0, pixels))


# ---------------------------------------------------------------------------------------------------------------------
# Blur
# ---------------------------------------------------------------------------------------------------------------------


def defocus_blur(pixels: np.ndarray, strength: int, rng: np.random.Generator) -> np.ndarray:
    radius = _scaled((1.0, 2.0, 3.0, 4.5, 6.0)[strength - 1], pixels)
    span = np.arange(-int(np.ceil(radius)), int(np.ceil(radius)) + 1)
    disk = np.clip(radius + 0.5 - np.hypot(*np.meshgrid(span, span)), 0, 1)
    return _filtered(pixels, disk / disk.sum())


def glass_blur(pixels: np.ndarray, strength: int, rng: np.random.Generator) -> np.ndarray:
    """Every pixel is read from a place close by, as through ribbed glass."""
    reach = _scaled((0.7, 1.2, 1.8, 2.6, 3.6)[strength - 1], pixels)
    height, width = pixels.shape[:2]
    rows, columns = np.mgrid[:height, :width]
    shifts = rng.uniform(-reach, reach, size=(2, height, width))
    rows = np.clip(np.rint(rows + shifts[0]), 0, height - 1).astype(int)
    columns = np.clip(np.rint(columns + shifts[1]), 0, width - 1).astype(int)
    return ndimage.gaussian_filter(pixels[rows, columns], (0.4 * reach, 0.4 * reach, 0))


def motion_blur(pixels: np.ndarray, strength: int, rng: np.random.Generator) -> np.ndarray:
    length = _scaled((4, 7, 11, 16, 22)[strength - 1], pixels)
    angle = rng.uniform(0, np.pi)
    places = np.linspace(-length / 2, length / 2, max(2, int(2 * length)))
    half = int(np.ceil(length / 2))
    kernel = np.zeros((2 * half + 1, 2 * half + 1))
    rows = np.rint(half + places * np.sin(angle)).astype(int)
    columns = np.rint(half + places * np.cos(angle)).astype(int)
    np.add.at(kernel, (rows, columns), 1.0)
    return _filtered(pixels, kernel / kernel.sum())


def zoom_blur(pixels: np.ndarray, strength: int, rng: np.random.Generator) -> np.ndarray:
    """The mean of the picture and its slightly enlarged centers."""
    most = (0.03, 0.06, 0.09, 0.13, 0.18)[strength - 1]
    height, width = pixels.shape[:2]
    image = Image.fromarray((pixels * 255).astype(np.uint8))
    total = pixels.astype(np.float64)
    zooms = np.linspace(0, most, 8)[1:]
    for zoom in zooms:
        left, top = width * zoom / (2 + 2 * zoom), height * zoom / (2 + 2 * zoom)
        window = image.resize((width, height), Image.Resampling.BILINEAR, (left, top, width - left, height - top))
        total += np.asarray(window) / 255
    return total / (1 + len(zooms))


# ---------------------------------------------------------------------------------------------------------------------
# Weather
# ---------------------------------------------------------------------------------------------------------------------


def snow(pixels: np.ndarray, strength: int, rng: np.random.Generator) -> np.ndarray:
    share = (0.004, 0.009, 0.016, 0.026, 0.04)[strength - 1]
    flakes = (rng.random(pixels.shape[:2]) < share).astype(np.float64)
    streaks = motion_blur(flakes[..., None], min(strength, 3), rng)[..., 0]
    streaks = np.clip(streaks / max(float(streaks.max()), 1e-6) * 1.4, 0, 1)
    gray = pixels.mean(axis=2, keepdims=True)
    pale = pixels + (0.04 * strength) * (np.maximum(pixels, gray * 0.7 + 0.3) - pixels) / 0.3
    return pale + (1 - pale) * streaks[..., None]


def frost(pixels: np.ndarray, strength: int, rng: np.random.Generator) -> np.ndarray:
    """Crystals of ice: the ridges of cloudy noise, whitest where they are sharpest."""
    clouds = _clouds(pixels.shape[:2], rng)
    ridges = 1 - np.abs(2 * clouds - 1)
    cover = np.clip((ridges - (0.92, 0.86, 0.78, 0.7, 0.6)[strength - 1]) * 6, 0, 0.9)[..., None]
    return pixels * (1 - cover) + np.array([0.86, 0.92, 0.97]) * cover


def fog(pixels: np.ndarray, strength: int, rng: np.random.Generator) -> np.ndarray:
    density = (0.2, 0.32, 0.44, 0.56, 0.68)[strength - 1]
    cover = density * (0.6 + 0.8 * _clouds(pixels.shape[:2], rng))[..., None]
    return pixels * (1 - np.clip(cover, 0, 0.95)) + 0.85 * np.clip(cover, 0, 0.95)


def brightness(pixels: np.ndarray, strength: int, rng: np.random.Generator) -> np.ndarray:
    return pixels + (0.1, 0.2, 0.3, 0.4, 0.5)[strength - 1]


# ---------------------------------------------------------------------------------------------------------------------
# Digital
# ---------------------------------------------------------------------------------------------------------------------


def contrast(pixels: np.ndarray, strength: int, rng: np.random.Generator) -> np.ndarray:
    mean = pixels.mean(axis=(0, 1), keepdims=True)
    return mean + (pixels - mean) * (0.6, 0.45, 0.3, 0.2, 0.12)[strength - 1]


def elastic_transform(pixels: np.ndarray, strength: int, rng: np.random.Generator) -> np.ndarray:
    height, width = pixels.shape[:2]
    reach, smooth = _scaled((1.5, 2.5, 3.5, 4.5, 6.0)[strength - 1], pixels), _scaled(9.0, pixels)
    shifts = ndimage.gaussian_filter(rng.uniform(-1, 1, size=(2, height, width)), (0, smooth, smooth))
    shifts *= reach / max(float(np.abs(shifts).max()), 1e-6)
    places = np.mgrid[:height, :width] + shifts  # (2, H, W)
    channels = [ndimage.map_coordinates(pixels[..., c], places, order=1, mode="reflect") for c in range(3)]
    return np.stack(channels, axis=-1)


def pixelate(pixels: np.ndarray, strength: int, rng: np.random.Generator) -> np.ndarray:
    return resize_away(pixels, (0.6, 0.45, 0.33, 0.25, 0.18)[strength - 1], Image.Resampling.NEAREST)


def jpeg_compression(pixels: np.ndarray, strength: int, rng: np.random.Generator) -> np.ndarray:
    return jpeg(pixels, (40, 25, 15, 10, 5)[strength - 1])


def jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    """(H, W, 3) -> the same after a JPEG file of a quality."""
    buffer = io.BytesIO()
    Image.fromarray((np.clip(pixels, 0, 1) * 255).astype(np.uint8)).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer).convert("RGB"), dtype=np.float32) / 255


def resize_away(pixels: np.ndarray, scale: float, back: Image.Resampling = Image.Resampling.BILINEAR) -> np.ndarray:
    """(H, W, 3) -> the same size, with the detail of a picture `scale` times as large."""
    image = Image.fromarray((np.clip(pixels, 0, 1) * 255).astype(np.uint8))
    small = image.resize(
        (max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.BOX
    )
    return np.asarray(small.resize(image.size, back), dtype=np.float32) / 255


def _scaled(radius: float, pixels: np.ndarray) -> float:
    """A radius in pixels of this picture; half a pixel more, so that a small picture is changed as well."""
    return 0.5 + radius * min(pixels.shape[:2]) / _REFERENCE_SIDE


def _filtered(pixels: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    return np.stack(
        [ndimage.convolve(pixels[..., c], kernel, mode="reflect") for c in range(pixels.shape[-1])], axis=-1
    )


def _clouds(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """(H, W) in 0..1: noise at several scales, the coarsest strongest."""
    total = np.zeros(size)
    for level in range(2, 7):
        grid = rng.random((2**level, 2**level)).astype(np.float32)
        smooth = Image.fromarray(grid).resize((size[1], size[0]), Image.Resampling.BICUBIC)
        total += np.asarray(smooth) / 2**level
    low, high = float(total.min()), float(total.max())
    return (total - low) / max(high - low, 1e-6)


CORRUPTIONS: dict[str, Corruption] = {
    function.__name__: function
    for function in (
        *(gaussian_noise, shot_noise, impulse_noise),
        *(defocus_blur, glass_blur, motion_blur, zoom_blur),
        *(snow, frost, fog, brightness),
        *(contrast, elastic_transform, pixelate, jpeg_compression),
    )
}
FAMILIES = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
}
