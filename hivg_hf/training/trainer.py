"""`HiVGTrainer`: transformers' Trainer for grounding.

What it adds, each in the method where it happens:

- batches that are the same for any number of processes (`get_train_dataloader`, `compute_loss`);
- every loss term in the log, unweighted, averaged over the logging window and the processes (`log`);
- accuracy in pixels of the original images, each row counted once, in transformers' own evaluation loop
  (`trainer_evaluation.py`);
- a stop at the first non-finite loss or gradient, naming the last good checkpoint (`training_step`);
- checkpoints that appear whole or not at all, with all adapters, the bridge and the head (`trainer_checkpoints.py`).
"""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from hivg_hf.data import EpochSampler, GroundingCollator, UniqueImageSampler
from hivg_hf.data.order import image_ids_of
from hivg_hf.modeling.loss_hivg import count_targets, terms_of_targets

from .arguments import HiVGTrainingArguments, accumulation_steps
from .batches import EpochDataLoader, GlobalBatchSampler
from .sharding import widen_scalars
from .trainer_checkpoints import CheckpointingTrainer
from .trainer_evaluation import EarlyStop, EvaluatingTrainer, gives_own_order, keyed_rows

logger = logging.getLogger(__name__)

THRESHOLDS = ("score_threshold", "multiple_threshold")


class NonFiniteLossError(RuntimeError):
    """Training stopped because a loss or a gradient was not a finite number."""


