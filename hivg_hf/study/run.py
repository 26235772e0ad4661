"""Run a study: base, warm-ups, cells, each in a folder and a process of its own, resumable after a kill.

    OUT/
      base/                       the recipe of the base, where the study makes it
      warmup/BRIDGE/SEED/         one run each; its results are the cells of the method without phases
      cells/BRIDGE/METHOD/SEED/
    RESULTS/BRIDGE-METHOD-SEED.json    what a cell gave: the document is made from these alone

Base, warm-ups and cells have processes of their own, so that the peak of a process's memory is the cell's.
"""

from __future__ import annotations

import json
import logging
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from ..data import load_grounding_dataset
from ..evaluation import EvaluationSettings, apply_control, constant_bridge_text, evaluate_model
from ..evaluation.records import describe_versions
from ..modeling.modeling_hivg import HiVGForVisualGrounding
from ..modeling.processing_hivg import HiVGProcessor
from ..recipe import Recipe, parse_recipe
from ..run_folder import RECIPE_FILE
from ..staged_training import StagedTraining
from ..training_report import write_json
from .plan import Cell, Study

logger = logging.getLogger(__name__)

STUDY_FORMAT = 1
RESULTS_FILE = "results.json"  # a run that is done, see StagedTraining


def run_study(study: Study, out: Path, results: Path, max_cells: int | None = None) -> list[Path]:
    """Run every cell that has no results file yet.

    Args:
        study: What to run.
        out: Folder of the runs; may be deleted afterwards.
        results: Folder of the results files.
        max_cells: Stop after so many cells.

    Returns:
        The results files that were written.

    Raises:
        RuntimeError: A cell's process failed; its own message came before.
    """
    written: list[Path] = []
    for cell in study.cells():
        path = results / f"{cell}.json"
        if path.is_file():
            continue
        if max_cells is not None and len(written) >= max_cells:
            break
        if isinstance(study.base, dict) and not (out / "base" / RESULTS_FILE).is_file():
            _in_a_process(_base, study, out)
        if not (_warmup_folder(cell, out) / RESULTS_FILE).is_file():
            _in_a_process(_warm_up, study, cell, out)
        _in_a_process(_run_cell, study, cell, out, path)
        written.append(path)
    return written


def _in_a_process(step: Callable[..., Any], *arguments: Any) -> None:
    process = get_context("spawn").Process(target=_logged, args=(step, arguments))
    process.start()
    process.join()
    if process.exitcode:
        where = " ".join(str(argument) for argument in arguments if isinstance(argument, Cell)) or "the base"
        raise RuntimeError(
            f"A process of {where} failed (its message is above): the same command goes on once that is mended."
        )


def _logged(step: Callable[..., Any], arguments: Sequence[Any]) -> None:
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("hivg_hf").setLevel(logging.INFO)
    step(*arguments)


def _run_cell(study: Study, cell: Cell, out: Path, path: Path) -> None:
    method, bridge = study.method(cell.method), study.bridge(cell.bridge)
    warmup_results, warmup = _warm_up(study, cell, out)
    results, trained = warmup_results, warmup
    if method.phases:
        folder = out / "cells" / cell.bridge / cell.method / str(cell.seed)
        results, trained = _train(study.recipe(cell, str(warmup)), folder, bridge.constant_text, str(cell))
    phases = results["phases"]
    content = {
        "format_version": STUDY_FORMAT,
        "study": study.name,
        "cell": asdict(cell),
        "method": asdict(method),
        "bridge": asdict(bridge),
        "steps": {
            "warmup": sum(phase["steps"] for phase in warmup_results["phases"]),
            "method": sum(phase["steps"] for phase in phases) if method.phases else 0,
        },
        "trainable_parameters": max(_trainable(phase) for phase in phases),
        "kept": {phase["name"]: phase["kept"] for phase in phases},
        "seconds": {
            "warmup": warmup_results["study_seconds"],
            "method": results["study_seconds"] if method.phases else 0,
        },
        "peak_memory_mib": _peak_memory(),
        "validation": {"start": phases[0]["accuracy_before"]},
        "tests": _measure(study, trained, bridge.constant_text),
        "versions": describe_versions(),
    }
    write_json(path, content)


