"""Thousands of spoiled rows per format: each is read right or named, and costs none of its neighbors.

Rows are numbered by their expression. A row is `good` (another spelling of the same row: it must be read, exactly),
`bad` (it must be named and left out) or `wild` (random damage: either, but what is read must be a possible row). The
reading runs in a process of its own with a limit on memory. More rows: HIVG_FUZZ_ROWS=20000, another seed:
HIVG_FUZZ_SEED=1.
"""

import csv
import io
import json
import multiprocessing
import os
import random
import resource

import datasets
import numpy as np
import pytest

from hivg_hf.data.order import without_image_decoding
from hivg_hf.data.reading import open_source, read_rows
from hivg_hf.data.schema import decode_mask, encode_mask

ROWS, SEED = (
    int(os.environ.get(name, default)) for name, default in (("HIVG_FUZZ_ROWS", 1000), ("HIVG_FUZZ_SEED", 0))
)
ROWS_PER_FILE = 250
MEMORY_LIMIT_BYTES = 1 << 30  # beyond what the process had before it began to read
WIDTH, HEIGHT = 64, 48
MASK = np.zeros((HEIGHT, WIDTH), dtype=bool)
MASK[5:20, 10:30] = True
NAN, INF = float("nan"), float("inf")

JUNK = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 10**400, 1e8, 1e300, -1e300, NAN, INF, -INF, 0.5, -0.0),
    *("", " ", "x", "1 2 3 4", "a\0b", "\ud83d", "\udcff", "null", "NaN", "1e999", "9" * 5000, "é" * 300),
    *([], [[]], {}, [1], [1, 2, 3, 4], [[1, 2, 3, 4]], [None] * 4, [1e8] * 6, [[NAN] * 6], {"size": [1, 1]}),
    {"size": [HEIGHT, WIDTH], "counts": [WIDTH * HEIGHT + 1]},
    {"size": [2**31, 2**31], "counts": "0"},
    {"size": [HEIGHT, WIDTH], "counts": "zz"},
    {"size": [HEIGHT, WIDTH], "counts": [2**62, -(2**62), WIDTH * HEIGHT]},
]


def _words(number):
    """An expression that damage to another row does not make."""
    return f"row {number} {number * 7919 % 100003}"


def _template(number, rng):
    x, y = rng.randrange(0, 30), rng.randrange(0, 20)
    box = [x, y, x + rng.randrange(2, 30), y + rng.randrange(2, 25)]
    return {"image": "a.png", "expression": _words(number), "box": box}


def _good(row, rng):
    size = {"width": WIDTH, "height": HEIGHT}
    polygon = [10, 5, 30, 5, 30, 20, 10, 20]
    return rng.choice(
        [
            {},
            {"image": rng.choice(["./a.png", "sub/../a.png", ".\\a.png", " a.png "])},
            {"box": " ".join(map(str, row["box"]))},
            {"box": [float(edge) for edge in row["box"]], "boxes": None},
            {"box": None, "boxes": [row["box"]]},
            {"width": "64", "height": 48.0},
            {"width": NAN, "height": "nan"},
            {"no_target": rng.choice([None, False, 0, "false", ""]), "ref_id": None},
            {"mask": encode_mask(MASK), "category": "é", **size},
            {"mask": {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}},
            {"mask": [polygon], **size},
            {"mask": [[-20, 5, 100, 5, 100, 20, -20, 20]], **size},
            {"mask": json.dumps({"size": [HEIGHT, WIDTH], "counts": [0, HEIGHT * WIDTH]}), **size},
        ]
    )


def _bad(row, rng):
    x1, y1, x2, y2 = row["box"]
    size = {"width": WIDTH, "height": HEIGHT}
    edge = rng.choice([1e8, 1e300, -1e12, NAN, INF, True, "1", None, 10**400])
    runs = rng.choice([[1], [HEIGHT * WIDTH, 1], [-1, HEIGHT * WIDTH + 1], "PP", "o" * 9, [], [1e3], [NAN], None])
    return rng.choice(
        [
            {"image": rng.choice(["gone.png", "", None, 5, "a\0.png", "\ud83d", ["a.png"], {"path": "a.png"}])},
            {"box": [x1, y1, x2, rng.choice([NAN, INF, 1e9, 10**400, True, None, "x", [1]])]},
            {"box": rng.choice([[x2, y1, x1, y2], [x1, y1, x2], [*row["box"], 1], "left", {"x1": 1}, None, [0] * 4])},
            {"box": [x1 / 64, y1 / 48, x2 / 64, y2 / 48]},
            {"box": [x1, y1, x2 + WIDTH, y2]},
            {"no_target": rng.choice([True, 1, "yes", 2, "perhaps", [1]])},
            {"width": rng.choice([0, -64, 63, INF, True, "wide", [64], 10**400, 2**40])},
            {"mask": {"size": [HEIGHT, WIDTH], "counts": runs}},
            {
                "mask": {
                    "size": rng.choice([[WIDTH, HEIGHT], [0, 0], [-HEIGHT, -WIDTH], [True, 1], None]),
                    "counts": [1],
                }
            },
            {"mask": [[edge, 5, 30, 5, 30, 20]], **size},
            {"mask": [[10, 5, 30, 5, 30]], **size},
            {"mask": [[0, 0, 60, 40] * 30_000], **size},
            {"category": "\ud83d"},
        ]
    )


