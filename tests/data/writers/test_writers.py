"""What is written is read again: boxes bit-equal, or within the rounding that the format itself has."""

import json

import datasets
import numpy as np
import pytest

from hivg_hf.cli import main
from hivg_hf.data.loading import load_grounding_dataset
from hivg_hf.data.order import without_image_decoding
from hivg_hf.data.reading import list_splits
from hivg_hf.data.schema import FEATURES, encode_mask
from hivg_hf.data.writers import WRITERS, write_rows

WIDTH, HEIGHT = 613, 427
READING = {
    "qwen": {"box_format": "xyxy_1000", "prompt": "Locate {expression}."},
    "parquet": {"box_format": "xyxy"},
}
# Largest move of an edge, in pixels; 0 is bit-equal.
ROUNDING = {"coco": 0, "odvg": 0, "label-studio": 0, "parquet": 0, "yolo": 1e-6, "qwen": WIDTH / 2000 + 1e-6}


@pytest.fixture
def rows(tmp_path, make_image, make_row):
    """Rows with boxes of any float32, several targets, none, masks, and pictures in files and inside."""
    rng = np.random.default_rng(5)
    path = make_image(tmp_path / "photos" / "a.png", WIDTH, HEIGHT)
    made = []
    for number in range(40):
        x, y = rng.uniform(0, 0.5, 2) * (WIDTH, HEIGHT)
        w, h = rng.uniform(0.05, 0.5, 2) * (WIDTH, HEIGHT)
        box = [float(edge) for edge in np.float32([x, y, x + w, y + h])]
        if number < 3:
            box = [[0.0, 0.0, 613.0, 427.0], [0.0, 0.125, 1e-3, 427.0], [612.0, 426.0, 613.0, 427.0]][number]
        image = {"path": path, "bytes": None}
        if number % 2:
            image = {"path": None, "bytes": (tmp_path / "photos" / "a.png").read_bytes()}
        ids = {"image_id": f"image {number % 2}", "ref_id": f"r{number}", "sent_id": f"s{number}", "split": "train"}
        size = {"width": WIDTH, "height": HEIGHT}
        made.append(make_row(image=image, expression=f'caf\xe9 {number}, "it"', box=box, **ids, **size))
    made[5] |= {"boxes": [made[5]["box"], made[6]["box"]], "box": None}
    made[7] |= {"boxes": [], "box": None, "no_target": True}
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[10:40, 20:70] = True
    made[8]["mask"] = encode_mask(mask)
    return datasets.Dataset.from_list(made, features=FEATURES)


@pytest.mark.parametrize("to", WRITERS)
def test_boxes_come_back_as_they_were(rows, tmp_path, to):
    if to == "yolo":
        with pytest.raises(ValueError, match="no way to say that an expression names nothing, as 1 rows do"):
            write_rows(rows, tmp_path / "refused", to)
        rows = rows.select([n for n in range(40) if n != 7])
    written = write_rows(rows, tmp_path / "out", to, "train")
    (split,) = list_splits(str(written.path), **READING.get(to, {}))
    read = without_image_decoding(load_grounding_dataset(written.path, split, **READING.get(to, {})))
    assert written.rows == len(read) == len(rows)
    by_words = {row["expression"]: row for row in read}
    for row in without_image_decoding(rows):
        again = by_words[row["expression"]]
        assert again["no_target"] == row["no_target"]
        assert len(again["boxes"]) == len(row["boxes"])
        for one, other in zip(again["boxes"], row["boxes"], strict=True):
            if min(other[2] - other[0], other[3] - other[1]) > 1:  # a thinner one is kept a number wide by Qwen
                assert np.abs(np.float32(one) - np.float32(other)).max() <= ROUNDING[to], (one, other)
        if to in ("coco", "parquet"):
            assert (again["mask"], again["sent_id"], again["ref_id"]) == (row["mask"], row["sent_id"], row["ref_id"])
        data = again["image"]["bytes"] or open(again["image"]["path"], "rb").read()
        assert data == (tmp_path / "photos" / "a.png").read_bytes()
    said = " ".join(written.lost)
    assert ("has no masks: those of 1 rows" in said) == (to not in ("coco", "parquet"))


