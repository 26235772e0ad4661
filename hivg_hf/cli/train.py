"""`hivg train`: run a recipe. The same command again resumes the run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from . import MODEL_NAMES, note_what_tiny_knows, run_verb
from ._options import BoxFormat, Column, Quiet, ReaderOption, reader_options


def train(
    recipe: Annotated[
        str | None, typer.Argument(help="Recipe: a file, or the name of one that ships, such as refcoco-base.")
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY.SUB=VALUE]...",
            help="Values that override the recipe's, such as seed=3 phases.stage_1.epochs=5.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; runs/NAME by default.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Instead of a recipe: your own CSV, JSONL or Parquet file.")
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of the pictures that --data names.")] = None,
    base: Annotated[
        str | None,
        typer.Option(
            help=f"What --data trains: {MODEL_NAMES} A plain CLIP gets new bridges and heads. Default: tiny."
        ),
    ] = None,
    val: Annotated[
        Path | None, typer.Option(help="Validation file; by default a part of --data is split off.")
    ] = None,
    box_format: BoxFormat = None,
    option: ReaderOption = None,
    column: Column = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over --data in each phase.", min=0)] = None,
    lr: Annotated[
        float | None,
        typer.Option(help="Learning rate of the first phase on --data; later phases keep their ratio to it.", min=0),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows of --data in an optimizer step.", min=1)] = None,
    device: Annotated[
        str | None,
        typer.Option(help="Where to train: cpu, cuda, cuda:1, mps. Default: an accelerator, if there is one."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Random seed of the run (only with --data). Default: 13.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and train nothing.")] = False,
    allow_code: Annotated[
        bool,
        typer.Option("--allow-code", help="Let the recipe name code, package.module:function, and run it."),
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Train by a recipe, or on your own data, phase after phase; started again, it resumes.

    On several processes: accelerate launch --config_file CONFIG -m hivg_hf train RECIPE
    """
    import logging

    from hivg_hf.data.readers import DATA_SUFFIXES
    from hivg_hf.hub import DEFAULT_MODEL
    from hivg_hf.recipes import override
    from hivg_hf.training import load_recipe, parse_recipe, plan_user_training
    from hivg_hf.training.launch import (
        announcer,
        check_launch,
        count_processes,
        describe_processes,
        quiet_libraries,
    )
    from hivg_hf.utils.devices import choose_device
    from hivg_hf.utils.plugins import allowing_code

    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("hivg_hf").setLevel(logging.INFO if announcer() is typer.echo else logging.WARNING)
    quiet_libraries()
    if device is not None:
        choose_device(device)
    check_launch()
    changes = list(change or ())
    if recipe is not None and data is not None and "=" in recipe:  # with --data, the first word is a change too
        recipe, changes = None, [recipe, *changes]
    if (recipe is None) == (data is None):
        raise ValueError("Name a recipe, for example hivg-tiny-refshapes, or your own data with --data.")
    if recipe is not None and (Path(recipe).suffix.lower() in {*DATA_SUFFIXES} - {".yaml"} or Path(recipe).is_dir()):
        raise ValueError(
            f"{recipe} is data, where a recipe (a YAML file or its name) was expected: write --data {recipe}."
        )
    own_data = {
        "--images": images, "--base": base, "--val": val, "--box-format": box_format, "--option": option,
        "--column": column, "--epochs": epochs, "--seed": seed, "--lr": lr, "--batch-size": batch_size,
    }  # fmt: skip
    given = [name for name, value in own_data.items() if value not in (None, [])]
    if recipe is not None and given:
        raise ValueError(
            f"{', '.join(given)} {'goes' if len(given) == 1 else 'go'} with --data; a recipe says all of this itself. "
            f"Change {recipe}, or omit {'it' if len(given) == 1 else 'them'}."
        )
    say = announcer()
    say(describe_processes())
    if base is None and data is not None:
        note_what_tiny_knows(DEFAULT_MODEL, option="--base", quiet=quiet)
    if recipe is not None:
        plan = load_recipe(recipe, changes, allow_code)
    else:
        if epochs == 0:
            raise ValueError("--epochs must be above 0, got 0: --dry-run prints the plan and trains nothing.")
        reading = reader_options(option, column, None if images is None else [images], box_format)
        _refuse_settings(reading, own_data)
        folders = reading.pop("images", None)
        own = plan_user_training(
            data=str(data),
            images=folders if images is None else str(images),
            base=base or DEFAULT_MODEL,
            out=None if out is None else str(out),
            val=None if val is None else str(val),
            epochs=epochs,
            seed=13 if seed is None else seed,
            learning_rate=lr,
            batch_size=batch_size,
            **reading,
        )
        plan = parse_recipe(override(own, changes), allow_code)
    folder = out or Path("runs") / plan.name
    if dry_run:
        from hivg_hf.training import check_before_training, describe_plan, plan_training

        with allowing_code(allow_code):
            missing = check_before_training(plan, folder, planning=True)
            say(describe_plan(plan_training(plan, count_processes())))
        if missing:
            say("\nNot there yet:\n" + "\n".join(f"  {line}" for line in missing))
        return
    from hivg_hf.training import StagedTraining
    from hivg_hf.training.results import describe_outcome

    say(f"Run: {folder.resolve()}")
    results = StagedTraining(plan, folder, allow_code).run()
    say(f"Model: {(folder / results['model']).resolve()}")
    if (folder / "training-curves.png").is_file():  # not drawn where matplotlib is not installed
        say(f"Curves: {(folder / 'training-curves.png').resolve()}")
    say(f"Results: {(folder / 'results.json').resolve()}")
    say(describe_outcome(folder, results))


def _refuse_settings(reading: Mapping[str, Any], own_data: Mapping[str, Any]) -> None:
    """Refuse `--option seed=3` and the like: they say how data is read, and these say what is read or trained.

    Raises:
        ValueError: with what to write in its place.
    """
    flags = {flag.strip("-").replace("-", "_"): flag for flag in own_data} | {"learning_rate": "--lr"}
    flags |= {"data": "--data", "source": "--data", "out": "--out", "device": "--device"}
    for name in reading.keys() & flags.keys() - {"images", "box_format"}:
        raise ValueError(
            f"--option {name} is about the training, and --option says how the data is read: write {flags[name]} "
            f"{reading[name]}."
        )
    for name in reading.keys() & {"split", "streaming"}:
        raise ValueError(
            f"--option {name} does not go with --data, which reads the splits train and val, or holds images out: "
            "omit it, name a table for validation with --val, or write a recipe."
        )


def main() -> None:
    """Entry of scripts/train.py."""
    run_verb("train")
