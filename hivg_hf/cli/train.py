"""`hivg train`: run a recipe. The same command again goes on where the last one stopped."""

from pathlib import Path
from typing import Annotated, Any

import typer

from . import run_verb


def train(
    recipe: Annotated[
        str | None, typer.Argument(help="Recipe: a file, or the name of one that ships, as refcoco-base.")
    ] = None,
    change: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY.SUB=VALUE]...",
            help="Values that take the place of the recipe's, as in seed=3 phases.stage_1.epochs=5.",
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
            help="What --data trains: folder or Hub id of a HiVG or CLIP model. Default: `tiny`, the shipped one."
        ),
    ] = None,
    val: Annotated[
        Path | None, typer.Option(help="Validation file; by default a part of --data is split off.")
    ] = None,
    box_format: Annotated[str | None, typer.Option(help="Of --data: xyxy, xywh, cxcywh.")] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(help="How --data is read, KEY=VALUE, as in multi_target=union; may be given again."),
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over --data in each phase.")] = None,
    seed: Annotated[int | None, typer.Option(help="Random seed of the run (only with --data). Default: 13.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and train nothing.")] = False,
) -> None:
    """Train by a recipe, or on your own data, phase after phase; started again, it goes on where it was.

    On several processes: accelerate launch --config_file CONFIG scripts/train.py RECIPE
    """
    import logging

    from hivg_hf.recipes import override
    from hivg_hf.training import load_recipe, parse_recipe
    from hivg_hf.training.launch import announcer, check_launch, count_processes, describe_processes, quiet_libraries

    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("hivg_hf").setLevel(logging.INFO if announcer() is typer.echo else logging.WARNING)
    quiet_libraries()
    check_launch()
    changes = list(change or ())
    if recipe is not None and data is not None and "=" in recipe:  # with --data, the first word is a change too
        recipe, changes = None, [recipe, *changes]
    if (recipe is None) == (data is None):
        raise ValueError("Name a recipe, for example hivg-tiny-refshapes, or your own data with --data.")
    own_data = {
        "--images": images, "--base": base, "--val": val, "--box-format": box_format, "--option": option,
        "--epochs": epochs, "--seed": seed,
    }  # fmt: skip
    given = [name for name, value in own_data.items() if value not in (None, [])]
    if recipe is not None and given:
        raise ValueError(
            f"{', '.join(given)} {'goes' if len(given) == 1 else 'go'} with --data; a recipe says all of this itself. "
            f"Change {recipe}, or omit {'it' if len(given) == 1 else 'them'}."
        )
    say = announcer()
    say(describe_processes())
    if recipe is not None:
        plan = load_recipe(recipe, changes)
    else:
        own = _plan_own_data(
            data, images, base or "tiny", val, out, box_format, option, epochs, 13 if seed is None else seed
        )
        plan = parse_recipe(override(own, changes))
    folder = out or Path("runs") / plan.name
    if dry_run:
        from hivg_hf.training import check_before_training, describe_plan, plan_training

        missing = check_before_training(plan, folder, planning=True)
        say(describe_plan(plan_training(plan, count_processes())))
        if missing:
            say("\nNot there yet:\n" + "\n".join(f"  {line}" for line in missing))
        return
    from hivg_hf.training import StagedTraining

    say(f"Run: {folder.resolve()}")
    results = StagedTraining(plan, folder).run()
    say(f"Model: {(folder / results['model']).resolve()}")
    if (folder / "training-curves.png").is_file():  # not drawn where matplotlib is not installed
        say(f"Curves: {(folder / 'training-curves.png').resolve()}")
    say(f"Results: {(folder / 'results.json').resolve()}")


def _plan_own_data(
    data: Path | None,
    images: Path | None,
    base: str,
    val: Path | None,
    out: Path | None,
    box_format: str | None,
    option: list[str] | None,
    epochs: float | None,
    seed: int,
) -> dict[str, Any]:
    """A recipe for somebody's own file, with defaults by its size."""
    from hivg_hf.training import plan_user_training
    from hivg_hf.utils.strict_mapping import read_options

    if base == "tiny":
        from hivg_hf.checkpoints import TINY_CHECKPOINT

        base = TINY_CHECKPOINT
    return plan_user_training(
        data=str(data),
        images=None if images is None else str(images),
        base=base,
        out=None if out is None else str(out),
        box_format=box_format,
        val=None if val is None else str(val),
        epochs=epochs,
        seed=seed,
        **read_options(option or [], "--option"),
    )


def main() -> None:
    """Entry of scripts/train.py."""
    run_verb("train")
