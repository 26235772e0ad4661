"""`HiVGTrainer`: transformers' Trainer for grounding.

What it adds, each in the method where it happens:

- batches that are the same for any number of processes (`get_train_dataloader`, `compute_loss`);
- every loss term in the log, unweighted, averaged over the logging window and the processes (`log`);
- accuracy in pixels of the original images, each row counted once (`evaluate`);
- a stop at the first non-finite loss or gradient, naming the last good checkpoint (`training_step`);
- checkpoints that appear whole or not at all, with all adapters, the bridge and the head (`trainer_checkpoints.py`).
"""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers.trainer_utils import get_last_checkpoint

from hivg_hf.data import EpochSampler, GroundingCollator, KeyedDataset, UniqueImageSampler
from hivg_hf.data.order import image_ids_of, without_image_decoding
from hivg_hf.metrics.batch import batch_box_iou

from .arguments import HiVGTrainingArguments
from .batches import EpochDataLoader, GlobalBatchSampler
from .sharding import widen_scalars
from .trainer_checkpoints import CheckpointingTrainer
from .trainer_evaluation import (
    EarlyStop,
    EvaluationCollator,
    EvaluationRows,
    box_figures,
    evaluation_shares,
    square_figures,
)

logger = logging.getLogger(__name__)


class NonFiniteLossError(RuntimeError):
    """Training stopped because a loss or a gradient was not a finite number."""


