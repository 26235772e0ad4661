"""Thousands of spoiled rows in every format that says several things at once; `test_row_fuzz.py` has the tables.

A row is `good` (it must be read, exactly), `bad` (it must be named and cost none of its neighbors) or `wild` (a random
part of a record was replaced: either, but what is read under the row's expression must be its box or a possible one).
More rows: HIVG_FUZZ_ROWS=20000, another seed: HIVG_FUZZ_SEED=1.
"""

import json
import math
import os
import random

import numpy as np
import pytest

from helpers.annotation_formats import WRITERS
from hivg_hf.data.order import without_image_decoding
from hivg_hf.data.reading import open_source, read_rows

ROWS, SEED = (
    int(os.environ.get(name, default)) for name, default in (("HIVG_FUZZ_ROWS", 1000), ("HIVG_FUZZ_SEED", 0))
)
ROWS_PER_FILE = 250
WIDTH, HEIGHT = 64, 48
NAN, INF = float("nan"), float("inf")
JUNK = [
    None,
    True,
    -1,
    10**400,
    1e300,
    NAN,
    "",
    " ",
    "x",
    "a\0b",
    "\ud83d",
    [],
    [[]],
    {},
    [1, 2, 3],
    [None] * 4,
    "é" * 99,
]

# Formats whose file is JSON, in which any value can be of any type; of JSONL, one record a line.
JSON_FORMATS = {"json", "coco", "odvg", "tao", "chat-messages", "chat-conversations", "chat-objects", "label-studio"}
LINES = {"odvg", "tao", "chat-messages", "chat-objects"}
# Formats that name a picture by a key, or a class by a number, so that a name cannot be of another type.
NAMED_BY_FILE = {"grit", "yolo", "roboflow-csv"}


def _words(number):
    return f"row {number} {number * 7919 % 100003}"


def _rows(rng, name):
    made = []
    for number in range(ROWS_PER_FILE):
        x, y = rng.randrange(1, 30), rng.randrange(1, 20)
        box = [x, y, x + rng.randrange(2, 30), y + rng.randrange(2, 25)]
        row = {"image": "a.png", "expression": _words(number), "box": box, "width": WIDTH, "height": HEIGHT}
        kind = rng.choice(["good", "good", "bad"])
        change = rng.choice(_good(box, name) if kind == "good" else _bad(box, name))
        made.append(({**row, **change}, kind, box))
    return made


def _good(box, name):
    spelled = [] if name in NAMED_BY_FILE else [{"image": "./a.png"}, {"image": ".\\a.png"}]
    return [{}, {"box": [float(edge) for edge in box]}, *spelled]


def _bad(box, name):
    x1, y1, x2, y2 = box
    boxes = [[x2, y1, x1, y2], [x1, y2, x2, y1], [x1, y1, x1, y2], [x1, y1, x2, y2 + HEIGHT], [x1 - WIDTH, y1, x2, y2]]
    boxes += [[x1, y1, NAN, y2], [x1, y1, INF, y2], [x1, y1, x2, 1e9]]
    if name == "roboflow-csv":
        boxes += [[x1, "left", x2, y2], [x1, None, x2, y2]]
    images = [] if name in NAMED_BY_FILE else [{"image": "gone.png"}, {"image": "sub/a.png"}, {"image": ""}]
    images += [{"image": "gone.png"}] if name in ("roboflow-csv", "yolo") else []
    images.remove({"image": "sub/a.png"}) if name == "label-studio" else None  # an upload has no folder
    words = [{"expression": ""}] if name == "grit" else [{"expression": ""}, {"expression": " "}]
    words += [{"expression": "\ud83d"}] if name in JSON_FORMATS else []
    return [*({"box": spoiled} for spoiled in boxes), *images, *words]


def _spoil(value, rng):
    """A JSON value with one random part of it replaced."""
    if not isinstance(value, (dict, list)) or not value or rng.random() < 0.15:
        return rng.choice(JUNK)
    keys = list(value) if isinstance(value, dict) else range(len(value))
    key = rng.choice(list(keys))
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[key] = _spoil(value[key], rng)
    return copy


def _spoil_file(path, name, rng, kinds):
    """Spoil one record in ten, whose row is then wild."""
    lines = name in LINES
    content = [json.loads(line) for line in path.read_text().splitlines()] if lines else json.loads(path.read_text())
    records = content["annotations"] if name == "coco" else content
    for number in range(len(records)):
        if rng.random() < 0.1:
            records[number] = _spoil(records[number], rng)
            kinds[number] = "wild"
    text = "".join(json.dumps(record) + "\n" for record in content) if lines else json.dumps(content)
    path.write_text(text)


def _check(folder, name, rng):
    rows = _rows(rng, name)
    kinds = [kind for _, kind, _ in rows]
    options = {"split": "all", "check_format": False, **WRITERS[name](folder, [row for row, _, _ in rows])}
    source, split = options.pop("source"), options.pop("split")
    if name in JSON_FORMATS:
        path = folder / source.rsplit("/", 1)[1]
        _spoil_file(path, name, rng, kinds)
    if name in ("coco", "coco-categories", "grit", "dior-rsvg", "roboflow-csv"):
        del options["check_format"]
    builder = open_source(source, split, **options)
    read, report = read_rows(builder, source)
    wild = kinds.count("wild")
    assert abs(len(read) + len(report.problems) - len(rows)) <= 3 * wild, "a row vanished"
    by_words = {row["expression"]: row for row in without_image_decoding(read)}
    for number, (kind, (_, _, box)) in enumerate(zip(kinds, rows, strict=True)):
        row = by_words.get(_words(number))
        assert kind == "wild" or (row is not None) == (kind == "good"), (
            f"row {number} is {kind}: {rows[number]}, {row}"
        )
        if kind == "good":
            np.testing.assert_allclose(row["box"], box, atol=1e-4, err_msg=f"row {number}")
            assert row["no_target"] is False
    for row in by_words.values():
        for x1, y1, x2, y2 in row["boxes"]:
            assert all(map(math.isfinite, (x1, y1, x2, y2)))
            assert -2.01 <= x1 < x2 <= WIDTH + 2.01, row["boxes"]
            assert -2.01 <= y1 < y2 <= HEIGHT + 2.01, row["boxes"]
    for problem in report.problems:
        assert len(str(problem).encode()) < 3000
    listed = "\n".join(map(str, report.problems))
    assert all(problem.row for problem in report.problems), listed


@pytest.mark.parametrize("name", sorted(set(WRITERS) - {"csv"}))
def test_spoiled_rows_are_read_right_or_named(tmp_path, make_image, name):
    for start in range(0, ROWS, ROWS_PER_FILE):
        folder = tmp_path / str(start)
        make_image(folder / "a.png", WIDTH, HEIGHT)
        _check(folder, name, random.Random(f"{SEED} {name} {start}"))
