"""Draw the pictures of the README and of docs/gallery.md: answers of the shipped model on scenes it has not seen.

    python scripts/draw_pictures.py [--model FOLDER_OR_HUB_ID] [--seed 11]

Scenes are taken in their order. One is skipped where the answer is not what the picture is to show (for most of them:
right), where a label covers an object, and where the scene is small or the expression long. How often the
model is right stands in docs/shipped-model.md. The gallery's page gets the captions, between its two markers.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageFilter

from hivg_hf.data.refshapes import refshapes_dataset
from hivg_hf.evaluation.model_card import replace_marked
from hivg_hf.hub import resolve_model
from hivg_hf.inference import load_pipeline
from hivg_hf.modeling.box_ops_hivg import paired_iou_and_giou
from hivg_hf.visualize import draw_grounding

DOCS = Path(__file__).resolve().parents[1] / "docs"
MARKERS = ("<!-- gallery: begin (written by scripts/draw_pictures.py) -->", "<!-- gallery: end -->")
HEIGHT, GAP, SCENES, LEAD_CHARACTERS = 360, 12, 4, 28
SMALLEST_SIDE, LARGEST_SIDE, MOST_CHARACTERS, ROWS, SEEDS = 220, 480, 48, 50, 8
SIDES = ("xmin", "ymin", "xmax", "ymax")
THICKEST_OUTLINE = 15  # pixels, of two boxes around one object; what is changed and thicker is a label
SLACK = 5  # pixels that an outline at a label may lie inside its object


class Example(NamedTuple):
    """A picture of the gallery: the rows that it may show, and the answers to them that it is to show."""

    name: str
    title: str
    split: str
    shows: Callable[[Sequence[dict[str, Any]], dict[str, Any]], bool]
    kinds: tuple[str, ...] | None = None
    options: dict[str, Any] = {}


def is_right(answers: Sequence[dict[str, Any]], row: dict[str, Any]) -> bool:
    """Every target has an answer that fits it tightly, and no answer is left over."""
    fits = _ious(answers, row) >= 0.8  # (answers, targets)
    return fits.shape[0] == fits.shape[1] and bool(fits.any(0).all()) and all(found(answer) for answer in answers)


def is_none(answers: Sequence[dict[str, Any]], row: dict[str, Any]) -> bool:
    return not any(found(answer) for answer in answers)


def is_three_or_more(answers: Sequence[dict[str, Any]], row: dict[str, Any]) -> bool:
    return len(answers) > 2 and is_right(answers, row)


def is_elsewhere(answers: Sequence[dict[str, Any]], row: dict[str, Any]) -> bool:
    return found(answers[0]) and float(_ious(answers, row).max()) < 0.3


def found(answer: dict[str, Any]) -> bool:
    return answer.get("found", True)  # by the model's own threshold


EXAMPLES = (
    Example("mask", "One object, with its mask", "val", is_right, ("attribute",), {"mask": True}),
    Example("relation", "By what stands beside it", "testB", is_right),
    Example("ordinal", "By counting along a row", "val", is_right, ("ordinal",)),
    Example("count", "By how many there are", "val", is_right, ("count",)),
    Example("several", "Several at once", "plural", is_three_or_more, None, {"multiple": True}),
    Example("wording", "In words that training did not use", "text", is_right),
    Example("none", "Nothing there", "none", is_none),
    Example("wrong", "Wrong: another object", "text", is_elsewhere),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--seed", type=int, default=11)
    options = parser.parse_args()
    pipe = load_pipeline(resolve_model(options.model))
    draw_lead(pipe, options.seed)
    draw_gallery(pipe, options.seed)


def draw_lead(pipe: Any, seed: int) -> None:
    """docs/images/lead.png: scenes with several expressions each, in one row."""
    rows = refshapes_dataset("val", seed=seed, size=450, expressions_per_scene=3, masks=False, objects=True)
    pictures: list[Image.Image] = []
    for _, questions in groupby(rows, key=lambda row: row["image_id"]):
        scene = list(questions)
        if len(scene) < 3 or scene[0]["width"] < 300 or max(len(row["expression"]) for row in scene) > LEAD_CHARACTERS:
            continue
        answers = pipe(scene[0]["image"], [row["expression"] for row in scene])
        if not all(is_right([answer], row) for answer, row in zip(answers, scene, strict=True)):
            continue
        drawn = draw_grounding(scene[0]["image"], answers)
        if label_covers_an_object(drawn, scene[0]):
            continue
        pictures.append(drawn.resize((round(drawn.width * HEIGHT / drawn.height), HEIGHT), Image.Resampling.LANCZOS))
        if len(pictures) == SCENES:
            break
    sheet = Image.new("RGB", (sum(picture.width + GAP for picture in pictures) - GAP, HEIGHT), "white")
    left = 0
    for picture in pictures:
        sheet.paste(picture, (left, 0))
        left += picture.width + GAP
    save(sheet, DOCS / "images" / "lead.png")


def draw_gallery(pipe: Any, seed: int) -> None:
    """docs/images/gallery/*.webp, and what docs/gallery.md says about them."""
    parts = []
    for example in EXAMPLES:
        place, row, answers = first_row(pipe, example, seed)
        shown = list(answers)
        if example.shows is is_elsewhere:
            shown += [{"expression": "meant", "box": dict(zip(SIDES, box, strict=True))} for box in row["boxes"]]
        save(draw_grounding(row["image"], shown), DOCS / "images" / "gallery" / f"{example.name}.webp")
        parts += [
            f"## {example.title}",
            f"![A rendered scene with the answer to {row['expression']}](images/gallery/{example.name}.webp)",
        ]
        parts.append(caption(row, answers, place))
    page = DOCS / "gallery.md"
    page.write_text(replace_marked(page.read_text(encoding="utf-8"), "\n\n".join(parts), MARKERS), encoding="utf-8")


def first_row(pipe: Any, example: Example, seed: int) -> tuple[str, dict[str, Any], list[dict[str, Any]]]:
    """The first row of an example's split that shows what it is to show, where it stands, and the answers to it.

    Raises:
        ValueError: no row does.
    """
    for place, row in candidates(example, seed):
        answers = ground(pipe, row, example)
        bare = [{**answer, "mask": None} for answer in answers]  # a tinted object is not covered
        if example.shows(answers, row) and not label_covers_an_object(draw_grounding(row["image"], bare), row):
            return place, row, answers
    raise ValueError(f"None of the first {ROWS} rows of {example.split} shows {example.name!r}, in {SEEDS} seeds.")


def candidates(example: Example, seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of an example's split with a picture that is large enough and an expression that is short enough."""
    for each in range(seed, seed + SEEDS):
        rows = refshapes_dataset(example.split, seed=each, size=ROWS, kinds=example.kinds, masks=False, objects=True)
        for number, row in enumerate(rows):
            if min(row["width"], row["height"]) >= SMALLEST_SIDE and len(row["expression"]) <= MOST_CHARACTERS:
                yield f"split `{example.split}`, seed {each}, row {number}", row


def ground(pipe: Any, row: dict[str, Any], example: Example) -> list[dict[str, Any]]:
    answers = pipe(row["image"], row["expression"], **example.options)
    return [answers] if isinstance(answers, dict) else list(answers)


def label_covers_an_object(drawn: Image.Image, row: dict[str, Any]) -> bool:
    """Whether a label lies on the box of an object; labels are what drawing changed, without thin outlines."""
    bare = draw_grounding(row["image"], [])  # enlarged as the drawn one is
    changed = Image.fromarray((np.asarray(drawn) != np.asarray(bare)).any(-1).astype(np.uint8) * 255)
    labels = changed.filter(ImageFilter.MinFilter(THICKEST_OUTLINE)).filter(ImageFilter.MaxFilter(THICKEST_OUTLINE))
    scale = drawn.width / row["image"].width
    boxes = [np.array(item["box"]) * scale + [SLACK, SLACK, -SLACK, -SLACK] for item in row["objects"]]
    return any(labels.crop(tuple(box.round().astype(int))).getbbox() is not None for box in boxes)


def caption(row: dict[str, Any], answers: Sequence[dict[str, Any]], place: str) -> str:
    scores = ", ".join(f"{answer['score']:.2f}" for answer in answers)
    result = f"score{'s' if len(answers) > 1 else ''} {scores}"
    if not any(found(answer) for answer in answers):
        result += ", below the model's threshold: not found"
    return f'"{row["expression"]}": {result} ({place})'


def save(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".webp":  # noise, which some scenes have, takes 184 kB as PNG
        picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.LANCZOS)
        picture.save(path, quality=80)
    else:
        picture.quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {picture.width} x {picture.height}, {path.stat().st_size // 1000} kB")


def _ious(answers: Sequence[dict[str, Any]], row: dict[str, Any]) -> torch.Tensor:
    """(answers, targets); of no targets, none."""
    boxes = torch.tensor([[answer["box"][side] for side in SIDES] for answer in answers]).reshape(-1, 1, 4)
    targets = torch.tensor(row["boxes"]).reshape(1, -1, 4)
    shape = (boxes.shape[0], targets.shape[1], 4)
    return paired_iou_and_giou(boxes.expand(shape), targets.expand(shape))[0]


if __name__ == "__main__":
    main()
