"""Negatives of RefShapes: proved by the scene itself, where a table could only compare words."""

import numpy as np

from .language import change_one_word, referents
from .samples import Sample, SampleOptions, draw_sample, word

TRIES, REACH = 4, 16  # other scenes that are looked at for one row, among so many that follow it
_SCENES_KEPT = 64


class SceneNegatives:
    """Expressions that no object of a row's scene fits; see `hivg_hf.data.negatives.NegativeMaker`.

    Scenes are drawn again from their number (some 20 ms a scene, without rendering). Where rows are wanted faster,
    `no_target_fraction` puts the same edits into the rendered table, once.

    Args:
        options: Those that the rows were drawn with.
        scenes: How many scenes the rows are of.
    """

    def __init__(self, options: SampleOptions, scenes: int) -> None:
        self.options, self.scenes = options, scenes
        self._drawn: dict[int, Sample] = {}

    def edited(self, index: int, rng: np.random.Generator) -> str | None:
        """The row's meaning with one word changed, in words of the split."""
        scene, number = divmod(index, self.options.count)
        sample = self._sample(scene)
        changed = change_one_word(sample.expressions[number].meaning, sample.scene, rng, self.options.colors)
        return None if changed is None else word(self.options, changed, rng)

    def other_image(self, index: int, rng: np.random.Generator) -> str | None:
        """An expression of a scene not far behind that names nothing in the row's."""
        own = index // self.options.count
        scene = self._sample(own).scene
        for step in rng.integers(1, REACH + 1, size=TRIES):
            number = (own + int(step)) % self.scenes
            expressions = self._sample(number).expressions
            other = expressions[int(rng.integers(len(expressions)))]
            if number != own and referents(other.meaning, scene) == []:
                return other.text
        return None

    def _sample(self, number: int) -> Sample:
        if number not in self._drawn:
            if len(self._drawn) >= _SCENES_KEPT:
                self._drawn.pop(next(iter(self._drawn)))
            self._drawn[number] = draw_sample(self.options, number)
        return self._drawn[number]
