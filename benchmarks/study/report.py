"""The document of a study, made from its results files alone."""

from __future__ import annotations

import json
import math
import textwrap
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hivg_hf.evaluation.card_tables import markdown_table
from hivg_hf.evaluation.plots import new_figure, save_figure
from hivg_hf.utils.atomic import atomic_path
from hivg_hf.utils.imports import require_package

from .plan import Study
from .run import STUDY_FORMAT, best_rate

Pair = tuple[str, str]  # method, bridge
# Half-width of a 95 % interval of a mean over n seeds is this times the standard error (Student's t, n - 1 degrees).
_T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}


def write_report(studies: Study | Sequence[Study], results: Path, document: Path) -> Path:
    """Write the document and, beside it, `images/STUDY-TEST.png`.

    Args:
        studies: For labels, comparisons and text; one that follows another is a further part of the same document.
        results: Folder of the results, with a folder for each study of a sequence, or that of a study alone.
        document: The Markdown file.

    Raises:
        FileNotFoundError: If the first study has no results.
        ValueError: A results file is of another study or of a newer format.
    """
    if not isinstance(studies, Study) and len(studies) == 1:
        return write_report(studies[0], results / studies[0].name, document)
    if isinstance(studies, Study):
        parts = _study_parts(studies, results, document, level=2)
        parts.insert(0, f"# {studies.title or studies.name}")
    else:
        first, *others = studies
        parts = [f"# {first.document or first.title or first.name}"]
        for number, study in enumerate(studies, 1):
            parts.append(f"## Part {number}: {study.title or study.name}")
            parts += _study_parts(study, results / study.name, document, level=3, may_be_empty=study in others)
    with atomic_path(document) as temporary:
        temporary.write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")
    return document


def _study_parts(study: Study, results: Path, document: Path, level: int, may_be_empty: bool = False) -> list[str]:
    """One study's part of the document, below its heading."""
    runs, mark = read_runs(study, results, may_be_empty), "#" * level
    parts = [study.introduction.strip(), _progress(study, runs)]
    for test in study.data["tests"]:
        if runs:
            picture = document.parent / "images" / f"{study.name}-{test}.png"
            plot_accuracies(picture, study, runs, test)
            parts += [f"{mark} Accuracy on `{test}`", accuracy_table(study, runs, test)]
            parts.append(f"![{test}](images/{picture.name})")
        if study.comparisons:
            parts += ["Differences, seed by seed on the same expressions:", comparison_table(study, runs, test)]
    if study.sweep is not None:
        parts += [f"{mark} Rates", sweep_table(study, results)]
    if runs:
        parts += [f"{mark} Cost", cost_table(study, runs)]
    if study.findings:
        parts += [f"{mark} What it says, and what it cannot say", study.findings.strip()]
    if missing := [f"- {line}" for line in (*_missing(study, runs), *study.not_run)]:
        parts += [f"{mark} Not run", "\n".join(missing)]
    return parts


def read_runs(study: Study, folder: Path, may_be_empty: bool = False) -> dict[Pair, dict[int, dict[str, Any]]]:
    """(method, bridge) -> seed -> content of the results file."""
    runs: dict[Pair, dict[int, dict[str, Any]]] = defaultdict(dict)
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.get("study") != study.name:
            raise ValueError(f"{path} is not a result of the study {study.name}; its folder holds one study.")
        if content["format_version"] > STUDY_FORMAT:
            raise ValueError(f"{path} has format {content['format_version']}, this version reads {STUDY_FORMAT}.")
        cell = content["cell"]
        runs[cell["method"], cell["bridge"]][cell["seed"]] = content
    if not runs and not may_be_empty:
        raise FileNotFoundError(f"No results file in {folder}: run the study first.")
    return runs


