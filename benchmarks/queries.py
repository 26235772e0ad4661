"""What do several queries cost where one thing is named? The shipped recipe once more, with a single query.

    python -m benchmarks.queries OUT --start RUN/phases/03-everything/result --several RUN/model \
        --results benchmarks/results/queries/DATE-cpu.json

`--start` is the model that both begin with: a run of the recipe `hivg-tiny-refshapes` after its phase `everything`.
From there the recipe's phases, steps, rates and rows are repeated with `num_queries: 1` and without plural
expressions, which one query cannot answer. Then both models answer the same rows, each of which names one thing. A run
that was killed resumes. The figures in `benchmarks/results/queries` end after the phase `instances` (`--until`).
"""

import argparse
import logging
from pathlib import Path
from typing import Any

import torch

from hivg_hf.data import load_grounding_dataset
from hivg_hf.evaluation import EvaluationSettings, compare_rows, evaluate_model
from hivg_hf.evaluation.sources import open_model
from hivg_hf.recipes.content import read_recipe
from hivg_hf.training import StagedTraining, parse_recipe
from hivg_hf.utils.atomic import write_json

SHARED_UNTIL = "everything"  # the recipe's last phase before there are several queries
TEST: dict[str, Any] = {"split": "val", "seed": 7, "masks": False}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Train the one, measure both, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the run")
    parser.add_argument("--start", required=True, help="model that both begin with")
    parser.add_argument("--several", required=True, help="model with several queries, after the last of the phases")
    parser.add_argument("--results", type=Path, required=True, help="JSON file for the figures")
    parser.add_argument("--until", help="last phase to repeat; by default all of them")
    parser.add_argument("--rows", type=int, default=10_000, help="rows that both answer")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    content = one_query(read_recipe("hivg-tiny-refshapes"), options.start, options.until)
    results = StagedTraining(parse_recipe(content), options.out).run()
    found = {
        "phases": {phase["name"]: phase["steps"] for phase in content["phases"]},
        "test": {**TEST, "rows": options.rows},
        **compare(str(options.out / results["model"]), options.several, options.rows),
    }
    write_json(options.results, found)
    print(found)
    return found


def one_query(recipe: dict[str, Any], start: str, until: str | None = None) -> dict[str, Any]:
    """The recipe after its shared phases, for one query and without plural expressions."""
    names = [phase["name"] for phase in recipe["phases"]]
    last = names.index(until) if until else len(names) - 1
    phases = recipe["phases"][names.index(SHARED_UNTIL) + 1 : last + 1]
    return without_plurals({**recipe, "model": {"checkpoint": start}, "phases": phases})


def without_plurals(content: Any) -> Any:
    """A part of a recipe with one query and no plural expressions wherever it says how many."""
    if isinstance(content, dict):
        changes = {"num_queries": 1, "plural_fraction": 0.0}
        return {key: changes.get(key, without_plurals(value)) for key, value in content.items()}
    return [without_plurals(one) for one in content] if isinstance(content, list) else content


def compare(one: str, several: str, size: int) -> dict[str, Any]:
    """Several queries minus one on rows that name one thing, paired by row."""
    rows = load_grounding_dataset("refshapes", **TEST, size=size)
    settings = EvaluationSettings(batch_size=64, masks=False, progress=False)
    first, second = (evaluate_model(*open_model(folder)[:2], rows, settings).rows for folder in (one, several))
    return compare_rows(first, second)


if __name__ == "__main__":
    main()
