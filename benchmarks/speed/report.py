"""Results of the benchmark: a file, tables, a plot, parts of README and docs, a comparison with the last ones."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from hivg_hf.utils.atomic import atomic_path, write_json
from hivg_hf.utils.imports import require_package

from .accuracy import PUBLISHED
from .groups import BOX, MASK, NATIVE, NATIVE_MASK, STRAIGHTFORWARD

MARKERS = ("<!-- benchmark: begin (written by python -m benchmarks.speed) -->", "<!-- benchmark: end -->")
Results = Mapping[str, Any]


def save_results(results: Results, path: str | Path) -> None:
    """Write results as JSON, whole or not at all."""
    write_json(path, results)


def load_results(path: str | Path) -> dict[str, Any]:
    """Results that `save_results` wrote.

    Raises:
        ValueError: the file has no results of this benchmark.
    """
    results = json.loads(Path(path).read_text(encoding="utf-8"))
    if not isinstance(results, dict) or results.get("format") != 1 or "groups" not in results:
        raise ValueError(f"{path} has no benchmark results of format 1; write it with python -m benchmarks.speed.")
    return results


def last_results(folder: str | Path) -> dict[str, Any] | None:
    """The results of the latest date in a folder, or None where it holds none."""
    found = [load_results(path) for path in sorted(Path(folder).glob("*.json"))]
    return max(found, key=lambda results: results["date"], default=None)


def comparisons(results: Results) -> Iterator[tuple[str, dict[str, Any]]]:
    """(group title, comparison) of every ratio."""
    for group in results["groups"].values():
        for comparison in group["comparisons"]:
            yield group["title"], comparison


def missed_limits(results: Results) -> list[str]:
    """A sentence for each limit that does not hold: time, memory, operations are what `Comparison` asks for."""
    missed = []
    for title, one in comparisons(results):
        what = f"{title}: {one['fast']!r} against {one['slow']!r}"
        if one["at_least"] and one["time"]["value"] < one["at_least"]:
            missed.append(
                f"{what} is {one['time']['value']:.2f} times faster; at least {one['at_least']} is asked for."
            )
        if one["memory_at_most"] and one["memory"] and one["memory"] > one["memory_at_most"]:
            missed.append(f"{what} needs {one['memory']:.2f} of the memory; at most {one['memory_at_most']} is.")
    return missed


def compare_results(before: Results, now: Results) -> list[dict[str, Any]]:
    """Each time ratio that both hold, before and now, and whether the intervals lie apart (a change to look into)."""
    key = {(title, one["slow"], one["fast"]): one["time"] for title, one in comparisons(before)}
    rows = []
    for title, one in comparisons(now):
        old = key.get((title, one["slow"], one["fast"]))
        if old is None:
            continue
        new = one["time"]
        verdict = "slower" if new["high"] < old["low"] else "faster" if new["low"] > old["high"] else "same"
        rows.append({"group": title, "slow": one["slow"], "fast": one["fast"], "before": old["value"]})
        rows[-1] |= {"now": new["value"], "change": new["value"] / old["value"] - 1, "verdict": verdict}
    return rows


def cases_table(group: Mapping[str, Any]) -> Table:
    """The cases of a group for a terminal."""
    table = Table(title=f"{group['title']} ({group['rounds']} rounds)")
    for column in ("", "M parameters", "GFLOP", "ms", "MB working", "times faster"):
        table.add_column(column, justify="left" if not column else "right")
    faster = {one["fast"]: one["time"] for one in group["comparisons"]}
    for name, case in group["cases"].items():
        ratio = faster.get(name)
        table.add_row(
            name,
            f"{case['parameters'] / 1e6:.1f}",
            f"{case['operations'] / 1e9:.1f}" if case["operations"] else "",
            f"{1000 * case['median_seconds']:.0f}",
            f"{case['working_memory'] / 2**20:.0f}" if case["working_memory"] is not None else "",
            f"{ratio['value']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]" if ratio else "",
        )
    return table


def changes_table(rows: list[dict[str, Any]]) -> Table:
    """The guard's answer for a terminal: ratios before and now."""
    table = Table(title="against the last committed results")
    for column in ("", "before", "now", "change", ""):
        table.add_column(column)
    for row in rows:
        name = f"{row['group']}: {row['slow']} / {row['fast']}"
        table.add_row(name, f"{row['before']:.2f}", f"{row['now']:.2f}", f"{row['change']:+.1%}", row["verdict"])
    return table


