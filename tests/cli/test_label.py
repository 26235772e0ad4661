"""`hivg label`: from a folder of pictures and a model folder to labels."""

import json

import pytest
from typer.testing import CliRunner

from helpers.zero_shot_models import clip, encoder, grounding_dino
from hivg_hf.cli import app
from hivg_hf.cli.label import read_lines, read_nouns
from hivg_hf.data.refshapes import refshapes_dataset
from hivg_hf.utils.held_folder import folder_lock

__all__ = ["clip", "encoder", "grounding_dino"]


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos").mkdir()
    for number, row in enumerate(refshapes_dataset("val", seed=5, size=2, masks=False)):
        row["image"].save(tmp_path / "photos" / f"{number}.png")
    return tmp_path / "photos"


@pytest.fixture
def teacher(grounding_dino, tmp_path):
    grounding_dino.model.save_pretrained(tmp_path / "teacher")
    grounding_dino.processor.save_pretrained(tmp_path / "teacher")
    return str(tmp_path / "teacher")


def label(*arguments):
    result = CliRunner().invoke(app, ["label", *map(str, arguments)])
    return result.exit_code, result.output


ALL = ("--threshold", 0, "--doubtful", 0)


def test_a_grounding_dino_folder_labels_a_folder_and_resumes(photos, teacher, tmp_path):
    out = tmp_path / "labels"
    status, printed = label(photos, out, "--teacher", teacher, "--nouns", "red star, blue circle", *ALL)
    assert status == 0, printed
    assert "expressions for 2 pictures" in printed
    assert {path.name for path in out.iterdir()} == {
        *("labels.jsonl", "coco.json", "label-studio.json", "label-studio.xml", "review.html", "objects.jsonl"),
    }
    status, printed = label(photos, out, "--teacher", teacher, "--nouns", "red star,blue circle", *ALL)
    assert status == 0
    assert "2 were searched before" in printed
    status, printed = label(photos, out, "--teacher", teacher, "--nouns", "red star", *ALL)
    assert status == 2
    assert "choose another folder for the labels" in printed


def test_a_clip_folder_is_a_teacher_too(photos, clip, tiny_tokenizer, tmp_path):
    clip.save_pretrained(tmp_path / "clip")
    tiny_tokenizer.save_pretrained(tmp_path / "clip")
    out = tmp_path / "labels"
    status, printed = label(photos, out, "--teacher", tmp_path / "clip", "--nouns", "star,sea", *ALL, "--parquet")
    assert status == 0, printed
    assert (out / "labels.parquet").is_file()


def test_a_bad_picture_is_reported_and_the_rest_is_labeled(photos, teacher, tmp_path):
    (photos / "bad.jpg").write_bytes(b"not a picture")
    status, printed = label(photos, tmp_path / "labels", "--teacher", teacher, "--nouns", "red star", *ALL)
    assert status == 1
    assert "bad.jpg" in printed
    assert "1 could not be used" in printed
    only = tmp_path / "only"
    only.mkdir()
    (photos / "bad.jpg").rename(only / "bad.jpg")
    assert label(only, tmp_path / "none", "--teacher", teacher, "--nouns", "red star")[0] == 2


def test_own_templates_replace_or_join_the_included_ones(photos, teacher, tmp_path):
    file = tmp_path / "templates.txt"
    file.write_text("# mine\n\n{category}, {extreme}\n", encoding="utf-8")
    arguments = [photos, tmp_path / "labels", "--teacher", teacher, "--nouns", "red star", *ALL, "--templates", file]
    assert label(*arguments, "--only-these-templates")[0] == 0
    rows = [json.loads(line) for line in (tmp_path / "labels" / "labels.jsonl").read_text().splitlines()]
    assert {row["template"] for row in rows} == {"{category}, {extreme}"}
    assert label(*arguments, "--per-object", 20)[0] == 0
    rows = [json.loads(line) for line in (tmp_path / "labels" / "labels.jsonl").read_text().splitlines()]
    assert len({row["template"] for row in rows}) > 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--teacher", "TEACHER"], "teacher needs nouns to look for"),
        (["--teacher", "TEACHER", "--nouns", " ,"], "--nouns has no noun in it"),
        (["--teacher", "TEACHER", "--nouns", "cup", "--only-these-templates"], "needs --templates"),
        (["--teacher", "TEACHER", "--nouns", "nowhere.txt"], "Text file not found: 'nowhere.txt'"),
        (["--teacher", "HIVG", "--nouns", "cup"], "a teacher is one of"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_sentence(photos, teacher, tiny_tokenizer, tmp_path, arguments, message):
    from transformers import BertConfig

    BertConfig().save_pretrained(tmp_path / "bert")
    folders = {"TEACHER": teacher, "HIVG": str(tmp_path / "bert")}
    status, printed = label(photos, tmp_path / "labels", *(folders.get(word, word) for word in arguments))
    assert status == 2
    assert message in printed


def test_nouns_come_from_commas_or_a_file(tmp_path):
    assert read_nouns("cup, red car,cup") == ["cup", "red car"]
    (tmp_path / "nouns.txt").write_text("﻿cup\n# comment\nred car\n", encoding="utf-8")
    assert read_nouns(str(tmp_path / "nouns.txt")) == ["cup", "red car"]
    assert read_nouns(None) is None
    assert read_lines(tmp_path / "nouns.txt") == ["cup", "red car"]


def test_a_second_run_in_the_same_folder_is_refused(photos, teacher, tmp_path):
    out = tmp_path / "labels"
    with folder_lock(out, "labeling in"):
        status, printed = label(photos, out, "--teacher", teacher, "--nouns", "star", *ALL)
    assert status == 2
    assert "is labeling in" in printed
    assert not out.exists()  # made for a run that wrote nothing
