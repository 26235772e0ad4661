"""Colors in words."""

import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest

from hivg_hf.data.refshapes import refshapes_dataset
from hivg_hf.data.refshapes.scenes import COLORS
from hivg_hf.labeling.colors import PALETTE, name_color, rgb_to_lab


def drawn(rgb, ground=(128, 128, 128), shape="rectangle"):
    image = PIL.Image.new("RGB", (80, 60), ground)
    getattr(PIL.ImageDraw.Draw(image), shape)((20, 10, 59, 49), fill=rgb)
    return image


BOX = (20, 10, 60, 50)


@pytest.mark.parametrize("name", [name for name in PALETTE if name not in ("gray", "")])
def test_every_color_is_named_on_gray(name):
    assert name_color(drawn(PALETTE[name][0]), BOX) == name


def test_gray_is_named_on_white():
    assert name_color(drawn((128, 128, 128), ground=(250, 250, 250)), BOX) == "gray"


def test_turquoise_is_not_named():
    assert name_color(drawn((50, 205, 215)), BOX) is None


def test_the_ground_inside_the_box_does_not_count():
    """A thin ring on white: most of its box is ground."""
    image = PIL.Image.new("RGB", (80, 60), "white")
    PIL.ImageDraw.Draw(image).ellipse((20, 10, 59, 49), outline=(35, 80, 200), width=6)
    assert name_color(image, BOX) == "blue"


def test_a_box_that_looks_like_its_surroundings_has_no_color():
    assert name_color(drawn((128, 128, 128)), BOX) is None


def test_two_colors_in_one_box_are_not_named():
    image = drawn((205, 30, 35))
    PIL.ImageDraw.Draw(image).rectangle((20, 10, 39, 49), fill=(35, 80, 200))
    assert name_color(image, BOX) is None


def test_a_box_that_fills_the_picture_has_a_color():
    assert name_color(PIL.Image.new("RGB", (9, 5), (240, 215, 50)), (0, 0, 9, 5)) == "yellow"


def test_a_box_of_less_than_a_pixel_at_the_edge_is_looked_at():
    assert name_color(drawn((205, 30, 35)), (79.6, 59.7, 80, 60)) is None


@pytest.mark.parametrize(
    ("rgb", "lab"), [((255, 255, 255), (100, 0, 0)), ((0, 0, 0), (0, 0, 0)), ((255, 0, 0), (53.24, 80.09, 67.20))]
)
def test_lab_values_are_the_published_ones(rgb, lab):
    assert rgb_to_lab(np.array(rgb)) == pytest.approx(lab, abs=0.1)


def test_colors_of_refshapes_are_named_by_its_own_palette():
    palette = {name: (rgb,) for name, rgb in COLORS.items()} | {"gray": PALETTE["gray"], "dark": ((40, 40, 40),)}
    palette["light"] = ((220, 220, 220),)
    right = wrong = 0
    for row in refshapes_dataset("val", seed=12, size=30, objects=True, masks=False):
        for item in row["objects"]:
            name = name_color(row["image"], item["box"], palette)
            right += name == item["color"]
            wrong += name not in (item["color"], None)
    assert right / (right + wrong) > 0.85
    assert right > 50
