"""A few RefShapes scenes of different forms, as pictures to try a model on."""

from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

import PIL.Image

from .dataset import refshapes_dataset

# The name of a picture, and the aspect ratio (width / height) it should have at least and at most.
FORMS = {"wide": (1.4, 9.0), "tall": (0.0, 0.7), "square": (0.9, 1.1), "another": (0.0, 9.0)}
EXPRESSIONS_PER_SCENE = 3
SCENES_TO_CHOOSE_FROM = 16


class ExampleScene(NamedTuple):
    """A picture and expressions that each name one object in it."""

    name: str
    image: PIL.Image.Image
    expressions: list[str]


def example_scenes(seed: int) -> Iterator[ExampleScene]:
    """A scene of each form, of split `val`, which no training has seen; another seed gives others."""
    rows = refshapes_dataset(
        "val",
        seed=seed,
        size=SCENES_TO_CHOOSE_FROM * EXPRESSIONS_PER_SCENE,
        expressions_per_scene=EXPRESSIONS_PER_SCENE,
        masks=False,
    )
    scenes = [list(group) for _, group in groupby(rows, key=lambda row: row["image_id"])]
    scenes = [scene for scene in scenes if len({row["expression"] for row in scene}) == EXPRESSIONS_PER_SCENE]
    for name, (least, most) in FORMS.items():
        scene = next((rows for rows in scenes if least <= rows[0]["width"] / rows[0]["height"] <= most), None)
        if scene is not None:
            scenes.remove(scene)
            yield ExampleScene(name, scene[0]["image"], [row["expression"] for row in scene])
