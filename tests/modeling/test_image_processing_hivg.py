"""The letterbox gives the official tensors, and its inverse gives the original pixels back."""

import math
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hivg_hf.modeling.image_processing_hivg import HiVGImageProcessor, letterbox_geometry

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def make_processor(**options: object) -> HiVGImageProcessor:
    return HiVGImageProcessor(**{"size": 64, "patch_size": 8, **options})


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (480, 640, (168, 224, 28, 0)),
        (640, 427, (224, 149, 0, 37)),  # 75 columns left: round(37.5 - 0.1) = 37
        (100, 223, (100, 224, 62, 0)),  # 100 * 224 / 223 = 100.45
        (333, 500, (149, 224, 37, 0)),
        (224, 224, (224, 224, 0, 0)),
        (1, 4000, (1, 224, 111, 0)),  # the official code rounds this side to 0
        (4000, 1, (224, 1, 0, 111)),
    ],
)
def test_centred_letterbox_is_the_official_one(height: int, width: int, expected: tuple[int, ...]) -> None:
    assert letterbox_geometry(height, width, 224, 16, "pixel") == expected


def test_patch_aligned_letterbox_starts_at_a_patch() -> None:
    assert letterbox_geometry(480, 640, 224, 16, "patch") == (168, 224, 16, 0)
    assert letterbox_geometry(1, 4000, 224, 16, "patch") == (1, 224, 96, 0)


def test_impossible_geometry_is_refused() -> None:
    with pytest.raises(ValueError, match="height 0"):
        letterbox_geometry(0, 10, 224, 16)
    with pytest.raises(ValueError, match="pad_align must be one of patch, pixel"):
        letterbox_geometry(10, 10, 224, 16, "centre")


def test_pixels_are_those_of_the_official_transforms() -> None:
    """PIL bilinear on the 8-bit image, / 255, ImageNet constants, zeros around, as torchvision computes it."""
    image = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8))
    features = make_processor(pad_align="pixel", **IMAGENET)(image, return_tensors="pt")
    resized = torch.from_numpy(np.array(image.resize((64, 48), PIL.Image.Resampling.BILINEAR))).permute(2, 0, 1)
    mean, std = torch.tensor(IMAGENET["image_mean"])[:, None, None], torch.tensor(IMAGENET["image_std"])[:, None, None]
    expected = torch.zeros(3, 64, 64)
    expected[:, 8:56] = resized.float().div(255).sub(mean).div(std)
    assert torch.equal(features["pixel_values"][0], expected)
    assert features["pixel_mask"][0].sum() == 48 * 64
    assert features["pixel_mask"][0, 8:56].all()


def test_literal_values_of_a_plain_picture() -> None:
    image = PIL.Image.new("RGB", (4, 2), (255, 0, 128))
    values = make_processor(size=8, pad_align="pixel", **IMAGENET)(image, return_tensors="pt")["pixel_values"][0]
    assert values[:, 4, 4].tolist() == pytest.approx([2.2489083, -2.0357141, 0.4264926], abs=1e-6)
    assert values[:, 0, 0].tolist() == [0.0, 0.0, 0.0]  # zero after normalizing, not black


def test_patch_index_lists_the_patches_that_show_the_image() -> None:
    processor = make_processor(size=32)
    features = processor([PIL.Image.new("RGB", (32, 8)), PIL.Image.new("RGB", (20, 20))], return_tensors="pt")
    assert set(features) == {"pixel_values", "pixel_mask"}  # all of one shape, as transformers' pipelines need them
    index = processor.patch_index_for(features["pixel_mask"])
    # 8 rows high: offset 12 is rounded down to 8, so exactly the second row of four patches.
    assert index[0].tolist() == [4, 5, 6, 7] + [-1] * 12
    assert index[1].tolist() == list(range(16))


