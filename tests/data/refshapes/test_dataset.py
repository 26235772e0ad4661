"""RefShapes rows: deterministic, apart from each other, masks and boxes that agree, and the control."""

from itertools import islice

import numpy as np
import pytest

from helpers.schema_rows import validate_row
from hivg_hf import load_grounding_dataset
from hivg_hf.data.refshapes import SPLITS, refshapes_dataset, refshapes_samples
from hivg_hf.data.refshapes.language import KINDS
from hivg_hf.data.refshapes.render import render_scene
from hivg_hf.data.refshapes.scenes import (
    COLORS,
    HELD_OUT_PAIRS,
    MAX_ASPECT,
    MAX_SIDE,
    MIN_SIDE,
    SHAPES,
    SHIFTED_COLORS,
    Background,
    Scene,
    SceneObject,
)
from hivg_hf.data.schema import FEATURES, decode_mask, mask_to_box


def samples(split, seed=3, count=60, **options):
    return list(islice(refshapes_samples(split, seed, **options), count))


@pytest.fixture(scope="module")
def rows():
    return list(refshapes_dataset("val", seed=3, size=24))


def test_rows_are_of_the_schema_and_say_one_thing(rows):
    assert list(rows[0]) == list(FEATURES)
    for row in rows:
        validate_row(row)
        assert row["image"].size == (row["width"], row["height"])


def test_the_box_is_the_box_around_the_mask(rows):
    for row in rows:
        assert mask_to_box(decode_mask(row["mask"])) == row["box"]


def test_the_box_lies_where_the_object_was_placed(rows):
    for row, sample in zip(rows, samples("val", count=24)):
        target = sample.scene.objects[sample.expressions[0].target]
        assert np.abs(np.array(row["box"]) - target.box_xyxy).max() <= max(3.0, 0.2 * target.side)


def test_the_same_arguments_give_the_same_rows_wherever_they_are_rendered(rows):
    again = list(refshapes_dataset("val", seed=3, size=3))
    for row, other in zip(rows, again):
        assert np.array_equal(np.asarray(row.pop("image")), np.asarray(other.pop("image")))
        assert row == other


def test_another_seed_and_another_split_give_other_scenes():
    first, second, third = (
        {(sample.scene.width, sample.scene.background.seed) for sample in samples(split, seed)}
        for split, seed in (("val", 3), ("val", 4), ("train", 3))
    )
    assert not first & second
    assert not first & third


def test_a_sample_does_not_depend_on_where_the_count_starts():
    assert samples("train", count=6)[4:] == samples("train", count=2, start=4)


def test_no_scene_outside_compositional_holds_a_held_out_pair():
    for split in set(SPLITS) - {"compositional"}:
        for sample in samples(split, count=40):
            assert not HELD_OUT_PAIRS & {(item.shape, item.color) for item in sample.scene.objects}


def test_compositional_targets_are_held_out_pairs_named_by_both_words():
    for sample in samples("compositional", count=40):
        expression = sample.expressions[0]
        target = sample.scene.objects[expression.target]
        assert (target.shape, target.color) in HELD_OUT_PAIRS
        assert target.shape in expression.text
        assert target.color in expression.text


def test_every_shape_and_color_is_still_seen_in_training_with_others():
    pairs = {(shape, color) for shape in SHAPES for color in COLORS} - HELD_OUT_PAIRS
    assert len(pairs) == len(SHAPES) * len(COLORS) - 6
    seen = {(item.shape, item.color) for sample in samples("train", count=150) for item in sample.scene.objects}
    assert len(pairs - seen) <= 2


@pytest.mark.parametrize("split", SPLITS)
def test_canvases_are_wide_tall_and_square_in_every_split(split):
    scenes = [sample.scene for sample in samples(split, count=80)]
    ratios = np.array([scene.width / scene.height for scene in scenes])
    sides = np.array([(scene.width, scene.height) for scene in scenes])
    assert sides.min() >= MIN_SIDE
    assert sides.max() <= MAX_SIDE
    assert ratios.max() <= MAX_ASPECT
    assert ratios.min() >= 1 / MAX_ASPECT
    assert min((ratios > 1.3).sum(), (ratios < 1 / 1.3).sum(), (ratios == 1).sum()) >= 8


def test_splits_ask_what_they_say():
    assert {sample.expressions[0].kind for sample in samples("testA", count=30)} == {"attribute"}
    assert {sample.expressions[0].kind for sample in samples("testB", count=30)} == {"relation"}
    assert {sample.expressions[0].kind for sample in samples("val", count=80)} == set(KINDS)


def test_no_target_rows_have_no_box_and_no_mask():
    for row in refshapes_dataset("none", seed=3, size=8):
        validate_row(row)
        assert row["no_target"]
        assert row["box"] is None
        assert row["mask"] is None
        assert row["ref_id"].endswith("-none")


