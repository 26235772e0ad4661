"""Anybody's own rows: JSONL, CSV, TSV, Parquet and COCO-style JSON."""

import json

import datasets
import numpy as np
import pytest

from hivg_hf.data.loading import load_grounding_dataset
from hivg_hf.data.schema import encode_mask
from hivg_hf.data.splits import held_out_images


@pytest.fixture
def photos(tmp_path, make_image):
    for seed, name in enumerate(("a.jpg", "b.jpg", "c.jpg")):
        make_image(tmp_path / "photos" / name, 64, 48, seed)
    return tmp_path / "photos"


def _jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


BOXES = {
    "xyxy": [20.0, 10.0, 50.0, 34.0],
    "xywh": [20.0, 10.0, 30.0, 24.0],
    "cxcywh": [35.0, 22.0, 30.0, 24.0],
    "xyxy_normalized": [20 / 64, 10 / 48, 50 / 64, 34 / 48],
    "xywh_normalized": [20 / 64, 10 / 48, 30 / 64, 24 / 48],
    "cxcywh_normalized": [35 / 64, 22 / 48, 30 / 64, 24 / 48],
}


@pytest.mark.parametrize("box_format", BOXES)
def test_every_box_format_gives_the_same_row(tmp_path, photos, facts, box_format):
    path = _jsonl(tmp_path / "mine.jsonl", [{"image": "a.jpg", "expression": "The Dog", "box": BOXES[box_format]}])
    assert facts(load_grounding_dataset(path, "all", images=photos, box_format=box_format)) == [
        {
            "image": "a.jpg",
            "expression": "The Dog",
            "box": [20.0, 10.0, 50.0, 34.0],
            "boxes": [[20.0, 10.0, 50.0, 34.0]],
            "no_target": False,
            "mask": None,
            "width": 64,
            "height": 48,
            "category": None,
            "image_id": "a.jpg",
            "ref_id": "0",
            "sent_id": "0",
            "source": "mine",
            "split": "all",
        }
    ]


@pytest.mark.parametrize("box_format", [None, "coco", "XYXY"])
def test_the_box_format_is_never_guessed(tmp_path, photos, box_format):
    path = _jsonl(tmp_path / "mine.jsonl", [{"image": "a.jpg", "expression": "x", "box": [1, 2, 3, 4]}])
    with pytest.raises(
        ValueError, match=r"say what its boxes mean with box_format=, one of xyxy, xywh, cxcywh, xyxy_n"
    ):
        load_grounding_dataset(path, "all", images=photos, box_format=box_format)


