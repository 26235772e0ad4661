"""COCO-style JSON from several exports: ids that repeat, lead nowhere or are text, and boxes that are not there."""

import json

import pytest

from hivg_hf.data.loading import load_grounding_dataset
from hivg_hf.data.rows import BrokenRowsError


@pytest.fixture
def read(tmp_path, make_image, facts):
    """Rows of a COCO file made of these images and annotations, as (file, expression, boxes, ref_id)."""
    for name in ("one.png", "two.png"):
        make_image(tmp_path / name, 64, 48)

    def load(images, annotations, split="all", **options):
        (tmp_path / "mine.json").write_text(json.dumps({"images": images, "annotations": annotations}))
        rows = facts(load_grounding_dataset(tmp_path / "mine.json", split, **options))
        return [(row["image"], row["expression"], row["boxes"], row["ref_id"]) for row in rows]

    return load


def _image(number, name="one.png", **fields):
    return {"id": number, "file_name": name, "width": 64, "height": 48, **fields}


def _note(number, image=1, **fields):
    return {"id": number, "image_id": image, "bbox": [10, 20, 20, 10], "expression": f"object {number}", **fields}


BOX, OTHER_BOX = [10, 20, 30, 30], [1, 2, 11, 12]
TWO = [_image(1), _image(2, "two.png")]


@pytest.mark.parametrize("numbers", [(1, 1), (0, 0), (None, None), ("a", "a"), (True, True)])
def test_annotations_whose_ids_repeat_are_rows_of_their_own(read, numbers):
    notes = [_note(number, image, expression=f"on {image}") for image, number in zip((1, 2), numbers, strict=True)]
    rows = read(TWO, notes)
    assert [row[:3] for row in rows] == [("one.png", "on 1", [BOX]), ("two.png", "on 2", [BOX])]
    assert len({row[3] for row in rows}) == 2


@pytest.mark.parametrize(("image_id", "own_id"), [("1", 1), (1, "1"), (1.0, 1), (" 1 ", 1)])
def test_an_id_is_the_same_as_text_and_as_a_number(read, image_id, own_id):
    assert read([_image(own_id)], [_note(5, image_id)]) == [("one.png", "object 5", [BOX], "5")]


@pytest.mark.parametrize("image_id", [9, None, True, [1], {"id": 1}, 1.5, ""])
def test_an_annotation_of_no_image_is_named_and_can_be_skipped(read, image_id, caplog):
    notes = [_note(5), _note(6, image_id)]
    with pytest.raises(BrokenRowsError, match=r"ref_id 6, annotation 1: its image_id .* is not the id of any image"):
        read(TWO, notes)
    assert [row[1] for row in read(TWO, notes, on_error="skip")] == ["object 5"]
    assert "left out 1 of 2 rows" in caplog.text


def test_an_image_id_of_two_pictures_is_nobodys(read):
    images = [_image(1), _image(1, "two.png"), _image(3, "two.png")]
    notes = [_note(5, 1), _note(6, 3)]
    with pytest.raises(BrokenRowsError, match=r"image_id 1 is the id of 2 different images \('one.png', 'two.png'\)"):
        read(images, notes)
    assert [row[1] for row in read(images, notes, on_error="skip")] == ["object 6"]
    assert len(read([_image(1), _image(1)], [_note(5)])) == 1  # the same entry twice means one thing


@pytest.mark.parametrize("bbox", [None, [], False])
def test_a_missing_box_is_not_a_target_that_is_not_there(read, bbox):
    with pytest.raises(BrokenRowsError, match="it has no box and no no_target"):
        read(TWO, [_note(5, bbox=bbox)])
    assert read(TWO, [_note(5, bbox=bbox, no_target=True)]) == [("one.png", "object 5", [], "5")]
    with pytest.raises(BrokenRowsError, match="it says no_target and has a box"):
        read(TWO, [_note(5, no_target=True)])
    with pytest.raises(BrokenRowsError, match="1 of its 2 targets have no bbox"):
        read(TWO, [_note(5, ref_id=1, expression="x"), _note(6, ref_id=1, expression="x", bbox=bbox)])


