"""The collator: rows of the schema to tensors, equal to the processor's, and strict about broken rows."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from hivg_hf.data.augmentation import GroundingAugmentation
from hivg_hf.data.collator import GroundingCollator, image_id_hash
from hivg_hf.data.order import KeyedDataset
from hivg_hf.data.schema import encode_mask
from hivg_hf.modeling.image_processing_hivg import HiVGImageProcessor
from hivg_hf.modeling.loss_hivg import mask_targets
from hivg_hf.modeling.processing_hivg import HiVGProcessor


def test_a_batch_equals_what_the_processor_gives(tmp_path, make_image, make_row, processor):
    paths = [make_image(tmp_path / "a.png", 64, 48), make_image(tmp_path / "b.png", 31, 90, seed=1)]
    boxes = [[10.0, 12.0, 30.0, 40.0], [3.5, 20.0, 30.0, 85.25]]
    masks = [np.zeros((48, 64), dtype=bool), np.zeros((90, 31), dtype=bool)]
    masks[0][12:40, 10:30], masks[1][30:80, 5:25] = True, True
    rows = [
        make_row(image=paths[0], box=boxes[0], mask=encode_mask(masks[0])),
        make_row(image=paths[1], box=boxes[1], mask=encode_mask(masks[1]), width=31, height=90, expression="A Cat"),
    ]
    batch = GroundingCollator(processor)(rows)
    wanted = processor(images=paths, text=["the red star", "A Cat"], boxes=boxes, masks=masks, return_tensors="pt")
    assert batch["pixel_values"].shape == (2, 3, 64, 64)
    for key in ("pixel_values", "pixel_mask", "patch_index", "input_ids", "attention_mask"):
        assert torch.equal(batch[key], wanted[key]), key
    torch.testing.assert_close(batch["labels"], wanted["labels"], atol=1e-6, rtol=0)
    assert torch.equal(batch["mask_labels"], wanted["mask_labels"].float())


def test_labels_are_the_literal_box_on_the_square(tmp_path, make_image, make_row, tiny_tokenizer):
    from hivg_hf.modeling.image_processing_hivg import HiVGImageProcessor
    from hivg_hf.modeling.processing_hivg import HiVGProcessor

    processor = HiVGProcessor(HiVGImageProcessor(size=64, patch_size=8, pad_align="pixel"), tiny_tokenizer)
    # 128 x 64 becomes 64 x 32 with 16 rows of padding above
    row = make_row(image=make_image(tmp_path / "a.png", 128, 64), width=128, height=64, box=[32.0, 0.0, 96.0, 64.0])
    batch = GroundingCollator(processor)([row])
    assert batch["labels"].tolist() == [[0.5, 0.5, 0.5, 0.5]]
    assert batch["mask_labels"].sum() == 32 * 32  # no mask in the row: its box, rasterized
    assert batch["mask_labels"][0, 16:48, 16:48].min() == 1


def test_a_row_without_target_has_nan_labels_and_an_empty_mask(tmp_path, make_image, make_row, processor):
    path = make_image(tmp_path / "a.png")
    batch = GroundingCollator(processor)([make_row(image=path), make_row(image=path, box=None)])
    assert torch.isfinite(batch["labels"][0]).all()
    assert torch.isnan(batch["labels"][1]).all()
    assert batch["mask_labels"].sum(dim=(1, 2))[1] == 0


@pytest.mark.parametrize("rounding", ["exact", "official"])
def test_rows_of_none_one_and_many_give_all_their_boxes(tmp_path, make_image, make_row, processor, rounding):
    path = make_image(tmp_path / "a.png")
    boxes = [[10.0, 12.0, 30.0, 40.0], [40.0, 4.0, 60.0, 20.0]]
    rows = [
        make_row(image=path, box=None, boxes=boxes, no_target=False),
        make_row(image=path, box=boxes[0]),
        make_row(image=path, box=None),
    ]
    batch = GroundingCollator(processor, several_targets=True, target_rounding=rounding)(rows)
    wanted = processor(images=[path] * 3, text=["a"] * 3, boxes=[boxes, boxes[0], None])
    assert batch["labels"].shape == wanted["labels"].shape == (3, 2, 4)
    torch.testing.assert_close(batch["labels"], wanted["labels"], atol=1e-6, rtol=0, equal_nan=True)
    assert (~batch["labels"].isnan().any(-1)).sum(1).tolist() == [2, 1, 0]
    areas = batch["mask_labels"].sum((1, 2))
    assert areas[0] > areas[1] > areas[2] == 0
    plain = GroundingCollator(processor, several_targets=True)(
        [{"image": path, "expression": "a", "boxes": row["boxes"]} for row in rows[::2]]
    )
    torch.testing.assert_close(plain["labels"], wanted["labels"][::2], atol=1e-6, rtol=0, equal_nan=True)
    with pytest.raises(ValueError, match=r"has 2 targets, where training needs one box.*several_targets=True"):
        GroundingCollator(processor)(rows)
    rows[0]["boxes"] = [boxes[0], [50.0, 4.0, 90.0, 20.0]]
    with pytest.raises(ValueError, match=r"box \[50.0, 4.0, 90.0, 20.0\] lies outside its image"):
        GroundingCollator(processor, several_targets=True)(rows)


def test_a_union_that_was_chosen_stays_one_box(tmp_path, make_image, make_row, processor):
    row = make_row(image=make_image(tmp_path / "a.png"), box=[0.0, 0.0, 60.0, 40.0])
    row["boxes"] = [[0.0, 0.0, 20.0, 40.0], [40.0, 0.0, 60.0, 40.0]]
    assert GroundingCollator(processor, several_targets=True)([row])["labels"].shape == (1, 4)


def test_augmented_labels_of_several_objects_point_at_each(tmp_path, make_row, processor):
    pixels = np.zeros((96, 128, 3), dtype=np.uint8)
    pixels[..., 2] = 255
    boxes = [[8.0, 8.0, 40.0, 40.0], [80.0, 48.0, 120.0, 88.0]]
    for x1, y1, x2, y2 in np.array(boxes, dtype=int):
        pixels[y1:y2, x1:x2] = (255, 0, 0)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    row = make_row(image=str(tmp_path / "a.png"), width=128, height=96, box=None, boxes=boxes, no_target=False)
    augmentation = GroundingAugmentation.for_processor(processor, jitter=0, crop_probability=1.0, scale_count=3)
    collate = GroundingCollator(processor, augmentation=augmentation, several_targets=True)
    batches = [collate([{**row, "expression": "both", "epoch": epoch}]) for epoch in range(10)]
    for batch in batches:
        red = (batch["pixel_values"][0, 0] > batch["pixel_values"][0, 2]) & (batch["pixel_mask"][0] == 1)
        for cx, cy, w, h in (batch["labels"][0] * 64).tolist():
            assert red[int(cy), int(cx)]
            assert min(w, h) > 0
    assert len({round(float(batch["labels"].nansum()), 4) for batch in batches}) > 5


def test_masks_can_be_left_out(tmp_path, make_image, make_row, processor):
    assert "mask_labels" not in GroundingCollator(processor, masks=False)(
        [make_row(image=make_image(tmp_path / "a.png"))]
    )


def test_rows_of_one_image_share_an_id_in_every_run(tmp_path, make_image, make_row, processor):
    path = make_image(tmp_path / "a.png")
    rows = [make_row(image=path, image_id=name) for name in ("COCO_1", "COCO_1", "COCO_2")]
    ids = GroundingCollator(processor)(rows)["image_ids"]
    assert ids.dtype == torch.int64
    assert ids[0] == ids[1] != ids[2]
    assert image_id_hash("COCO_1") == 1774642371936015874


def test_augmentation_depends_on_seed_epoch_and_row_only(tmp_path, make_image, make_row, processor):
    rows = [make_row(image=make_image(tmp_path / f"{i}.png", seed=i)) for i in range(3)]
    dataset = KeyedDataset(rows)
    collate = GroundingCollator(processor, augmentation=GroundingAugmentation.for_processor(processor), seed=4)

    alone = collate([dataset[(1, 2)]])
    together = collate([dataset[(1, 0)], dataset[(1, 2)]])
    for key in ("pixel_values", "labels", "mask_labels"):
        assert torch.equal(alone[key][0], together[key][1]), key
    assert not torch.equal(alone["pixel_values"], collate([dataset[(2, 2)]])["pixel_values"])
    other_seed = GroundingCollator(processor, augmentation=GroundingAugmentation.for_processor(processor), seed=5)
    assert not torch.equal(alone["pixel_values"], other_seed([dataset[(1, 2)]])["pixel_values"])


def _passes(loader):
    return [picture.numpy().tobytes() for batch in loader for picture in batch["pixel_values"]]


@pytest.fixture
def augmented(tmp_path, make_image, make_row, tiny_tokenizer):
    """Rows without keys, and a function from a seed to a collator that augments them."""
    rows = [make_row(image=make_image(tmp_path / f"{i}.png", seed=i), sent_id=str(i)) for i in range(8)]
    processor = HiVGProcessor(HiVGImageProcessor(size={"height": 64, "width": 64}, patch_size=8), tiny_tokenizer)
    augmentation = GroundingAugmentation.for_processor(processor)
    return rows, lambda seed=0: GroundingCollator(processor, augmentation, seed, masks=False)


@pytest.mark.parametrize(("workers", "persistent"), [(0, False), (2, False), (2, True)])
def test_any_dataloader_augments_differently_by_row_and_epoch(augmented, workers, persistent):
    rows, collator = augmented
    for data in (rows, [rows[0]] * 8, KeyedDataset(rows)):
        loader = DataLoader(
            data, batch_size=4, collate_fn=collator(), num_workers=workers, persistent_workers=persistent
        )
        first, second, third = _passes(loader), _passes(loader), _passes(loader)
        assert len(set(first)) == 8
        assert not set(first) & set(second)
        assert not (set(first) | set(second)) & set(third)


def test_any_shuffled_dataloader_augments_alike_for_any_number_of_workers(augmented):
    rows, collator = augmented

    def passes(workers, seed=0):
        order = torch.Generator().manual_seed(5)
        loader = DataLoader(
            rows, batch_size=4, shuffle=True, generator=order, collate_fn=collator(seed), num_workers=workers
        )
        return [_passes(loader) for _ in range(3)]

    alone = passes(0)
    assert passes(2) == alone
    assert not set(alone[0]) & set(passes(0, seed=1)[0])
    assert len({picture for epoch in alone for picture in epoch}) == 24


def test_set_epoch_repeats_an_epoch_also_in_workers_that_live_on(augmented):
    rows, collator = augmented
    collate = collator()
    loader = DataLoader(rows, batch_size=1, collate_fn=collate, num_workers=1, persistent_workers=True)
    epochs = []
    for epoch in (0, 1, 0):
        collate.set_epoch(epoch)
        epochs.append(_passes(loader))
    assert epochs[0] == epochs[2]
    assert not set(epochs[0]) & set(epochs[1])


def test_a_copied_collator_still_counts_for_its_workers(augmented):
    rows, collator = augmented
    loader = DataLoader(rows, batch_size=4, collate_fn=pickle.loads(pickle.dumps(collator())), num_workers=1)
    assert not set(_passes(loader)) & set(_passes(loader))


class _Recorder(torch.nn.Module):
    """A model for the plain Trainer that keeps the sum of every batch's pixels."""

    def __init__(self):
        super().__init__()
        self.weight, self.seen = torch.nn.Parameter(torch.zeros(1)), []

    def forward(self, pixel_values, labels, **_):
        self.seen.append(pixel_values.double().sum().item())
        return {"loss": self.weight.sum() * 0.0 + 1.0}