@pytest.mark.parametrize(
    ("box", "box_format", "message"),
    [
        ([50, 34, 20, 10], "xyxy", "has no area; is the box format right?"),
        ([20, 10, 50, 44], "xywh", r"reaches 6 pixels out of its image of 64 x 48; is the box format right\?"),
        ([20, 10, 30, 24], "xywh_normalized", "is not within 0..1"),
    ],
)
def test_a_wrong_box_format_shows_as_boxes_that_cannot_be(tmp_path, photos, box, box_format, message):
    path = _jsonl(tmp_path / "mine.jsonl", [{"image": "a.jpg", "expression": "x", "box": box}])
    with pytest.raises(ValueError, match=message):
        load_grounding_dataset(path, "all", images=photos, box_format=box_format)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("mine.csv", 'image,expression,x,y,w,h\na.jpg,"the dog, left",20,10,30,24\n'),
        ("mine.csv", '\ufeffimage,expression,box\r\na.jpg,"the dog, left","20,10,30,24"\r\n'),
        ("mine.csv", 'expression,image,box\n"the dog, left",a.jpg,[20 10 30 24]\n'),
        ("mine.tsv", "image\texpression\tbox\na.jpg\tthe dog, left\t20 10 30 24\n"),
    ],
)
def test_a_spreadsheet_is_read_in_the_ways_people_write_it(tmp_path, photos, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    rows = load_grounding_dataset(tmp_path / name, "all", images=photos, box_format="xywh")
    assert rows["box"] == [[20, 10, 50, 34]]
    assert rows["expression"] == ["the dog, left"]


def test_parquet_with_other_column_names_and_ids(tmp_path, photos, facts):
    row = {"file": "b.jpg", "text": "the cat", "box": [1.0, 2.0, 3.0, 4.0], "part": "val", "ref_id": 5, "sent_id": 51}
    datasets.Dataset.from_list([row, {**row, "part": "train"}]).to_parquet(tmp_path / "mine.parquet")
    columns = {"image": "file", "expression": "text", "split": "part"}
    (row,) = facts(
        load_grounding_dataset(
            tmp_path / "mine.parquet", "validation", images=photos, box_format="xyxy", columns=columns
        )
    )
    assert (row["expression"], row["box"], row["ref_id"], row["sent_id"]) == ("the cat", [1, 2, 3, 4], "5", "51")
    assert row["split"] == "val"


def test_several_boxes_no_target_and_masks(tmp_path, photos, facts):
    mask = np.zeros((48, 64), dtype=bool)
    mask[10:34, 20:50] = True
    polygon = [[20, 10, 50, 10, 50, 34, 20, 34]]
    rows = [
        {"image": "a.jpg", "expression": "both", "boxes": [[1, 2, 3, 4], [5, 6, 7, 8]]},
        {"image": "a.jpg", "expression": "the horse", "box": None, "no_target": True},
        {"image": "a.jpg", "expression": "it", "box": [20, 10, 50, 34], "mask": encode_mask(mask)},
        {"image": "a.jpg", "expression": "it", "box": [20, 10, 50, 34], "mask": polygon, "width": 64, "height": 48},
    ]
    read = facts(load_grounding_dataset(_jsonl(tmp_path / "m.jsonl", rows), "all", images=photos, box_format="xyxy"))
    assert [len(row["boxes"]) for row in read] == [2, 0, 1, 1]
    assert [row["no_target"] for row in read] == [False, True, False, False]
    assert [row["mask"] for row in read] == [None, None, 720, 720]


def test_a_missing_column_is_named(tmp_path, photos):
    (tmp_path / "mine.csv").write_text("photo,expression,x,y,w,h\na.jpg,x,1,2,3,4\n")
    with pytest.raises(ValueError, match=r"lacks the column image; it has photo, expression, x, y, w, h"):
        load_grounding_dataset(tmp_path / "mine.csv", "all", images=photos, box_format="xywh")
    both = (
        r"lacks the column image and box \(or x1, y1, x2, y2\).*x, y, w, h go with box_format='xywh'.*columns={'image'"
    )
    with pytest.raises(ValueError, match=both):
        load_grounding_dataset(tmp_path / "mine.csv", "all", images=photos, box_format="xyxy")
    with pytest.raises(ValueError, match="has no column 'pic' for image"):
        load_grounding_dataset(
            tmp_path / "mine.csv", "all", images=photos, box_format="xywh", columns={"image": "pic"}
        )


@pytest.mark.parametrize(
    ("head", "box_format", "size"),
    [
        ("x,y,width,height", "xywh", None),
        ("X,Y,Width,Height,image_width,image_height", "xywh", (64, 48)),
        ("left,top,width,height", "xywh", None),
        ("cx,cy,width,height", "cxcywh", None),
    ],
)
def test_width_and_height_beside_a_corner_are_those_of_the_box(tmp_path, photos, head, box_format, size):
    cells = "10,8,20,16" + (f",{size[0]},{size[1]}" if size else "")
    (tmp_path / "mine.csv").write_text(f"image,expression,{head}\na.jpg,the dog,{cells}\n")
    (row,) = load_grounding_dataset(tmp_path / "mine.csv", "all", images=photos, box_format=box_format)
    assert row["box"] == ([10, 8, 30, 24] if box_format == "xywh" else [0, 0, 20, 16])
    assert (row["width"], row["height"]) == (64, 48)


def test_width_and_height_beside_a_box_are_those_of_the_picture(tmp_path, photos):
    (tmp_path / "mine.csv").write_text('image,expression,x,y,width,height,bbox\na.jpg,it,1,2,64,48,"5 6 7 8"\n')
    (row,) = load_grounding_dataset(tmp_path / "mine.csv", "all", images=photos, box_format="xyxy")
    assert (row["box"], row["width"], row["height"]) == ([5, 6, 7, 8], 64, 48)


@pytest.mark.parametrize(("head", "layout"), [("X,Y,W,H", "xywh"), ("cx,cy,w,h", "cxcywh")])
def test_the_columns_of_a_box_suggest_its_format(tmp_path, photos, head, layout):
    (tmp_path / "mine.csv").write_text(f"image,expression,{head}\na.jpg,the dog,10,8,20,16\n")
    with pytest.raises(
        ValueError, match=f"say what its boxes mean .*; its columns {', '.join(head.split(','))} look like {layout}"
    ):
        load_grounding_dataset(tmp_path / "mine.csv", "all", images=photos)
    with pytest.raises(ValueError, match=f"go with box_format='{layout}'"):
        load_grounding_dataset(tmp_path / "mine.csv", "all", images=photos, box_format="xyxy")


def test_a_file_without_splits_is_divided_by_image_when_asked(tmp_path, photos):
    rows = [
        {"image": f"{name}.jpg", "expression": f"{name}{i}", "box": [1, 2, 9, 9]} for name in "abc" for i in (1, 2)
    ]
    path = _jsonl(tmp_path / "mine.jsonl", rows)
    options = {"images": photos, "box_format": "xyxy", "holdout": 0.34}
    train = load_grounding_dataset(path, "train", **options)
    val = load_grounding_dataset(path, "val", **options)
    assert sorted([*train["expression"], *val["expression"]]) == ["a1", "a2", "b1", "b2", "c1", "c2"]
    assert len(set(val["image_id"])) == 1
    assert not set(train["image_id"]) & set(val["image_id"])
    with pytest.raises(ValueError, match=r"with holdout=0.1 it has train and val\) has no split 'train'; it has all"):
        load_grounding_dataset(path, "train", images=photos, box_format="xyxy")


def test_a_division_needs_two_images_and_leaves_each_side_one():
    assert len(held_out_images(["a", "b"], 0.01)) == len(held_out_images(["a", "b"], 0.99)) == 1
    assert held_out_images([f"{i}" for i in range(100)], 0.2) == held_out_images([f"{i}" for i in range(100)], 0.2)
    with pytest.raises(ValueError, match="1 image cannot be divided"):
        held_out_images(["a", "a"], 0.1)
    with pytest.raises(ValueError, match="holdout must lie between 0 and 1, got 2"):
        held_out_images(["a", "b"], 2)


def test_coco_style_json_with_expressions_and_splits(tmp_path, photos, facts):
    content = {
        "images": [
            {"id": 1, "file_name": "a.jpg", "width": 64, "height": 48, "split": "train"},
            {"id": 2, "file_name": "b.jpg", "width": 64, "height": 48, "split": "val", "caption": "by the image"},
        ],
        "annotations": [
            {"id": 10, "image_id": 1, "category_id": 3, "bbox": [20, 10, 30, 24], "expression": "the dog"},
            {"id": 11, "image_id": 2, "category_id": 3, "bbox": [2, 3, 10, 10]},
            {"id": 12, "image_id": 2, "category_id": 3, "bbox": [2, 3, 10, 10], "sentences": ["one", "two"]},
            {"id": 13, "image_id": 2, "category_id": 3, "bbox": [2, 3, 4, 4], "phrase": "both", "ref_id": "r"},
            {"id": 14, "image_id": 2, "category_id": 3, "bbox": [9, 9, 5, 5], "phrase": "both", "ref_id": "r"},
        ],
        "categories": [{"id": 3, "name": "dog"}],
    }
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(content))
    rows = facts(load_grounding_dataset(path, "val", images=photos))
    assert [(row["expression"], row["boxes"], row["ref_id"]) for row in rows] == [
        ("by the image", [[2, 3, 12, 13]], "11"),
        ("one", [[2, 3, 12, 13]], "12"),
        ("two", [[2, 3, 12, 13]], "12"),
        ("both", [[2, 3, 6, 7], [9, 9, 14, 14]], "r"),
    ]
    (row,) = facts(load_grounding_dataset(path, "train", images=photos))
    assert (row["box"], row["category"], row["source"], row["sent_id"]) == ([20, 10, 50, 34], "dog", "mine", "10:0")


