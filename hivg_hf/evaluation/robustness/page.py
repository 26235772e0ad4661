"""A robustness report as a picture and as one page of HTML that needs nothing beside it."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from html import escape
from pathlib import Path, PurePath
from typing import Any

from hivg_hf.utils.html_page import html_table, write_page

from ..card_tables import ROBUSTNESS_NAMES
from ..plots import new_figure, save_figure

PLOT_NAME, PAGE_NAME = "robustness.png", "robustness.html"
_COLORS = {
    **{"noise": "#d73027", "blur": "#4575b4", "weather": "#1a9850", "digital": "#984ea3"},
    **{"resolution": "#444444", "JPEG quality": "#f09000"},
}

_STYLE = """
table { border-collapse: collapse; }
td, th { padding: .2rem .7rem; border-bottom: 1px solid var(--line); text-align: right; }
td:first-child, th:first-child { text-align: left; }
img { max-width: 100%; }"""
_INTRODUCTION = (
    "Acc@0.5 in percent on the unchanged rows and under each change, the paired difference with its 95 percent "
    "interval (bootstrap over images), the mean score before and after, and the AUC of the score under the change. "
    "Rows to which a change of wording does not apply are left out on both sides. Behind a change stand its strength, "
    "1 to 5, and in brackets its value: the side of smaller pictures relative to their own, the quality of JPEG files."
)
_TITLES = {
    "corruption": "Corrupted pictures",
    "resolution": "Smaller pictures",
    "jpeg": "JPEG quality",
    "wording": "The same said otherwise",
    "removed": "A part of the expression removed",
}


def write_report(out: str | Path, report: Mapping[str, Any], name: str, plot: bool = True) -> list[Path]:
    """Write the plot and the page of a report into a folder.

    Args:
        out: The folder.
        report: What `measure_robustness` gave, with `adversarial` where that was measured.
        name: Of the model.
        plot: Whether to draw the plot (needs matplotlib).

    Returns:
        The files.
    """
    files = []
    if plot:
        files.append(Path(out) / PLOT_NAME)
        plot_report(files[0], report)
    picture = base64.b64encode(files[0].read_bytes()).decode() if plot else ""
    drawn = [f'<img alt="Accuracy by strength" src="data:image/png;base64,{picture}">'] if plot else []
    files.append(Path(out) / PAGE_NAME)
    rows = [f"<p>{escape(_rows(report['of']))}</p>"] if "of" in report else []
    body = "\n".join([*rows, *drawn, *_averages(report), f"<p>{_INTRODUCTION}</p>", *_tables(report)])
    write_page(files[-1], f"How {name} breaks", body, _STYLE, width=70)
    return files


def plot_report(path: str | Path, report: Mapping[str, Any]) -> None:
    """Mean accuracy by strength, one line per family of corruptions, with resolution, JPEG quality and the attack."""
    from .corruptions import FAMILIES

    figure, axes = new_figure(8.0, 4.4)
    entries = [entry for entry in report["conditions"].values() if entry["n"]]
    lines = {
        **{family: ([e for e in entries if e["name"] in names], "-") for family, names in FAMILIES.items()},
        "resolution": ([e for e in entries if e["kind"] == "resolution"], "--"),
        "JPEG quality": ([e for e in entries if e["kind"] == "jpeg"], "--"),
    }
    for label, (chosen, style) in lines.items():
        strengths = sorted({entry["strength"] for entry in chosen})
        means = [_mean([e["after"] for e in chosen if e["strength"] == strength]) for strength in strengths]
        if chosen:
            before = _mean([entry["before"] for entry in chosen])
            shown: dict[str, Any] = {"color": _COLORS[label], "marker": "o", "markersize": 4, "clip_on": False}
            axes.plot([0, *strengths], [100 * v for v in (before, *means)], style, label=label, **shown)
    axes.set_xlabel("strength (0: unchanged)")
    axes.set_ylabel("Acc@0.5 (%)")
    axes.set_xticks(range(6))
    axes.set_ylim(0, 100)
    axes.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1.02, 0.5))  # no line runs there
    save_figure(figure, path)


def _rows(of: Mapping[str, Any]) -> str:
    data, name = of["data"], PurePath(of["data"]["source"]).name
    return f"{data['rows']:,} rows of {name}, split {data['split']}, protocol {of['protocol']}."


def _averages(report: Mapping[str, Any]) -> list[str]:
    entries = {ROBUSTNESS_NAMES.get(name, name): entry for name, entry in report.get("summary", {}).items()}
    lines = [[name, *(f"{100 * entry[key]:.1f}" for key in ("before", "after"))] for name, entry in entries.items()]
    title = "<h2>Mean Acc@0.5 over the changes of each kind</h2>"
    return [title + html_table(["change", "before", "after"], lines)] if lines else []


def _tables(report: Mapping[str, Any]) -> list[str]:
    parts = []
    for kind, title in _TITLES.items():
        entries = [entry for entry in report["conditions"].values() if entry["kind"] == kind and entry["n"]]
        if entries:
            parts.append(f"<h2>{title}</h2>" + html_table(_HEADER, [_cells(entry) for entry in entries]))
    if report.get("by_objects"):
        rows = [[count, f"{e['n']:,}", f"{100 * e['accuracy']:.1f}"] for count, e in report["by_objects"].items()]
        parts.append("<h2>By the number of objects</h2>" + html_table(["objects", "rows", "Acc@0.5"], rows))
    if attack := report.get("adversarial"):
        rows = [["0", f"{100 * attack['clean']:.1f}"]]
        rows += [[strength, f"{100 * accuracy:.1f}"] for strength, accuracy in attack["curve"].items()]
        title = f"<h2>Attacked pixels (PGD, {attack['steps']} steps)</h2>"
        parts.append(title + html_table(["largest change, of 255", "Acc@0.5"], rows))
    return parts


_HEADER = ["change", "rows", "before", "after", "difference", "95 % interval", "score", "score after", "score AUC"]


def _cells(entry: Mapping[str, Any]) -> list[str]:
    value = "" if entry["value"] is None else f" ({entry['value']:g})"
    strength = "" if entry["strength"] is None else f", {entry['strength']}"
    low, high = entry["interval"]
    scores = [f"{entry[key]:.2f}" if key in entry else "" for key in ("score_before", "score_after", "score_auc")]
    return [
        entry["name"].replace("_", " ") + strength + value,
        f"{entry['n']:,}",
        *(f"{100 * entry[key]:.1f}" for key in ("before", "after")),
        _points(entry["difference"]),
        f"{_points(low)} to {_points(high)}",
        *scores,
    ]


def _points(difference: float) -> str:
    """A difference in points with its sign, "0.0" without one."""
    return f"{100 * difference:+.1f}" if round(100 * difference, 1) else "0.0"


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
