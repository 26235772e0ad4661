"""REFER folders and gRefCOCO, fixtures made field by field as refer.py and gRefCOCO's files have them."""

import json
import logging
import pickle

import pytest

from hivg_hf.data.loading import load_grounding_dataset


def _instances(images):
    """A COCO instances.json: two objects in the first picture, one in the second; boxes xywh."""
    return {
        "info": {},
        "licenses": [],
        "images": [
            {"id": image_id, "file_name": name, "width": width, "height": height, "license": 1, "coco_url": ""}
            for image_id, name, width, height in images
        ],
        "categories": [{"id": 1, "name": "person", "supercategory": "person"}, {"id": 18, "name": "dog"}],
        "annotations": [
            {
                "id": 1719310,
                "image_id": 581857,
                "category_id": 1,
                # xywh; read as xyxy it would be a box too, (20, 10, 30, 24): the wrong reading shows in the numbers
                "bbox": [20.0, 10.0, 30.0, 24.5],
                "area": 735.0,
                "iscrowd": 0,
                "segmentation": [[20.0, 10.0, 50.0, 10.0, 50.0, 34.5, 20.0, 34.5]],
            },
            {
                "id": 1719311,
                "image_id": 581857,
                "category_id": 18,
                "bbox": [2.0, 3.0, 10.0, 10.0],
                "area": 100.0,
                "iscrowd": 0,
                "segmentation": [[2.0, 3.0, 12.0, 3.0, 12.0, 13.0, 2.0, 13.0]],
            },
            {
                "id": 5,
                "image_id": 99,
                "category_id": 18,
                "bbox": [0.0, 0.0, 40.0, 30.0],
                "area": 1200.0,
                "iscrowd": 1,
                "segmentation": {"size": [30, 40], "counts": [0, 1200]},
            },
        ],
    }


def _ref(ref_id, ann_id, image_id, split, sentences, category_id=1):
    first = ref_id * 10
    return {
        "ref_id": ref_id,
        "ann_id": ann_id,
        "category_id": category_id,
        "image_id": image_id,
        # refer.py: this name carries the annotation's number and names no file
        "file_name": f"COCO_train2014_{image_id:012d}_{ann_id}.jpg",
        "split": split,
        "sent_ids": [first + i for i in range(len(sentences))],
        "sentences": [
            {"raw": text.upper(), "sent": text, "sent_id": first + i, "tokens": text.split()}
            for i, text in enumerate(sentences)
        ],
    }


@pytest.fixture
def coco(tmp_path, make_image):
    """The folder of pictures, in COCO's layout."""
    make_image(tmp_path / "images" / "train2014" / "COCO_train2014_000000581857.jpg", 64, 48)
    make_image(tmp_path / "images" / "train2014" / "COCO_train2014_000000000099.jpg", 40, 30)
    images = [
        (581857, "COCO_train2014_000000581857.jpg", 64, 48),
        (99, "COCO_train2014_000000000099.jpg", 40, 30),
    ]
    return tmp_path, _instances(images)


def _write(root, folder, author, refs, instances):
    (root / folder).mkdir()
    (root / folder / "instances.json").write_text(json.dumps(instances))
    (root / folder / f"refs({author}).p").write_bytes(pickle.dumps(refs, protocol=2))


def test_a_split_of_refcoco_is_read_to_literal_rows(coco, facts):
    root, instances = coco
    refs = [
        _ref(17, 1719310, 581857, "val", ["navy blue shirt", "woman back in blue"]),
        _ref(18, 5, 99, "testA", ["all of it"], category_id=18),
    ]
    _write(root, "refcoco", "unc", refs, instances)
    rows = facts(load_grounding_dataset("refcoco", "val", root=root))
    row = {
        "image": "COCO_train2014_000000581857.jpg",
        "expression": "navy blue shirt",
        "box": [20.0, 10.0, 50.0, 34.5],
        "boxes": [[20.0, 10.0, 50.0, 34.5]],
        "no_target": False,
        "mask": 30 * 25,  # pycocotools counts the half-covered last row
        "width": 64,
        "height": 48,
        "category": "person",
        "image_id": "COCO_train2014_000000581857",
        "ref_id": "17",
        "sent_id": "170",
        "source": "refcoco",
        "split": "val",
    }
    assert rows == [row, {**row, "expression": "woman back in blue", "sent_id": "171"}]


