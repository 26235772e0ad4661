"""Pictures become rows that our own readers read, files that others read, and a run that resumes."""

import json
import shutil
import xml.etree.ElementTree as ET

import PIL.Image
import pytest

from hivg_hf import load_grounding_dataset
from hivg_hf.labeling import ClipTeacher, DetectorTeacher, label_pictures
from hivg_hf.zero_shot import component_proposals


@pytest.fixture
def labels(scene, teacher, tmp_path):
    out = tmp_path / "labels"
    label_pictures([str(scene)], out, teacher, per_object=9)
    return out


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_rows_say_who_found_what_and_how_sure(labels):
    rows = lines(labels / "labels.jsonl")
    assert {"the red cup", "the blue cup", "the leftmost cup", "the plate", "the green plate"} <= {
        row["expression"] for row in rows
    }
    row = next(row for row in rows if row["expression"] == "the red cup")
    assert row["image"] == "../photos/scene.png"
    assert row["box"] == [10, 30, 40, 70]
    assert (row["score"], row["source"], row["category"]) == (0.9, "pseudo:knows", "cup")
    assert (row["width"], row["height"], row["template"]) == (200, 100, "the {color} {category}")
    assert len({row["sent_id"] for row in rows}) == len(rows)


@pytest.mark.parametrize("table", ["labels.jsonl", "labels.parquet"])
def test_our_reader_reads_the_table(scene, teacher, tmp_path, table):
    label_pictures([str(scene)], tmp_path / "labels", teacher, table=table)
    path = tmp_path / "labels" / table
    rows = load_grounding_dataset(str(path), "all", box_format="xyxy")
    assert rows[0]["image"].size == (200, 100)
    assert rows[0]["box"] in ([10, 30, 40, 70], [70, 30, 100, 70], [130, 30, 190, 80])
    assert set(rows["category"]) == {"cup", "plate"}


def test_our_reader_reads_the_coco_file_with_the_same_boxes(labels):
    rows = load_grounding_dataset(str(labels / "coco.json"), "all")
    expected = {(row["expression"], tuple(row["box"])) for row in lines(labels / "labels.jsonl")}
    assert {(row["expression"], tuple(row["box"])) for row in rows} == expected
    coco = json.loads((labels / "coco.json").read_text())
    assert coco["annotations"][0]["bbox"] == [10, 30, 30, 40]
    assert coco["annotations"][0]["score"] == 0.9


def test_a_photograph_that_a_camera_turned_is_labeled_upright(scene, teacher, tmp_path):
    turned = scene.with_name("turned.jpg")
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # a viewer turns it a quarter to the right
    PIL.Image.open(scene).rotate(90, expand=True).save(turned, exif=exif, quality=95)
    label_pictures([str(turned)], tmp_path / "labels", teacher)
    rows = load_grounding_dataset(str(tmp_path / "labels" / "labels.jsonl"), "all", box_format="xyxy")
    assert (rows[0]["width"], rows[0]["height"]) == (200, 100)
    assert "the red cup" in rows["expression"]


def test_label_studio_tasks_fit_their_interface(scene, teacher, tmp_path):
    teacher.objects[(200, 100)][2] = ('pl<a>te & "x"', (130.0, 30.0, 190.0, 80.0), 0.7)
    label_pictures([str(scene)], tmp_path / "labels", teacher, local_files="set one/labels")
    task = json.loads((tmp_path / "labels" / "label-studio.json").read_text())[0]
    assert task["data"]["image"] == "/data/local-files/?d=set%20one/labels/../photos/scene.png"
    result = task["predictions"][0]["result"]
    box = next(region for region in result if region["type"] == "rectanglelabels")
    value = {key: box["value"][key] for key in ("x", "y", "width", "height")}
    assert value == pytest.approx({"x": 5, "y": 30, "width": 15, "height": 40})
    text = next(region for region in result if region["type"] == "textarea" and region["id"] == box["id"])
    assert "the red cup" in text["value"]["text"]
    assert task["predictions"][0]["score"] == 0.7
    view = ET.parse(tmp_path / "labels" / "label-studio.xml").getroot()
    names = {tag.attrib["name"] for tag in view if "name" in tag.attrib}
    assert {region["from_name"] for region in result} | {box["to_name"]} <= names
    shown = {label.attrib["value"] for label in view.iter("Label")}
    assert shown == {label for region in result for label in region["value"].get("rectanglelabels", [])}


