"""Tables that tools and people spoil: quotes, encodings, huge cells, splits and names spelled in several ways."""

import json

import datasets
import pytest

from hivg_hf.data.loading import load_grounding_dataset
from hivg_hf.data.readers.tables import CsvRows
from hivg_hf.data.rows import BrokenRowsError

HEAD = "image,expression,x1,y1,x2,y2\n"


@pytest.fixture
def read(tmp_path, make_image):
    """Expressions of a table with this content; pictures a.png and b.png lie beside it."""
    for seed, name in enumerate(("a.png", "b.png")):
        make_image(tmp_path / name, 64, 48, seed)

    def load(content, split="all", name="rows.csv", **options):
        content = content.encode() if isinstance(content, str) else content
        (tmp_path / name).write_bytes(content)
        options = {"box_format": "xyxy", **options}
        return load_grounding_dataset(tmp_path / name, split, **options)["expression"][:]

    return load


def _lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def _row(**fields):
    return {"image": "a.png", "expression": "x", "box": [1, 2, 30, 40], **fields}


@pytest.mark.parametrize(
    ("spoiled", "message"),
    [
        ('a.png,"12 inch" disc,1,2,30,40', r"row 1: it is not CSV .* is a quote open, or not doubled\?"),
        ('a.png,"a disc,1,2,30,40', r"row 1: it is not CSV .*line 3 of the file"),
        ('a.png,"a disc,1,2,30,40"x', "row 1: it is not CSV"),
    ],
)
def test_a_stray_quote_costs_its_own_row_only(read, spoiled, message):
    rows = HEAD + f"a.png,first,1,2,30,40\n{spoiled}\n" + 'a.png,third,1,2,30,40\na.png,"the ""big"" one",1,2,30,40\n'
    with pytest.raises(BrokenRowsError, match=rf"1 of 4 rows .*\n.*{message}"):
        read(rows)
    assert read(rows, on_error="skip") == ["first", "third", 'the "big" one']


def test_two_stray_quotes_do_not_swallow_the_rows_between(read):
    rows = HEAD + 'a.png,"red,1,2,30,40\na.png,between,1,2,30,40\na.png,blue",1,2,30,40\na.png,last,1,2,30,40\n'
    with pytest.raises(BrokenRowsError, match=r"2 of 4 .*\n.*the start of another; is a quote missing\?"):
        read(rows)
    assert read(rows, on_error="skip") == ["between", "last"]


@pytest.mark.parametrize("opened", range(6))
@pytest.mark.parametrize("closed", range(6))
def test_quotes_in_any_two_cells_cost_two_rows_only(read, opened, closed):
    lines = [["a.png", f"row {number}", "1", "2", "30", "40"] for number in range(5)]
    lines[1][opened] = '"' + lines[1][opened]
    lines[3][closed] += '"'
    kept = read(HEAD + "".join(",".join(cells) + "\n" for cells in lines), on_error="skip")
    assert [words for words in kept if words not in ("row 1", "row 3")] == ["row 0", "row 2", "row 4"]
    assert set(kept) <= {f"row {number}" for number in range(5)}


def test_cells_may_run_over_lines(read):
    assert read(HEAD + 'a.png,"red,\nor blue",1,2,30,40\na.png,b,1,2,30,40\n') == ["red,\nor blue", "b"]
    assert read(HEAD + 'a.png,"red\n",1,2,30,40\na.png,"\n\r\n b\r",1,2,30,40\n') == ["red\n", "\n\r\n b\r"]
    last = 'image,x1,y1,x2,y2,expression\na.png,1,2,30,40,"red\nstar"\na.png,1,2,30,40,b\n'
    assert read(last) == ["red\nstar", "b"]


def test_a_cell_of_a_megabyte_is_one_row_that_cannot_be_used(read):
    rows = HEAD + f"a.png,first,1,2,30,40\na.png,{'x' * 1_000_000},1,2,30,40\na.png,third,1,2,30,40\n"
    with pytest.raises(BrokenRowsError, match=r"row 1: it is not CSV \(field larger than field limit") as caught:
        read(rows)
    assert len(str(caught.value)) < 1000
    assert read(rows, on_error="skip") == ["first", "third"]


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1"])
def test_bytes_of_another_encoding_are_refused_row_by_row(read, encoding):
    rows = (HEAD + "a.png,red,1,2,30,40\na.png,café sign,1,2,30,40\n").encode(encoding)
    with pytest.raises(BrokenRowsError, match=r"rows all: 1 of 2 .*\n  row 1: it is not UTF-8 text"):
        read(rows)
    assert read(rows, on_error="skip") == ["red"]


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
def test_unicode_text_with_a_mark_is_read(read, suffix, encoding):
    line = HEAD + "a.png,caf\xe9,1,2,30,40\n" if suffix == "csv" else _lines(_row(expression="caf\xe9"))
    assert read(line.encode(encoding), name=f"rows.{suffix}") == ["caf\xe9"]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_unicode_text_without_a_mark_is_named_with_the_option_that_reads_it(read, encoding):
    rows = (HEAD + "a.png,red,1,2,30,40\n").encode(encoding)
    with pytest.raises(ValueError, match=rf"rows\.csv is UTF-16 or UTF-32 text without .* say encoding='{encoding}'"):
        read(rows, on_error="skip")
    assert read(rows, encoding=encoding) == ["red"]


