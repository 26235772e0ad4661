"""`hivg evaluate`: figures of a model on a dataset, with everything needed to quote them.

hivg evaluate --model FOLDER --data refshapes --split val --seed 7 --size 2000 --out results/val
hivg evaluate --model me/hivg-base --data refcoco --split testA --option root=/data --protocol official --out A
hivg evaluate --model best.pth --data unc --split val --option root=/data --protocol official \\
    --compare-published base-unc --out B
hivg evaluate --model FOLDER --data refshapes --split val+none --controls --out results/controls
hivg evaluate --model FOLDER --data refshapes --split val --seed 7 --size 300 --robustness --adversarial --card --out R
hivg evaluate --model FOLDER --data my.csv --split val --compare results/other --out results/mine
hivg evaluate --model runs/mine --split held-out --out results/held-out
accelerate launch --config_file multi_cpu.yaml -m hivg_hf evaluate --model ...
"""

from __future__ import annotations

import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from . import MODEL_NAMES, note_what_tiny_knows, run_verb, say, terminal
from ._options import (
    Backend,
    BoxFormat,
    Column,
    Device,
    Images,
    Quiet,
    ReaderOption,
    Seed,
    Size,
    named_rows,
    reader_options,
)

logger = logging.getLogger(__name__)


def evaluate(
    model: Annotated[str, typer.Option(help=f"{MODEL_NAMES} Also an adapter, or an official .pth file.")],
    out: Annotated[Path, typer.Option(help="Folder for results.json, predictions.parquet, plots and failures.html.")],
    data: Annotated[
        str | None, typer.Option(help="A source that load_grounding_dataset knows, or a file of your own.")
    ] = None,
    split: Annotated[
        str,
        typer.Option(
            help="A split, several joined by '+', such as val+none, or held-out: the rows that the run --model held "
            "out for validation (then omit --data)."
        ),
    ] = "val",
    images: Images = None,
    box_format: BoxFormat = None,
    seed: Seed = None,
    size: Size = None,
    option: ReaderOption = None,
    column: Column = None,
    protocol: Annotated[str, typer.Option(help="pixel, official, mdetr or ref-l4: what counts as right.")] = "pixel",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a model on the Hub.")] = None,
    set_config: Annotated[
        list[str] | None,
        typer.Option("--set", help="NAME=VALUE that replaces a field of the model's config; repeatable."),
    ] = None,
    clip_config: Annotated[
        str | None,
        typer.Option(help="For an official .pth file: folder, JSON file or Hub id of a CLIP that is not published."),
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="For an official .pth file: folder or Hub id of its CLIP tokenizer.")
    ] = None,
    device: Device = None,
    dtype: Annotated[str | None, typer.Option(help="float32 (the default), bfloat16 or float16.")] = None,
    backend: Backend = "torch",
    precision: Annotated[str | None, typer.Option(help="fp32, bf16 (torch) or int8 (onnx). Default: fp32.")] = None,
    batch_size: Annotated[int, typer.Option(help="Rows per pass; no figure depends on it.", min=1)] = 32,
    num_workers: Annotated[int, typer.Option(help="Processes that open images, per predicting process.", min=0)] = 0,
    masks: Annotated[
        bool | None, typer.Option(help="Predict masks too. Default: when the data has masks to compare with.")
    ] = None,
    score_threshold: Annotated[
        float | None,
        typer.Option(help="Scores below it mean 'nothing here matches': N-acc, T-acc, F1. Default: the model's own."),
    ] = None,
    multiple_threshold: Annotated[
        float | None,
        typer.Option(help="Score that the further boxes of an answer need. Default: the model's own."),
    ] = None,
    several_targets: Annotated[str, typer.Option(help="skip, or any: the best of several targets counts.")] = "skip",
    controls: Annotated[
        bool,
        typer.Option(
            "--controls", help="Also run the controls: bridge off, constant text in the bridge, other expression."
        ),
    ] = False,
    constant_expression: Annotated[
        str | None,
        typer.Option(help="What the bridges read under --controls with constant text. Default: 'the object'."),
    ] = None,
    robustness: Annotated[
        bool,
        typer.Option(
            "--robustness", help="Also test changed pictures and expressions, in 95 passes; resumes if killed."
        ),
    ] = False,
    adversarial: Annotated[
        bool, typer.Option("--adversarial", help="Also attack the pixels along the gradient (PGD), at five strengths.")
    ] = False,
    card: Annotated[
        bool,
        typer.Option("--card", help="Put the summary of --robustness and --adversarial into the card of --model."),
    ] = False,
    compare: Annotated[
        str | None, typer.Option(help="Folder of an earlier evaluation, or another model: compared row by row.")
    ] = None,
    compare_published: Annotated[
        str | None,
        typer.Option(help="A variant, such as base-unc, whose published figure for this split is shown beside yours."),
    ] = None,
    resamples: Annotated[int, typer.Option(help="Resamples of the bootstrap; 0 gives no intervals.", min=0)] = 2000,
    gallery: Annotated[int, typer.Option(help="Pictures per section of the pages; 0 writes none.", min=0)] = 48,
    plots: Annotated[
        bool | None,
        typer.Option(help="Draw accuracy by length and the histogram of IoU. Default: where matplotlib is installed."),
    ] = None,
    allow_code: Annotated[
        bool, typer.Option("--allow-code", help="Let --data name code, package.module:function, and run it.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Measure a checkpoint on a dataset and write a results file."""
    from hivg_hf.data import load_grounding_dataset
    from hivg_hf.evaluation import CONTROLS, EvaluationSettings, evaluate_model
    from hivg_hf.evaluation.model_card import add_robustness
    from hivg_hf.evaluation.predict import process_state
    from hivg_hf.evaluation.published import compare_published as beside_published
    from hivg_hf.evaluation.published import expect_published
    from hivg_hf.evaluation.reports import write_evaluation
    from hivg_hf.evaluation.sources import open_foils, open_model
    from hivg_hf.inference import check_engine
    from hivg_hf.utils.devices import choose_device
    from hivg_hf.utils.held_folder import folder_lock
    from hivg_hf.utils.imports import is_package_available, require_package
    from hivg_hf.utils.plugins import allowing_code
    from hivg_hf.utils.strict_mapping import read_options

    from .convert import read_clip_config

    data_options = reader_options(option, column, images, box_format)
    data, split, data_options = named_rows(model, data, split, data_options)
    _refuse_what_does_not_apply(
        {"--seed": seed is not None, "--size": size is not None}, data in ("refshapes", "mixture"), "--data refshapes"
    )
    _refuse_what_does_not_apply({"--constant-expression": constant_expression is not None}, controls, "--controls")
    _refuse_what_does_not_apply({"--card": card}, robustness or adversarial, "--robustness or --adversarial")
    folder = _card_folder(model, bool(set_config)) if card else None
    reaching = [name for name, given in {"--controls": controls, "--adversarial": adversarial}.items() if given]
    if reaching and backend != "torch":
        raise ValueError(f"{' and '.join(reaching)} reaches into the torch model: omit it, or omit --backend onnx.")
    engine = {"dtype": dtype, "backend": backend, "precision": precision}
    if compare_published is not None:
        expect_published(compare_published, data, split, protocol)  # now, not after an hour of work
    if compare is not None:
        _find_compared(compare)  # now, not after an hour of work
    check_engine(backend, precision, device=device, dtype=dtype)
    if device is not None:
        choose_device(device)
    state = process_state()
    if plots:
        try:
            require_package("matplotlib", extra="plots")  # now, not after an hour of work
        except ImportError as error:
            raise ImportError(f"{error}, or omit --plots") from None
    elif plots is None and not (plots := is_package_available("matplotlib")):
        say("hivg: no plots, since matplotlib is not installed (pip install 'hivg_hf[plots]')", err=True)
    settings = EvaluationSettings(
        protocol=protocol,
        batch_size=batch_size,
        num_workers=num_workers,
        masks=masks,
        score_threshold=score_threshold,
        multiple_threshold=multiple_threshold,
        several_targets=several_targets,
        controls=CONTROLS if controls else (),
        constant_expression=constant_expression or "the object",
        resamples=resamples,
    )
    generated = {name: value for name, value in (("seed", seed), ("size", size)) if value is not None}
    data_options = {**data_options, **generated}
    overrides = read_options(set_config or [], "--set")
    if data not in ("refshapes", "mixture"):
        note_what_tiny_knows(model, quiet=quiet)
    opened, processor, commit = open_model(
        model,
        revision=revision,
        overrides=overrides,
        clip_config=None if clip_config is None else read_clip_config(clip_config),
        tokenizer=tokenizer,
        **engine,
    )
    with allowing_code(allow_code):
        dataset = load_grounding_dataset(data, split, **data_options)
        foils = open_foils(data, split, data_options) if controls else None
    with folder_lock(out, "writing to") if state.is_main_process else nullcontext():
        evaluation = evaluate_model(opened, processor, dataset, settings, foils)
        evaluation.describe(opened, model, data, split, data_options, revision=commit or revision, overrides=overrides)
        pages = []
        if robustness or adversarial:
            pages = _robustness(opened, processor, dataset, evaluation, settings, out, robustness, adversarial, plots)
        if compare_published is not None:
            evaluation.results["published"] = beside_published(evaluation.results, compare_published, data, split)
        if state.is_main_process:
            files = [*pages, *write_evaluation(out, evaluation, dataset, plots=plots, gallery=gallery)]
            if folder is not None:
                files.append(add_robustness(folder, evaluation.results))
            _print_results(evaluation.results, files)
        if compare:
            _compare(compare, evaluation, dataset, settings, out, gallery, engine)
        state.wait_for_everyone()


def main() -> None:
    """Entry point of scripts/evaluate.py."""
    run_verb("evaluate")


def _refuse_what_does_not_apply(given: dict[str, bool], applies: bool, needs: str) -> None:
    unread = [name for name, is_given in given.items() if is_given]
    if unread and not applies:
        raise ValueError(f"{' and '.join(unread)} would change nothing without {needs}: omit it.")


def _card_folder(model: str, is_changed: bool) -> Path:
    """The folder whose card is written.

    Args:
        model: As it was named.
        is_changed: Whether the evaluation changes its config.

    Raises:
        ValueError: The model has none of the user's own, or is not what is measured.
    """
    from hivg_hf.hub import is_tiny, resolve_model

    if is_changed:
        raise ValueError("--card tells what the model is as it is saved, and --set changes it: omit one.")
    if is_tiny(model):
        raise ValueError(
            "--card: the card of the shipped checkpoint is made of model_cards/results by scripts/make_cards.py: copy "
            "results.json there, and omit --card."
        )
    if not Path(model).is_dir():
        raise ValueError(
            f"--card writes into a model's folder, and {model} is not a folder: download the model, or omit --card."
        )
    return Path(resolve_model(model))


def _robustness(
    model: Any,
    processor: Any,
    dataset: Any,
    evaluation: Any,
    settings: Any,
    out: Path,
    changes: bool,
    attack: bool,
    plots: bool,
) -> list[Path]:
    """Measure how the model breaks, write the report, and put its summary into the results."""
    from hivg_hf.evaluation.predict import process_state
    from hivg_hf.evaluation.robustness import measure_adversarial, measure_robustness, write_report

    out.mkdir(parents=True, exist_ok=True)
    conditions = None if changes else ()
    report = measure_robustness(model, processor, dataset, evaluation, settings, out, conditions)
    evaluation.results["robustness"] = {"summary": report["summary"], "by_objects": report["by_objects"]}
    if not process_state().is_main_process:
        return []
    if attack:
        report["adversarial"] = measure_adversarial(model, processor, dataset, evaluation, settings)
        evaluation.results["robustness"]["adversarial"] = report["adversarial"]
    return write_report(out, report, evaluation.results["model"]["id"], plots)


def _find_compared(other: str) -> None:
    """Refuse what is neither an earlier evaluation nor a model."""
    from hivg_hf.evaluation.records import PREDICTIONS_NAME
    from hivg_hf.hub import download_checked, resolve_model

    if not (Path(other) / PREDICTIONS_NAME).is_file() and not (
        other.endswith((".pth", ".pt")) and Path(other).is_file()
    ):
        download_checked(resolve_model(other))


def _compare(other: str, evaluation: Any, dataset: Any, settings: Any, out: Path, gallery: int, engine: Any) -> None:
    """Compare with an earlier evaluation's folder, or evaluate another model on the same rows first."""
    from dataclasses import replace

    from hivg_hf.evaluation import describe_model, evaluate_model, read_predictions, read_results
    from hivg_hf.evaluation.predict import process_state
    from hivg_hf.evaluation.records import PREDICTIONS_NAME
    from hivg_hf.evaluation.reports import write_comparison
    from hivg_hf.evaluation.sources import open_model
    from hivg_hf.metrics import score_rows

    state = process_state()
    if (Path(other) / PREDICTIONS_NAME).is_file():
        predictions, references = read_predictions(other)
        described = read_results(other).get("model", {"id": other})
        rows = score_rows(
            predictions,
            references,
            settings.protocol,
            score_threshold=settings.score_threshold,
            multiple_threshold=settings.multiple_threshold,
            several_targets=settings.several_targets,
        )
    else:
        opened, processor, commit = open_model(other, **engine)
        second = evaluate_model(opened, processor, dataset, replace(settings, controls=()))
        predictions, rows, described = second.predictions, second.rows, describe_model(opened, other, commit)
    if state.is_main_process:
        comparison, files = write_comparison(out, evaluation, predictions, rows, described, dataset, settings, gallery)
        _print_comparison(comparison, files)


def _print_results(results: dict[str, Any], files: list[Path]) -> None:
    from rich.table import Table

    console, counts = terminal(), results["counts"]
    table = Table(title=f"{results['model']['id']} on {results['data']['source']} {results['data']['split']}")
    for heading in ("figure", "value", "95 % interval", "n"):
        table.add_column(heading, justify="left" if heading == "figure" else "right")
    for name, value in results["figures"].items():
        rows = counts["masks"] if name.startswith("mask_") else counts["one_target"]
        rows = counts["rows"] if name in ("f1_precision", "n_acc", "t_acc", "score_auc", "ap@0.5") else rows
        table.add_row(name, f"{value:.4f}", _interval(results["intervals"].get(name)), f"{rows:,}")
    for name, entry in results["breakdowns"].get("image_shape", {}).items():
        table.add_row(
            f"acc@0.5, {name}", f"{entry['acc@0.5']:.4f}", _interval(entry.get("interval")), f"{entry['n']:,}"
        )
    for name, entry in results["controls"].items():
        if entry["n"]:
            value = entry["figures"]["acc@0.5"]["second"]
            table.add_row(f"acc@0.5, control {name}", f"{value:.4f}", "", f"{entry['n']:,}")
    console.print(table)
    settings = results["settings"]
    console.print(
        f"N = {counts['rows']:,} rows of {counts['images']:,} images, each once, on {settings['processes']} "
        f"process{'es' * (settings['processes'] != 1)}; protocol {results['protocol']}; {results['seconds']:.0f} s"
    )
    for name, entry in results.get("robustness", {}).get("summary", {}).items():
        console.print(f"acc@0.5 under {name}: {entry['after']:.4f} (unchanged: {entry['before']:.4f})")
    for line in _score_lines(results.get("score") or {}):
        console.print(line, soft_wrap=True)
    if "published" in results:
        _print_published(results["published"])
    for figure, note in results.get("notes", {}).items():
        console.print(f"{figure}: {note}", soft_wrap=True)
    for file in files:
        console.print(str(file.resolve()), soft_wrap=True, highlight=False)


def _score_lines(score: dict[str, Any]) -> list[str]:
    """What the score is worth, a line for each share of expressions that name nothing and for each threshold."""
    lines = [
        f"score, {report['rate']:.0%} of the expressions naming nothing: calibration error "
        f"{report['calibration_error']:.3f}, area under risk and coverage {report['aurc']:.3f}"
        for report in score.get("reports", ())
    ]
    for name, words in (("balanced_threshold", "N-acc and T-acc alike, on these rows"), ("given_threshold", "given")):
        if report := score.get(name):
            lines.append(
                f"threshold {report['threshold']:.3f} ({words}): N-acc {report['recall']:.1%}, T-acc "
                f"{1 - report['withheld']:.1%}, MCC {report['mcc']:.3f}"
            )
    return lines


def _print_published(compared: dict[str, Any]) -> None:
    """Measured beside published, in percent."""
    from rich.table import Table

    interval = compared["interval"]
    table = Table(title=f"{compared['variant']}: Acc@0.5 in percent, measured beside published")
    for heading in ("published by", "published", "measured", "95 % interval", "difference", "in the interval"):
        table.add_column(heading, justify="left" if heading == "published by" else "right")
    for row in compared["rows"]:
        table.add_row(
            row["source"],
            f"{row['published']:.2f}",
            f"{compared['measured']:.2f}",
            f"{interval[0]:.2f} to {interval[1]:.2f}" if interval else "",
            f"{row['difference']:+.2f}",
            {True: "yes", False: "no", None: ""}[row["within"]],
        )
    console = terminal()
    console.print(table)
    for row in compared["rows"]:
        console.print(f"{row['source']}: {row['where']}", soft_wrap=True, highlight=False)
    if compared["n_published"] not in (None, compared["n"]):
        console.print(f"Measured on {compared['n']:,} expressions, published on {compared['n_published']:,}.")


def _print_comparison(comparison: dict[str, Any], files: list[Path]) -> None:
    from rich.table import Table

    console = terminal()
    table = Table(title=f"{comparison['first']['id']} (first) and {comparison['second']['id']} (second)")
    for heading in ("figure", "first", "second", "second - first", "95 % interval"):
        table.add_column(heading, justify="left" if heading == "figure" else "right")
    for name, entry in comparison["figures"].items():
        values = [f"{entry[key]:.4f}" for key in ("first", "second")]
        table.add_row(name, *values, f"{entry['difference']:+.4f}", _interval(entry["interval"]))
    console.print(table)
    agreement = comparison["agreement"]
    console.print(
        f"{comparison['n']:,} rows: both right {agreement['both']:,}, only the first {agreement['only_first']:,}, "
        f"only the second {agreement['only_second']:,}, neither {agreement['neither']:,}"
    )
    for file in files:
        console.print(str(file.resolve()), soft_wrap=True, highlight=False)


def _interval(bounds: list[float] | None) -> str:
    return f"{bounds[0]:.4f} to {bounds[1]:.4f}" if bounds else ""