def test_no_image_pixel_lies_outside_patch_index() -> None:
    for alignment in ("patch", "pixel"):
        processor = make_processor(pad_align=alignment)
        features = processor(PIL.Image.new("RGB", (50, 21)), return_tensors="pt")
        kept = torch.zeros(64, dtype=torch.bool)
        kept[processor.patch_index_for(features["pixel_mask"])[0]] = True
        covered = kept.reshape(8, 8).repeat_interleave(8, 0).repeat_interleave(8, 1)
        assert not (features["pixel_mask"][0].bool() & ~covered).any()


def test_box_in_literal_numbers() -> None:
    """480 x 640 at 64: resized to 48 x 64, 8 rows of padding above."""
    box = make_processor(pad_align="pixel").boxes_to_square([[160.0, 120.0, 480.0, 360.0]], [(480, 640)])
    assert box.tolist() == [[0.5, 0.5, 0.5, 0.375]]


@given(
    height=st.integers(1, 4000),
    width=st.integers(1, 4000),
    corners=st.lists(st.floats(0, 1), min_size=4, max_size=4),
    alignment=st.sampled_from(["patch", "pixel"]),
)
@settings(max_examples=200, deadline=None)
def test_box_round_trip_is_within_half_a_pixel_of_the_resized_image(
    height: int, width: int, corners: list[float], alignment: str
) -> None:
    processor = make_processor(size=224, patch_size=16, pad_align=alignment)
    (x1, x2), (y1, y2) = sorted(corners[:2]), sorted(corners[2:])
    box = torch.tensor([[x1 * width, y1 * height, x2 * width, y2 * height]])
    inside = processor.boxes_to_square(box, [(height, width)])
    back = processor.boxes_to_image(inside, [(height, width)])
    scale = max(height, width) / 224
    assert (back - box).abs().max() <= 0.5 * max(scale, 1)
    assert (back - box).abs().max() <= 1e-4 * max(height, width)  # in fact the inverse is exact but for rounding
    assert inside[0, :2].min() >= 0
    assert inside[0, :2].max() <= 1


def test_mask_goes_to_the_square_and_back() -> None:
    processor = make_processor()
    mask = np.zeros((100, 200), dtype=bool)
    mask[20:60, 40:120] = True
    square = processor.mask_to_square(mask)
    assert square.shape == (64, 64)
    assert square.sum() == pytest.approx(40 * 80 * (64 / 200) ** 2, rel=0.1)
    back = processor.map_to_image(square.float(), (100, 200)) > 0.5
    overlap = (back.numpy() & mask).sum() / (back.numpy() | mask).sum()
    assert overlap > 0.9


def test_map_to_image_undoes_the_padding() -> None:
    processor = make_processor()
    square = torch.full((8, 8), -5.0)
    square[2:6] = 5.0  # the image of 100 x 200 fills rows 16..48 of 64
    assert (processor.map_to_image(square, (100, 200)) > 0).float().mean() > 0.95


def test_settings_that_decide_the_geometry_are_checked() -> None:
    with pytest.raises(ValueError, match="multiple of patch_size 7"):
        make_processor(patch_size=7)
    with pytest.raises(ValueError, match="square"):
        make_processor(size={"height": 64, "width": 32})
    with pytest.raises(ValueError, match="pad_align must be one of"):
        make_processor(pad_align="left")
    with pytest.raises(ValueError, match="always resizes and pads"):
        make_processor(do_resize=False)
    with pytest.raises(ValueError, match="Set size when the image processor is made"):
        make_processor()(PIL.Image.new("RGB", (9, 9)), size=32)


@pytest.fixture(scope="module")
def eight_bit() -> np.ndarray:
    """A smooth picture: what float and 8-bit resizing make of it differs by rounding only."""
    y, x = np.mgrid[0:90, 0:120]
    return np.stack([x * 2, y * 2, 255 - x - y], axis=-1).astype(np.uint8)


