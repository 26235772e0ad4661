"""What `hivg clean` finds, and what training gains from it: RefShapes with one wrong label in ten.

    python -m benchmarks.clean OUT --results benchmarks/results/clean/DATE-cpu.json

Wrong are, in turn: another object's box, a box shifted by half its side or more, another object's expression.

1. **Ranking**: rows of `val` in the style that the shipped model knows; AUROC of wrong above right labels.
2. **Training**, three seeds: `hivg train --data` with a fixed number of steps, whose last weights are kept, on rows of
   another style, which the model does not know. On all rows with their wrong labels (`dirty`); on those that `hivg
   clean` keeps of them, judged by the model that the dirty list made (`cleaned`); on all rows with their right labels
   (`true`). Measured on other rows.

What is finished is in the results file, and a run that was killed resumes.
"""

import argparse
import hashlib
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch

from hivg_hf import TINY_CHECKPOINT
from hivg_hf.data import load_grounding_dataset
from hivg_hf.data.order import without_image_decoding
from hivg_hf.data.schema import FEATURES
from hivg_hf.evaluation import EvaluationSettings, evaluate_model, predict
from hivg_hf.evaluation.sources import open_model
from hivg_hf.evaluation.suspects import Suspects, find_suspects
from hivg_hf.hub import resolve_model
from hivg_hf.metrics import score_auc
from hivg_hf.training import StagedTraining, parse_recipe, plan_user_training
from hivg_hf.utils.atomic import write_json

from .starts import SEEDS, paired

WRONG_SHARE = 0.1
KINDS = ("swapped box", "shifted box", "wrong expression")
THRESHOLD = 0.5  # the default of `hivg clean`
DRAWS = 500  # of the bootstrap over rows
RANKED: dict[str, Any] = {"split": "val", "seed": 91, "size": 900, "masks": False}
STYLE: dict[str, Any] = {"style": "outline-noise", "masks": False, "stored_side": 112}
VALIDATION: dict[str, Any] = {"split": "val", "seed": 191, "size": 60, **STYLE}
TEST: dict[str, Any] = {"split": "val", "seed": 192, "size": 500, **STYLE}
ARMS = ("dirty", "cleaned", "true")
FIGURES = ("acc@0.5", "mean_iou")


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Rank, then train and measure what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the runs")
    parser.add_argument("--results", type=Path, required=True, help="JSON file for the figures")
    parser.add_argument(
        "--model", default=TINY_CHECKPOINT, help="the checkpoint that ranks and that training begins from"
    )
    parser.add_argument("--ranked", type=int, default=RANKED["size"], help="rows that are ranked")
    parser.add_argument("--rows", type=int, default=1000, help="rows to train on")
    parser.add_argument("--steps", type=int, default=120, help="of each stage")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    options.model = resolve_model(str(options.model))
    found: dict[str, Any] = {
        "weights_sha256": weights_hash(options.model),
        "model": Path(options.model).name,
        "wrong_share": WRONG_SHARE,
    }
    found["ranking"] = rank({**RANKED, "size": options.ranked}, options.model)
    write_json(options.results, found)
    found["training"] = {"rows": options.rows, "steps_of_each_stage": options.steps, "test": TEST, "runs": []}
    for seed in SEEDS:
        for arm in ARMS:
            measured = run(arm, seed, options)
            found["training"]["runs"].append({name: value for name, value in measured.items() if name != "model"})
            found["training"]["differences"] = compare(found["training"]["runs"])
            write_json(options.results, found)
            logging.info("%s", found["training"]["runs"][-1])
    return found


def weights_hash(folder: str) -> str:
    """SHA-256 of a model's weights file."""
    with open(Path(folder) / "model.safetensors", "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def plant(
    spec: dict[str, Any], seed: int, share: float = WRONG_SHARE
) -> tuple[datasets.Dataset, datasets.Dataset, dict[int, str]]:
    """Rows of RefShapes as they are, the same with wrong labels, and the kind of each wrong one by position."""
    true = load_grounding_dataset("refshapes", objects=True, **spec)
    others = load_grounding_dataset("refshapes", foils=True, **spec)  # each expression names another object
    foils = dict(zip(others["sent_id"], others["expression"], strict=True))
    rng = np.random.default_rng(seed)
    chosen = set(rng.choice(len(true), int(len(true) * share), replace=False).tolist())
    rows, kinds = [], {}
    for number, row in enumerate(without_image_decoding(true)):
        if number in chosen:
            kinds[number] = _spoil(row, KINDS[number % 3], foils.get(row["sent_id"]), rng)
        rows.append({name: row[name] for name in FEATURES})
    dirty = datasets.Dataset.from_list(rows, features=FEATURES)
    return true.select_columns(list(FEATURES)), dirty, kinds


def _spoil(row: dict[str, Any], kind: str, foil: str | None, rng: np.random.Generator) -> str:
    """Make a label wrong, by a shift where its scene has no other object to take; returns what was done."""
    box = np.array(row["box"])
    others = [one["box"] for one in row["objects"] if one["box"] and np.abs(np.array(one["box"]) - box).max() > 2]
    if kind == "wrong expression" and foil is not None:
        row["expression"] = foil
        return kind
    if kind == "swapped box" and others:
        row["box"], row["boxes"] = others[0], [others[0]]
        return kind
    moved = _shifted(box, row["width"], row["height"], rng).tolist()
    row["box"], row["boxes"] = moved, [moved]
    return "shifted box"


