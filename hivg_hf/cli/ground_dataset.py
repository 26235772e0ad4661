"""`hivg ground-dataset IN OUT`: ground every row of a table, on one process or a Ray cluster.

    hivg ground-dataset pairs.csv grounded --column image=file_name --column expression=caption
    hivg ground-dataset 'shards/*.tar' grounded --image-column jpg --text-column json.caption
    hivg ground-dataset owner/pairs grounded --split train --push owner/pairs-grounded
    hivg ground-dataset pairs.parquet grounded --engine ray --concurrency 8 --num-gpus 0.5

Exit status: 0 all rows answered, 1 some rows have an error, 2 nothing could be done.
"""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from tqdm import tqdm

from hivg_hf.hub import DEFAULT_MODEL

from . import EXIT_STATUS_SOME_FAILED, Model, note_what_tiny_knows, run_verb, say
from ._options import Column, Dtype, Quiet, ReduceJpeg, TrustRemoteCode, in_shell_words

if TYPE_CHECKING:
    from hivg_hf.inference.dataset_input import DatasetInput
    from hivg_hf.inference.dataset_run import DatasetRun, Progress

ENGINES = ("local", "ray")
# Names that tables commonly give to the two columns, tried in order where none is named.
IMAGE_COLUMNS = ("image", "file_name", "image_path", "path", "jpg", "png", "jpeg", "webp")
TEXT_COLUMNS = ("expression", "caption", "text", "txt", "sentence", "phrase", "json.caption")


def ground_dataset(
    source: Annotated[
        str,
        typer.Argument(
            metavar="IN",
            help="A Parquet, CSV, TSV or JSON Lines file, a WebDataset tar, a quoted pattern of them, a folder, or a "
            "Hub dataset: owner/name or owner/name@revision.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT",
            help="Folder for Parquet shards with the columns of IN and box, score, found, error. The same command "
            "again computes the shards that are missing.",
        ),
    ],
    image_column: Annotated[
        str, typer.Option(help="Column of pictures: embedded, or file names beside IN. Default: a common name.")
    ] = "",
    text_column: Annotated[
        str, typer.Option(help="Column of expressions, one or a list per row; a.b is a field. Default: a common name.")
    ] = "",
    column: Column = None,
    model: Model = "",
    split: Annotated[str | None, typer.Option(help="Split of a Hub dataset. Default: its only one.")] = None,
    config: Annotated[str | None, typer.Option(help="Configuration of a Hub dataset. Default: its only one.")] = None,
    streaming: Annotated[
        bool, typer.Option(help="Read a Hub dataset over the network as it is needed, or download it first.")
    ] = True,
    images: Annotated[
        Path | None, typer.Option(help="Folder that relative file names start from. Default: the folder of IN.")
    ] = None,
    allow_urls: Annotated[
        bool, typer.Option("--allow-urls", help="Fetch pictures that rows name by http or https URLs.")
    ] = False,
    batch_size: Annotated[int, typer.Option(help="Pairs of picture and expression per pass.", min=1)] = 16,
    num_workers: Annotated[int, typer.Option(help="Processes that open pictures beside each model.", min=0)] = 0,
    shard_size: Annotated[
        int, typer.Option(help="Rows per shard; at most that much work is lost when the run is killed.", min=1)
    ] = 5000,
    mask: Annotated[bool, typer.Option("--mask", help="Add the column mask, COCO run lengths.")] = False,
    threshold: Annotated[
        float | None, typer.Option(help="Scores below it mean 'not found'; docs/scores.md says how to choose it.")
    ] = None,
    multiple: Annotated[
        bool,
        typer.Option("--multiple", help="Add the columns boxes and scores: all that reach the threshold, best first."),
    ] = False,
    reduce_jpeg: ReduceJpeg = False,
    prefix: Annotated[str, typer.Option(help="Put before the added columns' names where IN has them too.")] = "",
    device: Annotated[
        str | None,
        typer.Option(help="cpu, cuda:0, ... (of Ray actors too). Default: an accelerator if there is one."),
    ] = None,
    dtype: Dtype = None,
    backend: Annotated[str | None, typer.Option(help="torch or onnx. Default: torch.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, bf16 or int8. Default: fp32.")] = None,
    engine: Annotated[str, typer.Option(help="local: this process; ray: actors on a Ray cluster.")] = "local",
    address: Annotated[
        str | None, typer.Option(help="Ray cluster. Default: RAY_ADDRESS, or a local one for this run.")
    ] = None,
    concurrency: Annotated[int, typer.Option(help="Ray actors, each with a model of its own.", min=1)] = 1,
    num_gpus: Annotated[float, typer.Option(help="GPUs of each Ray actor; 0.5 lets two share one.", min=0)] = 0,
    push: Annotated[
        str | None, typer.Option(help="Upload the result, with a card, as this dataset on the Hub: owner/name.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new Hub dataset visible to you alone.")] = False,
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
) -> None:
    """Ground every row of a table: adds box, score, found and error, and writes Parquet shards."""
    from hivg_hf.utils.strict_mapping import refuse_other

    refuse_other("--engine", engine, ENGINES)
    if engine != "ray" and (address or concurrency > 1 or num_gpus):
        raise ValueError("--address, --concurrency and --num-gpus are options of --engine ray.")
    from hivg_hf.inference import DatasetInput, DatasetRun, GroundBatch
    from hivg_hf.utils.devices import find_device
    from hivg_hf.utils.held_folder import folder_lock, sweep_leftovers

    if device is not None and engine != "ray":  # an actor may run on another machine
        device = find_device(device)
    image_column, text_column = _said_columns(column, image_column, text_column)
    rows = DatasetInput(source, split, config, streaming)
    options = {"device": device, "dtype": dtype, "backend": backend, "precision": precision}
    ground = GroundBatch(
        model or DEFAULT_MODEL,
        image_column or _first_of(IMAGE_COLUMNS, rows, "--image-column"),
        text_column or _first_of(TEXT_COLUMNS, rows, "--text-column"),
        batch_size=batch_size,
        num_workers=num_workers,
        mask=mask,
        threshold=threshold,
        multiple=multiple,
        images=images or rows.folder,
        allow_paths=rows.is_local and rows.kind != "tar",  # the pictures of a tar are in it
        allow_urls=allow_urls,
        reduce_jpeg=reduce_jpeg,
        prefix=prefix,
        engine={**options, "trust_remote_code": trust_remote_code or None},
    )
    run = DatasetRun(rows, ground, out, shard_size)
    note_what_tiny_knows(model or DEFAULT_MODEL, quiet=quiet)
    with folder_lock(run.folder, "writing to"):
        sweep_leftovers(run.folder)
        failed = _compute(run, engine, address, concurrency, num_gpus)
        if gone := run.missing():
            raise FileNotFoundError(
                f"{len(gone)} of {len(run.parts)} shards are gone from {run.folder}, which was changed while this "
                "process was writing to it: run the same again."
            )
    if push:
        from hivg_hf.inference.dataset_push import push_run

        say(f"hivg: pushed to {push_run(run, push, private)}", err=True)
    if failed:
        raise typer.Exit(EXIT_STATUS_SOME_FAILED)


