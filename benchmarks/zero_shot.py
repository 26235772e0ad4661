"""Zero-shot accuracy of a CLIP on RefShapes: map alone, proposals, with and without reading relations.

    python -m benchmarks.zero_shot CLIP_FOLDER --size 1000 --trained hivg_hf/checkpoints/hivg-tiny-refshapes

CLIP_FOLDER is a plain CLIP of transformers with its tokenizer, or a HiVG checkpoint, whose CLIP is taken without the
bridges. Accuracy is IoU >= 0.5, beside two kinds of chance: an object drawn at random, and the middle half of the
picture. Relations are read by `hivg_hf.zero_shot.relation_parser`; without it CLIP reads the whole expression.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, AutoTokenizer, CLIPModel

from hivg_hf import HiVGForVisualGrounding
from hivg_hf.data.refshapes import refshapes_dataset
from hivg_hf.inference import load_pipeline
from hivg_hf.metrics.overlaps import paired_iou
from hivg_hf.zero_shot import ZeroShotClip, ZeroShotGrounder, component_proposals
from hivg_hf.zero_shot.dense_map import ATTENTIONS
from hivg_hf.zero_shot.map_boxes import METHODS
from hivg_hf.zero_shot.proposal_scores import SCORINGS

Answer = Callable[[dict[str, Any]], list[float]]  # a row -> xyxy pixels


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Parse, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip", help="folder of a plain CLIP, or of a HiVG checkpoint")
    parser.add_argument("--trained", help="folder of a trained HiVG to compare with")
    parser.add_argument("--split", default="val", help="split of RefShapes")
    parser.add_argument("--size", type=int, default=1000, help="rows")
    parser.add_argument("--seed", type=int, default=900, help="seed of the scenes; 500 was used to choose defaults")
    parser.add_argument("--background", nargs="*", default=[], help="prompts whose mean is subtracted")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    options = parser.parse_args(arguments)
    rows = refshapes_dataset(options.split, seed=options.seed, size=options.size, objects=True, masks=False)
    figures: dict[str, Any] = {}
    for name, answer in contenders(options):
        figures[name] = measure(rows, answer)
    result = {
        **{"clip": Path(options.clip).name, "split": options.split, "seed": options.seed, "rows": len(rows)},
        "accuracy": figures,
    }
    print_table(result)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def open_clip(folder: str) -> tuple[CLIPModel, Any]:
    """A CLIP and its tokenizer; of a HiVG checkpoint its CLIP without bridges."""
    config = AutoConfig.from_pretrained(folder)
    if config.model_type == "hivg":
        state = HiVGForVisualGrounding.from_pretrained(folder).clip.state_dict()
        clip = CLIPModel(config.clip_config)
        clip.load_state_dict({name: value for name, value in state.items() if ".bridge." not in name})
    else:
        clip = CLIPModel.from_pretrained(folder)
    return clip, AutoTokenizer.from_pretrained(folder)


def contenders(options: argparse.Namespace) -> Iterator[tuple[str, Answer]]:
    """Name and answers of everything that is measured."""
    rng = np.random.default_rng(options.seed)
    yield "chance: an object at random", lambda row: row["objects"][rng.integers(len(row["objects"]))]["box"]
    yield "chance: the middle half", middle_half
    clip, tokenizer = open_clip(options.clip)
    shared: dict[str, Any] = {"templates": ("{}",), "background": tuple(options.background)}
    encoders = {name: ZeroShotClip(clip, tokenizer, attention=name, **shared) for name in ATTENTIONS}
    for attention, encoder in encoders.items():
        for method in METHODS:
            yield f"map alone: {attention} attention, {method}", answers(ZeroShotGrounder(encoder, box_method=method))
    boxes_of = {"true boxes": lambda row: [item["box"] for item in row["objects"]], "components": None}
    for source, boxes in boxes_of.items():
        for scoring in SCORINGS:
            for attention in ATTENTIONS if scoring == "map" else ("ordinary",):
                for relations in (True, False):
                    grounder = ZeroShotGrounder(
                        encoders[attention], None if boxes else component_proposals, scoring, relations
                    )
                    way = f"{attention} map" if scoring == "map" else scoring
                    reading = "relations" if relations else "whole expression"
                    yield f"{source}: {way}, {reading}", answers(grounder, boxes)
    if options.trained:
        pipe = load_pipeline(options.trained)
        yield "trained model", lambda row: list(pipe(row["image"], row["expression"])["box"].values())


def answers(grounder: ZeroShotGrounder, boxes: Callable[[dict[str, Any]], Any] | None = None) -> Answer:
    def answer(row: dict[str, Any]) -> list[float]:
        found = grounder(row["image"], row["expression"], boxes=boxes(row) if boxes else None)
        return list(found["box"].values())

    return answer


def middle_half(row: dict[str, Any]) -> list[float]:
    return [row["width"] / 4, row["height"] / 4, row["width"] * 3 / 4, row["height"] * 3 / 4]


def measure(rows: Any, answer: Answer) -> dict[str, Any]:
    """Accuracy in percent, over all rows and by kind of expression, and seconds per row."""
    start = time.perf_counter()
    with torch.inference_mode():
        found = np.array([answer(row) for row in rows])
    seconds = (time.perf_counter() - start) / len(found)
    hits = paired_iou(found, np.array(rows["box"])) >= 0.5
    names = np.array([sent_id.rpartition("-")[2] for sent_id in rows["sent_id"]])
    by_kind = {str(kind): round(100 * float(hits[names == kind].mean()), 1) for kind in np.unique(names)}
    return {"all": round(100 * float(hits.mean()), 1), "by_kind": by_kind, "seconds_per_row": round(seconds, 4)}


def print_table(result: dict[str, Any]) -> None:
    kinds = sorted({kind for figure in result["accuracy"].values() for kind in figure["by_kind"]})
    table = Table("answers", "all", *kinds, "ms", title=f"Acc@0.5 on {result['rows']} rows of RefShapes")
    for name, figure in result["accuracy"].items():
        by_kind = [f"{figure['by_kind'][kind]:.1f}" if kind in figure["by_kind"] else "" for kind in kinds]
        table.add_row(name, f"{figure['all']:.1f}", *by_kind, f"{1000 * figure['seconds_per_row']:.0f}")
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
