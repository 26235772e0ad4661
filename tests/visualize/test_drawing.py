"""Drawn labels can be read: inside the picture, in contrast, at a size that follows the picture's."""

import time
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.turned_pictures import UNDONE, save_turned
from hivg_hf.modeling.pipeline_streams_hivg import GroundingResults
from hivg_hf.visualize import draw_grounding, draw_heatmap, drawing


def result(box: tuple[float, float, float, float], expression: str = "the red mug", **more: Any) -> dict[str, Any]:
    return {"expression": expression, "box": dict(zip(("xmin", "ymin", "xmax", "ymax"), box)), "score": 0.87, **more}


def plates_of(picture: PIL.Image.Image, color: tuple[int, int, int]) -> np.ndarray:
    return (np.asarray(picture) == color).all(-1)


@pytest.mark.parametrize("orientation", UNDONE)
def test_boxes_are_drawn_on_the_picture_that_was_grounded(orientation: int, tmp_path: Any) -> None:
    """Files upright, objects as they are held: as the pipeline takes them."""
    upright = PIL.Image.new("RGB", (600, 500))
    upright.paste((200, 200, 200), (10, 20, 60, 90))
    stored = save_turned(upright, tmp_path / "a.png", orientation)
    drawn = draw_grounding(tmp_path / "a.png", [result((10, 20, 60, 90))])
    assert np.array_equal(np.asarray(drawn), np.asarray(draw_grounding(upright, [result((10, 20, 60, 90))])))
    with PIL.Image.open(tmp_path / "a.png") as held:
        assert np.array_equal(np.asarray(draw_grounding(held, [])), np.asarray(stored))


