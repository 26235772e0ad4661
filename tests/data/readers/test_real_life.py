"""Tables as people really have them: names of columns and files, numbers as text, formats that are not said."""

import gzip
import json
import logging
import unicodedata

import datasets
import numpy as np
import pytest
from PIL import Image

from hivg_hf.data.loading import load_grounding_dataset
from hivg_hf.data.readers.common import need_file
from hivg_hf.data.rows import BrokenRowsError

HEAD = "image,expression,x1,y1,x2,y2\n"


@pytest.fixture
def folder(tmp_path, make_image):
    make_image(tmp_path / "a.png", 400, 300)
    return tmp_path


def _csv(folder, text, name="rows.csv"):
    (folder / name).write_text(text, encoding="utf-8", newline="")
    return folder / name


@pytest.mark.parametrize(
    "header",
    [
        "filename,caption,xmin,ymin,xmax,ymax",
        "File_Name,Text,X1,Y1,X2,Y2",
        "IMAGE_PATH,Referring Expression,x_min,y_min,x_max,y_max",
        "img,phrase,x1,y1,x2,y2",
        "path,class,xmin,ymin,xmax,ymax",
    ],
)
def test_columns_are_understood_as_people_name_them(folder, header):
    path = _csv(folder, f"{header}\na.png,red star,1,2,30,40\n")
    (row,) = load_grounding_dataset(path, "all", box_format="xyxy")
    assert (row["expression"], row["box"]) == ("red star", [1, 2, 30, 40])


def test_a_column_that_may_be_two_things_is_asked_about(folder):
    path = _csv(folder, "image,caption,text,bbox\na.png,x,red star,1 2 30 40\n")
    with pytest.raises(
        ValueError, match=r"'caption', 'text' may all be its expression; .*columns={'expression': 'caption'}"
    ):
        load_grounding_dataset(path, "all", box_format="xyxy")
    (row,) = load_grounding_dataset(path, "all", box_format="xyxy", columns={"expression": "text"})
    assert row["expression"] == "red star"
    with pytest.raises(ValueError, match="columns= renames phrase; expected some of"):
        load_grounding_dataset(path, "all", box_format="xyxy", columns={"phrase": "text"})


def test_floats_as_text_and_what_pandas_makes_of_numbers(folder):
    head = "image,expression,x1,y1,x2,y2,no_target,width,height\n"
    rows = "a.png,red,1.0,2.50,30.,4e1,0.0,400.0,300.0\na.png,none of it,nan,NaN,,,1.0,NaN,\na.png,b,1,2,30,40,nan,,\n"
    read = load_grounding_dataset(_csv(folder, head + rows), "all", box_format="xyxy")
    assert read["box"][:] == [[1, 2.5, 30, 40], None, [1, 2, 30, 40]]
    assert read["no_target"][:] == [False, True, False]


def test_a_missing_box_of_a_parquet_table_is_no_box(folder):
    nan = float("nan")
    columns = {"image": ["a.png"] * 2, "expression": ["x", "y"], "no_target": [0.0, 1.0]}
    corners = {name: [value, nan] for name, value in zip(("x1", "y1", "x2", "y2"), (1.0, 2, 30, 40), strict=True)}
    datasets.Dataset.from_dict({**columns, **corners}).to_parquet(folder / "rows.parquet")
    read = load_grounding_dataset(folder / "rows.parquet", "all", box_format="xyxy")
    assert read["box"][:] == [[1, 2, 30, 40], None]


def test_a_table_with_its_pictures_inside_is_read(folder):
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "caption": datasets.Value("string"),
            "bbox": datasets.List(datasets.Value("float32")),
        }
    )
    picture = {"path": None, "bytes": (folder / "a.png").read_bytes()}
    rows = {"image": [picture], "caption": ["red star"], "bbox": [[1.0, 2, 30, 40]]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / "rows.parquet")
    (row,) = load_grounding_dataset(folder / "rows.parquet", "all", box_format="xyxy")
    assert (row["image"].size, row["box"]) == ((400, 300), [1, 2, 30, 40])


