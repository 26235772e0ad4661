"""Arguments of `HiVGTrainer`: transformers' own, with defaults that fit grounding and a few of ours."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field

from transformers import TrainingArguments

PROTOCOLS = ("pixel", "official")


@dataclass
class HiVGTrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments` for `HiVGTrainer`.

    > Parameters of ours

    Args:
        global_batch_size: Samples per optimizer step over all processes. Sets `gradient_accumulation_steps` so that
            this many are taken whatever the number of processes; `per_device_train_batch_size` is then the most that
            one process holds at a time. None keeps transformers' meaning (per device x processes x accumulation).
        decay_all: Weight decay on biases and norms too. Official: one parameter group, hivg_train.py:164-171.
        schedule_by_epoch: Hold the learning rate of the schedule constant within an epoch. Official: the scheduler
            steps once per epoch, hivg_train.py:185-188.
        schedule_steps: Steps of a schedule that goes over several trainings; None stands for those of this one.
        schedule_start: Its step at which this training begins.
        loraplus_ratio: Rate of every low-rank term's B over that of all else (LoRA+); None gives both the same.
        early_stop: Stop after so many evaluations without a better `metric_for_best_model`; None never does.
        protocol: How an evaluation judges a box: `pixel`, IoU in pixels of the original image; or `official`, in the
            padded square, against the target cut to whole pixels. Official: engine.py, datasets/data_loader.py:277
        seed_each_step: Seed dropout by (seed, step, process) before every micro-batch, so that a resumed run draws
            what an unbroken one draws whatever else used random numbers in between.
        unique_images: Keep two rows of one image out of one batch, where `image_id` allows it.

    > Defaults that differ from the parent class

    `remove_unused_columns=False` (rows are dictionaries of the one schema), `label_names=["labels"]`,
    `logging_nan_inf_filter=False` (a non-finite loss stops the run instead of being averaged away),
    `metric_for_best_model="accuracy"`, `max_grad_norm=0`, `save_total_limit=2` (the newest checkpoint and the best),
    `weight_decay=1e-4`. Each process reads a stream for itself and takes its share (`dispatch_batches=False`), since
    batches differ in their numbers of patches.
    """

    remove_unused_columns: bool | None = field(default=False, metadata={"help": "Rows of the schema are kept whole."})
    label_names: list[str] | None = field(
        default_factory=lambda: ["labels"], metadata={"help": "Forward arguments that are targets."}
    )
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "A non-finite loss stops the run."})
    metric_for_best_model: str | None = field(default="accuracy", metadata={"help": "Chooses the best checkpoint."})
    max_grad_norm: float = field(default=0.0, metadata={"help": "Clip the gradient's norm to this; 0 never clips."})
    save_total_limit: int | None = field(default=2, metadata={"help": "The newest checkpoint and the best are kept."})
    weight_decay: float = field(default=1e-4, metadata={"help": "Of AdamW."})
    global_batch_size: int | None = field(
        default=None, metadata={"help": "Samples per optimizer step, however many processes share them."}
    )
    decay_all: bool = field(default=False, metadata={"help": "Decay biases and norms too, as the official code."})
    schedule_by_epoch: bool = field(default=False, metadata={"help": "Learning rate constant within an epoch."})
    schedule_steps: int | None = field(default=None, metadata={"help": "Steps of a schedule over several trainings."})
    schedule_start: int = field(default=0, metadata={"help": "The schedule's step at which this training begins."})
    loraplus_ratio: float | None = field(default=None, metadata={"help": "Rate of B over that of A (LoRA+)."})
    early_stop: int | None = field(default=None, metadata={"help": "Evaluations without gain before stopping."})
    seed_each_step: bool = field(default=True, metadata={"help": "Dropout as a function of (seed, step, process)."})
    unique_images: bool = field(default=False, metadata={"help": "Keep two rows of one image out of one batch."})
    protocol: str = field(default="pixel", metadata={"help": "pixel or official: how an evaluation judges a box."})

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}. Got {self.protocol!r}.")
        if self.global_batch_size is not None:  # before the parent, which tells DeepSpeed the number of micro-batches
            processes = int(os.environ.get("WORLD_SIZE", "1"))
            self.gradient_accumulation_steps = accumulation_steps(
                self.global_batch_size, processes, self.per_device_train_batch_size
            )
        super().__post_init__()
        if self.accelerator_config.dispatch_batches is None:  # type: ignore[union-attr]
            self.accelerator_config.dispatch_batches = False  # type: ignore[union-attr]
        self._n_gpu = min(self.n_gpu, 1)  # one process drives one device; torch's DataParallel would share its batch


def accumulation_steps(global_batch_size: int, processes: int, per_device: int) -> int:
    """Micro-batches per optimizer step and process, at most `per_device` samples each.

    Raises:
        ValueError: If some process would get an empty micro-batch.
    """
    if global_batch_size < 1 or per_device < 1:
        raise ValueError(f"Batch sizes must be at least 1. Got {global_batch_size} in all, {per_device} per device.")
    steps = math.ceil(global_batch_size / (processes * per_device))
    if global_batch_size < processes * steps:
        raise ValueError(
            f"A batch of {global_batch_size} cannot be dealt to {processes} processes in pieces of at most "
            f"{per_device}: use at most {global_batch_size} processes, or a larger per_device_train_batch_size."
        )
    return steps
