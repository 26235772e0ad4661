"""`hivg ground --zero-shot`: a plain CLIP in place of a trained model."""

import json

import PIL.Image
import PIL.ImageDraw
import pytest
from typer.testing import CliRunner

from helpers.zero_shot_models import clip, encoder, owlv2
from hivg_hf.cli import app

__all__ = ["clip", "encoder", "owlv2"]


@pytest.fixture
def photo(tmp_path):
    (tmp_path / "photos").mkdir()
    picture = PIL.Image.new("RGB", (120, 80), "grey")
    PIL.ImageDraw.Draw(picture).rectangle((10, 20, 39, 59), fill=(220, 30, 30))
    picture.save(tmp_path / "photos" / "scene.png")
    return tmp_path / "photos" / "scene.png"


@pytest.fixture
def clip_folder(clip, tiny_tokenizer, tmp_path):
    clip.save_pretrained(tmp_path / "clip")
    tiny_tokenizer.save_pretrained(tmp_path / "clip")
    return str(tmp_path / "clip")


def ground(*arguments):
    result = CliRunner().invoke(app, ["ground", *map(str, arguments), "--device", "cpu"])
    return result.exit_code, result.output if result.exit_code or "--json" not in arguments else result.stdout


def test_boxes_of_a_plain_clip_are_printed_and_drawn(photo, clip_folder, tmp_path):
    out = tmp_path / "drawn.png"
    status, printed = ground(photo, "red star", "sea", "--zero-shot", clip_folder, "--out", out, "--heatmap")
    assert status == 0, printed
    assert "red star" in printed
    assert out.is_file()
    assert (tmp_path / "drawn.heatmap.png").is_file()


def test_components_are_proposals(photo, clip_folder):
    arguments = ["--zero-shot", clip_folder, "--proposals", "components", "--json", "--no-pictures"]
    status, printed = ground(photo, "red star", *arguments)
    assert status == 0, printed
    box = json.loads(printed)["results"][0]["box"]
    assert list(box.values()) == pytest.approx([10, 20, 40, 60], abs=1)


def test_a_detector_gives_proposals(photo, clip_folder, owlv2, tmp_path):
    owlv2.model.save_pretrained(tmp_path / "owl")
    owlv2.processor.save_pretrained(tmp_path / "owl")
    arguments = ["--zero-shot", clip_folder, "--proposals", tmp_path / "owl", "--json", "--no-pictures"]
    status, printed = ground(photo, "red star", *arguments)
    assert status == 0, printed
    assert json.loads(printed)["results"][0]["score"] <= 1


def test_a_folder_with_a_bad_picture_goes_on_and_resumes(photo, clip_folder, tmp_path):
    (photo.parent / "bad.png").write_bytes(b"not a picture")
    arguments = [photo.parent, "red star", "--zero-shot", clip_folder, "--out", tmp_path / "out"]
    status, printed = ground(*arguments)
    assert status == 1
    assert "bad.png" in printed
    assert "1 were done before" in ground(*arguments)[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--proposals", "components"], "--proposals belongs to --zero-shot"),
        (["--zero-shot", "CLIP", "--mask"], "--zero-shot does not go with --mask"),
        (["--zero-shot", "CLIP", "--model", "x", "--layers"], "does not go with --model, --layers"),
    ],
)
def test_options_that_do_not_apply_are_refused(photo, clip_folder, arguments, message):
    words = [clip_folder if word == "CLIP" else word for word in arguments]
    status, printed = ground(photo, "star", *words)
    assert status == 2
    assert message in printed
