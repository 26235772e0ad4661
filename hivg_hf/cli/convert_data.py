"""`hivg convert-data`: data in any format that is read, written in another.

    hivg convert-data my.csv coco/ --to coco --box-format xyxy
    hivg convert-data voc-folder/ train/ --to odvg --option several=apart
    hivg convert-data refcoco out/ --to qwen --split val --option root=/data

Every split becomes a file of its own. docs/data.md says what each format keeps.
"""

from pathlib import Path
from typing import Annotated

import typer

from . import run_verb, say
from ._options import BoxFormat, Column, Images, ReaderOption, reader_options


def convert_data(
    source: Annotated[str, typer.Argument(metavar="IN", help="File, folder, or name of a dataset; docs/data.md.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the files; created if missing.")],
    to: Annotated[str, typer.Option(help="Format to write: coco, odvg, qwen, label-studio, yolo or parquet.")],
    split: Annotated[
        list[str] | None, typer.Option(help="Split to convert; repeatable. Default: all that the source has.")
    ] = None,
    images: Images = None,
    box_format: BoxFormat = None,
    column: Column = None,
    option: ReaderOption = None,
    copy_images: Annotated[
        bool, typer.Option("--copy-images", help="Copy the pictures into OUT instead of referring to them.")
    ] = False,
    coordinates: Annotated[
        str | None, typer.Option(help="For --to qwen: 1000 (Qwen3-VL, the default) or pixels (Qwen2.5-VL).")
    ] = None,
) -> None:
    """Convert data. A row that cannot be used stops it, or is skipped with --option on_error=skip."""
    from hivg_hf.data import NegativeRows, load_grounding_dataset
    from hivg_hf.data.reading import list_splits
    from hivg_hf.data.writers import WRITERS, write_rows

    if to not in WRITERS:
        raise ValueError(f"Unknown format {to!r}; expected one of {', '.join(WRITERS)}.")
    if coordinates is not None and to != "qwen":
        raise ValueError(f"--coordinates belongs to --to qwen; omit it for {to}.")
    options = reader_options(option, column, images, box_format)
    reading = {key: value for key, value in options.items() if key not in ("on_error", "multi_target", "negatives")}
    of_format = {} if coordinates is None else {"coordinates": coordinates}
    for name in split or list_splits(source, **reading):
        rows = load_grounding_dataset(source, name, **options)
        rows = rows.table() if isinstance(rows, NegativeRows) else rows
        written = write_rows(rows, out, to, name, copy_images=copy_images, **of_format)
        say(f"{name}: {written.rows:,} rows in {written.path}")
        for sentence in written.lost:
            say(f"  not kept: {sentence}")


def main() -> None:
    """Entry of `python -m hivg_hf.cli.convert_data`."""
    run_verb("convert-data")
