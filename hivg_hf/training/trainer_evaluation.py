"""Evaluation in transformers' own loop, with accuracy in pixels of the original images beside the user's metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset
from transformers import Trainer, TrainerCallback

from hivg_hf.data import KeyedDataset
from hivg_hf.data.order import without_image_decoding
from hivg_hf.metrics.batch import batch_box_iou, iou_figures

ACCURACY_THRESHOLD = 0.5


class EvaluatingTrainer(Trainer):
    """transformers' Trainer, whose evaluation also gives accuracy and mean IoU, each row counted once."""

    data_collator: Any
    compute_metrics: Any
    _overlaps: list[torch.Tensor] | None = None  # IoU of the rows seen by the evaluation in progress

    def _get_dataloader(
        self, dataset: Any, description: str, *args: Any, is_training: bool = False, **kwargs: Any
    ) -> Any:
        """Rows with the images undecoded, and without augmentation where nothing is trained."""
        collator = self.data_collator
        if not is_training and hasattr(collator, "for_evaluation"):
            is_official = getattr(self.args, "protocol", "pixel") == "official"
            self.data_collator = collator.for_evaluation("official" if is_official else "exact")
        try:
            return super()._get_dataloader(keyed_rows(dataset), description, *args, is_training=is_training, **kwargs)
        finally:
            self.data_collator = collator

    def prediction_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> Any:
        """transformers' own; the overlap of each row's box is kept, whoever wrote `compute_loss`."""
        labels, pixel_mask = inputs.get("labels"), inputs.get("pixel_mask")
        compute_loss, seen = self.compute_loss, []

        def compute_and_keep(*args: Any, **kwargs: Any) -> Any:
            found = compute_loss(*args, **kwargs)
            outputs = found[1] if isinstance(found, tuple) else None
            seen.append(outputs.get("pred_boxes") if isinstance(outputs, Mapping) else None)
            return found

        own = self.__dict__.get("compute_loss")
        self.__dict__["compute_loss"] = compute_and_keep  # on this object alone, for this step
        try:
            found = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        finally:
            del self.__dict__["compute_loss"]
            if own is not None:
                self.__dict__["compute_loss"] = own
        boxes = next(iter(seen), None)
        if self._overlaps is not None and boxes is not None and labels is not None:
            # The official protocol compares in the padded square, ours clips boxes to the picture first.
            inside = None if getattr(self.args, "protocol", "pixel") == "official" else pixel_mask
            ious = batch_box_iou(boxes, labels, inside)  # (B,)
            self._overlaps.append(self.gather_function(ious.to(labels.device)).cpu())
        return (*found[:2], _with_places(found[2], self.data_collator))

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """transformers' own loop, with a few figures added under the prefix.

        Returns:
            What transformers' loop returns. Its metrics also hold `accuracy` (IoU >= 0.5, over rows with a target),
            `mean_iou`, `samples` (rows with a target) and `rows`, where `compute_metrics` gives none of that name.
        """
        stand_in = self.is_fsdp_enabled and not self.accelerator._models
        if stand_in:  # before training the model is whole, and is not sharded without its optimizer
            self.accelerator._models.append(self.model.to(self.args.device))
        was_training, self._overlaps = self.model.training, []
        metrics = self.compute_metrics
        if metrics is not None:
            self.compute_metrics = partial(_measure, metrics)
        was_prepared = getattr(self.model, "_is_accelerate_prepared", False)
        try:
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
            for name, value in overlap_figures(self._overlaps).items():
                output.metrics.setdefault(f"{metric_key_prefix}_{name}", value)
            return output._replace(label_ids=_without_places(output.label_ids))
        finally:
            self._overlaps, self.compute_metrics = None, metrics
            self.model.train(was_training)
            if stand_in:
                self.accelerator._models.pop()
            elif not was_prepared and getattr(self.model, "_is_accelerate_prepared", False):
                # Marked as prepared, it would not be wrapped for training: processes would not share their gradients.
                self.model._is_accelerate_prepared = False
                self.accelerator._models.clear()


def _with_places(labels: Any, collator: Any) -> Any:
    """Labels (B, 4) of a batch whose rows have one target each as (B, 1, 4), where other batches may have more."""
    is_single = getattr(collator, "several_targets", False) and isinstance(labels, torch.Tensor) and labels.ndim == 2
    return labels[:, None] if is_single else labels


def _without_places(labels: Any) -> Any:
    """Labels (N, 1, 4) as (N, 4): beside boxes (N, 4), arithmetic would spread them to (N, N, 4) in silence."""
    return labels[:, 0] if getattr(labels, "ndim", 0) == 3 and labels.shape[1] == 1 else labels


def _measure(metrics: Callable[..., Any], evaluation: Any, **options: Any) -> Any:
    evaluation.label_ids = _without_places(evaluation.label_ids)
    return metrics(evaluation, **options)


def gives_own_order(dataset: Any) -> bool:
    """Whether a dataset is a stream whose rows cannot be asked for by number."""
    return isinstance(dataset, IterableDataset) and not hasattr(dataset, "row_at")


def keyed_rows(dataset: Any) -> Any:
    """Rows by number, each carrying its number; a stream that has none as it is, its images undecoded."""
    return without_image_decoding(dataset) if gives_own_order(dataset) else KeyedDataset(dataset)


def overlap_figures(overlaps: list[torch.Tensor]) -> dict[str, float]:
    """Accuracy at IoU 0.5, mean IoU, and how many rows were measured; without a target no accuracy."""
    ious = torch.cat(overlaps).double().numpy() if overlaps else np.empty(0)
    found = iou_figures(ious, (ACCURACY_THRESHOLD,))
    counts = {"samples": int(found["n"]), "rows": len(ious)}
    if not counts["samples"]:
        return {**counts}
    return {"accuracy": found[f"acc@{ACCURACY_THRESHOLD}"], "mean_iou": found["mean_iou"], **counts}


class EarlyStop(TrainerCallback):
    """Stop after `patience` evaluations without gain; all it needs is in the trainer's state, so resuming is exact."""

    def __init__(self, patience: int) -> None:
        self.patience = patience

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # a run killed just after it had stopped must not continue to another evaluation
        stale = _evaluations_since_best(state, state.log_history, _metric_name(args))
        control.should_training_stop |= stale >= self.patience

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # the entry of this evaluation is in the history already, but it has not been judged yet
        name = _metric_name(args)
        newest = state.log_history[-1].get(name)
        if state.best_metric is None or newest is None:
            return
        if newest <= state.best_metric if args.greater_is_better else newest >= state.best_metric:
            stale = 1 + _evaluations_since_best(state, state.log_history[:-1], name)
            control.should_training_stop |= stale >= self.patience


def _metric_name(args: Any) -> str:
    return f"eval_{args.metric_for_best_model.removeprefix('eval_')}"


def _evaluations_since_best(state: Any, history: list[dict[str, float]], name: str) -> int:
    return sum(name in entry and entry["step"] > (state.best_global_step or 0) for entry in history)
