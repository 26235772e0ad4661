"""Rows of RefShapes with their objects -> what every patch is told in pre-training."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from hivg_hf.data.collator import open_row_image
from hivg_hf.data.refshapes.language import ATTRIBUTES
from hivg_hf.data.refshapes.scenes import COLORS, FILLINGS, SHAPES, SHIFTED_COLORS, SIZES

CLASSES = {"size": SIZES, "filling": FILLINGS, "color": (*COLORS, *SHIFTED_COLORS), "shape": SHAPES}
NO_CLASS = -100  # what cross-entropy leaves out
MIN_COVERED = 0.25  # share of a patch that a box must cover to be its object
PATCH_TARGETS = ("patch_classes", "patch_boxes", "region", "target")
CAPTION_STREAM = 3  # keeps the captions' random numbers apart from every other stream with the same seed


class PretrainingCollator:
    """Rows with the column `objects` -> a batch for `PretrainingModel`.

    Which object is described and the order of the caption depend on (seed, epoch, row index) alone.

    Args:
        processor: The `HiVGProcessor` of the model.
        seed: Seed of those choices.
        options: Of `PretrainingModel`; not read here.

    Raises:
        ValueError: A row has no objects.
    """

    def __init__(self, processor: Any, seed: int = 0, **options: Any) -> None:
        self.processor, self.seed = processor, seed

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        image_processor = self.processor.image_processor
        squares, targets, phrases, captions = [], [], [], []
        for row in rows:
            if not row.get("objects"):
                raise ValueError("pre-training needs rows with objects: load refshapes with objects=True.")
            image = open_row_image(row)
            _, _, top, left = image_processor.geometry(image.height, image.width)
            squares.append(image_processor.place(image_processor.resize_image(image), top, left))
            rng = np.random.default_rng([self.seed, row.get("epoch", 0), row.get("row_index", 0), CAPTION_STREAM])
            order = rng.permutation(len(row["objects"]))
            objects = [row["objects"][index] for index in order]
            targets.append(patch_targets({**row, "objects": objects}, image_processor))
            phrases.append(_describe(objects[0]))
            captions.append(" and ".join(f"a {item['color']} {item['shape']}" for item in objects))
        batch = {name: torch.as_tensor(np.stack([square[name] for square in squares])) for name in squares[0]}
        if image_processor.skip_padded_patches:
            batch["patch_index"] = torch.as_tensor(image_processor.patch_index_for(batch["pixel_mask"]))
        for name, values in zip(PATCH_TARGETS, zip(*targets, strict=True), strict=True):
            batch[name] = torch.from_numpy(np.stack(values))
        for name, texts in (("phrase", phrases), ("caption", captions)):
            tokens = self.processor(text=texts, return_tensors="pt")
            batch |= {f"{name}_ids": tokens["input_ids"], f"{name}_mask": tokens["attention_mask"]}
        batch.update(self.processor(text=[row["expression"] for row in rows], return_tensors="pt"))
        return batch


def patch_targets(row: Mapping[str, Any], image_processor: Any) -> tuple[np.ndarray, ...]:
    """`PATCH_TARGETS` of a row, by the object whose box covers most of each patch.

    Args:
        row: Of RefShapes, with the column `objects`; the first one is the one described.
        image_processor: Of the model; its letterbox decides which patch an object falls on.

    Returns:
        classes (N, 4), offsets (N, 4), patches of the first object (N,) and of the one that the expression names (N,).
    """
    objects = row["objects"]
    named = next((i for i, item in enumerate(objects) if item["box"] == row["box"]), -1)
    boxes = _in_patches([item["box"] for item in objects], row, image_processor)  # (O, 4)
    grid = image_processor.size["height"] // image_processor.patch_size
    covered = _covered(boxes, grid)  # (O, N)
    edges = np.arange(grid)
    owner = covered.argmax(axis=0)  # (N,)
    has_object = covered.max(axis=0) >= MIN_COVERED
    # A small object over the corner of four patches covers little of each; the one it covers most is its own.
    best = covered.argmax(axis=1)  # (O,)
    has_object[best[owner[best] == np.arange(len(boxes))]] = True
    numbers = np.array([[CLASSES[name].index(item[name]) for name in ATTRIBUTES] for item in objects])
    classes = np.where(has_object[:, None], numbers[owner], NO_CLASS)
    centers = np.stack([np.tile(edges + 0.5, grid), np.repeat(edges + 0.5, grid)], axis=1)  # (N, 2) x, y
    middle, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    offsets = np.concatenate([middle[owner] - centers, size[owner]], axis=1).astype(np.float32)
    return classes, offsets, has_object & (owner == 0), has_object & (owner == named)


def patch_coverage(boxes_xyxy: Sequence[Any], row: Mapping[str, Any], image_processor: Any) -> np.ndarray:
    """Share of each patch of the square that each box (O, 4), in pixels of the row's image, covers (O, N)."""
    grid = image_processor.size["height"] // image_processor.patch_size
    return _covered(_in_patches(boxes_xyxy, row, image_processor), grid)


def _in_patches(boxes_xyxy: Sequence[Any], row: Mapping[str, Any], image_processor: Any) -> np.ndarray:
    """Boxes (O, 4) in pixels of the row's image -> in patches of the model's square."""
    height, width, top, left = image_processor.geometry(row["height"], row["width"])
    ratio = (width / row["width"], height / row["height"])
    return (np.array(boxes_xyxy).reshape(-1, 4) * (ratio * 2) + (left, top, left, top)) / image_processor.patch_size


def _covered(boxes: np.ndarray, grid: int) -> np.ndarray:
    """The share of each patch that each box covers (O, N), of boxes (O, 4) in patches."""
    edges = np.arange(grid)
    along_x, along_y = (
        np.clip(np.minimum(edges + 1, boxes[:, hi, None]) - np.maximum(edges, boxes[:, lo, None]), 0, 1)
        for lo, hi in ((0, 2), (1, 3))
    )  # (O, G) each
    return (along_y[:, :, None] * along_x[:, None, :]).reshape(len(boxes), grid**2)


def _describe(item: Mapping[str, Any]) -> str:
    return " ".join(item[name] for name in ATTRIBUTES)