def plot_results(results: Results, path: str | Path) -> None:
    """Median time of each case, one panel for each group, on a logarithmic axis; the format follows the suffix."""
    require_package("matplotlib", extra="plots")
    from matplotlib.figure import Figure

    groups = list(results["groups"].values())
    rows = [len(group["cases"]) for group in groups]
    figure = Figure(figsize=(9, 1.2 * len(groups) + 0.3 * sum(rows)), layout="constrained")
    panels = figure.subplots(len(groups), 1, squeeze=False, height_ratios=[1 + count for count in rows])[:, 0]
    for panel, group in zip(panels, groups, strict=True):
        names = list(group["cases"])
        seconds = [group["cases"][name]["median_seconds"] for name in names]
        bars = panel.barh(names, seconds, color=["#888888" if "straight" in name else "#4477aa" for name in names])
        panel.bar_label(bars, [f" {value:.2g} s" for value in seconds])
        panel.set(title=group["title"], xscale="log", xlim=(min(seconds) / 2, max(seconds) * 3))
        panel.invert_yaxis()
    panels[-1].set_xlabel("seconds of processor time, median")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=Path(path).suffix.removeprefix("."), dpi=100)


def cost_block(results: Results) -> str:
    """What an answer costs beside how often it is right, for the README: costs measured, accuracy published.

    Models are shown in their best engine too where the results have them in onnxruntime.
    """
    groups = results["groups"]
    unit = groups["neighbors"]["cases"][BOX]["median_seconds"]
    engines = any("onnxruntime" in name for name in groups["neighbors"]["cases"])
    accuracies = ["RefCOCO val, A, B", "RefCOCO+ val, A, B", "RefCOCOg val, test", "weights"]
    columns = ["M parameters", "GFLOP", "CPU time in torch", *["in its best engine"] * engines, *accuracies]
    lines = [
        f"| | {' | '.join(columns)} |",
        f"| {' | '.join(['---', '---:', '---:', '---:', *['---'] * (engines + len(accuracies))])} |",
    ]
    for system in PUBLISHED:
        size, cost, time, best = system.parameters, system.operations, "not measured", "not measured"
        group, name = system.measured or ("", "")
        cases = groups.get(group, {"cases": {}})["cases"]
        if case := cases.get(name):
            size, cost = f"{case['parameters'] / 1e6:.0f}", f"{case['operations'] / 1e9:.0f}"
            time = f"{case['median_seconds'] / unit:.2g}"
            best = _best_engine(cases, name, unit)
        cells = (system.name, size, cost, time, *[best] * engines, *system.accuracy, system.license)
        lines.append(f"| {' | '.join(cells)} |")
    machine = results["machine"]
    text = (
        "Acc@0.5 in percent as published (where two sources of the authors disagree, both), by models trained on "
        f"these data sets unless it says otherwise. GFLOP and CPU time of one answer on one thread of "
        f"{_processor(machine)} are measured here (`python -m benchmarks.speed`, random weights, "
        f"float32 in torch); HiVG-B, the unit of time, takes {unit:.2f} s."
    )
    if engines:
        text += (
            " What int8 costs in accuracy was measured for the model in this package only "
            "([docs/export.md](docs/export.md))."
        )
    return "\n\n".join(["\n".join(lines), text])


def _best_engine(cases: Mapping[str, Mapping[str, Any]], name: str, unit: float) -> str:
    """The fastest of a model's cases as a share of the unit, and in which engine and precision."""
    seconds = {
        engine.removeprefix(f"{name}, "): case["median_seconds"]
        for engine, case in cases.items()
        if engine.startswith(f"{name}, onnxruntime")
    }
    torch_alone = "torch fp32" if seconds else "torch fp32, no other measured"
    seconds[torch_alone] = cases[name]["median_seconds"]
    best = min(seconds, key=lambda engine: seconds[engine])
    return f"{seconds[best] / unit:.2g} ({best})"