def layouts(array: np.ndarray) -> list[object]:
    """numpy and torch, channels last and first, alone and as a batch of one."""
    arrays = [array, np.ascontiguousarray(array.transpose(2, 0, 1))]
    arrays += [each[None] for each in arrays]
    return arrays + [torch.from_numpy(each) for each in arrays]


@pytest.mark.parametrize("at_construction", [False, True])
def test_every_kind_of_pixels_gives_the_same_tensors(eight_bit: np.ndarray, at_construction: bool) -> None:
    def process(image: object, **options: object) -> torch.Tensor:
        made, called = (options, {}) if at_construction else ({}, options)
        return make_processor(**made)(image, return_tensors="pt", **called)["pixel_values"]

    expected = process(PIL.Image.fromarray(eight_bit))
    unit = eight_bit.astype(np.float32) / 255
    for image in layouts(eight_bit) + layouts(unit) + layouts(eight_bit.astype(np.float64)):
        assert torch.equal(process(image), expected)
    one_step = 1 / 255 / 0.26
    for image in [*layouts(unit), torch.from_numpy(unit).half(), unit.astype(np.float64)]:
        assert (process(image, do_rescale=False) - expected).abs().max() < 1.5 * one_step
    mean, std = (np.float32(getattr(make_processor(), name)) for name in ("image_mean", "image_std"))
    for image in layouts((unit - mean) / std):
        assert (process(image, do_rescale=False, do_normalize=False) - expected).abs().max() < 1.5 * one_step
    assert torch.equal(process(unit, rescale_factor=1.0), expected)  # rescaled already, whatever the factor


@pytest.mark.parametrize("at_construction", [False, True])
@pytest.mark.parametrize(
    ("constants", "message"),
    [
        ({"rescale_factor": math.nan}, "must be numbers below a million.* got nan"),
        ({"rescale_factor": 0.0}, "first not 0 and the last above 0"),
        ({"image_std": [0.0, 0.0, 0.0]}, "first not 0 and the last above 0"),
        ({"image_std": 0.0}, "first not 0 and the last above 0"),
        ({"image_mean": [math.nan] * 3}, "must be numbers below a million"),
        ({"image_mean": [0.5, 0.5]}, "a number for each of R, G and B"),
    ],
)
def test_constants_that_spoil_every_pixel_are_refused_also_for_one_call(
    constants: dict[str, Any], message: str, at_construction: bool
) -> None:
    made, called = (constants, {}) if at_construction else ({}, constants)
    with pytest.raises(ValueError, match=message):
        make_processor(**made)(np.zeros((9, 9, 3), dtype=np.uint8), return_tensors="pt", **called)


def test_a_picture_of_the_models_size_keeps_its_floats() -> None:
    normalized = np.random.default_rng(0).normal(size=(64, 64, 3)).astype(np.float32)
    features = make_processor()(normalized, do_rescale=False, do_normalize=False, return_tensors="np")
    assert np.array_equal(features["pixel_values"][0], normalized.transpose(2, 0, 1))
    integers = (normalized * 1000).astype(np.int32)  # do_rescale=False never looks at values
    features = make_processor()(integers, do_rescale=False, do_normalize=False, return_tensors="np")
    assert np.array_equal(features["pixel_values"][0], integers.transpose(2, 0, 1).astype(np.float32))


