"""RefShapes: rendered scenes and expressions that name exactly one object, in the one schema.

Everything is a function of (split, seed, index), so that no evaluation scene can be a training scene and nothing
has to be downloaded. The splits ask different things:

- train, val: all kinds of expressions; train has several expressions per scene.
- testA: attributes. testB: relations.
- compositional: the target's shape and colour were never rendered together in any other split.
- text: wordings that no other split uses.
- none: expressions that name nothing in the picture, by one changed word.

`image_id` is `<split>-<seed>-<scene>`, `ref_id` adds the object (or "none"), `sent_id` the expression and its kind.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets
from PIL import Image

from hivg_hf.data.refshapes_language import (
    KINDS,
    Meaning,
    change_one_word,
    find_meaning,
    say,
    wording_count,
)
from hivg_hf.data.refshapes_render import render_scene
from hivg_hf.data.refshapes_scenes import COLORS, SHIFTED_COLORS, Scene, sample_scene
from hivg_hf.data.schema import FEATURES, encode_mask, mask_to_box

_MIXED = (0.40, 0.20, 0.22, 0.10, 0.08)  # attribute, extreme, relation, ordinal, count
_KIND_WEIGHTS = {
    "train": _MIXED,
    "val": _MIXED,
    "testA": (1.0, 0.0, 0.0, 0.0, 0.0),
    "testB": (0.0, 0.0, 1.0, 0.0, 0.0),
    "compositional": (0.60, 0.12, 0.16, 0.08, 0.04),
    "text": _MIXED,
    "none": _MIXED,
}
SPLITS = tuple(_KIND_WEIGHTS)
_STYLES = ("standard", "outline-noise")
_ROWS_PER_TABLE = 1000


@dataclass(frozen=True)
class Expression:
    """One expression: its words, what they mean, and the index of the object they name (None: no object)."""

    text: str
    meaning: Meaning
    target: int | None

    @property
    def kind(self) -> str:
        """One of `refshapes_language.KINDS`."""
        return self.meaning.kind


@dataclass(frozen=True)
class Sample:
    """A scene with its expressions; `index` is the scene's number in the split."""

    index: int
    scene: Scene
    expressions: tuple[Expression, ...]


def refshapes_dataset(
    split: str,
    seed: int = 0,
    size: int = 2000,
    *,
    expressions_per_scene: int | None = None,
    style: str = "standard",
    kinds: tuple[str, ...] | None = None,
    no_target_fraction: float = 0.0,
    foils: bool = False,
    masks: bool = True,
) -> Dataset:
    """Render a RefShapes split.

    Args:
        split: One of `SPLITS`.
        seed: Another seed gives other scenes.
        size: Number of rows.
        expressions_per_scene: Rows that share a picture; by default 4 in `train` and 1 elsewhere.
        style: "standard", or "outline-noise": outlines on strong noise in four colours that nothing else has.
        kinds: Only these kinds of expressions (attribute, extreme, relation, ordinal, count).
        no_target_fraction: Share of rows whose expression is changed by one word so that it names nothing.
        foils: The control: the same rows, boxes and masks, but each expression names another object of its scene.
            Rows whose scene has no other object that an expression could name are left out, so that
            `size - len(dataset)` counts them.
        masks: False leaves the masks out (None), which halves the time.

    Returns:
        A dataset of `FEATURES` with PNG-encoded images.

    Raises:
        ValueError: an option is unknown or out of range.
    """
    options = _Options(split, seed, expressions_per_scene, style, kinds, no_target_fraction)
    if size < 1:
        raise ValueError(f"size is the number of rows and must be at least 1, got {size}.")
    if foils and (split == "none" or no_target_fraction):
        raise ValueError("foils need a target in every row; leave out split 'none' and no_target_fraction.")
    rows = islice(_rows(options, foils, masks), size)
    if foils:  # counted by position in the original, so that the pairing by sent_id stays whole
        rows = (row for row in rows if row is not None)
    tables = []
    while chunk := list(islice(rows, _ROWS_PER_TABLE)):
        tables.append(Dataset.from_list(chunk, features=FEATURES))
    return concatenate_datasets(tables)


def refshapes_samples(
    split: str,
    seed: int = 0,
    *,
    start: int = 0,
    expressions_per_scene: int | None = None,
    style: str = "standard",
    kinds: tuple[str, ...] | None = None,
    no_target_fraction: float = 0.0,
) -> Iterator[Sample]:
    """Yield the scenes of a split with their objects and expressions, unrendered, without end.

    The options are those of `refshapes_dataset`, whose rows are these samples' expressions in order; `start` is the
    number of the first scene.
    """
    options = _Options(split, seed, expressions_per_scene, style, kinds, no_target_fraction)
    index = start
    while True:
        yield _draw_sample(options, index)
        index += 1