class HiVGTrainer(CheckpointingTrainer, EvaluatingTrainer):
    """Train a HiVG model, plain or with HiLoRA adapters, on rows of the one schema.

    Args:
        model: A `HiVGForVisualGrounding`, or the `PeftModel` of `start_stage`.
        args: `HiVGTrainingArguments`.
        data_collator: Rows to a batch; a `GroundingCollator` without augmentation by default. Evaluation uses it
            without its augmentation.
        train_dataset: Rows with at least `image`, `expression` and `box`: a `datasets.Dataset`, any sequence, or a
            stream (`IterableDataset`). A stream of `load_grounding_dataset` trains as a table does; with any other,
            `max_steps` says how long.
        eval_dataset: The same, or a dict of several by name.
        processing_class: The `HiVGProcessor`, saved beside the checkpoints.
        model_init: Makes the model anew for every `train()`, for `hyperparameter_search`.
        initial_accuracy: Accuracy before the first step. A checkpoint only counts as best if it beats this, so that
            training never ends worse than it began.
        keeps_thresholds: Whether the thresholds of the model's config hold for the scores after training too. By
            default they are cleared when training begins, with a warning: they were chosen for other scores.
        kwargs: What else `transformers.Trainer` takes: `compute_metrics`, `callbacks`, `optimizers`, ...

    Example:
        >>> import hivg_hf
        >>> from hivg_hf import HiVGTrainer, HiVGTrainingArguments
        >>> from transformers import AutoModel, AutoProcessor
        >>> rows = hivg_hf.load_grounding_dataset("refshapes", "val", seed=1, size=2)
        >>> trainer = HiVGTrainer(
        ...     AutoModel.from_pretrained(hivg_hf.TINY_CHECKPOINT),
        ...     HiVGTrainingArguments("runs/mine", max_steps=1, per_device_train_batch_size=2),
        ...     train_dataset=rows,
        ...     eval_dataset=rows,
        ...     processing_class=AutoProcessor.from_pretrained(hivg_hf.TINY_CHECKPOINT),
        ... )
        >>> metrics = trainer.evaluate()
        >>> sorted(metrics)[:3]
        ['epoch', 'eval_accuracy', 'eval_loss']

    Raises:
        TypeError: If `args` are plain `TrainingArguments`.
        ValueError: If there is no processor.
    """

    args: HiVGTrainingArguments

    def __init__(
        self,
        model: torch.nn.Module | None = None,
        args: HiVGTrainingArguments | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        model_init: Callable[..., torch.nn.Module] | None = None,
        *,
        initial_accuracy: float | None = None,
        keeps_thresholds: bool = False,
        **kwargs: Any,
    ) -> None:
        args = HiVGTrainingArguments("tmp_trainer") if args is None else args
        if not isinstance(args, HiVGTrainingArguments):
            raise TypeError(
                f"HiVGTrainer takes HiVGTrainingArguments, got {type(args).__name__}: write "
                "HiVGTrainingArguments(output_dir, ...) with the same values, or use transformers' Trainer with "
                "data_collator=GroundingCollator(processor)."
            )
        if processing_class is None:
            raise ValueError("HiVGTrainer needs the model's HiVGProcessor: pass it as processing_class.")
        if not hasattr(processing_class, "image_processor"):
            raise TypeError(
                f"HiVGTrainer needs the model's HiVGProcessor as processing_class, which reads images too. Got "
                f"{type(processing_class).__name__}: pass the whole processor."
            )
        if isinstance(data_collator, type):
            raise TypeError(
                f"data_collator is the class {data_collator.__name__}, where one that was made is needed: "
                f"{data_collator.__name__}(processor), for example."
            )
        if data_collator is None:
            data_collator = GroundingCollator(processing_class, seed=args.seed)
        # not given to transformers, which would copy the tokenizer's special ids into the model's config
        super().__init__(model, args, data_collator, train_dataset, eval_dataset, model_init=model_init, **kwargs)
        self.processor = processing_class
        num_queries = getattr(getattr(self.model, "config", None), "num_queries", 1)
        if hasattr(self.data_collator, "for_queries"):
            self.data_collator = self.data_collator.for_queries(num_queries)
        if self.is_fsdp_enabled:
            widen_scalars(self.model)
        self.initial_accuracy = initial_accuracy
        self._term_sums: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros((), device=self.args.device))
        self._term_steps = 0
        self._micro_step = (-1, 0)  # (optimizer step, micro-batches of it already seen)
        self._step_targets = torch.zeros(())
        self._bad_loss: torch.Tensor | None = None
        if args.early_stop is not None:
            self.add_callback(EarlyStop(args.early_stop))
        if not keeps_thresholds:
            self.add_callback(ThresholdsForgotten())

    # ---- batches ----

    def get_train_dataloader(self) -> DataLoader:
        """Batches of rows by `(epoch, index)` keys; of a stream without row numbers, those of transformers."""
        if self.train_dataset is None:
            raise ValueError("HiVGTrainer: training needs a train_dataset.")
        args, rows = self.args, keyed_rows(self.train_dataset)
        if args.global_batch_size is not None:  # a search may have changed it, or the micro-batch
            args.gradient_accumulation_steps = accumulation_steps(
                args.global_batch_size, args.world_size, args.per_device_train_batch_size
            )
        if gives_own_order(self.train_dataset):
            self._check_stream_settings()
            return super().get_train_dataloader()
        batch = args.global_batch_size or (
            args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        )
        self._check_equal_shares(batch)
        if args.unique_images:
            order: EpochSampler = UniqueImageSampler(image_ids_of(self.train_dataset), batch, seed=args.seed)
        else:
            shuffle = getattr(self.train_dataset, "shuffle_rows", True)  # a stream may be asked for its own order
            order = EpochSampler(len(rows), seed=args.seed, shuffle=shuffle)
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

    def _check_stream_settings(self) -> None:
        """Refuse what a stream without row numbers cannot give.

        Raises:
            ValueError: If such a setting is on.
        """
        args = self.args
        held = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        refused = [name for name in ("unique_images", "schedule_by_epoch") if getattr(args, name)]
        if args.global_batch_size not in (None, held):
            refused.append(f"global_batch_size={args.global_batch_size} (the processes take {held} rows at a time)")
        if refused:
            raise ValueError(
                f"{' and '.join(refused)} needs rows that can be asked for by number, and train_dataset is a stream "
                "that gives them in its own order: omit it, or train on a table."
            )

    def _init_training_state(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' own.

        Raises:
            ValueError: If a stream without row numbers would have to be entered in a later pass than its first.
        """
        begun = super()._init_training_state(*args, **kwargs)
        if gives_own_order(self.train_dataset) and (self.state.epoch or 0) >= 1:
            raise ValueError(
                f"The checkpoint of step {self.state.global_step} was made after the first pass of a stream whose "
                "rows cannot be asked for by number, which can be entered in its first pass only: train on a table or "
                "on a stream of load_grounding_dataset, or start over."
            )
        return begun

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

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list, Any]:
        """The micro-batches of a step, as of transformers; counts the targets in them, over all processes."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        counts = [self._targets_in(inputs) for inputs in batches]
        self._step_targets = torch.as_tensor(sum(counts), dtype=torch.float32, device=device)
        if self.args.world_size > 1:
            torch.distributed.all_reduce(self._step_targets)
        return batches, items

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
        """The model's loss, weighted by the micro-batch's share of the global batch; its terms go to the log.

        Terms that are means over targets are weighted by its share of these: rows with none or several are not dealt
        equally.
        """
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        if model.training:
            share, of_targets = self._share(inputs), self._share_of_targets(inputs)
            if share != 1:
                loss = loss * share
            weights, num_queries = self._loss_weights()
            for name, value in (outputs.get("loss_dict") or {}).items():
                part = share
                if name in terms_of_targets(num_queries) and of_targets is not None and of_targets != share:
                    part = of_targets
                    if self.compute_loss_func is None:
                        loss = loss + weights[name] * (part - share) * value
                self._term_sums[name] += value.detach().float() * part / self.current_gradient_accumulation_steps
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

    def _share_of_targets(self, inputs: dict[str, Any]) -> float | None:
        """The same in targets, of which rows have none or several; None where it is all, or the step has none."""
        pieces = self.args.world_size * self.current_gradient_accumulation_steps
        total = float(self._step_targets) if pieces > 1 else 0
        return float(self._targets_in(inputs)) * pieces / total if total else None

    def _targets_in(self, inputs: dict[str, Any]) -> torch.Tensor | int:
        labels = inputs.get("labels")
        return count_targets(labels, self._loss_weights()[1]) if isinstance(labels, torch.Tensor) else 0

    def _loss_weights(self) -> tuple[dict[str, float], int]:
        """Weights of the model's loss terms, and its number of queries."""
        config = getattr(self.accelerator.unwrap_model(self.model), "config", None)
        return getattr(config, "loss_weights", {}), getattr(config, "num_queries", 1)

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

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """transformers' optimizer; with `loraplus_ratio`, every low-rank term's B has a rate of its own.

        `peft.optimizers.create_loraplus_optimizer` raises the rate of every vector too, and here biases and norms of
        bridge and head train beside the terms.
        """
        is_given = self.optimizer is not None
        optimizer = super().create_optimizer(model)
        if self.args.loraplus_ratio is not None and not is_given:
            names = {id(parameter): name for name, parameter in (model or self.model).named_parameters()}
            for group in list(optimizer.param_groups):
                raised = [parameter for parameter in group["params"] if "lora_B" in names[id(parameter)]]
                if raised:
                    kept = {id(parameter) for parameter in raised}
                    group["params"] = [parameter for parameter in group["params"] if id(parameter) not in kept]
                    optimizer.add_param_group(
                        {**group, "params": raised, "lr": group["lr"] * self.args.loraplus_ratio}
                    )
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """transformers' schedule, or a part of it.

        With `schedule_steps` it is one over so many steps, from `schedule_start`. With `schedule_by_epoch` its value
        at the epoch's first step holds for the epoch.
        """
        scheduler = super().create_scheduler(self.args.schedule_steps or num_training_steps, optimizer)
        if self.args.schedule_start:
            _move(scheduler, self.args.schedule_start)
        if self.args.schedule_by_epoch:
            factors = scheduler.lr_lambdas
            scheduler.lr_lambdas = [_constant_within_epochs(factor, self._steps_per_epoch) for factor in factors]
        return scheduler

    # ---- log ----

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the loss terms, averaged over the optimizer steps since the last entry and over the processes."""
        if "loss" in logs and self._term_sums:  # a loss function of the user's own names no terms
            names = sorted(self._term_sums)
            means = torch.stack([self._term_sums[name] for name in names]) / self._term_steps
            if self.args.world_size > 1:
                means = self.accelerator.reduce(means, reduction="mean")
            logs.update({f"loss_{name}": value for name, value in zip(names, means.tolist())})
            self._term_sums.clear()
            self._term_steps = 0
        super().log(logs, start_time)


class ThresholdsForgotten(TrainerCallback):
    """Clear the thresholds that the start was calibrated to, and say so."""

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        forgotten = forget_thresholds(getattr(model, "config", None))
        if forgotten and state.is_world_process_zero:
            logger.warning(
                "score: %s cleared, since training changes the scores that it was chosen for; answers say no `found` "
                "until `hivg calibrate` has chosen another (keeps_thresholds=True keeps it).",
                " and ".join(f"{name} {value:g}" for name, value in forgotten.items()),
            )


def forget_thresholds(config: Any, kept: Collection[str] = ()) -> dict[str, float]:
    """Clear what `hivg calibrate` chose for scores that training changes.

    Args:
        config: Of a HiVG; another kind stays as it is.
        kept: Names of thresholds that are to hold afterwards.

    Returns:
        What was cleared, by name.
    """
    names = [name for name in THRESHOLDS if name not in kept and getattr(config, name, None) is not None]
    forgotten = {name: getattr(config, name) for name in names}
    for name in names:
        setattr(config, name, None)
    return forgotten


def _move(scheduler: Any, start: int) -> None:
    """Let a schedule begin at another of its steps."""
    # plain functions, as below; `partial` would be a callable object
    scheduler.lr_lambdas = [(lambda step, factor=factor: factor(step + start)) for factor in scheduler.lr_lambdas]
    rates = [base * factor(0) for base, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)]
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    scheduler._last_lr = rates


def _constant_within_epochs(factor: Callable[[int], float], steps_per_epoch: int) -> Callable[[int], float]:
    # a plain function: LambdaLR writes the attributes of callable objects into its checkpoint
    def at_epoch_start(step: int) -> float:
        return factor(step - step % steps_per_epoch)

    return at_epoch_start


def _step_seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1)[0])
