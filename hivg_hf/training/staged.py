"""Run a recipe: phase after phase, each with its own Trainer and folder, resumable after a kill at any moment.

    RUN/
      recipe.json               what runs here; another recipe in the same folder is refused
      .lock .lock-holder        held while a process trains here, by the one of that id; the system drops it with it
      phases/01-warmup/         checkpoint-N/ while the phase trains, start.json (accuracy before its first step)
        result/                 its outcome; the phase is done when this folder exists (it appears whole)
      base/ adapters/ exports/ merged/   what HiLoRA stages publish (hivg_hf/hilora/folders.py)
      model/                    the final plain model of a run without HiLoRA stages
      evaluation/               the final model on the validation and test rows, as `hivg evaluate` writes it
      results.json  training-curves.png

Every phase starts from what the phase before wrote to disk, never from memory, so that an unbroken run and a resumed
one take the same way and end with the same weights.
"""

from __future__ import annotations

import copy
import logging
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import set_seed
from peft import PeftModel
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import get_last_checkpoint

from hivg_hf.evaluation.records import describe_versions
from hivg_hf.hilora import (
    PROGRESSIVE_ADAPTER,
    HiLoraConfig,
    load_adapter_state,
    merge_stages,
    publish_stages,
    save_adapter_state,
    start_stage,
)
from hivg_hf.modeling.configuration_hivg import HiVGConfig
from hivg_hf.modeling.modeling_hivg import HiVGForVisualGrounding
from hivg_hf.modeling.processing_hivg import HiVGProcessor
from hivg_hf.utils.atomic import atomic_folder, write_json
from hivg_hf.utils.manifest import find_damage, write_manifest
from hivg_hf.utils.plugins import allowing_code

from .phases import Phase
from .preflight import check_before_training
from .recipe import Recipe
from .report import ReadableLog, read_json, write_curves
from .results import measure, write_run_card
from .run_folder import check_disk, check_writable, claim_folder, folder_lock, sweep_leftovers
from .setup import (
    RowCache,
    build_arguments,
    build_model,
    build_processor,
    continued_adapter,
    count_parameters,
    load_growing,
)
from .sharding import restore_shapes
from .trainer import HiVGTrainer

logger = logging.getLogger(__name__)

OUTCOME_FILE = "phase.json"


