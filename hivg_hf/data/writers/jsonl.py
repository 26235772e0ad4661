"""JSON Lines: ODVG (boxes bit-equal when read back) and conversations for Qwen-VL (whole numbers, by their format).

Qwen's numbers are whole: 0..1000 of the side moves an edge by up to side / 2000, pixels by up to half a pixel.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hivg_hf.utils.atomic import atomic_path

from . import Pictures

QUESTION = "Locate {expression}."
COORDINATES = ("1000", "pixels")


def write_odvg(rows: Any, path: Path, pictures: Pictures) -> list[str]:
    """Write one line for each row: the expression is the caption and the phrase of its regions."""

    def line(row: Mapping[str, Any]) -> dict[str, Any]:
        words = row["expression"]
        regions = [{"bbox": box, "phrase": words, "tokens_positive": [[0, len(words)]]} for box in row["boxes"]]
        grounding = {"caption": words, "regions": regions}
        if row["no_target"]:
            grounding["no_target"] = True
        size = {"height": row["height"], "width": row["width"]}
        return {"filename": pictures.name(row), **size, "grounding": grounding}

    _write_lines(rows, path, line)
    none = sum(rows["no_target"])
    return [f"other readers of ODVG see {none:,} no-target rows as captions without regions"] if none else []


def write_qwen(rows: Any, path: Path, pictures: Pictures, coordinates: str = "1000") -> list[str]:
    """Write one conversation for each row: a question, and boxes as JSON.

    Args:
        coordinates: `1000` for Qwen3-VL, shares of the image in 0..1000; `pixels` for Qwen2.5-VL, of the original
            image.

    Raises:
        ValueError: `coordinates` is neither.
    """
    if str(coordinates) not in COORDINATES:
        raise ValueError(f"coordinates must be one of {', '.join(COORDINATES)}, got {coordinates!r}.")

    def line(row: Mapping[str, Any]) -> dict[str, Any]:
        sides = (row["width"], row["height"]) * 2
        answer = [
            {"bbox_2d": _whole(box, sides, str(coordinates)), "label": row["expression"]} for box in row["boxes"]
        ]
        question = QUESTION.format(expression=row["expression"])
        return {
            "messages": [
                {"role": "user", "content": f"<image>{question}"},
                {"role": "assistant", "content": json.dumps(answer, ensure_ascii=False)},
            ],
            "images": [pictures.name(row)],
        }

    _write_lines(rows, path, line)
    return [f"boxes are whole numbers, as the model writes them ({coordinates})"]


def _whole(box: list[float], sides: tuple[int, ...], coordinates: str) -> list[int]:
    """A box in whole numbers that keeps an area."""
    full = 1000 if coordinates == "1000" else None
    limits = [full or side for side in sides]
    x1, y1, x2, y2 = (
        min(max(round(edge if full is None else edge * full / side), 0), limit)
        for edge, side, limit in zip(box, sides, limits, strict=True)
    )
    if x2 <= x1:
        x1, x2 = (x1, x1 + 1) if x1 < limits[0] else (x1 - 1, x1)
    if y2 <= y1:
        y1, y2 = (y1, y1 + 1) if y1 < limits[1] else (y1 - 1, y1)
    return [x1, y1, x2, y2]


def _write_lines(rows: Any, path: Path, line: Callable[[Mapping[str, Any]], dict[str, Any]]) -> None:
    with atomic_path(path) as unfinished, unfinished.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(line(row), ensure_ascii=False) + "\n")
