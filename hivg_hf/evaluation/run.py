"""One evaluation from end to end: predict, score, run the controls, describe what was measured."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch

from hivg_hf.data import NegativeRows
from hivg_hf.metrics import (
    RowScores,
    balanced_threshold,
    choose_threshold,
    get_protocol,
    score_auc,
    score_report,
    score_rows,
    summarize_rows,
    threshold_report,
)
from hivg_hf.metrics.bootstrap import DEFAULT_RESAMPLES
from hivg_hf.modeling.processing_inputs_hivg import check_threshold
from hivg_hf.utils.imports import is_package_available

from .compare import compare_rows
from .controls import CONSTANT_EXPRESSION, CONTROLS, apply_control, other_expressions, paired_by_sentence
from .predict import computing_device, predict, process_state, references_of
from .records import RESULTS_FORMAT, describe_data, describe_model, describe_versions

DEFAULT_THRESHOLD = 0.5  # a box that is more likely right than not
BASE_RATES = (0.1, 0.5)  # shares of expressions that name nothing, at which a score is described


@dataclass
class EvaluationSettings:
    """How an evaluation is done.

    Args:
        protocol: see `hivg_hf.metrics.PROTOCOLS`.
        batch_size: rows of one forward pass; plays no part in the figures, but for models that mix a batch.
        num_workers: processes that read images, for each process that predicts.
        masks: predict masks too; None: when the data has masks and pycocotools is there.
        score_threshold: below it an answer counts as "nothing here matches". None: where rows name nothing or several
            things, the model's own (`config.score_threshold`), or else, where some name several, 0.5.
        multiple_threshold: what the further boxes of an answer need. None: where `score_threshold` is the model's own,
            its `config.multiple_threshold`, or else the same.
        several_targets: "skip" or "any", see `compute_grounding_metrics`.
        controls: which of `CONTROLS` to run besides.
        constant_expression: what the bridges read under the control "constant-text".
        resamples, seed: of the bootstrap.
        progress: show progress.
    """

    protocol: str = "pixel"
    batch_size: int = 32
    num_workers: int = 0
    masks: bool | None = None
    score_threshold: float | None = None
    multiple_threshold: float | None = None
    several_targets: str = "skip"
    controls: Sequence[str] = ()
    constant_expression: str = CONSTANT_EXPRESSION
    resamples: int = DEFAULT_RESAMPLES
    seed: int = 0
    progress: bool = True

    def __post_init__(self) -> None:
        get_protocol(self.protocol)
        unknown = [control for control in self.controls if control not in CONTROLS]
        if unknown:
            raise ValueError(f"Unknown controls {unknown}: choose among {', '.join(CONTROLS)}.")
        if self.batch_size < 1:
            raise ValueError(f"The batch size must be at least 1, got {self.batch_size}.")
        check_threshold(self.score_threshold, "score_threshold")
        check_threshold(self.multiple_threshold, "multiple_threshold")


@dataclass
class Evaluation:
    """What came out: `results` (what the JSON holds), and row by row `predictions` and `rows`."""

    results: dict[str, Any]
    predictions: list[dict[str, Any]]
    rows: RowScores

    def describe(
        self,
        model: torch.nn.Module,
        name: str,
        source: str,
        split: str,
        options: Mapping[str, Any] | None = None,
        *,
        revision: str | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> Evaluation:
        """Say in the results what was measured: the model by id and hash, the data by source and hash.

        Args:
            model: the model that was measured.
            name: its folder or Hub id.
            source, split, options: of the data, as for `load_grounding_dataset`.
            revision: of the model on the Hub.
            overrides: config fields that differ from the checkpoint's.
        """
        self.results["model"] = {**describe_model(model, name, revision), "config_overrides": dict(overrides or {})}
        self.results["data"] = describe_data(self.rows.references, source, split, options or {})
        return self


def evaluate_model(
    model: torch.nn.Module,
    processor: Any,
    dataset: Any,
    settings: EvaluationSettings | None = None,
    foils: Any = None,
) -> Evaluation:
    """Measure a model on a dataset, on every process that was started together.

    Args:
        model: a `HiVGForVisualGrounding`, possibly wrapped by PEFT.
        processor: its processor.
        dataset: rows of the schema; of `NegativeRows`, those of its first epoch.
        settings: how.
        foils: for the control "other-expression": rows like those of `dataset` (same `sent_id`) that ask for another
            object of the same picture; by default other expressions of the same image are taken from `dataset`.

    Returns:
        The evaluation, on every process the same.
    """
    settings = settings or EvaluationSettings()
    began = time.perf_counter()
    if isinstance(dataset, NegativeRows):
        dataset = dataset.table()
    references = references_of(dataset)
    masks = settings.masks
    if masks is None:
        masks = is_package_available("pycocotools") and any(row["mask"] is not None for row in references)
    measurer = _Measurer(model, processor, settings, masks)
    predictions = measurer.predict(dataset, "evaluating")
    if settings.score_threshold is None:
        settings = measurer.settings = _with_own_thresholds(settings, model, predictions, references)
    rows = measurer.score(predictions, references)
    results = {
        "format_version": RESULTS_FORMAT,
        **summarize_rows(rows, settings.protocol, resamples=settings.resamples, seed=settings.seed),
    }
    results["score"] = describe_scores(rows, settings)
    results["controls"] = {
        control: measurer.run_control(control, dataset, foils, predictions, references)
        for control in settings.controls
    }
    results["settings"] = {
        "batch_size": settings.batch_size,
        "processes": process_state().num_processes,
        "device": computing_device(model).type,
        "masks": masks,
        "score_threshold": settings.score_threshold,
        "multiple_threshold": settings.multiple_threshold,
        "several_targets": settings.several_targets,
        "mixes_batch": bool(getattr(model.config, "bridge_mixes_batch", False)),
    }
    results["versions"] = describe_versions()
    results["seconds"] = round(time.perf_counter() - began, 1)
    results["created"] = datetime.now(UTC).isoformat(timespec="seconds")
    return Evaluation(results, predictions, rows)


def _with_own_thresholds(
    settings: EvaluationSettings,
    model: torch.nn.Module,
    predictions: Sequence[Mapping[str, Any]],
    references: Sequence[Mapping[str, Any]],
) -> EvaluationSettings:
    """The model's thresholds for rows that name nothing or several things; none where all name one."""
    counts = {len(row["boxes"]) for row in references}
    if counts <= {1} or any(prediction["score"] is None for prediction in predictions):
        return settings
    chosen = getattr(model.config, "score_threshold", None)
    multiple = settings.multiple_threshold
    if chosen is not None and multiple is None:
        multiple = getattr(model.config, "multiple_threshold", None)
    if chosen is None and max(counts) > 1:
        chosen = DEFAULT_THRESHOLD
    return replace(settings, score_threshold=chosen, multiple_threshold=multiple)