@pytest.mark.parametrize("workers", [0, 1])
def test_the_plain_trainer_resumes_with_the_same_augmentation(augmented, tmp_path, workers):
    rows, collator = augmented

    def train(folder, **resume):
        model = _Recorder()
        arguments = TrainingArguments(
            str(tmp_path / folder), num_train_epochs=3, per_device_train_batch_size=2, save_strategy="steps",
            save_steps=6, use_cpu=True, report_to=[], disable_tqdm=True, remove_unused_columns=False,
            dataloader_num_workers=workers, dataloader_pin_memory=False,
        )  # fmt: skip
        Trainer(model, arguments, data_collator=collator(), train_dataset=rows).train(**resume)
        return model.seen

    whole = train("whole")
    assert len(set(whole)) == len(whole) == 12
    assert train("again", resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-6")) == whole[6:]


def test_augmented_labels_point_at_the_object(tmp_path, make_row, processor):
    """A red rectangle in a blue picture: the label's pixels are red after augmentation, the rest is not."""
    pixels = np.zeros((96, 128, 3), dtype=np.uint8)
    pixels[..., 2] = 255
    pixels[24:72, 32:96] = (255, 0, 0)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    row = make_row(image=str(tmp_path / "a.png"), width=128, height=96, box=[32.0, 24.0, 96.0, 72.0])
    collate = GroundingCollator(processor, augmentation=GroundingAugmentation.for_processor(processor, jitter=0))
    for epoch in range(20):
        batch = collate([{**row, "epoch": epoch}])
        red = (batch["pixel_values"][0, 0] > batch["pixel_values"][0, 2]) & (batch["pixel_mask"][0] == 1)
        cx, cy, w, h = (batch["labels"][0] * 64).tolist()
        assert red[int(cy), int(cx)]
        assert abs(int(red.sum()) - w * h) <= 2 * (w + h) + 4
        assert (red == batch["mask_labels"][0].bool()).float().mean() > 0.95


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"box": [10.0, 12.0, float("nan"), 40.0]}, r"sent_id 9\) of test train: box .* finite pixels"),
        ({"box": [30.0, 12.0, 30.0, 40.0]}, "x1 < x2"),
        ({"box": [30.0, 12.0, 10.0, 40.0]}, "x1 < x2"),
        ({"box": [64.0, 0.0, 90.0, 10.0]}, "lies outside its image of 64 x 48 pixels"),
        ({"width": 48, "height": 64}, "the image is 64 x 48, its annotation says 48 x 64"),
        (
            {"box": None, "boxes": [[1, 1, 5, 5], [6, 6, 9, 9]], "no_target": False},
            "has 2 targets.*multi_target='union'",
        ),
        ({"box": None, "no_target": False}, "neither a box nor no_target=True"),
        ({"mask": {"size": [10, 10], "counts": "PP3"}}, r"sent_id 9\) of test train: its mask cannot be decoded"),
        ({"mask": encode_mask(np.ones((10, 10)))}, "the mask has size 10 x 10, the image 64 x 48"),
    ],
)
def test_a_broken_row_is_refused_by_name(tmp_path, make_image, make_row, processor, columns, message):
    row = {**make_row(image=make_image(tmp_path / "a.png")), **columns}
    with pytest.raises(ValueError, match=message):
        GroundingCollator(processor)([row])