def test_plural_rows_hold_the_box_of_every_object_that_fits():
    rows = list(refshapes_dataset("plural", seed=3, size=16, objects=True))
    for row in rows:
        assert len(row["boxes"]) >= 2
        assert row["box"] is None
        assert not row["no_target"]
        objects = [item["box"] for item in row["objects"]]
        assert all(box in objects for box in row["boxes"])
        named = row["ref_id"].removeprefix(f"{row['image_id']}-").split("+")
        assert [objects[int(number)] for number in named] == row["boxes"]
        whole = decode_mask(row["mask"])
        edges = np.array(row["boxes"])
        assert mask_to_box(whole) == [*edges[:, :2].min(axis=0), *edges[:, 2:].max(axis=0)]
        assert row["sent_id"].endswith("-plural")
    assert {row["category"] is None for row in rows} == {True, False}  # objects of one shape, or of several


def test_plural_rows_are_rows_of_the_schema():
    for row in load_grounding_dataset("refshapes", "plural", seed=4, size=6):
        validate_row(row)


def test_val_and_plural_are_joined_by_a_plus():
    rows = load_grounding_dataset("refshapes", "val+plural+none", seed=4, size=3)
    assert [len(row["boxes"]) > 1 for row in rows] == [False] * 3 + [True] * 3 + [False] * 3


@pytest.mark.parametrize("split", ["train", "val", "none", "text"])
def test_a_share_of_plurals_may_be_asked_for(split):
    kinds = [sample.expressions[0].kind for sample in samples(split, count=100, plural_fraction=0.4)]
    assert 25 <= kinds.count("plural") <= 55


def test_plurals_that_name_nothing_have_no_box():
    for sample in samples("none", count=30, plural_fraction=1.0):
        assert sample.expressions[0].kind == "plural"
        assert sample.expressions[0].targets == ()


def test_foils_keep_the_box_and_name_another_object(rows):
    foils = list(refshapes_dataset("val", seed=3, size=24, foils=True))
    originals = {row["sent_id"]: row for row in rows}
    assert 12 <= len(foils) <= 24  # the rest has no other object that words can name
    for foil in foils:
        original = originals[foil["sent_id"]]
        assert foil["expression"] != original["expression"]
        assert (foil["box"], foil["mask"]) == (original["box"], original["mask"])


def test_rows_of_one_scene_share_their_picture():
    four = list(refshapes_dataset("train", seed=3, size=8, masks=False))
    assert [row["image_id"] for row in four] == ["train-3-0"] * 4 + ["train-3-1"] * 4
    assert len({row["sent_id"] for row in four}) == 8
    assert len({row["expression"] for row in four[:4]}) == 4
    assert four[0]["mask"] is None


def test_context_is_what_decides_which_object_is_named():
    rows = list(refshapes_dataset("val", seed=3, size=60, objects=True))
    drawn = refshapes_samples("val", seed=3)
    for row, sample in zip(rows, drawn):
        meaning = sample.expressions[0].meaning
        deciding = {"relation": meaning.anchor, "count": meaning.anchor, "attribute": None}
        phrase = deciding.get(meaning.kind, meaning.phrase)
        objects = zip(sample.scene.objects, row["objects"])
        assert row["context_boxes"] == [told["box"] for item, told in objects if phrase and phrase.matches(item)]
        assert meaning.kind == "attribute" or row["context_boxes"]
    assert {row["sent_id"].rsplit("-", 1)[1] for row in rows} == set(KINDS)


def test_stored_pictures_are_what_the_image_processor_would_make():
    from hivg_hf import HiVGImageProcessor

    processor = HiVGImageProcessor(size={"height": 112, "width": 112}, patch_size=14)
    original = list(refshapes_dataset("val", seed=3, size=6))
    stored = list(refshapes_dataset("val", seed=3, size=6, stored_side=112, objects=True))
    for row, small in zip(original, stored):
        assert max(small["width"], small["height"]) == 112
        assert np.array_equal(processor(row["image"])["pixel_values"], processor(small["image"])["pixel_values"])
        scale = np.array([small["width"] / row["width"], small["height"] / row["height"]] * 2)
        np.testing.assert_allclose(small["box"], np.array(row["box"]) * scale, rtol=1e-5)
        assert small["box"] in [item["box"] for item in small["objects"]]


def test_the_cache_gives_the_same_rows_and_knows_options_apart(tmp_path):
    first = refshapes_dataset("val", seed=3, size=4, cache_dir=str(tmp_path))
    again = refshapes_dataset("val", seed=3, size=4, cache_dir=str(tmp_path))
    refshapes_dataset("val", seed=3, size=4, kinds=["attribute"], cache_dir=str(tmp_path))
    refshapes_dataset("val", seed=3, size=4, kinds=("attribute",), cache_dir=str(tmp_path))
    assert first["expression"][:] == again["expression"][:]
    assert len(list(tmp_path.glob("val-*"))) == 2


