"""One phase of a run: its trainer, the accuracy that it starts from, and the weights that it ends with."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from peft import PeftModel
from transformers.trainer_callback import PrinterCallback

from hivg_hf.modeling.configuration_hivg import HiVGConfig
from hivg_hf.modeling.modeling_hivg import HiVGForVisualGrounding
from hivg_hf.modeling.processing_hivg import HiVGProcessor
from hivg_hf.utils.atomic import write_json
from hivg_hf.utils.devices import wants_cpu, warn_of_slow_bfloat16
from hivg_hf.utils.imports import is_package_available

from .arguments import HiVGTrainingArguments
from .phases import Phase
from .plan import count_parameters
from .recipe import Recipe
from .report import ReadableLog, read_json
from .rows import RowCache
from .run_folder import PhaseFolder
from .trainer import HiVGTrainer

logger = logging.getLogger(__name__)


def make_trainer(
    recipe: Recipe,
    place: PhaseFolder,
    model: Any,
    processor: HiVGProcessor,
    rows: RowCache,
    kept: Sequence[int] | None = None,
) -> HiVGTrainer:
    """The trainer of a phase, with validation rows where the phase evaluates on some; on the `kept` rows alone."""
    phase, config = place.phase, plain_model(model).config
    train_rows = rows.training_rows(recipe, phase, config.num_queries)
    if kept is not None:
        train_rows = train_rows.select(kept)
    validation = recipe.data.validation if phase.evaluates else None
    schedule = _schedule(recipe, phase, rows, config.num_queries)
    has_unused = phase.may_lack_gradients(phase.loss_weights_on(config.loss_weights))
    trainer = HiVGTrainer(
        phase.trained_model(model),
        build_arguments(recipe, phase, place.path, validation is not None, len(train_rows), has_unused, schedule),
        data_collator=phase.collator(recipe, processor),
        train_dataset=train_rows,
        eval_dataset=rows.load(validation, config.num_queries) if validation else None,
        processing_class=processor,
        callbacks=[ReadableLog(phase.name), *phase.callbacks(model)],
        compute_loss_func=phase.loss_function(),
        keeps_thresholds=True,  # where the recipe sets them; others went when the model was made
    )
    trainer.remove_callback(PrinterCallback)
    # transformers notes it in the config, which is saved with the weights; HiVG has no cache
    plain_model(model).config.__dict__.pop("use_cache", None)
    return trainer


def _schedule(recipe: Recipe, phase: Phase, rows: RowCache, num_queries: int) -> tuple[int, int | None]:
    """First step of a phase in its schedule of the learning rate, and all steps of that; None: the phase's own."""
    if not phase.has_adapters or recipe.hilora.schedule == "restart":
        return 0, None
    stages = [stage for stage in recipe.phases if stage.has_adapters]
    steps = [stage.steps_on(rows.training_rows(recipe, stage, num_queries)) for stage in stages]
    return sum(steps[: stages.index(phase)]), sum(steps)


