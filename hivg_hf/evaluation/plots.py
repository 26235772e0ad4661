"""Plots of an evaluation: accuracy by length, how IoU is distributed, what scores are worth; and how plots look."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hivg_hf.utils.atomic import atomic_path
from hivg_hf.utils.imports import require_package

_BLUE, _GRAY, _RED, _GREEN = "#4575b4", "#9a9a9a", "#d73027", "#1a9850"


def plot_accuracy_by_length(path: str | Path, result: dict[str, Any]) -> None:
    """Bars of Acc@0.5 for each group of lengths, with its interval and number of rows.

    Args:
        path: the PNG file.
        result: what `compute_grounding_metrics` returned.
    """
    table = result["breakdowns"].get("expression_length", {})
    figure, axes = new_figure()
    names = list(table)
    values = np.array([100 * table[name]["acc@0.5"] for name in names])
    bars = axes.bar(names, values, color=_BLUE, width=0.6)
    for name, bar in zip(names, bars, strict=True):
        interval = table[name].get("interval")
        if interval:
            middle = bar.get_x() + bar.get_width() / 2
            axes.plot([middle, middle], [100 * interval[0], 100 * interval[1]], color="black", linewidth=1.5)
    labels = [f"{name}\n{value:.1f} %\nn = {table[name]['n']:,}" for name, value in zip(names, values, strict=True)]
    axes.set_xticks(range(len(names)), labels)
    axes.set_xlabel("words in the expression")
    axes.set_ylabel(f"Acc@0.5 (%), protocol {result['protocol']}")
    axes.set_ylim(0, 100)
    save_figure(figure, path)


def plot_iou_histogram(path: str | Path, ious: np.ndarray, threshold: float = 0.5) -> None:
    """Histogram of IoU in steps of 0.05, those below the threshold in gray, with the mean.

    Args:
        path: the PNG file.
        ious: (N,) IoUs; NaN (no target) is left out.
        threshold: from where a box counts as right.
    """
    measured = ious[~np.isnan(ious)]
    counts, edges = np.histogram(measured, bins=np.linspace(0, 1, 21))
    figure, axes = new_figure()
    right = edges[:-1] >= threshold - 1e-9
    shares = 100 * counts / max(len(measured), 1)
    axes.bar(edges[:-1], shares, width=0.05, align="edge", color=np.where(right, _BLUE, _GRAY), edgecolor="white")
    mean = float(measured.mean()) if len(measured) else 0.0
    axes.axvline(mean, color=_RED, linestyle="--", linewidth=1.5, label=f"mean IoU {mean:.3f}")
    axes.set_xlim(0, 1)
    axes.set_xlabel(f"IoU with the target (blue: right at {threshold})")
    axes.set_ylabel(f"share of {len(measured):,} expressions (%)")
    axes.legend(frameon=False)
    save_figure(figure, path)


def plot_scores(path: str | Path, score: dict[str, Any]) -> None:
    """Reliability diagram and risk against coverage, a line for each share of expressions that name nothing.

    Args:
        path: the PNG file.
        score: what `describe_scores` returned.
    """
    figure, (left, right) = new_figure(width=9.6, height=4.6, columns=2)
    left.plot([0, 1], [0, 1], color=_GRAY, linewidth=1)
    for color, report in zip((_BLUE, _RED, _GREEN), score["reports"], strict=False):
        label = f"{report['rate']:.0%} name nothing"
        bins, curve = report["bins"], report["curve"]
        shown = {"color": color, "marker": "o", "markersize": 3, "linewidth": 1.5, "clip_on": False}
        left.plot(
            [entry["score"] for entry in bins],
            [entry["accuracy"] for entry in bins],
            label=f"{label}: error {report['calibration_error']:.3f}",
            **shown,
        )
        right.plot(
            [point["coverage"] for point in curve],
            [100 * point["risk"] for point in curve],
            label=f"{label}: area {report['aurc']:.3f}",
            **shown,
        )
    left.set_xlabel("score")
    left.set_ylabel("share of right boxes")
    right.set_xlabel("share of expressions answered")
    right.set_ylabel("wrong among the answers (%)")
    right.set_ylim(0, max(5.0, right.get_ylim()[1]))  # where nothing is wrong, an axis would show thousandths
    left.set_ylim(-0.02, 1.02)
    for axes in (left, right):  # below, where no line runs
        axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16))
    save_figure(figure, path)


def new_figure(width: float = 6.4, height: float = 4.0, columns: int = 1) -> tuple[Any, Any]:
    """A matplotlib figure with one set of axes, or an array of so many side by side; sides in inches."""
    # The figure alone, without pyplot: no window system is asked for and no global state is touched.
    figure = require_package("matplotlib.figure", extra="plots").Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, columns)
    for one in np.atleast_1d(axes):
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def save_figure(figure: Any, path: str | Path) -> None:
    """Write a PNG file, whole or not at all."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150)