def test_the_shifted_domain_has_outlines_noise_and_colors_of_its_own():
    for sample in samples("train", count=30, style="outline-noise"):
        assert {item.filling for item in sample.scene.objects} == {"outlined"}
        assert {item.color for item in sample.scene.objects} <= set(SHIFTED_COLORS)
        assert sample.scene.background.noise > 20
    assert not set(SHIFTED_COLORS) & set(COLORS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "test"}, "unknown RefShapes split 'test'; expected one of train, val"),
        ({"split": "val", "size": 0}, "size is the number of rows and must be at least 1, got 0"),
        ({"split": "val", "seed": -1}, "a RefShapes seed is 0 or more"),
        ({"split": "val", "style": "oil"}, "unknown RefShapes style 'oil'; expected one of standard, outline-noise"),
        ({"split": "testA", "kinds": ("relation",)}, "split 'testA' has no expressions of kinds"),
        ({"split": "val", "kinds": ("joke",)}, "kinds are .*'attribute'"),
        ({"split": "none", "foils": True}, "foils need one target in every row"),
        ({"split": "compositional", "style": "outline-noise"}, "has no style 'outline-noise'"),
        ({"split": "train", "no_target_fraction": 2.0}, "a share between 0 and 1, got 2.0"),
        ({"split": "plural", "foils": True}, "leave out the splits 'none' and 'plural'"),
        ({"split": "val", "kinds": ("plural",)}, "the last in the split 'plural' and where plural_fraction asks"),
        ({"split": "testA", "plural_fraction": 0.1}, "'testA' takes no plural_fraction; the splits train, val, text"),
        ({"split": "train", "plural_fraction": 1.5}, "a share between 0 and 1, got 1.5"),
        (
            {"split": "train", "plural_fraction": 0.2, "kinds": ("relation", "count")},
            r"plural_fraction 0.2 asks for plurals, kinds \['relation', 'count'\] leaves them out",
        ),
        ({"split": "train", "wordings": "wild"}, "wordings must be one of standard, varied, got 'wild'"),
        ({"split": "text", "wordings": "varied"}, "'text' has wordings of its own"),
        ({"split": "train", "expressions_per_scene": 0}, "must be at least 1, got 0"),
    ],
)
def test_bad_options_are_refused_in_a_sentence(arguments, message):
    with pytest.raises(ValueError, match=message):
        refshapes_dataset(**arguments)


# -- rendering -----------------------------------------------------------------------------------------------------


def draw(shape, filling="solid", x=50.0, y=50.0, side=40.0):
    item = SceneObject(shape, "red", "large", filling, x, y, side, (200, 0, 0), 250)
    scene = Scene(100, 100, Background("plain", (30, 30, 30), (30, 30, 30), 0.0, 0), (item,))
    picture, visible = render_scene(scene)
    return picture, visible[0]


@pytest.mark.parametrize(
    ("shape", "area"),
    [("square", 1.0), ("circle", np.pi / 4), ("triangle", 0.5), ("ring", np.pi / 4 * 0.75), ("cross", 0.5644)],
)
def test_shapes_have_their_area_and_fill_their_box(shape, area):
    _, mask = draw(shape)
    assert mask.sum() == pytest.approx(area * 40 * 40, rel=0.06)
    assert np.abs(np.array(mask_to_box(mask)) - (30, 30, 70, 70)).max() <= 1


def test_fillings_color_the_inside_as_they_say():
    assert (draw("square")[0][50, 31:69] == (200, 0, 0)).all()
    outlined, mask = draw("square", "outlined")
    assert mask[50, 50]
    assert (outlined[50, 50] == 250).all()
    assert (outlined[50, 32] == (200, 0, 0)).all()
    striped, mask = draw("square", "striped")
    column = striped[31:69, 50, 1]
    assert mask[31:69, 50].all()
    assert (column == 250).any()
    assert (column == 0).any()
    ring, mask = draw("ring")
    assert not mask[50, 50]
    assert (ring[50, 50] == 30).all()


def test_edges_are_anti_aliased():
    greens = np.unique(draw("circle")[0][..., 1])
    assert len(greens) > 5


def test_what_lies_behind_is_not_visible():
    back = SceneObject("square", "red", "large", "solid", 40.0, 50.0, 40.0, (200, 0, 0), 250)
    front = SceneObject("square", "blue", "large", "solid", 60.0, 50.0, 40.0, (0, 0, 200), 250)
    scene = Scene(100, 100, Background("plain", (30, 30, 30), (30, 30, 30), 0.0, 0), (back, front))
    picture, visible = render_scene(scene)
    assert not (visible[0] & visible[1]).any()
    assert mask_to_box(visible[0]) == [20, 30, 40, 70]
    assert (picture[50, 50] == (0, 0, 200)).all()