@pytest.mark.parametrize("ref_id", [None, "", " "])
def test_rows_without_a_ref_id_stay_apart(read, ref_id):
    rows = read(TWO, [_note(5, ref_id=ref_id), _note(6, 2, ref_id=ref_id)])
    assert [row[1:] for row in rows] == [("object 5", [BOX], "5"), ("object 6", [BOX], "6")]


def test_a_ref_id_on_two_pictures_is_refused_on_both(read):
    notes = [_note(5, 1, ref_id=7), _note(6, 2, ref_id="7"), _note(8, 2)]
    with pytest.raises(BrokenRowsError, match=r"2 of 3 rows .*\n.* its ref_id is on 2 images \('one.png', 'two"):
        read(TWO, notes)
    assert [row[1] for row in read(TWO, notes, on_error="skip")] == ["object 8"]


def test_every_expression_of_a_ref_is_a_row(read):
    notes = [
        _note(5, ref_id=7, expression="the cup"),
        _note(6, ref_id=7, expression="the mug", bbox=[1, 2, 10, 10]),
        _note(8, ref_id=9, expression="both"),
        {"id": 10, "image_id": 1, "ref_id": 9, "bbox": [1, 2, 10, 10]},
    ]
    assert [row[1:] for row in read(TWO, notes)] == [
        ("the cup", [BOX], "7"),
        ("the mug", [OTHER_BOX], "7"),
        ("both", [BOX, OTHER_BOX], "9"),
    ]


def test_an_annotation_without_a_split_is_reported_by_every_split(read):
    images = [_image(1, split="train"), _image(2, "two.png", split="val"), _image(3, "two.png", split=" ")]
    notes = [_note(5), _note(6, 2), _note(8, 3)]
    for split, kept in (("train", "object 5"), ("val", "object 6")):
        with pytest.raises(BrokenRowsError, match=r"1 of 2 rows .*\n  ref_id 8, annotation 2: its split is blank"):
            read(images, notes, split)
        assert [row[1] for row in read(images, notes, split, on_error="skip")] == [kept]


@pytest.mark.parametrize("entry", [5, "x", None, [1]])
def test_entries_that_are_not_objects_are_rows_that_cannot_be_used(read, entry):
    with pytest.raises(BrokenRowsError, match="expected an object"):
        read([*TWO, entry], [_note(5), entry])
    assert len(read([*TWO, entry], [_note(5), entry], on_error="skip")) == 1


def test_normalized_boxes_are_refused_here_too(read):
    with pytest.raises(BrokenRowsError, match="lies within the first pixel of its image of 64 x 48"):
        read(TWO, [_note(5, bbox=[0.1, 0.2, 0.3, 0.4])])


def test_files_that_are_not_coco_are_named(tmp_path):
    for content in ("[]", "{}", '{"images": 5, "annotations": []}', "[" * 100_000, "{", '{"images": {}}'):
        (tmp_path / "mine.json").write_text(content)
        with pytest.raises(ValueError, match=r"mine\.json is not a COCO file"):
            load_grounding_dataset(tmp_path / "mine.json", "all")


def test_pictures_that_share_a_stem_keep_names_of_their_own(tmp_path, make_image):
    images = [_image(1, "day/1.png"), _image(2, "night/1.png"), _image(3, "2.png")]
    for image in images:
        make_image(tmp_path / image["file_name"], 64, 48)
    content = {"images": images, "annotations": [_note(5, 1), _note(6, 2), _note(7, 3)]}
    (tmp_path / "mine.json").write_text(json.dumps(content))
    rows = load_grounding_dataset(tmp_path / "mine.json", "all")
    assert rows["image_id"][:] == ["day/1.png", "night/1.png", "2"]
