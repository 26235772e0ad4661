"""The door: inputs and answers as those of the trained pipeline."""

import json

import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest
import torch
from transformers import CLIPImageProcessorPil, CLIPProcessor, pipeline

from hivg_hf.modeling.processing_hivg import ExpressionCutWarning
from hivg_hf.zero_shot import ZeroShotClip, ZeroShotGrounder, component_proposals


@pytest.fixture(scope="module")
def picture():
    image = PIL.Image.new("RGB", (120, 80), (128, 128, 128))
    draw = PIL.ImageDraw.Draw(image)
    draw.rectangle((10, 20, 39, 59), fill=(220, 30, 30))
    draw.rectangle((70, 10, 99, 49), fill=(30, 30, 220))
    return image


@pytest.fixture(scope="module")
def grounder(encoder):
    return ZeroShotGrounder(encoder)


BOXES = [[10, 20, 40, 60], [70, 10, 100, 50]]


def corners(answer):
    return list(answer["box"].values())


def test_a_string_gives_one_answer_and_a_list_a_list(grounder, picture):
    one = grounder(picture, "red star")
    assert list(one) == ["expression", "box", "score"]
    assert list(one["box"]) == ["xmin", "ymin", "xmax", "ymax"]
    assert 0 <= one["box"]["xmin"] < one["box"]["xmax"] <= 120
    assert 0 <= one["box"]["ymin"] < one["box"]["ymax"] <= 80
    assert 0 <= one["score"] <= 1
    several = grounder(picture, ["red star", "sea"])
    assert [answer["expression"] for answer in several] == ["red star", "sea"]
    assert corners(several[0]) == pytest.approx(corners(one))
    assert several[0]["score"] == pytest.approx(one["score"], abs=1e-5)
    assert json.loads(json.dumps(one)) == one


def test_lists_items_and_streams_are_taken_as_by_the_pipeline(grounder, picture, tmp_path):
    picture.save(tmp_path / "scene.png")
    path = str(tmp_path / "scene.png")
    expected = grounder(picture, "red star")
    assert grounder(path, "red star") == expected
    assert grounder([path, picture], "red star") == [expected, expected]
    assert grounder({"image": path, "text": "red star"}) == expected
    assert list(grounder({"image": path, "expression": "red star"} for _ in range(2))) == [expected] * 2


def test_what_cannot_be_used_is_returned_or_raised(grounder, picture, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8broken")
    stream = [{"image": str(tmp_path / "broken.jpg"), "text": "x"}, {"image": picture, "text": " "}]
    answers = [grounder(item, on_error="return") for item in stream]
    assert "broken.jpg" in answers[0]["error"]
    assert "Expected an expression that names an object" in answers[1]["error"]
    with pytest.raises(ValueError, match="Expected an expression that names an object"):
        grounder(picture, " ")
    with pytest.raises(TypeError, match="no option 'masks'"):
        grounder(picture, "star", masks=True)
    with pytest.raises(ValueError, match="finds boxes and no masks"):
        grounder(picture, "star", mask=True)


def test_users_boxes_are_chosen_from(grounder, picture):
    answer = grounder(picture, "star", boxes=BOXES)
    assert corners(answer) in BOXES
    assert 0.5 <= answer["score"] <= 1  # the larger share of two


def test_relations_decide_between_boxes_that_clip_cannot_tell_apart(grounder, picture, monkeypatch):
    monkeypatch.setattr(
        "hivg_hf.zero_shot.grounder.score_proposals",
        lambda encoder, picture, boxes, nouns, way: np.zeros((len(nouns), 2)),
    )
    assert corners(grounder(picture, "the square left of the square", boxes=BOXES)) == BOXES[0]
    assert corners(grounder(picture, "the rightmost square", boxes=BOXES)) == BOXES[1]
    plain = ZeroShotGrounder(grounder.encoder, relations=False)
    assert plain(picture, "the rightmost square", boxes=BOXES)["score"] == pytest.approx(0.5)


def test_a_noun_that_names_no_kind_leaves_the_choice_to_the_place(grounder, picture):
    assert corners(grounder(picture, "the one on the left", boxes=BOXES)) == BOXES[0]
    assert corners(grounder(picture, "the rightmost thing", boxes=BOXES)) == BOXES[1]


def test_a_relation_that_fits_no_pair_falls_back_with_a_score_of_almost_0(grounder, picture):
    answer = grounder(picture, "the star left of the sea", boxes=BOXES[:1])
    assert corners(answer) == BOXES[0]
    assert answer["score"] < 1e-5


def test_a_source_of_proposals_is_asked_for_every_picture(encoder, picture):
    grounder = ZeroShotGrounder(encoder, proposals=component_proposals, scoring="map")
    found = grounder(picture, "star")
    assert min(np.abs(np.array(corners(found)) - box).max() for box in BOXES) <= 1
    empty = PIL.Image.new("RGB", (50, 50), "grey")
    assert grounder(empty, "star")["box"] == ZeroShotGrounder(encoder)(empty, "star")["box"]  # nothing found: the map


def test_threshold_and_heatmap_are_added_when_asked_for(grounder, picture):
    answer = grounder(picture, "star", threshold=0.0, heatmap=True)
    assert answer["found"] is True
    assert answer["heatmap"].shape == (80, 120)
    assert (answer["heatmap"].min(), answer["heatmap"].max()) == (0.0, 1.0)


def test_a_map_that_marks_an_object_gives_its_box(encoder, picture, monkeypatch):
    """The square is letterboxed: the box must come back in pixels of the picture."""
    features = torch.zeros(1, 64, 16)
    features.view(1, 8, 8, 16)[:, 2:5, 4:7, 0] = 1.0  # patches of 15 pixels, the picture starts in row 1
    monkeypatch.setattr(encoder, "patches", lambda squares: features)
    monkeypatch.setattr(encoder, "directions", lambda texts: torch.eye(16)[:1])
    answer = ZeroShotGrounder(encoder)(picture, "star")
    top = encoder.image_processor.geometry(80, 120).top
    assert np.abs(np.array(corners(answer)) - [60, (16 - top) * 1.875, 105, (40 - top) * 1.875]).max() < 8
    assert answer["score"] > 0.7


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([], "boxes= has no proposal to choose from"),
        ([[1, 2, 3]], r"Expected proposals of shape \(K, 4\), xyxy in pixels, got shape \(1, 3\)"),
        ([[10, 10, 10, 20]], r"got \[10.0, 10.0, 10.0, 20.0\]"),
        ([[500, 10, 600, 20]], "inside the picture of 120 x 80 pixels"),
        ([[float("nan"), 0, 1, 1]], "Expected proposals with x1 < x2"),
    ],
)
def test_boxes_that_cannot_be_chosen_from_are_refused(grounder, picture, boxes, message):
    with pytest.raises(ValueError, match=message):
        grounder(picture, "star", boxes=boxes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scoring": "gaze"}, "Expected scoring to be one of"),
        ({"box_method": "peak"}, "Expected box_method to be one of rectangle, levels"),
        ({"temperature": 0}, "Expected a temperature above 0, got 0"),
    ],
)
def test_unknown_options_are_refused(encoder, options, message):
    with pytest.raises(ValueError, match=message):
        ZeroShotGrounder(encoder, **options)


