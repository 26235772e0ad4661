"""The official `.pth` splits: five datasets and the mixture, two box conventions."""

import numpy as np
import pytest
import torch

from hivg_hf.data.loading import load_grounding_dataset

COCO_FILE = "COCO_train2014_000000581857.jpg"
SIZE = {"height": 48, "width": 64}
POLYGON = [[10.0, 5.0, 30.0, 5.0, 30.0, 25.0, 10.0, 25.0]]


def _save(root, dataset, split, records):
    (root / dataset).mkdir(exist_ok=True)
    torch.save(records, root / dataset / f"{dataset}_{split}.pth")


@pytest.mark.parametrize(
    ("dataset", "split"), [("unc", "testA"), ("unc+", "testB"), ("gref", "val"), ("gref_umd", "test")]
)
def test_coco_records_hold_xywh_boxes_and_polygons(tmp_path, make_image, facts, dataset, split):
    make_image(tmp_path / "images/mscoco/images/train2014" / COCO_FILE)
    # (10, 5, 20, 22) read as xyxy would be a box as well, and another one
    _save(tmp_path, dataset, split, [(COCO_FILE, SIZE, [10.0, 5.0, 20.0, 22.75], "guy in yellow", POLYGON)])
    assert facts(load_grounding_dataset(dataset, split, root=tmp_path)) == [
        {
            "image": COCO_FILE,
            "expression": "guy in yellow",
            "box": [10.0, 5.0, 30.0, 27.75],
            "boxes": [[10.0, 5.0, 30.0, 27.75]],
            "no_target": False,
            "mask": 400,
            "width": 64,
            "height": 48,
            "category": None,
            "image_id": "COCO_train2014_000000581857",
            "ref_id": "0",
            "sent_id": "0",
            "source": dataset,
            "split": split,
        }
    ]


def test_referit_records_hold_xyxy_boxes(tmp_path, make_image, facts):
    make_image(tmp_path / "referit" / "images" / "9807.jpg", 480, 360)
    record = ("9807.jpg", "9807_13.pth", [241, 249, 313, 291], "desk middle left of pink hat", [("r1", ["desk"])])
    _save(tmp_path, "referit", "test", [record])
    (row,) = facts(load_grounding_dataset("referit", "test", root=tmp_path))
    # read as xywh it would reach to x = 554, out of the picture
    assert row["box"] == [241.0, 249.0, 313.0, 291.0]
    assert (row["width"], row["height"], row["mask"], row["image_id"]) == (480, 360, None, "9807")


def test_flickr_records_hold_three_fields_with_xyxy_boxes(tmp_path, make_image, facts):
    make_image(tmp_path / "flickr30k-images" / "1000092795.jpg", 100, 80)
    _save(tmp_path, "flickr", "val", [("1000092795.jpg", [40, 30, 60, 70], "two young guys")])
    (row,) = facts(load_grounding_dataset("flickr", "val", root=tmp_path))
    assert (row["box"], row["expression"], row["source"]) == ([40.0, 30.0, 60.0, 70.0], "two young guys", "flickr")


def test_the_mixture_holds_xywh_boxes_of_all_sources(tmp_path, make_image, facts):
    for name in (COCO_FILE, "9807.jpg", "1000092795.jpg"):
        make_image(tmp_path / "pictures" / name)
    records = [
        (COCO_FILE, SIZE, [10, 5, 20, 22], "guy in yellow", POLYGON),
        ("9807.jpg", "referit", [1, 2, 30, 40], "desk", [("r1", ["desk"])]),
        ("1000092795.jpg", "flickr", [4, 3, 20, 30], "two young guys", "placeholder"),
    ]
    _save(tmp_path, "mixup", "train", records)
    rows = facts(load_grounding_dataset("mixup", "train", root=tmp_path, images=tmp_path / "pictures"))
    assert [row["box"] for row in rows] == [[10, 5, 30, 27], [1, 2, 31, 42], [4, 3, 24, 33]]
    assert [row["mask"] for row in rows] == [400, None, None]
    assert [(row["ref_id"], row["width"]) for row in rows] == [("0", 64), ("1", 64), ("2", 64)]


def test_a_file_of_transvg_says_what_it_lacks(tmp_path, make_image):
    make_image(tmp_path / COCO_FILE)
    _save(tmp_path, "unc", "val", [(COCO_FILE, "x.pth", [1, 2, 3, 4], "guy")])
    with pytest.raises(ValueError, match=r"record 0: a record of unc has 4 fields, expected 5 \(TransVG's files lack"):
        load_grounding_dataset("unc", "val", root=tmp_path)


def test_a_malicious_split_file_is_refused_and_has_not_run(tmp_path, make_image):
    import os

    class Malicious:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    _save(tmp_path, "unc", "val", [(COCO_FILE, SIZE, [1, 2, 3, 4], Malicious(), POLYGON)])
    with pytest.raises(ValueError, match=r"unc_val\.pth was refused"):
        load_grounding_dataset("unc", "val", root=tmp_path)
    assert not (tmp_path / "executed").exists()


def test_trainval_is_train_and_val_behind_each_other(tmp_path, make_image, facts):
    make_image(tmp_path / COCO_FILE)
    for split, phrase in (("train", "first"), ("val", "second")):
        _save(tmp_path, "unc+", split, [(COCO_FILE, SIZE, [10, 5, 20, 22], phrase, POLYGON)])
    rows = facts(load_grounding_dataset("unc+", "trainval", root=tmp_path))
    assert [(row["expression"], row["ref_id"], row["split"]) for row in rows] == [
        ("first", "0", "trainval"),
        ("second", "1", "trainval"),
    ]


@pytest.mark.parametrize(
    "polygons",
    [
        {"size": [48, 64], "counts": [100, 400, 48 * 64 - 500]},
        [np.array(POLYGON[0])],
        [[np.float16(number) for number in POLYGON[0]]],
    ],
)
def test_run_lengths_and_numpy_numbers_are_read_as_polygons_are(tmp_path, make_image, facts, polygons):
    make_image(tmp_path / COCO_FILE)
    box = np.array([10, 5, 20, 22], dtype=np.float16)
    _save(tmp_path, "unc", "val", [(COCO_FILE, SIZE, box, "guy in yellow", polygons)])
    (row,) = facts(load_grounding_dataset("unc", "val", root=tmp_path))
    assert (row["box"], row["mask"]) == ([10.0, 5.0, 30.0, 27.0], 400)
