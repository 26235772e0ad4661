"""What a run says while it trains, one line per log entry, and the picture of its curves."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from hivg_hf.utils.atomic import atomic_path
from hivg_hf.utils.imports import is_package_available

logger = logging.getLogger(__name__)


class ReadableLog(TrainerCallback):
    """One line per log entry, in place of the dictionaries that transformers prints.

    Args:
        phase: Named in every line.
    """

    def __init__(self, phase: str) -> None:
        self.phase = phase

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and logs:
            logger.info("%s %s", self.phase, describe_log(logs, state.global_step, state.max_steps))


def describe_log(logs: dict[str, float], step: int, steps: int) -> str:
    """For example "step 50 of 3200: loss 9.1 (bbox 0.65, giou 0.93), rate 0.0008"."""
    where = f"step {step} of {steps}" if steps else "before the first step"
    if "eval_accuracy" in logs:
        return (
            f"{where}: accuracy {logs['eval_accuracy']:.4f}, mean IoU {logs['eval_mean_iou']:.4f} "
            f"on {logs['eval_samples']} held-out expressions"
        )
    if "train_runtime" in logs:
        return (
            f"{where}: done after {logs['train_runtime']:.0f} s, {logs['train_samples_per_second']:.1f} samples per s"
        )
    terms = ", ".join(f"{name[5:]} {value:.4g}" for name, value in logs.items() if name.startswith("loss_"))
    loss, rate = logs.get("loss", float("nan")), logs.get("learning_rate", 0.0)
    return f"{where}: loss {loss:.4g}{f' ({terms})' if terms else ''}, rate {rate:.3g}"


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a file that can be made again; empty where it is missing, or damaged, which the log says."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    if not isinstance(content, dict) or not content:
        logger.warning("%s is damaged: it is made again.", path)
        return {}
    return content


def write_curves(path: Path, phases: list[dict[str, Any]]) -> Path | None:
    """Draw loss, its terms and held-out accuracy over the steps of all phases, one after the other.

    Returns:
        The picture's path, or None where matplotlib is not installed.
    """
    if not is_package_available("matplotlib"):
        logger.warning("matplotlib is not installed, so no curves are drawn; pip install 'hivg_hf[plots]'")
        return None
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 7.5), layout="constrained")
    losses, terms, accuracy = figure.subplots(3, 1, sharex=True)
    terms.set_prop_cycle(color=[colormaps["tab20"](i) for i in range(20)])  # assisted phases have 14 terms
    starts = _phase_starts(phases)
    series = _series(phases, starts)
    for name in sorted(series):
        steps, values = zip(*series[name])
        marker = "." if len(steps) < _FEW_POINTS else ""  # a phase that was logged once has no line
        if name == "loss":
            losses.plot(steps, values, color="black", linewidth=1.2, marker=marker)
        elif name.startswith("loss_"):
            terms.plot(steps, values, linewidth=1.0, marker=marker, label=name.removeprefix("loss_"))
        else:
            style = "o-" if name == "eval_accuracy" else ".--"
            accuracy.plot(steps, values, style, markersize=4, linewidth=1.0, label=_LABELS[name])
    for axes, title in ((losses, "loss"), (terms, "loss terms, unweighted"), (accuracy, "held-out data")):
        axes.set_ylabel(title)
        axes.grid(alpha=0.3)
        for start, phase in zip(starts, phases):
            axes.axvline(start, color="gray", linewidth=0.8, linestyle=":")
            if axes is losses:
                label = phase["name"] + (" (rejected)" if phase["kept"] == "before" else "")
                axes.text(start, 1.02, f" {label}", transform=axes.get_xaxis_transform(), fontsize=8)
    if terms.get_legend_handles_labels()[1]:
        terms.set_yscale("log")
        terms.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    accuracy.set_ylim(0, 1)
    if accuracy.get_legend_handles_labels()[1]:
        accuracy.legend(fontsize=8)
    accuracy.set_xlabel("optimizer steps")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)
    return path


_FEW_POINTS = 60
_LABELS = {"eval_accuracy": "accuracy at IoU 0.5", "eval_mean_iou": "mean IoU"}


def _phase_starts(phases: list[dict[str, Any]]) -> list[int]:
    starts = [0]
    for phase in phases:
        starts.append(starts[-1] + phase["steps"])
    return starts[:-1]


def _series(phases: list[dict[str, Any]], starts: list[int]) -> dict[str, list[tuple[int, float]]]:
    series: dict[str, list[tuple[int, float]]] = {}
    for start, phase in zip(starts, phases):
        if phase.get("accuracy_before") is not None:
            series.setdefault("eval_accuracy", []).append((start, phase["accuracy_before"]))
        for entry in phase["log"]:
            for name, value in entry.items():
                if name.startswith(("loss", "eval_accuracy", "eval_mean_iou")) and value is not None:
                    series.setdefault(name, []).append((start + entry["step"], value))
        for points in series.values():
            points.append((start + phase["steps"], float("nan")))  # a gap between phases
    return series