def _base(study: Study, out: Path) -> str:
    """The model that every warm-up starts from, made where the study says how and it is not there."""
    if isinstance(study.base, str):
        return study.base
    _, folder = _train(parse_recipe(study.base), out / "base", False, "base")
    return str(folder)


def _warm_up(study: Study, cell: Cell, out: Path) -> tuple[dict[str, Any], Path]:
    """Results and model of a cell's warm-up, made if they are not there."""
    recipe = study.warmup_recipe(cell, _base(study, out))
    return _train(recipe, _warmup_folder(cell, out), study.bridge(cell.bridge).constant_text, f"warm-up of {cell}")


def _warmup_folder(cell: Cell, out: Path) -> Path:
    return out / "warmup" / cell.bridge / str(cell.seed)


def _train(recipe: Recipe, folder: Path, constant_text: bool, name: str) -> tuple[dict[str, Any], Path]:
    """Run a recipe in a folder; its results.json, with how long it took, and the final model."""
    timing, resumed = folder / "study-seconds.json", (folder / RECIPE_FILE).is_file()
    began = time.perf_counter()
    results = ControlledTraining(recipe, folder, constant_text).run()
    if not timing.is_file():
        # nobody knows how long the parts of a run took that were killed
        write_json(timing, {"seconds": None if resumed else round(time.perf_counter() - began, 1)})
    logger.info("%s: %s", name, "; ".join(f"{phase['name']} {phase['why']}" for phase in results["phases"]))
    results["study_seconds"] = json.loads(timing.read_text())["seconds"]
    return results, folder / results["model"]


class ControlledTraining(StagedTraining):
    """A run whose bridges may read one fixed expression throughout.

    Args:
        recipe: What to train.
        folder: Where.
        constant_text: Whether they do.
    """

    def __init__(self, recipe: Recipe, folder: Path, constant_text: bool) -> None:
        super().__init__(recipe, folder)
        self.constant_text, self._control = constant_text, ExitStack()

    def run(self) -> dict[str, Any]:
        """Train, with the bridges under control from the first phase to the last measurement."""
        with self._control:
            return super().run()

    def _load_start(self, number: int, new_stage: bool = True) -> tuple[Any, HiVGProcessor]:
        model, processor = super()._load_start(number, new_stage)
        if self.constant_text:
            self._control.enter_context(constant_bridge_text(model, processor))
        return model, processor


def _measure(study: Study, folder: Path, constant_text: bool) -> dict[str, Any]:
    """Every test, with the expression of another object beside it."""
    model = HiVGForVisualGrounding.from_pretrained(folder).eval()
    processor = HiVGProcessor.from_pretrained(folder)
    settings = EvaluationSettings(
        batch_size=64, num_workers=study.workers, controls=("other-expression",), progress=sys.stderr.isatty()
    )
    measured = {}
    with apply_control("constant-text" if constant_text else None, model, processor):
        for name, spec in study.data["tests"].items():
            rows, foils = (_rows(spec, **extra) for extra in ({}, {"foils": True}))
            evaluation = evaluate_model(model, processor, rows, settings, foils)
            evaluation.describe(model, folder.name, spec["source"], spec["split"], _options(spec))
            measured[name] = evaluation.results
    return measured


def _rows(spec: Mapping[str, Any], **extra: Any) -> Any:
    return load_grounding_dataset(spec["source"], spec["split"], **_options(spec), **extra)


def _options(spec: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in spec.items() if name not in ("source", "split")}


def _trainable(phase: Mapping[str, Any]) -> int:
    """Parameters of the model that train in a phase; heads that only assist are thrown away."""
    return sum(train for part, (train, _) in phase["parameters"].items() if part != "pre-training heads")


def _peak_memory() -> float:
    """Largest resident size of this process so far, MiB."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB; bytes on macOS
    return round(size / (2**20 if sys.platform == "darwin" else 2**10), 1)