@pytest.mark.parametrize(("stored", "written"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_name_with_accents_is_found_in_either_spelling(folder, stored, written):
    (folder / "a.png").rename(folder / unicodedata.normalize(stored, "caf\xe9.png"))
    path = _csv(folder, HEAD + unicodedata.normalize(written, "caf\xe9.png") + ",x,1,2,30,40\n")
    assert len(load_grounding_dataset(path, "all", box_format="xyxy")) == 1


@pytest.mark.parametrize(
    ("place", "written", "hint"),
    [
        ("sub/b.png", "b.png", r"; it is in .*sub: say images='.*sub', or put the folder into the name"),
        ("B.PNG", "b.png", r"; there is .*B\.PNG: names must agree in case and suffix"),
        ("b.jpg", "b.png", r"; there is .*b\.jpg: names must agree in case and suffix"),
        ("b.png", "photos/b.png", r"; there is no folder photos in |; there is .*b\.png"),
        ("c.png", "photos/b.png", "; there is no folder photos in "),
    ],
)
def test_a_missing_picture_is_named_with_where_it_may_be(folder, make_image, place, written, hint):
    make_image(folder / place)
    path = _csv(folder, HEAD + f"{written},x,1,2,30,40\n")
    with pytest.raises(BrokenRowsError, match=rf"image file not found: .*{hint}.* \(line 2 of rows\.csv\)"):
        load_grounding_dataset(path, "all", box_format="xyxy")


def test_a_table_beside_a_folder_of_pictures_names_that_folder(folder, make_image, monkeypatch):
    make_image(folder / "sub" / "b.png")
    _csv(folder, HEAD + "b.png,x,1,2,30,40\n")
    monkeypatch.chdir(folder)
    with pytest.raises(BrokenRowsError, match=r"not found: b\.png; it is in sub: say images='sub', or put the folder"):
        load_grounding_dataset("rows.csv", "all", box_format="xyxy")
    monkeypatch.chdir(folder.parent)
    with pytest.raises(BrokenRowsError, match=rf"it is in {folder.name}/sub: say images='{folder.name}/sub', or"):
        load_grounding_dataset(f"{folder.name}/rows.csv", "all", box_format="xyxy")


def test_names_of_windows_are_paths(folder, make_image):
    make_image(folder / "sub" / "b.PNG", 64, 48)
    path = _csv(folder, HEAD + "sub\\b.PNG,x,1,2,30,40\n")
    assert load_grounding_dataset(path, "all", box_format="xyxy")["image_id"][:] == ["sub/b.PNG"]


def test_row_numbers_are_those_of_the_file(folder):
    path = _csv(folder, HEAD + 'a.png,"two\nlines",1,2,30,40\n\na.png,x,30,2,1,40\n')
    with pytest.raises(BrokenRowsError, match=r"has no area.*\(line 5 of rows\.csv\)"):
        load_grounding_dataset(path, "all", box_format="xyxy")
    line = json.dumps({"image": "a.png", "expression": "x", "box": [30, 2, 1, 40]})
    (folder / "rows.jsonl").write_text(f"\n\n{line}\n")
    with pytest.raises(BrokenRowsError, match=r"has no area.*\(line 3 of rows\.jsonl\)"):
        load_grounding_dataset(folder / "rows.jsonl", "all", box_format="xyxy")


def _boxes(box_format, count=30, width=400, height=300):
    """Numbers of random boxes as a format writes them."""
    rng = np.random.default_rng(1)
    corner = rng.uniform(0, 0.6, (count, 2))
    size = rng.uniform(0.1, 0.38, (count, 2))
    layout, _, unit = box_format.partition("_")
    first = corner + size / 2 if layout == "cxcywh" else corner
    second = corner + size if layout == "xyxy" else size
    full = {"": np.array([width, height]), "normalized": 1, "100": 100, "1000": 1000}[unit]
    return np.concatenate([first * full, second * full], axis=1).round(4).tolist()


@pytest.mark.parametrize(
    ("written", "claimed"),
    [
        ("xywh", "xyxy"),
        ("cxcywh", "xyxy"),
        ("xyxy", "xywh"),
        ("xyxy_1000", "xyxy"),
        ("xyxy_100", "xyxy"),
        ("xywh_100", "xywh"),
        ("xyxy_1000", "xyxy_100"),
        ("xyxy_normalized", "xyxy"),
        ("cxcywh_normalized", "xywh_normalized"),
    ],
)
def test_a_wrong_box_format_is_refused_with_the_one_that_fits(folder, written, claimed):
    rows = [{"image": "a.png", "expression": f"x{n}", "box": box} for n, box in enumerate(_boxes(written))]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if (written, claimed) == ("cxcywh_normalized", "xywh_normalized"):
        # Both are possible for most boxes: rows that stick out are named, nothing is guessed.
        with pytest.raises(ValueError, match=r"rows\.jsonl|reaches .* out of its image"):
            load_grounding_dataset(folder / "rows.jsonl", "all", box_format=claimed)
        return
    with pytest.raises(ValueError, match=rf"rows\.jsonl: .*say box_format='{written}'"):
        load_grounding_dataset(folder / "rows.jsonl", "all", box_format=claimed)
    read = load_grounding_dataset(folder / "rows.jsonl", "all", box_format=written)
    assert len(read) == 30


def test_what_was_not_said_is_answered_with_what_fits(folder):
    rows = [{"image": "a.png", "expression": f"x{n}", "box": box} for n, box in enumerate(_boxes("xyxy_1000"))]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(
        ValueError, match=r"say what its boxes mean with box_format=.*; the 30 boxes .* be xyxy_1000\."
    ):
        load_grounding_dataset(folder / "rows.jsonl", "all")


def test_small_boxes_in_the_corner_are_believed_when_it_is_said(folder):
    rows = [{"image": "a.png", "expression": f"x{n}", "box": box} for n, box in enumerate(_boxes("xyxy_100"))]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(load_grounding_dataset(folder / "rows.jsonl", "all", box_format="xyxy", check_format=False)) == 30


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ("-30,2,30,40", "reaches 30 pixels out of its image"),
        ("30,40,1,2", "has no area"),
        ("1,2,1,40", "has no area"),
        ("1,2,430,40", "reaches 30 pixels out of its image"),
        ("1,2,inf,40", "is not finite"),
        ("1,2,x,40", "is not four numbers"),
        ("1,2,,40", "is not four numbers"),
    ],
)
def test_boxes_that_cannot_be_are_named_and_skipped(folder, box, message, caplog):
    path = _csv(folder, HEAD + f"a.png,bad,{box}\na.png,good,1,2,30,40\n")
    with pytest.raises(BrokenRowsError, match=message):
        load_grounding_dataset(path, "all", box_format="xyxy")
    assert load_grounding_dataset(path, "all", box_format="xyxy", on_error="skip")["expression"][:] == ["good"]
    assert "left out 1 of 2 rows" in caplog.text


