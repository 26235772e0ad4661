"""The objects of one picture, as a teacher sees them, and what is clearly true of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from hivg_hf.metrics.overlaps import paired_iou

MARGIN = 0.04  # of the picture's side: centers nearer than this lie neither left nor right of each other
LARGER = 1.3  # an area that many times another one is clearly larger
SAME_OBJECT = 0.6  # IoU from which two boxes of one label are one object, or of any labels
SIDES = ("left", "right", "top", "bottom")


@dataclass(frozen=True)
class SceneObject:
    """One object.

    Attributes:
        category: the teacher's label.
        box: xyxy pixels.
        score: the teacher's, 0..1.
        color: its color's name, None where that is unclear.
        is_doubtful: below the threshold for labels: never described, but never overlooked as a distractor.
    """

    category: str
    box: tuple[float, float, float, float]
    score: float
    color: str | None = None
    is_doubtful: bool = False

    @property
    def center(self) -> tuple[float, float]:
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2

    @property
    def area(self) -> float:
        return (self.box[2] - self.box[0]) * (self.box[3] - self.box[1])


@dataclass(frozen=True)
class Scene:
    """A picture's size in pixels and its objects."""

    width: int
    height: int
    objects: tuple[SceneObject, ...]

    def offset(self, one: SceneObject, other: SceneObject, side: str) -> float:
        """How much farther `one` lies to a side than `other`, center to center, relative to the picture's side."""
        along = 0 if side in ("left", "right") else 1
        distance = (one.center[along] - other.center[along]) / (self.width, self.height)[along]
        return -distance if side in ("left", "top") else distance

    def order(self, objects: Sequence[SceneObject], side: str) -> list[SceneObject] | None:
        """Objects from a side on; None where two neighbors are too close to tell."""
        origin = objects[0]
        ordered = sorted(objects, key=lambda item: -self.offset(item, origin, side))
        clear = all(self.offset(one, other, side) >= MARGIN for one, other in pairwise(ordered))
        return ordered if clear else None


def contains(outer: SceneObject, inner: SceneObject) -> bool:
    """Whether a box lies in a clearly larger one, but for a tenth of its area."""
    shared = np.minimum(outer.box[2:], inner.box[2:]) - np.maximum(outer.box[:2], inner.box[:2])
    return bool(np.prod(np.maximum(shared, 0)) >= 0.9 * inner.area and outer.area >= LARGER * inner.area)


def distinct(objects: Sequence[SceneObject]) -> list[SceneObject]:
    """Without repetitions: of boxes that are one object, the one with the highest score, best first.

    Detectors box an object twice, or as "cup" and "mug"; a repetition would stand as a distractor beside itself.
    """
    kept: list[SceneObject] = []
    for item in sorted(objects, key=lambda item: -item.score):
        others = np.array([other.box for other in kept]).reshape(-1, 4)
        if (paired_iou(np.tile(item.box, (len(kept), 1)), others) < SAME_OBJECT).all():
            kept.append(item)
    return kept
