"""RefShapes scenes: what stands where, before anything is drawn.

A scene is a canvas with sides of 64 to 640 pixels (aspect ratio 1:2 to 2:1), a background and 2 to 6 objects. Every
object has four attributes that words can name: size, filling, color and shape. Lengths are relative to the square
root of the area, so that wide and tall scenes are no harder than square ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
FILLINGS = ("solid", "striped", "outlined")
SIZES = ("small", "large")
COLORS = {
    "red": (214, 39, 40),
    "orange": (250, 140, 25),
    "yellow": (240, 215, 50),
    "green": (35, 150, 55),
    "cyan": (50, 205, 215),
    "blue": (35, 70, 215),
    "purple": (130, 45, 175),
    "pink": (245, 130, 190),
}
# Colors of the shifted domain `outline-noise`; no other scene has them.
SHIFTED_COLORS = {"black": (10, 10, 10), "white": (250, 250, 250), "brown": (120, 70, 30), "olive": (125, 135, 20)}

# Shape and color pairs that only the split `compositional` renders; every shape and six colors have one.
HELD_OUT_PAIRS = frozenset(
    {
        ("circle", "purple"),
        ("square", "orange"),
        ("triangle", "cyan"),
        ("star", "green"),
        ("ring", "yellow"),
        ("cross", "blue"),
    }
)

STYLES = ("standard", "outline-noise")
MIN_SIDE, MAX_SIDE = 64, 640  # pixels
MAX_ASPECT = 2.0
SIZE_RANGES = {"small": (0.17, 0.21), "large": (0.29, 0.36)}  # box side relative to sqrt(area)
MAX_OVERLAP = 0.06  # intersection of two boxes relative to the smaller one


@dataclass(frozen=True)
class SceneObject:
    """One object: four attributes, centre and box side in pixels, and how exactly it is drawn."""

    shape: str
    color: str
    size: str
    filling: str
    center_x: float
    center_y: float
    side: float
    rgb: tuple[int, int, int]
    interior: int  # gray level between stripes or inside an outline

    @property
    def box_xyxy(self) -> tuple[float, float, float, float]:
        """The nominal box in pixels; the rendered one differs by rounding and overlap."""
        half = self.side / 2
        return self.center_x - half, self.center_y - half, self.center_x + half, self.center_y + half


@dataclass(frozen=True)
class Background:
    """Gray-tinted background: `kind` is plain, gradient or noise; colors in 0..255."""

    kind: str
    start: tuple[int, int, int]
    end: tuple[int, int, int]
    noise: float  # standard deviation in gray levels
    seed: int


@dataclass(frozen=True)
class Scene:
    """A canvas of `width` x `height` pixels with its objects, later ones in front."""

    width: int
    height: int
    background: Background
    objects: tuple[SceneObject, ...]
    stroke: float = 0.14  # width of an outline, relative to the box side

    @property
    def scale(self) -> float:
        """The length that distances are measured in, sqrt(area), pixels."""
        return float(np.sqrt(self.width * self.height))


def sample_scene(rng: np.random.Generator, style: str = "standard", held_out: bool = False) -> Scene:
    """Draw one scene.

    Args:
        rng: The only source of randomness.
        style: "standard", or the shifted domain "outline-noise" (outlines only, strong noise, four unseen colors).
        held_out: Give the first object a pair of `HELD_OUT_PAIRS`, the second its shape and the third its color.

    Raises:
        ValueError: `style` is unknown.
    """
    if style not in STYLES:
        raise ValueError(f"unknown RefShapes style {style!r}; expected one of {', '.join(STYLES)}.")
    width, height = _sample_canvas(rng)
    while True:
        looks = _sample_looks(rng, style, held_out)
        placed = _place(rng, width, height, [size for _, _, size, _ in looks])
        if placed is not None:
            break
    palette = COLORS if style == "standard" else SHIFTED_COLORS
    background = _sample_background(rng, style)
    objects = tuple(
        SceneObject(
            *look,
            center_x=x,
            center_y=y,
            side=side,
            rgb=_jitter(rng, palette[look[1]], 14),
            interior=_interior(rng, background),
        )
        for look, (x, y, side) in zip(looks, placed, strict=True)
    )
    return Scene(width, height, background, objects, stroke=0.14 if style == "standard" else 0.10)


def _sample_canvas(rng: np.random.Generator) -> tuple[int, int]:
    """Draw (width, height) with a log-uniform aspect ratio (one in four square) and a log-uniform area."""
    aspect = 1.0 if rng.random() < 0.25 else float(np.exp(rng.uniform(-np.log(MAX_ASPECT), np.log(MAX_ASPECT))))
    stretch = np.sqrt(max(aspect, 1 / aspect))
    scale = np.exp(rng.uniform(np.log(MIN_SIDE * stretch), np.log(MAX_SIDE / stretch)))
    sides = np.clip(np.round([scale * np.sqrt(aspect), scale / np.sqrt(aspect)]), MIN_SIDE, MAX_SIDE).astype(int)
    # Rounding a side of 64 pixels could leave the range by half a pixel; the longer side gives way.
    longest = int(MAX_ASPECT * sides.min())
    return min(int(sides[0]), longest), min(int(sides[1]), longest)


def _sample_looks(rng: np.random.Generator, style: str, held_out: bool) -> list[tuple[str, str, str, str]]:
    """Draw (shape, color, size, filling) per object from a small menu, so that objects share attributes."""
    count = int(rng.integers(3 if held_out else 2, 7))
    palette = list(COLORS if style == "standard" else SHIFTED_COLORS)
    shapes = _menu(rng, SHAPES, 3)
    colors = _menu(rng, palette, 3)
    fillings = _menu(rng, FILLINGS, 3) if style == "standard" else ["outlined"]
    looks: list[tuple[str, str, str, str]] = []
    if held_out:
        pairs = sorted(HELD_OUT_PAIRS)
        shape, color = pairs[int(rng.integers(len(pairs)))]
        other_shape = _choose(rng, [s for s in SHAPES if (s, color) not in HELD_OUT_PAIRS])
        other_color = _choose(rng, [c for c in palette if (shape, c) not in HELD_OUT_PAIRS])
        for pair in ((shape, color), (shape, other_color), (other_shape, color)):
            looks.append((*pair, _choose(rng, SIZES), _filling(rng, fillings, pair[0])))
    while len(looks) < count:
        if held_out and rng.random() < 0.35:  # the pair again, for "the leftmost purple circle" to mean something
            shape, color = looks[0][:2]
            looks.append((shape, color, _choose(rng, SIZES), _filling(rng, fillings, shape)))
            continue
        shape, color = _choose(rng, shapes), _choose(rng, colors)
        if (shape, color) in HELD_OUT_PAIRS:
            color = _choose(rng, [c for c in palette if (shape, c) not in HELD_OUT_PAIRS])
        looks.append((shape, color, _choose(rng, SIZES), _filling(rng, fillings, shape)))
    return looks


def _filling(rng: np.random.Generator, fillings: Sequence[str], shape: str) -> str:
    """Draw a filling; a ring is never outlined in the standard style, where it would look like an outlined circle."""
    choices = [f for f in fillings if shape != "ring" or f != "outlined"]
    return _choose(rng, choices) if choices else ("outlined" if list(fillings) == ["outlined"] else "solid")


def _place(
    rng: np.random.Generator, width: int, height: int, sizes: Sequence[str]
) -> list[tuple[float, float, float]] | None:
    """Draw (centre x, centre y, side) per object inside the canvas with little overlap, None after many failures."""
    scale = np.sqrt(width * height)
    placed: list[tuple[float, float, float]] = []
    for size in sizes:
        side = float(scale * rng.uniform(*SIZE_RANGES[size]))
        for x, y in rng.uniform((side / 2, side / 2), (width - side / 2, height - side / 2), size=(40, 2)).tolist():
            if all(_overlap(x, y, side, other) <= MAX_OVERLAP for other in placed):
                placed.append((x, y, side))
                break
        else:
            return None
    return placed


def _overlap(x: float, y: float, side: float, other: tuple[float, float, float]) -> float:
    reach = (side + other[2]) / 2
    smaller = min(side, other[2])
    inter_x = min(max(reach - abs(x - other[0]), 0.0), smaller)
    inter_y = min(max(reach - abs(y - other[1]), 0.0), smaller)
    return inter_x * inter_y / smaller**2


def _sample_background(rng: np.random.Generator, style: str) -> Background:
    """Draw a dark or a light background; the shifted domain has a middle gray with strong noise."""
    if style == "outline-noise":
        level = _jitter(rng, (int(rng.integers(150, 190)),) * 3, 8)
        return Background("noise", level, level, float(rng.uniform(25, 45)), int(rng.integers(2**31)))
    kind = _choose(rng, ("plain", "gradient", "noise"))
    low, high = (15, 75) if rng.random() < 0.5 else (165, 245)
    start, end = (_jitter(rng, (int(rng.integers(low, high)),) * 3, 10) for _ in range(2))
    noise = float(rng.uniform(5, 22)) if kind == "noise" else 0.0
    return Background(kind, start, end if kind == "gradient" else start, noise, int(rng.integers(2**31)))


def _menu(rng: np.random.Generator, values: Sequence[str], largest: int) -> list[str]:
    count = int(rng.integers(1, min(largest, len(values)) + 1))
    return [values[i] for i in rng.permutation(len(values))[:count]]


def _choose(rng: np.random.Generator, values: Sequence[str]) -> str:
    return values[int(rng.integers(len(values)))]


def _interior(rng: np.random.Generator, background: Background) -> int:
    """Draw a gray that stands out from the background, so that the whole of an object can be seen."""
    return int(rng.integers(20, 60)) if background.start[0] > 128 else int(rng.integers(200, 250))


def _jitter(rng: np.random.Generator, rgb: tuple[int, ...], amount: int) -> tuple[int, int, int]:
    red, green, blue = np.clip(np.asarray(rgb) + rng.integers(-amount, amount + 1, size=3), 0, 255).tolist()
    return red, green, blue
