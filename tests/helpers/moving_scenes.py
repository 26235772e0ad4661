"""RefShapes scenes in which the target moves: videos whose boxes are known in every frame."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import PIL.Image

from hivg_hf.data.refshapes import refshapes_samples
from hivg_hf.data.refshapes.render import render_scene


def moving_scene(number: int, frames: int) -> tuple[str, Iterator[tuple[PIL.Image.Image, np.ndarray]]]:
    """An expression that attributes alone decide, and the frames: (picture, its target's box (4,) xyxy pixels)."""
    sample = next(islice(refshapes_samples("testA", seed=11), number, None))
    expression = sample.expressions[0]
    scene, target = sample.scene, expression.target

    def draw() -> Iterator[tuple[PIL.Image.Image, np.ndarray]]:
        for frame in range(frames):
            item = scene.objects[target]
            angle = 2 * np.pi * frame / 60
            reach = 0.3 * item.side
            moved = replace(
                item,
                center_x=float(
                    np.clip(item.center_x + reach * np.sin(angle), item.side / 2, scene.width - item.side / 2)
                ),
                center_y=float(
                    np.clip(item.center_y + reach * np.cos(angle), item.side / 2, scene.height - item.side / 2)
                ),
            )
            objects = [one if place != target else moved for place, one in enumerate(scene.objects)]
            pixels, _ = render_scene(replace(scene, objects=tuple(objects)))
            yield PIL.Image.fromarray(pixels), np.array(moved.box_xyxy)

    return expression.text, draw()


def write_video(path: Path, pictures: list[PIL.Image.Image]) -> None:
    """Pictures as a video file, 25 frames per second."""
    from hivg_hf.inference.video import VideoWriter

    writer = VideoWriter(path, 25)
    for picture in pictures:
        writer.write(picture)
    writer.finish()
    writer.close()
