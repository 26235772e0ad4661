"""Every format that people hold: the same scenes give the same rows, and several boxes are what the user says."""

import json

import numpy as np
import pytest
from PIL import Image

from helpers.annotation_formats import WRITERS
from hivg_hf.data.loading import load_grounding_dataset
from hivg_hf.data.order import without_image_decoding
from hivg_hf.data.readers import FORMATS, find_source
from hivg_hf.data.rows import BrokenRowsError

SCENES = 20


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """20 rendered scenes as files, and their rows."""
    folder = tmp_path_factory.mktemp("scenes")
    rows = []
    for number, row in enumerate(load_grounding_dataset("refshapes", "val", seed=21, size=SCENES, masks=False)):
        row["image"].save(folder / f"scene{number:02d}.png")
        size = {"width": row["width"], "height": row["height"]}
        rows.append({"image": f"scene{number:02d}.png", "expression": row["expression"], "box": row["box"], **size})
    return folder, rows


def _link(scenes, folder):
    for path in scenes[0].iterdir():
        (folder / path.name).symlink_to(path)
    return scenes[1]


@pytest.mark.parametrize("name", WRITERS)
def test_the_same_scenes_give_the_same_rows_in_every_format(scenes, tmp_path, name):
    rows = _link(scenes, tmp_path)
    options = {"split": "all", **WRITERS[name](tmp_path, rows)}
    read = without_image_decoding(load_grounding_dataset(**options))
    assert [row["expression"] for row in read] == [row["expression"] for row in rows]
    assert [(row["width"], row["height"]) for row in read] == [(row["width"], row["height"]) for row in rows]
    np.testing.assert_allclose([row["box"] for row in read], [row["box"] for row in rows], atol=1e-4)
    for loaded, row in zip(read, rows, strict=True):
        with Image.open(loaded["image"]["path"]) as one, Image.open(tmp_path / row["image"]) as other:
            assert np.array_equal(np.asarray(one.convert("RGB")), np.asarray(other.convert("RGB")))


@pytest.mark.parametrize("name", sorted(set(WRITERS) - {"dior-rsvg", "roboflow-csv"}))
def test_every_format_without_splits_is_held_out_by_image_and_streams(scenes, tmp_path, name):
    rows = _link(scenes, tmp_path)
    options = {**WRITERS[name](tmp_path, rows), "holdout": 0.25}
    sides = [load_grounding_dataset(split=side, **options) for side in ("train", "val")]
    assert [len(side) for side in sides] == [15, 5]
    assert not set(sides[0]["image_id"]) & set(sides[1]["image_id"])
    stream = load_grounding_dataset(split="val", streaming=True, shuffle=False, **options)
    assert [row["expression"] for row in stream] == sides[1]["expression"][:]


def test_a_format_can_be_named(scenes, tmp_path):
    rows = _link(scenes, tmp_path)
    path = tmp_path / "renamed.ndjson"
    path.write_text(json.dumps({"a": 1}) + "\n" + (tmp_path / WRITERS["odvg"](tmp_path, rows)["source"]).read_text())
    assert find_source(str(path)) is FORMATS["odvg"]  # the first lines decide, not the first alone
    with pytest.raises(ValueError, match="Unknown format 'odgv'; expected one of table, coco, odvg, grit"):
        load_grounding_dataset(path, "all", format="odgv")
    read = load_grounding_dataset(path, "all", format="odvg", on_error="skip")
    assert len(read) == SCENES


TWO = [[2.0, 3.0, 10.0, 12.0], [20.0, 3.0, 30.0, 12.0]]


@pytest.mark.parametrize("name", ["odvg", "tao", "cvat", "label-studio", "coco-categories", "chat-objects", "voc"])
def test_boxes_of_one_expression_are_one_row_or_several_as_the_user_says(tmp_path, make_image, name):
    make_image(tmp_path / "a.png", 64, 48)
    options = {"split": "all", **_two_boxes(tmp_path, name)}
    (row,) = load_grounding_dataset(**options)
    np.testing.assert_allclose(row["boxes"], TWO, atol=1e-4)
    assert row["box"] is None
    (union,) = load_grounding_dataset(**options, multi_target="union")
    np.testing.assert_allclose(union["box"], [2, 3, 30, 12], atol=1e-4)
    apart = load_grounding_dataset(**options, several="apart")
    np.testing.assert_allclose(apart["box"][:], TWO, atol=1e-4)
    with pytest.raises(ValueError, match="several must be one of together, apart, got 'both'"):
        load_grounding_dataset(**options, several="both")


