"""Teachers of these tests: detectors of transformers with random weights, and one that knows the truth."""

import PIL.Image
import PIL.ImageDraw
import pytest

from helpers.zero_shot_models import clip, encoder, florence2, grounding_dino, owlv2
from hivg_hf.zero_shot.detector import Detection

__all__ = ["clip", "encoder", "florence2", "grounding_dino", "owlv2"]


class KnowingTeacher:
    """Finds what it was given for a picture of this size."""

    name = "knows"

    def __init__(self, objects):
        self.objects, self.asked = objects, 0

    def __call__(self, picture, threshold):
        self.asked += 1
        found = self.objects.get(picture.size, [])
        return [Detection(*one) for one in found if one[2] >= threshold]


@pytest.fixture
def scene(tmp_path):
    """A picture of 200 x 100 pixels: a red and a blue cup beside each other, and a green plate on the right."""
    image = PIL.Image.new("RGB", (200, 100), (235, 235, 235))
    draw = PIL.ImageDraw.Draw(image)
    draw.rectangle((10, 30, 39, 69), fill=(205, 30, 35))
    draw.rectangle((70, 30, 99, 69), fill=(35, 80, 200))
    draw.ellipse((130, 30, 189, 79), fill=(40, 140, 60))
    (tmp_path / "photos").mkdir()
    image.save(tmp_path / "photos" / "scene.png")
    return tmp_path / "photos" / "scene.png"


@pytest.fixture
def teacher():
    objects = [
        ("cup", (10.0, 30.0, 40.0, 70.0), 0.9),
        ("a Cup", (70.0, 30.0, 100.0, 70.0), 0.8),
        ("plate", (130.0, 30.0, 190.0, 80.0), 0.7),
    ]
    return KnowingTeacher({(200, 100): objects})
