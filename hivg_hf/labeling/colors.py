"""The color of an object in a box, by pixel statistics, in the words people use."""

from collections.abc import Mapping, Sequence

import numpy as np
import PIL.Image

from hivg_hf.zero_shot.detector import whole_pixels

# Berlin and Kay's eleven basic color terms (1969), with 8-bit RGB examples of each; nearest in CIELAB wins.
PALETTE: dict[str, tuple[tuple[int, int, int], ...]] = {
    "red": ((205, 30, 35), (150, 20, 30)),
    "orange": ((245, 130, 25),),
    "yellow": ((240, 215, 50),),
    "green": ((40, 140, 60), (120, 180, 70), (25, 80, 40)),
    "blue": ((35, 80, 200), (90, 160, 230), (20, 30, 100)),
    "purple": ((125, 50, 165),),
    "pink": ((245, 140, 190),),
    "brown": ((120, 70, 35), (85, 50, 25)),
    "black": ((15, 15, 15),),
    "white": ((248, 248, 248),),
    "gray": ((128, 128, 128), (185, 185, 185), (75, 75, 75)),
    # Blue to some and green to others: a color without a name is never said.
    "": ((50, 205, 215), (0, 130, 130), (150, 225, 225)),
}
FRAME = 0.25  # width of the frame around a box that shows its ground, relative to the box's sides
CLEAR_SHARE = 0.6  # of what stands out in the box, for its color to be said
LEAST_SHARE = 0.12  # of the box, below which what stands out is too little to name
MOST_PIXELS = 96  # a box is looked at with at most so many pixels a side


def name_color(
    picture: PIL.Image.Image,
    box_xyxy: Sequence[float],
    palette: Mapping[str, Sequence[Sequence[int]]] = PALETTE,
) -> str | None:
    """Name the color of the object in a box, None where no color is clearly it.

    Every pixel gets the nearest color name. A name counts by how much more often it occurs in the box than in a frame
    around it, so that the ground that shows beside the object does not count.

    Args:
        picture: RGB.
        box_xyxy: pixels of the picture.
        palette: name to examples, 8-bit RGB.
    """
    x1, y1, x2, y2 = (float(edge) for edge in box_xyxy)
    inside = _counts(picture.crop(whole_pixels((x1, y1, x2, y2), picture.size)), palette)
    wide, high = max(FRAME * (x2 - x1), 2.0), max(FRAME * (y2 - y1), 2.0)
    outer = whole_pixels((x1 - wide, y1 - high, x2 + wide, y2 + high), picture.size)
    around = _frame_counts(picture, outer, (x1, y1, x2, y2), palette)
    extra = np.clip(inside - around, 0.0, None)
    if extra.sum() < LEAST_SHARE:
        return None
    best = int(extra.argmax())
    return (list(palette)[best] or None) if extra[best] >= CLEAR_SHARE * extra.sum() else None


def _frame_counts(
    picture: PIL.Image.Image, outer: tuple[int, int, int, int], box: Sequence[float], palette: Mapping[str, Sequence]
) -> np.ndarray:
    """Shares of the names in the outer box without the inner one; 0 where the box fills the picture."""
    inner = whole_pixels(box, picture.size)
    strips = [
        (outer[0], outer[1], outer[2], inner[1]),
        (outer[0], inner[3], outer[2], outer[3]),
        (outer[0], inner[1], inner[0], inner[3]),
        (inner[2], inner[1], outer[2], inner[3]),
    ]
    counts, total = np.zeros(len(palette)), 0
    for strip in strips:
        area = (strip[2] - strip[0]) * (strip[3] - strip[1])
        if strip[2] > strip[0] and strip[3] > strip[1]:
            counts += area * _counts(picture.crop(strip), palette)
            total += area
    return counts / max(total, 1)


def _counts(region: PIL.Image.Image, palette: Mapping[str, Sequence]) -> np.ndarray:
    """Share of the region's pixels by nearest color name."""
    region = region.convert("RGB")
    region.thumbnail((MOST_PIXELS, MOST_PIXELS), PIL.Image.Resampling.NEAREST)  # blends would invent colors
    pixels = rgb_to_lab(np.asarray(region).reshape(-1, 3))  # (P, 3)
    names = np.concatenate([[number] * len(examples) for number, examples in enumerate(palette.values())])
    examples = rgb_to_lab(np.concatenate([np.asarray(examples) for examples in palette.values()]))
    nearest = np.linalg.norm(pixels[:, None] - examples[None], axis=-1).argmin(axis=1)
    return np.bincount(names[nearest].astype(int), minlength=len(palette)) / len(pixels)


def rgb_to_lab(rgb: np.ndarray) -> np.ndarray:
    """(..., 3) 8-bit sRGB -> CIELAB with white point D65 (IEC 61966-2-1, CIE 15)."""
    share = np.asarray(rgb, dtype=np.float64) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ to_xyz.T / [0.9505, 1.0, 1.089]
    root = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = root[..., 0], root[..., 1], root[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)
