"""Run a model over a dataset: every row exactly once, on one process or many, with any batch size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch.utils.data import DataLoader
from tqdm import tqdm

from hivg_hf.data import GroundingCollator
from hivg_hf.data.schema import encode_mask
from hivg_hf.utils.devices import wants_cpu


def process_state() -> PartialState:
    """This process among those that `accelerate launch` or `torchrun` started; one when nothing did."""
    # Without `cpu`, accelerate takes a machine without an accelerator for several worlds of one under torchrun.
    return PartialState(cpu=wants_cpu())


def computing_device(model: torch.nn.Module) -> torch.device:
    """This process's device, or the CPU for a model without parameters in torch: those of onnxruntime stay there."""
    return torch.device("cpu") if next(model.parameters(), None) is None else process_state().device


def predict(
    model: torch.nn.Module,
    processor: Any,
    dataset: Any,
    *,
    batch_size: int = 32,
    masks: bool = False,
    num_workers: int = 0,
    progress: bool = True,
    description: str = "evaluating",
) -> list[dict[str, Any]]:
    """Predict every row of a dataset.

    Batches are cut first and then dealt to the processes in turn, so that a batch holds the same rows however many
    processes there are (models that mix the samples of a batch depend on it), and no row is repeated to make the
    processes equally long. Every process returns all rows.

    Args:
        model: a `HiVGForVisualGrounding`, possibly wrapped by PEFT.
        processor: its `HiVGProcessor`.
        dataset: rows of the schema.
        batch_size: rows of one forward pass.
        masks: also predict a mask for every row, kept as run lengths (needs pycocotools).
        num_workers: processes that read and letterbox images for each process.
        progress: a progress bar on the main process.
        description: its label.

    Returns:
        One dict per row, in order: `id` (the row's number), `box_xyxy` (pixels of the original image, clipped to it),
        `score` (None where the model gives none), of a model with several queries `boxes_xyxy` and `scores` (whatever
        the score; of boxes that stand for one object, the best), `mask` (None unless asked for) and, in rows of
        several targets, `masks` (one for each box), and for the protocol "official"
        `canvas_box` (cxcywh, 0..1 of the padded square, as the model gave it), `canvas_size`, `canvas_offset`.
    """
    state, device = process_state(), computing_device(model)
    if masks:
        encode_mask(torch.zeros(1, 1).numpy())  # a missing package should be known before the work, not after it
    model = model.to(device).eval()
    batches = [range(start, min(start + batch_size, len(dataset))) for start in range(0, len(dataset), batch_size)]
    loader = DataLoader(
        _Batches(dataset, processor),
        sampler=_Fixed([list(batch) for batch in batches[state.process_index :: state.num_processes]]),
        batch_size=None,
        num_workers=num_workers,
    )
    predictions: list[dict[str, Any]] = []
    with tqdm(
        total=len(dataset), desc=description, unit="row", disable=not (progress and state.is_main_process)
    ) as bar:
        for indices, sizes, several, batch in loader:
            outputs = _forward(model, {name: tensor.to(device) for name, tensor in batch.items()}, masks)
            predictions += _read_outputs(outputs, processor, indices, sizes, several)
            # The main process sees its own share; the others keep pace.
            bar.update(min(len(indices) * state.num_processes, len(dataset) - bar.n))
    gathered = sorted(gather_object(predictions), key=lambda prediction: prediction["id"])
    if [prediction["id"] for prediction in gathered] != list(range(len(dataset))):
        raise RuntimeError(
            f"{len(gathered)} predictions came back for {len(dataset)} rows from {state.num_processes} processes: "
            f"did every process get the same dataset?"
        )
    return gathered


def references_of(dataset: Any) -> list[dict[str, Any]]:
    """The rows without their pictures, with `id` = the row's number: what `compute_grounding_metrics` takes."""
    # "image_row" is where a cache made by hivg survey keeps the place of a row's picture.
    pictures = [name for name in ("image", "image_row", "letterboxed") if name in dataset.column_names]
    return [{**row, "id": index} for index, row in enumerate(dataset.remove_columns(pictures))]


