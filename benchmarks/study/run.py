"""What a study's processes do: base, starts, warm-ups and cells, each in a folder, resumable after a kill.

    OUT/
      base/                       the recipe of the base, where the study makes it
      start/BRIDGE/               one run each, where the study has a start
      warmup/BRIDGE/SEED/         one run each; its results are the cells of the method without phases
      cells/BRIDGE/METHOD/SEED/
    RESULTS/BRIDGE-METHOD-SEED.json    what a cell gave: the document is made from these alone
    RESULTS/sweep/BRIDGE-METHOD-SEED-rate-RATE.json    what a rate gave

`schedule.py` says which runs when. Each of these functions makes what it needs and is not there.
"""

from __future__ import annotations

import json
import logging
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from hivg_hf.checkpoints import TINY_CHECKPOINT
from hivg_hf.data import load_grounding_dataset
from hivg_hf.evaluation import EvaluationSettings, apply_control, constant_bridge_text, evaluate_model
from hivg_hf.evaluation.records import describe_versions
from hivg_hf.modeling.modeling_hivg import HiVGForVisualGrounding
from hivg_hf.modeling.processing_hivg import HiVGProcessor
from hivg_hf.training import Recipe, StagedTraining, parse_recipe
from hivg_hf.training.rows import row_options
from hivg_hf.training.run_folder import RECIPE_FILE, claim_folder
from hivg_hf.utils.atomic import write_json
from hivg_hf.utils.whole_weights import load_whole

from .plan import Cell, Study

logger = logging.getLogger(__name__)

STUDY_FORMAT = 1
RESULTS_FILE = "results.json"  # a run that is done, see StagedTraining


def run_cell(study: Study, cell: Cell, out: Path, folder: Path) -> None:
    """Train and measure a cell, or a run of the sweep, and write its results file to the folder."""
    method, bridge = study.method(cell.method), study.bridge(cell.bridge)
    rate = best_rate(study, cell.method, folder) if cell.rate is None else cell.rate
    warmup_results, warmup = make_warmup(study, cell, out)
    results, trained = warmup_results, warmup
    if method.phases:
        run = out / "cells" / cell.bridge / cell.method / str(cell).removeprefix(f"{cell.bridge}-{cell.method}-")
        results, trained = _train(study.recipe(cell, str(warmup), rate), run, bridge.constant_text, str(cell))
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
        "trainable_parameters": max(map(_trainable, phases), default=0),
        "kept": {phase["name"]: phase["kept"] for phase in phases},
        "seconds": {
            "warmup": warmup_results["study_seconds"],
            "method": results["study_seconds"] if method.phases else 0,
        },
        "threads": torch.get_num_threads(),
        "peak_memory_mib": _peak_memory(),
        "learning_rate": rate,
        "validation": {
            "start": phases[0]["accuracy_before"] if phases else None,
            "end": results.get("evaluation", {}).get("validation", {}).get("figures"),
            "curve": _curve(phases),
        },
        # a sweep chooses by validation alone, and test rows stay unseen
        "tests": _measure(study, trained, bridge.constant_text) if cell.rate is None else {},
        "versions": describe_versions(),
    }
    path = cell.results(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, content)


def best_rate(study: Study, method: str, folder: Path) -> float | None:
    """The rate of the method's sweep with the highest accuracy on the validation rows; of equals, the lowest."""
    found = []
    for sweep in study.sweeps(method):
        content = json.loads(sweep.results(folder).read_text(encoding="utf-8"))
        found.append((content["validation"]["end"]["acc@0.5"], -content["learning_rate"]))
    return -max(found)[1] if found else None


def _curve(phases: Sequence[Mapping[str, Any]]) -> list[tuple[int, float]]:
    """(step since the warm-up, accuracy on the validation rows) where the phases evaluated."""
    curve, before = [], 0
    for phase in phases:
        measured = [entry for entry in phase["log"] if "eval_accuracy" in entry]
        curve += [(before + entry["step"], entry["eval_accuracy"]) for entry in measured]
        before += phase["steps"]
    return curve


