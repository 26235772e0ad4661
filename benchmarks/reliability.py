"""What training gains from keeping reliable rows, and what pseudo-labels are worth.

    python -m benchmarks.reliability OUT --results benchmarks/results/reliability/DATE-cpu.json \\
        --document docs/labels.md

Every run starts from the CLIP of the shipped checkpoint, with its bridges, and a new `grounding_head`, which has
everything to learn: where the label says. Three seeds; each has rows and errors of its own.

1. **Wrong labels**: RefShapes rows, 30 percent of which have another object's box, a shifted box, or another object's
   expression. A first phase on all of them, then two more: on all (`all`), or on those that the model agrees with, as
   `reliability: {}` finds them (`filtered`). Beside them, all phases on the rows whose labels are right (`clean`).
   Equal steps.
2. **Pseudo-labels**: pictures of RefShapes without their labels, labeled by `hivg_hf.labeling` with the shipped
   checkpoint as teacher and the names of the shapes as nouns (`pseudo`), against the true expressions and boxes of as
   many rows of the same pictures (`true`). Equal steps.

Measured on other rows. What is finished is in the results file, and a run that was killed resumes.
"""

import argparse
import json
import logging
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from accelerate.utils import set_seed

from hivg_hf import HiVGForVisualGrounding, HiVGProcessor
from hivg_hf.checkpoints import TINY_CHECKPOINT
from hivg_hf.data import load_grounding_dataset
from hivg_hf.data.refshapes.scenes import SHAPES
from hivg_hf.evaluation import EvaluationSettings, evaluate_model, predict
from hivg_hf.evaluation.card_tables import markdown_table
from hivg_hf.evaluation.sources import open_model
from hivg_hf.evaluation.suspects import find_suspects, label_agreement, wrong_probability
from hivg_hf.labeling import label_pictures, load_teacher
from hivg_hf.metrics import score_auc
from hivg_hf.metrics.overlaps import paired_iou
from hivg_hf.training import StagedTraining, parse_recipe
from hivg_hf.utils.atomic import atomic_folder, write_json

from .clean import plant, weights_hash
from .marked_tables import with_marked
from .starts import SEEDS, paired

WRONG_SHARE = 0.3
LABELS: dict[str, Any] = {"kinds": ["attribute"], "masks": False, "stored_side": 112}
TEST: dict[str, Any] = {"split": "val", "seed": 4200, "size": 500, **LABELS}
SIDE = 224  # of the pictures that the teacher sees
FIGURES = ("acc@0.5", "mean_iou")
NOISE_ARMS = ("all", "filtered", "clean")
PSEUDO_ARMS = ("pseudo", "true")
PAIRS = (("noise", "all", "filtered"), ("noise", "clean", "filtered"), ("pseudo", "true", "pseudo"))


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Train and measure what is not there yet, then compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the runs")
    parser.add_argument("--results", type=Path, required=True, help="JSON file for the figures")
    parser.add_argument("--document", type=Path, help="Markdown file whose tables are written anew")
    parser.add_argument("--rows", type=int, default=800, help="rows to train on")
    parser.add_argument("--steps", type=int, default=60, help="of each later phase; the first has twice as many")
    parser.add_argument("--batch", type=int, default=16, help="rows of a step")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    options.results.parent.mkdir(parents=True, exist_ok=True)
    make_start(options.out / "start")
    found: dict[str, Any] = {
        **{"shipped_weights_sha256": weights_hash(str(TINY_CHECKPOINT)), "wrong_share": WRONG_SHARE},
        **{
            "rows": options.rows,
            "steps": [2 * options.steps, options.steps, options.steps],
            "batch_size": options.batch,
        },
        **{"test": TEST, "runs": [], "differences": {}},
    }
    for study, arms in (("noise", NOISE_ARMS), ("pseudo", PSEUDO_ARMS)):
        for seed in SEEDS:
            for arm in arms:
                found["runs"].append(run(study, arm, seed, options))
                found["differences"] = compare(found["runs"])
                write_json(options.results, found)
                logging.info("%s", {name: found["runs"][-1][name] for name in ("arm", "seed", *FIGURES)})
    if options.document:
        text = with_tables(options.document.read_text(encoding="utf-8"), found)
        options.document.write_text(text, encoding="utf-8")
    return found


def make_start(folder: Path) -> None:
    """The shipped checkpoint with one query and a new `grounding_head`."""
    if folder.is_dir():
        return
    shipped = HiVGForVisualGrounding.from_pretrained(TINY_CHECKPOINT)
    set_seed(0)
    config = shipped.config.__class__.from_dict({**shipped.config.to_dict(), "num_queries": 1})
    model = HiVGForVisualGrounding(config)
    model.clip.load_state_dict(shipped.clip.state_dict())
    with atomic_folder(folder) as place:
        model.save_pretrained(place)
        HiVGProcessor.from_pretrained(TINY_CHECKPOINT).save_pretrained(place)


