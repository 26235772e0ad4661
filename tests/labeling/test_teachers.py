"""Who finds the objects, and how each kind is asked."""

import PIL.Image
import pytest
import torch
from transformers import BertConfig

from hivg_hf.labeling import ClipTeacher, DetectorTeacher, FlorenceTeacher, label_pictures, load_teacher


def test_the_kind_of_model_decides(grounding_dino, clip, tiny_tokenizer, tmp_path):
    grounding_dino.model.save_pretrained(tmp_path / "dino")
    grounding_dino.processor.save_pretrained(tmp_path / "dino")
    clip.save_pretrained(tmp_path / "clip")
    tiny_tokenizer.save_pretrained(tmp_path / "clip")
    assert isinstance(load_teacher(str(tmp_path / "dino"), ["star"]), DetectorTeacher)
    assert isinstance(load_teacher(str(tmp_path / "clip"), ["star"]), ClipTeacher)
    with pytest.raises(ValueError, match="A clip teacher needs nouns to look for"):
        load_teacher(str(tmp_path / "clip"))


@pytest.mark.parametrize("name", ["tiny", "no/such/teacher"])
def test_a_teacher_that_is_not_there_is_named(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"The teacher '{name}' is neither a folder nor a Hub id that can be reached"):
        load_teacher(name, ["star"])


def test_another_kind_of_model_is_refused(tmp_path):
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"is a bert model; a teacher is one of .*owlv2.*, florence2 or clip"):
        load_teacher(str(tmp_path), ["star"])


def test_florence_with_random_weights_labels_end_to_end(florence2, scene, tmp_path):
    for nouns in (["red star"], None):
        teacher = FlorenceTeacher(*florence2, nouns, "florence", max_new_tokens=12)
        report = label_pictures([str(scene)], tmp_path / str(nouns), teacher, threshold=0.0, doubtful=0.0)
        assert not report.failed
        assert report.pictures + report.without_expression == 1


@pytest.mark.parametrize(
    ("nouns", "text", "labels"),
    [
        (["red star"], "</s><s>red star<loc_100><loc_300><loc_400><loc_700></s>", {"red star"}),
        (None, "</s>star<loc_100><loc_300><loc_400><loc_700>red<loc_0><loc_0><loc_99><loc_99></s>", {"star", "red"}),
    ],
)
def test_florences_places_become_boxes_in_pixels(florence2, monkeypatch, nouns, text, labels):
    model, processor = florence2
    teacher = FlorenceTeacher(model, processor, nouns, "florence", max_new_tokens=4)
    monkeypatch.setattr(processor, "batch_decode", lambda sequences, **options: [text])
    found = teacher(PIL.Image.new("RGB", (200, 100)), 0.0)
    assert {one.label for one in found} == labels
    assert any(one.box == pytest.approx((20, 30, 80, 70), abs=0.2) for one in found)
    assert all(0 < one.score <= 1 for one in found)
    assert teacher(PIL.Image.new("RGB", (200, 100)), 1.0) == []


def test_a_clip_teacher_rejects_what_looks_like_background(encoder, clip, tiny_tokenizer, monkeypatch):
    from hivg_hf.zero_shot import ZeroShotClip

    with_background = ZeroShotClip(clip, tiny_tokenizer, background=("sea",))
    boxes = torch.tensor([[0.0, 0, 30, 30], [40, 0, 70, 30]]).numpy()
    scores = {"star": [9.0, 0.0], "sea": [0.0, 9.0]}
    monkeypatch.setattr(
        "hivg_hf.labeling.teachers.score_proposals",
        lambda encoder, picture, boxes, texts, way: torch.tensor([scores[text] for text in texts]).numpy(),
    )
    teacher = ClipTeacher(with_background, ["star"], "clip", proposals=lambda picture, nouns: boxes)
    found = teacher(PIL.Image.new("RGB", (80, 40)), 0.5)
    assert [(one.label, one.box) for one in found] == [("star", (0, 0, 30, 30))]
    assert found[0].score > 0.99
