"""Pages of pictures with the target and the predicted boxes drawn, in one file that needs nothing beside it."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hivg_hf.data.collator import open_row_image
from hivg_hf.metrics import RowScores
from hivg_hf.utils.html_page import write_page

_LONG_SIDE = 360  # pixels of the embedded pictures

_STYLE = """
.legend span { margin-right: 1.2rem; white-space: nowrap; }
.legend i { display: inline-block; width: 1.4em; height: .9em; vertical-align: -.1em; margin-right: .35em;
  border-width: 3px; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1rem;
  align-items: start; }
figure { margin: 0; border: 1px solid var(--line); border-radius: 8px; padding: .6rem; }
.picture { position: relative; width: fit-content; max-width: 100%; margin: 0 auto .5rem; line-height: 0; }
.picture img { min-width: 8rem; max-width: 100%; max-height: 20rem; }
.box { position: absolute; border-width: 3px; box-sizing: border-box; box-shadow: 0 0 0 1px #fff9; }
figcaption b { display: block; overflow: auto; max-height: 8em; overflow-wrap: anywhere; }
figcaption small { opacity: .75; }
.target { border-color: #1a9850; border-style: solid; }
.first { border-color: #d73027; border-style: dashed; }
.second { border-color: #4575b4; border-style: dotted; }"""


@dataclass
class Picture:
    """One picture of a page.

    Args:
        row: number of the dataset's row.
        boxes: (CSS class, xyxy in pixels of the original image), drawn in this order.
        caption: a short line below the expression.
    """

    row: int
    boxes: list[tuple[str, Sequence[float]]]
    caption: str


@dataclass
class Section:
    """A heading and its pictures."""

    heading: str
    pictures: list[Picture] = field(default_factory=list)


def worst_failures(
    rows: RowScores, predictions: Sequence[dict[str, Any]], protocol: str = "pixel", count: int = 48
) -> list[Section]:
    """The rows with the lowest IoU, of equal ones the most confident first, wrong and right apart; and the most
    confident answers to expressions that name nothing."""
    scores = np.nan_to_num(rows.scores)
    correct = rows.correct(protocol)
    by_iou = np.lexsort((-scores, rows.ious))
    nothing = np.array([bool(row.get("no_target")) for row in rows.references])
    chosen = {
        "Wrong": by_iou[(rows.has_box & ~correct)[by_iou]],
        "Right, with the lowest IoU": by_iou[correct[by_iou]],
        "Expressions that name nothing, answered with the highest scores": np.argsort(
            np.where(nothing, -scores, np.inf), kind="stable"
        )[: nothing.sum()],
    }
    return [
        Section(heading, [_failure(rows, predictions, int(index)) for index in indices[:count]])
        for heading, indices in chosen.items()
        if len(indices)
    ]


def disagreement_pictures(
    indices: Sequence[int],
    rows: tuple[RowScores, RowScores],
    predictions: tuple[Sequence[dict[str, Any]], Sequence[dict[str, Any]]],
    count: int = 48,
) -> list[Section]:
    """Rows that only one of two models gets right, in two sections."""
    sections = [Section("Only the first is right"), Section("Only the second is right")]
    for index in indices:
        section = sections[0] if rows[0].ious[index] > rows[1].ious[index] else sections[1]
        boxes = [
            _target(rows[0], index),
            ("first", predictions[0][index]["box_xyxy"]),
            ("second", predictions[1][index]["box_xyxy"]),
        ]
        section.pictures.append(Picture(index, boxes, f"IoU {rows[0].ious[index]:.2f} and {rows[1].ious[index]:.2f}"))
    return [Section(section.heading, section.pictures[:count]) for section in sections if section.pictures]


def write_gallery(
    path: str | Path, dataset: Any, sections: Sequence[Section], title: str, subtitle: str, legend: dict[str, str]
) -> None:
    """Write the page.

    Args:
        path: the HTML file.
        dataset: rows of the schema that the pictures' row numbers point into.
        sections: what to show.
        title, subtitle: plain text.
        legend: CSS class of a box ("target", "first", "second") to what it is.
    """
    marks = "".join(f'<span><i class="{name}"></i>{html.escape(text)}</span>' for name, text in legend.items())
    shown = "".join(_section_html(dataset, section) for section in sections) or "<p>There is nothing to show.</p>"
    body = f'<p>{html.escape(subtitle)}</p>\n<p class="legend">{marks}</p>\n{shown}'
    write_page(path, title, body, _STYLE)


def _target(rows: RowScores, index: int) -> tuple[str, Sequence[float]]:
    reference = rows.references[index]
    return "target", reference["box"] if reference.get("box") is not None else reference["boxes"][0]


def _failure(rows: RowScores, predictions: Sequence[dict[str, Any]], index: int) -> Picture:
    boxes = [_target(rows, index)] if rows.has_box[index] else []
    parts = [] if np.isnan(rows.ious[index]) else [f"IoU {rows.ious[index]:.2f}"]
    if not np.isnan(rows.scores[index]):
        parts.append(f"score {rows.scores[index]:.2f}")
    return Picture(index, [*boxes, ("first", predictions[index]["box_xyxy"])], ", ".join(parts))


def _section_html(dataset: Any, section: Section) -> str:
    figures = "".join(_figure_html(dataset[picture.row], picture) for picture in section.pictures)
    return f'<h2>{html.escape(section.heading)}</h2>\n<div class="grid">\n{figures}</div>\n'


def _figure_html(row: dict[str, Any], picture: Picture) -> str:
    drawn = "".join(_box_html(name, box, row["width"], row["height"]) for name, box in picture.boxes)
    expression = html.escape(row["expression"])
    image = f'<img src="{_picture_data(row)}" alt="picture for: {expression}">'
    place = html.escape(f"row {picture.row}, image {row.get('image_id')}")
    return (
        f'<figure><div class="picture">{image}{drawn}</div><figcaption><b>{expression}</b> '
        f"{html.escape(picture.caption)}<br><small>{place}</small></figcaption></figure>\n"
    )


def _box_html(name: str, box: Sequence[float], width: int, height: int) -> str:
    """A box in percent of the picture, so that it fits at any displayed size."""
    x1, x2 = (100 * min(max(edge / width, 0.0), 1.0) for edge in (box[0], box[2]))
    y1, y2 = (100 * min(max(edge / height, 0.0), 1.0) for edge in (box[1], box[3]))
    style = f"left:{x1:.2f}%;top:{y1:.2f}%;width:{x2 - x1:.2f}%;height:{y2 - y1:.2f}%"
    return f'<div class="box {name}" style="{style}"></div>'


def _picture_data(row: dict[str, Any]) -> str:
    cached = row.get("letterboxed")
    image = Image.fromarray(np.asarray(cached["pixels"], dtype=np.uint8)) if cached else open_row_image(row)
    image.thumbnail((_LONG_SIDE, _LONG_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