def test_repeated_rows_and_one_expression_for_two_boxes_are_reported(folder, caplog):
    rows = "a.png,dog,1,2,30,40\na.png,dog,1,2,30,40\na.png,Cat,1,2,30,40\na.png,cat ,50,60,90,99\n"
    path = _csv(folder, HEAD + rows)
    with caplog.at_level(logging.WARNING):
        assert len(load_grounding_dataset(path, "all", box_format="xyxy")) == 4
    assert "1 rows repeat an earlier one" in caplog.text
    assert "1 expressions name different boxes of one image in rows of their own" in caplog.text
    together = load_grounding_dataset(path, "all", box_format="xyxy", several="together", multi_target="union")
    assert together["expression"][:] == ["dog", "Cat", "cat "]


def test_copies_of_a_picture_stay_on_one_side(folder, make_image):
    """Saved again, scaled and renamed, a picture is the same; moved objects make another."""
    for number in range(12):
        make_image(folder / f"p{number}.png", 96, 80, seed=number)
        picture = Image.open(folder / f"p{number}.png").resize((24, 20)).resize((192, 160), Image.Resampling.BICUBIC)
        picture.save(folder / f"p{number}.png")
        picture.save(folder / f"copy{number}.jpg", quality=90)
        picture.resize((144, 120)).save(folder / f"small{number}.webp")
    names = [path.name for path in sorted(folder.iterdir()) if path.suffix in (".png", ".jpg", ".webp")]
    path = _csv(folder, HEAD + "".join(f"{name},x,1,2,30,40\n" for name in names))
    sides = [load_grounding_dataset(path, side, box_format="xyxy", holdout=0.3) for side in ("train", "val")]
    stems = [{name.split(".")[0].strip("copysmal") for name in side["image_id"]} for side in sides]
    assert len(sides[0]) + len(sides[1]) == len(names)
    assert len(sides[1]) >= 6
    assert not stems[0] & stems[1]


