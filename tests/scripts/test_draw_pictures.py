"""The gallery shows what the shipped model answers, and its pictures are small enough for a page."""

import re
from pathlib import Path

import PIL.Image
import pytest

import hivg_hf
from hivg_hf.data.refshapes import refshapes_dataset
from hivg_hf.inference import load_pipeline
from hivg_hf.visualize import draw_grounding
from scripts.draw_pictures import DOCS, EXAMPLES, MARKERS, Example, ground, label_covers_an_object

CAPTION = re.compile(
    r'^"(?P<text>.+)": scores? (?P<scores>[\d., ]*\d).*split `\w+`, seed (?P<seed>\d+), row (?P<row>\d+)'
)
PART = (DOCS / "gallery.md").read_text(encoding="utf-8").partition(MARKERS[0])[2].partition(MARKERS[1])[0]


@pytest.fixture(scope="module")
def pipe():
    if not Path(hivg_hf.TINY_CHECKPOINT).is_dir():
        pytest.skip("the shipped checkpoint is not there")
    return load_pipeline(hivg_hf.TINY_CHECKPOINT)


@pytest.mark.parametrize(("example", "section"), list(zip(EXAMPLES, PART.split("\n## ")[1:], strict=True)))
def test_a_caption_says_what_the_shipped_model_answers(example: Example, section: str, pipe) -> None:
    title, picture, caption = section.strip().split("\n\n")
    assert title == example.title
    assert f"(images/gallery/{example.name}.webp)" in picture
    said = CAPTION.match(caption)
    assert said is not None
    seed, number = int(said["seed"]), int(said["row"])
    row = refshapes_dataset(example.split, seed=seed, size=number + 1, kinds=example.kinds, masks=False, objects=True)[
        number
    ]
    assert row["expression"] == said["text"]
    answers = ground(pipe, row, example)
    assert [answer["score"] for answer in answers] == pytest.approx(
        [float(score) for score in said["scores"].split(", ")], abs=0.015
    )
    assert example.shows(answers, row)


def test_pictures_are_small_and_all_of_them_are_shown() -> None:
    files = sorted((DOCS / "images" / "gallery").iterdir())
    assert [file.stem for file in files] == sorted(example.name for example in EXAMPLES)
    sizes = [file.stat().st_size for file in files]
    assert max(sizes) < 60_000
    assert sum(sizes) < 400_000


def test_a_label_on_an_object_is_noticed_and_a_box_around_it_is_not() -> None:
    scene = PIL.Image.new("RGB", (480, 480), (90, 90, 90))
    answer = {"expression": "the mug", "score": 0.9, "box": {"xmin": 200, "ymin": 200, "xmax": 300, "ymax": 300}}
    drawn = draw_grounding(scene, [answer])
    mug = {"box": [200, 200, 300, 300]}
    assert not label_covers_an_object(drawn, {"image": scene, "objects": [mug]})
    assert label_covers_an_object(drawn, {"image": scene, "objects": [mug, {"box": [190, 140, 240, 195]}]})
