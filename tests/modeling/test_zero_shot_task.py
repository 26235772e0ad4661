"""transformers' own task "zero-shot-object-detection", and `pipeline` calls with the habits of other models."""

import copy
import logging
from functools import partial
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import AutoModelForZeroShotObjectDetection, pipeline

import hivg_hf
from hivg_hf import HiVGForVisualGrounding, HiVGProcessor, VisualGroundingPipeline

TASK = "zero-shot-object-detection"
SHAPES = [(64, 64), (30, 90), (90, 30), (50, 40), (64, 20), (41, 77)]


def picture(width: int, height: int) -> PIL.Image.Image:
    noise = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return PIL.Image.fromarray(noise)


@pytest.fixture(scope="module")
def pipe(tiny_model: HiVGForVisualGrounding, tiny_processor: HiVGProcessor) -> Any:
    parts = {"tokenizer": tiny_processor.tokenizer, "image_processor": tiny_processor.image_processor}
    return pipeline(TASK, model=tiny_model, device="cpu", **parts)


def rows(found: list[dict[str, Any]]) -> list[tuple[str, tuple[int, ...], float]]:
    return sorted((one["label"], tuple(one["box"].values()), pytest.approx(one["score"], abs=1e-5)) for one in found)


def test_the_task_knows_the_model(tiny_checkpoint: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        pipe = pipeline(TASK, model=tiny_checkpoint, device="cpu")
    assert "not supported" not in caplog.text
    assert type(pipe.model) is HiVGForVisualGrounding
    assert type(AutoModelForZeroShotObjectDetection.from_pretrained(tiny_checkpoint)) is HiVGForVisualGrounding
    assert pipe.model.config.id2label == {0: "target"}


def test_a_label_finds_what_the_expression_finds(pipe: Any, tiny_processor: HiVGProcessor) -> None:
    image = picture(90, 30)
    (found,) = pipe(image, candidate_labels=["The Red  star"], threshold=0.0)
    inputs = tiny_processor(image, "the red star")
    with torch.no_grad():
        outputs = pipe.model(**inputs)
    (wanted,) = tiny_processor.post_process_grounding(outputs, [image.size[::-1]])
    assert list(found["box"].values()) == wanted["box"].int().tolist()
    assert found["score"] == pytest.approx(float(wanted["score"]), abs=1e-6)
    (detections,) = tiny_processor.post_process_grounded_object_detection(outputs, target_sizes=[image.size[::-1]])
    assert torch.equal(detections["boxes"], wanted["box"][None])


def test_labels_thresholds_and_top_k(pipe: Any) -> None:
    image = picture(50, 40)
    labels = ["the red star", "blue star", "the star of the left"]
    found = pipe(image, candidate_labels=labels, threshold=0.0)
    scores = [one["score"] for one in found]
    assert {one["label"] for one in found} == set(labels)
    assert scores == sorted(scores, reverse=True)
    assert pipe(image, candidate_labels=labels, threshold=0.0, top_k=1) == found[:1]
    assert pipe(image, candidate_labels=labels, threshold=scores[0] + 1e-3) == []
    assert rows(pipe(image, candidate_labels=",".join(labels), threshold=0.0)) == rows(found)


@pytest.mark.parametrize("score", ["head", "similarity"])
def test_batches_of_pictures_of_different_shapes_equal_one_at_a_time(
    tiny_model: HiVGForVisualGrounding, tiny_processor: HiVGProcessor, score: str
) -> None:
    model = tiny_model
    if score == "similarity":  # as official weights, which have no score head
        config = copy.deepcopy(tiny_model.config)
        config.score, config.loss_weights = "similarity", {"bbox": 1.0}
        model = HiVGForVisualGrounding(config).eval()
        model.load_state_dict({k: v for k, v in tiny_model.state_dict().items() if "score_head" not in k})
    parts = {"tokenizer": tiny_processor.tokenizer, "image_processor": tiny_processor.image_processor}
    pipe = pipeline(TASK, model=model, device="cpu", **parts)
    images = [picture(*shape) for shape in SHAPES]
    labels = [["the red star"], ["blue", "the star of the left"], ["star"], ["a", "b"], ["the star"], ["red star"]]
    alone = [pipe(image, candidate_labels=own, threshold=0.0) for image, own in zip(images, labels)]
    together = pipe(images, candidate_labels=labels, threshold=0.0, batch_size=4)
    assert [rows(found) for found in together] == [rows(found) for found in alone]
    assert len({box for found in alone for _, box, _ in rows(found)}) > 6


# -- our own pipeline


def test_without_a_model_the_shipped_one_answers() -> None:
    pipe = pipeline("visual-grounding", device="cpu")
    assert pipe.model.config.name_or_path == hivg_hf.TINY_CHECKPOINT
    assert pipe(image=picture(50, 40), text="the red star")["expression"] == "the red star"


def test_a_model_object_takes_its_parts_or_finds_its_own(
    tiny_model: HiVGForVisualGrounding, tiny_processor: HiVGProcessor, tiny_checkpoint: str
) -> None:
    image = picture(50, 40)
    known = pipeline("visual-grounding", model=tiny_model, processor=tiny_processor, device="cpu")
    expected = pytest.approx(known(image, "star")["box"], abs=1e-4)
    parts = {"tokenizer": tiny_processor.tokenizer, "image_processor": tiny_processor.image_processor}
    assert pipeline("visual-grounding", model=tiny_model, device="cpu", **parts)(image, "star")["box"] == expected
    loaded = HiVGForVisualGrounding.from_pretrained(tiny_checkpoint)
    assert pipeline("visual-grounding", model=loaded, device="cpu")(image, "star")["box"] == expected
    named = pipeline("visual-grounding", model=loaded, tokenizer=tiny_checkpoint, device="cpu")
    assert named(image, "star")["box"] == expected
    assert VisualGroundingPipeline(loaded, processor=tiny_processor, device="cpu")(image, "star")["box"] == expected
    fresh = copy.deepcopy(tiny_model)
    fresh.config.name_or_path = ""
    with pytest.raises(ValueError, match="processor is not known: pass processor"):
        pipeline("visual-grounding", model=fresh, device="cpu")


def test_candidate_labels_name_the_other_task(tiny_model: Any, tiny_processor: Any) -> None:
    pipe = pipeline("visual-grounding", model=tiny_model, processor=tiny_processor, device="cpu")
    with pytest.raises(TypeError, match=r"expressions as text=\.\.\.; candidate_labels"):
        pipe(picture(50, 40), candidate_labels=["star"])
    for name in ("box_threshold", "text_threshold"):
        with pytest.raises(TypeError, match=rf"pipeline has no option '{name}'\. .* pass threshold=\.\.\."):
            pipe(picture(50, 40), "star", **{name: 0.3})


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_start_in_any_way_and_are_not_sent_the_model(
    tiny_model: Any, tiny_processor: Any, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    images = [picture(*shape) for shape in SHAPES[:2]]
    expected = tiny_model.ground(images[0], "the star", tiny_processor)["box"]
    loader = partial(torch.utils.data.DataLoader, multiprocessing_context=method)
    monkeypatch.setattr("hivg_hf.modeling.pipeline_streams_hivg.DataLoader", loader)
    monkeypatch.setattr(type(tiny_model), "__reduce_ex__", lambda *_: pytest.fail("the model was pickled"))
    pipe = pipeline("visual-grounding", model=tiny_model, processor=tiny_processor, device="cpu")
    assert pipe(images, "the star", num_workers=1)[0]["box"] == expected