def test_8_bit_pixels_without_rescaling_are_taken_at_their_word(eight_bit: np.ndarray) -> None:
    for image in (eight_bit, PIL.Image.fromarray(eight_bit)):
        raw = make_processor()(image, do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values"]
        assert raw.max() > 200
        with pytest.warns(UserWarning, match="8-bit pixels are normalized without being rescaled"):
            make_processor()(image, do_rescale=False)


def test_floats_agree_with_clip_where_clip_takes_them(eight_bit: np.ndarray) -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    square = eight_bit[:64, :64]
    clip = CLIPImageProcessorPil(do_resize=False, do_center_crop=False)
    unit, both = square.astype(np.float32) / 255, {"do_rescale": False, "do_normalize": False}
    for image, options in (
        (square, {}),
        (square.astype(np.float32), {}),
        (unit, {"do_rescale": False}),
        (unit * 4 - 2, both),
        (square, both),
    ):
        expected = clip(image, return_tensors="pt", **options)["pixel_values"].float()
        found = make_processor()(image, return_tensors="pt", **options)["pixel_values"]
        assert torch.allclose(found, expected, atol=1e-6)


def test_gray_alpha_and_deep_floats_without_rescaling() -> None:
    gray = np.full((64, 64), 0.25, dtype=np.float32)
    clear = np.concatenate([np.zeros((64, 64, 3)), np.zeros((64, 64, 1))], axis=-1).astype(np.float32)
    options = {"do_rescale": False, "do_normalize": False, "return_tensors": "np"}
    for image, value in ((gray, 0.25), (gray[..., None], 0.25), (clear, 1.0), (PIL.Image.fromarray(gray), 0.25)):
        assert np.allclose(make_processor()(image, **options)["pixel_values"], value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("options", [{}, {"do_rescale": False}, {"do_rescale": False, "do_normalize": False}])
def test_pixels_that_are_not_finite_are_refused(value: float, options: dict[str, bool]) -> None:
    pixels = np.zeros((9, 9, 3), dtype=np.float32)
    pixels[4, 4, 1] = value
    for image in (pixels, torch.from_numpy(pixels).bfloat16(), PIL.Image.fromarray(pixels[..., 1])):
        with pytest.raises(ValueError, match="not finite"):
            make_processor()(image, **options)


def test_input_data_format_and_device_do_what_they_say() -> None:
    small = np.random.default_rng(0).integers(0, 256, (3, 5, 3), dtype=np.uint8)
    for said, turned in (("channels_last", small), ("channels_first", small.transpose(1, 2, 0))):
        found = make_processor()(small, input_data_format=said, return_tensors="pt")["pixel_values"]
        expected = make_processor()(PIL.Image.fromarray(np.ascontiguousarray(turned)), return_tensors="pt")
        assert torch.equal(found, expected["pixel_values"])
        assert torch.equal(make_processor(input_data_format=said)(small, return_tensors="pt")["pixel_values"], found)
    features = make_processor()(PIL.Image.new("RGB", (9, 9)), device="meta", return_tensors="pt")
    assert {value.device.type for value in features.values()} == {"meta"}


def test_options_that_would_do_nothing_are_refused() -> None:
    image = PIL.Image.new("RGB", (9, 9))
    with pytest.raises(ValueError, match="does not crop: omit do_center_crop"):
        make_processor()(image, do_center_crop=True)
    with pytest.raises(ValueError, match="does not crop: omit do_center_crop"):
        make_processor(do_center_crop=True)
    with pytest.raises(ValueError, match="gives channels first"):
        make_processor()(image, data_format="channels_last")
    with pytest.raises(ValueError, match="list of images is empty"):
        make_processor()([])


def test_a_column_of_a_dataset_is_a_list_of_images() -> None:
    import datasets

    pictures = [PIL.Image.new("RGB", (9, 9)), PIL.Image.new("RGB", (20, 9))]
    column = datasets.Dataset.from_dict({"image": pictures}).cast_column("image", datasets.Image())["image"]
    assert len(make_processor()(column)["pixel_values"]) == 2


def test_settings_survive_saving(tmp_path: object) -> None:
    made = make_processor(pad_align="pixel", skip_padded_patches=False, **IMAGENET)
    made.save_pretrained(tmp_path)
    loaded = HiVGImageProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == made.to_dict()
    image = PIL.Image.new("RGB", (30, 70), (5, 60, 200))
    assert torch.equal(made(image, return_tensors="pt").pixel_values, loaded(image, return_tensors="pt").pixel_values)