def run(study: str, arm: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train one and measure it; what was measured before is read."""
    folder = options.out / f"{study}-{arm}-{seed}"
    measured = folder / "measured.json"
    if not measured.is_file():
        began = time.process_time()
        rows, wrong = make_rows(study, arm, seed, options)
        table = options.out / f"{folder.name}.parquet"
        rows.to_parquet(table)
        trained = train(table, rows[0]["split"], arm, seed, folder, options)
        found = {"study": study, "arm": arm, "seed": seed, "rows": len(rows), **measure(trained, options)}
        found |= {"wrong": int(wrong.sum()), "kept": kept_rows(folder, wrong)}
        if arm in ("all", "pseudo"):
            found["auroc"] = {
                name: ranking(folder / "phases" / name / "result", rows, wrong) for name in ("01-first", "02-second")
            }
        write_json(measured, {**found, "cpu_seconds": round(time.process_time() - began)})
    return dict(json.loads(measured.read_text(encoding="utf-8")))


def make_rows(study: str, arm: str, seed: int, options: argparse.Namespace) -> tuple[datasets.Dataset, np.ndarray]:
    """The rows of an arm, and which of them are wrong (N,) bool."""
    spec = {"split": "train", "seed": 4400 + seed, "size": options.rows, **LABELS}
    if study == "noise":
        true, dirty, kinds = plant(spec, seed, WRONG_SHARE)
        wrong = np.isin(np.arange(len(true)), list(kinds))
        return (true.select(np.flatnonzero(~wrong)), wrong[~wrong]) if arm == "clean" else (dirty, wrong)
    true = load_grounding_dataset("refshapes", **{**spec, "stored_side": SIDE, "objects": True})
    labels = label(true, options.out / f"labels-{seed}")
    if arm == "true":
        rows = true.remove_columns("objects").select(range(min(len(true), len(labels))))
        return rows, np.zeros(len(rows), dtype=bool)
    objects = {str(name): some for name, some in zip(true["image_id"], true["objects"], strict=True)}
    named = zip(labels["image_id"], labels.remove_columns("image"), strict=True)
    wrong = np.array([not is_right(row, objects[Path(name).name]) for name, row in named])
    return labels, wrong


def label(true: datasets.Dataset, folder: Path) -> datasets.Dataset:
    """Pseudo-labels of the pictures of some rows, at most as many as there are rows."""
    pictures = {row["image_id"]: row["image"] for row in true}
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.png" for name in pictures]
    for path, picture in zip(paths, pictures.values(), strict=True):
        picture.save(path)
    teacher = load_teacher(str(TINY_CHECKPOINT), list(SHAPES))
    label_pictures(map(str, paths), folder, teacher, nouns=list(SHAPES))
    labels = load_grounding_dataset(str(folder / "labels.jsonl"), "all", box_format="xyxy")
    chosen = np.random.default_rng(0).permutation(len(labels))[: len(true)]
    return labels.select(np.sort(chosen))


def is_right(label: Mapping[str, Any], objects: list[dict[str, Any]]) -> bool:
    """Whether a pseudo-label's box is that of an object of the shape that it says."""
    boxes = np.array([one["box"] for one in objects])
    ious = paired_iou(np.broadcast_to(np.array(label["box"]), boxes.shape), boxes)
    return bool(ious.max() >= 0.5 and objects[int(ious.argmax())]["shape"] == label["category"])


def train(table: Path, split: str, arm: str, seed: int, folder: Path, options: argparse.Namespace) -> Path:
    """Three phases on a table; the later two choose their rows in some arms."""
    choice: dict[str, Any] | None = {} if arm == "filtered" else None
    content = {
        **{"name": folder.name, "seed": seed, "model": {"checkpoint": str(options.out / "start")}},
        "data": {"train": {"source": str(table), "split": split, "box_format": "xyxy"}},
        "defaults": {
            **{"train": "heads", "steps": options.steps, "batch_size": options.batch, "learning_rate": 1.0e-3},
            **{"warmup": 0.1, "max_grad_norm": 1.0, "weight_decay": 0.01, "schedule": "linear", "keep": "last"},
            **{"save_every": 1000, "log_every": options.steps, "masks": False},
            "loss_weights": {"contrastive": 0.1, "mask_focal": 0.0, "mask_dice": 0.0},
        },
        "phases": [
            {"name": "first", "steps": 2 * options.steps},
            *({"name": name, "reliability": choice} for name in ("second", "third")),
        ],
    }
    return folder / StagedTraining(parse_recipe(content), folder).run()["model"]


def measure(trained: Path, options: argparse.Namespace) -> dict[str, float]:
    """Figures of a model on the rows of the test."""
    test = load_grounding_dataset("refshapes", **TEST, cache_dir=str(options.out / "rows"))
    settings = EvaluationSettings(batch_size=50, resamples=0, progress=False)
    figures = evaluate_model(*open_model(str(trained))[:2], test, settings).results["figures"]
    return {name: figures[name] for name in FIGURES}


def kept_rows(folder: Path, wrong: np.ndarray) -> dict[str, dict[str, Any]]:
    """Of each phase that chose: how many rows it kept, how many of them are wrong, and its threshold."""
    found = {}
    for path in sorted(folder.glob("phases/*/kept.json")):
        judged = json.loads(path.read_text(encoding="utf-8"))
        kept = {"rows": len(judged["kept"]), "wrong": int(wrong[judged["kept"]].sum())}
        found[path.parent.name] = {**kept, "threshold": judged["threshold"]}
    return found


def ranking(model: Path, rows: datasets.Dataset, wrong: np.ndarray) -> dict[str, float]:
    """AUROC of right above wrong labels: by the IoU of label and model's box, by the losses, as `hivg clean` says."""
    opened = open_model(str(model))
    said = predict(opened[0], opened[1], rows, batch_size=50, progress=False)
    doubt = {"loss": wrong_probability(rows, said), "clean": find_suspects(rows, said, content=False).probability}
    scores = {"iou": label_agreement(rows, said), **{name: -values for name, values in doubt.items()}}
    return {name: float(score_auc(score, ~wrong)) for name, score in scores.items()}


def compare(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The second arm of each pair minus the first, paired by seed."""
    found = {}
    for study, first, second in PAIRS:
        one, other = ([run for run in runs if (run["study"], run["arm"]) == (study, arm)] for arm in (first, second))
        found[f"{study}: {second} - {first}"] = paired(one, other, FIGURES)
    return found


def with_tables(text: str, result: dict[str, Any]) -> str:
    """A document with the tables of the results, each between its two comments."""
    tables = {name: f"{arms_table(name, result)}\n\n{sentences(name, result)}" for name in ("noise", "pseudo")}
    return with_marked(text, tables)


def arms_table(study: str, result: dict[str, Any]) -> str:
    """The arms of a study: rows of the last phase and how many of them are wrong, and accuracy, means over seeds."""
    lines = []
    for arm in {"noise": NOISE_ARMS, "pseudo": PSEUDO_ARMS}[study]:
        runs = [run for run in result["runs"] if (run["study"], run["arm"]) == (study, arm)]
        last = [run["kept"].get("03-third", run) for run in runs]
        each = ", ".join(f"{100 * run['acc@0.5']:.1f}" for run in runs)
        accuracy, iou = (100 * np.mean([run[name] for run in runs]) for name in FIGURES)
        counts = [f"{np.mean([one[name] for one in last]):,.0f}" for name in ("rows", "wrong")]
        lines.append([arm, *counts, f"{accuracy:.1f} ({each})", f"{iou:.1f}"])
    header = ["trained on", "rows at the end", "wrong among them", "Acc@0.5 (each seed)", "mean IoU"]
    return markdown_table(header, lines)


def sentences(study: str, result: dict[str, Any]) -> str:
    """Paired differences with their intervals, and what the ranking is worth."""
    found = []
    for one, first, second in PAIRS:
        if one == study:
            entry = result["differences"][f"{one}: {second} - {first}"]["acc@0.5"]
            low, high = (100 * bound for bound in entry["interval"])
            found.append(f"`{second}` - `{first}`: {100 * entry['mean']:+.1f} points ({low:+.1f} to {high:+.1f})")
    judged = [run["auroc"] for run in result["runs"] if run["study"] == study and "auroc" in run]
    ranked = [
        f"{name} {np.mean([one['01-first'][key] for one in judged]):.3f} and "
        f"{np.mean([one['02-second'][key] for one in judged]):.3f}"
        for key, name in (("loss", "by the losses"), ("iou", "by IoU"), ("clean", "as `hivg clean`"))
    ]
    text = (
        f"Acc@0.5, paired by seed, 95 % intervals: {'; '.join(found)}. AUROC of right above wrong labels after the "
        f"first phase and after the second, both on all rows: {'; '.join(ranked)}."
    )
    return textwrap.fill(text, 119, break_long_words=False, break_on_hyphens=False)


if __name__ == "__main__":
    main()
