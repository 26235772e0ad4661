"""A robustness report: every condition measured beside the unchanged rows, with what the score does."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from hivg_hf.metrics import RowScores, score_auc, score_rows
from hivg_hf.utils.atomic import write_json

from ..compare import compare_rows
from ..predict import predict, process_state
from ..run import Evaluation, EvaluationSettings
from .conditions import ChangedRows, Condition, all_conditions
from .corruptions import FAMILIES

logger = logging.getLogger(__name__)

ROBUSTNESS_NAME = "robustness.json"


def measure_robustness(
    model: Any,
    processor: Any,
    dataset: Any,
    evaluation: Evaluation,
    settings: EvaluationSettings,
    out: str | Path,
    conditions: Iterable[Condition] | None = None,
) -> dict[str, Any]:
    """Measure a model under every condition, on the rows that it was evaluated on.

    What is measured is saved condition by condition: the same call after a kill resumes, and a report of other
    weights, rows or seed in the folder is replaced.

    Args:
        model, processor, dataset: As for `evaluate_model`.
        evaluation: What `evaluate_model` gave for them, described.
        settings: How it was measured; its seed fixes the changes too.
        out: Folder of the evaluation.
        conditions: Defaults to `all_conditions()`.

    Returns:
        `{"of": ..., "conditions": {key: {...}}, "summary": {...}, "by_objects": {...}}`: per condition the number of
        rows, accuracy before and after, the paired difference with its 95 percent interval, the mean score before and
        after, and the AUC of the score under the change.
    """
    path = Path(out) / ROBUSTNESS_NAME
    of = {
        "weights": evaluation.results["model"]["weights_sha256"],
        "data": evaluation.results["data"],
        "protocol": settings.protocol,
        "seed": settings.seed,
    }
    measured = _resumed(path, of)
    for condition in conditions if conditions is not None else all_conditions():
        if condition.key in measured:
            continue
        rows = ChangedRows(dataset, condition, settings.seed)
        measured[condition.key] = {**asdict(condition), "n": 0}
        if len(rows):
            answers = predict(
                *(model, processor, rows),
                batch_size=settings.batch_size,
                num_workers=settings.num_workers,
                progress=settings.progress,
                description=condition.key,
            )
            measured[condition.key] |= _compared(evaluation, answers, rows.kept, settings)
        if process_state().is_main_process:
            write_json(path, {"of": of, "conditions": measured})
    report = {"of": of, "conditions": measured, "summary": summarize(measured), "by_objects": by_objects(evaluation)}
    if process_state().is_main_process:
        write_json(path, report)
    return report


def summarize(measured: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean accuracy before and after, by family of corruptions, by kind, and over all fifteen corruptions."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for entry in measured.values():
        if not entry["n"]:
            continue
        names = [entry["kind"]]
        if entry["kind"] == "corruption":
            names.append(next(family for family, members in FAMILIES.items() if entry["name"] in members))
        for name in names:
            groups.setdefault(name, []).append(entry)
    return {
        name: {key: float(np.mean([entry[key] for entry in entries])) for key in ("before", "after")}
        for name, entries in groups.items()
    }


def by_objects(evaluation: Evaluation) -> dict[str, dict[str, float]]:
    """Accuracy by the number of objects in the picture, where the rows say how many there are."""
    rows = evaluation.rows
    counts = np.array([len(row.get("objects") or ()) for row in rows.references])
    correct = rows.correct(evaluation.results["protocol"])
    chosen = {int(count): rows.has_box & (counts == count) for count in np.unique(counts) if count}
    return {
        str(count): {"n": int(mask.sum()), "accuracy": float(correct[mask].mean())}
        for count, mask in chosen.items()
        if mask.any()
    }


def _compared(
    evaluation: Evaluation, answers: list[dict[str, Any]], kept: list[int], settings: EvaluationSettings
) -> dict[str, Any]:
    references = [evaluation.rows.references[row] for row in kept]
    before, after = (
        score_rows(some, references, settings.protocol, several_targets=settings.several_targets)
        for some in (
            [evaluation.predictions[row] for row in kept],
            [{**answer, "id": references[answer["id"]]["id"]} for answer in answers],
        )
    )
    compared = compare_rows(before, after, settings.protocol, resamples=settings.resamples, seed=settings.seed)
    if not compared["n"]:
        return {"n": 0}
    accuracy = compared["figures"]["acc@0.5"]
    return {
        "n": compared["n"],
        "before": accuracy["first"],
        "after": accuracy["second"],
        "difference": accuracy["difference"],
        "interval": accuracy["interval"],
        **_score_behavior(before, after, settings.protocol),
    }


def _score_behavior(before: RowScores, after: RowScores, protocol: str) -> dict[str, float]:
    """Whether confidence falls with accuracy; {} for a model without a score."""
    if np.isnan(after.scores).any() or np.isnan(before.scores).any():
        return {}
    judged, correct = after.has_box, after.correct(protocol)
    behavior = {
        "score_before": float(before.scores[judged].mean()),
        "score_after": float(after.scores[judged].mean()),
    }
    if correct[judged].any() and not correct[judged].all():
        behavior["score_auc"] = score_auc(after.scores[judged], correct[judged])
    return behavior


def _resumed(path: Path, of: Mapping[str, Any]) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(content, dict) or content.get("of") != json.loads(json.dumps(of)):
        return {}
    logger.info("%s: %d conditions are measured already", path, len(content["conditions"]))
    return content["conditions"]
