"""RefShapes rendering: a scene to an RGB picture and one mask per object.

Every object is drawn with supersampling on a small canvas of its own and blended in, so that edges are anti-aliased
and the cost follows the objects' area. A pixel belongs to an object's mask where at least half of it is that object;
the inside of an outlined object is opaque and belongs to it, the hole of a ring does not.
"""

import math

import numpy as np
from PIL import Image, ImageDraw

from .scenes import Scene, SceneObject

STRIPES = 3.5  # stripe periods per box side


def render_scene(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Draw a scene.

    Returns:
        The picture, uint8 (height, width, 3), and the visible part of every object, bool (objects, height, width).
    """
    canvas = _background(scene)
    visible = np.zeros((len(scene.objects), scene.height, scene.width), dtype=np.float32)
    for index, item in enumerate(scene.objects):
        left, top, coverage, ink = _draw_object(item, scene.stroke)
        rows, columns = slice(top, top + coverage.shape[0]), slice(left, left + coverage.shape[1])
        row_cut = slice(max(0, -top), coverage.shape[0] - max(0, rows.stop - scene.height))
        column_cut = slice(max(0, -left), coverage.shape[1] - max(0, columns.stop - scene.width))
        rows, columns = slice(max(0, top), rows.stop), slice(max(0, left), columns.stop)
        coverage, ink = coverage[row_cut, column_cut], ink[row_cut, column_cut]
        # (h, w) ink blends the object's color with its interior: (h, w, 3)
        paint = ink[..., None] * np.asarray(item.rgb, np.float32) + (1 - ink[..., None]) * item.interior
        region = canvas[rows, columns]
        region += coverage[..., None] * (paint - region)
        visible[:index, rows, columns] *= 1 - coverage
        visible[index, rows, columns] = coverage
    return np.clip(canvas + 0.5, 0, 255).astype(np.uint8), visible >= 0.5


def _background(scene: Scene) -> np.ndarray:
    """Draw the background, float32 (height, width, 3) in 0..255."""
    background, shape = scene.background, (scene.height, scene.width)
    rng = np.random.default_rng(background.seed)
    canvas = np.empty((*shape, 3), dtype=np.float32)
    canvas[:] = background.start
    if background.kind == "gradient":
        angle = rng.uniform(0, 2 * math.pi)
        ramp_y = np.linspace(-0.5, 0.5, shape[0], dtype=np.float32)[:, None] * math.sin(angle)
        ramp_x = np.linspace(-0.5, 0.5, shape[1], dtype=np.float32)[None, :] * math.cos(angle)
        weight = (ramp_y + ramp_x) / (abs(math.sin(angle)) + abs(math.cos(angle))) + 0.5
        canvas += weight[..., None] * (np.asarray(background.end, np.float32) - np.asarray(background.start))
    if background.noise:
        canvas += background.noise * rng.standard_normal((*shape, 1), dtype=np.float32)
    return canvas


def _draw_object(item: SceneObject, stroke: float) -> tuple[int, int, np.ndarray, np.ndarray]:
    """Draw one object on its own canvas: (left, top, coverage (h, w), ink (h, w)), the last two in 0..1."""
    x1, y1, x2, y2 = item.box_xyxy
    left, top = math.floor(x1), math.floor(y1)
    width, height = math.ceil(x2) - left, math.ceil(y2) - top
    factor = 4 if item.side < 80 else 2
    size = (width * factor, height * factor)
    origin = np.array([(x1 - left) * factor, (y1 - top) * factor])
    side = item.side * factor
    silhouette = _fill(size, item.shape, origin, side)
    ink = silhouette
    if item.filling == "outlined":
        ink = np.maximum(silhouette - _inner(size, item.shape, origin, side, stroke), 0)
    elif item.filling == "striped":
        rows = (np.arange(size[1]) - origin[1] + 0.5) / side * STRIPES
        ink = silhouette * (rows % 1.0 < 0.5)[:, None]
    coverage = _shrink(silhouette, factor)
    inked = _shrink(ink, factor)
    return left, top, coverage, np.divide(inked, coverage, out=np.zeros_like(inked), where=coverage > 1e-6)


def _fill(size: tuple[int, int], shape: str, origin: np.ndarray, side: float) -> np.ndarray:
    """Draw a filled shape in the square (origin, side): float32 (height, width), 0 or 1."""
    picture = Image.new("L", size)
    draw = ImageDraw.Draw(picture)
    x, y = origin
    if shape in ("circle", "ring"):
        draw.ellipse((x, y, x + side - 1, y + side - 1), fill=1)
        if shape == "ring":
            hole = side * 0.25
            draw.ellipse((x + hole, y + hole, x + side - 1 - hole, y + side - 1 - hole), fill=0)
    else:
        draw.polygon([(x + side * px, y + side * py) for px, py in _POLYGONS[shape]], fill=1)
    return np.asarray(picture, dtype=np.float32)


def _inner(size: tuple[int, int], shape: str, origin: np.ndarray, side: float, stroke: float) -> np.ndarray:
    """Draw what an outline of width `stroke` (relative to the side) leaves free inside a shape."""
    picture = Image.new("L", size)
    draw = ImageDraw.Draw(picture)
    width = max(1, round(stroke * side))
    if shape in ("circle", "ring"):
        x, y = origin
        draw.ellipse((x, y, x + side - 1, y + side - 1), fill=1, outline=0, width=width)
        if shape == "ring":
            hole = side * 0.25 - width
            draw.ellipse((x + hole, y + hole, x + side - 1 - hole, y + side - 1 - hole), fill=0)
    else:
        points = [(origin[0] + side * px, origin[1] + side * py) for px, py in _POLYGONS[shape]]
        draw.polygon(points, fill=1)
        # A line centred on the edge covers half its width inside, so it is drawn twice as wide.
        draw.line([*points, points[0], points[1]], fill=0, width=2 * width, joint="curve")
    return np.asarray(picture, dtype=np.float32)


def _shrink(picture: np.ndarray, factor: int) -> np.ndarray:
    """Average blocks of factor x factor: (h * factor, w * factor) -> (h, w)."""
    height, width = picture.shape[0] // factor, picture.shape[1] // factor
    return picture.reshape(height, factor, width, factor).mean(axis=(1, 3), dtype=np.float32)


def _star(points: int = 5, inner: float = 0.45) -> list[tuple[float, float]]:
    """Return the corners of a star that fills the unit square."""
    angles = -math.pi / 2 + np.arange(2 * points) * math.pi / points
    radius = np.where(np.arange(2 * points) % 2 == 0, 1.0, inner)
    corners = np.stack([radius * np.cos(angles), radius * np.sin(angles)], axis=1)
    corners = (corners - corners.min(axis=0)) / (corners.max(axis=0) - corners.min(axis=0))
    return [(float(x), float(y)) for x, y in corners]


def _cross(arm: float = 0.34) -> list[tuple[float, float]]:
    """Return the corners of an upright cross whose arms have the width `arm`, in the unit square."""
    a, b = (1 - arm) / 2, (1 + arm) / 2
    return [(a, 0), (b, 0), (b, a), (1, a), (1, b), (b, b), (b, 1), (a, 1), (a, b), (0, b), (0, a), (a, a)]


_POLYGONS = {
    "square": [(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)],
    "triangle": [(0.5, 0.0), (1.0, 1.0), (0.0, 1.0)],
    "star": _star(),
    "cross": _cross(),
}
