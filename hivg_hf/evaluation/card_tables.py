"""Results files as Markdown: the tables of model cards and of models' pages. No figure is typed by hand."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from hivg_hf.metrics import PROTOCOLS
from hivg_hf.utils.inert import markdown_text, printable

Results = Mapping[str, Any]

_FIGURES = (
    ("acc@0.5", "Acc@0.5"),
    ("acc@0.9", "Acc@0.9"),
    ("mean_iou", "mean IoU"),
    ("mask_miou", "mask mIoU"),
    ("n_acc", "N-acc"),
    ("t_acc", "T-acc"),
    ("f1_precision", "F1 exact"),
    ("ap@0.5", "AP@0.5"),
)
_CONTROL_NAMES = (
    ("other-expression", "other expression"),
    ("constant-text", "constant text in the bridge"),
    ("bridge-off", "bridge off"),
)


def figures_table(results: Mapping[str, Results]) -> str:
    """Splits down, figures across; beside accuracy the control of the other expression where it was run."""
    names = [(key, title) for key, title in _FIGURES if any(key in one["figures"] for one in results.values())]
    controlled = any(_control(one, "other-expression") for one in results.values())
    header = ["data", "expressions", *(title for _, title in names), *(["control: other expression"] * controlled)]
    lines = []
    for label, one in results.items():
        asked = count_asked(one)
        cells = [label, f"{asked:,}", *(_with_interval(one, key) for key, _ in names)]
        if controlled:
            entry = _control(one, "other-expression")
            cells.append(_percent(entry["figures"]["acc@0.5"]["second"]) if entry else "")
        lines.append(cells)
    return markdown_table(header, lines)


def count_asked(one: Results) -> int:
    """Expressions with one target; where all name several things, those."""
    return int(one["counts"]["one_target"] or one["counts"]["skipped_several_targets"])


def shapes_table(results: Mapping[str, Results]) -> str:
    """Acc@0.5 by the shape of the image; "" where nothing was split by it."""
    header = ["data", "wide", "tall", "square"]
    lines = []
    for label, one in results.items():
        shapes = one["breakdowns"].get("image_shape", {})
        if shapes:
            lines.append([label, *(_bucket(shapes.get(name)) for name in header[1:])])
    return markdown_table(header, lines) if lines else ""


def controls_table(results: Mapping[str, Results]) -> str:
    """Acc@0.5 as it is and under each control, on the rows that have the control."""
    lines = []
    for label, one in results.items():
        for key, title in _CONTROL_NAMES:
            entry = _control(one, key)
            if entry:
                accuracy = entry["figures"]["acc@0.5"]
                low, high = (100 * bound for bound in accuracy["interval"])
                difference = f"{100 * accuracy['difference']:+.1f} ({low:+.1f} to {high:+.1f})"
                values = [_percent(accuracy[side]) for side in ("first", "second")]
                lines.append([label, title, f"{entry['n']:,}", *values, difference])
    header = ["data", "control", "expressions", "Acc@0.5", "Acc@0.5 under control", "difference"]
    return markdown_table(header, lines, words=2) if lines else ""


def score_sentences(results: Mapping[str, Results]) -> str:
    """What the scores are worth, a bullet for each set; "" where no set says anything."""
    lines = []
    for label, one in results.items():
        score = one.get("score") or {}
        parts = []
        if "auc" in score:
            parts.append(f"area under the ROC curve of right against wrong boxes {score['auc']:.3f}")
        if "calibration_error" in score:
            others = [
                f"{report['calibration_error']:.3f} where {report['rate']:.0%} of the expressions name nothing"
                for report in score.get("reports", [])[1:]
            ]
            parts.append(", ".join([f"expected calibration error {score['calibration_error']:.3f}", *others]))
        if "aurc" in score:
            parts.append(f"area under the risk-coverage curve {score['aurc']:.3f}")
        report = score.get("given_threshold") or score.get("best_threshold")
        if report and report["precision"] is not None:
            kind = "" if "given_threshold" in score else " (chosen on these rows)"
            parts.append(
                f"scores below {report['threshold']:.2f}{kind} find expressions that name nothing with precision "
                f"{_percent(report['precision'])} % and recall {_percent(report['recall'])} %, at the price of "
                f"{_percent(report['withheld'])} % of the answers to expressions that name something"
                + ("" if report.get("mcc") is None else f" (Matthews correlation {report['mcc']:.2f})")
            )
        if parts:
            lines.append(f"- {markdown_text(label)}: {'; '.join(parts)}.")
    return "\n".join(lines)


def robustness_table(results: Mapping[str, Results]) -> str:
    """Accuracy under changes of picture and expression, for the first set that has it; "" where none was measured."""
    for label, one in results.items():
        if robustness := one.get("robustness"):
            lines = [
                [ROBUSTNESS_NAMES.get(name, name), label, _percent(entry["before"]), _percent(entry["after"])]
                for name, entry in robustness["summary"].items()
                if name != "corruption"
            ]
            attack = robustness.get("adversarial", {"curve": {}})
            lines += [
                [f"attacked pixels, {strength} of 255", label, _percent(attack["clean"]), _percent(accuracy)]
                for strength, accuracy in attack["curve"].items()
            ]
            return markdown_table(["change", "data", "before", "after"], lines, words=2) if lines else ""
    return ""


def robustness_section(results: Mapping[str, Results]) -> str:
    """How a model breaks, with its heading; "" where nobody measured it."""
    table = robustness_table(results)
    one = next((one for one in results.values() if one.get("robustness")), None)
    if not table or one is None:
        return ""
    rows = f"{one['counts']['rows']:,} rows of {markdown_text(PurePath(one['data']['source']).name)}"
    return f"""{ROBUSTNESS_HEADING}