class _Batches(torch.utils.data.Dataset):
    """A list of row numbers -> (numbers, sizes of the original images, which have several targets, model inputs)."""

    def __init__(self, dataset: Any, processor: Any) -> None:
        self.dataset = dataset
        self.collate = GroundingCollator(processor, masks=False)
        self.inputs = processor.model_input_names

    def __getitem__(self, indices: Sequence[int]) -> tuple[Any, ...]:
        rows = [self.dataset[index] for index in indices]
        sizes = [(row["height"], row["width"]) for row in rows]
        several = [len(row.get("boxes") or ()) > 1 for row in rows]
        # Targets play no part in predicting: a row with several is as good as one without.
        batch = self.collate([{**row, "box": None, "boxes": [], "no_target": True, "mask": None} for row in rows])
        return indices, sizes, several, share_images({name: batch[name] for name in self.inputs if name in batch})


def share_images(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rows whose pixels are equal to the last bit read one image, `image_index`, which the model then sees once."""
    rows: dict[bytes, int] = {}
    index = [rows.setdefault(pixels.numpy().tobytes(), len(rows)) for pixels in batch["pixel_values"]]
    if len(rows) == len(index):
        return batch
    first = torch.tensor([index.index(row) for row in range(len(rows))])
    images: dict[str, torch.Tensor] = {
        name: batch[name][first] for name in ("pixel_values", "pixel_mask", "patch_index") if name in batch
    }
    return {**batch, **images, "image_index": torch.tensor(index)}


class _Fixed(torch.utils.data.Sampler):
    """Yields the given batches of row numbers."""

    def __init__(self, batches: list[list[int]]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


@torch.inference_mode()
def _forward(model: torch.nn.Module, batch: Mapping[str, torch.Tensor], masks: bool) -> Any:
    # A score from token similarity exists only where token logits were asked for.
    return model(**batch, output_masks=masks, output_token_logits=model.config.score == "similarity")


def _read_outputs(
    outputs: Any, processor: Any, indices: Sequence[int], sizes: Sequence[tuple[int, int]], several: Sequence[bool]
) -> list[dict[str, Any]]:
    results = processor.post_process_grounding(outputs, sizes)
    canvas_boxes = outputs.pred_boxes.float().cpu().tolist()
    sets: list[dict[str, Any]] = [{} for _ in results]
    if getattr(outputs, "query_scores", None) is not None:
        sets = _every_box(outputs, processor, sizes, several)
    predictions = []
    for index, size, result, canvas_box, every in zip(indices, sizes, results, canvas_boxes, sets, strict=True):
        letterbox = processor.image_processor.geometry(*size)
        predictions.append(
            {
                "id": int(index),
                "box_xyxy": result["box"].tolist(),
                "score": None if result["score"] is None else float(result["score"]),
                **every,
                "mask": None if result["mask"] is None else encode_mask(result["mask"].numpy()),
                "canvas_box": canvas_box,
                "canvas_size": processor.image_processor.side,
                "canvas_offset": [letterbox.left, letterbox.top],
            }
        )
    return predictions


def _every_box(
    outputs: Any, processor: Any, sizes: Sequence[tuple[int, int]], several: Sequence[bool]
) -> list[dict[str, Any]]:
    """Per row all boxes that stand for objects of their own, and in rows of several targets the mask of each."""

    def answers(rows: Sequence[int], *more: str) -> list[dict[str, Any]]:
        names = ("pred_boxes", "scores", "query_boxes", "query_scores", *more)
        own = {name: getattr(outputs, name)[rows] for name in names}
        return processor.post_process_grounding(own, [sizes[row] for row in rows], threshold=0.0, multiple=True)

    every: list[dict[str, Any]] = [
        {"boxes_xyxy": found["boxes"].tolist(), "scores": found["scores"].tolist()}
        for found in answers(list(range(len(sizes))))
    ]
    rows = [row for row, has_several in enumerate(several) if has_several]
    if rows and outputs.mask_logits is not None:  # masks of every query are many: of other rows nobody reads them
        for row, found in zip(rows, answers(rows, "mask_logits", "query_mask_logits"), strict=True):
            every[row]["masks"] = [encode_mask(mask.numpy()) for mask in found["masks"]]
    return every