class StagedTraining:
    """All phases of one recipe in one folder.

    Args:
        recipe: What to train.
        folder: Where; made if it is not there.
        allow_code: Let a data source be `package.module:function`; the folder does not remember the permission.
    """

    def __init__(self, recipe: Recipe, folder: str | Path, allow_code: bool = False) -> None:
        self.recipe, self.folder, self.allow_code = recipe, Path(folder), allow_code
        self.rows = RowCache()
        self.state = PartialState()
        self._whole: set[Path] = set()  # results whose checksums were compared

    def run(self) -> dict[str, Any]:
        """Train every phase that is not done yet and write the results.

        Returns:
            The content of results.json.

        Raises:
            RuntimeError: If another process trains in this folder.
            ValueError: If the folder holds a run of another recipe.
            OSError: If the folder cannot be written or the disk is too small.
            NonFiniteLossError: If a loss or gradient is not finite; the message names the last good checkpoint.
        """
        lock = folder_lock(self.folder) if self.state.is_main_process else nullcontext()
        with allowing_code(self.allow_code), lock:
            if self.state.is_main_process:
                check_writable(self.folder)
                claim_folder(self.folder, self.recipe)
                if not self._is_done(len(self.recipe.phases) - 1):
                    check_before_training(self.recipe, self.folder)
                sweep_leftovers(self.folder)
            self.state.wait_for_everyone()
            for number, phase in enumerate(self.recipe.phases):
                if not self._is_done(number):
                    self._run_phase(number, phase)
                self._drop_checkpoints(number)
                if phase.has_adapters:
                    self._publish(number)
            return self._finish()

    # ---- one phase ----

    def _run_phase(self, number: int, phase: Phase) -> None:
        logger.info("%s: training %s", phase.name, phase.train)
        folder = self._phase_folder(number)
        if self.state.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
        self.state.wait_for_everyone()
        model, processor = self._load_start(number)
        evaluates = self.recipe.data.validation is not None and phase.evaluates
        trainer = self._trainer(phase, folder, model, processor, evaluates)
        before = self._start_accuracy(folder, trainer) if evaluates else None
        if before is not None:
            # a HiLoRA stage has to gain to be kept; other phases only must not lose (both may begin at zero)
            trainer.initial_accuracy = before if phase.has_adapters else float(np.nextafter(before, -1))
        if self.state.is_main_process:
            check_disk(self.folder, model)
        if phase.keep == "best_but_last_heads" and trainer.is_fsdp_enabled:
            raise ValueError(
                f"Phase {phase.name!r}: `keep: best_but_last_heads` needs whole weights; train without FSDP."
            )
        with training_config(_plain(model).config, self.recipe, phase):
            trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)) is not None)
        outcome = choose_weights(phase, trainer, before)
        if outcome["kept"] == "before":
            logger.info("%s is undone: %s.", phase.name, outcome["why"])
        if before is not None and phase.keep == "best_but_last_heads":
            heads = heads_of(trainer.model)
            if outcome["best_step"]:
                trainer.load_best_weights()
            else:
                model, processor = self._load_start(number)
            heads_of(model, heads)
        elif outcome["kept"] == "before":
            model, processor = self._load_start(number, new_stage=False)
        elif trainer.is_fsdp_enabled:
            state = trainer.accelerator.get_state_dict(trainer.model)  # all processes take part
            model, processor = self._load_start(number)
            if self.state.is_main_process:
                inner = phase.inner
                own = {name[len(inner) :]: tensor for name, tensor in state.items() if name.startswith(inner)}
                model.load_state_dict(restore_shapes(own, model))
        if self.state.is_main_process:
            self._write_result(number, model, processor, outcome)
        self.state.wait_for_everyone()

    def _trainer(
        self, phase: Phase, folder: Path, model: Any, processor: HiVGProcessor, evaluates: bool
    ) -> HiVGTrainer:
        recipe = self.recipe
        rows = self.rows.training_rows(recipe, phase)
        has_unused = phase.may_lack_gradients(phase.loss_weights_on(_plain(model).config.loss_weights))
        trainer = HiVGTrainer(
            phase.trained_model(model),
            build_arguments(recipe, phase, folder, evaluates, len(rows), has_unused),
            data_collator=phase.collator(recipe, processor),
            train_dataset=rows,
            eval_dataset=self.rows.load(recipe.data.validation) if evaluates and recipe.data.validation else None,
            processing_class=processor,
            callbacks=[ReadableLog(phase.name)],
            compute_loss_func=phase.loss_function(),
        )
        trainer.remove_callback(PrinterCallback)
        return trainer

    def _start_accuracy(self, folder: Path, trainer: HiVGTrainer) -> float:
        """Accuracy before the first step, measured once and remembered over restarts."""
        path = folder / "start.json"
        measured = read_json(path).get("eval_accuracy")
        self.state.wait_for_everyone()
        if measured is None:
            metrics = trainer.evaluate()
            measured = metrics["eval_accuracy"]
            if self.state.is_main_process:
                write_json(path, metrics)
            self.state.wait_for_everyone()
        return float(measured)

    def _write_result(self, number: int, model: Any, processor: HiVGProcessor, outcome: dict[str, Any]) -> None:
        """Write result/, whole or not at all."""
        with atomic_folder(self._phase_folder(number) / "result") as folder:
            if isinstance(model, PeftModel):
                save_adapter_state(model, folder)
            # with the first stage rejected there is no adapter, and nothing changed
            elif not self.recipe.phases[number].has_adapters:
                model.save_pretrained(folder)
                processor.save_pretrained(folder)
            write_json(folder / OUTCOME_FILE, outcome)
            write_manifest(folder)

    def _drop_checkpoints(self, number: int) -> None:
        """A finished phase needs its checkpoints no more."""
        if self.state.is_main_process:
            for checkpoint in self._phase_folder(number).glob("checkpoint-*"):
                shutil.rmtree(checkpoint, ignore_errors=True)

    def _publish(self, number: int) -> None:
        """Write what a finished HiLoRA stage publishes, unless that was done before a restart."""
        marker = self._phase_folder(number) / "published"
        if self.state.is_main_process and not marker.is_file():
            model, processor = self._load_start(number + 1, new_stage=False)
            kept = read_json(self._result(number) / OUTCOME_FILE)["kept"] == "after"
            if isinstance(model, PeftModel):
                publish_stages(model, self.folder, self.recipe.phases[number].name if kept else None, processor)
            else:
                self._save_model(model, processor, "merged")
            marker.touch()
        self.state.wait_for_everyone()

    def _save_model(self, model: Any, processor: HiVGProcessor, name: str) -> None:
        if model.config.bridge_lora:
            model = copy.deepcopy(model).fold_bridge_lora()
        with atomic_folder(self.folder / name) as folder:
            model.save_pretrained(folder)
            processor.save_pretrained(folder)

    # ---- where phases start and end ----

    def _phase_folder(self, number: int) -> Path:
        return self.folder / "phases" / f"{number + 1:02d}-{self.recipe.phases[number].name}"

    def _is_done(self, number: int) -> bool:
        return (self._phase_folder(number) / "result").is_dir()

    def _result(self, number: int) -> Path:
        """The result of a finished phase, whole.

        Raises:
            ValueError: If it is damaged.
        """
        folder = self._phase_folder(number) / "result"
        if folder not in self._whole:
            damage = find_damage(folder)
            if damage:
                raise ValueError(f"{folder} is damaged: {damage}. Restore it, or delete it to train this phase again.")
            self._whole.add(folder)
        return folder

    def _load_start(self, number: int, new_stage: bool = True) -> tuple[Any, HiVGProcessor]:
        """Model and processor as phase `number` finds them (one past the last: as the run ends).

        A `lora` phase finds the adapters of the stages before it and, with `new_stage`, its own.
        """
        # new weights (heads, bridges, adapters) are the same on every process and at every start
        set_seed(self.recipe.seed + 1000 * number)
        changes = self.recipe.phases[number].config if number < len(self.recipe.phases) else {}
        plain = [index for index in range(number) if not self.recipe.phases[index].has_adapters]
        continued = continued_adapter(self.recipe.model)  # then every phase trains on it, and results hold it
        if plain and not continued:
            source = self._result(plain[-1])
            model: Any = load_growing(source, changes)
            processor = HiVGProcessor.from_pretrained(source)
        else:
            model = build_model(self.recipe.model, **changes)
            processor = build_processor(self.recipe.model, model.config)
        if continued:
            self._check_continued(model)
        if number and (continued or self.recipe.phases[number - 1].has_adapters):
            model = self._with_adapters(model, number - 1)
        if number < len(self.recipe.phases):
            phase = self.recipe.phases[number]
            if not phase.has_adapters:
                phase.choose_parameters(model)
            elif new_stage:
                model = start_stage(model, self._hilora(), self._stage_of(number))
        return model, processor

    def _with_adapters(self, model: Any, number: int) -> Any:
        """The model with the adapters, bridge and head of the result of the `lora` phase `number`."""
        result = self._result(number)
        if self.recipe.phases[number].has_adapters:
            config = self._hilora()
            for stage in range(1, self._stage_of(number) + 1):
                if (result / config.adapter_name(stage)).is_dir():
                    model = start_stage(model, config, stage)
        if isinstance(model, PeftModel):
            load_adapter_state(model, result)
        return model

    def _check_continued(self, model: PeftModel) -> None:
        """Refuse phases that cannot train on the adapter that the model comes with.

        Raises:
            ValueError: Stages would add adapters of their own or want another shape, or a phase trains CLIP itself or
                changes the model.
        """
        hilora, adapter = self.recipe.hilora_config(), model.peft_config[PROGRESSIVE_ADAPTER]
        where = f"The model {self.recipe.model.checkpoint} comes with the adapter {PROGRESSIVE_ADAPTER!r}"
        if hilora is not None and hilora.mode != "progressive":
            raise ValueError(f"{where}, which stages go on training with hilora.mode: progressive. Got {hilora.mode}.")
        for phase in self.recipe.phases:
            if phase.train not in ("heads", "lora") or phase.config:
                raise ValueError(
                    f"{where}; phase {phase.name!r} must train heads or lora, without `config`. To train everything, "
                    "take its merged form (hivg convert --lora merge)."
                )
        for stage in hilora.stages if hilora is not None else ():
            found = (adapter.r, float(adapter.lora_alpha), float(adapter.lora_dropout))
            if found != (stage.rank, float(stage.alpha), float(stage.dropout)):
                raise ValueError(
                    f"{where} of rank, alpha and dropout {found}, and stage {stage.name!r} asks for "
                    f"{(stage.rank, float(stage.alpha), float(stage.dropout))}: give the same."
                )

    def _stage_of(self, number: int) -> int:
        return 1 + sum(phase.has_adapters for phase in self.recipe.phases[:number])

    def _hilora(self) -> HiLoraConfig:
        config = self.recipe.hilora_config()
        assert config is not None
        return config

    # ---- the end ----

    def _finish(self) -> dict[str, Any]:
        """Write the final model, measure it, and leave results, curves and a card."""
        path = self.folder / "results.json"
        written = read_json(path)
        if written:
            return written
        model, processor = self._load_start(len(self.recipe.phases))
        if isinstance(model, PeftModel):
            model = merge_stages(model)
        if model.config.bridge_lora:
            model.fold_bridge_lora()
        name = "model" if self.recipe.hilora_config() is None else "merged"
        if self.state.is_main_process and name == "model":
            self._save_model(model, processor, name)
        phases = [read_json(self._result(number) / OUTCOME_FILE) for number in range(len(self.recipe.phases))]
        measured = measure(self.recipe, self.folder, model, processor, self.rows)
        results = {
            "recipe": self.recipe.to_dict(),
            "model": name,
            "phases": phases,
            "evaluation": measured,
            "versions": describe_versions(),
        }
        if self.state.is_main_process:
            write_curves(self.folder / "training-curves.png", phases)
            write_run_card(self.recipe, self.folder / name, phases, measured)
            write_json(path, results)
        self.state.wait_for_everyone()
        return results


def heads_of(model: Any, heads: dict[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    """A copy of what `grounding_head` holds; with `heads`, that is put into it first."""
    head = _plain(model).grounding_head
    if heads is not None:
        head.load_state_dict(heads)
    return {name: tensor.detach().clone() for name, tensor in head.state_dict().items()}


def choose_weights(phase: Phase, trainer: HiVGTrainer, before: float | None) -> dict[str, Any]:
    """Load the best weights of a finished phase into its model, or say that those it began with are to be kept.

    Args:
        phase: The phase.
        trainer: After its last step.
        before: Accuracy before the first step; None without validation rows.

    Returns:
        The phase's outcome: what was kept and why, its accuracies, its parameters by part, its log.
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
        "best_step": state.best_global_step,
        "parameters": {part: list(counts) for part, counts in count_parameters(trainer.model).items()},
        "log": [_without_infinite(entry) for entry in state.log_history],
    }


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


def _plain(model: Any) -> HiVGForVisualGrounding:
    return model.get_base_model() if isinstance(model, PeftModel) else model