def test_a_saved_clip_is_opened_by_folder(clip, tiny_tokenizer, picture, tmp_path):
    clip.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    options = {"attention": "ordinary", "background": ()}
    grounder = ZeroShotGrounder.from_pretrained(str(tmp_path), clip_options=options)
    expected = ZeroShotGrounder(ZeroShotClip(clip, tiny_tokenizer, **options))
    answers = [one(picture, "red star") for one in (grounder, expected)]
    assert corners(answers[0]) == corners(answers[1])
    assert answers[0]["score"] == pytest.approx(answers[1]["score"], abs=1e-5)


@pytest.fixture
def clip_folder(clip, tiny_tokenizer, tmp_path):
    clip.save_pretrained(tmp_path)
    size = {"height": 64, "width": 64}
    image_processor = CLIPImageProcessorPil(size=size, image_mean=[0.1, 0.2, 0.3])
    CLIPProcessor(image_processor, tiny_tokenizer).save_pretrained(tmp_path)
    return str(tmp_path)


def test_the_pipeline_of_transformers_has_a_zero_shot_mode(clip_folder, picture):
    pipe = pipeline("visual-grounding", model=clip_folder, mode="zero-shot", scoring="map")
    assert isinstance(pipe, ZeroShotGrounder)
    assert pipe.scoring == "map"
    assert list(pipe.encoder.image_processor.image_mean) == [0.1, 0.2, 0.3]
    answer = pipe(picture, "red star")
    assert answer["box"] == ZeroShotGrounder.from_pretrained(clip_folder, "cpu")(picture, "red star")["box"]


def test_modes_and_models_that_do_not_go_together_are_refused(clip_folder, tiny_checkpoint):
    with pytest.raises(
        ValueError, match=r"Expected a mode of the visual-grounding pipeline \('zero-shot'\), got 'zero'"
    ):
        pipeline("visual-grounding", model=clip_folder, mode="zero")
    with pytest.raises(ValueError, match="mode='zero-shot' needs a plain CLIP, got a HiVGForVisualGrounding"):
        pipeline("visual-grounding", model=tiny_checkpoint, mode="zero-shot")


def test_a_model_that_is_no_clip_is_refused(tiny_checkpoint):
    with pytest.raises(ValueError, match="is a hivg model; zero-shot grounding needs a plain CLIP"):
        ZeroShotGrounder.from_pretrained(tiny_checkpoint)


def test_an_expression_that_clip_cannot_read_to_its_end_warns(grounder, picture):
    with pytest.warns(ExpressionCutWarning, match="CLIP reads 77 tokens"):
        grounder(picture, "a star " * 60)


def test_background_prompts_change_the_map_and_templates_are_averaged(clip, tiny_tokenizer):
    plain = ZeroShotClip(clip, tiny_tokenizer, templates=("{}",), background=())
    assert torch.allclose(plain.directions(["star"]), plain.texts(["star"]), atol=1e-6)
    with_background = ZeroShotClip(clip, tiny_tokenizer, templates=("{}",), background=("sea", "sky"))
    expected = plain.texts(["star"])[0] - plain.texts(["sea", "sky"]).mean(0)
    assert torch.allclose(with_background.directions(["star"])[0], expected, atol=1e-6)
    both = ZeroShotClip(clip, tiny_tokenizer, templates=("{}", "a {}"), background=()).directions(["star"])[0]
    mean = plain.texts(["star", "a star"]).mean(0)
    assert torch.allclose(both, mean / mean.norm(), atol=1e-6)
