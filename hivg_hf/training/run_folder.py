"""The folder of a training run: one recipe, one model to start from, room on the disk."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn
from transformers import TrainerCallback

from hivg_hf.hub.files import weights_fingerprint
from hivg_hf.utils.atomic import write_json
from hivg_hf.utils.manifest import find_damage

from .phases import Phase
from .recipe import Recipe
from .report import read_json

RECIPE_FILE, START_FILE, OUTCOME_FILE = "recipe.json", "start.json", "phase.json"
TABLES_FILE, PHASES = "tables.json", "phases"
# What may differ between two starts of one run: how fast it goes, not what comes out.
_FREE_KEYS = {"workers", "name"}


def claim_folder(folder: Path, recipe: Recipe) -> None:
    """Note which recipe runs here, and on which weights.

    Raises:
        ValueError: If another recipe ran here before, naming the first difference, or its record is damaged; or the
            model to start from was replaced, or a table of rows changed.
    """
    _claim_start(folder, recipe.model.checkpoint or recipe.model.clip)
    path, content = folder / RECIPE_FILE, json.loads(json.dumps(recipe.to_dict()))
    if not path.is_file():
        _claim_tables(folder, recipe)
        write_json(path, content)
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        before = None
    if not isinstance(before, dict) or not before:
        raise ValueError(
            f"{path} is damaged, so nothing says which recipe ran in {folder}: restore it, or choose another folder."
        )
    differing = [key for key in _differences(before, content) if key.split(".")[0] not in _FREE_KEYS]
    instead = "choose another folder with --out, or delete this one to start over."
    if "data.train.source" in differing:
        there, here = (each["data"]["train"]["source"] for each in (before, content))
        raise ValueError(
            f"{folder} holds a run on {there}, and this one is on {here} (--data, or data.train.source in a recipe): "
            f"{instead}"
        )
    if differing:
        raise ValueError(
            f"{folder} holds a run of another recipe (it differs in {', '.join(differing[:3])}): {instead}"
        )
    _claim_tables(folder, recipe)


def is_unclaimed(folder: Path) -> bool:
    """Whether nothing here has a name that a run writes."""
    return not any((folder / name).exists() for name in (PHASES, RECIPE_FILE, START_FILE, TABLES_FILE))


def release_folder(folder: Path) -> None:
    """Forget which recipe runs here, where no step of it was kept: it was refused, and the next try may differ.

    For a folder that was unclaimed before, since what has a run's names is deleted.
    """
    phases = folder / PHASES
    if not any(phases.glob("*/checkpoint-*")) and not any(phases.glob("*/result")):
        shutil.rmtree(phases, ignore_errors=True)
        for name in (RECIPE_FILE, START_FILE, TABLES_FILE):
            (folder / name).unlink(missing_ok=True)


def _claim_tables(folder: Path, recipe: Recipe) -> None:
    """What a run has measured and trained holds for the rows that it began with: their tables must stay the same.

    Raises:
        ValueError: If the content of one is another.
    """
    rows = [recipe.data.train, recipe.data.validation, *recipe.data.tests.values()]
    sources = sorted({str(spec["source"]) for spec in rows if spec is not None})
    tables = {source: _content_of(Path(source)) for source in sources if Path(source).is_file()}
    path = folder / TABLES_FILE
    if not path.is_file():
        if tables:
            write_json(path, tables)
        return
    known = read_json(path)
    changed = [source for source, content in tables.items() if known.get(source, content) != content]
    if changed:
        raise ValueError(
            f"{changed[0]} changed since the run in {folder} began, and what is in there was trained on the rows of "
            "before: choose another folder with --out, or delete this one to start over."
        )


def _content_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _claim_start(folder: Path, model: str | None) -> None:
    """Every phase and every start of a run reads the model that it began from: it must stay the same.

    Raises:
        ValueError: If its files are others than those that the run began with.
    """
    weights, path = None if model is None else weights_fingerprint(model), folder / START_FILE
    if weights is None:
        return
    if not path.is_file():
        write_json(path, {"model": model, "weights": weights})
    elif json.loads(path.read_text(encoding="utf-8")).get("weights") != weights:
        raise ValueError(
            f"The model {model} is not the one that the run in {folder} began with: put that one back, or choose "
            "another folder."
        )


class FolderWatch(TrainerCallback):
    """Ends a training whose folder was taken away, at the step in which that happened.

    Args:
        check: Raises where that is so.
    """

    def __init__(self, check: Callable[[], None]) -> None:
        self._check = check

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._check()


@dataclass(frozen=True)
class PhaseFolder:
    """A phase of a run and its folder."""

    phase: Phase
    path: Path

    @property
    def result(self) -> Path:
        """What the phase leaves: its weights and outcome."""
        return self.path / "result"

    @property
    def is_done(self) -> bool:
        """Whether the phase has ended: its result appears whole or not at all."""
        return self.result.is_dir()

    @cached_property
    def whole_result(self) -> Path:
        """The result, whose checksums are compared once.

        Raises:
            ValueError: If it is damaged.
        """
        damage = find_damage(self.result)
        if damage:
            raise ValueError(
                f"{self.result} is damaged: {damage}. Restore it, or delete it to train this phase again."
            )
        return self.result

    def outcome(self) -> dict[str, Any]:
        """What was kept and why, accuracies and log, from a whole result."""
        return read_json(self.whole_result / OUTCOME_FILE)

    def drop_checkpoints(self) -> None:
        """Delete the checkpoints, which a finished phase needs no more."""
        for checkpoint in self.path.glob("checkpoint-*"):
            shutil.rmtree(checkpoint, ignore_errors=True)


def phase_folders(recipe: Recipe, folder: Path) -> list[PhaseFolder]:
    """The phases of a recipe with their folders, in order."""
    return [
        PhaseFolder(phase, folder / PHASES / f"{number:02d}-{phase.name}")
        for number, phase in enumerate(recipe.phases, start=1)
    ]


def disk_needed(model: nn.Module) -> int:
    """Bytes for three checkpoints (newest, best, the one being written: weights and AdamW's two moments) and three
    copies of the model (result, base, merged)."""
    total = 4 * sum(parameter.numel() for parameter in model.parameters())
    trained = 4 * sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    weights = trained if isinstance(model, PeftModel) else total
    return 3 * (weights + 2 * trained) + 3 * total


def check_room(folder: Path, needed: int) -> None:
    """Refuse a disk that holds less than a phase needs; the folder may not be there yet.

    Raises:
        OSError: If the disk holds less.
    """
    place = next(path for path in [folder.absolute(), *folder.absolute().parents] if path.is_dir())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise OSError(
            f"The disk of {folder} has {free / 2**30:.2f} GiB free, but this phase may need {needed / 2**30:.2f} GiB "
            "for its checkpoints and models: make room or choose another --out folder."
        )


def _differences(before: Any, after: Any, where: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        keys = sorted(set(before) & set(after))  # a key that a newer version added does not make another run
        return [found for key in keys for found in _differences(before[key], after[key], f"{where}.{key}".strip("."))]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = enumerate(zip(before, after, strict=True))
        return [found for number, (one, two) in pairs for found in _differences(one, two, f"{where}[{number}]")]
    return [] if before == after else [where]