def test_the_page_escapes_what_it_shows_and_names_pictures_relative(scene, teacher, tmp_path):
    hostile = scene.with_name("a & 'b' #1.png")
    shutil.move(scene, hostile)
    teacher.objects[(200, 100)][2] = ("<script>alert(1)</script>", (130.0, 30.0, 190.0, 80.0), 0.7)
    label_pictures([str(hostile)], tmp_path / "labels", teacher)
    page = (tmp_path / "labels" / "review.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "the &lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "../photos/a%20%26%20%27b%27%20%231.png" in page
    assert str(tmp_path) not in page
    assert "left:5.00%;top:30.00%;width:15.00%;height:40.00%" in page


def test_a_second_run_asks_about_new_pictures_only_and_other_templates_need_no_teacher(scene, teacher, tmp_path):
    out = tmp_path / "labels"
    label_pictures([str(scene)], out, teacher)
    other = scene.with_name("other.png")
    shutil.copy(scene, other)
    report = label_pictures([str(scene), str(other)], out, teacher, templates=["a {color} {category}"])
    assert (teacher.asked, report.found_before, report.pictures) == (2, 1, 2)
    rows = lines(out / "labels.jsonl")
    assert {row["expression"] for row in rows} == {"a red cup", "a blue cup", "a green plate"}
    assert len(rows) == 6
    PIL.Image.new("RGB", (50, 50)).save(other)  # replaced: asked again
    assert label_pictures([str(scene), str(other)], out, teacher).without_expression == 1
    assert teacher.asked == 3


def test_a_line_that_a_killed_run_left_unfinished_is_asked_again(scene, teacher, tmp_path):
    out = tmp_path / "labels"
    label_pictures([str(scene)], out, teacher)
    content = (out / "objects.jsonl").read_text(encoding="utf-8")
    expected = (out / "labels.jsonl").read_bytes()
    (out / "objects.jsonl").write_text(content[: len(content) // 2], encoding="utf-8")
    label_pictures([str(scene)], out, teacher)
    assert teacher.asked == 2
    assert (out / "objects.jsonl").read_text(encoding="utf-8") == content
    assert (out / "labels.jsonl").read_bytes() == expected


def test_labels_of_another_teacher_are_not_mixed_in(scene, teacher, tmp_path):
    label_pictures([str(scene)], tmp_path / "labels", teacher, nouns=["cup"])
    with pytest.raises(ValueError, match=r"was made with {'nouns': \['cup'\]}, and now {'nouns': \['mug'\]}"):
        label_pictures([str(scene)], tmp_path / "labels", teacher, nouns=["mug"])


def test_a_spoiled_progress_file_is_named(scene, teacher, tmp_path):
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "objects.jsonl").write_text("spoiled\n")
    with pytest.raises(ValueError, match=r"objects.jsonl \(line 1\) is not JSON: delete the file"):
        label_pictures([str(scene)], tmp_path / "labels", teacher)


def test_bad_pictures_are_counted_and_tried_again(scene, teacher, tmp_path):
    broken = scene.with_name("broken.jpg")
    broken.write_bytes(b"\xff\xd8\xff nothing")
    report = label_pictures([str(broken), str(scene)], tmp_path / "labels", teacher)
    assert list(report.failed) == [str(broken)]
    assert "broken.jpg" in report.failed[str(broken)]
    assert report.pictures == 1
    shutil.copy(scene, broken)
    assert label_pictures([str(broken), str(scene)], tmp_path / "labels", teacher).failed == {}


def test_rejected_expressions_are_left_out_by_the_next_run(labels, scene, teacher):
    rows = lines(labels / "labels.jsonl")
    (labels / "rejected.txt").write_text(rows[0]["sent_id"] + "\n", encoding="utf-8")
    report = label_pictures([str(scene)], labels, teacher, per_object=9)
    assert report.rejected == 1
    assert rows[0]["sent_id"] not in {row["sent_id"] for row in lines(labels / "labels.jsonl")}


def test_a_caption_model_adds_words_that_no_other_object_got(scene, teacher, tmp_path):
    def captioner(crop):
        return "a round\nthing" if crop.size == (60, 50) else "a cup"

    label_pictures([str(scene)], tmp_path / "labels", teacher, captioner=captioner)
    captions = [row for row in lines(tmp_path / "labels" / "labels.jsonl") if row["template"] == "caption"]
    assert [row["expression"] for row in captions] == ["a round thing"]


def test_doubtful_objects_count_as_distractors(scene, teacher, tmp_path):
    teacher.objects[(200, 100)][1] = ("cup", (70.0, 30.0, 100.0, 70.0), 0.2)
    label_pictures([str(scene)], tmp_path / "labels", teacher, per_object=9)
    rows = lines(tmp_path / "labels" / "labels.jsonl")
    assert "the cup" not in {row["expression"] for row in rows}
    assert min(row["score"] for row in rows) >= 0.35


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0.1, "doubtful": 0.2}, "Expected 0 <= doubtful <= threshold <= 1, got 0.2 and 0.1"),
        ({"table": "labels.csv"}, "Expected a table that ends in .jsonl or .parquet, got 'labels.csv'"),
        ({"templates": ["{kind}"]}, "has the field {kind}"),
    ],
)
def test_options_are_checked_before_the_teacher_is_asked(scene, teacher, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        label_pictures([str(scene)], tmp_path / "labels", teacher, **options)
    assert teacher.asked == 0
    assert not (tmp_path / "labels").exists()


@pytest.mark.parametrize("name", ["grounding_dino", "owlv2"])
def test_a_detector_of_transformers_labels_end_to_end(scene, tmp_path, request, name):
    teacher = DetectorTeacher(request.getfixturevalue(name), ["red star", "blue circle"], name)
    report = label_pictures([str(scene)], tmp_path / "labels", teacher, threshold=0.0, doubtful=0.0)
    rows = load_grounding_dataset(str(tmp_path / "labels" / "labels.jsonl"), "all", box_format="xyxy")
    assert report.pictures == 1
    assert len(rows) == sum(report.by_template.values()) > 0


def test_a_plain_clip_labels_end_to_end(scene, tmp_path, encoder):
    teacher = ClipTeacher(encoder, ["red star", "blue circle"], "clip", proposals=component_proposals)
    found = teacher(PIL.Image.open(scene), 0.0)
    assert {tuple(round(edge) for edge in one.box) for one in found} == {
        (10, 30, 40, 70),
        (70, 30, 100, 70),
        (130, 30, 190, 80),
    }
    blobs = ClipTeacher(encoder, ["red star", "blue circle"], "clip")
    report = label_pictures([str(scene)], tmp_path / "labels", blobs, threshold=0.0, doubtful=0.0)
    assert report.pictures + report.without_expression == 1
    assert not report.failed