def build_arguments(
    recipe: Recipe,
    phase: Phase,
    folder: Path,
    evaluates: bool,
    rows: int,
    has_unused: bool = True,
    schedule: tuple[int, int | None] = (0, None),
) -> HiVGTrainingArguments:
    """The Trainer's arguments of a phase.

    Args:
        recipe: The run.
        phase: The phase.
        folder: Where its checkpoints go.
        evaluates: Whether it evaluates on the validation rows.
        rows: Training rows.
        has_unused: Whether parameters that train may get no gradient, which DDP has to look for in every step.
        schedule: First step of the phase in the schedule of the learning rate, and all its steps; None stands for
            those of the phase.
    """
    # Everything is counted in steps, epochs too: where an evaluation and a checkpoint fall on one step, transformers
    # evaluates first, so that a run that is killed in between and resumed still meets every evaluation.
    eval_steps = phase.evaluate_every or max(rows // phase.batch_size, 1)
    if recipe.precision == "bf16":
        warn_of_slow_bfloat16(torch.bfloat16)
    return HiVGTrainingArguments(
        output_dir=str(folder),
        seed=recipe.seed,
        global_batch_size=phase.batch_size,
        per_device_train_batch_size=min(phase.per_device_batch_size, phase.batch_size),
        per_device_eval_batch_size=phase.eval_batch_size,
        num_train_epochs=phase.epochs or 1,
        max_steps=phase.steps or -1,
        learning_rate=phase.learning_rate,
        weight_decay=phase.weight_decay,
        decay_all=phase.decay_all,
        adam_beta1=phase.betas[0],
        adam_beta2=phase.betas[1],
        warmup_steps=phase.warmup,
        max_grad_norm=phase.max_grad_norm,
        lr_scheduler_type=phase.schedule.removesuffix("_by_epoch"),
        schedule_by_epoch=phase.schedule.endswith("_by_epoch"),
        schedule_start=schedule[0],
        schedule_steps=schedule[1],
        eval_strategy="steps" if evaluates else "no",
        eval_steps=eval_steps,
        save_strategy="steps",
        save_steps=phase.save_every or eval_steps,
        logging_steps=phase.log_every,
        metric_for_best_model="accuracy" if evaluates else None,
        unique_images=recipe.data.unique_images,
        protocol=recipe.data.protocol,
        dataloader_num_workers=recipe.workers,
        bf16=recipe.precision == "bf16",
        fp16=recipe.precision == "fp16",
        activation_checkpointing=recipe.activation_checkpointing,
        ddp_find_unused_parameters=has_unused,
        report_to=_reports(),
        disable_tqdm=not sys.stderr.isatty(),
        use_cpu=wants_cpu(),
        **phase.training_arguments(evaluates),
    )


def _reports() -> list[str]:
    return ["tensorboard"] if is_package_available("tensorboard") or is_package_available("tensorboardX") else []


def start_accuracy(place: PhaseFolder, before: PhaseFolder | None, trainer: HiVGTrainer) -> float:
    """Accuracy before the first step: as the phase before ended, or measured; remembered over restarts.

    Args:
        place: The phase.
        before: The phase before, where the model has not changed since.
        trainer: Of the phase.
    """
    path, state = place.path / "start.json", PartialState()
    found = read_json(path).get("eval_accuracy")
    state.wait_for_everyone()
    if found is not None:
        return float(found)
    if before is not None and before.phase.eval_batch_size == place.phase.eval_batch_size:
        found = before.outcome().get("accuracy_after")
    metrics = trainer.evaluate() if found is None else {"eval_accuracy": found}
    if state.is_main_process:
        write_json(path, metrics)
    state.wait_for_everyone()
    return float(metrics["eval_accuracy"])


def choose_weights(phase: Phase, trainer: HiVGTrainer, before: float | None) -> dict[str, Any]:
    """Load the best weights of a finished phase into its model, or say that those it began with are to be kept.

    Args:
        phase: The phase.
        trainer: After its last step.
        before: Accuracy before the first step; None without validation rows.

    Returns:
        The phase's outcome: what was kept and why, its accuracies (that of the kept weights too, where it was
        measured), its parameters by part, its log.
    """
    state = trainer.state
    outcome: dict[str, Any] = {"name": phase.name, "train": phase.train, "kept": "after"}
    if before is None:
        outcome["why"] = "no validation data to choose by: the last weights are kept"
    elif phase.keep == "last":
        outcome["why"] = "the recipe keeps the last weights"
    elif phase.keep == "best_but_last_heads":
        since = f"step {state.best_global_step}" if state.best_global_step else "the beginning of the phase"
        outcome["why"] = f"the recipe keeps the last heads, and the best of all else, that of {since}"
    elif state.best_global_step:
        trainer.load_best_weights()
        outcome["why"] = f"accuracy {state.best_metric:.4f} at step {state.best_global_step} ({before:.4f} at first)"
    else:
        outcome |= {"kept": "before", "why": f"no evaluation beat the accuracy {before:.4f} it began with"}
    return outcome | {
        "steps": state.global_step,
        "accuracy_before": before,
        "accuracy_best": state.best_metric if before is not None else None,
        "accuracy_after": _accuracy_after(phase, trainer, before),
        "best_step": state.best_global_step,
        "parameters": {part: list(counts) for part, counts in count_parameters(trainer.model).items()},
        "log": [_without_infinite(entry) for entry in state.log_history],
    }


def _accuracy_after(phase: Phase, trainer: HiVGTrainer, before: float | None) -> float | None:
    """Accuracy of the weights that a phase keeps; None where nobody measured these."""
    state = trainer.state
    if before is None or phase.keep == "best_but_last_heads":
        return None
    if phase.keep == "best":
        return state.best_metric if state.best_global_step else before
    measured = [
        entry for entry in state.log_history if entry["step"] == state.global_step and "eval_accuracy" in entry
    ]
    return measured[-1]["eval_accuracy"] if measured else None


def _without_infinite(entry: dict[str, float]) -> dict[str, float | None]:
    """A log entry as JSON can hold it: the gradient's norm is infinite where fp16 skipped a step."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in entry.items()
    }


@contextmanager
def training_config(config: HiVGConfig, recipe: Recipe, phase: Phase) -> Iterator[None]:
    """The phase's loss weights and the run's way of taking negatives, while the phase trains and no longer."""
    own = (config.loss_weights, config.contrastive_gather)
    config.loss_weights = phase.loss_weights_on(config.loss_weights)
    if recipe.contrastive_gather is not None:
        config.contrastive_gather = recipe.contrastive_gather
    try:
        yield
    finally:
        config.loss_weights, config.contrastive_gather = own


def heads_of(model: Any, heads: dict[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    """A copy of what `grounding_head` holds; with `heads`, that is put into it first."""
    head = plain_model(model).grounding_head
    if heads is not None:
        head.load_state_dict(heads)
    return {name: tensor.detach().clone() for name, tensor in head.state_dict().items()}


def plain_model(model: Any) -> HiVGForVisualGrounding:
    """The model without what PEFT puts around it."""
    return model.get_base_model() if isinstance(model, PeftModel) else model