@pytest.mark.parametrize("content", [None, b"", b"<html>not found</html>"])
def test_an_unreadable_image_is_refused_by_name(tmp_path, make_row, processor, content):
    path = tmp_path / "broken.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"row \(ref_id 7, sent_id 9\) of test train: .*broken\.jpg"):
        GroundingCollator(processor)([make_row(image=str(path))])


@pytest.mark.parametrize(
    "box",
    [
        [10.5, 10.5, 20.5, 20.5],
        [10.0, 10.0, 20.0, 20.0],
        [30.6, 10.0, 31.4, 40.0],
        [3.2, 2.1, 3.3, 2.2],
        [63.9, 63.9, 64.0, 64.0],
        [0.0, 0.0, 64.0, 64.0],
    ],
)
def test_one_box_has_one_raster_in_processor_collator_and_model(make_row, processor, box):
    side = 64
    picture = Image.new("RGB", (side, side))
    whole = np.ones((side, side), dtype=bool)
    asked = processor([picture] * 2, ["a"] * 2, boxes=[box, [0, 0, side, side]], masks=[None, whole])
    batch = GroundingCollator(processor)([make_row(image=picture, box=box, width=side, height=side)])
    from_model = mask_targets(batch["labels"], None, side)
    assert torch.equal(batch["mask_labels"], from_model)
    assert torch.equal(asked["mask_labels"][:1].float(), from_model)