def accuracy_table(study: Study, runs: Mapping[Pair, Mapping[int, Any]], test: str) -> str:
    """Per cell: Acc@0.5 over seeds with interval, each seed's, mean IoU, and the control of another expression."""
    header = ["method", "bridge", "Acc@0.5", "95 % over seeds", "each seed", "mean IoU", "asked for another object"]
    lines = []
    for method, bridge, seeds in _cells_run(study, runs):
        tests = [run["tests"][test] for run in seeds]
        accuracies = [one["figures"]["acc@0.5"] for one in tests]
        lines.append(
            [
                study.method(method).label,
                study.bridge(bridge).label,
                _percent(np.mean(accuracies)),
                _interval(accuracies),
                " / ".join(_percent(value) for value in accuracies),
                f"{np.mean([one['figures']['mean_iou'] for one in tests]):.3f}",
                _percent(_control(tests)),
            ]
        )
    return markdown_table(header, lines, words=2)


def comparison_table(study: Study, runs: Mapping[Pair, Mapping[int, Any]], test: str) -> str:
    """Per question: the mean difference in points with its interval, and each seed's; or that it was not run."""
    lines = []
    for comparison in study.comparisons:
        first, second = (runs.get((cell[0], cell[1]), {}) for cell in (comparison.first, comparison.second))
        seeds = sorted(set(first) & set(second))
        if not seeds:
            lacking = [cell for cell, done in ((comparison.first, first), (comparison.second, second)) if not done]
            names = [f"{study.method(method).label}, {study.bridge(bridge).label}" for method, bridge in lacking]
            lines.append([comparison.question, "not run", "", f"no results of: {'; '.join(names) or 'a common seed'}"])
            continue
        found = [
            first[seed]["tests"][test]["figures"]["acc@0.5"] - second[seed]["tests"][test]["figures"]["acc@0.5"]
            for seed in seeds
        ]
        each = " / ".join(f"{100 * value:+.1f}" for value in found)
        mean = round(100 * float(np.mean(found)), 1) + 0.0  # a -0.0 becomes 0.0
        lines.append([comparison.question, f"{mean:+.1f}", _interval(found), each])
    return markdown_table(["question", "points", "95 % over seeds", "each seed"], lines)


def sweep_table(study: Study, results: Path) -> str:
    """Per method: Acc@0.5 on the validation rows after its short runs, and the rate that it continues with."""
    lines = []
    for method in dict.fromkeys(method for method, _ in study.pairs()):
        sweeps = study.sweeps(method)
        if not sweeps:
            continue
        found = {}
        for sweep in sweeps:
            path = sweep.results(results)
            if path.is_file():
                content = json.loads(path.read_text(encoding="utf-8"))
                found[sweep.rate] = content["validation"]["end"]["acc@0.5"]
        each = [
            f"{sweep.rate:g}: {_percent(found[sweep.rate]) if sweep.rate in found else 'not run'}" for sweep in sweeps
        ]
        rate = best_rate(study, method, results) if len(found) == len(sweeps) else None
        at_edge = rate in (sweeps[0].rate, sweeps[-1].rate)
        chosen = "" if rate is None else f"{rate:g}" + (", the last tried" if at_edge else "")
        lines.append([study.method(method).label, ", ".join(each), chosen])
    return markdown_table(["method", "rate: Acc@0.5", "own rate"], lines, words=3)


def cost_table(study: Study, runs: Mapping[Pair, Mapping[int, Any]]) -> str:
    """Per cell: steps, most parameters trained at a time, minutes, threads and memory, means over seeds."""
    header = ["method", "bridge", "steps (warm-up + method)", "trained parameters", "minutes", "threads"]
    header.append("peak memory, MiB")
    lines = []
    for method, bridge, seeds in _cells_run(study, runs):
        steps = seeds[0]["steps"]
        lines.append(
            [
                study.method(method).label,
                study.bridge(bridge).label,
                f"{steps['warmup']} + {steps['method']}",
                f"{seeds[0]['trainable_parameters']:,}",
                _minutes(seeds),
                "/".join(sorted({str(run["threads"]) for run in seeds})),
                f"{np.mean([run['peak_memory_mib'] for run in seeds]):,.0f}",
            ]
        )
    return markdown_table(header, lines, words=2)