@pytest.mark.parametrize("size", [(64, 64), (64, 200), (640, 480), (1200, 90), (4000, 3000)])
def test_labels_are_large_enough_and_inside(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    plates = []
    original = drawing._place_label
    monkeypatch.setattr(drawing, "_place_label", lambda *args: plates.append(original(*args)) or plates[-1])
    width, height = size
    boxes = [(0, 0, width / 2, height / 3), (width * 0.7, height * 0.7, width, height)]
    picture = draw_grounding(PIL.Image.new("RGB", size), [result(box) for box in boxes])
    assert max(picture.size) >= 480
    assert picture.width / picture.height == pytest.approx(width / height, rel=0.02)
    assert len(plates) == 2
    for plate in plates:
        assert 0 <= plate.left < plate.right <= picture.width
        assert 0 <= plate.top < plate.bottom <= picture.height
        assert plate.bottom - plate.top >= max(13, min(max(picture.size) / 40, min(picture.size) / 8))
    assert plates[0].overlap(plates[1]) == 0


def test_ink_stands_out_from_every_plate() -> None:
    def luminance(color: tuple[int, ...]) -> float:
        linear = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in color]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for place, color in enumerate(drawing.COLORS):
        entries = [result((0, 0, 5, 5), expression="")] * place + [result((200, 200, 260, 260), "MMMMMM")]
        plate = np.asarray(draw_grounding(PIL.Image.new("RGB", (600, 600), (1, 2, 3)), entries))[150:200, 190:300]
        inks = {tuple(pixel) for pixel in plate.reshape(-1, 3).tolist()} & {(0, 0, 0), (255, 255, 255)}
        assert len(inks) == 1
        light, dark = sorted((luminance(color), luminance(inks.pop())), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 3  # what WCAG asks of large letters


@given(st.integers(30, 500), st.integers(20, 200), st.lists(st.floats(0, 1), min_size=4, max_size=4))
@settings(max_examples=100, deadline=None)
def test_a_label_that_fits_is_never_moved_out(width: int, height: int, corners: list[float]) -> None:
    size = (600, 400)
    (x1, x2), (y1, y2) = sorted(corners[:2]), sorted(corners[2:])
    box = drawing._Rectangle(x1 * 600, y1 * 400, x2 * 600, y2 * 400)
    plate = drawing._place_label(size, width, height, box, 2, [], [box])
    assert 0 <= plate.left
    assert plate.right <= 600
    assert 0 <= plate.top
    assert plate.bottom <= 400


def test_a_long_expression_is_cut_but_keeps_its_score() -> None:
    draw = PIL.ImageDraw.Draw(PIL.Image.new("RGB", (300, 300)))
    font = drawing._font(14, "")
    text = "a thing that " * 40 + "0.12"
    lines = drawing._wrap(draw, text, font, 280, lines_allowed=3).split("\n")
    assert len(lines) == 3
    assert lines[-1].endswith("… 0.12")
    assert all(draw.textlength(line, font=font) <= 280 for line in lines)
    assert drawing._wrap(draw, "the mug 0.12", font, 280, lines_allowed=3) == "the mug 0.12"
    assert draw.textlength(drawing._wrap(draw, "m" * 200, font, 280, lines_allowed=1), font=font) <= 280


@pytest.mark.parametrize(
    "expression",
    ["m" * 4000, "m " * 20_000, "m" * 3_000_000, "i" * 4000 + " star", "star " + "ü" * 4000, "\u0301" * 5000],
    ids=["one word", "many words", "endless word", "long word first", "long word last", "marks without width"],
)
def test_drawing_does_not_slow_down_with_long_words(expression: str) -> None:
    picture = PIL.Image.new("RGB", (640, 480))
    start = time.perf_counter()
    drawn = draw_grounding(picture, result((100, 100, 300, 200), expression))
    assert time.perf_counter() - start < 1
    assert drawn.size == (640, 480)


def test_a_cut_word_keeps_as_many_letters_as_fit() -> None:
    draw = PIL.ImageDraw.Draw(PIL.Image.new("RGB", (300, 300)))
    font = drawing._font(14, "")
    for length in (1, 5, 30, 200, 1500):
        line = drawing._wrap(draw, "m" * length, font, 280, lines_allowed=1)
        kept = line.rstrip("…")
        assert kept == "m" * len(kept)
        if len(kept) < length:
            assert draw.textlength(f"{kept}m…", font=font) > 280 >= draw.textlength(line, font=font)
    assert drawing._cut(draw, "mug", "…", font, 1) == "…"


def test_boxes_and_masks_lie_where_they_should() -> None:
    mask = np.zeros((400, 600), dtype=bool)
    mask[110:190, 120:280] = True
    before = PIL.Image.new("RGB", (600, 400), (100, 100, 100))
    picture = np.asarray(draw_grounding(before, result((100, 100, 300, 200), mask=mask)))
    assert before.getpixel((200, 150)) == (100, 100, 100)  # the given picture is not drawn on
    tint = 0.85 * 100 + 0.15 * np.array(drawing.COLORS[0])
    assert picture[150, 200] == pytest.approx(tint, abs=1)  # what color it has can still be seen
    assert tuple(picture[150, 120]) == tuple(picture[150, 279]) == drawing.COLORS[0]  # and where it ends
    assert picture[250, 400].tolist() == [100, 100, 100]
    assert tuple(picture[150, 99]) == drawing.COLORS[0]  # the outline lies around the box
    assert tuple(picture[99, 200]) == drawing.COLORS[0]


def test_what_was_not_found_is_grey_and_errors_are_left_out() -> None:
    picture = draw_grounding(
        PIL.Image.new("RGB", (600, 400)), [result((100, 100, 300, 200), found=False), {"error": "no such file"}]
    )
    assert plates_of(picture, drawing.NOT_FOUND_COLOR).any()
    assert not any(plates_of(picture, color).any() for color in drawing.COLORS)


def test_of_several_answers_to_one_expression_the_first_carries_it() -> None:
    box = (100, 100, 300, 200)
    entries = [result(box), result(box, "the mug"), result(box, "the  red\nmug"), result(box, found=False)]
    assert drawing._labels(entries) == ["the red mug  0.87", "the mug  0.87", "0.87", "(0.87)"]
    without = [{"expression": "the mug"}] * 2  # a box without a score keeps its name
    assert drawing._labels(without) == ["the mug", "the mug"]


def test_small_pictures_can_keep_their_size_and_nothing_drawn_changes_nothing() -> None:
    small = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    assert draw_grounding(small, [], min_side=1).tobytes() == small.tobytes()
    assert draw_grounding(small, []).size == (480, 480)


def test_a_heat_map_brightens_where_it_is_high() -> None:
    heat = np.zeros((40, 60))
    heat[10:20, 10:30] = 1
    picture = np.asarray(draw_heatmap(PIL.Image.new("RGB", (60, 40), (120, 120, 120)), heat), dtype=int)
    assert picture.shape == (40, 60, 3)
    assert picture[15, 20].sum() > picture[35, 50].sum() + 200
    with pytest.raises(ValueError, match=r"height and width \(40, 60\), not \(60, 40\)"):
        draw_heatmap(PIL.Image.new("RGB", (60, 40)), heat.T)


def test_every_form_of_results_is_drawn_and_other_things_are_refused() -> None:
    picture = PIL.Image.new("RGB", (480, 480), (255, 255, 255))
    box = {"xmin": 100, "ymin": 100, "xmax": 200, "ymax": 200}
    found = {"expression": "a", "box": box, "score": 0.9, "found": True}
    missed = {**found, "expression": "b", "score": 0.1, "found": False}
    several = GroundingResults([GroundingResults([found], found), GroundingResults([], missed)])
    drawn = draw_grounding(picture, [found, missed])
    for results in (several, (found, missed), iter([found, missed]), [several[0], several[1]]):
        assert np.array_equal(draw_grounding(picture, results), drawn)
    assert np.array_equal(draw_grounding(picture, several[1]), draw_grounding(picture, missed))
    for wrong in ("a", picture, [[0, 0, 9, 9]], {"box": box}, 3, None, [None]):
        with pytest.raises(TypeError, match="draws results of the pipeline, dicts with 'expression' and 'box', not "):
            draw_grounding(picture, wrong)