class HiVGTrainer(CheckpointingTrainer):
    """Train a HiVG model, plain or with HiLoRA adapters, on rows of the one schema.

    Args:
        model: A `HiVGForVisualGrounding`, or the `PeftModel` of `start_stage`.
        args: `HiVGTrainingArguments`.
        train_dataset: Rows of the schema; a `datasets.Dataset` or any sequence of such rows.
        eval_dataset: The same, or a dict of several by name.
        processing_class: The `HiVGProcessor`; also maps boxes back to pixels in evaluation.
        data_collator: Rows to a batch; a `GroundingCollator` without augmentation by default.
        initial_accuracy: Accuracy before the first step. A checkpoint only counts as best if it beats this, so that
            training never ends worse than it began.
    """

    args: HiVGTrainingArguments

    def __init__(
        self,
        model: torch.nn.Module,
        args: HiVGTrainingArguments,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        initial_accuracy: float | None = None,
        **kwargs: Any,
    ) -> None:
        if processing_class is None:
            raise ValueError("HiVGTrainer needs the model's HiVGProcessor: pass it as processing_class.")
        if data_collator is None:
            data_collator = GroundingCollator(processing_class, seed=args.seed)
        # not given to transformers, which would copy the tokenizer's special ids into the model's config
        super().__init__(model, args, data_collator, train_dataset, eval_dataset, **kwargs)
        self.processor = processing_class
        if self.is_fsdp_enabled:
            widen_scalars(self.model)
        self.initial_accuracy = initial_accuracy
        self._term_sums: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros((), device=self.args.device))
        self._term_steps = 0
        self._micro_step = (-1, 0)  # (optimizer step, micro-batches of it already seen)
        self._bad_loss: torch.Tensor | None = None
        if args.early_stop is not None:
            self.add_callback(EarlyStop(args.early_stop))

    # ---- batches ----

    def get_train_dataloader(self) -> DataLoader:
        """Batches of rows by `(epoch, index)` keys; see `training_batches`."""
        args, rows = self.args, KeyedDataset(self.train_dataset)
        batch = args.global_batch_size or (
            args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        )
        self._check_equal_shares(batch)
        if args.unique_images:
            order: EpochSampler = UniqueImageSampler(image_ids_of(self.train_dataset), batch, seed=args.seed)
        else:
            order = EpochSampler(len(rows), seed=args.seed)
        sampler = GlobalBatchSampler(
            order, batch, args.gradient_accumulation_steps, rank=args.process_index, processes=args.world_size
        )
        self._steps_per_epoch = sampler.steps
        return EpochDataLoader(
            rows,
            batch_sampler=sampler,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory and args.device.type == "cuda",
            persistent_workers=False,
        )

    def _check_equal_shares(self, batch: int) -> None:
        """Gathered negatives need as many samples from every process.

        Raises:
            ValueError: If the batch cannot be dealt equally.
        """
        pieces = self.args.world_size * self.args.gradient_accumulation_steps
        config = getattr(self.accelerator.unwrap_model(self.model), "config", None)
        if self.args.world_size > 1 and getattr(config, "contrastive_gather", False) and batch % pieces:
            raise ValueError(
                f"contrastive_gather needs equal shares, but a batch of {batch} does not divide into {pieces} pieces "
                f"({self.args.world_size} processes x {self.args.gradient_accumulation_steps} micro-batches): change "
                "the batch size, per_device_batch_size or the number of processes."
            )

    def num_examples(self, dataloader: DataLoader) -> int:
        """Rows that one epoch trains on."""
        sampler = getattr(dataloader, "batch_sampler", None)
        if isinstance(sampler, GlobalBatchSampler):
            return sampler.steps * sampler.global_batch_size
        return super().num_examples(dataloader)

    # ---- one step ----

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """One micro-batch forward and backward; stops at a non-finite loss before the optimizer would step."""
        step = self.state.global_step
        micro = self._micro_step[1] + 1 if self._micro_step[0] == step else 1
        self._micro_step = (step, micro)
        if self.args.seed_each_step:
            torch.manual_seed(_step_seed(self.args.seed, step, micro, self.args.process_index))
        loss = super().training_step(model, inputs, num_items_in_batch)
        bad = ~torch.isfinite(loss)
        self._bad_loss = bad if self._bad_loss is None else self._bad_loss | bad
        if micro == self.current_gradient_accumulation_steps:
            self._term_steps += 1
            self._stop_if_not_finite()
        return loss

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The model's loss, weighted by the micro-batch's share of the global batch; its terms go to the log."""
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        if model.training:
            share = self._share(inputs)
            if share != 1:
                loss = loss * share
            scale = share / self.current_gradient_accumulation_steps
            for name, value in (outputs.get("loss_dict") or {}).items():
                self._term_sums[name] += value.detach().float() * scale
        return (loss, outputs) if return_outputs else loss

    def _share(self, inputs: dict[str, Any]) -> float:
        """The micro-batch's size over the mean size; 1 where the global batch divides evenly."""
        if self.args.global_batch_size is None:
            return 1
        size = next(value.shape[0] for value in inputs.values() if isinstance(value, torch.Tensor))
        if "pixel_values" in inputs:
            size = inputs["pixel_values"].shape[0]
        pieces = self.args.world_size * self.current_gradient_accumulation_steps
        return size * pieces / self.args.global_batch_size

    def _stop_if_not_finite(self) -> None:
        """All processes look at the same flag, so that none waits for one that has stopped."""
        bad, self._bad_loss = self._bad_loss.float(), None
        if self.args.world_size > 1:
            torch.distributed.all_reduce(bad, op=torch.distributed.ReduceOp.MAX)
        if bad.item():
            terms = {name: value.item() for name, value in self._term_sums.items()}
            culprits = sorted(name for name, value in terms.items() if not np.isfinite(value))
            self._fail(f"the loss is not finite (terms: {', '.join(culprits) or 'all finite on this process'})")

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        """The gradient's norm; a non-finite one would poison the weights while the loss still looked well."""
        grad_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if not self.args.fp16 and not np.isfinite(float(grad_norm)):  # fp16's loss scaling skips such steps itself
            self._fail("the gradient is not finite")
        return grad_norm

    def _fail(self, reason: str) -> None:
        last = get_last_checkpoint(self.args.output_dir) if os.path.isdir(self.args.output_dir) else None
        kept = f"The last good checkpoint is {last}" if last else "No checkpoint had been written yet"
        raise NonFiniteLossError(
            f"Training stopped at step {self.state.global_step + 1}: {reason}. {kept}; lower the learning rate or set "
            "max_grad_norm, then start again."
        )

    # ---- optimizer and schedule ----

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        """Parameters with weight decay: all of them with `decay_all`, otherwise all but biases and norms."""
        if self.args.decay_all:
            return [name for name, _ in model.named_parameters()]
        return super().get_decay_parameter_names(model)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """transformers' schedule; with `schedule_by_epoch` its value at the epoch's first step holds for the epoch."""
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        if self.args.schedule_by_epoch:
            factors = scheduler.lr_lambdas
            scheduler.lr_lambdas = [_constant_within_epochs(factor, self._steps_per_epoch) for factor in factors]
        return scheduler

    # ---- log ----

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the loss terms, averaged over the optimizer steps since the last entry and over the processes."""
        if "loss" in logs and self._term_steps:
            names = sorted(self._term_sums)
            means = torch.stack([self._term_sums[name] for name in names]) / self._term_steps
            if self.args.world_size > 1:
                means = self.accelerator.reduce(means, reduction="mean")
            logs.update({f"loss_{name}": value for name, value in zip(names, means.tolist())})
            self._term_sums.clear()
            self._term_steps = 0
        super().log(logs, start_time)

    # ---- evaluation ----

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Accuracy and mean IoU in pixels of the original images, each row counted once.

        Returns:
            `{prefix}_accuracy` (IoU >= 0.5, over rows with a target), `{prefix}_mean_iou`, `{prefix}_samples` (N) and
            `{prefix}_rows` (with those that name nothing).
        """
        eval_dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(eval_dataset, dict):
            parts = (
                self.evaluate(rows, metric_key_prefix=f"{metric_key_prefix}_{name}")
                for name, rows in eval_dataset.items()
            )
            return {name: value for part in parts for name, value in part.items()}
        boxes, ious = self.predict_boxes(eval_dataset)  # (N, 4), (N,)
        official = self.args.protocol == "official"
        figures = square_figures(ious) if official else box_figures(boxes, eval_dataset)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in figures.items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(
            self.args,
            self.state,
            self.control,  # type: ignore[has-type]
            metrics,
        )
        return metrics

    def predict_boxes(self, rows: Any) -> tuple[np.ndarray, np.ndarray]:
        """Boxes (N, 4) xyxy in pixels of the original images, and their IoU (N,) with the targets in the padded
        square, in the order of the rows, on every process."""
        args, model = self.args, self.model
        loader = DataLoader(
            EvaluationRows(without_image_decoding(rows)),
            batch_sampler=evaluation_shares(len(rows), args.eval_batch_size, args.process_index, args.world_size),
            collate_fn=EvaluationCollator(self.processor, args.protocol),
            num_workers=args.dataloader_num_workers,
        )
        if not self.is_in_train:
            model.to(args.device)  # a model that is to be sharded is still where it was loaded
        found = np.zeros((len(rows), 5))
        was_training = model.training
        model.eval()
        for meta, labels, inputs in loader:
            with torch.no_grad(), self.compute_loss_context_manager():
                outputs = model(**self._prepare_inputs(inputs))
            results = self.processor.post_process_grounding(outputs, [size for _, *size in meta])
            ious = batch_box_iou(outputs.pred_boxes.cpu(), labels)  # (B,)
            for (index, *_), result, iou in zip(meta, results, ious.tolist()):
                if index >= 0:
                    found[index] = [*result["box"].tolist(), iou]
        model.train(was_training)
        if args.world_size > 1:  # each row was set by exactly one process, the others hold zeros there
            gathered = torch.from_numpy(found).to(args.device)
            torch.distributed.all_reduce(gathered)
            found = gathered.cpu().numpy()
        return found[:, :4], found[:, 4]


def _constant_within_epochs(factor: Callable[[int], float], steps_per_epoch: int) -> Callable[[int], float]:
    # a plain function: LambdaLR writes the attributes of callable objects into its checkpoint
    def at_epoch_start(step: int) -> float:
        return factor(step - step % steps_per_epoch)

    return at_epoch_start


def _step_seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1)[0])
