"""`hivg train`: run a recipe. The same command again goes on where the last one stopped."""

from pathlib import Path
from typing import Annotated

import typer

from . import run_verb


def train(
    recipe: Annotated[Path | None, typer.Argument(help="Recipe file, for example recipes/refcoco-base.yaml.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; runs/NAME by default.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and train nothing.")] = False,
) -> None:
    """Train by a recipe, phase after phase; started again, it goes on where it was.

    On several processes: accelerate launch --config_file recipes/accelerate/multi_gpu.yaml scripts/train.py RECIPE
    """
    import logging

    from ..recipe import load_recipe
    from ..training_launch import announcer, check_launch, describe_processes, quiet_libraries

    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    quiet_libraries()
    check_launch()
    if recipe is None:
        raise ValueError("Name a recipe file, for example recipes/hivg-tiny-refshapes.yaml.")
    plan = load_recipe(recipe)
    say = announcer()
    say(describe_processes())
    from ..staged_training import StagedTraining

    folder = out or Path("runs") / plan.name
    results = StagedTraining(plan, folder).run()
    say(f"Model: {(folder / results['model']).resolve()}")
    say(f"Results: {(folder / 'results.json').resolve()}")


def main() -> None:
    """Entry of scripts/train.py."""
    run_verb("train")