def _shifted(box: np.ndarray, width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """The box (4,) moved by at least half of one side, within its image; half its coordinates where nothing fits."""
    sides = box[2:] - box[:2]
    for _ in range(100):
        move = rng.uniform(-1, 1, 2) * sides
        moved = box + np.tile(move, 2)
        if np.abs(move / sides).max() >= 0.5 and moved.min() >= 0 and moved[2] <= width and moved[3] <= height:
            return moved
    return box * 0.5


def judge(rows: datasets.Dataset, model: str) -> Suspects:
    """What `hivg clean` finds in rows."""
    opened = open_model(model)
    return find_suspects(rows, predict(opened[0], opened[1], rows, batch_size=32, progress=False))


def rank(spec: dict[str, Any], model: str) -> dict[str, Any]:
    """AUROC of planted errors above right labels, with a 95 % interval over rows."""
    _, dirty, kinds = plant(spec, seed=5)
    return {"rows": spec, **quality(judge(dirty, model), kinds)}


def quality(found: Suspects, kinds: dict[int, str]) -> dict[str, Any]:
    """How well suspicion finds the planted errors."""
    wrong = np.isin(np.arange(len(found.probability)), list(kinds))
    rng = np.random.default_rng(0)
    draws = (rng.integers(0, len(wrong), len(wrong)) for _ in range(DRAWS))
    sampled = [
        score_auc(-found.probability[draw], ~wrong[draw]) for draw in draws if 0 < wrong[draw].sum() < len(draw)
    ]
    by_kind = {}
    for kind in KINDS:
        those = ~wrong | np.isin(np.arange(len(wrong)), [at for at, said in kinds.items() if said == kind])
        by_kind[kind] = float(score_auc(-found.probability[those], ~wrong[those]))
    listed = np.isin(np.arange(len(wrong)), suspicious(found))
    return {
        "auroc": float(score_auc(-found.probability, ~wrong)),
        "interval": np.percentile(sampled, [2.5, 97.5]).tolist(),
        "by_kind": by_kind,
        **{"wrong": int(wrong.sum()), "listed": int(listed.sum()), "wrong_listed": int((listed & wrong).sum())},
    }


def suspicious(found: Suspects) -> Sequence[int]:
    """Positions of the rows that `hivg clean` leaves out of kept.txt."""
    return [at for at, reasons in enumerate(found.reasons) if reasons or found.probability[at] >= THRESHOLD]


def run(arm: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train on one list and measure; what was measured before is read."""
    folder = options.out / f"{arm}-{seed}"
    measured = folder / "measured.json"
    if measured.is_file():
        return json.loads(measured.read_text(encoding="utf-8"))
    began = time.process_time()
    rows, said = _rows_of(arm, seed, options)
    table, held_out = options.out / f"{arm}-{seed}.parquet", options.out / "validation.parquet"
    rows.to_parquet(table)
    load_grounding_dataset("refshapes", **VALIDATION).to_parquet(held_out)
    plan = plan_user_training(str(table), None, options.model, val=str(held_out), seed=seed)
    plan["defaults"] = {key: value for key, value in plan["defaults"].items() if key not in ("epochs", "early_stop")}
    plan["defaults"] |= {"steps": options.steps, "keep": "last", "save_every": options.steps}
    trained = folder / StagedTraining(parse_recipe({**plan, "workers": 0}), folder).run()["model"]
    test = load_grounding_dataset("refshapes", **TEST)
    settings = EvaluationSettings(batch_size=32, resamples=0, progress=False)
    figures = evaluate_model(*open_model(str(trained))[:2], test, settings).results["figures"]
    found = {"arm": arm, "seed": seed, "rows": len(rows), **said, **{name: figures[name] for name in FIGURES}}
    write_json(measured, {**found, "model": str(trained), "cpu_seconds": round(time.process_time() - began)})
    return json.loads(measured.read_text(encoding="utf-8"))


def _rows_of(arm: str, seed: int, options: argparse.Namespace) -> tuple[datasets.Dataset, dict[str, Any]]:
    """The rows of an arm, and of `cleaned` how well they were chosen; every seed has rows and errors of its own."""
    true, dirty, kinds = plant({"split": "train", "seed": 910 + seed, "size": options.rows, **STYLE}, seed)
    if arm != "cleaned":
        return (dirty if arm == "dirty" else true), {}
    trained = json.loads((options.out / f"dirty-{seed}" / "measured.json").read_text(encoding="utf-8"))["model"]
    found = judge(dirty, trained)
    left_out = set(suspicious(found))
    return dirty.select([at for at in range(len(dirty)) if at not in left_out]), {"cleaning": quality(found, kinds)}


def compare(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Cleaned against dirty and against true by figure, paired by seed."""
    by_arm = {arm: [one for one in runs if one["arm"] == arm] for arm in ARMS}
    return {f"cleaned - {other}": paired(by_arm[other], by_arm["cleaned"], FIGURES) for other in ("dirty", "true")}


if __name__ == "__main__":
    main()
