"""The Hub's schemas of RefCOCO, from a local copy of each repository's Parquet files, and Ref-L4."""

import io
import json
import logging

import datasets
import numpy as np
import pytest
from datasets import Features, Image, List, Value
from PIL import Image as PILImage

from hivg_hf.data.loading import load_grounding_dataset
from hivg_hf.data.schema import encode_mask


def _repository(folder, split, rows, features):
    """A Hub repository's Parquet file of one split."""
    (folder / "data").mkdir(exist_ok=True, parents=True)
    table = datasets.Dataset.from_list(rows, features=Features(features))
    table.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def _png(width, height):
    buffer = io.BytesIO()
    PILImage.new("RGB", (width, height), (9, 99, 199)).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


JXU124 = {
    "sent_ids": List(Value("int64")),
    "file_name": Value("string"),
    "ann_id": Value("int64"),
    "ref_id": Value("int64"),
    "image_id": Value("int64"),
    "split": Value("string"),
    "sentences": [
        {"raw": Value("string"), "sent": Value("string"), "sent_id": Value("int64"), "tokens": List(Value("string"))}
    ],
    "category_id": Value("int64"),
    "raw_anns": Value("string"),
    "raw_image_info": Value("string"),
    "raw_sentences": Value("string"),
    "image_path": Value("string"),
    "bbox": List(Value("float64")),
    "captions": List(Value("string")),
    "global_image_id": Value("string"),
    "anns_id": Value("string"),
}


def _jxu124_row(bbox, raw_bbox, split="test"):
    return {
        "sent_ids": [8, 9],
        "file_name": "COCO_train2014_000000581857_16.jpg",
        "ann_id": 1719310,
        "ref_id": 16,
        "image_id": 581857,
        "split": split,
        "sentences": [
            {"raw": "THE LADY", "sent": "the lady", "sent_id": 8, "tokens": ["the", "lady"]},
            {"raw": "Blue shirt", "sent": "blue shirt", "sent_id": 9, "tokens": ["blue", "shirt"]},
        ],
        "category_id": 1,
        "raw_anns": json.dumps({"id": 1719310, "bbox": raw_bbox, "segmentation": [[10, 5, 30, 5, 30, 25, 10, 25]]}),
        "raw_image_info": json.dumps({"file_name": "COCO_train2014_000000581857.jpg", "width": 64, "height": 48}),
        "raw_sentences": "[]",
        "image_path": "coco/train2014/COCO_train2014_000000581857.jpg",
        "bbox": bbox,
        "captions": ["the lady", "blue shirt"],
        "global_image_id": "coco.581857",
        "anns_id": "1719310",
    }


@pytest.fixture
def train2014(tmp_path, make_image):
    make_image(tmp_path / "train2014" / "COCO_train2014_000000581857.jpg")
    return tmp_path / "train2014"


def test_jxu124_boxes_are_xyxy_and_its_test_is_testa(tmp_path, train2014, facts, caplog):
    rows = [_jxu124_row(bbox=[10.0, 5.0, 30.0, 25.0], raw_bbox=[10.0, 5.0, 20.0, 20.0])]
    folder = _repository(tmp_path / "refcoco", "test", rows, JXU124)
    with caplog.at_level(logging.INFO):
        rows = facts(load_grounding_dataset("jxu124/refcoco", "testA", root=folder, images=train2014))
    assert "split 'testA' is 'test' there" in caplog.text
    assert "1 objects here, 1,975 as published" in caplog.text
    row = {
        "image": "COCO_train2014_000000581857.jpg",
        "expression": "the lady",
        "box": [10.0, 5.0, 30.0, 25.0],
        "boxes": [[10.0, 5.0, 30.0, 25.0]],
        "no_target": False,
        "mask": 400,
        "width": 64,
        "height": 48,
        "category": None,
        "image_id": "COCO_train2014_000000581857",
        "ref_id": "16",
        "sent_id": "8",
        "source": "jxu124/refcoco",
        "split": "test",
    }
    assert rows == [row, {**row, "expression": "blue shirt", "sent_id": "9"}]


def test_jxu124_rows_whose_two_boxes_disagree_are_refused(tmp_path, train2014):
    # bbox in the convention of raw_anns: xywh where xyxy is promised
    rows = [_jxu124_row(bbox=[10.0, 5.0, 20.0, 20.0], raw_bbox=[10.0, 5.0, 20.0, 20.0], split="val")]
    folder = _repository(tmp_path / "refcoco", "validation", rows, JXU124)
    with pytest.raises(ValueError, match=r"ref_id 16, expression 0: bbox .* is not the box .* of its own raw_anns"):
        load_grounding_dataset("jxu124/refcoco", "val", root=folder, images=train2014)


def test_jxu124_needs_pictures(tmp_path):
    with pytest.raises(ValueError, match="jxu124/refcoco has no pictures: give images="):
        load_grounding_dataset("jxu124/refcoco", "val", root=tmp_path)


LMMS_LAB = {
    "question_id": Value("string"),
    "image": Image(),
    "question": Value("string"),
    "answer": List(Value("string")),
    "segmentation": List(Value("float32")),
    "bbox": List(Value("float32")),
    "iscrowd": Value("int8"),
    "file_name": Value("string"),
}


