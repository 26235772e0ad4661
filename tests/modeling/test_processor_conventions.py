"""The processor takes what CLIP's, OWLv2's and Grounding DINO's processors take, and gives what they give."""

import copy
import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from datasets import Dataset
from transformers import default_data_collator, pipeline

from hivg_hf import HiVGForVisualGrounding, HiVGImageProcessor, HiVGProcessor
from hivg_hf.modeling.processing_hivg import SeveralPhrasesWarning

PAIR = ["the star", "the big red star of the blue"]


@pytest.fixture(scope="module")
def processor(tiny_processor: HiVGProcessor) -> HiVGProcessor:
    return tiny_processor


def picture(width: int = 40, height: int = 30) -> PIL.Image.Image:
    noise = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return PIL.Image.fromarray(noise)


# -- options


@pytest.mark.parametrize(
    "options",
    [
        {"padding": "max_length", "max_length": 20},
        {"text_kwargs": {"padding": "max_length", "max_length": 20}},
    ],
)
def test_padding_to_a_length_makes_rows_that_can_be_stacked(processor: HiVGProcessor, options: dict) -> None:
    features = processor(picture(), PAIR[0], **options)
    assert features["input_ids"].shape == features["attention_mask"].shape == (1, 20)
    assert features["patch_index"].shape == (1, 64)
    assert (features["patch_index"][0, -1] == -1) == (features["pixel_mask"].min() == 0)


def test_left_padding_and_no_padding_are_what_the_caller_says(processor: HiVGProcessor) -> None:
    left = processor(text=PAIR, padding_side="left")["attention_mask"]
    assert left[0].tolist() == sorted(left[0].tolist())
    assert left[0].min() == 0
    rows = processor(text=PAIR, padding=False, return_tensors=None)["input_ids"]
    assert len(rows[0]) < len(rows[1])
    assert isinstance(rows, list)


def test_max_length_cuts_and_names_what_it_cut(processor: HiVGProcessor) -> None:
    with pytest.warns(UserWarning, match=r"the model reads 6: cut '.*blue'"):
        features = processor(text=PAIR[1], max_length=6)
    assert features["input_ids"].shape == (1, 6)
    assert features["input_ids"][0, -1] == processor.tokenizer.eos_token_id
    whole = processor(text="the " * 90, truncation=False)["input_ids"]
    assert whole.shape == (1, 92)


@pytest.mark.parametrize("options", [{"do_normalize": False}, {"images_kwargs": {"do_normalize": False}}])
def test_image_options_reach_the_image_processor(processor: HiVGProcessor, options: dict) -> None:
    pixels = processor(picture(), PAIR[0], **options)["pixel_values"]
    assert pixels.min() >= 0
    assert pixels.max() <= 1
    unscaled = processor(np.full((9, 9, 3), 200.0), PAIR[0], do_rescale=False, do_normalize=False)["pixel_values"]
    assert unscaled.max() == 200


@pytest.mark.parametrize(("kind", "expected"), [("pt", torch.Tensor), ("np", np.ndarray), (None, list)])
def test_return_tensors_decides_the_type_of_all(processor: HiVGProcessor, kind: str | None, expected: type) -> None:
    features = processor(picture(), PAIR[0], boxes=(1, 2, 30, 20), return_tensors=kind)
    assert isinstance(features["input_ids"], expected)
    assert isinstance(features["labels"], torch.Tensor if kind == "pt" else np.ndarray)
    common = processor(picture(), PAIR[0], common_kwargs={"return_tensors": kind})
    assert isinstance(common["input_ids"], expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"return_tensors": "tf"}, "tf is not a valid TensorType"),
        ({"padding": "longst"}, "longst is not a valid PaddingStrategy"),
        ({"max_length": -3}, "max_length must be a positive number of tokens, got -3"),
        ({"images_kwargs": {"do_flip": True}}, "do_flip"),
    ],
)
def test_unknown_values_are_refused(processor: HiVGProcessor, options: dict, message: str) -> None:
    with pytest.raises(Exception, match=message):
        processor(picture(), PAIR[0], **options)


def test_device_moves_text_and_images(processor: HiVGProcessor) -> None:
    features = processor(picture(), PAIR[0], boxes=(1, 2, 30, 20), device="meta")
    assert {value.device.type for value in features.values()} == {"meta"}


def test_channels_may_be_named_where_a_shape_is_unclear(processor: HiVGProcessor) -> None:
    small = np.random.default_rng(0).integers(0, 255, (3, 5, 3), dtype=np.uint8)
    first = processor(small, PAIR[0], input_data_format="channels_first")["pixel_values"]
    last = processor(small, PAIR[0], input_data_format="channels_last")["pixel_values"]
    moved = processor(np.moveaxis(small, 0, -1), PAIR[0], input_data_format="channels_last")["pixel_values"]
    assert torch.equal(first, moved)
    assert not torch.equal(first, last)