def test_a_coco_file_without_splits_is_held_out_like_a_table(folder, make_image):
    images, notes = [], []
    for number in range(8):
        make_image(folder / f"p{number}.png", 64, 48, seed=number)
        images.append({"id": number, "file_name": f"p{number}.png", "width": 64, "height": 48})
        notes.append({"id": number, "image_id": number, "bbox": [1, 2, 9, 9], "expression": f"it {number}"})
    (folder / "rows.json").write_text(json.dumps({"images": images, "annotations": notes}))
    sides = [load_grounding_dataset(folder / "rows.json", side, holdout=0.25) for side in ("train", "val")]
    assert sorted(sides[0]["expression"][:] + sides[1]["expression"][:]) == [f"it {n}" for n in range(8)]
    assert (len(sides[0]), len(sides[1])) == (6, 2)


COMMAS = {
    "four columns": ("image;expression;x1;y1;x2;y2\n", "a.png;red;0,25;0,5;0,75;1\n"),
    "one column, semicolons": ("image\texpression\tbox\n", "a.png\tred\t0,25;0,5;0,75;1\n"),
    "one column, quoted": ("image;expression;box\n", 'a.png;red;"0,25;0,5;0,75;1,0"\n'),
    "one column, spaces": ("image;expression;box\n", "a.png;red;[0,25 0,5 0,75 1]\n"),
    "one column, commas and spaces": ("image;expression;box\n", "a.png;red;0,25, 0,5, 0,75, 1\n"),
    "quoted in a comma file": ("image,expression,x1,y1,x2,y2\n", 'a.png,red,"0,25","0,5","0,75",1\n'),
    "sides too": ("image;expression;box;width;height\n", "a.png;red;0,25 0,5 0,75 1,;400,0;300,00\n"),
}


@pytest.mark.parametrize("written", COMMAS)
def test_decimal_commas_are_read_when_it_is_said_and_refused_otherwise(folder, written):
    head, row = COMMAS[written]
    path = _csv(folder, head + row, "rows.tsv" if "\t" in head else "rows.csv")
    with pytest.raises(BrokenRowsError, match=r"if its commas are decimal ones, say decimal_comma=True") as caught:
        load_grounding_dataset(path, "all", box_format="xyxy_normalized")
    assert f"line 2 of {path.name}" in str(caught.value)
    (read,) = load_grounding_dataset(path, "all", box_format="xyxy_normalized", decimal_comma=True)
    assert read["box"] == [100, 150, 300, 300]
    (read,) = load_grounding_dataset(f"{path.parent}/row[s]{path.suffix}", "all", box_format="xyxy_normalized",
                                     decimal_comma=True)  # fmt: skip
    assert read["box"] == [100, 150, 300, 300]


@pytest.mark.parametrize(
    "cell", ["1.234,5 2 3 4", "0.5 0,2 0,8 0,9", "1,2,3,4", "1,000,000 2 3 4", "1,5 2,5 3,5", "x 1 2 3"]
)
def test_what_is_not_decimal_commas_is_refused_though_they_were_said(folder, cell):
    path = _csv(folder, f"image;expression;box\na.png;red;{cell}\n")
    with pytest.raises(BrokenRowsError, match=r"is not numbers with decimal commas|is not four numbers"):
        load_grounding_dataset(path, "all", box_format="xyxy", decimal_comma=True)


