"""Tables of docs that are written by hand say what the results files say."""

import json
import re
from pathlib import Path
from statistics import mean

import pytest

ROOT = Path(__file__).parents[2]
SCORINGS = {"relations read": "relations", "whole expression": "whole expression"}


def rows_of(page, first_cell):
    """Cells of the rows of the table whose first row's first cell this is."""
    rows = [line.strip().strip("|") for line in (ROOT / page).read_text(encoding="utf-8").splitlines()]
    start = next(place for place, line in enumerate(rows) if line.startswith(f" {first_cell} |"))
    for line in rows[start:]:
        if "|" not in line:
            return
        yield [cell.strip() for cell in line.split("|")]


def results(name):
    return json.loads((ROOT / "benchmarks/results" / name).read_text(encoding="utf-8"))


def zero_shot_name(shown):
    if shown.startswith("map alone"):
        return f"{shown.replace(', ', ': ')}, levels"
    if match := re.fullmatch(r"(true boxes|connected components), (.*), (relations read|whole expression)", shown):
        where, scoring, read = match.groups()
        return f"{where.removeprefix('connected ')}: {scoring}, {SCORINGS[read]}"
    return "trained model" if shown.startswith("the model") else shown


def test_zero_shot_accuracy_is_that_of_the_results():
    measured = results("zero-shot/refshapes-study-clip-val.json")["accuracy"]
    rows = list(rows_of("docs/zero-shot.md", "chance: an object at random"))
    assert len(rows) == 13
    for name, *cells in rows:
        found = measured[zero_shot_name(name)]
        kinds = [found["by_kind"][kind] for kind in ("attribute", "relation", "ordinal", "extreme", "count")]
        assert [float(cell) for cell in cells] == [found["all"], *kinds], name


def test_what_rows_of_your_own_bring_is_what_the_study_says():
    shown = list(rows_of("docs/fine-tune.md", "none"))
    methods = ("untouched", "all-linear-200", "all-linear-2000", "all-linear-10000")
    assert len(shown) == len(methods)
    before = None
    for (_, steps, minutes, accuracy, gained), method in zip(shown, methods, strict=True):
        runs = {seed: results(path) for seed in "123" if (path := own_rows(method, seed))}
        found = {seed: 100 * run["tests"]["val"]["figures"]["acc@0.5"] for seed, run in runs.items()}
        before = before or found
        assert int(steps) == next(iter(runs.values()))["steps"]["method"]
        assert float(minutes) == round(mean(run["seconds"]["method"] for run in runs.values()) / 60, 1)
        assert float(accuracy) == pytest.approx(mean(found.values()), abs=0.051)
        assert float(gained or 0) == pytest.approx(mean(found[seed] - before[seed] for seed in found), abs=0.051)


def own_rows(method, seed):
    name = f"own-rows/bridge-{method}-{seed}.json"
    return name if (ROOT / "benchmarks/results" / name).is_file() else None


def test_what_several_queries_cost_is_what_the_results_say():
    measured = results("queries/2026-11-26-cpu.json")
    rows = list(rows_of("docs/use.md", "Acc@0.5"))
    assert [name for name, *_ in rows] == ["Acc@0.5", "Acc@0.9"]
    for name, *cells in rows:
        found = measured["figures"][name.lower()]
        low, high = (100 * bound for bound in found["interval"])
        difference = f"{100 * found['difference']:+.1f} ({low:.1f} to {high:.1f})"
        assert cells == [f"{100 * found['first']:.1f}", f"{100 * found['second']:.1f}", difference]


def test_throughput_on_a_gpu_is_that_of_the_results():
    measured = {
        (row["preset"], str(row["batch"]), row["work"]): row
        for row in results("accelerator/2026-11-26-h100.json")["rows"]
    }
    rows = list(rows_of("docs/speed.md", "base | 1"))
    assert len(rows) == 8
    for preset, batch, *cells in rows:
        works = [measured[preset, batch, work] for work in ("inference", "training")]
        rates = [
            (f"{one['images_per_second']:,.0f}", f"{one['share_of_peak']:.1%}", f"{one['memory'] / 2**30:.1f}")
            for one in works
        ]
        assert cells == [*rates[0], *rates[1]]


def test_what_cleaning_gains_is_what_the_results_say():
    page = " ".join((ROOT / "docs/data.md").read_text(encoding="utf-8").split())
    measured = results("clean/2026-11-26-cpu.json")
    ranking, runs = measured["ranking"], measured["training"]["runs"]
    low, high = ranking["interval"]
    assert f"AUROC of {ranking['auroc']:.3f} (95 % interval {low:.3f} to {high:.3f})" in page
    mean = {
        arm: 100 * sum(run["acc@0.5"] for run in runs if run["arm"] == arm) / 3 for arm in ("dirty", "cleaned", "true")
    }
    assert len(runs) == 9
    assert "{dirty:.1f} with all rows, {cleaned:.1f} with the cleaned ones and {true:.1f} with".format(**mean) in page
    difference = measured["training"]["differences"]["cleaned - dirty"]["acc@0.5"]
    low, high = (100 * end for end in difference["interval"])
    assert f"cleaned minus dirty is {100 * difference['mean']:+.1f} points ({low:+.1f} to {high:+.1f})" in page


def condition_of(shown):
    if match := re.fullmatch(r"(\w[\w ]*), (\d)", shown):
        return f"corruption/{match[1].replace(' ', '_')}/{match[2]}"
    return shown.replace(": ", "/") if ": " in shown else f"wording/{shown.replace(' ', '_')}"


def test_robustness_of_the_shipped_model_is_that_of_the_results():
    measured = results("robustness/hivg-tiny-refshapes.json")["conditions"]
    rows = list(rows_of("docs/robustness.md", "gaussian noise, 5"))
    assert len(rows) == 7
    for name, rows_used, *cells in rows:
        one = measured[condition_of(name)]
        shares, scores = cells[:2], cells[2:]
        assert int(rows_used) == one["n"]
        assert [float(cell) for cell in shares] == pytest.approx(
            [100 * one[at] for at in ("before", "after")], abs=0.051
        )
        wanted = [one[at] for at in ("score_before", "score_after", "score_auc")]
        assert [float(cell) for cell in scores] == pytest.approx(wanted, abs=0.0051), name