@dataclass(frozen=True)
class _Options:
    split: str
    seed: int
    expressions_per_scene: int | None
    style: str
    kinds: tuple[str, ...] | None
    no_target_fraction: float

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"unknown RefShapes split {self.split!r}; expected one of {', '.join(SPLITS)}.")
        if self.style not in _STYLES:
            raise ValueError(f"unknown RefShapes style {self.style!r}; expected one of {', '.join(_STYLES)}.")
        if self.seed < 0:
            raise ValueError(f"a RefShapes seed is 0 or more, got {self.seed}.")
        if self.style != "standard" and self.split == "compositional":
            raise ValueError(f"the split 'compositional' has no style {self.style!r}; use 'standard'.")
        if not 0.0 <= self.no_target_fraction <= 1.0:
            raise ValueError(f"no_target_fraction is a share between 0 and 1, got {self.no_target_fraction}.")
        if self.count < 1:
            raise ValueError(f"expressions_per_scene must be at least 1, got {self.count}.")
        unknown = [kind for kind in self.kinds or () if kind not in KINDS]
        if unknown or self.weights.sum() == 0:
            raise ValueError(
                f"split {self.split!r} has no expressions of kinds {list(self.kinds or ())}; kinds are {list(KINDS)}."
            )

    @property
    def count(self) -> int:
        default = 4 if self.split == "train" else 1
        return default if self.expressions_per_scene is None else self.expressions_per_scene

    @property
    def weights(self) -> np.ndarray:
        weights = np.array(_KIND_WEIGHTS[self.split])
        return weights if self.kinds is None else weights * [kind in self.kinds for kind in KINDS]

    def generator(self, index: int, stream: int) -> np.random.Generator:
        key = [SPLITS.index(self.split), self.seed, index, _STYLES.index(self.style), stream]
        return np.random.default_rng(np.random.SeedSequence(key))


def _draw_sample(options: _Options, index: int) -> Sample:
    """Draw kinds first, then scenes until one has an object for the first kind: so the mix of kinds is as asked."""
    rng = options.generator(index, stream=0)
    weights = options.weights / options.weights.sum()
    kinds = [KINDS[i] for i in rng.choice(len(KINDS), size=3 * options.count, p=weights)]
    while True:
        scene = sample_scene(rng, options.style, held_out=options.split == "compositional")
        if (first := _draw_expression(options, scene, kinds[0], rng)) is None:
            continue
        found = {first.text: first}
        for kind in kinds[1:]:
            if len(found) == options.count:
                break
            if expression := _draw_expression(options, scene, kind, rng):
                found.setdefault(expression.text, expression)
        if len(found) == options.count:
            return Sample(index, scene, tuple(found.values()))


def _draw_expression(options: _Options, scene: Scene, kind: str, rng: np.random.Generator) -> Expression | None:
    target = 0 if options.split == "compositional" else int(rng.integers(len(scene.objects)))
    required = ("color", "shape") if options.split == "compositional" else ()
    if (meaning := find_meaning(scene, kind, rng, target, required)) is None:
        return None
    if options.split == "none" or rng.random() < options.no_target_fraction:
        palette = COLORS if options.style == "standard" else SHIFTED_COLORS
        meaning = change_one_word(meaning, scene, rng, tuple(palette))
        return None if meaning is None else _expression(options, meaning, None, rng)
    return _expression(options, meaning, target, rng)


def _expression(options: _Options, meaning: Meaning, target: int | None, rng: np.random.Generator) -> Expression:
    paraphrase = options.split == "text"
    wording = int(rng.integers(wording_count(meaning.kind, paraphrase)))
    return Expression(say(meaning, wording, paraphrase), meaning, target)


def _rows(options: _Options, foils: bool, masks: bool) -> Iterator[dict[str, Any] | None]:
    """Yield rows of the schema; None in place of a foil that does not exist."""
    index = 0
    while True:
        sample = _draw_sample(options, index)
        picture, visible = render_scene(sample.scene)
        image = {"bytes": _png(picture), "path": None}
        image_id = f"{options.split}-{options.seed}-{index}"
        if options.style != "standard":
            image_id = f"{options.style}-{image_id}"
        for number, expression in enumerate(sample.expressions):
            said = _foil(options, sample, number) if foils else expression
            if said is None:
                yield None
                continue
            mask = None if expression.target is None else visible[expression.target]
            yield _row(options.split, image, image_id, number, sample.scene, expression, said.text, mask, masks)
        index += 1


def _row(
    split: str,
    image: dict[str, Any],
    image_id: str,
    number: int,
    scene: Scene,
    expression: Expression,
    text: str,
    mask: np.ndarray | None,
    masks: bool,
) -> dict[str, Any]:
    box = None if mask is None else mask_to_box(mask)
    item = None if expression.target is None else scene.objects[expression.target]
    return {
        "image": image,
        "expression": text,
        "box": box,
        "boxes": [] if box is None else [box],
        "no_target": box is None,
        "mask": encode_mask(mask) if masks and mask is not None else None,
        "width": scene.width,
        "height": scene.height,
        "category": None if item is None else item.shape,
        "image_id": image_id,
        "ref_id": f"{image_id}-{'none' if expression.target is None else expression.target}",
        "sent_id": f"{image_id}-{number}-{expression.kind}",
        "source": "refshapes",
        "split": split,
    }


def _foil(options: _Options, sample: Sample, number: int) -> Expression | None:
    """An expression that names another object of the scene than expression `number` does, None if there is none."""
    rng = options.generator(sample.index, stream=1 + number)
    others = [i for i in range(len(sample.scene.objects)) if i != sample.expressions[number].target]
    for target in rng.permutation(others):
        for kind in rng.permutation(KINDS):
            if meaning := find_meaning(sample.scene, str(kind), rng, int(target)):
                return _expression(options, meaning, int(target), rng)
    return None


def _png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()
