"""Training augmentation of image, box and mask together, in numpy and PIL.

What the official code does, step by step (official datasets/__init__.py:28-58, datasets/transforms.py): a crop for
half of the expressions that name no direction, a random scale, color jitter, and a random place on the square canvas.
There is no horizontal flip: "left" would become a lie. All randomness comes from the generator that the caller gives.

Two deliberate differences. The crop must hold the center of the box (the official test compares x with the crop's top
and y with its left, so that objects fall out of their own picture). Crop and scale are one resampling of the original
image instead of three.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageEnhance

from .official_targets import resize_by_corner

# Official: transforms.py RandomSelect asks for these as substrings of the phrase, so "leftover" counts as well.
DIRECTION_WORDS = ("left", "right", "top", "bottom", "middle")

Region = tuple[float, float, float, float]


@dataclass
class PlacedImage:
    """An image at its final scale, with the place it takes on the square canvas that the model sees.

    Attributes:
        pixels: RGB image (h, w, 3) uint8.
        top, left: offset of the image on the canvas, in pixels.
        box: xyxy pixels of `pixels` (not of the canvas), None without a target; a list of boxes where the expression
            names several things.
        mask: bool (h, w), None where the row has none.
    """

    pixels: np.ndarray
    top: int
    left: int
    box: Sequence[float] | Sequence[Sequence[float]] | None = None
    mask: np.ndarray | None = None

    @property
    def boxes(self) -> list[Sequence[float]]:
        """Every target: none, one or several."""
        return every_box(self.box)


@dataclass
class GroundingAugmentation:
    """The official training augmentation; call it with one sample and a numpy Generator.

    Attributes:
        size: side of the canvas in pixels.
        patch_size: patch of the vision tower in pixels; read only with `pad_align="patch"`.
        pad_align: `"pixel"` places the image anywhere on the canvas, `"patch"` at multiples of the patch.
        scale_step, scale_count: the long side becomes one of `size - i * scale_step`, i < `scale_count`, as long as
            that is at least a seventh of `size`. The official values give 224, 192, ..., 32.
        crop_probability: how often an expression without direction words gets a crop.
        crop_short_sides: the short side of the image before the crop, in pixels, one of these.
        crop_sides: smallest and largest side of the crop, in pixels.
        crop_tries: crops drawn before giving up on one that holds the center of the box.
        whole_image_words: an expression that holds one of these (as a substring, in lower case) is never cropped.
        jitter: brightness, contrast and saturation change by up to this share, in a random order; 0 turns it off.
        jitter_probability: how often the colors are changed at all.
        random_offset: False places the image in the middle, as evaluation does.
        mask_sampling: which point of a pixel of the resized mask is looked up: `"center"`, or `"corner"`, official.
    """

    size: int
    patch_size: int = 16
    pad_align: Literal["patch", "pixel"] = "pixel"
    scale_step: int = 32
    scale_count: int = 7
    crop_probability: float = 0.5
    crop_short_sides: Sequence[int] = (400, 500, 600)
    crop_sides: tuple[int, int] = (384, 600)
    crop_tries: int = 20
    whole_image_words: Sequence[str] = DIRECTION_WORDS
    jitter: float = 0.4
    jitter_probability: float = 0.8
    random_offset: bool = True
    mask_sampling: Literal["center", "corner"] = "center"

    @classmethod
    def for_processor(cls, processor: Any, **options: Any) -> "GroundingAugmentation":
        """The augmentation whose canvas is that of a `HiVGProcessor` (or of its image processor)."""
        image_processor = getattr(processor, "image_processor", processor)
        return cls(
            size=image_processor.size["height"],
            patch_size=image_processor.patch_size,
            pad_align=image_processor.pad_align,
            **options,
        )

    def __post_init__(self) -> None:
        if self.pad_align not in ("patch", "pixel"):
            raise ValueError(f"pad_align must be 'patch' or 'pixel', got {self.pad_align!r}.")
        if self.size < 1 or (self.pad_align == "patch" and self.size % self.patch_size):
            raise ValueError(f"size must be a positive multiple of patch_size={self.patch_size}, got {self.size}.")
        if self.mask_sampling not in ("center", "corner"):
            raise ValueError(f"mask_sampling must be 'center' or 'corner', got {self.mask_sampling!r}.")
        if self.crop_sides[0] > min(self.crop_short_sides):
            raise ValueError(
                f"crop_sides={tuple(self.crop_sides)} begins above the smallest of crop_short_sides="
                f"{tuple(self.crop_short_sides)}; such an image cannot be cropped."
            )

    def __call__(
        self,
        image: Image.Image,
        box: Sequence[float] | Sequence[Sequence[float]] | None,
        mask: np.ndarray | None,
        expression: str,
        rng: np.random.Generator,
    ) -> PlacedImage:
        """Augment one sample.

        Args:
            image: RGB image.
            box: xyxy pixels of `image`, None without a target; a list of boxes for several, which a crop then holds
                all: "both" and "all three" stay true.
            mask: bool (height, width) of `image`, or None.
            expression: decides whether a crop may be taken.
            rng: the only source of randomness.
        """
        width, height = image.size
        scale, region = 1.0, (0.0, 0.0, float(width), float(height))  # region: xyxy pixels of the original image
        if not names_direction(expression, self.whole_image_words) and rng.random() < self.crop_probability:
            scale, region = self._draw_crop(width, height, every_box(box), mask, rng)
        new_w, new_h = self._draw_size((region[2] - region[0]) * scale, (region[3] - region[1]) * scale, rng)
        resized = image.resize((new_w, new_h), Image.Resampling.BILINEAR, box=region)
        resized = self._jitter_colors(resized, rng)
        top, left = self._draw_offset(new_h, rng), self._draw_offset(new_w, rng)
        return PlacedImage(
            pixels=np.asarray(resized),  # (h, w, 3)
            top=top,
            left=left,
            box=for_each_box(box, lambda one: map_box(one, region, new_w, new_h)),
            mask=None if mask is None else resize_mask(mask, new_w, new_h, region, self.mask_sampling),
        )

    def _draw_crop(
        self,
        width: int,
        height: int,
        boxes: list[Sequence[float]],
        mask: np.ndarray | None,
        rng: np.random.Generator,
    ) -> tuple[float, Region]:
        """Draw a crop that holds the center of each box; the whole image after `crop_tries` failures.

        Sides are drawn on the image scaled to a short side of 400 to 600 pixels, as officially; the region returned is
        in pixels of the original, beside the scale.
        """
        scale = int(rng.choice(np.asarray(self.crop_short_sides))) / min(width, height)
        scaled_w, scaled_h = round(width * scale), round(height * scale)
        low, high = self.crop_sides
        for _ in range(self.crop_tries):
            crop_w, crop_h = (int(rng.integers(low, min(side, high) + 1)) for side in (scaled_w, scaled_h))
            left, top = int(rng.integers(0, scaled_w - crop_w + 1)), int(rng.integers(0, scaled_h - crop_h + 1))
            x_scale, y_scale = width / scaled_w, height / scaled_h
            region = (left * x_scale, top * y_scale, (left + crop_w) * x_scale, (top + crop_h) * y_scale)
            # The last pixel must not be overstepped by a rounding error: PIL refuses such a region.
            region = (region[0], region[1], min(region[2], float(width)), min(region[3], float(height)))
            if all(_holds_center(region, box) for box in boxes) and (not boxes or _holds_mask(region, mask)):
                return scale, region
        return scale, (0.0, 0.0, float(width), float(height))

    def _draw_size(self, width: float, height: float, rng: np.random.Generator) -> tuple[int, int]:
        """Draw the long side and return (width, height) in pixels; a side never vanishes."""
        scales = [self.size - i * self.scale_step for i in range(self.scale_count)]
        scales = [scale for scale in scales if scale * 7 >= self.size]
        ratio = int(rng.choice(np.asarray(scales))) / max(width, height)
        return max(1, round(width * ratio)), max(1, round(height * ratio))

    def _jitter_colors(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """Change brightness, contrast and saturation, in a random order."""
        if self.jitter == 0 or rng.random() >= self.jitter_probability:
            return image
        enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
        for index in rng.permutation(len(enhancers)):
            image = enhancers[index](image).enhance(float(rng.uniform(1 - self.jitter, 1 + self.jitter)))
        return image

    def _draw_offset(self, side: int, rng: np.random.Generator) -> int:
        """Draw where the image begins on one axis of the canvas, in pixels."""
        step = self.patch_size if self.pad_align == "patch" else 1
        free = self.size - side
        if not self.random_offset:
            return free // 2 // step * step
        return int(rng.integers(0, free // step + 1)) * step


def names_direction(expression: str, words: Sequence[str] = DIRECTION_WORDS) -> bool:
    """Whether the expression holds one of `words`, as a substring: a crop could make it wrong."""
    expression = expression.lower()
    return any(word in expression for word in words)


def every_box(box: Any) -> list[Sequence[float]]:
    """The boxes in `PlacedImage.box`: none, one or several."""
    if box is None:
        return []
    return list(box) if np.ndim(box) > 1 else [box]


def for_each_box(box: Any, change: Callable[[Sequence[float]], Any]) -> Any:
    """Change each box of `PlacedImage.box`, which keeps its form."""
    changed = [change(one) for one in every_box(box)]
    return changed if np.ndim(box) > 1 else next(iter(changed), None)


def map_box(box: Sequence[float], region: Region, width: int, height: int) -> tuple[float, float, float, float]:
    """Map a box (xyxy pixels) into an image (width, height) made from `region`, and cut it to that image."""
    x_scale, y_scale = width / (region[2] - region[0]), height / (region[3] - region[1])
    x1, x2 = ((x - region[0]) * x_scale for x in (box[0], box[2]))
    y1, y2 = ((y - region[1]) * y_scale for y in (box[1], box[3]))
    return (
        min(max(x1, 0.0), float(width)),
        min(max(y1, 0.0), float(height)),
        min(max(x2, 0.0), float(width)),
        min(max(y2, 0.0), float(height)),
    )


def resize_mask(
    mask: np.ndarray, width: int, height: int, region: Region | None = None, sampling: str = "center"
) -> np.ndarray:
    """Resize a bool mask (H, W), or a region of it in xyxy pixels, to bool (height, width), nearest neighbor."""
    if sampling == "corner":
        return resize_by_corner(mask, width, height, region)
    picture = Image.fromarray(mask.astype(np.uint8))
    return np.asarray(picture.resize((width, height), Image.Resampling.NEAREST, box=region)).astype(bool)


def _holds_center(region: Region, box: Sequence[float]) -> bool:
    """Whether a crop keeps the center of the box, so a quarter of it."""
    # Official: transforms.py:214-217 compares the center's x with the crop's top and its y with the crop's left.
    center_x, center_y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return region[0] < center_x < region[2] and region[1] < center_y < region[3]


def _holds_mask(region: Region, mask: np.ndarray | None) -> bool:
    """Whether a crop keeps a quarter of the mask, if there is one."""
    if mask is None:
        return True
    left, top, right, bottom = (int(edge) for edge in region)
    return int(mask[top:bottom, left:right].sum()) * 4 >= max(int(mask.sum()), 1)