def detail_block(results: Results) -> str:
    """What stands between the benchmark's markers of docs/speed.md; every figure from the results."""
    machine, groups = results["machine"], results["groups"]
    parts = [
        "Random weights, one image and one expression of 8 tokens, 4:3 image, fp32, ratios of median processor time "
        f"on {machine['threads']} thread of {_processor(machine)} "
        f"(torch {machine['torch'].split('+')[0]}), with 95 % intervals over alternating rounds:"
    ]
    for name, title in (("base-1", "HiVG base, batch 1"), ("large-8", "HiVG large, batch 8")):
        if name in groups:
            parts.append(_against_straightforward(groups[name], title))
    if "training-8" in groups:
        parts.append(_against_straightforward(groups["training-8"], "Training step, base, batch 8"))
    if "neighbors" in groups:
        parts.append(_against_neighbors(groups["neighbors"]))
    if "mask-head" in groups:
        ratio = groups["mask-head"]["comparisons"][0]
        parts.append(
            f"The mask head alone, folded, takes {1 / ratio['operations']:.0f} times fewer operations and is "
            f"{ratio['time']['value']:.0f} times faster than its three convolutions, for the same mask."
        )
    parts.append(
        "*Straightforward* is the official computation as its code is written: adapters beside the weights, eager "
        "attention, every output; *official* is the same computation in this package. *New model* leaves out padded "
        "patches and reads text at its true length. Measured "
        f"by `python -m benchmarks.speed` on {results['date'][:10]}; all figures are in `benchmarks/results`."
    )
    return "\n\n".join(parts)


def _against_straightforward(group: Mapping[str, Any], title: str) -> str:
    lines = [f"| {title}, {_rounds(group)} | GFLOP | times faster | memory |", "| --- | ---: | ---: | ---: |"]
    slow = group["cases"][STRAIGHTFORWARD]
    lines.append(f"| {STRAIGHTFORWARD} | {slow['operations'] / 1e9:.1f} | 1 | 1 |")
    for one in group["comparisons"]:
        if one["slow"] != STRAIGHTFORWARD or one["fast"] not in (BOX, MASK, NATIVE, NATIVE_MASK):
            continue
        operations = group["cases"][one["fast"]]["operations"] / 1e9
        memory = f"{one['memory']:.2f}" if one["memory"] else "not measured"
        lines.append(f"| this package, {one['fast']} | {operations:.1f} | {_interval(one['time'])} | {memory} |")
    return "\n".join(lines)


def _against_neighbors(group: Mapping[str, Any]) -> str:
    lines = [
        f"| One answer, {_rounds(group)} | M parameters | GFLOP | time, official HiVG base = 1 | new HiVG base = 1 |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    ratios = {(one["slow"], one["fast"]): one["time"] for one in group["comparisons"]}
    for name, case in group["cases"].items():
        if (name, BOX) not in ratios:
            continue
        note, operations = f" ({case['note']})" if case["note"] else "", case["operations"]
        gflop = f"{operations / 1e9:.0f}" if operations else ""
        lines.append(
            f"| {name}{note} | {case['parameters'] / 1e6:.0f} | {gflop} | "
            f"{_interval(ratios[name, BOX])} | {_interval(ratios[name, NATIVE])} |"
        )
    return "\n".join(lines)


def _rounds(group: Mapping[str, Any]) -> str:
    return f"{group['rounds']} round{'s' if group['rounds'] > 1 else ''}"


def _interval(ratio: Mapping[str, float]) -> str:
    return f"{ratio['value']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"


def _processor(machine: Mapping[str, Any]) -> str:
    """With its vector instructions, which its name may not tell: "an AMD EPYC with AVX2"."""
    name = machine["processor"]
    return f"{'an' if name[:1].upper() in 'AEIO' else 'a'} {name} with {machine['instructions']}"


def write_pages(results: Results, root: Path) -> None:
    """Put the tables between their markers in the repository's README.md and docs/speed.md.

    Raises:
        ValueError: one of the files lacks the markers.
    """
    for page, block in (
        (root / "README.md", cost_block(results)),
        (root / "docs" / "speed.md", detail_block(results)),
    ):
        text = page.read_text(encoding="utf-8")
        before, _, rest = text.partition(MARKERS[0])
        _, _, after = rest.partition(MARKERS[1])
        if [text.count(marker) for marker in MARKERS] != [1, 1] or MARKERS[1] not in rest:
            raise ValueError(
                f"{page} must hold these two lines once, in this order: {MARKERS[0]!r} and {MARKERS[1]!r}."
            )
        with atomic_path(page) as temporary:
            written = f"{before}{MARKERS[0]}\n\n{block}\n\n{MARKERS[1]}{after}"
            Path(temporary).write_text(written, encoding="utf-8")
