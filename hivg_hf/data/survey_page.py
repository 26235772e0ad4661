"""The survey as one page of HTML: tables, position maps and contact sheets, with nothing to load from elsewhere."""

import base64
import io
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from hivg_hf.utils.html_page import html_table, write_page

from .order import column_values

MAP_CELLS = 24  # a side of a position map
LISTED = 200
STYLE = """
table { border-collapse: collapse; margin: .5rem 0; }
td, th { border: 1px solid var(--line); padding: .2rem .6rem; text-align: left; }
td.n { text-align: right; }
figure { display: inline-block; margin: .5rem 1rem .5rem 0; }
img { max-width: 100%; }
.bad { color: #a00; }"""


def write_survey_page(path: Path, result: Any, seed: int = 0) -> None:
    """Write a page about several splits.

    Args:
        path: the HTML file.
        result: a `hivg_hf.data.prepare.Survey`.
        seed: of the rows on the contact sheets.
    """
    body = ["<h2>Splits</h2>", html_table(_HEAD, [_line(split) for split in result.splits]), *_leaks(result)]
    for split in result.splits:
        body += _section(split, seed)
    write_page(path, f"Survey of {', '.join(split.name for split in result.splits)}", "".join(body), STYLE)


_HEAD = ("split", "rows", "images", "no target", "several targets", "with mask", "repeated rows", "cannot be used")


def _line(split: Any) -> list[Any]:
    if not len(split.rows):
        return [split.name, 0, 0, 0, 0, 0, 0, len(split.report.problems)]
    boxes, expressions = column_values(split.rows, "boxes"), column_values(split.rows, "expression")
    images = column_values(split.rows, "image_id")
    keys = [
        (image, expression.lower(), tuple(map(tuple, some)))
        for image, expression, some in zip(images, expressions, boxes, strict=True)
    ]
    none = sum(not some for some in boxes)
    return [
        split.name,
        len(split.rows),
        len(set(images)),
        f"{none:,} ({none / len(split.rows):.1%})",
        sum(len(some) > 1 for some in boxes),
        sum(mask is not None for mask in column_values(split.rows, "mask")),
        len(keys) - len(set(keys)),
        len(split.report.problems),
    ]


def _leaks(result: Any) -> Iterator[str]:
    """What training and evaluation share: images by name, images by content, expressions."""
    yield "<h2>Between training and evaluation</h2>"
    found = {
        "the same image": result.leaks,
        "near-identical images": result.lookalikes,
        "expressions with the same words (usual for short ones)": result.shared_expressions,
    }
    lines = [
        [pair, kind, len(shared), ", ".join(map(str, shared[:5]))]
        for kind, pairs in found.items()
        for pair, shared in pairs.items()
    ]
    yield html_table(("splits", "what is shared", "how many", "for example"), lines) if lines else "<p>Nothing.</p>"


def _section(split: Any, seed: int) -> Iterator[str]:
    from .prepare import contact_sheet, statistics

    yield f"<h2>{escape(split.name)}</h2>"
    notes = [*split.report.differences, *split.report.notes]
    yield "".join(f"<p>{escape(note)}.</p>" for note in notes)
    if split.report.problems:
        listed = "".join(f"<li>{escape(str(problem))}</li>" for problem in split.report.problems[:LISTED])
        more = len(split.report.problems) - LISTED
        yield f'<h3 class="bad">{len(split.report.problems):,} rows cannot be used</h3><ul>{listed}</ul>'
        yield f"<p>and {more:,} more, in problems.txt</p>" if more > 0 else ""
    if not len(split.rows):
        return
    facts = statistics(split.rows)
    yield html_table(
        ("", "mean", "5 %", "median", "95 %"),
        [
            [name.replace("_", " "), *(value.get(key, "") for key in ("mean", "p5", "median", "p95"))]
            for name, value in facts.items()
            if isinstance(value, Mapping) and "median" in value
        ],
    )
    words = [word for expression in column_values(split.rows, "expression") for word in expression.lower().split()]
    names, counts = np.unique(np.array(words, dtype=object), return_counts=True)
    order = np.argsort(-counts)[:30]
    yield f"<p>{len(names):,} different words: "
    yield ", ".join(f"{escape(str(names[at]))} {counts[at]:,}" for at in order) + "</p>"
    yield from _box_figures(split.rows)
    yield _picture("rows, with their boxes", contact_sheet(split.rows, seed), "JPEG")


def _box_figures(rows: Any) -> Iterator[str]:
    """Where targets are, and how large and how wide they are."""
    shares = _box_shares(rows)
    if not len(shares):
        return
    centers = (shares[:, :2] + shares[:, 2:]) / 2
    size = shares[:, 2:] - shares[:, :2]
    yield _picture("centers of boxes in their images", _heat(centers))
    yield _bars("area, share of the image", size.prod(axis=1), np.linspace(0, 1, 11))
    aspect = np.log2(np.maximum(size[:, 0], 1e-6) / np.maximum(size[:, 1], 1e-6))
    yield _bars("log2(width / height), of shares", np.clip(aspect, -4, 4), np.linspace(-4, 4, 17))


def _box_shares(rows: Any) -> np.ndarray:
    """Every target as (x1, y1, x2, y2) in 0..1 of its image (N, 4)."""
    boxes, widths, heights = (column_values(rows, name) for name in ("boxes", "width", "height"))
    found = [
        (x1 / width, y1 / height, x2 / width, y2 / height)
        for some, width, height in zip(boxes, widths, heights, strict=True)
        for x1, y1, x2, y2 in some
    ]
    return np.array(found, dtype=np.float64).reshape(-1, 4)


def _heat(points: np.ndarray) -> Any:
    """A map of points (N, 2) in 0..1 as a picture; dark is many."""
    from PIL import Image

    counts, _, _ = np.histogram2d(points[:, 1], points[:, 0], bins=MAP_CELLS, range=((0, 1), (0, 1)))
    shade = 255 - np.round(255 * np.sqrt(counts / max(counts.max(), 1)))
    return Image.fromarray(shade.astype(np.uint8)).resize((240, 240), Image.Resampling.NEAREST)


def _bars(title: str, values: np.ndarray, edges: np.ndarray) -> str:
    counts, _ = np.histogram(values, edges)
    highest = max(int(counts.max()), 1)
    bars = "".join(
        f'<rect x="{at * 20}" y="{100 - 100 * count / highest:.1f}" width="18" height="{100 * count / highest:.1f}" '
        f'fill="#47a"><title>{low:.2g} to {high:.2g}: {count:,}</title></rect>'
        for at, (count, low, high) in enumerate(zip(counts, edges[:-1], edges[1:], strict=True))
    )
    chart = f'<svg width="{len(counts) * 20}" height="100" role="img">{bars}</svg>'
    return f"<figure>{chart}<figcaption>{escape(title)}: {edges[0]:g} to {edges[-1]:g}</figcaption></figure>"


def _picture(title: str, picture: Any, kind: str = "PNG") -> str:
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    source = f"data:image/{kind.lower()};base64,{data}"
    return f'<figure><img src="{source}" alt="{escape(title)}"><figcaption>{escape(title)}</figcaption></figure>'
