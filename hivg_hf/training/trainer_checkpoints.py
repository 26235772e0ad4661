"""Checkpoints of a training run: whole or not at all, the best kept, with adapters as folders of their own."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import Trainer
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import SaveStrategy

from hivg_hf.hilora import load_adapter_state, save_adapter_state
from hivg_hf.utils.atomic import flush, flush_folder, full_disk_named
from hivg_hf.utils.manifest import check_resumable, find_damage, newest_whole_checkpoint, write_manifest

logger = logging.getLogger(__name__)


class CheckpointingTrainer(Trainer):
    """transformers' Trainer with checkpoints that a kill at any moment leaves usable.

    `checkpoint-N` appears under its name when everything is on the disk, and loses its name before it is deleted. The
    newest `save_total_limit` are kept, and the best. Each has a manifest with the checksums of its files, and training
    resumes from nothing else.
    """

    processor: Any = None  # the HiVGProcessor that is saved beside a model
    initial_accuracy: float | None = None  # what a checkpoint has to beat to count as best

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As transformers, from a checkpoint that is whole.

        Args:
            resume_from_checkpoint: A checkpoint, or True for the newest of `output_dir` that is whole.
            args: Further arguments of `transformers.Trainer.train`.
            kwargs: The same by name.

        Raises:
            ValueError: If the checkpoint is damaged, or none is whole; the message names what is.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = newest_whole_checkpoint(self.args.output_dir) or True
        elif resume_from_checkpoint:
            check_resumable(resume_from_checkpoint)
        if isinstance(resume_from_checkpoint, str | Path):
            self._note_other_processes(Path(resume_from_checkpoint))
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _note_other_processes(self, checkpoint: Path) -> None:
        """Say where another number of processes resumes: transformers would say nothing."""
        before, now = len(list(checkpoint.glob("rng_state*.pth"))), self.args.world_size
        if before and before != now and self.is_world_process_zero():
            logger.warning(
                "%s was written by %d process%s, and %d resume%s it: rows and steps stay the same, but dropout and "
                "sums in another order make other weights than an unbroken run's.",
                checkpoint, before, "es" * (before != 1), now, "s" * (now == 1),
            )  # fmt: skip

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        by_accuracy = self.args.metric_for_best_model in ("accuracy", "eval_accuracy")
        if self.state.best_metric is None and self.initial_accuracy is not None and by_accuracy:
            self.state.best_metric = self.initial_accuracy
        is_best = super()._determine_best_metric(metrics, trial)
        if is_best and self.args.save_strategy != SaveStrategy.NO:
            self.control.should_save = True  # the best checkpoint exists even where it falls between two regular ones
        return is_best

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        target = self._checkpoint(self.state.global_step)
        with full_disk_named(target):
            self._save_whole_checkpoint(target)

    def _save_whole_checkpoint(self, target: Path) -> None:
        """As transformers, but under a hidden name that becomes `checkpoint-N` when everything is on the disk."""
        self.store_flos()
        staging = target.with_name(f".{target.name}.partial")
        if self.args.should_save:
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        self.save_model(str(staging), _internal_call=True)
        if not self.args.save_only_model:
            self._save_optimizer_and_scheduler(str(staging))
            self._save_scaler(str(staging))
            self._save_rng_state(str(staging))
        if self.state.best_global_step:
            self.state.best_model_checkpoint = str(self._checkpoint(self.state.best_global_step))
        if self.args.should_save:
            for callback in [*self.callback_handler.callbacks, self.control]:
                if isinstance(callback, ExportableState):
                    self.state.stateful_callbacks[type(callback).__name__] = callback.state()
            self.state.save_to_json(str(staging / "trainer_state.json"))
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            write_manifest(staging, resumable=not self.args.save_only_model)
            flush_folder(staging)
            shutil.rmtree(target, ignore_errors=True)
            staging.rename(target)
            flush(target.parent)
            self._delete_old_checkpoints()
        self.accelerator.wait_for_everyone()

    def _checkpoint(self, step: int) -> Path:
        return self._run_folder() / f"checkpoint-{step}"

    def _run_folder(self) -> Path:
        """`output_dir`; in a search for hyperparameters, the trial's own folder below it."""
        return Path(self._get_output_dir(getattr(self, "_trial", None)))

    def _delete_old_checkpoints(self) -> None:
        """Keep the newest `save_total_limit` checkpoints and the best; one that goes loses its name first."""
        limit = self.args.save_total_limit
        found = {int(path.name.split("-")[1]): path for path in self._run_folder().glob("checkpoint-*")}
        keep = {step for step in (self.state.best_global_step, self.state.global_step) if step}
        for step in sorted(found, reverse=True):
            if limit is None or len(keep) < limit or step in keep:
                keep.add(step)
                continue
            doomed = found[step].with_name(f".{found[step].name}.partial")
            found[step].rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """With adapters: a folder for each, and the bridge and head beside them; otherwise as transformers."""
        model = self.accelerator.unwrap_model(self.model)
        if not isinstance(model, PeftModel):
            super()._save(output_dir, state_dict)
            if self.processor is not None and self.args.should_save:
                self.processor.save_pretrained(output_dir or self.args.output_dir)
        elif self.args.should_save:
            save_adapter_state(model, output_dir or self.args.output_dir, state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        target = self.accelerator.unwrap_model(model if model is not None else self.model)
        if isinstance(target, PeftModel):
            # transformers would keep only the first active adapter, made trainable, and leave bridge and head behind
            load_adapter_state(target, resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def load_best_weights(self) -> None:
        """Load `checkpoint-N` of the best step; without one, nothing beat the start and nothing is loaded.

        Raises:
            ValueError: If that checkpoint is damaged or gone.
        """
        if not self.state.best_global_step:
            return
        best = self._checkpoint(self.state.best_global_step)
        damage = find_damage(best) if best.is_dir() else "it is missing"
        if damage:
            raise ValueError(
                f"The best weights cannot be loaded from {best}: {damage}. Restore it, or delete the checkpoints in "
                f"{best.parent} and train again."
            )
        self.state.best_model_checkpoint = str(best)
        target = self.accelerator.unwrap_model(self.model)
        if isinstance(target, PeftModel) and not self.is_deepspeed_enabled:
            load_adapter_state(target, self.state.best_model_checkpoint)
        else:
            super()._load_best_model()

    def _load_best_model(self) -> None:
        self.load_best_weights()
