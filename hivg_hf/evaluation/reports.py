"""The folder of an evaluation: results, predictions, plots, pages of pictures; and that of a comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hivg_hf.metrics import RowScores
from hivg_hf.utils.atomic import write_json

from .compare import compare_rows, disagreements
from .gallery import disagreement_pictures, worst_failures, write_gallery
from .plots import plot_accuracy_by_length, plot_iou_histogram, plot_scores
from .records import (
    PREDICTIONS_NAME,
    RESULTS_FORMAT,
    RESULTS_NAME,
    write_predictions,
)
from .run import Evaluation, EvaluationSettings

GALLERY_NAME = "failures.html"
COMPARISON_NAME = "comparison.json"
DISAGREEMENTS_NAME = "disagreements.html"


def write_evaluation(
    out: str | Path, evaluation: Evaluation, dataset: Any, *, plots: bool = True, gallery: int = 48
) -> list[Path]:
    """Write results, predictions, plots and the page of failures into a folder.

    Args:
        out: the folder; files of an earlier evaluation in it are replaced.
        evaluation: what `evaluate_model` returned.
        dataset: the rows it was measured on.
        plots: whether to draw them (needs matplotlib).
        gallery: pictures in each section of the page; 0 writes no page.

    Returns:
        The files, the results last: where they are, all the others are.
    """
    out, results, rows = Path(out), evaluation.results, evaluation.rows
    files = [out / PREDICTIONS_NAME]
    write_predictions(files[0], evaluation.predictions, rows, results["protocol"])
    if plots:
        files += [out / "accuracy_by_length.png", out / "iou_histogram.png"]
        plot_accuracy_by_length(files[1], results)
        plot_iou_histogram(files[2], rows.ious)
        if results["score"]:
            files.append(out / "scores.png")
            plot_scores(files[-1], results["score"])
    if gallery:
        files.append(out / GALLERY_NAME)
        name = results.get("model", {}).get("id", "model")
        split = results.get("data", {}).get("split", "")
        write_gallery(
            files[-1],
            dataset,
            worst_failures(rows, evaluation.predictions, results["protocol"], gallery),
            title=f"Where {name} is worst",
            subtitle=f"{len(rows.ids):,} rows, split {split}, protocol {results['protocol']}.",
            legend={"target": "target", "first": "predicted"},
        )
    files.append(out / RESULTS_NAME)
    write_json(files[-1], results)
    return files


def write_comparison(
    out: str | Path,
    evaluation: Evaluation,
    predictions: list[dict[str, Any]],
    rows: RowScores,
    described: dict[str, Any],
    dataset: Any,
    settings: EvaluationSettings,
    gallery: int = 48,
) -> tuple[dict[str, Any], list[Path]]:
    """Compare an evaluation with other predictions of the same rows, and write figures and pictures.

    Args:
        out: the folder.
        evaluation: the first side.
        predictions, rows: the second side.
        described: its model, as `describe_model` says it.
        dataset: the rows that both were measured on.
        settings: protocol and bootstrap.
        gallery: pictures in each section of the page; 0 writes no page.

    Returns:
        (the comparison, the files).
    """
    out = Path(out)
    compared = compare_rows(evaluation.rows, rows, settings.protocol, resamples=settings.resamples, seed=settings.seed)
    comparison = {
        "format_version": RESULTS_FORMAT,
        "protocol": settings.protocol,
        "first": evaluation.results["model"],
        "second": described,
        "data": evaluation.results["data"],
        **compared,
    }
    files = [out / COMPARISON_NAME]
    write_json(files[0], comparison)
    if gallery:
        files.append(out / DISAGREEMENTS_NAME)
        first, second = comparison["first"]["id"], comparison["second"]["id"]
        indices = disagreements(evaluation.rows, rows, settings.protocol)
        sections = disagreement_pictures(
            indices, (evaluation.rows, rows), (evaluation.predictions, predictions), gallery
        )
        write_gallery(
            files[1],
            dataset,
            sections,
            title=f"Where {first} and {second} disagree",
            subtitle=f"{len(indices):,} of {compared['n']:,} rows, protocol {settings.protocol}.",
            legend={"target": "target", "first": f"first: {first}", "second": f"second: {second}"},
        )
    return comparison, files
