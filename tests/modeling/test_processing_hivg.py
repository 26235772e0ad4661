"""Text is read as CLIP reads it, bad input is refused in one sentence, and outputs go back to the original pixels."""

import copy
import math
import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from hivg_hf.modeling.image_processing_hivg import HiVGImageProcessor
from hivg_hf.modeling.processing_hivg import HiVGProcessor, clean_expression


@pytest.fixture(scope="module")
def processor(tiny_tokenizer: Any) -> HiVGProcessor:
    return HiVGProcessor(HiVGImageProcessor(size=64, patch_size=8), tiny_tokenizer)


def picture(width: int = 40, height: int = 30) -> PIL.Image.Image:
    return PIL.Image.new("RGB", (width, height), (90, 120, 30))


def test_expressions_are_cleaned_as_the_official_tokenizer_does() -> None:
    assert clean_expression("  The\tRED &amp;amp; blue\n mug  ") == "the red & blue mug"
    assert clean_expression("left &lt;-- one") == "left <-- one"


def test_text_is_padded_to_the_longest_of_the_call(processor: HiVGProcessor) -> None:
    features = processor(text=["the star", "the big red star of the blue"])
    ids, mask = features["input_ids"], features["attention_mask"]
    tokenizer = processor.tokenizer
    assert ids.shape == mask.shape
    assert mask[1].all()
    assert (ids[:, 0] == tokenizer.bos_token_id).all()
    assert ids[torch.arange(2), mask.sum(-1) - 1].tolist() == [tokenizer.eos_token_id] * 2
    alone = processor(text="THE   Star")["input_ids"][0]
    assert alone.tolist() == ids[0, : mask[0].sum()].tolist()


def test_a_long_expression_keeps_its_end_token_and_names_what_was_cut(processor: HiVGProcessor) -> None:
    long = "the red star " * 40 + "beside the blue"
    with pytest.warns(UserWarning, match=r"tokens, and the model reads 77: cut '.*the blue'") as caught:
        features = processor(text=[long, "the star"])
    assert len(caught) == 1
    assert features["input_ids"].shape == (2, 77)
    assert features["input_ids"][0, -1] == processor.tokenizer.eos_token_id
    with pytest.raises(ValueError, match="shorten it"):
        processor(text=long, long_text="error")
    with pytest.raises(ValueError, match="long_text must be one of"):
        processor(text="the star", long_text="drop")


