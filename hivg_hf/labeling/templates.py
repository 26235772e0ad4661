"""Writes expressions that single one object out of its scene, from templates.

A template is a sentence with fields, for example `the {color} {category}` or `the {category} {relation} the {anchor}`.
An object gets a template's expression only where it is proved to be the only one that the words fit: by category and
color, then by place or relation with a margin. An unknown color might be any, and a doubtful object counts like a sure
one, so that "the red cup" is not written where a second cup may be red.
"""

import difflib
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .scene import LARGER, MARGIN, Scene, SceneObject, contains

DEFAULT_TEMPLATES = (
    "the {category}",
    "the {color} {category}",
    "the {extreme} {category}",
    "the {extreme} {color} {category}",
    "the {category} on the far {side}",
    "the {ordinal} {category} from the {side}",
    "the {category} {relation} the {anchor}",
    "the {color} {category} {relation} the {anchor}",
)
FIELDS = ("category", "color", "extreme", "ordinal", "side", "relation", "anchor")
EXTREMES = {
    **{"leftmost": "left", "rightmost": "right", "topmost": "top", "bottommost": "bottom"},
    **{"largest": "large", "smallest": "small"},
}
ORDINALS = ("second", "third", "fourth")
RELATIONS = {"left of": "left", "right of": "right", "above": "top", "below": "bottom", "inside": "inside"}


@dataclass(frozen=True)
class Expression:
    """An expression for the object number `target` of its scene, and the template that it was written from."""

    text: str
    target: int
    template: str


def check_template(template: str) -> str:
    """Return a template that can be written from.

    Raises:
        ValueError: a field is unknown, the category is missing, or fields do not go together.
    """
    try:
        fields = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise ValueError(f"The template {template!r} cannot be read: {error}.") from None
    for name in fields:
        if name not in FIELDS:
            near = difflib.get_close_matches(name, FIELDS, n=1)
            hint = f"; did you mean {{{near[0]}}}?" if near else "."
            raise ValueError(f"The template {template!r} has the field {{{name}}}, expected {', '.join(FIELDS)}{hint}")
    names = set(fields)
    if "category" not in names or len(fields) != len(names):
        raise ValueError(f"The template {template!r} needs the field {{category}}, and every field at most once.")
    if ("relation" in names) != ("anchor" in names):
        raise ValueError(f"The template {template!r} has one of {{relation}} and {{anchor}}; they go together.")
    if "ordinal" in names and "side" not in names:
        raise ValueError(f"The template {template!r} counts by {{ordinal}} without saying from which {{side}}.")
    if len(names & {"extreme", "side", "relation"}) > 1:
        raise ValueError(f"The template {template!r} has more than one of {{extreme}}, {{side}} and {{relation}}.")
    return template


def write_expressions(
    scene: Scene, templates: Sequence[str] = DEFAULT_TEMPLATES, per_object: int = 3, seed: Sequence[int] = (0,)
) -> list[Expression]:
    """Write expressions for the objects that are not doubtful.

    Args:
        scene: the picture's objects.
        templates: see `check_template`.
        per_object: at most so many expressions for an object, of different templates while there are enough.
        seed: decides which, together with nothing else: the same scene and seed give the same expressions.

    Returns:
        Expressions by object, each proved to fit no other object of the scene.
    """
    rng = np.random.default_rng(list(seed))
    written: list[Expression] = []
    for target, item in enumerate(scene.objects):
        if item.is_doubtful:
            continue
        by_template = []
        for template in templates:
            texts = list(dict.fromkeys(_texts(template, scene, item)))
            order = rng.permutation(len(texts))
            by_template.append([Expression(texts[number], target, template) for number in order])
        order = rng.permutation(len(by_template))
        chosen: dict[str, Expression] = {}
        for depth in range(max(map(len, by_template), default=0)):  # one of each template before a second of any
            for number in order:
                if depth < len(by_template[number]) and len(chosen) < per_object:
                    expression = by_template[number][depth]
                    chosen.setdefault(expression.text, expression)
        written += chosen.values()
    return written


