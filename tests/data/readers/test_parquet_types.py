"""Parquet columns of types that tools write and nobody expects: each is read right, or refused with file and row."""

import datetime
import io
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hivg_hf.data.loading import load_grounding_dataset
from hivg_hf.data.rows import BrokenRowsError

BOXES = [[1, 2, 30, 40], [3, 4, 20, 30], [5, 6, 60, 44]]
NAMES, WORDS = ["a.png", "b.png", "c.png"], ["red", "blue", "green"]
DAY = datetime.datetime(2020, 1, 2, 3, 4, 5)


def _png(shade):
    file = io.BytesIO()
    Image.new("RGB", (64, 48), (shade, shade, shade)).save(file, "PNG")
    return file.getvalue()


PICTURES = [_png(shade) for shade in (0, 40, 80)]


def lists(convert, kind=None):
    return pa.array([[convert(edge) for edge in box] for box in BOXES], kind)


def structs(*fields, boxes=BOXES):
    return pa.array([dict(zip(fields, box, strict=True)) for box in boxes])


def columns_of_corners(convert, kind=None):
    return {
        name: pa.array([convert(box[place]) for box in BOXES], kind)
        for place, name in enumerate(("x1", "y1", "x2", "y2"))
    }


def encoded(values):
    return pa.array(values).dictionary_encode()


READ = {
    "decimal": {"box": lists(Decimal, pa.list_(pa.decimal128(10, 2)))},
    "uint8": {"box": lists(int, pa.list_(pa.uint8()))},
    "int8": {"box": lists(int, pa.list_(pa.int8()))},
    "float16": {"box": lists(np.float16, pa.list_(pa.float16()))},
    "fixed size": {"box": lists(int, pa.list_(pa.uint8(), 4))},
    "large list": {"box": lists(float, pa.large_list(pa.float64()))},
    "numbers as text": {"box": lists(str)},
    "text": {"box": pa.array([" ".join(map(str, box)) for box in BOXES], pa.large_string())},
    "encoded text": {"box": encoded([str(box) for box in BOXES])},
    "list of fixed size": {"boxes": pa.array([[box] for box in BOXES], pa.list_(pa.list_(pa.float32(), 4)))},
    "columns of decimals": columns_of_corners(Decimal),
    "columns of uint8": columns_of_corners(int, pa.uint8()),
    "columns of float16": columns_of_corners(np.float16),
    "columns of encoded text": {name: column.dictionary_encode() for name, column in columns_of_corners(str).items()},
    "large text": {"expression": pa.array(WORDS, pa.large_string())},
    "text view": {"expression": pa.array(WORDS, pa.string_view())},
    "encoded expression": {"expression": encoded(WORDS)},
    "encoded image": {"image": encoded(NAMES)},
    "large binary image": {"image": pa.array(PICTURES, pa.large_binary())},
    "struct of a large binary image": {"image": pa.array([{"bytes": one, "path": None} for one in PICTURES])},
    "decimal sides": {"width": pa.array([Decimal(64)] * 3), "height": pa.array([Decimal(48)] * 3)},
    "float16 sides": {"width": pa.array([np.float16(64)] * 3), "height": pa.array([48] * 3, pa.uint8())},
}
REFUSED = {
    "bool": ({"box": lists(bool)}, r"row 0.*box \[True, True, True, True\] is not four numbers"),
    "timestamps": ({"box": pa.array([[DAY] * 4] * 3)}, r"row 0.*box \[datetime.* is not four numbers"),
    "durations": ({"box": lists(int, pa.list_(pa.duration("s")))}, r"row 0.*timedelta.* is not four numbers"),
    "null in a list": (
        {"box": pa.array([BOXES[0], [3, 4, None, 30], BOXES[2]])},
        r"1 of 3 .*\n.*row 1.*\[3, 4, None, 30\]",
    ),
    "null box": (
        {"box": pa.array([BOXES[0], None, BOXES[2]])},
        r"1 of 3 .*\n.*it has no box and no no_target.*row 1 of",
    ),
    "null among boxes": (
        {"boxes": pa.array([[BOXES[0]], [BOXES[1], None], [BOXES[2]]])},
        r"1 of 3 .*\n.*row 1.*box None is not four numbers",
    ),
    "struct": (
        {"box": structs("y2", "x1", "x2", "y1")},
        r"row 0.*box \{.*'x1'.*\} is not four numbers; write its values as a list, or as four columns",
    ),
    "list of structs": (
        {"boxes": pa.array([[dict(zip("xywh", box, strict=True))] for box in BOXES])},
        r"row 0.*box \{.*'w': 30.*\} is not four numbers; write",
    ),
    "null struct": (
        {"box": pa.array([dict(zip("xywh", BOXES[0], strict=True)), None, None])},
        r"2 box.*row 0.*box \{.*'w': 30.*\} is not four numbers; write",
    ),
    "numbers in bytes": (
        {"box": pa.array([bytes(box) for box in BOXES])},
        r"row 0.*box <4 bytes> is not four numbers",
    ),
    "columns of bools": (columns_of_corners(bool), r"row 0.*\[True, True, True, True\] is not four numbers"),
    "columns of timestamps": (columns_of_corners(int, pa.timestamp("s")), r"row 0.*datetime.* is not four numbers"),
    "a null in columns": (
        {**columns_of_corners(int), "x2": pa.array([30, None, 60])},
        r"1 of 3 .*\n.*row 1.*box \[3, 4, None, 30\] is not four numbers",
    ),
    "binary expression": (
        {"expression": pa.array([b"red"] * 3)},
        r"its expression is <3 bytes>, expected text .row 0 of",
    ),
    "encoded null expression": (
        {"expression": encoded(["red", None, "green"])},
        r"1 of 3 .*\n.*its expression is None.*row 1",
    ),
    "numbers as expressions": ({"expression": pa.array([1, 2, 3])}, r"its expression is 1, expected text .row 0 of"),
    "picture as numbers": (
        {"image": pa.array([list(one) for one in PICTURES], pa.list_(pa.uint8()))},
        r"row 0.*its image is \[137",
    ),
    "null picture": ({"image": pa.array([PICTURES[0], None, PICTURES[2]])}, r"1 of 3 .*\n.*row 1.*it names no image"),
    "timestamp sides": (
        {"width": pa.array([DAY] * 3)},
        r"row 0.*its width is datetime.*expected a whole number of pixels",
    ),
    "map": (
        {"box": pa.array([[("x1", 1)]] * 3, pa.map_(pa.string(), pa.int64()))},
        r"'box', map<.* is not read|row 0.*is not four",
    ),
}
IDS = {
    "timestamps": (pa.array([1, 2, 3], pa.timestamp("ns")), "1970-01-01 00:00:00.000000002"),
    "dates": (pa.array([datetime.date(2020, 1, day) for day in (1, 2, 3)]), "2020-01-02"),
    "decimals": (pa.array([Decimal("1.50"), Decimal("2.00"), Decimal(3)]), "2.00"),
    "large numbers": (pa.array([2**63 + number for number in (1, 2, 3)], pa.uint64()), str(2**63 + 2)),
    "encoded": (encoded(["x", "y", "z"]), "y"),
    "text in bytes": (pa.array([b"x", b"y", b"z"]), "y"),
    "UUIDs": (pa.array([bytes([200 + number] * 16) for number in (1, 2, 3)], pa.binary(16)), "ca" * 16),
}