def describe_scores(rows: RowScores, settings: EvaluationSettings) -> dict[str, Any]:
    """What the score is worth on these rows; {} for a model without one.

    `auc`: right boxes against wrong ones and answers to expressions that name nothing. `calibration_error`: distance
    of the score from the share that is right; `aurc`: the risk averaged over coverages; `reports`: both, the
    reliability diagram and the curve, for the rows as they are and, with rows of both kinds, for other shares of them
    (`BASE_RATES`).
    With rows of both kinds, too, how well a threshold finds the expressions that name nothing: `best_threshold` (best
    F1) and `balanced_threshold` (N-acc and T-acc alike) are chosen on these very rows, `given_threshold` is the one
    that was asked for.
    """
    no_target = np.array([bool(row.get("no_target")) for row in rows.references])
    judged = ~np.isnan(rows.scores) & (rows.has_box | no_target)
    if not judged.any():
        return {}
    scores, correct, nothing = rows.scores[judged], rows.correct(settings.protocol)[judged], no_target[judged]
    mixed = bool(nothing.any() and not nothing.all())
    own = nothing.mean()
    rates = [None, *(rate for rate in BASE_RATES if mixed and not np.isclose(rate, own, atol=5e-3))]
    reports = [score_report(scores, correct, nothing, rate) for rate in rates]
    described: dict[str, Any] = {name: reports[0][name] for name in ("calibration_error", "aurc")}
    described["reports"] = reports
    if correct.any() and not correct.all():
        described["auc"] = score_auc(scores, correct)
    if mixed:
        described["best_threshold"] = choose_threshold(scores, nothing)
        described["balanced_threshold"] = threshold_report(scores, nothing, balanced_threshold(scores, nothing))
        if settings.score_threshold is not None:
            described["given_threshold"] = threshold_report(scores, nothing, settings.score_threshold)
    return described


@dataclass
class _Measurer:
    """A model with the way it is measured."""

    model: torch.nn.Module
    processor: Any
    settings: EvaluationSettings
    masks: bool

    def predict(self, dataset: Any, description: str) -> list[dict[str, Any]]:
        return predict(
            self.model,
            self.processor,
            dataset,
            batch_size=self.settings.batch_size,
            masks=self.masks,
            num_workers=self.settings.num_workers,
            progress=self.settings.progress,
            description=description,
        )

    def score(self, predictions: list[dict[str, Any]], references: list[dict[str, Any]]) -> RowScores:
        return score_rows(
            predictions,
            references,
            self.settings.protocol,
            score_threshold=self.settings.score_threshold,
            multiple_threshold=self.settings.multiple_threshold,
            several_targets=self.settings.several_targets,
        )

    def run_control(
        self,
        control: str,
        dataset: Any,
        foils: Any,
        predictions: list[dict[str, Any]],
        references: list[dict[str, Any]],
    ) -> dict[str, Any]:
        """The control beside the model as it is, on the same rows: `first` is the model, `second` the control."""
        settings = self.settings
        control_rows: Any = dataset
        kept = list(range(len(dataset)))
        if control == "other-expression":
            if foils is None:
                control_rows = other_expressions(dataset)
                kept = control_rows.kept
            else:
                control_rows, kept = foils, paired_by_sentence(dataset, foils)
            if not kept:
                return {"n": 0, "reason": "no image of this data has expressions for two different objects"}
        with apply_control(control, self.model, self.processor, settings.constant_expression):
            answers = self.predict(control_rows, f"control {control}")
        # Rows of a control are numbered by its own dataset; they stand for rows of the original.
        answers = [{**answer, "id": kept[answer["id"]]} for answer in answers]
        originals = [references[index] for index in kept]
        usual = self.score([predictions[index] for index in kept], originals)
        controlled = self.score(answers, originals)
        return compare_rows(usual, controlled, settings.protocol, resamples=settings.resamples, seed=settings.seed)
