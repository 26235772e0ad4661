"""Which start is better for new models: `initialization: xavier` (ours) or `official` (the authors' constructor)?

    python -m benchmarks.starts OUT --results benchmarks/results/starts/DATE-cpu.json

New models of the shape `tiny`, whose bridges and heads start either way: around the trained CLIP of the checkpoint in
the package, as most new models begin, or with `--pretrain-steps` from nothing, each run with towers of its own. Then
assisted grounding of attributes as in the recipe `hivg-tiny-refshapes`, masks included: the mask head differs most.
Three seeds, each once with either start on the same rows in the same order. A run that was killed
resumes; the results file holds what is finished.
"""

import argparse
import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hivg_hf.checkpoints import TINY_CHECKPOINT
from hivg_hf.data import load_grounding_dataset
from hivg_hf.evaluation import EvaluationSettings, evaluate_model
from hivg_hf.modeling.modeling_hivg import HiVGForVisualGrounding
from hivg_hf.modeling.processing_hivg import HiVGProcessor
from hivg_hf.training import StagedTraining, parse_recipe
from hivg_hf.training.pretraining import plain_clip
from hivg_hf.utils.atomic import atomic_folder, write_json

STARTS = ("xavier", "official")
SEEDS = (1, 2, 3)
TEST: dict[str, Any] = {"split": "val", "seed": 4100, "size": 1000, "kinds": ["attribute"], "stored_side": 112}
FIGURES = ("acc@0.5", "mean_iou", "mask_miou")
T95_OF_THREE = 4.303  # Student's t, two degrees of freedom


def main(arguments: list[str] | None = None) -> None:
    """Train and measure what is not there yet, then compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the runs")
    parser.add_argument("--results", type=Path, required=True, help="JSON file for the figures")
    parser.add_argument("--pretrain-steps", type=int, default=0, help="above 0: from nothing")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch", type=int, default=16, help="rows of a grounding step; twice as many before")
    parser.add_argument("--rows", type=int, default=12_000, help="training rows")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    if not options.pretrain_steps and not (options.out / "clip").is_dir():
        with atomic_folder(options.out / "clip") as folder:
            plain_clip(HiVGForVisualGrounding.from_pretrained(TINY_CHECKPOINT)).save_pretrained(folder)
    runs: list[dict[str, Any]] = []
    for seed in SEEDS:
        for start in STARTS:
            runs.append(run(start, seed, options))
            write_json(options.results, {**describe(options), "runs": runs, "differences": compare(runs)})
            logging.info("%s", {name: runs[-1][name] for name in ("start", "seed", *FIGURES)})


def recipe(start: str, seed: int, options: argparse.Namespace) -> Any:
    """One run's recipe; runs of a seed differ in `initialization` alone."""
    rows = {
        **{"source": "refshapes", "split": "train", "seed": 1, "size": options.rows, "expressions_per_scene": 4},
        **{"kinds": ["attribute"], "no_target_fraction": 0.1, "stored_side": 112, "objects": True, "workers": 1},
        "cache_dir": str(options.out / "rows"),
    }
    shared = {"learning_rate": 1.0e-3, "warmup": 50, "betas": [0.9, 0.98], "weight_decay": 0.01, "max_grad_norm": 1.0}
    often = {"keep": "last", "save_every": 250, "log_every": 50}
    model: dict[str, Any] = {"preset": "tiny", "tokenizer": "refshapes", "config": {"initialization": start}}
    phases = [
        {
            **{"name": "attributes", "train": "assisted", "steps": options.steps, "batch_size": options.batch},
            **{**shared, **often, "loss_weights": {"contrastive": 0.1}},
        }
    ]
    if options.pretrain_steps:
        towers = {"name": "pretrain", "train": "pretrain", "steps": options.pretrain_steps}
        phases.insert(0, {**towers, "batch_size": 2 * options.batch, **shared, **often})
    else:
        model["clip"] = str(options.out / "clip")
    return parse_recipe(
        {"name": f"start-{start}-{seed}", "seed": seed, "model": model, "data": {"train": rows}, "phases": phases}
    )


def run(start: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train one and measure it; what was measured before is read."""
    folder = options.out / f"{start}-{seed}"
    measured = folder / "measured.json"
    if measured.is_file():
        return json.loads(measured.read_text(encoding="utf-8"))
    began = time.perf_counter()
    results = StagedTraining(recipe(start, seed, options), folder).run()
    trained = folder / results["model"]
    model, processor = HiVGForVisualGrounding.from_pretrained(trained), HiVGProcessor.from_pretrained(trained)
    rows = load_grounding_dataset("refshapes", **TEST, cache_dir=str(options.out / "rows"))
    evaluation = evaluate_model(model, processor, rows, EvaluationSettings(batch_size=64, masks=True, progress=False))
    found = {
        **{"start": start, "seed": seed, "seconds": round(time.perf_counter() - began)},
        **{name: evaluation.results["figures"][name] for name in FIGURES},
    }
    write_json(measured, found)
    return found


def compare(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Official minus xavier by figure."""
    xavier, official = ([one for one in runs if one["start"] == start] for start in STARTS)
    return paired(xavier, official, FIGURES)


def paired(
    first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]], figures: Sequence[str]
) -> dict[str, Any]:
    """Second minus first by figure: each seed's, their mean, and its 95 % interval where three seeds are done.

    Args:
        first, second: runs with their `seed`; only seeds that both have are compared.
        figures: names of what was measured.
    """
    one, other = ({run["seed"]: run for run in runs} for runs in (first, second))
    seeds = sorted(set(one) & set(other))
    compared = {}
    for name in figures if seeds else ():
        each = np.array([other[seed][name] - one[seed][name] for seed in seeds])
        half = T95_OF_THREE * each.std(ddof=1) / math.sqrt(len(each)) if len(each) == len(SEEDS) else None
        mean = float(each.mean())
        interval = None if half is None else [mean - half, mean + half]
        compared[name] = {"each_seed": each.tolist(), "mean": mean, "interval": interval}
    return compared


def describe(options: argparse.Namespace) -> dict[str, Any]:
    """What ran."""
    return {
        "around": "nothing" if options.pretrain_steps else "the CLIP of hivg-tiny-refshapes",
        "steps": {"pretrain": options.pretrain_steps, "attributes": options.steps},
        "batch_size": {"pretrain": 2 * options.batch, "attributes": options.batch},
        "training_rows": options.rows,
        "test": TEST,
    }


if __name__ == "__main__":
    main()