@pytest.fixture
def folder(tmp_path):
    for name, picture in zip(NAMES, PICTURES, strict=True):
        (tmp_path / name).write_bytes(picture)
    return tmp_path


@pytest.fixture(params=["rows-0.parquet", "rows-*.parquet"])
def read(request, folder):
    """Rows of a table with some columns changed, read as one file and as shards."""
    return lambda **columns: load(folder, request.param, columns)


def load(folder, source, *tables):
    for number, changed in enumerate(tables):
        table = {"image": pa.array(NAMES), "expression": pa.array(WORDS), **changed}
        box = {} if {"box", "boxes", "x1"} & set(changed) else {"box": pa.array(BOXES)}
        pq.write_table(pa.table({**table, **box}), folder / f"rows-{number}.parquet")
    return load_grounding_dataset(str(folder / source), "all", box_format="xyxy", images=folder)


@pytest.mark.parametrize("name", READ)
def test_a_type_that_says_the_same_is_read(name, read):
    rows = read(**READ[name])
    assert rows["expression"][:] == WORDS
    assert rows["boxes"][:] == [[box] for box in BOXES]
    assert [np.asarray(image)[0, 0, 0] for image in rows["image"]] == [0, 40, 80]
    assert (rows["width"][:], rows["height"][:]) == ([64] * 3, [48] * 3)


@pytest.mark.parametrize("name", REFUSED)
def test_a_type_that_says_something_else_is_refused_with_its_row(name, read):
    columns, message = REFUSED[name]
    with pytest.raises(ValueError, match=rf"(?s)rows.*{message}"):
        read(**columns)


@pytest.mark.parametrize("name", IDS)
def test_ids_are_told_apart_whatever_their_type(name, read):
    column, second = IDS[name]
    ids = read(sent_id=column, ref_id=column)["sent_id"][:]
    assert (ids[1], len(set(ids))) == (second, 3)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"box": lists(int)}, {"box": lists(lambda edge: edge + 0.25)}),
        ({"box": lists(np.float16)}, {"box": lists(lambda edge: edge + 0.01)}),
        ({"box": lists(int, pa.list_(pa.int8()))}, {"box": lists(float, pa.list_(pa.float32(), 4))}),
        ({"box": lists(Decimal)}, {"box": lists(lambda edge: Decimal(edge) + Decimal("0.25"))}),
        ({"expression": pa.array(WORDS, pa.large_string())}, {"expression": encoded(WORDS)}),
        ({"sent_id": pa.array([1, 2, 3])}, {"sent_id": pa.array(["01", "02", "03"])}),
        ({"category": pa.array([None] * 3, pa.null())}, {"category": pa.array(["x", "y", "z"])}),
    ],
)
def test_files_of_one_table_may_differ_in_the_type_of_a_column(first, second, folder):
    """None is cut to what another file holds."""
    alone = [row for table in (first, second) for row in load(folder, "rows-0.parquet", table)]
    names = ("expression", "boxes", "category", *(["sent_id"] if "sent_id" in first else []))
    expected = [[row[name] for name in names] for row in alone]
    for tables, rows in ([first, second], expected), ([second, first], expected[3:] + expected[:3]):
        assert [[row[name] for name in names] for row in load(folder, "rows-*.parquet", *tables)] == rows


def test_a_row_of_another_file_is_not_blamed(folder):
    tables = {"box": lists(int, pa.list_(pa.uint8(), 4))}, {"box": pa.array([box[:3] for box in BOXES])}
    with pytest.raises(BrokenRowsError, match=r"3 of 6 rows .*\n  row 0 of rows-1\.parquet: box \[1, 2, 30\] is not"):
        load(folder, "rows-*.parquet", *tables)


def test_types_that_have_nothing_in_common_are_refused_before_a_row_is_read(folder):
    tables = {"box": lists(int)}, {"box": structs("x1", "y1", "x2", "y2")}
    with pytest.raises(
        ValueError, match=r"rows-1.parquet: its column 'box' is struct<.*>, in other files list<.*one type"
    ):
        load(folder, "rows-*.parquet", *tables)