def test_a_mask_that_scaling_down_loses_becomes_its_box_everywhere(tmp_path, make_image, make_row, processor):
    path = make_image(tmp_path / "a.png", 640, 640)
    mask = np.zeros((640, 640), dtype=bool)
    mask[:, 301] = True
    row = make_row(image=path, box=[301, 0, 302, 640], mask=encode_mask(mask), width=640, height=640)
    batch = GroundingCollator(processor)([row])
    asked = processor([path], ["a"], boxes=[row["box"]], masks=[mask])
    assert batch["mask_labels"].sum() == 64
    assert torch.equal(batch["mask_labels"].bool(), asked["mask_labels"])


@pytest.fixture
def photo(tmp_path):
    """A JPEG of 1201 x 803 pixels with one red square, and its row."""
    pixels = np.full((803, 1201, 3), 200, dtype=np.uint8)
    pixels[100:400, 600:900] = (220, 30, 30)
    Image.fromarray(pixels).save(tmp_path / "photo.jpg", quality=95)
    box = [600.0, 100.0, 900.0, 400.0]
    return {"image": str(tmp_path / "photo.jpg"), "expression": "the square", "box": box, "width": 1201, "height": 803}


def test_a_reduced_jpeg_trains_on_the_same_targets(photo, tiny_processor, monkeypatch):
    decoded, plain = [], Image.Image.load
    monkeypatch.setattr(Image.Image, "load", lambda self: decoded.append(max(self.size)) or plain(self))
    for augmentation in (None, GroundingAugmentation.for_processor(tiny_processor)):
        whole, reduced = (
            GroundingCollator(tiny_processor, augmentation, seed=3, reduce_jpeg=reduce)([{**photo, "epoch": 1}])
            for reduce in (False, True)
        )
        side = tiny_processor.image_processor.side
        assert (whole["labels"] - reduced["labels"]).abs().max() * side < 1.5  # pixels of the square
        difference = (whole["pixel_values"] - reduced["pixel_values"]).abs()
        assert 0 < difference.mean() < 0.1
    assert min(decoded) < 1201