def main() -> None:
    """Run the verb with the arguments of the process."""
    run_verb("ground-dataset")


def _shards(count: int) -> str:
    return f"{count} shard{'s' * (count != 1)}"


def _compute(run: "DatasetRun", engine: str, address: str | None, concurrency: int, num_gpus: float) -> int:
    """Compute the missing shards and report; returns how many of their rows have an error."""
    missing = run.missing()
    rows = failed = 0
    start = time.monotonic()
    before = sum(run.read_progress(part).rows for part in set(range(len(run.parts))) - set(missing))
    if before:
        say(f"hivg: {before} rows in {_shards(len(run.parts) - len(missing))} were done before", err=True)
    with tqdm(total=run.rows, initial=before, unit=" rows", file=sys.stderr) as bar:

        def report(progress: "Progress") -> None:
            nonlocal rows, failed
            rows, failed = rows + progress.rows, failed + progress.failed
            bar.set_postfix(errors=failed, refresh=False)
            bar.update(progress.rows)

        if engine == "ray" and missing:
            from hivg_hf.inference.ray import run_parts

            run_parts(run, missing, report, address=address, concurrency=concurrency, num_gpus=num_gpus)
        else:
            for part in missing:
                run.run(part, report)
    seconds = time.monotonic() - start
    errors = f"; {failed} have an error" if failed else ""
    rate = f"{rows} rows in {seconds:.1f} s ({rows / max(seconds, 1e-9):.1f} rows/s){errors}"
    say(f"hivg: {rate}; {_shards(len(run.parts))} in {run.folder.resolve()}", err=True)
    if failed:
        say(f"hivg: the first error: {in_shell_words(run.first_error(missing))}", err=True)
    return failed


def _said_columns(column: list[str] | None, image: str, text: str) -> tuple[str, str]:
    """The columns of pictures and of expressions, by `--column` or by the options of their own; "" of one not said.

    Raises:
        ValueError: another column is named, or one twice.
    """
    from hivg_hf.utils.strict_mapping import read_options

    columns = read_options(column or [], "--column", as_text=True)
    if others := [name for name in columns if name not in ("image", "expression")]:
        raise ValueError(f"--column {others[0]}: of a table without boxes, only image and expression are read.")
    if twice := [name for name, own in (("image", image), ("expression", text)) if own and name in columns]:
        raise ValueError(
            f"--column {twice[0]}={columns[twice[0]]} and another option name one column; omit one of them."
        )
    return columns.get("image", image), columns.get("expression", text)


def _first_of(names: tuple[str, ...], rows: "DatasetInput", option: str) -> str:
    columns = rows.schema.names
    for name in names:
        if name in columns or ("." in name and name.partition(".")[0] in columns):
            return name
    if not columns:
        raise ValueError(f"'{rows.source}' is empty: give a table with a line of column names and rows below it.")
    raise ValueError(f"'{rows.source}' has the columns {', '.join(columns)}: choose one with {option}.")