def test_pixels_of_qwen_are_whole_and_keep_an_area(rows, tmp_path):
    written = write_rows(rows, tmp_path / "out", "qwen", coordinates="pixels")
    lines = [json.loads(line) for line in written.path.read_text().splitlines()]
    boxes = [entry["bbox_2d"] for line in lines for entry in json.loads(line["messages"][1]["content"])]
    assert all(isinstance(edge, int) for box in boxes for edge in box)
    assert all(x1 < x2 and y1 < y2 for x1, y1, x2, y2 in boxes)
    options = {"box_format": "xyxy", "prompt": "Locate {expression}."}
    read = load_grounding_dataset(written.path, "all", **options)
    for one, other in zip(read["boxes"], rows["boxes"], strict=True):
        assert np.abs(np.float32(one) - np.float32(other)).max(initial=0) <= 1.0
    with pytest.raises(ValueError, match="coordinates must be one of 1000, pixels, got 'percent'"):
        write_rows(rows, tmp_path / "other", "qwen", coordinates="percent")


def test_nothing_is_overwritten_and_unknown_formats_are_named(rows, tmp_path):
    write_rows(rows, tmp_path / "out", "odvg")
    with pytest.raises(FileExistsError, match=r"all\.jsonl already exists"):
        write_rows(rows, tmp_path / "out", "odvg")
    with pytest.raises(ValueError, match="Unknown format 'voc'; expected one of coco, odvg"):
        write_rows(rows, tmp_path / "out", "voc")
    with pytest.raises(ValueError, match="There are no rows to write"):
        write_rows(rows.select([]), tmp_path / "out", "coco")


def test_pictures_are_copied_when_asked(rows, tmp_path):
    written = write_rows(rows, tmp_path / "out", "coco", copy_images=True)
    names = {image["file_name"] for image in json.loads(written.path.read_text())["images"]}
    assert names == {"images/a.png", "images/image 1.png"}
    assert {path.name for path in (tmp_path / "out" / "images").iterdir()} == {"a.png", "image 1.png"}


def test_pictures_of_a_table_that_cannot_be_written_are_not_left_behind(rows, tmp_path):
    broken = rows.to_list()
    broken[-1] |= {"image": {"path": str(tmp_path / "gone.png"), "bytes": None}, "image_id": "gone"}
    broken = datasets.Dataset.from_list(broken, features=FEATURES)
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        write_rows(broken, tmp_path / "new" / "out", "coco", copy_images=True)
    assert not (tmp_path / "new").exists()
    written = write_rows(rows, tmp_path / "out", "coco", "train", copy_images=True)
    before = sorted(written.path.parent.rglob("*"))
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        write_rows(broken, tmp_path / "out", "coco", "val", copy_images=True)
    assert sorted(written.path.parent.rglob("*")) == before
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"Cannot write to .*file \(File exists\): choose another folder"):
        write_rows(rows, tmp_path / "file", "coco")


def test_the_command_converts_every_split_with_columns_of_other_names(tmp_path, make_image, capsys):
    make_image(tmp_path / "a.png", 64, 48)
    text = "file,caption,text,part,x,y,w,h\na.png,red star,no,train,1,2,30,40\na.png,blue,no,val,1,2,30,40\n"
    (tmp_path / "my.csv").write_text(text)
    arguments = [
        "convert-data",
        str(tmp_path / "my.csv"),
        str(tmp_path / "out"),
        "--to",
        "coco",
        "--box-format",
        "xywh",
    ]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--column", "expression=caption", "--column", "split=part"])
    assert ended.value.code == 0
    assert "train: 1 rows in" in capsys.readouterr().out
    assert load_grounding_dataset(tmp_path / "out" / "val.json", "all")["expression"][:] == ["blue"]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--column", "expression"])
    assert ended.value.code == 2
    assert "--column takes NAME=VALUE, got 'expression'" in capsys.readouterr().err


def test_two_splits_whose_pictures_share_a_name_keep_their_own(tmp_path, make_image, make_row):
    written = {}
    for split, side in (("train", 40), ("val", 60)):
        path = make_image(tmp_path / split / "a.png", side, side)
        row = make_row(image={"path": path, "bytes": None}, box=[1.0, 1.0, 20.0, 20.0], width=side, height=side)
        rows = datasets.Dataset.from_list([{**row, "split": split}], features=FEATURES)
        written[side] = write_rows(rows, tmp_path / "out", "odvg", split, copy_images=True)
    assert sorted(path.name for path in (tmp_path / "out" / "images").iterdir()) == ["a-2.png", "a.png"]
    for side, found in written.items():
        (row,) = load_grounding_dataset(found.path, "all")
        assert row["image"].size == (side, side)
