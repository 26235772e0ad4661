"""RefShapes: rendered scenes and expressions that name exactly one object, in the one schema.

Everything is a function of (split, seed, index), so that no evaluation scene can be a training scene and nothing
has to be downloaded. The splits ask different things:

- train, val: all kinds of expressions; train has several expressions per scene.
- testA: attributes. testB: relations.
- compositional: the target's shape and color were never rendered together in any other split.
- text: wordings that no other split uses.
- none: expressions that name nothing in the picture, by one changed word.
- plural: "all the red stars", "both rings": `boxes` holds every object that fits, at least two; `mask` covers them.

Rows of a split never change once it is published (tests/data/refshapes/test_frozen.py); what is new is an option or a
split of its own. `image_id` is `<split>-<seed>-<scene>`, `ref_id` adds the object (several joined by "+", or "none"),
`sent_id` the expression and its kind.
"""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, List, Value, concatenate_datasets, load_from_disk
from PIL import Image

from hivg_hf.utils.atomic import atomic_folder

from ..schema import FEATURES, encode_mask, mask_to_box
from .language import ATTRIBUTES, context
from .render import render_scene
from .samples import SPLITS, Expression, Sample, SampleOptions, draw_foil, draw_sample, refshapes_samples

__all__ = ["OBJECTS_FEATURES", "SPLITS", "Expression", "Sample", "refshapes_dataset", "refshapes_samples"]

_SCENES_PER_TABLE = 500

_BOX = List(Value("float32"), length=4)
OBJECTS_FEATURES = {
    "objects": List({**{name: Value("string") for name in ATTRIBUTES}, "box": _BOX}),
    "context_boxes": List(_BOX),
}


@dataclass(frozen=True)
class _Drawing:
    foils: bool
    masks: bool
    objects: bool
    stored_side: int | None


def refshapes_dataset(
    split: str,
    seed: int = 0,
    size: int = 2000,
    *,
    expressions_per_scene: int | None = None,
    style: str = "standard",
    kinds: Sequence[str] | None = None,
    no_target_fraction: float = 0.0,
    plural_fraction: float = 0.0,
    wordings: str = "standard",
    foils: bool = False,
    masks: bool = True,
    objects: bool = False,
    stored_side: int | None = None,
    workers: int = 1,
    cache_dir: str | None = None,
) -> Dataset:
    """Render a RefShapes split.

    Args:
        split: One of `SPLITS`.
        seed: Another seed gives other scenes.
        size: Number of rows.
        expressions_per_scene: Rows that share a picture; by default 4 in `train` and 1 elsewhere.
        style: "standard", or "outline-noise": outlines on strong noise in four colors that nothing else has.
        kinds: Only these kinds of expressions (attribute, extreme, relation, ordinal, count, plural).
        no_target_fraction: Share of rows whose expression is changed by one word so that it names nothing.
        plural_fraction: Share of rows that ask for all objects of a kind, at least two (`boxes`; `box` is None), in
            `train`, `val`, `none` and `text`, where plurals too have wordings that no other split uses.
        wordings: "standard", or "varied": more templates and synonyms, for training; never a wording of `text`.
        foils: The control: the same rows, boxes and masks, but each expression names another object of its scene.
            Rows whose scene has no other object that an expression could name are left out, so that
            `size - len(dataset)` counts them.
        masks: False leaves the masks out (None).
        objects: Add the columns of `OBJECTS_FEATURES`, for training that shows where to look: attributes and box of
            every object, and the boxes of the objects that decide which one is named, "the ring" of "the star left of
            the ring" and all the stars of "the second star from the left".
        stored_side: Store pictures, boxes and masks scaled to this longer side, with the image processor's own
            resampling. For training data of a model whose square has that side: the same pixels for less decoding.
        workers: Processes that render.
        cache_dir: Folder to keep the rendered rows in, by options and generator source; the next call reads them.

    Returns:
        A dataset of `FEATURES` with PNG-encoded images.

    Raises:
        ValueError: an option is unknown or out of range.
    """
    kinds = None if kinds is None else tuple(kinds)
    options = SampleOptions(
        split, seed, expressions_per_scene, style, kinds, no_target_fraction, plural_fraction, wordings
    )
    if size < 1:
        raise ValueError(f"size is the number of rows and must be at least 1, got {size}.")
    if foils and (split in ("none", "plural") or no_target_fraction or plural_fraction):
        raise ValueError(
            "foils need one target in every row; leave out the splits 'none' and 'plural', no_target_fraction and "
            "plural_fraction."
        )
    drawing = _Drawing(foils, masks, objects, stored_side)
    if cache_dir is None:
        return _render(options, drawing, size, workers)
    folder = Path(cache_dir).expanduser() / _fingerprint(options, drawing, size)
    if not folder.is_dir():
        with atomic_folder(folder) as unfinished:
            _render(options, drawing, size, workers).save_to_disk(unfinished)
    return load_from_disk(folder)