def _rows(count, rng, wild=True):
    """`count` rows with their truth: (row, kind, box)."""
    made = []
    for number in range(count):
        row = _template(number, rng)
        kind = rng.choice(["good", "good", "bad", "wild" if wild else "good"])
        change = {"good": _good, "bad": _bad}.get(kind, lambda row, rng: {rng.choice(FIELDS): rng.choice(JUNK)})
        made.append(({**row, **change(row, rng)}, kind, row["box"]))
    return made


FIELDS = ("image", "box", "boxes", "no_target", "width", "height", "mask", "category", "image_id", "ref_id", "sent_id")


def _jsonl(path, rng):
    rows, lines, kinds = _rows(ROWS_PER_FILE, rng), [], []
    for row, kind, _ in rows:
        line = json.dumps(row).encode()
        if rng.random() < 0.1:
            kind, line = "wild", _damaged(line, rng)
        if rng.random() < 0.01:
            kind, line = "bad", rng.choice([b"[" * 50_000, b'{"width": ' + b"9" * 5000 + b"}", b'"\xff"', b"[]", b"{"])
        lines.append(line)
        kinds.append(kind)
    path.write_bytes(b"\n".join(lines) + b"\n")
    return [(kind, box) for kind, (_, _, box) in zip(kinds, rows, strict=True)]


def _damaged(line, rng, extra=b"", kept=b""):
    """A line with a few bytes changed, put in or taken out; it stays one line that is not blank."""
    data = bytearray(line)
    for _ in range(rng.randrange(1, 4)):
        place = rng.randrange(len(data))
        byte = rng.choice([rng.randrange(256), *b'"{}[],:\\', *extra])
        data[place : place + (0 if data[place] in kept else rng.randrange(2))] = bytes([byte]) * rng.randrange(2)
    return bytes(data.replace(b"\n", b"").replace(b"\r", b"")) or b"x"


COLUMNS = ("image", "expression", "box", "no_target", "width", "height", "category", "ref_id")


def _table(path, rng):
    delimiter = "\t" if path.suffix == ".tsv" else ","
    truths, text = [], io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, lineterminator="\n")
    writer.writerow(COLUMNS)
    lines = [text.getvalue().encode()]
    for row, kind, box in _rows(ROWS_PER_FILE, rng):
        kind = "wild" if set(row) & {"mask", "boxes"} or not isinstance(row["image"], str) else kind
        cells = {**row, "box": " ".join(map(str, row["box"])) if isinstance(row["box"], list) else row["box"]}
        text.seek(text.truncate(0))
        try:
            writer.writerow([cells.get(column, "") for column in COLUMNS])
            line = text.getvalue().encode("utf-8", "surrogatepass").replace(b"\n", b"")
        except ValueError:  # a whole number that Python does not write
            kind, line = "bad", b"a.png" + delimiter.encode() + b"x" * 200_000
        if rng.random() < 0.1:
            kind, line = "wild", _damaged(line, rng, b'"' * 20, kept=delimiter.encode())
        lines.append(line + b"\n")
        truths.append((kind, box))
    path.write_bytes(b"".join(lines))
    return truths


def _coco(path, rng):
    images, notes, truths = [], [], []
    for number, (_, kind, (x1, y1, x2, y2)) in enumerate(_rows(ROWS_PER_FILE, rng, wild=False)):
        image = {"id": number, "file_name": "a.png", "width": WIDTH, "height": HEIGHT}
        note = {"id": number, "image_id": number, "bbox": [x1, y1, x2 - x1, y2 - y1], "expression": _words(number)}
        good = [{}, {"id": 0}, {"id": None}, {"image_id": str(number)}, {"ref_id": None}, {"segmentation": []}]
        bad = [
            *({"bbox": value} for value in (None, [], "left", [1, 2, 3], [1, 2, NAN, 4], [1, 2, 1e9, 4], [True] * 4)),
            *({"image_id": value} for value in (-1, None, True, [0], "x", 1e300)),
            *(
                {"segmentation": value}
                for value in ([[1e9] * 6], [[NAN] * 6], {"size": [9, 9], "counts": [81]}, "x", 5)
            ),
            *({"expression": value} for value in (None, "", " ", 5, "\ud83d", [], [None])),
            *({"no_target": True}, {"no_target": 7}),
        ]
        change = rng.choice(bad) if kind == "bad" else {**rng.choice(good)}
        if kind == "good" and rng.random() < 0.2:
            kind, change = "wild", {rng.choice(["id", "bbox", "image_id", "segmentation", "ref_id"]): rng.choice(JUNK)}
            if list(change) == ["ref_id"]:
                change = {"segmentation": change["ref_id"]}  # a ref_id would join it with others
        images.append(image)
        notes.append({**note, **change})
        truths.append((kind, [x1, y1, x2, y2]))
    path.write_text(json.dumps({"images": images, "annotations": notes}))
    return truths