Mean Acc@0.5 over the changes of each kind, on the same rows before and after ({rows}):

{table}

Noise, blur, weather and digital changes of the picture in five strengths each, smaller pictures, JPEG files, and
changes of the expression, as `hivg evaluate --robustness` makes them."""


ROBUSTNESS_HEADING = "### How it breaks"
ROBUSTNESS_NAMES = {
    "jpeg": "JPEG quality",
    "wording": "the same said otherwise",
    "removed": "a part of the expression removed",
}


def protocol_sentences(results: Mapping[str, Results]) -> str:
    """What the protocols of these results count as right."""
    used = dict.fromkeys(one["protocol"] for one in results.values())
    return " ".join(f"Protocol `{name}`: {PROTOCOLS[name].summary}." for name in used)


def threshold_sentence(results: Mapping[str, Results]) -> str:
    """What N-acc and T-acc are, where they were measured."""
    thresholds = {
        one["settings"]["score_threshold"]
        for one in results.values()
        if one["settings"].get("score_threshold") is not None
    }
    if not thresholds:
        return ""
    listed = ", ".join(f"{threshold:g}" for threshold in sorted(thresholds))
    return (
        f" With a score threshold of {listed}, N-acc is the share of expressions that name nothing and are left "
        "unanswered, T-acc the share of those that name something and are answered."
    )


def commands(results: Mapping[str, Results]) -> str:
    """The commands that measured these results."""
    # Without line feeds and backticks of names: the lines stand in a block of code, which those would end.
    return "\n".join(printable(command_of(one)).replace("\n", " ").replace("`", "'") for one in results.values())


def command_of(one: Results) -> str:
    """The `hivg evaluate` command that gives a results file."""
    data, settings = one["data"], one["settings"]
    words = ["hivg", "evaluate", "--model", one["model"]["id"], "--data", data["source"], "--split", data["split"]]
    if one["model"].get("revision"):
        words += ["--revision", one["model"]["revision"]]
    for name, value in data["options"].items():
        words += [f"--{name}", str(value)] if name in ("seed", "size") else ["--option", f"{name}={value}"]
    for name, value in one["model"].get("config_overrides", {}).items():
        words += ["--set", f"{name}={value}"]
    if one["protocol"] != "pixel":
        words += ["--protocol", one["protocol"]]
    if settings.get("score_threshold") is not None:
        words += ["--score-threshold", str(settings["score_threshold"])]
    if settings.get("multiple_threshold") is not None:
        words += ["--multiple-threshold", str(settings["multiple_threshold"])]
    if one["controls"]:
        words.append("--controls")
    if robustness := one.get("robustness"):
        words += ["--robustness"] if robustness["summary"] else []
        words += ["--adversarial"] if "adversarial" in robustness else []
    return shlex.join([*words, "--out", f"results/{data['split']}"])


def markdown_table(header: Sequence[str], lines: Sequence[Sequence[str]], words: int = 1) -> str:
    """A Markdown table: the first columns, of `words`, to the left and the others, of numbers, to the right."""
    ruler = [":---"] * words + ["---:"] * (len(header) - words)
    named = ([*map(markdown_text, cells[:words]), *cells[words:]] for cells in lines)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, ruler, *named))


def _control(one: Results, name: str) -> Mapping[str, Any] | None:
    entry = (one.get("controls") or {}).get(name)
    return entry if entry and entry["n"] else None


def _with_interval(one: Results, key: str) -> str:
    if key not in one["figures"]:
        return ""
    interval = one["intervals"].get(key)
    return _percent(one["figures"][key]) + (
        f" ({_percent(interval[0])} to {_percent(interval[1])})" if interval else ""
    )


def _bucket(entry: Mapping[str, Any] | None) -> str:
    if not entry:
        return ""
    interval = entry.get("interval")
    spread = f" ({_percent(interval[0])} to {_percent(interval[1])})" if interval else ""
    return f"{_percent(entry['acc@0.5'])}{spread}, n = {entry['n']:,}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"