def _render(options: SampleOptions, drawing: _Drawing, size: int, workers: int) -> Dataset:
    features = Features({**FEATURES, **OBJECTS_FEATURES}) if drawing.objects else FEATURES
    rows_per_job = _SCENES_PER_TABLE * options.count
    jobs = [
        (options, drawing, first // options.count, min(size - first, rows_per_job))
        for first in range(0, size, rows_per_job)
    ]
    if workers == 1 or len(jobs) == 1:
        tables = [_table(features, rows) for rows in map(_render_job, jobs)]
    else:
        # Spawned, not forked: the caller's torch may have threads that a fork would leave in an undefined state.
        with get_context("spawn").Pool(min(workers, len(jobs))) as pool:
            tables = [_table(features, rows) for rows in pool.imap(_render_job, jobs)]
    return concatenate_datasets(tables)


def _fingerprint(options: SampleOptions, drawing: _Drawing, size: int) -> str:
    """Name of a cached dataset: changes with every option and with the source of the generator."""
    digest = hashlib.sha256(repr((options, drawing, size)).encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return f"{options.split}-{options.seed}-{size}-{digest.hexdigest()[:16]}"


def _table(features: Features, rows: list[dict[str, Any]]) -> Dataset:
    return Dataset.from_list([{name: row[name] for name in features} for row in rows], features=features)


def _render_job(job: tuple[SampleOptions, _Drawing, int, int]) -> list[dict[str, Any]]:
    """The first `rows` rows from scene `start` on, without the foils that do not exist."""
    options, drawing, start, rows = job
    found: list[dict[str, Any] | None] = []
    for index in range(start, start - (-rows // options.count)):
        found += _scene_rows(options, drawing, index)
    return [row for row in found[:rows] if row is not None]


def _scene_rows(options: SampleOptions, drawing: _Drawing, index: int) -> list[dict[str, Any] | None]:
    """Rows of one scene; None in place of a foil that does not exist."""
    sample = draw_sample(options, index)
    picture, visible = render_scene(sample.scene)
    boxes = [mask_to_box(mask) for mask in visible]
    if drawing.stored_side is not None:
        picture, visible, boxes = _scaled(picture, visible, boxes, drawing.stored_side)
    style = "" if options.style == "standard" else f"{options.style}-"
    image_id = f"{style}{options.split}-{options.seed}-{index}"
    shared = {
        "image": {"bytes": _png(picture), "path": None},
        "width": picture.shape[1],
        "height": picture.shape[0],
        "image_id": image_id,
        "source": "refshapes",
        "split": options.split,
    }
    if drawing.objects:
        words = [{name: getattr(item, name) for name in ATTRIBUTES} for item in sample.scene.objects]
        shared["objects"] = [{**attributes, "box": box} for attributes, box in zip(words, boxes, strict=True)]
    rows: list[dict[str, Any] | None] = []
    for number, expression in enumerate(sample.expressions):
        said = draw_foil(options, sample, number) if drawing.foils else expression
        targets = expression.targets
        alike = {sample.scene.objects[target].shape for target in targets}
        row = {
            **shared,
            "expression": "" if said is None else said.text,
            "box": boxes[targets[0]] if len(targets) == 1 else None,
            "boxes": [boxes[target] for target in targets],
            "no_target": not targets,
            "mask": encode_mask(np.any(visible[list(targets)], axis=0)) if drawing.masks and targets else None,
            "category": alike.pop() if len(alike) == 1 else None,
            "ref_id": f"{image_id}-{'+'.join(map(str, targets)) or 'none'}",
            "sent_id": f"{image_id}-{number}-{expression.kind}",
        }
        if drawing.objects:
            row["context_boxes"] = [] if said is None else [boxes[i] for i in context(said.meaning, sample.scene)]
        rows.append(None if said is None else row)
    return rows


def _scaled(
    picture: np.ndarray, visible: np.ndarray, boxes: list[Any], side: int
) -> tuple[np.ndarray, np.ndarray, list[Any]]:
    """Scale picture, masks and boxes so that the longer side is `side`, as the image processor does (bilinear)."""
    height, width = picture.shape[:2]
    ratio = side / max(height, width)
    size = (max(1, round(width * ratio)), max(1, round(height * ratio)))
    scaled = Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR)
    masks = [Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BILINEAR) for mask in visible]
    stretch = (size[0] / width, size[1] / height) * 2
    moved = [[edge * factor for edge, factor in zip(box, stretch, strict=True)] for box in boxes]
    return np.asarray(scaled), np.stack([np.asarray(mask) >= 128 for mask in masks]), moved


def _png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()