def test_another_encoding_is_read_when_it_is_said(read):
    rows = (HEAD + "a.png,red,1,2,30,40\na.png,caf\xe9 sign,1,2,30,40\n").encode("cp1252")
    with pytest.raises(BrokenRowsError, match=r"(?s)rows all: .* say encoding='cp1252' .*line 3 of the file"):
        read(rows)
    assert read(rows, encoding="cp1252") == ["red", "caf\xe9 sign"]
    with pytest.raises(ValueError, match="unknown encoding 'cp99999'"):
        read(rows, encoding="cp99999")
    with pytest.raises(ValueError, match=r"rows\.csv is not ascii text"):
        read(rows, encoding="ascii")


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv", "ROWS.CSV"])
def test_the_delimiter_is_what_divides_the_header(read, delimiter, name):
    rows = (HEAD + "a.png,red star,1,2,30,40\n").replace(",", delimiter)
    assert read(rows, name=name) == ["red star"]


def test_a_column_that_occurs_twice_is_refused(tmp_path):
    (tmp_path / "rows.csv").write_text("image,expression,expression\na,b,c\n")
    with pytest.raises(ValueError, match="has the column 'expression' twice"):
        CsvRows(tmp_path / "rows.csv")


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("said", ["sep={}", "SEP={}", '"sep={}"'])
def test_a_first_line_that_says_what_divides_cells_is_obeyed(delimiter, said, tmp_path, read):
    rows = HEAD.replace(",", delimiter) + delimiter.join(("a.png", "a, b; c", "1", "2", "30", "40")) + "\n"
    if delimiter in ",;":
        rows = rows.replace("a, b; c", '"a, b; c"')
    assert read(said.format(delimiter) + "\r\n" + rows) == ["a, b; c"]
    assert CsvRows(tmp_path / "rows.csv").lines == [3]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (json.dumps(_row(expression="\ud83d star")), "its expression .* holds half a character"),
        (json.dumps(_row(category="\udc00")), "its category .* holds half a character"),
        (json.dumps(_row(image="a\0.png")), r"its image 'a\\x00.png' is not a file name"),
        (json.dumps(_row(image="\ud83d.png")), "is not a file name"),
        (json.dumps(_row(image="x" * 3000)), "the image file "),
        (json.dumps(_row(image=5)), "its image is 5, expected a file name"),
        (json.dumps(_row(image={"path": "a.png"})), "expected a file name"),
        (json.dumps(_row(width=float("inf"))), "its width is inf, expected a whole number of pixels"),
        (json.dumps(_row(width=True)), "its width is True, expected a whole number"),
        (json.dumps(_row(width=64.5)), "its width is 64.5, expected"),
        (json.dumps(_row(height=0)), "its height is 0, expected"),
        (json.dumps(_row(height=-48)), "its height is -48, expected"),
        (json.dumps(_row(width=10**400)), "its width is 1000.*, expected"),
        ('{"image": "a.png", "width": 1' + "0" * 5000 + "}", "line is not JSON"),
        ("[" * 100_000, r"line is not JSON \(it is nested too deeply\)"),
        ('{"image": "a.png", "image": "b.png"}', r"line is not JSON \(the key 'image' stands twice in one object\)"),
        (json.dumps(_row(box="1_0 2 30 40")), "box '1_0 2 30 40' is not four numbers"),
        (json.dumps(_row(width="6_4")), "its width is '6_4', expected a whole number"),
        ('{"image": "a.png", "expression": "caf\xe9"}'.encode("latin-1"), "line is not UTF-8 text"),
        (json.dumps(_row(box=[True, 2, 30, 40])), r"box \[True, 2, 30, 40\] is not four numbers"),
        (json.dumps(_row(box=[10**400, 2, 30, 40])), "is not four numbers"),
        (json.dumps(_row(box=[1, 2, 1e300, 40])), "reaches 1e.300 pixels out of its image"),
        (json.dumps(_row(box={"x1": 1, "y1": 2, "x2": 3, "y2": 4})), "is not four numbers"),
        (json.dumps(_row(box=[[1, 2, 3, 4]])), "is not four numbers"),
        (json.dumps(_row(box=None)), "it has no box and no no_target"),
        (json.dumps(_row(no_target=2)), "no_target is 2, expected true or false"),
        (json.dumps(_row(mask={"size": [10, 10], "counts": [100]})), "its mask is 10 x 10, its image 64 x 48"),
    ],
)
def test_a_row_that_cannot_be_is_named_and_the_others_are_read(read, line, message):
    good = _lines(_row()).encode()
    content = good + (line if isinstance(line, bytes) else line.encode()) + b"\n" + good
    with pytest.raises(BrokenRowsError, match=rf"1 of 3 rows .*\n.*(row|sent_id) 1: .*({message})") as caught:
        read(content, name="rows.jsonl")
    assert len(str(caught.value)) < 6_000
    assert str(caught.value).encode()
    assert read(content, name="rows.jsonl", on_error="skip") == ["x", "x"]


