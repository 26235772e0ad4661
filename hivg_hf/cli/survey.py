"""`hivg survey`: look at datasets before anything is trained on them, and write the cache that reads fast.

    hivg survey refcoco:train refcoco:val refcoco:testA --root /data --out prepared
    hivg survey my.csv:train my.csv:val --images photos --box-format xyxy --out prepared
    hivg survey my.csv:all --box-format xyxy --column expression=caption --out prepared
    hivg survey refcoco:val --root /data --out prepared --for eval --model FOLDER_OR_HUB_ID

Writes survey.json (counts against the published ones, statistics, every faulty row, images that training and
evaluation share), problems.txt, and for each split a contact sheet with boxes drawn. With `--for`, also the folder
`cache`, which is a source like any other: `load_grounding_dataset("prepared/cache", "val")`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from . import MODEL_NAMES, run_verb, say
from ._options import BoxFormat, Column, Images, ReaderOption, in_shell_words, reader_options

if TYPE_CHECKING:
    from hivg_hf.data.prepare import Survey


def survey(
    data: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE:SPLIT...", help="Source and split, such as refcoco:val, or a file of your own."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the survey and the cache.")],
    root: Annotated[str | None, typer.Option(help="Folder of the annotations.")] = None,
    images: Images = None,
    box_format: BoxFormat = None,
    column: Column = None,
    holdout: Annotated[
        float | None, typer.Option(help="Share of the images that become val in a file without splits.")
    ] = None,
    option: ReaderOption = None,
    multi_target: Annotated[
        Literal["keep", "union", "drop"] | None, typer.Option(help="What to do with rows that have several targets.")
    ] = None,
    on_error: Annotated[Literal["raise", "skip"], typer.Option(help="skip leaves faulty rows out.")] = "raise",
    quick: Annotated[
        bool, typer.Option("--quick", help="Check only the start and the end of picture files; decode none.")
    ] = False,
    purpose: Annotated[
        Literal["eval", "train"] | None, typer.Option("--for", help="Also write a cache for this use.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help=f"Model whose processor letterboxes the cache for eval: {MODEL_NAMES}")
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed of the rows on the contact sheets.")] = 0,
    allow_code: Annotated[
        bool, typer.Option("--allow-code", help="Let SOURCE name code, package.module:function, and run it.")
    ] = False,
) -> None:
    """Look at a dataset: counts, faults, shared images, contact sheets. Exits with status 1 if rows are unusable."""
    import logging

    from hivg_hf.data.prepare import summarize, write_survey
    from hivg_hf.data.prepare import survey as look_at
    from hivg_hf.utils.held_folder import folder_lock
    from hivg_hf.utils.plugins import allowing_code

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if model is not None and purpose != "eval":
        raise ValueError("--model letterboxes a cache for eval: add --for eval, or omit it.")
    if purpose == "eval" and model is None:
        raise ValueError("A cache for eval is letterboxed for one model: say which with --model.")
    image_processor = None if model is None else _image_processor(model)
    more = {"root": root, "holdout": holdout, "multi_target": multi_target}
    shared = reader_options(option, column, images, box_format, **more)
    specs = [{**_source_and_split(name), **shared} for name in data]
    with folder_lock(out, "writing to"):
        with allowing_code(allow_code):
            result = look_at(specs, decode=not quick)
        files = write_survey(result, out, seed)
        say(f"\n{in_shell_words(summarize(result))}\n\nLook at:")
        say("".join(f"  {path.resolve()}\n" for path in files), nl=False)
        if purpose:
            say(f"  {_make_cache(result, out, purpose, image_processor, on_error).resolve()}")
    if result.problems and on_error == "raise":
        raise typer.Exit(1)


def _source_and_split(name: str) -> dict[str, str]:
    if Path(name).exists():  # all of somebody's own file
        return {"source": name, "split": "all"}
    source, colon, split = name.rpartition(":")
    if not colon or not source or not split:
        raise ValueError(f"{name!r} names no split; write SOURCE:SPLIT, for example refcoco:val.")
    return {"source": source, "split": split}


def _image_processor(model: str) -> Any:
    """What letterboxes for a model, by any of its names."""
    from hivg_hf.hub import download_checked, resolve_model
    from hivg_hf.modeling import HiVGProcessor

    alone = (Path(model) / "processor_config.json").is_file()  # of a model, or of none yet
    folder = model if alone else download_checked(resolve_model(model))
    return HiVGProcessor.from_pretrained(folder, trust_remote_code=False).image_processor


def _make_cache(result: Survey, out: Path, purpose: Any, image_processor: Any, on_error: str) -> Path:
    """Write the cache of everything that was surveyed.

    Raises:
        BrokenRowsError: some rows cannot be used, and leaving them out was not asked for.
        ValueError: two sources have a split of the same name.
    """
    from hivg_hf.data.cache import write_cache
    from hivg_hf.data.rows import BrokenRowsError

    if result.problems and on_error == "raise":
        raise BrokenRowsError("the data", "as a whole", result.problems, sum(len(s.rows) for s in result.splits))
    names = [split.split for split in result.splits]
    if len(set(names)) < len(names):
        raise ValueError(f"one cache cannot hold two splits of one name ({', '.join(names)}); prepare them apart.")
    return write_cache({split.split: split.rows for split in result.splits}, out / "cache", purpose, image_processor)


def main() -> None:
    """Run the verb with the process's own arguments."""
    run_verb("survey")