def _two_boxes(folder, name):
    """The file of a format that gives two boxes of one image to one expression."""
    row = {"image": "a.png", "expression": "dog", "width": 64, "height": 48}
    options = WRITERS[name](folder, [{**row, "box": box} for box in TWO])
    if name == "coco-categories":
        content = json.loads((folder / "rows.json").read_text())
        content["images"] = content["images"][:1]
        content["annotations"] = [{**note, "image_id": 0} for note in content["annotations"]]
        (folder / "rows.json").write_text(json.dumps(content))
    elif name == "label-studio":
        first, second = json.loads((folder / "rows.json").read_text())
        extra = [{**region, "id": "r2"} for region in second["annotations"][0]["result"]]
        first["annotations"][0]["result"] += extra
        (folder / "rows.json").write_text(json.dumps([first]))
    elif name == "cvat":
        path = folder / "annotations.xml"
        text = path.read_text()
        path.write_text(text.replace('</image><image id="1" name="a.png" width="64" height="48">', ""))
    elif name == "voc":
        first, second = (folder / "Annotations" / f"000{n}.xml" for n in (0, 1))
        entry = second.read_text().split("</size>")[1].split("</annotation>")[0]
        first.write_text(first.read_text().replace("</annotation>", entry + "</annotation>"))
        second.unlink()
    else:
        path = folder / ("annotations.jsonl" if name == "tao" else "rows.jsonl")
        first, second = map(json.loads, path.read_text().splitlines())
        if name == "odvg":
            first["grounding"]["regions"][0]["bbox"] = TWO
        elif name == "tao":
            first["detection"]["instances"] += second["detection"]["instances"]
        else:
            first["objects"] = {"ref": ["dog", "dog"], "bbox": TWO}
        path.write_text(json.dumps(first))
    return options


def test_text_in_place_of_a_list_of_boxes_is_one_problem_and_not_one_for_each_letter(scenes, tmp_path):
    options = WRITERS["tao"](tmp_path, _link(scenes, tmp_path))
    path = tmp_path / "annotations.jsonl"
    first, *others = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps({**json.loads(first), "detection": {"instances": "none" * 9}}), *others]))
    with pytest.raises(
        ValueError, match=r"^[^\n]*: 1 of [^\n]*\n[^\n]*'nonenone[^\n]*where a list of boxes is expected"
    ):
        load_grounding_dataset(**options, split="all")


def test_conversations_say_what_their_numbers_mean(scenes, tmp_path):
    rows = _link(scenes, tmp_path)
    options = WRITERS["chat-messages"](tmp_path, rows)
    with pytest.raises(ValueError, match=r"say what its boxes mean .*; the 20 boxes looked at can be xyxy_1000 \("):
        load_grounding_dataset(options["source"], "all")
    with pytest.raises(ValueError, match=r"of the 20 boxes looked at cannot be xyxy, .* possible as xyxy_1000"):
        load_grounding_dataset(options["source"], "all", box_format="xyxy")
    with pytest.raises(ValueError, match=r"prompt='Locate it' has no \{expression\}"):
        load_grounding_dataset(**options, split="all", prompt="Locate it")
    named = load_grounding_dataset(**options, split="all", prompt="Locate {expression}.")
    assert named["expression"][:] == [row["expression"] for row in rows]


def test_an_answer_without_boxes_is_a_no_target_row(tmp_path, make_image):
    make_image(tmp_path / "a.png", 64, 48)
    turns = [{"role": "user", "content": "<image>Locate the cat."}, {"role": "assistant", "content": "[]"}]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": turns, "images": ["a.png"]}))
    options = {"box_format": "xyxy", "prompt": "Locate {expression}."}
    (row,) = load_grounding_dataset(tmp_path / "rows.jsonl", "all", **options)
    assert (row["expression"], row["no_target"], row["boxes"]) == ("the cat", True, [])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annotations": [{"result": []}, {"result": []}]}, "2 people annotated it; say annotator='first' or 'last'"),
        ({"data": {"a": "x.png", "b": "y.png"}}, "its data names 2 pictures, expected one; say image_key="),
        ({"rotation": 30}, "a box of it, or its image, is rotated"),
    ],
)
def test_label_studio_tasks_that_are_not_one_upright_answer_are_named(tmp_path, make_image, change, message):
    make_image(tmp_path / "a.png", 64, 48)
    row = {"image": "a.png", "expression": "dog", "width": 64, "height": 48, "box": TWO[0]}
    source = WRITERS["label-studio"](tmp_path, [row])["source"]
    (task,) = json.loads((tmp_path / "rows.json").read_text())
    if "rotation" in change:
        task["annotations"][0]["result"][0]["value"] |= change
    else:
        task |= change
    (tmp_path / "rows.json").write_text(json.dumps([task]))
    with pytest.raises(BrokenRowsError, match=f"task 1 of rows.json.*: {message}"):
        load_grounding_dataset(source, "all")


