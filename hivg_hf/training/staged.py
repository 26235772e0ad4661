"""Run a recipe: phase after phase, each with its own Trainer and folder, resumable after a kill at any moment.

    RUN/
      recipe.json               what runs here; another recipe in the same folder is refused
      start.json                which weights the run began from, where they are a folder
      tables.json               the content of each table of rows when the run began; a changed one is refused
      .lock .lock-holder        held while a process trains here, by the one of that id; the system drops it with it
      phases/01-warmup/         checkpoint-N/ while the phase trains, start.json (accuracy before its first step)
        kept.json               rows that a phase with `reliability` keeps, and why
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
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from peft import PeftModel
from transformers.trainer_utils import get_last_checkpoint

from hivg_hf.evaluation.records import describe_versions
from hivg_hf.hilora import merge_stages, publish_stages, save_adapter_state
from hivg_hf.hilora.folders import save_export
from hivg_hf.modeling.configuration_hivg import HiVGConfig
from hivg_hf.modeling.processing_hivg import HiVGProcessor
from hivg_hf.utils.atomic import atomic_folder, write_json
from hivg_hf.utils.held_folder import folder_lock, sweep_leftovers
from hivg_hf.utils.manifest import write_manifest
from hivg_hf.utils.plugins import allowing_code

from .model_start import load_after, plain_checkpoint, start_name
from .phase_training import choose_weights, heads_of, make_trainer, plain_model, start_accuracy, training_config
from .phases import Phase
from .preflight import check_before_training
from .recipe import Recipe
from .reliability import describe_kept, kept_rows
from .report import read_json, write_curves
from .results import measure, write_run_card
from .rows import RowCache
from .run_folder import (
    OUTCOME_FILE,
    FolderWatch,
    PhaseFolder,
    check_room,
    claim_folder,
    disk_needed,
    is_unclaimed,
    phase_folders,
    release_folder,
)
from .sharding import restore_shapes
from .trainer import THRESHOLDS, HiVGTrainer

logger = logging.getLogger(__name__)


class StagedTraining:
    """All phases of one recipe in one folder.

    Args:
        recipe: What to train.
        folder: Where; made if it is not there.
        allow_code: Let a data source be `package.module:function`; the folder does not remember the permission.
    """

    def __init__(self, recipe: Recipe, folder: str | Path, allow_code: bool = False) -> None:
        self.recipe, self.folder, self.allow_code = recipe, Path(folder), allow_code
        self.phases = phase_folders(recipe, self.folder)
        self.rows = RowCache()
        self.state = PartialState()
        self._check_folder: Callable[[], None] = lambda: None  # raises where the folder was taken away

    def run(self) -> dict[str, Any]:
        """Train every phase that is not done yet and write the results.

        Returns:
            The content of results.json.

        Raises:
            RuntimeError: If another process trains in this folder.
            ValueError: If the folder holds a run of another recipe.
            OSError: If the folder cannot be written or was taken away, or the disk is too small or full.
            NonFiniteLossError: If a loss or gradient is not finite; the message names the last good checkpoint.
        """
        lock: Any = nullcontext(lambda: None)
        if self.state.is_main_process:
            lock = folder_lock(self.folder, "training in")
        with allowing_code(self.allow_code), lock as self._check_folder:
            is_new = is_unclaimed(self.folder)
            try:
                return self._run()
            except ValueError:
                if is_new and self.state.is_main_process:
                    release_folder(self.folder)
                raise

    def _run(self) -> dict[str, Any]:
        if self.state.is_main_process:
            claim_folder(self.folder, self.recipe)
            if not self.phases[-1].is_done:
                check_before_training(self.recipe, self.folder)
            sweep_leftovers(self.folder)
        self.state.wait_for_everyone()
        for number, place in enumerate(self.phases):
            done = self.phases[:number]
            if not place.is_done:
                self._train(place, done)
            if self.state.is_main_process:
                place.drop_checkpoints()
                self._publish(place, done)
            self._check_folder()
            self.state.wait_for_everyone()
        results = self._finish()
        self._check_folder()
        return results

    def _train(self, place: PhaseFolder, done: list[PhaseFolder]) -> None:
        """Train one phase and write its result, from what the phases before it left."""
        phase = place.phase
        logger.info("%s: training %s", phase.name, phase.train)
        if self.state.is_main_process:
            place.path.mkdir(parents=True, exist_ok=True)
        self.state.wait_for_everyone()
        model, processor = self._begin(phase, done)
        judged = self._judged_rows(place, done, plain_model(model).config.num_queries)
        kept = None if judged is None else judged["kept"]
        # a copy, since a tokenizer keeps the settings of its last call
        trainer = make_trainer(self.recipe, place, model, copy.deepcopy(processor), self.rows, kept)
        trainer.add_callback(FolderWatch(self._check_folder))
        before = None
        if trainer.eval_dataset is not None:
            before = start_accuracy(place, done[-1] if done and not phase.config else None, trainer)
            # a HiLoRA stage has to gain to be kept; other phases only must not lose (both may begin at zero)
            trainer.initial_accuracy = before if phase.has_adapters else float(np.nextafter(before, -1))
        if self.state.is_main_process:
            check_room(self.folder, disk_needed(model))
        if phase.merges and trainer.is_fsdp_enabled:
            raise ValueError(f"{phase} trains {phase.train}, which needs whole weights: train without FSDP.")
        if phase.keep == "best_but_last_heads" and trainer.is_fsdp_enabled:
            raise ValueError(f"{phase}: `keep: best_but_last_heads` needs whole weights; train without FSDP.")
        with training_config(plain_model(model).config, self.recipe, phase):
            trainer.train(resume_from_checkpoint=get_last_checkpoint(str(place.path)) is not None)
        outcome = choose_weights(phase, trainer, before)
        if judged is not None:
            outcome["reliability"] = describe_kept(judged)
        model = self._kept_model(place, done, model, trainer, outcome)
        if self.state.is_main_process:
            self._write_result(place, model, processor, outcome)
            self._publish(place, done, (model, processor))
        self.state.wait_for_everyone()

    def _begin(self, phase: Phase, done: list[PhaseFolder]) -> tuple[Any, HiVGProcessor]:
        """Model and processor as a phase trains them."""
        model, processor = self._load_after(done, phase.config)
        return phase.begin(model, self.recipe), processor

    def _judged_rows(self, place: PhaseFolder, done: list[PhaseFolder], num_queries: int) -> dict[str, Any] | None:
        """What a phase keeps of its rows, by the model that it finds; None where it takes all."""
        if getattr(place.phase, "reliability", None) is None:
            return None
        return kept_rows(place, self.recipe, self.rows, num_queries, lambda: self._load_after(done))

    def _load_after(
        self, done: list[PhaseFolder], changes: Mapping[str, Any] | None = None
    ) -> tuple[Any, HiVGProcessor]:
        """`load_after` of this run."""
        return load_after(self.recipe, done, changes)

    def _kept_model(
        self, place: PhaseFolder, done: list[PhaseFolder], model: Any, trainer: HiVGTrainer, outcome: dict[str, Any]
    ) -> Any:
        """The model that a phase leaves, on the CPU: what it trained, or what it began with; on the first process."""
        phase = place.phase
        if outcome["accuracy_before"] is not None and phase.keep == "best_but_last_heads":
            heads = heads_of(trainer.model)
            if outcome["best_step"]:
                trainer.load_best_weights()
            else:
                model, _ = self._begin(phase, done)
            heads_of(model, heads)
        elif outcome["kept"] == "before":
            logger.info("%s is undone: %s.", phase.name, outcome["why"])
            model, _ = self._load_after(done, phase.config)
        elif trainer.is_fsdp_enabled:
            state = trainer.accelerator.get_state_dict(trainer.model)  # all processes take part
            model, _ = self._begin(phase, done)
            if self.state.is_main_process:
                inner = phase.inner
                own = {name[len(inner) :]: tensor for name, tensor in state.items() if name.startswith(inner)}
                model.load_state_dict(restore_shapes(own, model))
        return trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False).cpu()

    def _write_result(self, place: PhaseFolder, model: Any, processor: HiVGProcessor, outcome: dict[str, Any]) -> None:
        """Write result/, whole or not at all; a `peft` phase leaves a plain model, and its adapter as an export."""
        if place.phase.merges and isinstance(model, PeftModel):  # and not what it began with
            base = start_name(self.recipe.model) or self.folder
            save_export(model, self.folder / "exports" / place.phase.name, base=base, processor=processor)
            model = model.merge_and_unload()
        with atomic_folder(place.result) as folder:
            if isinstance(model, PeftModel):
                save_adapter_state(model, folder)
            elif not place.phase.has_adapters:  # else the first stage was rejected, and nothing changed
                model.save_pretrained(folder)
                processor.save_pretrained(folder)
            write_json(folder / OUTCOME_FILE, outcome)
            write_manifest(folder)

    def _publish(
        self, place: PhaseFolder, done: list[PhaseFolder], ended: tuple[Any, HiVGProcessor] | None = None
    ) -> None:
        """Write what a finished HiLoRA stage publishes, once; after a restart the model is `ended` no more."""
        marker = place.path / "published"
        if not place.phase.has_adapters or marker.is_file():
            return
        model, processor = ended or self._load_after([*done, place])
        if isinstance(model, PeftModel):
            kept = place.outcome()["kept"] == "after"
            publish_stages(model, self.folder, place.phase.name if kept else None, processor)
        else:
            self._restore_thresholds(model.config)
            self._save_model(model, processor, "merged")
        marker.touch()

    def _restore_thresholds(self, config: HiVGConfig) -> None:
        """Where every phase was undone, the weights are the start's, and what was chosen for its scores holds."""
        start = self.recipe.model
        is_start = all(
            place.is_done and place.outcome()["kept"] == "before" and not place.phase.config for place in self.phases
        )
        if is_start and start.checkpoint and not start.config:
            stored = HiVGConfig.from_pretrained(plain_checkpoint(start, weights=False))
            for name in THRESHOLDS:
                setattr(config, name, getattr(stored, name))

    def _save_model(self, model: Any, processor: HiVGProcessor, name: str) -> None:
        if model.config.bridge_lora:
            model = copy.deepcopy(model).fold_bridge_lora()
        with atomic_folder(self.folder / name) as folder:
            model.save_pretrained(folder)
            processor.save_pretrained(folder)

    def _finish(self) -> dict[str, Any]:
        """Write the final model, measure it, and leave results, curves and a card."""
        path = self.folder / "results.json"
        written = read_json(path)
        if written:
            return written
        model, processor = self._load_after(self.phases)
        if isinstance(model, PeftModel):
            model = merge_stages(model)
        if model.config.bridge_lora:
            model.fold_bridge_lora()
        self._restore_thresholds(model.config)
        name = "model" if self.recipe.hilora_config() is None else "merged"
        if self.state.is_main_process and name == "model":
            self._save_model(model, processor, name)
        phases = [place.outcome() for place in self.phases]
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
