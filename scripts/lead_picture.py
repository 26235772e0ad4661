"""Draw the README's picture, docs/images/lead.png: scenes in which the shipped model is right everywhere.

    python scripts/lead_picture.py [--model FOLDER_OR_HUB_ID] [--seed 11]

Scenes of split `val` are taken in their order; those with a wrong answer, and those with an expression so long that
its label would cover objects, are skipped, and their count is printed. How often the model is right stands in
docs/shipped-model.md.
"""

import argparse
from itertools import groupby
from pathlib import Path

import torch
from PIL import Image

from hivg_hf.data.refshapes import refshapes_dataset
from hivg_hf.hub import resolve_model
from hivg_hf.inference import load_pipeline
from hivg_hf.modeling.box_ops_hivg import paired_iou_and_giou
from hivg_hf.visualize import draw_grounding

HEIGHT, GAP, SCENES = 360, 12, 4
MOST_CHARACTERS = 26


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--seed", type=int, default=11)
    options = parser.parse_args()
    pipe = load_pipeline(resolve_model(options.model))
    rows = refshapes_dataset("val", seed=options.seed, size=200, expressions_per_scene=3, masks=False)
    pictures: list[Image.Image] = []
    skipped = 0
    for _, questions in groupby(rows, key=lambda row: row["image_id"]):
        scene = list(questions)
        if max(len(row["expression"]) for row in scene) > MOST_CHARACTERS:
            skipped += 1
            continue
        found = pipe(scene[0]["image"], [row["expression"] for row in scene])
        if len(scene) < 3 or scene[0]["image"].width < 300 or not all(map(is_right, found, scene)):
            skipped += 1
            continue
        drawn = draw_grounding(scene[0]["image"], found)
        pictures.append(drawn.resize((round(drawn.width * HEIGHT / drawn.height), HEIGHT), Image.Resampling.LANCZOS))
        if len(pictures) == SCENES:
            break
    sheet = Image.new("RGB", (sum(picture.width + GAP for picture in pictures) - GAP, HEIGHT), "white")
    left = 0
    for picture in pictures:
        sheet.paste(picture, (left, 0))
        left += picture.width + GAP
    target = Path(__file__).resolve().parents[1] / "docs" / "images" / "lead.png"
    sheet.save(target, optimize=True)
    print(f"{target}: {len(pictures)} scenes, {skipped} skipped")


def is_right(result: dict, row: dict) -> bool:
    box = torch.tensor([[result["box"][side] for side in ("xmin", "ymin", "xmax", "ymax")]])
    tight = paired_iou_and_giou(box, torch.tensor([row["boxes"][0]]))[0] >= 0.8
    return bool(tight) and result.get("found", True)  # by the model's own threshold


if __name__ == "__main__":
    main()
