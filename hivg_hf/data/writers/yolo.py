"""A YOLO folder: every expression is a class. For detectors; a class says little of *which* object is meant.

Boxes are (cx, cy, w, h) in 0..1 with all digits of double precision: within 1e-6 pixels when read back.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from hivg_hf.utils.atomic import atomic_folder

from . import Pictures


def write_yolo(rows: Any, path: Path, pictures: Pictures) -> list[str]:
    """Write a folder; returns what was lost.

    Raises:
        ValueError: there are no-target rows, which YOLO cannot say.
    """
    none = sum(rows["no_target"])
    if none:
        raise ValueError(f"YOLO has no way to say that an expression names nothing, as {none:,} rows do; drop them.")
    classes: dict[str, int] = {}
    lines: dict[str, list[str]] = {}
    seen: Counter[tuple[str, str]] = Counter()
    with atomic_folder(path) as unfinished:
        pictures.folder = unfinished
        for row in rows:
            name = pictures.name(row)
            number = classes.setdefault(row["expression"], len(classes))
            seen[name, row["expression"]] += 1
            for box in row["boxes"]:
                sides = (row["width"], row["height"]) * 2
                x1, y1, x2, y2 = (edge / side for edge, side in zip(box, sides, strict=True))
                numbers = ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)
                lines.setdefault(name, []).append(f"{number} {' '.join(map(repr, numbers))}\n")
        (unfinished / "labels").mkdir()
        for name, boxes in lines.items():
            label = (unfinished / "labels" / Path(name).name).with_suffix(".txt")
            if label.exists():
                raise ValueError(f"two pictures are called {label.stem}; YOLO tells them apart by that name only.")
            label.write_text("".join(boxes))
        names = {number: words for words, number in classes.items()}
        text = yaml.safe_dump({"names": names}, allow_unicode=True, width=10_000)
        (unfinished / "data.yaml").write_text(text, encoding="utf-8")
    merged = sum(count - 1 for count in seen.values())
    lost = ["ids of rows, and which boxes of a class belong to one row"]
    return [*lost, f"{merged:,} rows share image and expression with another and become one"] if merged else lost