def test_decimal_commas_are_no_advice_where_they_would_not_help(folder):
    path = _csv(folder, "image;expression;box\na.png;red, small;left 2 3 4\n")
    with pytest.raises(BrokenRowsError, match="is not four numbers") as caught:
        load_grounding_dataset(path, "all", box_format="xyxy")
    assert "decimal" not in str(caught.value)
    path = _csv(folder, "image;expression;box\na.png;red, small;10,20,30,40\n")
    (read,) = load_grounding_dataset(path, "all", box_format="xyxy")
    assert read["box"] == [10, 20, 30, 40]


def test_a_look_at_the_numbers_reads_decimal_commas(folder):
    rows = "".join(f"a.png;b{number};{number},5;1,5;{number + 20},5;90\n" for number in range(30))
    path = _csv(folder, "image;expression;x1;y1;x2;y2\n" + rows)
    with pytest.raises(ValueError, match="boxes looked at cannot be xyxy_normalized, and all are possible as"):
        load_grounding_dataset(path, "all", box_format="xyxy_normalized", decimal_comma=True)


def test_exchanged_corners_are_told_as_such(folder):
    """Read as shares of 1000 such numbers are possible, too; that advice would give wrong boxes in silence."""
    width, height = Image.open(folder / "a.png").size
    rows = "".join(f"a.png;b{n};{width - n / 2};{height - 1};{width / 2 - n / 2};{height / 2}\n" for n in range(30))
    path = _csv(folder, "image;expression;x1;y1;x2;y2\n" + rows)
    with pytest.raises(ValueError, match=r"30 of the 30 boxes looked at have x1 > x2 and y1 > y2: their corners are"):
        load_grounding_dataset(path, "all", box_format="xyxy")


def test_a_file_that_is_not_there_is_answered_with_names_like_it(tmp_path):
    for name in ("a.png", "b.png", "labels.csv"):
        (tmp_path / name).write_text("x")
    (tmp_path / "look").mkdir()
    (tmp_path / "look" / ".lock").write_text("")  # as `hivg survey --out look` holds it while it reads
    with pytest.raises(FileNotFoundError, match=r"; that folder holds labels\.csv, a\.png, b\.png\.$"):
        need_file(tmp_path / "labels.cvs", "the table")


def test_a_folder_in_place_of_a_file_is_said_to_be_one(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"the table needs a file, and .* is a folder\.$"):
        need_file(tmp_path, "the table")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"my\.csv' is empty: give a table with a line of column names and rows below it\.$"),
        (b"a.png,red,1,2,3,4\n", r"has no rows: its first line, a\.png, red, 1, 2, 3, 4, is read as the names of col"),
        # Without a time, which would stand in the test's name: the processes of a run must collect the same names.
        (
            gzip.compress(b"image,expression\n", mtime=0),
            r"my\.csv is compressed with gzip: unpack it first; expected a table",
        ),
        (b"PK\x03\x04" + bytes(60), r"my\.csv is an Excel workbook or another archive: save it as CSV UTF-8"),
        (b"\x89PNG\r\n\x1a\n" + bytes(60), r"my\.csv is a PNG picture; expected a table as text"),
        (b"<!doctype html><p>Sign in</p>", r"my\.csv is a web page; expected a table as text"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\n", r"my\.csv is a pointer of Git LFS"),
    ],
)
def test_what_is_not_a_table_is_named_by_what_it_is(content, message, tmp_path):
    (tmp_path / "my.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_grounding_dataset(str(tmp_path / "my.csv"), "all", box_format="xyxy")


def test_two_boxes_in_one_row_are_refused_since_either_may_be_meant(tmp_path):
    Image.new("RGB", (100, 80)).save(tmp_path / "a.png")
    path = tmp_path / "my.csv"
    path.write_text("image,expression,x1,y1,x2,y2,xmin,ymin,xmax,ymax\na.png,red,1,2,30,40,5,6,50,60\n")
    with pytest.raises(ValueError, match=r"the columns x1, y1, x2, y2 and xmin, ymin, xmax, ymax may both be its box"):
        load_grounding_dataset(str(path), "all", box_format="xyxy")
    path.write_text("image,expression,x,y,w,h,width,height\na.png,red,1,2,30,40,100,80\n")  # of the picture
    assert load_grounding_dataset(str(path), "all", box_format="xywh")[0]["boxes"] == [[1, 2, 31, 42]]
