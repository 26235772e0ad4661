"""Pictures of what a model found: boxes, masks and heat maps with labels that can be read at any image size."""

import bisect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from hivg_hf.modeling.image_loading_hivg import load_grounding_image
from hivg_hf.modeling.image_sources_hivg import shown
from hivg_hf.modeling.pipeline_streams_hivg import answers_of

# Okabe and Ito's palette, which color-blind people can tell apart, in an order that keeps neighbors far apart.
COLORS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))
NOT_FOUND_COLOR = (150, 150, 150)
# Colors of a heat map from 0 to 1: dark blue, violet, orange, light yellow.
HEAT_COLORS = ((12, 8, 60), (120, 28, 109), (237, 105, 37), (252, 255, 164))
# A mask is an outline and a breath of its color inside: what color the object has can still be seen.
MASK_STRENGTH = 0.15
# A label of 13-pixel letters needs about this much room; smaller pictures are enlarged before they are drawn on.
SMALLEST_SIDE = 480
SMALLEST_FONT = 13
FONT_PER_SIDE = 1 / 34
LABEL_LINES = 3
# More letters than fit on the label of any picture; measuring a word takes time for each of its letters.
LONGEST_WORD = 1000


class _Rectangle(NamedTuple):
    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: "_Rectangle") -> float:
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(0.0, width) * max(0.0, height)


def draw_grounding(
    image: Any, results: Mapping[str, Any] | Sequence[Any], min_side: int = SMALLEST_SIDE
) -> PIL.Image.Image:
    """The picture with every box, mask, expression and score drawn on it.

    Args:
        image: what was grounded, in any form the pipeline takes.
        results: a result of the pipeline or a list of them, of `multiple=True` too. A `"mask"` is outlined; a result
            whose `"found"` is False is drawn in gray with its label in brackets; of several answers to one expression,
            the first one carries it, the others their score; results with `"error"` are left out.
        min_side: pictures whose longer side is shorter than this are enlarged to it, since no label fits on 64 pixels.

    Returns:
        An RGB picture; boxes keep their place, scaled with the picture.

    Raises:
        TypeError: these are not results, as where image and results are swapped.
    """
    entries = [entry for entry in _answers(results) if "error" not in entry]
    picture = load_grounding_image(image)
    original_side = max(picture.size)
    colors = [_color(entry, place) for place, entry in enumerate(entries)]
    picture = _tint_masks(picture, entries, colors)
    scale = max(1.0, min_side / original_side)
    if scale > 1:
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        picture = picture.resize(size, PIL.Image.Resampling.BICUBIC)
    elif not entries:
        picture = picture.copy()
    boxes = [_scaled_box(entry["box"], scale) for entry in entries]
    draw = PIL.ImageDraw.Draw(picture)
    for box, color in zip(boxes, colors, strict=True):
        _draw_box(draw, box, color, max(picture.size))
    placed: list[_Rectangle] = []
    for label, box, color in zip(_labels(entries), boxes, colors, strict=True):
        placed.append(_draw_label(draw, picture.size, label, box, color, placed, boxes))
    return picture


def _answers(results: Any) -> list[Mapping[str, Any]]:
    """Results one by one; of an expression asked with `multiple=True`, its boxes, or its best, which is not found."""
    is_one = isinstance(results, (Mapping, str)) or not isinstance(results, Iterable)
    listed = [results] if is_one else results
    listed = listed if isinstance(listed, list) else list(listed)
    answers: list[Mapping[str, Any]] = [answer for result in answers_of(listed) for answer in answers_of(result)]
    for answer in answers:
        is_answer = isinstance(answer, Mapping) and {"expression", "box"} <= answer.keys()
        if not is_answer and not (isinstance(answer, Mapping) and "error" in answer):
            raise TypeError(
                "draw_grounding(image, results) draws results of the pipeline, dicts with 'expression' and 'box', not "
                f"{shown(repr(answer), 80)}."
            )
    return answers


