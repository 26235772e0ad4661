"""RefShapes samples: a scene with expressions, drawn by (split, seed, index), before anything is rendered."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .language import KINDS, Meaning, change_one_word, find_meaning, say, wording_count
from .scenes import COLORS, SHIFTED_COLORS, STYLES, Scene, sample_scene

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


@dataclass(frozen=True)
class Expression:
    """One expression: its words, what they mean, and the index of the object they name (None: no object)."""

    text: str
    meaning: Meaning
    target: int | None

    @property
    def kind(self) -> str:
        """One of `language.KINDS`."""
        return self.meaning.kind


@dataclass(frozen=True)
class Sample:
    """A scene with its expressions; `index` is the scene's number in the split."""

    index: int
    scene: Scene
    expressions: tuple[Expression, ...]


@dataclass(frozen=True)
class SampleOptions:
    """What decides the samples of a split, checked; the arguments of `refshapes_dataset` tell each."""

    split: str
    seed: int
    expressions_per_scene: int | None
    style: str
    kinds: tuple[str, ...] | None
    no_target_fraction: float

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"unknown RefShapes split {self.split!r}; expected one of {', '.join(SPLITS)}.")
        if self.style not in STYLES:
            raise ValueError(f"unknown RefShapes style {self.style!r}; expected one of {', '.join(STYLES)}.")
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
        """Expressions per scene."""
        default = 4 if self.split == "train" else 1
        return default if self.expressions_per_scene is None else self.expressions_per_scene

    @property
    def weights(self) -> np.ndarray:
        """Weight of each of `KINDS`."""
        weights = np.array(_KIND_WEIGHTS[self.split])
        return weights if self.kinds is None else weights * [kind in self.kinds for kind in KINDS]

    def generator(self, index: int, stream: int) -> np.random.Generator:
        """Random numbers of a scene: stream 0 draws it, stream 1 + n the foil of expression n."""
        key = [SPLITS.index(self.split), self.seed, index, STYLES.index(self.style), stream]
        return np.random.default_rng(np.random.SeedSequence(key))


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
    options = SampleOptions(split, seed, expressions_per_scene, style, kinds, no_target_fraction)
    index = start
    while True:
        yield draw_sample(options, index)
        index += 1


def draw_sample(options: SampleOptions, index: int) -> Sample:
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


def _draw_expression(options: SampleOptions, scene: Scene, kind: str, rng: np.random.Generator) -> Expression | None:
    target = 0 if options.split == "compositional" else int(rng.integers(len(scene.objects)))
    required = ("color", "shape") if options.split == "compositional" else ()
    if (meaning := find_meaning(scene, kind, rng, target, required)) is None:
        return None
    if options.split == "none" or rng.random() < options.no_target_fraction:
        palette = COLORS if options.style == "standard" else SHIFTED_COLORS
        meaning = change_one_word(meaning, scene, rng, tuple(palette))
        return None if meaning is None else _expression(options, meaning, None, rng)
    return _expression(options, meaning, target, rng)


def _expression(options: SampleOptions, meaning: Meaning, target: int | None, rng: np.random.Generator) -> Expression:
    paraphrase = options.split == "text"
    wording = int(rng.integers(wording_count(meaning.kind, paraphrase)))
    return Expression(say(meaning, wording, paraphrase), meaning, target)


def draw_foil(options: SampleOptions, sample: Sample, number: int) -> Expression | None:
    """An expression that names another object of the scene than expression `number` does, None if there is none."""
    rng = options.generator(sample.index, stream=1 + number)
    others = [i for i in range(len(sample.scene.objects)) if i != sample.expressions[number].target]
    for target in rng.permutation(others):
        for kind in rng.permutation(KINDS):
            if meaning := find_meaning(sample.scene, str(kind), rng, int(target)):
                return _expression(options, meaning, int(target), rng)
    return None