def test_run_length_segmentations_of_crowds_are_read(coco, facts):
    root, instances = coco
    _write(root, "refcoco+", "unc", [_ref(18, 5, 99, "testB", ["all of it"])], instances)
    rows = facts(load_grounding_dataset("refcoco+", "testB", root=root))
    assert [(row["box"], row["mask"], row["category"]) for row in rows] == [([0.0, 0.0, 40.0, 30.0], 1200, "dog")]


def test_masks_can_be_left_out(coco, facts):
    root, instances = coco
    _write(root, "refcoco", "unc", [_ref(17, 1719310, 581857, "val", ["x"])], instances)
    assert facts(load_grounding_dataset("refcoco", "val", root=root, masks=False))[0]["mask"] is None


@pytest.mark.parametrize(("asked", "read"), [("test", "testA"), ("validation", "val")])
def test_an_alias_is_said_in_the_log(coco, caplog, asked, read):
    root, instances = coco
    refs = [_ref(1, 5, 99, split, [split]) for split in ("val", "testA", "testB", "train")]
    _write(root, "refcoco", "unc", refs, instances)
    with caplog.at_level(logging.INFO):
        rows = load_grounding_dataset("refcoco", asked, root=root)
    assert rows["expression"] == [read]
    assert f"split {asked!r} is {read!r} there" in caplog.text


def test_counts_are_compared_with_the_published_ones(coco, caplog):
    root, instances = coco
    _write(root, "refcoco", "unc", [_ref(17, 1719310, 581857, "val", ["a", "b"])], instances)
    load_grounding_dataset("refcoco", "val", root=root)
    assert "refcoco val: 2 expressions here, 10,834 as published" in caplog.text
    assert "refcoco val: 1 objects here, 3,811 as published" in caplog.text
    assert "refcoco val: 1 images here, 1,500 as published" in caplog.text


@pytest.mark.parametrize("split", ["testC", "test2", "", "Val"])
def test_no_other_split_is_read_than_the_one_asked_for(coco, split):
    root, instances = coco
    _write(root, "refcoco", "unc", [_ref(1, 5, 99, "val", ["x"])], instances)
    with pytest.raises(ValueError, match=r"has no split.*it has train, val, testA, testB\. No other split is read"):
        load_grounding_dataset("refcoco", split, root=root)


def test_a_split_without_rows_is_an_error(coco):
    root, instances = coco
    _write(root, "refcoco", "unc", [_ref(1, 5, 99, "val", ["x"])], instances)
    with pytest.raises(ValueError, match="refcoco train has no rows at all"):
        load_grounding_dataset("refcoco", "train", root=root)


@pytest.mark.parametrize(("name", "author"), [("refcocog-umd", "umd"), ("refcocog-google", "google")])
def test_the_two_splits_of_refcocog_are_told_apart(coco, name, author):
    root, instances = coco
    _write(root, "refcocog", author, [_ref(1, 5, 99, "val", [f"by {author}"])], instances)
    rows = load_grounding_dataset(name, "val", root=root)
    assert (rows["expression"], rows["source"]) == ([f"by {author}"], [name])
    with pytest.raises(ValueError, match=r"'refcocog' means two things; say refcocog-umd \(recommended\)"):
        load_grounding_dataset("refcocog", "val", root=root)


