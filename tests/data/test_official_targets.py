"""`target_rounding="official"` against the official steps, written out in torch, for several shapes and boxes."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from hivg_hf.data.augmentation import GroundingAugmentation, resize_mask
from hivg_hf.data.collator import GroundingCollator
from hivg_hf.data.official_targets import box_as_mask
from hivg_hf.data.schema import encode_mask
from hivg_hf.modeling.image_processing_hivg import HiVGImageProcessor
from hivg_hf.modeling.processing_hivg import HiVGProcessor

coco = pytest.importorskip("pycocotools.mask")

BOXES = [  # width, height, box xywh as annotated
    (640, 427, [103.93, 299.99, 134.22, 177.42 - 60]),
    (333, 500, [0.0, 0.6, 332.4, 99.9]),
    (500, 375, [249.5, 100.49, 3.2, 1.7]),  # thinner than a pixel of the square
]


@pytest.fixture
def official_processor(tiny_tokenizer):
    image_processor = HiVGImageProcessor(size=224, patch_size=16, pad_align="pixel", skip_padded_patches=False)
    return HiVGProcessor(image_processor, tiny_tokenizer)


def official_mask(mask: np.ndarray) -> torch.Tensor:
    """Official: datasets/transforms.py:187-190 (nearest, > 0.5) and 300-303 (centered padding)."""
    height, width = mask.shape
    ratio = 224 / max(height, width)
    new_w, new_h = round(width * ratio), round(height * ratio)
    small = F.interpolate(torch.from_numpy(mask)[None, None].float(), size=(new_h, new_w), mode="nearest")[0, 0] > 0.5
    top, left = round((224 - new_h) / 2.0 - 0.1), round((224 - new_w) / 2.0 - 0.1)
    square = torch.zeros(224, 224)
    square[top : top + new_h, left : left + new_w] = small.float()
    return square


def row_of(make_image, make_row, tmp_path, width, height, xywh, **columns):
    x, y, w, h = xywh
    path = make_image(tmp_path / f"{width}.png", width, height)
    box = [float(np.float32(edge)) for edge in (x, y, x + w, y + h)]
    return make_row(image=path, width=width, height=height, box=box, source="unc", **columns)


@pytest.mark.parametrize(("width", "height", "xywh"), BOXES)
def test_masks_come_from_the_uncut_box_and_labels_from_the_cut_one(
    width, height, xywh, tmp_path, make_image, make_row, official_processor
):
    row = row_of(make_image, make_row, tmp_path, width, height, xywh)
    batch = GroundingCollator(official_processor, masks=False, target_rounding="official")([row])
    full = coco.decode(coco.frPyObjects(np.array([xywh]), height, width))[:, :, 0]
    assert torch.equal(batch["mask_labels"][0], official_mask(full))
    x, y, w, h = (int(edge) for edge in xywh)
    ratio = 224 / max(width, height)
    left, top = (round((224 - round(side * ratio)) / 2.0 - 0.1) for side in (width, height))
    wanted = torch.tensor([[(x + w / 2) * ratio + left, (y + h / 2) * ratio + top, w * ratio, h * ratio]]) / 224
    # within what rounding the picture's short side to whole pixels leaves
    torch.testing.assert_close(batch["labels"], wanted, atol=0.6 / 224, rtol=0)


def test_the_exact_targets_are_others(tmp_path, make_image, make_row, official_processor):
    row = row_of(make_image, make_row, tmp_path, *BOXES[0])
    ours = GroundingCollator(official_processor)([row])
    theirs = GroundingCollator(official_processor, target_rounding="official")([row])
    assert not torch.equal(ours["labels"], theirs["labels"])
    assert not torch.equal(ours["mask_labels"], theirs["mask_labels"])


def test_a_rows_own_mask_is_resized_the_same_way(tmp_path, make_image, make_row, official_processor):
    mask = np.zeros((427, 640), dtype=np.uint8)
    mask[101:222, 55:333] = 1
    row = row_of(make_image, make_row, tmp_path, *BOXES[0], mask=encode_mask(mask))
    batch = GroundingCollator(official_processor, target_rounding="official")([row])
    assert torch.equal(batch["mask_labels"][0], official_mask(mask))


def test_rows_of_corner_boxes_and_without_target(tmp_path, make_image, make_row, official_processor):
    path = make_image(tmp_path / "a.png", 448, 448)
    kept = {"image": path, "width": 448, "height": 448}
    rows = [
        make_row(**kept, box=[10.9, 10.9, 21.2, 21.2], source="referit"),
        make_row(**kept, box=[10.9, 10.9, 21.2, 21.2], source="unc"),
        make_row(**kept, box=None),
    ]
    labels = GroundingCollator(official_processor, target_rounding="official")(rows)["labels"]
    assert (labels[:2, 2] * 448).round().tolist() == [11, 10]  # 10..21 by corners; 10.3 wide becomes 10
    assert labels[2].isnan().all()


def test_an_augmented_mask_is_looked_up_at_corners_too():
    mask = box_as_mask([3.0, 3.0, 61.0, 45.0], 64, 48)
    whole = resize_mask(mask, 40, 30, sampling="corner")
    torch_mask = F.interpolate(torch.from_numpy(mask)[None, None].float(), size=(30, 40), mode="nearest")[0, 0] > 0.5
    assert np.array_equal(whole, torch_mask.numpy())
    part = resize_mask(mask, 20, 15, (16.0, 12.0, 48.0, 36.0), sampling="corner")
    crop = torch.from_numpy(mask[12:36, 16:48])[None, None].float()
    assert np.array_equal(part, (F.interpolate(crop, size=(15, 20), mode="nearest")[0, 0] > 0.5).numpy())


def test_unknown_roundings_are_refused(official_processor):
    with pytest.raises(ValueError, match=r"target_rounding must be one of exact, official. Got 'none'"):
        GroundingCollator(official_processor, target_rounding="none")
    with pytest.raises(ValueError, match="mask_sampling must be 'center' or 'corner', got 'edge'"):
        GroundingAugmentation(size=224, mask_sampling="edge")