NORMALIZED = {
    "xyxy": ([0.1, 0.2, 0.5, 0.6], "'xyxy_normalized'"),
    "xywh": ([0.1, 0.2, 0.5, 0.6], "'xywh_normalized'"),
    "cxcywh": ([0.5, 0.5, 0.5, 0.6], "'cxcywh_normalized'"),
}


@pytest.mark.parametrize("box_format", NORMALIZED)
def test_shares_of_the_image_are_not_read_as_pixels(read, box_format):
    box, likely = NORMALIZED[box_format]
    rows = _lines(*[_row(box=box)] * 3)
    with pytest.raises(BrokenRowsError, match=f"3 of 3 .*\n.*first pixel of its image of 64 x 48.*={likely}"):
        read(rows, name="rows.jsonl", box_format=box_format)
    assert len(read(rows, name="rows.jsonl", box_format=f"{box_format}_normalized")) == 3


def test_corners_that_cannot_be_are_likely_a_normalized_width(read):
    with pytest.raises(BrokenRowsError, match="is it box_format='xywh_normalized' or 'cxcywh_normalized'"):
        read(_lines(_row(box=[0.5, 0.5, 0.2, 0.2])), name="rows.jsonl")


def test_a_box_of_one_pixel_in_a_tiny_picture_is_pixels(read, tmp_path, make_image):
    make_image(tmp_path / "tiny.png", 2, 2)
    assert read(_lines(_row(image="tiny.png", box=[0, 0, 1, 1])), name="rows.jsonl") == ["x"]


SPELLINGS = ("a.png", "./a.png", "sub/../a.png", ".\\a.png", "sub\\..\\a.png", " a.png ", ".//a.png")


@pytest.mark.parametrize("holdout", [0.1, 0.5, 0.9])
def test_one_picture_is_on_one_side_however_it_is_spelled(read, tmp_path, make_image, holdout):
    (tmp_path / "sub").mkdir()
    names = [*SPELLINGS, str(tmp_path / "a.png")]
    rows = _lines(*[_row(image=name, expression=f"a{i}") for i, name in enumerate(names)], _row(image="b.png"))
    sides = [set(read(rows, side, name="rows.jsonl", holdout=holdout)) for side in ("train", "val")]
    spelled = {f"a{i}" for i in range(len(names))}
    assert spelled in sides
    assert {"x"} in sides
    loaded = load_grounding_dataset(tmp_path / "rows.jsonl", "all", box_format="xyxy")
    assert set(loaded["image_id"]) == {"a.png", "b.png"}


@pytest.mark.parametrize("blank", ["", " ", None])
def test_a_row_with_a_blank_split_is_reported_by_every_split(read, blank):
    rows = [_row(split="train", expression="t"), _row(split="val", expression="v"), _row(split=blank)]
    for split in ("train", "val"):
        with pytest.raises(BrokenRowsError, match=r"1 of 2 rows .*\n  row 2: its split is blank, while other rows"):
            read(_lines(*rows), split, name="rows.jsonl")
        assert read(_lines(*rows), split, name="rows.jsonl", on_error="skip") == [split[0]]


def test_a_split_column_that_is_all_blank_is_as_good_as_none(read):
    rows = _lines(_row(split=""), _row(split="", image="b.png", expression="y"))
    assert read(rows, name="rows.jsonl") == ["x", "y"]
    sides = [read(rows, side, name="rows.jsonl", holdout=0.5) for side in ("train", "val")]
    assert sorted(sides) == [["x"], ["y"]]


def test_splits_that_differ_in_case_only_are_refused(read):
    rows = _lines(_row(split="train"), _row(split="Train"))
    with pytest.raises(ValueError, match=r"rows\.jsonl: the splits 'Train' and 'train' differ in case only"):
        read(rows, "train", name="rows.jsonl")


def test_missing_ids_of_a_parquet_file_stay_apart(tmp_path, make_image):
    make_image(tmp_path / "a.png", 64, 48)
    nan = float("nan")
    rows = {"image": ["a.png"] * 2, "expression": ["x", "y"], "box": [[1.0, 2, 30, 40]] * 2, "ref_id": [nan, nan]}
    datasets.Dataset.from_dict({**rows, "no_target": [nan, nan]}).to_parquet(tmp_path / "rows.parquet")
    loaded = load_grounding_dataset(tmp_path / "rows.parquet", "all", box_format="xyxy")
    assert (loaded["ref_id"][:], loaded["no_target"][:]) == (["0", "1"], [False, False])


def test_a_file_that_is_not_parquet_is_named(tmp_path):
    for content in (b"", bytes(range(200)), b"PAR1" + bytes(100) + b"PAR1"):
        (tmp_path / "rows.parquet").write_bytes(content)
        with pytest.raises(ValueError, match=r"rows\.parquet is damaged, or not a Parquet file \("):
            load_grounding_dataset(tmp_path / "rows.parquet", "all", box_format="xyxy")