def draw_heatmap(image: Any, heatmap: Any, strength: float = 0.6) -> PIL.Image.Image:
    """The picture under a map of values in 0..1 (height, width) of its own pixels, dark where low, light where high.

    Args:
        image: the picture, in any form the pipeline takes.
        heatmap: `result["heatmap"]`, or any array of the picture's size.
        strength: share of the map in the mixture.

    Raises:
        ValueError: the map has another size than the picture.
    """
    picture = load_grounding_image(image)
    values = np.clip(np.asarray(heatmap, dtype=np.float32), 0, 1)
    if values.shape != (picture.height, picture.width):
        expected = (picture.height, picture.width)
        raise ValueError(f"A heat map must have its picture's height and width {expected}, not {values.shape}.")
    stops = np.linspace(0, 1, len(HEAT_COLORS))
    channels = [np.interp(values, stops, [color[channel] for color in HEAT_COLORS]) for channel in range(3)]
    gray = np.asarray(picture.convert("L"), dtype=np.float32)[..., None]  # colors of the map must not mix with others
    return PIL.Image.fromarray(((1 - strength) * gray + strength * np.stack(channels, -1)).round().astype(np.uint8))


def _tint_masks(
    picture: PIL.Image.Image, entries: Sequence[Mapping[str, Any]], colors: Sequence[tuple[int, int, int]]
) -> PIL.Image.Image:
    if not any(entry.get("mask") is not None for entry in entries):
        return picture.copy()
    pixels = np.array(picture)
    for entry, color in zip(entries, colors, strict=True):
        mask = entry.get("mask")
        if mask is not None and entry.get("found", True):
            inside = np.asarray(mask, dtype=bool)
            tinted = (1 - MASK_STRENGTH) * pixels[inside] + MASK_STRENGTH * np.array(color)
            pixels[inside] = tinted.round().astype(np.uint8)  # floats of the whole picture take 16 times its memory
            pixels[_outline(inside, width=max(1, max(inside.shape) // 260))] = color
    return PIL.Image.fromarray(pixels)


def _outline(inside: np.ndarray, width: int) -> np.ndarray:
    """The pixels of a mask (height, width) that are at most `width` steps from one outside it; the edge is outside."""
    core = inside
    for _ in range(width):
        padded = np.pad(core, 1)
        core = core & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return inside & ~core


def _color(entry: Mapping[str, Any], place: int) -> tuple[int, int, int]:
    return COLORS[place % len(COLORS)] if entry.get("found", True) else NOT_FOUND_COLOR


def _labels(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Expression and score of each; of several answers to one expression, only the first one repeats it."""
    labels: list[str] = []
    written: set[str] = set()
    for entry in entries:
        text, score = " ".join(str(entry["expression"]).split()), entry.get("score")
        if score is not None:
            text, expression = (f"{score:.2f}" if text in written else f"{text}  {score:.2f}"), text
            written.add(expression)
        labels.append(text if entry.get("found", True) else f"({text})")
    return labels


def _scaled_box(box: Mapping[str, float], scale: float) -> _Rectangle:
    return _Rectangle(*(box[side] * scale for side in ("xmin", "ymin", "xmax", "ymax")))


def _line_width(side: int) -> int:
    return max(2, round(side / 260))


def _draw_box(draw: PIL.ImageDraw.ImageDraw, box: _Rectangle, color: tuple[int, int, int], side: int) -> None:
    """The outline in its color between two thin dark lines, so that it shows on any background."""
    width, halo = _line_width(side), max(1, _line_width(side) // 3)
    # The outline lies around the object. A box of no area still shows, as a dot.
    for grow, line_width, line_color in ((width + halo, width + 2 * halo, (20, 20, 20)), (width, width, color)):
        corners = [box.left - grow, box.top - grow, box.right + grow, box.bottom + grow]
        limits = [draw.im.size[0] - 1, draw.im.size[1] - 1] * 2
        inside = [min(max(value, 0), limit) for value, limit in zip(corners, limits, strict=True)]
        draw.rectangle(inside, outline=line_color, width=line_width)


def _draw_label(
    draw: PIL.ImageDraw.ImageDraw,
    size: tuple[int, int],
    text: str,
    box: _Rectangle,
    color: tuple[int, int, int],
    placed: Sequence[_Rectangle],
    boxes: Sequence[_Rectangle],
) -> _Rectangle:
    """Write the label on a plate of the box's color, beside the box and inside the picture; return the plate."""
    # Panoramas have little room above and below: their letters and lines follow the shorter side.
    font = _font(max(SMALLEST_FONT, round(min(max(size) * FONT_PER_SIDE, min(size) / 7))), text)
    margin = max(2, font.size // 4)
    widest = size[0] - 2 * margin if size[0] < 28 * font.size else 0.6 * size[0]
    text = _wrap(draw, text, font, widest, lines_allowed=min(LABEL_LINES, max(1, size[1] // (4 * font.size))))
    left, top, right, bottom = draw.multiline_textbbox((0, 0), text, font=font, spacing=margin)
    width, height = right - left + 2 * margin, bottom - top + 2 * margin
    plate = _place_label(size, width, height, box, _line_width(max(size)), placed, boxes)
    draw.rectangle(plate, fill=color)
    luminance = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]
    ink = (0, 0, 0) if luminance > 110 else (255, 255, 255)
    origin = (plate.left + margin - left, plate.top + margin - top)
    draw.multiline_text(origin, text, font=font, fill=ink, spacing=margin)
    return plate


def _place_label(
    size: tuple[int, int],
    width: float,
    height: float,
    box: _Rectangle,
    line: int,
    placed: Sequence[_Rectangle],
    boxes: Sequence[_Rectangle],
) -> _Rectangle:
    """The first of eight places around the box, moved into the picture, that hides the least of labels and boxes."""
    above, below = box.top - height - 2 * line, box.bottom + 2 * line
    beside = [(box.right + 2 * line, box.top), (box.left - width - 2 * line, box.top)]
    corners = [(box.left, above), (box.left, below), (box.right - width, above), (box.right - width, below), *beside]
    inside = [(box.left + line, box.top + line), (box.left + line, box.bottom - height - line)]
    best, least = None, float("inf")
    for left, top in [*corners, *inside]:
        left, top = max(0.0, min(left, size[0] - 1 - width)), max(0.0, min(top, size[1] - 1 - height))
        plate = _Rectangle(left, top, left + width, top + height)
        # Hiding another label costs most: it could not be read. Hiding its own object costs more than others'.
        hidden = 20 * sum(plate.overlap(other) for other in placed) + 2 * plate.overlap(box)
        hidden += sum(plate.overlap(other) for other in boxes)
        if hidden < least:
            best, least = plate, hidden
    assert best is not None
    return best


def _wrap(draw: PIL.ImageDraw.ImageDraw, text: str, font: Any, width: float, lines_allowed: int) -> str:
    """At most `lines_allowed` lines that fit the width; a longer text ends in an ellipsis, but keeps its score."""
    lines, words = [""], text.split(" ")
    for word in words:
        longer = f"{lines[-1]} {word[:LONGEST_WORD]}".strip(" ")
        if not lines[-1] or draw.textlength(longer, font=font) <= width:
            lines[-1] = longer
        elif len(lines) > lines_allowed:
            break
        else:
            lines.append(word[:LONGEST_WORD])
    is_cut = max(map(len, words)) > LONGEST_WORD or len(lines) > lines_allowed
    if is_cut or any(draw.textlength(line, font=font) > width for line in lines):
        ending = f"… {words[-1]}" if len(words[-1]) <= len("0.00)") else "…"
        lines = [_cut(draw, line, "…", font, width) for line in lines[:lines_allowed]]
        lines[-1] = _cut(draw, f"{lines[-1].rstrip('…')} …", ending, font, width)
    return "\n".join(lines)


def _cut(draw: PIL.ImageDraw.ImageDraw, line: str, ending: str, font: Any, width: float) -> str:
    """The line, or, where it is too wide or already ends in an ellipsis, as much of it as fits before `ending`."""
    if draw.textlength(line, font=font) <= width and not line.endswith("…"):
        return line
    line = line.rstrip(" …")
    # Halving the range: taking letters off one by one measures a long word once per letter.
    lengths = range(1, len(line) + 1)
    fitting = bisect.bisect_right(lengths, width, key=lambda n: draw.textlength(f"{line[:n]}{ending}", font=font))
    return f"{line[:fitting]}{ending}"


def _font(size: int, text: str) -> Any:
    """Pillow's own font, the same everywhere; for other letters than Latin, DejaVu where it is installed."""
    if not text.isascii():
        try:
            return PIL.ImageFont.truetype("DejaVuSans.ttf", size)
        except OSError:
            pass
    return PIL.ImageFont.load_default(size=size)