def _parquet(path, rng):
    truths, columns = [], {name: [] for name in ("image", "expression", "box", "width", "no_target", "ref_id")}
    for number in range(ROWS_PER_FILE):
        row = _template(number, rng)
        kind = rng.choice(["good", "bad"])
        changes = {
            "good": [
                {},
                {"width": 64.0},
                {"no_target": NAN},
                {"no_target": 0.0 * 0},
                {"ref_id": NAN},
                {"ref_id": 3.0},
            ],
            "bad": [
                *({"box": value} for value in (None, [], [1.0, 2, 3], [1, 2, 3, NAN], [1, 2, 3, INF], [0.1] * 4)),
                *({"image": value} for value in (None, "", "gone.png", "a\0")),
                *({"width": value} for value in (INF, 63.0, 64.5, -1.0)),
            ],
        }
        row = {"width": None, "no_target": None, "ref_id": None, **row, **rng.choice(changes[kind])}
        for name, values in columns.items():
            value = row[name]
            values.append([float(edge) for edge in value] if name == "box" and value is not None else value)
        truths.append((kind, row["box"]))
    features = datasets.Features(
        {name: datasets.Value("float64") for name in ("width", "no_target", "ref_id")}
        | {name: datasets.Value("string") for name in ("image", "expression")}
        | {"box": datasets.List(datasets.Value("float64"))}
    )
    datasets.Dataset.from_dict(columns, features=features).to_parquet(path)
    return truths


WRITERS = {"jsonl": _jsonl, "csv": _table, "tsv": _table, "json": _coco, "parquet": _parquet}


def _check(path, truths, suffix):
    options = {} if suffix == "json" else {"box_format": "xyxy"}
    builder = open_source(str(path), "all", **options)
    rows, report = read_rows(builder, str(path))
    assert len(rows) + len(report.problems) == len(truths) == len(builder), "a row vanished"
    read = {row["expression"]: row for row in without_image_decoding(rows)}
    for number, (kind, box) in enumerate(truths):
        row = read.get(_words(number))
        assert kind == "wild" or (row is not None) == (kind == "good"), f"row {number} is {kind}, but {row}"
        assert kind != "good" or row["box"] == box, f"row {number}: {row['box']}, expected {box}"
        assert kind != "good" or os.path.normpath(row["image"]["path"]).endswith("a.png")
    for row in read.values():
        for x1, y1, x2, y2 in row["boxes"]:
            assert -2 <= x1 < x2 <= WIDTH + 2, row["boxes"]
            assert -2 <= y1 < y2 <= HEIGHT + 2, row["boxes"]
        assert row["mask"] is None or decode_mask(row["mask"]).shape == (HEIGHT, WIDTH)
    for problem in report.problems:
        assert len(str(problem).encode()) < 3000


def _read_many(folder, suffix, pipe):
    """In a process of its own, with a limit on memory: write, read and check file after file."""
    with open("/proc/self/statm") as file:
        limit = int(file.read().split()[0]) * resource.getpagesize() + MEMORY_LIMIT_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for start in range(0, ROWS, ROWS_PER_FILE):
        rng = random.Random(f"{SEED} {suffix} {start}")
        path = folder / f"rows{start}.{suffix}"
        try:
            _check(path, WRITERS[suffix](path, rng), suffix)
        except BaseException as error:
            pipe.send(f"{path.name}: {type(error).__name__}: {str(error)[:2000]}")
            return
        path.unlink()
    pipe.send("read")


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="limits memory as Linux does")
@pytest.mark.parametrize("suffix", WRITERS)
def test_spoiled_rows_are_read_right_or_named(tmp_path, make_image, suffix):
    make_image(tmp_path / "a.png", WIDTH, HEIGHT)
    (tmp_path / "sub").mkdir()
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=_read_many, args=(tmp_path, suffix, theirs))
    process.start()
    process.join()
    assert process.exitcode == 0, f"the reading process died with {process.exitcode}"
    assert ours.recv() == "read"