def test_an_expression_of_exactly_the_limit_is_not_cut(processor: HiVGProcessor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        features = processor(text=" ".join(["the"] * 75))
    assert features["input_ids"].shape == (1, 77)


def test_the_words_named_as_cut_are_exactly_those_the_model_does_not_read(processor: HiVGProcessor) -> None:
    with pytest.warns(UserWarning, match="cut 'blue star'"):
        processor(text=" ".join(["the"] * 75) + " blue star")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"text": ""}, ValueError, r"Expression 0 is blank \(''\)"),
        ({"text": ["the star", " \n\t"]}, ValueError, "Expression 1 is blank"),
        ({"text": []}, ValueError, "list of expressions is empty"),
        ({"text": ["a", 3]}, TypeError, "Expression 1 must be a string, not int"),
        ({}, ValueError, "needs images, text, or both"),
        ({"text": "a", "boxes": [None]}, ValueError, "together with their images"),
        ({"images": [picture()] * 2, "text": ["a"] * 3}, ValueError, "Got 2 images and 3 expressions"),
        ({"images": [picture()] * 2, "text": [["a"]]}, ValueError, "Got 2 images and lists of expressions for 1"),
        ({"images": [picture()] * 2, "text": [["a"], []]}, ValueError, "Image 1 has no expression"),
        ({"images": "the star", "text": picture()}, TypeError, r"Got an image \(Image\) as text: images come first"),
        ({"images": ["the star"], "text": [np.zeros((9, 9, 3))]}, TypeError, r"Got an image \(ndarray\) as text"),
        ({"text": {"a": "b"}}, TypeError, "must be a string, a list of strings, or a list"),
        ({"text": "a", "pading": True}, TypeError, "no option 'pading'. Did you mean 'padding'"),
        (
            {"text": "a", "text_kwargs": {"pading": True}},
            TypeError,
            "no option 'pading' in text_kwargs. Did you mean 'padding'",
        ),
        (
            {"images": [picture()], "images_kwargs": {"do_rescal": False}},
            TypeError,
            "no option 'do_rescal' in images_kwargs. Did you mean 'do_rescale'",
        ),
        ({"text": "a", "text_pair": "b"}, ValueError, "one row of each expression: omit text_pair"),
        ({"images": picture(), "text": ["a", "b"], "boxes": [1, 2, 3, 4]}, ValueError, "one per expression"),
        ({"images": picture(), "boxes": [["1", "x", 3, 4]]}, ValueError, "Box 0 must be four numbers"),
        ({"images": [picture()], "boxes": []}, ValueError, "Got 1 images and 0 boxes"),
        ({"images": [picture()], "boxes": [[5, 5, 5, 9]]}, ValueError, "x1 < x2"),
        ({"images": [picture()], "boxes": [[5, 5, math.inf, 9]]}, ValueError, "finite"),
        ({"images": [picture()], "boxes": [[5, 5, math.nan, 9]]}, ValueError, "finite"),
        ({"images": [picture()], "boxes": [[50, 5, 60, 9]]}, ValueError, "outside its image of 40 x 30"),
        ({"images": [picture()], "boxes": [[1, 2, 3]]}, ValueError, "four numbers"),
        ({"images": [picture()], "masks": [None, None]}, ValueError, "Got 1 images and 2 masks"),
        (
            {"images": [picture()], "masks": [np.ones((9, 9))]},
            ValueError,
            r"Mask 0 is \(9, 9\) and its image \(30,",
        ),
        ({"images": [np.full((9, 9), np.nan)]}, ValueError, "not finite"),
    ],
)
def test_bad_input_gets_one_sentence(
    processor: HiVGProcessor, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        processor(**arguments)
    assert "\n" not in str(caught.value)


def test_targets_are_given_in_the_padded_square(processor: HiVGProcessor) -> None:
    mask = np.zeros((30, 40), dtype=bool)
    mask[:15] = True
    features = processor(
        images=[picture(), picture(), picture(64, 64)],
        text=["a", "b", "c"],
        boxes=[(10, 0, 30, 30), None, [0, 0, 32, 64]],
        masks=[mask, None, None],
    )
    # 30 x 40 becomes 48 x 64, its offset 8 already a multiple of the patch.
    assert features["labels"][0].tolist() == [0.5, 0.5, 0.5, 0.75]
    assert features["labels"][1].isnan().all()
    assert features["labels"][2].tolist() == [0.25, 0.5, 0.5, 1.0]
    assert features["mask_labels"].shape == (3, 64, 64)
    assert features["mask_labels"][0].nonzero()[:, 0].unique().tolist() == list(range(8, 32))
    assert not features["mask_labels"][1].any()
    assert features["mask_labels"][2].sum() == 32 * 64
    without = processor(images=picture(), text="a", boxes=[[1, 2, 3, 4]], masks=[None])
    assert "mask_labels" not in without


def test_a_mask_without_a_box_needs_no_box_but_a_missing_one_does(processor: HiVGProcessor) -> None:
    whole = np.ones((30, 40), dtype=bool)
    assert processor(images=[picture()], masks=[whole])["mask_labels"].sum() == 48 * 64
    with pytest.raises(ValueError, match="Image 1 has neither a mask nor a box"):
        processor(images=[picture(), picture()], masks=[whole, None])


def test_one_image_takes_its_box_and_mask_without_a_list(processor: HiVGProcessor) -> None:
    mask = np.ones((30, 40), dtype=bool)
    single = processor(picture(), "a", boxes=[10, 0, 30, 30], masks=mask)
    listed = processor([picture()], ["a"], boxes=[np.array([10, 0, 30, 30])], masks=[mask])
    assert torch.equal(single["labels"], listed["labels"])
    assert torch.equal(single["mask_labels"], listed["mask_labels"])


def test_an_expression_may_have_several_boxes_or_an_empty_list(processor: HiVGProcessor) -> None:
    both = [[0, 0, 10, 30], [20, 5, 40, 30]]
    forms = [[both, None, [[0, 0, 10, 30]]], [np.array(both), [], torch.tensor([0, 0, 10, 30])]]
    batches = [processor(images=[picture()] * 3, text=["all", "none", "one"], boxes=boxes) for boxes in forms]
    for batch in batches:
        assert batch["labels"].shape == (3, 2, 4)
        assert (~batch["labels"].isnan().any(-1)).sum(1).tolist() == [2, 0, 1]
        torch.testing.assert_close(batch["labels"], batches[0]["labels"], equal_nan=True)
    alone = processor(images=[picture()] * 2, text=["a", "b"], boxes=both)["labels"]
    torch.testing.assert_close(batches[0]["labels"][0], alone)
    several_of_one_image = processor(images=picture(), text=["all", "one"], boxes=[[both, both[0]]])["labels"]
    torch.testing.assert_close(several_of_one_image[0], alone)
    masks = processor(
        images=[picture()] * 2, text=["all", "a"], boxes=[both, both[0]], masks=[None, np.ones((30, 40))]
    )
    wanted = processor(images=[picture()] * 2, text=["a", "b"], boxes=both, masks=[None, np.ones((30, 40))])
    assert masks["mask_labels"][0].sum() > wanted["mask_labels"][0].sum() > 0
    with pytest.raises(ValueError, match=r"Box 0 \[50.0, 0.0, 60.0, 10.0\] lies outside its image of 40 x 30"):
        processor(images=picture(), text="a", boxes=[[both[0], [50, 0, 60, 10]]])


def test_outputs_go_back_to_the_original_pixels(processor: HiVGProcessor) -> None:
    sizes = [(30, 40), (200, 100)]
    boxes = torch.tensor([[10.0, 3.0, 30.0, 27.0], [-20.0, 10.0, 40.0, 90.0]])
    mask_logits = torch.full((2, 64, 64), -3.0)
    mask_logits[:, :, :32] = 3.0
    outputs = SimpleNamespace(
        pred_boxes=processor.image_processor.boxes_to_square(boxes, sizes),
        scores=torch.tensor([0.25, 0.75], dtype=torch.bfloat16),
        mask_logits=mask_logits,
    )
    results = processor.post_process_grounding(outputs, torch.tensor(sizes))
    assert results[0]["box"].tolist() == pytest.approx([10, 3, 30, 27], abs=1e-4)
    assert results[1]["box"].tolist() == pytest.approx([0, 10, 40, 90], abs=1e-4)  # clipped to the image
    assert [float(result["score"]) for result in results] == [0.25, 0.75]
    assert results[0]["mask"].shape == (30, 40)
    assert results[0]["mask"].dtype == torch.bool
    assert results[0]["mask"][:, :19].all()
    assert not results[0]["mask"][:, 21:].any()
    only_boxes = processor.post_process_grounding({"pred_boxes": outputs.pred_boxes}, sizes)
    assert only_boxes[0]["score"] is None
    assert only_boxes[0]["mask"] is None
    with pytest.raises(ValueError, match="Got 2 predictions and 1 target_sizes"):
        processor.post_process_grounding(outputs, sizes[:1])


def test_heatmap_lies_over_the_original_image(processor: HiVGProcessor) -> None:
    logits = torch.full((1, 8, 8), -9.0)
    logits[:, :, :4] = 9.0
    heat = processor.post_process_heatmaps({"token_logits": logits.reshape(1, 64)}, [(30, 40)])[0]
    assert heat.shape == (30, 40)
    assert heat[15, 2] > 0.99
    assert heat[15, 37] < 0.01
    with pytest.raises(ValueError, match="output_token_logits=True"):
        processor.post_process_heatmaps({}, [(30, 40)])


@pytest.mark.parametrize("normalization", ["clip", "imagenet"])
def test_for_config_fits_the_config(tiny_tokenizer: Any, normalization: str) -> None:
    text, vision = SimpleNamespace(max_position_embeddings=16), SimpleNamespace(patch_size=4)
    config = SimpleNamespace(
        image_normalization=normalization,
        image_size=32,
        pad_align="pixel",
        skip_padded_patches=False,
        clip_config=SimpleNamespace(text_config=text, vision_config=vision),
    )
    made = HiVGProcessor.for_config(config, copy.deepcopy(tiny_tokenizer))
    assert made.image_processor.side == 32
    assert made.image_processor.patch_size == 4
    assert made.image_processor.pad_align == "pixel"
    assert not made.image_processor.skip_padded_patches
    assert made.image_processor.image_mean[0] == {"clip": 0.48145466, "imagenet": 0.485}[normalization]
    assert made.tokenizer.model_max_length == 16


def test_numpy_output_has_the_same_values(processor: HiVGProcessor) -> None:
    tensors, arrays = (processor(picture(), "the star", return_tensors=kind) for kind in ("pt", "np"))
    assert set(tensors) == set(arrays) == {"input_ids", "attention_mask", "pixel_values", "pixel_mask", "patch_index"}
    for name, value in tensors.items():
        assert np.array_equal(value.numpy(), arrays[name])


def several_boxes(scores: list[float]) -> dict[str, torch.Tensor]:
    """A row of four queries: two objects, the first of them twice, and a box nobody would ask for."""
    square = [[0.25, 0.25, 0.2, 0.2], [0.26, 0.25, 0.2, 0.2], [0.75, 0.25, 0.2, 0.2], [0.5, 0.75, 0.3, 0.3]]
    boxes, every = torch.tensor([square]), torch.tensor([scores])
    masks = torch.arange(4.0).reshape(1, 4, 1, 1).expand(1, 4, 64, 64) - 1.5  # the first two empty
    best = int(every.argmax())
    return {
        "pred_boxes": boxes[:, best],
        "scores": every[:, best],
        "query_boxes": boxes,
        "query_scores": every,
        "mask_logits": masks[:, best],
        "query_mask_logits": masks,
    }


def test_the_first_threshold_decides_whether_and_the_second_how_many(processor: HiVGProcessor) -> None:
    def answer(scores: list[float], **options: float) -> dict[str, Any]:
        (row,) = processor.post_process_grounding(several_boxes(scores), [(64, 64)], multiple=True, **options)
        return row

    found = answer([0.9, 0.8, 0.3, 0.1], threshold=0.6, multiple_threshold=0.2)
    assert found["scores"].tolist() == pytest.approx([0.9, 0.3])  # one box for each of the two objects
    assert found["boxes"][:, 0].tolist() == pytest.approx([9.6, 41.6], abs=0.1)
    assert [bool(mask.any()) for mask in found["masks"]] == [False, True]
    assert answer([0.9, 0.8, 0.3, 0.1], threshold=0.6)["scores"].tolist() == pytest.approx([0.9])
    nothing = answer([0.5, 0.4, 0.3, 0.1], threshold=0.6, multiple_threshold=0.2)
    assert (nothing["found"], len(nothing["boxes"]), len(nothing["masks"])) == (False, 0, 0)
    only_best = answer([0.9, 0.8, 0.3, 0.1], threshold=0.6, multiple_threshold=0.95)
    assert only_best["scores"].tolist() == pytest.approx([0.9])
    for odd in (20, -0.1, float("nan"), True, "0.5", [0.5], 10**400):
        with pytest.raises(ValueError, match=r"^threshold must be a number from 0 to 1, got"):
            answer([0.9, 0.8, 0.3, 0.1], threshold=odd)
        with pytest.raises(ValueError, match=r"^multiple_threshold must be a number from 0 to 1, got"):
            answer([0.9, 0.8, 0.3, 0.1], threshold=0.6, multiple_threshold=odd)
    with pytest.raises(ValueError, match="multiple_threshold chooses among the boxes of multiple=True"):
        processor.post_process_grounding(several_boxes([0.9]), [(64, 64)], multiple_threshold=0.2)