def make_base(study: Study, out: Path) -> str:
    """The model that every start begins with, made where the study says how and it is not there."""
    if isinstance(study.base, str):
        return TINY_CHECKPOINT if study.base == "shipped" else study.base
    _, folder = _train(parse_recipe(study.base), out / "base", False, "base")
    return str(folder)


def make_start(study: Study, cell: Cell, out: Path) -> str:
    """The model that a cell's warm-up begins with, made if it is not there; the base where the study has no start."""
    base = make_base(study, out)
    if study.start is None:
        return base
    recipe, constant_text = study.start_recipe(cell.bridge, base), study.bridge(cell.bridge).constant_text
    _, folder = _train(recipe, start_folder(cell, out), constant_text, f"start of {cell.bridge}")
    return str(folder)


def make_warmup(study: Study, cell: Cell, out: Path) -> tuple[dict[str, Any], Path]:
    """Results and model of a cell's warm-up, made if they are not there; the start where the study has none."""
    start = make_start(study, cell, out)
    if not study.warmup:
        return {"phases": [], "study_seconds": 0}, Path(start)
    recipe = study.warmup_recipe(cell, start)
    return _train(recipe, warmup_folder(cell, out), study.bridge(cell.bridge).constant_text, f"warm-up of {cell}")


def start_folder(cell: Cell, out: Path) -> Path:
    return out / "start" / cell.bridge


def warmup_folder(cell: Cell, out: Path) -> Path:
    return out / "warmup" / cell.bridge / str(cell.seed)


def _train(recipe: Recipe, folder: Path, constant_text: bool, name: str) -> tuple[dict[str, Any], Path]:
    """Run a recipe in a folder; its results.json, with how long it took, and the final model."""
    timing, resumed = folder / "study-seconds.json", (folder / RECIPE_FILE).is_file()
    began = time.perf_counter()
    if (folder / RESULTS_FILE).is_file():
        claim_folder(folder, recipe)  # no lock: several cells may read what they share at the same time
        results = json.loads((folder / RESULTS_FILE).read_text())
    else:
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

    def _load_after(self, done: Any, changes: Any = None) -> tuple[Any, HiVGProcessor]:
        model, processor = super()._load_after(done, changes)
        if self.constant_text:
            self._control.enter_context(constant_bridge_text(model, processor, learning=True))
        return model, processor


def _measure(study: Study, folder: Path, constant_text: bool) -> dict[str, Any]:
    """Every test, with the expression of another object beside it."""
    model = load_whole(HiVGForVisualGrounding, folder).eval()
    processor = HiVGProcessor.from_pretrained(folder)
    settings = EvaluationSettings(
        batch_size=64, num_workers=study.workers, controls=("other-expression",), progress=sys.stderr.isatty()
    )
    measured = {}
    with apply_control("constant-text" if constant_text else None, model, processor):
        for name, spec in study.data["tests"].items():
            options = row_options(spec)
            rows = load_grounding_dataset(spec["source"], spec["split"], **options)
            foils = load_grounding_dataset(spec["source"], spec["split"], **{**options, "foils": True})
            evaluation = evaluate_model(model, processor, rows, settings, foils)
            evaluation.describe(model, folder.name, spec["source"], spec["split"], options)
            measured[name] = evaluation.results
    return measured


def _trainable(phase: Mapping[str, Any]) -> int:
    """Parameters of the model that train in a phase; heads that only assist are thrown away."""
    return sum(train for part, (train, _) in phase["parameters"].items() if part != "pre-training heads")


def _peak_memory() -> float:
    """Largest resident size of this process so far, MiB."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB; bytes on macOS
    return round(size / (2**20 if sys.platform == "darwin" else 2**10), 1)