def test_lmms_lab_boxes_are_xywh_and_answers_are_the_expressions(tmp_path, facts):
    row = {
        "question_id": "469306",
        "image": _png(64, 48),
        "question": "Please carefully observe the area circled in the image and come up with a caption for the area.",
        "answer": ["guy petting elephant", "foremost person"],
        "segmentation": [1.0, 1.0, 5.0, 5.0],
        "bbox": [20.0, 10.0, 30.0, 24.5],
        "iscrowd": 0,
        "file_name": "COCO_train2014_000000296747_0.jpg",
    }
    folder = _repository(tmp_path, "val", [row], LMMS_LAB)
    rows = facts(load_grounding_dataset("lmms-lab/RefCOCO", "val", root=folder))
    assert [(row["expression"], row["sent_id"]) for row in rows] == [
        ("guy petting elephant", "469306:0"),
        ("foremost person", "469306:1"),
    ]
    assert rows[0]["box"] == [20.0, 10.0, 50.0, 34.5]
    assert (rows[0]["width"], rows[0]["height"]) == (64, 48)
    assert rows[0]["image_id"] == "COCO_train2014_000000296747"
    assert rows[0]["ref_id"] == rows[1]["ref_id"] == "469306"


@pytest.mark.parametrize("split", ["train", "testA"])
def test_lmms_lab_has_no_train_and_nothing_stands_in_for_it(tmp_path, split):
    row = dict.fromkeys(LMMS_LAB) | {"question_id": "1", "answer": ["x"], "bbox": [1, 1, 5, 5], "image": _png(9, 9)}
    folder = _repository(tmp_path, "val", [row], LMMS_LAB)
    with pytest.raises(ValueError, match=f"lmms-lab/RefCOCO has no split '{split}'; it has val"):
        load_grounding_dataset("lmms-lab/RefCOCO", split, root=folder)


def test_moondream_samples_are_unfolded_with_their_masks(tmp_path, facts):
    mask = np.zeros((48, 64), dtype=bool)
    mask[10:34, 20:50] = True
    run_lengths = {"counts": Value("string"), "size": List(Value("int32"))}
    sample = {
        "id": Value("int64"),
        "image_id": Value("int64"),
        "category": Value("string"),
        "supercategory": Value("string"),
        "label": Value("string"),
        "sentences": List(Value("string")),
        "bbox": List(Value("float32")),
        "mask": run_lengths,
    }
    features = {
        "image": Image(),
        "image_id": Value("int64"),
        "file_name": Value("string"),
        "samples": [sample],
    }
    first = {
        "id": 7,
        "image_id": 581857,
        "category": "dog",
        "supercategory": "animal",
        "label": "dog",
        "sentences": ["the dog", "dog left"],
        "bbox": [20.0, 10.0, 30.0, 24.0],
        "mask": encode_mask(mask),
    }
    second = {
        **first,
        "id": 8,
        "sentences": ["all"],
        "bbox": [0.0, 0.0, 64.0, 48.0],
        "mask": encode_mask(~mask | mask),
    }
    row = {"image": _png(64, 48), "image_id": 581857, "file_name": "COCO_train2014_000000581857.jpg"}
    folder = _repository(tmp_path, "validation", [{**row, "samples": [first, second]}], features)
    rows = facts(load_grounding_dataset("moondream/refcoco-m", "val", root=folder))
    assert [(row["expression"], row["box"], row["mask"], row["ref_id"], row["sent_id"]) for row in rows] == [
        ("the dog", [20, 10, 50, 34], 720, "7", "7:0"),
        ("dog left", [20, 10, 50, 34], 720, "7", "7:1"),
        ("all", [0, 0, 64, 48], 64 * 48, "8", "8:0"),
    ]
    assert rows[0]["category"] == "dog"


def test_ref_l4_boxes_are_xywh_and_all_is_val_and_test(tmp_path, make_image, facts):
    row = {
        "id": "10",
        "caption": "A long description of the one dog.",
        "bbox": [20.0, 10.0, 30.0, 24.5],
        "bbox_area": 735.0,
        "bbox_id": "3",
        "ori_category_id": "coco_18",
        "image_id": "1",
        "height": 48,
        "width": 64,
        "file_name": "o365_01.jpg",
        "is_rewrite": False,
        "split": "val",
    }
    datasets.Dataset.from_list([row]).to_parquet(tmp_path / "ref-l4-val.parquet")
    datasets.Dataset.from_list([{**row, "id": "11", "split": "test"}]).to_parquet(tmp_path / "ref-l4-test.parquet")
    make_image(tmp_path / "images" / "o365_01.jpg")
    (first,) = facts(load_grounding_dataset("ref-l4", "val", root=tmp_path))
    assert first["box"] == [20.0, 10.0, 50.0, 34.5]
    assert (first["expression"], first["sent_id"], first["ref_id"]) == (row["caption"], "10", "3")
    assert (first["category"], first["image"]) == ("coco_18", "o365_01.jpg")
    assert load_grounding_dataset("ref-l4", "all", root=tmp_path)["sent_id"] == ["10", "11"]