def _texts(template: str, scene: Scene, target: SceneObject) -> Iterator[str]:
    """Every way to fill a template that names the target alone."""
    fields = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
    if "color" in fields and (target.color is None or target.color in target.category.lower().split()):
        return
    words = {"category": target.category, "color": target.color or ""}
    rivals = [item for item in scene.objects if item is not target and _may_be(item, words, fields)]
    if "extreme" in fields:
        for word, axis in EXTREMES.items():
            if rivals and all(_clearly_beyond(scene, target, other, axis) for other in rivals):
                yield template.format(**words, extreme=word)
    elif "side" in fields:
        yield from _counted(template, scene, target, rivals, words, "ordinal" in fields)
    elif "relation" in fields:
        yield from _related(template, scene, target, rivals, words)
    elif not rivals:
        yield template.format(**words)


def _may_be(item: SceneObject, words: dict[str, str], fields: set[str]) -> bool:
    """Whether an object might be called by the category and the color."""
    if not same_category(item.category, words["category"]):
        return False
    return "color" not in fields or item.color in (None, words["color"])


def same_category(one: str, other: str) -> bool:
    """Whether one label's words are among the other's: a "car" might be the "red car"."""
    first, second = set(one.lower().split()), set(other.lower().split())
    return first <= second or second <= first


def _counted(
    template: str,
    scene: Scene,
    target: SceneObject,
    rivals: list[SceneObject],
    words: dict[str, str],
    is_ordinal: bool,
) -> Iterator[str]:
    if not rivals:
        return
    for side in ("left", "right") if not is_ordinal else ("left", "right", "top", "bottom"):
        if not is_ordinal:
            if all(_clearly_beyond(scene, target, other, side) for other in rivals):
                yield template.format(**words, side=side)
            continue
        ordered = scene.order([target, *rivals], side)
        place = 0 if ordered is None else next(n for n, item in enumerate(ordered) if item is target)
        if 1 <= place <= len(ORDINALS):
            yield template.format(**words, side=side, ordinal=ORDINALS[place - 1])


def _related(
    template: str, scene: Scene, target: SceneObject, rivals: list[SceneObject], words: dict[str, str]
) -> Iterator[str]:
    if not rivals:
        return  # the category alone says it; a relation would be true, and would teach nothing
    for anchor in scene.objects:
        name = _unique_name(scene, anchor)
        if anchor is target or anchor.is_doubtful or name is None or same_category(anchor.category, target.category):
            continue
        for word, kind in RELATIONS.items():
            others = [item for item in rivals if item is not anchor]
            if _holds(scene, target, anchor, kind) and not any(_may_hold(scene, o, anchor, kind) for o in others):
                yield template.format(**words, relation=word, anchor=name)


def _unique_name(scene: Scene, item: SceneObject) -> str | None:
    """The shortest of category, and color and category, that names an object alone."""
    for fields in ({"category"}, {"category", "color"}):
        words = {"category": item.category, "color": item.color or ""}
        if "color" in fields and item.color is None:
            return None
        if not any(other is not item and _may_be(other, words, fields) for other in scene.objects):
            return " ".join([words["color"], words["category"]]) if "color" in fields else words["category"]
    return None


def _clearly_beyond(scene: Scene, one: SceneObject, other: SceneObject, axis: str) -> bool:
    if axis == "large":
        return one.area >= LARGER * other.area
    if axis == "small":
        return other.area >= LARGER * one.area
    return scene.offset(one, other, axis) >= MARGIN


def _holds(scene: Scene, one: SceneObject, anchor: SceneObject, kind: str) -> bool:
    """Whether people would say it: mostly to that side, beyond the margin."""
    if kind == "inside":
        return contains(anchor, one)
    if contains(anchor, one) or contains(one, anchor):
        return False
    aside = abs(scene.offset(one, anchor, "top" if kind in ("left", "right") else "left"))
    return scene.offset(one, anchor, kind) >= max(MARGIN, aside)


def _may_hold(scene: Scene, one: SceneObject, anchor: SceneObject, kind: str) -> bool:
    """Whether anybody could say it."""
    if kind == "inside":
        center = one.center
        return anchor.box[0] <= center[0] <= anchor.box[2] and anchor.box[1] <= center[1] <= anchor.box[3]
    return scene.offset(one, anchor, kind) > -MARGIN
