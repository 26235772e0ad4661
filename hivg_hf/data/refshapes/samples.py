"""RefShapes samples: a scene with expressions, drawn by (split, seed, index), before anything is rendered."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hivg_hf.utils.strict_mapping import refuse_other

from .language import KINDS, PLURAL, Meaning, change_one_word, find_meaning, find_plural
from .scenes import COLORS, SHIFTED_COLORS, STYLES, Scene, sample_scene
from .wordings import say, say_varied, wording_count

_MIXED = (0.40, 0.20, 0.22, 0.10, 0.08)  # attribute, extreme, relation, ordinal, count
_KIND_WEIGHTS = {
    "train": _MIXED,
    "val": _MIXED,
    "testA": (1.0, 0.0, 0.0, 0.0, 0.0),
    "testB": (0.0, 0.0, 1.0, 0.0, 0.0),
    "compositional": (0.60, 0.12, 0.16, 0.08, 0.04),
    "text": _MIXED,
    "none": _MIXED,
    "plural": (0.0, 0.0, 0.0, 0.0, 0.0),
}
# The place of a split and of a style seeds its scenes: new ones come last.
SPLITS = tuple(_KIND_WEIGHTS)
ALL_KINDS = (*KINDS, PLURAL)
SPLITS_WITH_PLURALS = ("train", "val", "text", "none")  # where `plural_fraction` asks for some
WORDINGS = ("standard", "varied")


@dataclass(frozen=True)
class Expression:
    """One expression: its words, what they mean, and the indices of the objects they name, () for none."""

    text: str
    meaning: Meaning
    targets: tuple[int, ...]

    @property
    def target(self) -> int | None:
        """The one object that is named; None for none or several."""
        return self.targets[0] if len(self.targets) == 1 else None

    @property
    def kind(self) -> str:
        """One of `language.KINDS`, or `language.PLURAL`."""
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
    seed: int = 0
    expressions_per_scene: int | None = None
    style: str = "standard"
    kinds: tuple[str, ...] | None = None
    no_target_fraction: float = 0.0
    plural_fraction: float = 0.0
    wordings: str = "standard"

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
        if not 0.0 <= self.plural_fraction <= 1.0:
            raise ValueError(f"plural_fraction is a share between 0 and 1, got {self.plural_fraction}.")
        if self.plural_fraction and self.split not in SPLITS_WITH_PLURALS:
            raise ValueError(
                f"the split {self.split!r} takes no plural_fraction; the splits {', '.join(SPLITS_WITH_PLURALS)} do, "
                "and 'plural' has nothing else."
            )
        if self.plural_fraction and self.kinds is not None and PLURAL not in self.kinds:
            raise ValueError(
                f"plural_fraction {self.plural_fraction} asks for plurals, kinds {list(self.kinds)} leaves them out: "
                f"add {PLURAL!r} to kinds, or omit plural_fraction."
            )
        refuse_other("wordings", self.wordings, WORDINGS)
        if self.wordings != "standard" and self.split == "text":
            raise ValueError("the split 'text' has wordings of its own: leave wordings out.")
        if self.count < 1:
            raise ValueError(f"expressions_per_scene must be at least 1, got {self.count}.")
        unknown = [kind for kind in self.kinds or () if kind not in ALL_KINDS]
        if unknown or self.weights.sum() == 0:
            raise ValueError(
                f"split {self.split!r} has no expressions of kinds {list(self.kinds or ())}; kinds are "
                f"{list(ALL_KINDS)}, the last in the split 'plural' and where plural_fraction asks for it."
            )

    @property
    def count(self) -> int:
        """Expressions per scene."""
        default = 4 if self.split == "train" else 1
        return default if self.expressions_per_scene is None else self.expressions_per_scene

    @property
    def weights(self) -> np.ndarray:
        """Weight of each of `ALL_KINDS`."""
        plural = 1.0 if self.split == "plural" else self.plural_fraction
        weights = np.array([*(weight * (1 - plural) for weight in _KIND_WEIGHTS[self.split]), plural])
        return weights if self.kinds is None else weights * [kind in self.kinds for kind in ALL_KINDS]

    @property
    def colors(self) -> tuple[str, ...]:
        """The colors that objects have."""
        return tuple(COLORS if self.style == "standard" else SHIFTED_COLORS)

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
    plural_fraction: float = 0.0,
    wordings: str = "standard",
) -> Iterator[Sample]:
    """Yield the scenes of a split with their objects and expressions, unrendered, without end.

    The options are those of `refshapes_dataset`, whose rows are these samples' expressions in order; `start` is the
    number of the first scene.
    """
    options = SampleOptions(
        split, seed, expressions_per_scene, style, kinds, no_target_fraction, plural_fraction, wordings
    )
    index = start
    while True:
        yield draw_sample(options, index)
        index += 1


def draw_sample(options: SampleOptions, index: int) -> Sample:
    """Draw kinds first, then scenes until one has an object for the first kind: so the mix of kinds is as asked."""
    rng = options.generator(index, stream=0)
    weights = options.weights / options.weights.sum()
    kinds = [ALL_KINDS[i] for i in rng.choice(len(ALL_KINDS), size=3 * options.count, p=weights)]
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
    found: tuple[Meaning, tuple[int, ...]] | None
    if kind == PLURAL:
        found = find_plural(scene, rng, target)
    else:
        meaning = find_meaning(scene, kind, rng, target, required)
        found = None if meaning is None else (meaning, (target,))
    if found is None:
        return None
    if options.split == "none" or rng.random() < options.no_target_fraction:
        changed = change_one_word(found[0], scene, rng, options.colors)
        return None if changed is None else _expression(options, changed, (), rng)
    return _expression(options, *found, rng)


def _expression(
    options: SampleOptions, meaning: Meaning, targets: tuple[int, ...], rng: np.random.Generator
) -> Expression:
    return Expression(word(options, meaning, rng), meaning, targets)


def word(options: SampleOptions, meaning: Meaning, rng: np.random.Generator) -> str:
    """A meaning in one of the wordings that a split uses."""
    if options.wordings == "varied":
        return say_varied(meaning, rng)
    paraphrase = options.split == "text"
    return say(meaning, int(rng.integers(wording_count(meaning.kind, paraphrase))), paraphrase)


def draw_foil(options: SampleOptions, sample: Sample, number: int) -> Expression | None:
    """An expression that names another object of the scene than expression `number` does, None if there is none."""
    rng = options.generator(sample.index, stream=1 + number)
    others = [i for i in range(len(sample.scene.objects)) if i != sample.expressions[number].target]
    for target in rng.permutation(others):
        for kind in rng.permutation(KINDS):
            if meaning := find_meaning(sample.scene, str(kind), rng, int(target)):
                return _expression(options, meaning, (int(target),), rng)
    return None