def plot_accuracies(path: Path, study: Study, runs: Mapping[Pair, Mapping[int, Any]], test: str) -> None:
    """Bars of the mean accuracy by method, a color for each bridge of the grid, a dot for each seed, the control as
    a line; methods that were run with none of these bridges are left out."""
    colors = ("#4575b4", "#fdae61", "#9a9a9a", "#66a61e", "#762a83", "#d73027")
    bridges = study.grid["bridges"]
    methods = list(
        dict.fromkeys(method for method, bridge in study.pairs() if bridge in bridges and (method, bridge) in runs)
    )
    figure, axes = new_figure(9.0, 4.8)
    width = 0.8 / len(bridges)
    for number, bridge in enumerate(bridges):
        for place, method in enumerate(methods):
            tests = [run["tests"][test] for run in runs.get((method, bridge), {}).values()]
            if not tests:
                continue
            x = place + (number - (len(bridges) - 1) / 2) * width
            values = [100 * one["figures"]["acc@0.5"] for one in tests]
            axes.bar(x, np.mean(values), width=0.92 * width, color=colors[number % len(colors)])
            axes.plot([x] * len(values), values, ".", color="black", markersize=4)
            axes.hlines(100 * _control(tests), x - 0.46 * width, x + 0.46 * width, color="black", linestyle=":")
    patch = require_package("matplotlib.patches", extra="plots").Patch
    line = require_package("matplotlib.lines", extra="plots").Line2D
    handles = [patch(color=colors[i % len(colors)], label=study.bridge(name).label) for i, name in enumerate(bridges)]
    handles.append(line([], [], color="black", marker=".", linestyle="", label="a seed"))
    handles.append(line([], [], color="black", linestyle=":", label="asked for another object"))
    figure.legend(handles=handles, frameon=False, ncols=len(handles), loc="outside upper center", fontsize=9)
    wide = min(16, 96 // len(methods))  # characters below a bar
    labels = [textwrap.fill(study.method(name).label, wide) for name in methods]
    axes.set_xticks(range(len(methods)), labels, fontsize=9)
    axes.set_ylabel("Acc@0.5 (%)")
    save_figure(figure, path)


def _cells_run(study: Study, runs: Mapping[Pair, Mapping[int, Any]]) -> Iterator[tuple[str, str, list[Any]]]:
    """(method, bridge, its runs by seed) of every cell of which a seed was run, in the study's order."""
    for method, bridge in study.pairs():
        seeds = runs.get((method, bridge), {})
        if seeds:
            yield method, bridge, [run for _, run in sorted(seeds.items())]


def _control(tests: Sequence[Mapping[str, Any]]) -> float:
    """Mean accuracy of the answers to another object's expression, against the box of the one asked for."""
    return float(np.mean([one["controls"]["other-expression"]["figures"]["acc@0.5"]["second"] for one in tests]))


def _progress(study: Study, runs: Mapping[Pair, Mapping[int, Any]]) -> str:
    done, wanted = sum(map(len, runs.values())), len(list(study.cells()))
    if not runs:
        return (
            f"None of its {wanted} cells was run yet: `python -m benchmarks.study` runs them, and this page follows."
        )
    versions = next(iter(next(iter(runs.values())).values()))["versions"]
    return (
        f"{done} of {wanted} cells were run, with seeds {', '.join(map(str, study.seeds))}. Made from the results "
        f"files by `python -m benchmarks.study --report`; hivg_hf {versions['hivg_hf']}, torch {versions['torch']}."
    )


def _missing(study: Study, runs: Mapping[Pair, Mapping[int, Any]]) -> list[str]:
    missing = defaultdict(list)
    for cell in study.cells():
        if cell.seed not in runs.get((cell.method, cell.bridge), {}):
            missing[cell.method, cell.bridge].append(str(cell.seed))
    return [
        f"{study.method(method).label}, {study.bridge(bridge).label}: seed {', '.join(seeds)}"
        for (method, bridge), seeds in missing.items()
    ]


def _minutes(runs: Sequence[Mapping[str, Any]]) -> str:
    """Mean over the runs that were never killed and resumed."""
    whole = [sum(run["seconds"].values()) for run in runs if None not in run["seconds"].values()]
    return f"{np.mean(whole) / 60:.1f}" if whole else ""


def _interval(values: Sequence[float]) -> str:
    """Student's interval of the mean, in percent; nothing where one seed tells no spread."""
    if len(values) not in _T95:
        return ""
    half = _T95[len(values)] * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return f"{100 * (np.mean(values) - half):.1f} to {100 * (np.mean(values) + half):.1f}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"