def test_voc_counts_pixels_from_one_when_it_is_said(tmp_path, make_image):
    make_image(tmp_path / "a.png", 64, 48)
    row = {"image": "a.png", "expression": "dog", "width": 64, "height": 48, "box": [1, 1, 64, 48]}
    options = {**WRITERS["voc"](tmp_path, [row]), "split": "all"}
    assert load_grounding_dataset(**options)["box"][0] == [1, 1, 64, 48]
    assert load_grounding_dataset(**options, one_based=True)["box"][0] == [0, 0, 64, 48]


def test_xml_that_declares_entities_is_refused(tmp_path):
    bomb = '<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;">]><annotations><image name="&c;"/></annotations>'
    (tmp_path / "annotations.xml").write_text(bomb)
    with pytest.raises(ValueError, match=r"annotations\.xml declares a document type, which is not read"):
        load_grounding_dataset(tmp_path / "annotations.xml", "all")


def test_yolo_splits_polygons_and_classes_without_a_name(tmp_path, make_image):
    for name in ("train", "valid"):
        make_image(tmp_path / name / "images" / f"{name}.JPG", 64, 48)
        (tmp_path / name / "labels").mkdir()
    (tmp_path / "train" / "labels" / "train.txt").write_text("0 0.25 0.25 0.75 0.25 0.75 0.5 0.25 0.5\n")
    (tmp_path / "valid" / "labels" / "valid.txt").write_text("1 0.5 0.5 0.5 0.5\n\n")
    names = "names: [dog, cat]\ntrain: ../train/images\nval: ../valid/images\n"
    (tmp_path / "data.yaml").write_text(names)
    assert load_grounding_dataset(tmp_path, "train")["box"][0] == [16, 12, 48, 24]
    (row,) = load_grounding_dataset(tmp_path, "val")
    assert (row["expression"], row["box"]) == ("cat", [16, 12, 48, 36])
    (tmp_path / "data.yaml").write_text(names.replace(", cat", ""))
    with pytest.raises(BrokenRowsError, match=r"valid\.txt, expression 0: its class 1 has no name in data\.yaml"):
        load_grounding_dataset(tmp_path, "train")


@pytest.mark.parametrize("written", ["mine", "./mine", "mine/data.yaml", "{folder}/mine", "../{name}/mine"])
@pytest.mark.parametrize("places", ["", "path: .\ntrain: images\n", "train: ./images\n"])
def test_a_yolo_folder_is_read_by_any_name_it_has(written, places, tmp_path, make_image, monkeypatch):
    make_image(tmp_path / "mine" / "images" / "a.jpg", 64, 48)
    (tmp_path / "mine" / "labels").mkdir()
    (tmp_path / "mine" / "labels" / "a.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "mine" / "data.yaml").write_text(f"names: [dog]\n{places}")
    monkeypatch.chdir(tmp_path)
    source = written.format(folder=tmp_path, name=tmp_path.name)
    (row,) = load_grounding_dataset(source, "train" if places else "all")
    assert (row["expression"], row["box"], row["image_id"]) == ("dog", [16, 12, 48, 36], "images/a.jpg")
    (tmp_path / "mine" / "images" / "a.jpg").unlink()
    if places:
        with pytest.raises(BrokenRowsError, match=r"1 of 1 rows cannot be used \(1 missing image\)"):
            load_grounding_dataset(source, "train")


def test_a_detection_file_without_expressions_asks_before_it_takes_class_names(scenes, tmp_path):
    rows = _link(scenes, tmp_path)
    source = WRITERS["coco-categories"](tmp_path, rows)["source"]
    with pytest.raises(ValueError, match=r"no annotation has an expression.* Say expressions='category'"):
        load_grounding_dataset(source, "all")
