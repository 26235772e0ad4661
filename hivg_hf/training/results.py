"""The end of a run: the final model is measured and described."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import PartialState

from hivg_hf.evaluation import EvaluationSettings, evaluate_model, write_evaluation
from hivg_hf.evaluation.model_card import CardFacts, write_card
from hivg_hf.hub import resolve_model, split_revision
from hivg_hf.metrics.score_curves import FEWEST_TO_CALIBRATE
from hivg_hf.modeling.configuration_hivg import HiVGConfig
from hivg_hf.utils.imports import is_package_available
from hivg_hf.utils.inert import markdown_code

from .recipe import Recipe
from .rows import RowCache, row_options


def measure(recipe: Recipe, folder: Path, model: Any, processor: Any, rows: RowCache) -> dict[str, Any]:
    """Evaluate the final model on the validation and test rows; on every process, written by the first.

    Returns:
        Name of the rows ("validation" or a test's) -> the content of its results file.
    """
    specs = {**({"validation": recipe.data.validation} if recipe.data.validation else {}), **recipe.data.tests}
    settings = EvaluationSettings(
        batch_size=recipe.phases[-1].eval_batch_size, num_workers=recipe.workers, progress=sys.stderr.isatty()
    )
    results = {}
    for name, spec in specs.items():
        dataset = rows.load(spec, model.config.num_queries)
        evaluation = evaluate_model(model, processor, dataset, settings)
        evaluation.describe(model, recipe.name, spec["source"], spec["split"], row_options(spec))
        if PartialState().is_main_process:
            plots = is_package_available("matplotlib")  # hours of training do not end because no picture can be drawn
            write_evaluation(folder / "evaluation" / name, evaluation, dataset, plots=plots)
        results[name] = evaluation.results
    return results


def write_run_card(recipe: Recipe, target: Path, phases: list[dict[str, Any]], results: Mapping[str, Any]) -> Path:
    """Write the model card of a run beside its final model."""
    several = HiVGConfig.from_pretrained(target).num_queries > 1
    facts = CardFacts(
        name=recipe.name,
        summary=(
            f"A HiVG model for visual grounding, trained by the recipe {markdown_code(recipe.name)} on the split "
            f"{markdown_code(recipe.data.train['split'])} of {markdown_code(Path(recipe.data.train['source']).name)}: "
            f"an image and an expression in, {'a box for each thing it names' if several else 'one box'} out."
        ),
        training=_training_table(recipe, phases),
        limits=[
            *([] if several else ["One box for one expression; not made to find every instance of a phrase."]),
            "Measured only on the rows named above; other pictures and other ways of speaking may do worse.",
        ],
        base_model=_base_on_the_hub(recipe),
        load_as=f'"{_as_typed(target)}"',
    )
    return write_card(target, facts, results)


def _as_typed(target: Path) -> str:
    """The folder as it was given; of an absolute one only the end, since a card may be published."""
    named = Path(target.parent.name, target.name) if target.is_absolute() else target
    return named.as_posix()


def describe_outcome(folder: Path, results: Mapping[str, Any]) -> str:
    """How good a finished run's model is, against what, what each phase gave, and what to type next."""
    phases, lines = results["phases"], []
    for name, measured in results["evaluation"].items():
        interval = measured["intervals"].get("acc@0.5")
        spread = f" (95 %: {100 * interval[0]:.1f} to {100 * interval[1]:.1f})" if interval else ""
        found = f"{100 * measured['figures']['acc@0.5']:.1f} % right at IoU 0.5{spread}"
        began = _percent(phases[0]["accuracy_before"]) if name == "validation" else ""
        began = f"; before training: {began}" if began else ""
        lines.append(f"{name}: {found} on {measured['counts']['rows']:,} expressions{began}")
    verdicts = {"after": "kept", "before": "undone"}
    lines += [f"{phase['name']}: {verdicts[phase['kept']]}, {phase['why']}" for phase in phases]
    lines += _kept_rows(phases)
    config, run = HiVGConfig.from_pretrained(folder / results["model"]), shlex.quote(str(folder))
    lines.append(_describe_threshold(config, all(phase["kept"] == "before" for phase in phases)))
    lines.append(f'Next: hivg ground PICTURE "AN EXPRESSION" --model {run} --out boxed.png')
    rows = results["evaluation"].get("validation", {}).get("counts", {}).get("rows", 0)
    if rows:
        lines.append(f"      hivg evaluate --model {run} --split held-out --out {_beside(folder, 'held-out')}")
    enough = rows >= FEWEST_TO_CALIBRATE
    where = "--split held-out" if enough else f"--data ROWS --split SPLIT  # {FEWEST_TO_CALIBRATE} or more"
    lines.append(f"      hivg calibrate {run} --out {_beside(folder, 'calibrated')} {where}")
    return "\n".join(lines)


def _describe_threshold(config: HiVGConfig, is_start: bool) -> str:
    """What the answers say of `found`; a threshold that the start was calibrated to fits other scores."""
    if config.score_threshold is None:
        return "score: not calibrated on these rows; answers say no `found` until it is"
    if is_start:
        return f"score: found from {config.score_threshold:g} on, as in the model that it began with"
    return (
        f"score: found from {config.score_threshold:g} on, as the recipe says; not calibrated on these rows, so that "
        "this may be too high or too low"
    )


def _beside(folder: Path, suffix: str) -> str:
    return shlex.quote(f"{folder}-{suffix}")


def _training_table(recipe: Recipe, phases: list[dict[str, Any]]) -> str:
    lines = [
        f"Started from {_start_of(recipe)}; seed {recipe.seed}, {recipe.precision}.",
        "",
        "| phase | trains | steps | batch | learning rate | accuracy before | best | kept |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for phase, outcome in zip(recipe.phases, phases, strict=True):
        before, best = (_percent(outcome[key]) for key in ("accuracy_before", "accuracy_best"))
        lines.append(
            f"| {phase.name} | {phase.train} | {outcome['steps']} | {phase.batch_size} | {phase.learning_rate:g} | "
            f"{before} | {best} | {outcome['kept']} |"
        )
    return "\n".join([*lines, *(f"\n{line}." for line in _kept_rows(phases))])


def _kept_rows(phases: list[dict[str, Any]]) -> list[str]:
    """A sentence for every phase that chose among its rows."""
    chosen = [(phase["name"], phase["reliability"]) for phase in phases if "reliability" in phase]
    return [f"{name} trained on {one['kept']:,} of {one['rows']:,} rows, {one['rule']}" for name, one in chosen]


def _base_on_the_hub(recipe: Recipe) -> str | None:
    """The repository that a run began with; None for a folder, a file, or a name that stands for one."""
    name = recipe.model.checkpoint or recipe.model.clip
    if not name or Path(name).exists() or Path(resolve_model(name)).exists():
        return None
    return split_revision(name)[0]


def _start_of(recipe: Recipe) -> str:
    model = recipe.model
    if model.checkpoint or model.clip:
        return markdown_code(Path(model.checkpoint or model.clip or "").name)
    return f"random weights of the shape `{model.preset}`"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"