def test_refclef_rows_of_two_test_splits_are_in_both(coco):
    root, instances = coco
    refs = [_ref(1, 5, 99, "testA", ["a"]), _ref(2, 5, 99, "testAB", ["ab"]), _ref(3, 5, 99, "testBC", ["bc"])]
    _write(root, "refclef", "unc", refs, instances)
    assert load_grounding_dataset("refclef-unc", "testA", root=root)["expression"] == ["a", "ab"]
    assert load_grounding_dataset("refclef-unc", "testB", root=root)["expression"] == ["ab", "bc"]
    assert load_grounding_dataset("refclef-unc", "testC", root=root)["expression"] == ["bc"]


def test_a_missing_file_is_named_with_what_is_there(coco):
    root, instances = coco
    _write(root, "refcocog", "google", [], instances)
    with pytest.raises(
        FileNotFoundError, match=r"refs\(umd\)\.p; that folder holds refs\(google\)\.p, instances\.json"
    ):
        load_grounding_dataset("refcocog-umd", "val", root=root)
    with pytest.raises(ValueError, match="refcoco is read from files: give root="):
        load_grounding_dataset("refcoco", "val")


@pytest.fixture
def grefcoco(coco):
    """gRefCOCO: lists of annotations; [-1] where the expression names nothing."""
    root, instances = coco
    refs = [
        {**_ref(1, 1719310, 581857, "val", ["the woman"]), "ann_id": [1719310], "category_id": [1]},
        {**_ref(2, 1719310, 581857, "val", ["both"]), "ann_id": [1719310, 1719311], "category_id": [1, 18]},
        {**_ref(3, -1, 581857, "val", ["the horse"]), "ann_id": [-1], "category_id": [-1], "no_target": True},
    ]
    (root / "grefs(unc).json").write_text(json.dumps(refs))
    (root / "instances.json").write_text(json.dumps(instances))
    return root


def test_grefcoco_keeps_rows_with_no_target_or_several(grefcoco, facts):
    rows = facts(load_grounding_dataset("grefcoco", "val", root=grefcoco))
    woman, dog = [20.0, 10.0, 50.0, 34.5], [2.0, 3.0, 12.0, 13.0]
    assert [(row["expression"], row["box"], row["boxes"], row["no_target"]) for row in rows] == [
        ("the woman", woman, [woman], False),
        ("both", None, [woman, dog], False),
        ("the horse", None, [], True),
    ]
    assert [row["mask"] for row in rows] == [750, 750 + 100, None]


def test_several_targets_by_policy(grefcoco, caplog):
    union = load_grounding_dataset("grefcoco", "val", root=grefcoco, multi_target="union")
    assert union["box"] == [[20.0, 10.0, 50.0, 34.5], [2.0, 3.0, 50.0, 34.5], None]
    assert [len(boxes) for boxes in union["boxes"]] == [1, 2, 0]
    dropped = load_grounding_dataset("grefcoco", "val", root=grefcoco, multi_target="drop")
    assert dropped["expression"] == ["the woman", "the horse"]
    assert "left out 1 rows with several targets" in caplog.text
    with pytest.raises(ValueError, match="multi_target must be one of keep, union, drop, got 'any'"):
        load_grounding_dataset("grefcoco", "val", root=grefcoco, multi_target="any")


def test_training_refuses_several_targets_unless_a_policy_is_named(grefcoco):
    from hivg_hf.training.rows import RowCache

    spec = {"source": "grefcoco", "split": "val", "root": str(grefcoco)}
    with pytest.raises(ValueError, match=r"1 of 3 rows have several targets.*multi_target='union'"):
        RowCache().load(spec)
    assert len(RowCache().load({**spec, "multi_target": "union"})) == 3
    with pytest.raises(ValueError, match="several targets"):
        RowCache().load({"source": "mixture", "split": "val", "parts": [spec]})


def test_grefcoco_is_read_from_its_pickle_too(grefcoco):
    refs = json.loads((grefcoco / "grefs(unc).json").read_text())
    (grefcoco / "grefs(unc).json").unlink()
    (grefcoco / "grefs(unc).p").write_bytes(pickle.dumps(refs))
    assert load_grounding_dataset("grefcoco", "val", root=grefcoco)["no_target"] == [False, False, True]
