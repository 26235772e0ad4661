"""How the trainer evaluates: who answers which row, and how answers are judged."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from hivg_hf.data import GroundingCollator
from hivg_hf.metrics.batch import iou_figures
from hivg_hf.metrics.overlaps import paired_iou

ACCURACY_THRESHOLD = 0.5


def evaluation_shares(rows: int, batch_size: int, rank: int, processes: int) -> list[list[int]]:
    """Row numbers of each evaluation batch of one process, -1 where there is no row left.

    Every process gets the same number of batches of the same size, since sharded models communicate in forward; each
    row number appears exactly once over all processes.
    """
    share = -(-rows // processes)
    mine = [row if row < rows else -1 for row in range(rank * share, (rank + 1) * share)]
    return [mine[start : start + batch_size] for start in range(0, share, batch_size)]


class EvaluationRows:
    """Rows by number for a `DataLoader`; -1 repeats the first row, to be thrown away by its number."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.rows[max(index, 0)], "row_index": index}


class EvaluationCollator:
    """Rows to (row_index, height, width) of each, which map its box back, the targets, and the rest of the batch."""

    def __init__(self, processor: Any, protocol: str = "pixel") -> None:
        rounding = "official" if protocol == "official" else "exact"
        self.collator = GroundingCollator(processor, masks=False, target_rounding=rounding)

    def __call__(
        self, rows: list[dict[str, Any]]
    ) -> tuple[list[tuple[int, int, int]], torch.Tensor, dict[str, torch.Tensor]]:
        inputs = self.collator(rows)
        labels = inputs.pop("labels")
        for name in ("image_ids", "mask_labels"):
            inputs.pop(name, None)
        return [(row["row_index"], row["height"], row["width"]) for row in rows], labels, inputs


def square_figures(ious: np.ndarray) -> dict[str, float]:
    """The figures of `box_figures` from IoUs in the padded square (N,), NaN for rows without a target."""
    found = iou_figures(ious, (ACCURACY_THRESHOLD,))
    if not found["n"]:
        raise ValueError("None of the evaluation rows has a box, so there is nothing to measure.")
    accuracy = found[f"acc@{ACCURACY_THRESHOLD}"]
    return {"accuracy": accuracy, "mean_iou": found["mean_iou"], "samples": int(found["n"]), "rows": len(ious)}


def box_figures(boxes_xyxy: np.ndarray, rows: Any) -> dict[str, float]:
    """Accuracy at IoU 0.5 and mean IoU of boxes (N, 4) against the rows' own; xyxy pixels of the original image."""
    boxes = rows["box"] if hasattr(rows, "column_names") else [row["box"] for row in rows]
    truth = [[np.nan] * 4 if box is None else box for box in boxes]
    targets = np.asarray(truth, dtype=np.float64).reshape(-1, 4)
    named = ~np.isnan(targets).any(axis=1)
    if not named.any():
        raise ValueError("None of the evaluation rows has a box, so there is nothing to measure.")
    ious = paired_iou(boxes_xyxy[named], targets[named])
    return {
        "accuracy": float((ious >= ACCURACY_THRESHOLD).mean()),
        "mean_iou": float(ious.mean()),
        "samples": int(named.sum()),
        "rows": len(targets),
    }


class EarlyStop(TrainerCallback):
    """Stop after `patience` evaluations without gain; all it needs is in the trainer's state, so resuming is exact."""

    def __init__(self, patience: int) -> None:
        self.patience = patience

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # a run killed just after it had stopped must not go on to another evaluation
        control.should_training_stop |= _evaluations_since_best(state, state.log_history) >= self.patience

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # the entry of this evaluation is in the history already, but it has not been judged yet
        newest = state.log_history[-1].get("eval_accuracy", 0.0)
        if state.best_metric is not None and newest <= state.best_metric:
            stale = 1 + _evaluations_since_best(state, state.log_history[:-1])
            control.should_training_stop |= stale >= self.patience


def _evaluations_since_best(state: Any, history: list[dict[str, float]]) -> int:
    return sum("eval_accuracy" in entry and entry["step"] > (state.best_global_step or 0) for entry in history)