def test_evaluation_and_rows_with_a_mask_decode_jpegs_whole(photo, tiny_processor):
    collator = GroundingCollator(tiny_processor, reduce_jpeg=True)
    plain = GroundingCollator(tiny_processor)
    same = collator.for_evaluation()([photo])["pixel_values"], plain([photo])["pixel_values"]
    assert torch.equal(*same)
    mask = np.zeros((803, 1201), dtype=bool)
    mask[100:400, 600:900] = True
    masked = {**photo, "mask": encode_mask(mask)}
    assert torch.equal(collator([masked])["pixel_values"], plain([photo])["pixel_values"])


def test_a_reduced_jpeg_of_another_size_than_annotated_is_refused(photo, tiny_processor):
    with pytest.raises(ValueError, match=r"the image is 1201 x 803, its annotation says 1200 x 803"):
        GroundingCollator(tiny_processor, reduce_jpeg=True)([{**photo, "width": 1200}])


def test_official_targets_take_no_reduced_jpegs(tiny_processor):
    with pytest.raises(ValueError, match="reduce_jpeg changes pixels a little"):
        GroundingCollator(tiny_processor, target_rounding="official", reduce_jpeg=True)


def test_a_box_that_is_a_share_of_its_image_is_refused(tmp_path, make_image, processor):
    row = {"image": make_image(tmp_path / "a.png"), "expression": "a", "box": [0.1, 0.2, 0.5, 0.5]}
    with pytest.raises(ValueError, match=r"a row \('a'\): box .* lies within the first pixel.*multiply shares"):
        GroundingCollator(processor)([row])