def test_unknown_sources_and_options_are_named(tmp_path):
    with pytest.raises(ValueError, match="Unknown data source 'refcocoa'; expected refshapes, a file"):
        load_grounding_dataset("refcocoa", "val")
    _jsonl(tmp_path / "mine.jsonl", [{"image": "a.jpg", "expression": "x", "box": [1, 2, 3, 4]}])
    with pytest.raises(ValueError, match=r"has no option boxformat; it takes box_format, images"):
        load_grounding_dataset(tmp_path / "mine.jsonl", "all", boxformat="xyxy")
    with pytest.raises(FileNotFoundError, match=r"the table needs the file .*yours\.csv"):
        load_grounding_dataset(tmp_path / "yours.csv", "all", box_format="xyxy")
    with pytest.raises(FileNotFoundError, match="Image folder not found"):
        load_grounding_dataset(tmp_path / "mine.jsonl", "all", box_format="xyxy", images=tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("mine", ["mine.csv", "mine.jsonl"]),
        ("mine.txt", ["mine.csv", "mine.jsonl"]),
        ("MINE", ["mine.csv", "mine.jsonl"]),
        ("other", ["other.parquet"]),
        ("othr.parquett", ["other.parquet"]),
        ("elsewhere", []),
        ("nowhere/mine", []),
    ],
)
def test_a_name_without_its_suffix_is_answered_with_the_files_that_have_one(asked, meant, tmp_path):
    for name in ("mine.csv", "mine.jsonl", "other.parquet", "mine.png"):
        (tmp_path / name).write_text("")
    with pytest.raises(ValueError, match="Unknown data source") as refusal:
        load_grounding_dataset(tmp_path / asked, "train")
    named = [repr(str(tmp_path / name)) for name in meant]
    assert ("did you mean " + " or ".join(named) + "?" in str(refusal.value)) == bool(meant)


def test_refshapes_goes_through_the_same_door():
    rows = load_grounding_dataset("refshapes", "val", seed=7, size=3)
    assert (len(rows), set(rows["source"]), set(rows["split"])) == (3, {"refshapes"}, {"val"})
    with pytest.raises(ValueError, match="refshapes is read as it is: omit streaming and multi_target"):
        load_grounding_dataset("refshapes", "val", size=3, streaming=True)
