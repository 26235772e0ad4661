"""`hivg calibrate`: make a model's score mean what it says, and decide from which score on a box is found.

hivg calibrate runs/mine --split held-out --out calibrated
hivg calibrate calibrated --data more.csv --split all --images photos --box-format xyxy
hivg calibrate converted --data refcoco --split val --option root=/data --precision 0.95
hivg calibrate tiny --data refshapes --split val+none --seed 5 --size 500 --base-rate 0.1 --out calibrated
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from . import MODEL_NAMES, run_verb, say
from ._options import BoxFormat, Column, Device, Images, ReaderOption, Seed, Size, named_rows, reader_options

FEW = 10  # boxes that say little about a share


def calibrate(
    model: Annotated[str, typer.Argument(help=f"{MODEL_NAMES} Its config is changed in place without --out.")],
    data: Annotated[
        str | None, typer.Option(help="Rows with known boxes that the model was not trained on: a source or a file.")
    ] = None,
    split: Annotated[
        str,
        typer.Option(
            help="A split, several joined by '+', such as val+none, or held-out: the rows that the run MODEL held "
            "out; then omit --data."
        ),
    ] = "val",
    precision: Annotated[
        float | None,
        typer.Option(help="Wanted share of right boxes among those found; the lowest threshold that gives it."),
    ] = None,
    base_rate: Annotated[
        float | None,
        typer.Option(help="Share of expressions that name nothing where the model will be used, such as 0.1."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for a calibrated copy; needed for tiny and for models in a cache.")
    ] = None,
    seed: Seed = None,
    size: Size = None,
    images: Images = None,
    box_format: BoxFormat = None,
    column: Column = None,
    option: ReaderOption = None,
    device: Device = None,
    batch_size: Annotated[int, typer.Option(help="Rows per pass.", min=1)] = 16,
) -> None:
    """Fit temperature (or scale), bias and threshold on held-out rows, and write them into the model's config."""
    from hivg_hf.data import load_grounding_dataset
    from hivg_hf.hub import download_checked, load_with_stages, resolve_model
    from hivg_hf.inference import calibrate_score, check_place, save_calibration
    from hivg_hf.utils.devices import find_device

    options = reader_options(option, column, images, box_format)
    options |= {name: value for name, value in (("seed", seed), ("size", size)) if value is not None}
    data, split, options = named_rows(model, data, split, options)
    folder = download_checked(resolve_model(model))
    check_place(folder, out)  # now, not after minutes of work
    rows = load_grounding_dataset(data, split, **options)
    opened, processor = load_with_stages(str(folder), dtype="float32")  # whatever it is stored in
    found = calibrate_score(opened.eval().to(find_device(device)), processor, rows, precision, base_rate, batch_size)
    place = save_calibration(found.fields, folder, out)
    _print(found, place)


def main() -> None:
    """Run the verb with the arguments of the process."""
    run_verb("calibrate")


def _print(found: Any, place: Path) -> None:
    figures = found.figures
    say(f"{found.rows:,} rows, of which {found.nothing:,} name nothing; {found.right:,} boxes are right.")
    rate = "as in these rows" if found.base_rate is None else f"{found.base_rate:g}"
    say(f"Share of expressions that name nothing, for which this holds: {rate}.")
    before, after = figures["calibration_error_before"], figures["calibration_error"]
    say(f"Calibration error {before:.3f} before, {after:.3f} after; AUROC {figures['auc']:.3f}.")
    at = f"From a score of {found.fields['score_threshold']:.3f} on a box is found"
    if found.given:
        say(f"{at}: {figures['answered']:.1%} of the expressions, {figures['precision']:.1%} of these boxes right.")
    else:
        say(f"{at}, which no box of these rows reaches: say with --precision what share of right boxes is enough.")
    if "mcc" in figures:
        both = f"N-acc {figures['n_acc']:.1%}, T-acc {figures['t_acc']:.1%}, MCC {figures['mcc']:.3f}"
        say(f"Something or nothing: {both}.")
    if (further := found.fields.get("multiple_threshold")) is not None:
        exact = f"{figures['exact']:.1%} of all rows are exact" if "exact" in figures else "as before, in new scores"
        say(f"Further boxes of an answer count from {further:.3f} on: {exact}.")
    say(", ".join(f"{name} {value:.4g}" for name, value in found.fields.items() if value is not None))
    counts = {"are right": found.right, "are wrong": found.rows - found.right, "reach the threshold": found.given}
    for what, count in counts.items():
        if 0 < count < FEW:
            say(f"Few of these boxes {what} ({count}): calibrate on more rows before you rely on it.")
    say(f"Written: {(place / 'config.json').resolve()}")
    if (place / "onnx").is_dir():
        say(f"The files in {place / 'onnx'} hold the old score: hivg export {place} --out {place} writes them anew.")