def test_a_tokenizers_own_defaults_hold(tiny_config: Any, tiny_tokenizer: Any, tmp_path: Any) -> None:
    HiVGProcessor.for_config(tiny_config, tiny_tokenizer).save_pretrained(tmp_path)
    loaded = HiVGProcessor.from_pretrained(tmp_path, padding_side="left")
    assert loaded(text=PAIR)["attention_mask"][0, 0] == 0


# -- several phrases in one string


@pytest.fixture
def said_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process."""
    monkeypatch.setattr(SeveralPhrasesWarning, "was_given", False)


@pytest.mark.parametrize("text", ["a star. a circle.", "A star . A circle", ["the ring", "a star.\na circle. "]])
def test_phrases_in_one_string_are_one_expression_with_one_warning(
    processor: HiVGProcessor, said_nothing: None, text: Any
) -> None:
    with pytest.warns(SeveralPhrasesWarning, match=r"as one expression .* expressions: \['a star', 'a circle'\]"):
        features = processor(text=text)
    assert len(features["input_ids"]) == (1 if isinstance(text, str) else len(text))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        processor(text="a cat. a dog.")


@pytest.mark.parametrize(
    "text",
    [
        *("the star.", "the no. 5 shirt", "Mr. Smith of St. Ives", "the man... the left one", "the 3.5 inch disk"),
        *("the letter a. on the left", "a star, a circle", "1. the star", "e.g. the star"),
    ],
)
def test_a_full_stop_inside_a_phrase_is_not_the_end_of_one(
    processor: HiVGProcessor, said_nothing: None, text: str
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(processor(text=text)["input_ids"]) == 1


def test_a_pipeline_and_a_model_warn_of_phrases_too(
    processor: HiVGProcessor, tiny_model: HiVGForVisualGrounding, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = pipeline("visual-grounding", model=tiny_model, processor=processor, device="cpu")
    for ask in (pipe, lambda image, text: tiny_model.ground(image, text, processor)):
        monkeypatch.setattr(SeveralPhrasesWarning, "was_given", False)
        with pytest.warns(SeveralPhrasesWarning, match="pass separate expressions"):
            assert ask(picture(), "a star. a circle.")["expression"] == "a star. a circle."


# -- one image, several expressions


def test_several_expressions_share_their_image(processor: HiVGProcessor, tiny_model: HiVGForVisualGrounding) -> None:
    shared = processor(picture(), PAIR)
    assert shared["pixel_values"].shape[0] == 1
    assert shared["input_ids"].shape[0] == 2
    assert shared["image_index"].tolist() == [0, 0]
    repeated = processor([picture()] * 2, PAIR)
    assert "image_index" not in repeated
    with torch.no_grad():
        torch.testing.assert_close(tiny_model(**shared).pred_boxes, tiny_model(**repeated).pred_boxes)


def test_nested_texts_belong_to_their_images(processor: HiVGProcessor) -> None:
    images = [picture(), picture(50, 60)]
    features = processor(images, [["the star"], PAIR], boxes=[[(1, 1, 9, 9)], [(1, 1, 9, 9), None]])
    assert features["image_index"].tolist() == [0, 1, 1]
    assert features["labels"].shape == (3, 4)
    assert features["labels"][2].isnan().all()
    flat = processor([images[0], images[1]], ["a", "b"], boxes=[(1, 1, 9, 9)] * 2)["labels"]
    assert torch.equal(features["labels"][:2], flat)
    assert "image_index" not in processor(images, [["a"], ["b"]])
    assert processor(text=[["a", "b"], "c"])["input_ids"].shape[0] == 3


# -- targets in any form


@pytest.mark.parametrize(
    "box",
    [
        (1, 2, 30, 20),
        np.array([1.0, 2, 30, 20]),
        torch.tensor([1.0, 2, 30, 20]),
        list(np.array([1, 2, 30, 20])),
        list(torch.tensor([1, 2, 30, 20])),
        [(1, 2, 30, 20)],
        [[(1, 2, 30, 20)]],
        np.array([[1, 2, 30, 20]]),
        torch.tensor([[[1, 2, 30, 20]]]),
    ],
)
def test_a_box_is_four_numbers_in_any_container(processor: HiVGProcessor, box: Any) -> None:
    wanted = processor(picture(), "a", boxes=[[1, 2, 30, 20]])["labels"]
    assert torch.equal(processor(picture(), "a", boxes=box)["labels"], wanted)


def test_masks_are_pictures_arrays_or_tensors(processor: HiVGProcessor) -> None:
    array = np.zeros((30, 40), dtype=np.uint8)
    array[5:20, 8:30] = 255
    forms = [array, array > 0, torch.from_numpy(array), PIL.Image.fromarray(array), PIL.Image.fromarray(array > 0)]
    wanted = processor(picture(), "a", masks=[array])["mask_labels"]
    assert wanted.any()
    for mask in [*forms, torch.from_numpy(array)[None], np.stack([array])]:
        assert torch.equal(processor(picture(), "a", masks=mask)["mask_labels"], wanted)
        assert torch.equal(processor(picture(), "a", masks=[mask])["mask_labels"], wanted)


# -- datasets and collators that know nothing of HiVG


def test_mapped_rows_stack_in_the_default_collator(
    processor: HiVGProcessor, tiny_model: HiVGForVisualGrounding
) -> None:
    rows = {
        "image": [picture(), picture(30, 60), picture(64, 64), picture(64, 20)],
        "expression": [*PAIR, "a", "blue star"],
        "box": [[1.0, 2.0, 9.0, 9.0]] * 4,
    }

    def prepare(batch: dict[str, list]) -> dict[str, Any]:
        return processor(batch["image"], batch["expression"], boxes=batch["box"], padding="max_length", max_length=16)

    mapped = Dataset.from_dict(rows).map(prepare, batched=True, batch_size=2, remove_columns=list(rows))
    batch = default_data_collator([mapped[place] for place in range(4)])
    assert batch["patch_index"].shape == (4, 64)
    with torch.no_grad():
        found = tiny_model(**batch)
        alone = [tiny_model(**processor(rows["image"][i], rows["expression"][i])).pred_boxes for i in range(4)]
    assert found.loss.isfinite()
    torch.testing.assert_close(found.pred_boxes, torch.cat(alone), rtol=1e-4, atol=1e-5)


# -- outputs back to pixels


@pytest.fixture
def outputs() -> SimpleNamespace:
    boxes = torch.tensor([[0.5, 0.5, 0.5, 0.25], [0.5, 0.5, 1.2, 0.5], [0.25, 0.5, 0.1, 0.1]])
    return SimpleNamespace(pred_boxes=boxes, scores=torch.tensor([0.9, 0.2, 0.6]), mask_logits=torch.ones(3, 16, 16))


def test_grounding_without_sizes_is_in_the_padded_square(processor: HiVGProcessor, outputs: SimpleNamespace) -> None:
    results = processor.post_process_grounding(outputs)
    assert results[0]["box"].tolist() == [0.25, 0.375, 0.75, 0.625]
    assert results[1]["box"].tolist() == [0.0, 0.25, 1.0, 0.75]
    assert results[0]["mask"].shape == (16, 16)
    assert "found" not in results[0]
    found = processor.post_process_grounding(outputs, torch.tensor([[30, 40]] * 3), threshold=0.6)
    assert [entry["found"] for entry in found] == [True, False, True]
    with pytest.raises(ValueError, match="no threshold can be applied: omit"):
        processor.post_process_grounding({"pred_boxes": outputs.pred_boxes}, threshold=0.5)


def test_detections_are_grouped_by_image(processor: HiVGProcessor, outputs: SimpleNamespace) -> None:
    sizes = [(30, 40), (60, 50)]
    labels = [["star"], ["ring", "mug"]]
    found = processor.post_process_grounded_object_detection(
        outputs, None, threshold=0.5, target_sizes=sizes, text_labels=labels
    )
    assert [entry["text_labels"] for entry in found] == [["star"], ["mug"]]
    assert [entry["labels"].tolist() for entry in found] == [[0], [1]]
    wanted = processor.post_process_grounding(outputs, [sizes[0], sizes[1], sizes[1]])
    assert torch.equal(found[1]["boxes"][0], wanted[2]["box"])
    assert torch.equal(found[0]["scores"], outputs.scores[:1])
    one = processor.post_process_grounded_object_detection(outputs, target_sizes=torch.tensor([[30, 40]]))
    assert one[0]["boxes"].shape == (3, 4)
    assert one[0]["text_labels"] is None
    assert processor.post_process_grounded_object_detection(outputs, threshold=0.95)[0]["boxes"].shape == (0, 4)
    named = processor.post_process_grounded_object_detection(outputs, target_sizes=[(9, 9)], text_labels=["a"] * 3)
    assert named[0]["text_labels"] == ["a"] * 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target_sizes": [(9, 9)] * 2}, "Got 3 predictions for 2 images"),
        (
            {"target_sizes": [(9, 9)] * 2, "text_labels": [["a"], ["b"]]},
            r"Got 3 predictions, 2 target_sizes .*\[1, 1\]",
        ),
        ({"target_sizes": [(9, 9)], "text_labels": [["a"], ["b", "c"]]}, "Got 3 predictions, 1 target_sizes"),
    ],
)
def test_detections_that_fit_no_image_are_refused(
    processor: HiVGProcessor, outputs: SimpleNamespace, arguments: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        processor.post_process_grounded_object_detection(outputs, **arguments)


def test_object_detection_of_the_image_processor_alone(outputs: SimpleNamespace) -> None:
    image_processor = HiVGImageProcessor(size=64, patch_size=8)
    found = image_processor.post_process_object_detection(outputs, threshold=0.5, target_sizes=[(30, 40)] * 3)
    assert [len(entry["boxes"]) for entry in found] == [1, 0, 1]
    several = {"query_boxes": outputs.pred_boxes[None], "query_scores": outputs.scores[None]}
    found = image_processor.post_process_object_detection(several, threshold=0.5, target_sizes=[(30, 40)])
    assert found[0]["scores"].tolist() == pytest.approx([0.9, 0.6])
    with pytest.raises(ValueError, match="no scores"):
        image_processor.post_process_object_detection({"pred_boxes": outputs.pred_boxes})


@pytest.mark.parametrize("option", ["box_threshold", "text_threshold", "score_threshold"])
def test_other_processors_thresholds_are_refused_with_ours(
    processor: HiVGProcessor, outputs: SimpleNamespace, option: str
) -> None:
    calls = [processor.post_process_grounding, processor.image_processor.post_process_object_detection]
    if option != "text_threshold":  # which Grounding DINO's users pass beside `threshold`
        calls.append(processor.post_process_grounded_object_detection)
    for call in calls:
        with pytest.raises(TypeError, match=rf"{call.__name__} has no option '{option}'\. .* pass threshold=\.\.\."):
            call(outputs, **{option: 0.3})
    with pytest.raises(TypeError, match=r"post_process_grounding has no option 'tresholt'\.$"):
        processor.post_process_grounding(outputs, tresholt=0.3)


@pytest.mark.parametrize(
    "name", ["post_process_object_detection", "post_process", "post_process_instance_segmentation"]
)
def test_other_processors_post_processing_is_refused_with_ours(processor: HiVGProcessor, name: str) -> None:
    with pytest.raises(
        AttributeError, match=f"no {name}: use post_process_grounded_object_detection.*grounding, which"
    ):
        getattr(processor, name)
    assert not hasattr(processor, name)
    with pytest.raises(AttributeError, match="'HiVGProcessor' object has no attribute 'postprocess'"):
        processor.postprocess  # noqa: B018
    assert copy.deepcopy(processor).tokenizer.get_vocab() == processor.tokenizer.get_vocab()


# -- what is not pixels, and sizes that are none


@pytest.mark.parametrize("box", [[0.1, 0.2, 0.4, 0.5], (0, 0, 1, 1), np.array([0.1, 0.1, 0.9, 0.9])])
def test_a_box_that_is_a_share_of_the_image_is_refused(processor: HiVGProcessor, box: Any) -> None:
    with pytest.raises(ValueError, match=r"within the first pixel of its image of 40 x 30.*multiply shares"):
        processor(picture(), PAIR[0], boxes=[box])
    assert processor(picture(8, 8), PAIR[0], boxes=[box])["labels"].shape == (1, 4)


@pytest.mark.parametrize(
    "sizes",
    [(30, 40), torch.tensor([30, 40]), [(30, 40, 3)], [30], "30"],
    ids=["pair", "tensor", "shape", "side", "text"],
)
def test_target_sizes_that_are_no_pair_for_each_row_are_refused(processor: HiVGProcessor, sizes: Any) -> None:
    outputs = {"pred_boxes": torch.full((1, 4), 0.5), "scores": torch.ones(1)}
    for read in (processor.post_process_grounding, processor.post_process_grounded_object_detection):
        with pytest.raises(
            ValueError, match=r"target_sizes must be one \(height, width\) per row, as in \[\(480, 640"
        ):
            read(outputs, target_sizes=sizes)


def test_outputs_without_names_are_refused(processor: HiVGProcessor) -> None:
    with pytest.raises(TypeError, match="call the model without return_dict=False"):
        processor.post_process_grounding((torch.rand(1, 4), torch.rand(1)), [(30, 40)])


def test_options_of_other_parts_are_refused_where_a_processor_is_loaded(tiny_checkpoint: str) -> None:
    with pytest.raises(TypeError, match=r'the processor has size=\{"height": 168, "width": 168\}'):
        HiVGProcessor.from_pretrained(tiny_checkpoint, image_size=168)
    with pytest.raises(TypeError, match="long_text is an option of each call"):
        HiVGProcessor.from_pretrained(tiny_checkpoint, long_text="error")


def test_a_size_set_as_a_dict_is_read(processor: HiVGProcessor) -> None:
    own = copy.deepcopy(processor)
    own.image_processor.size = {"height": 32, "width": 32}
    assert own(picture(), PAIR[0])["pixel_values"].shape == (1, 3, 32, 32)
