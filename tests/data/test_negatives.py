"""Expressions that name nothing, from any table: a function of (seed, epoch, row), and never true of the picture."""

import logging

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image
from torch.utils.data import DataLoader

from helpers.schema_rows import validate_row
from hivg_hf import load_grounding_dataset
from hivg_hf.data import EpochSampler, KeyedDataset, NegativeRows, Negatives
from hivg_hf.data.negatives import content_words
from hivg_hf.data.order import image_ids_of
from hivg_hf.data.refshapes import refshapes_samples
from hivg_hf.data.refshapes.language import referents
from hivg_hf.data.schema import FEATURES
from hivg_hf.training.recipe_checks import check_rows

COLORS, THINGS = ("red", "blue", "green", "black"), ("car", "bus", "dog", "cat", "cup", "bowl")


def table(expressions, categories=None):
    """Rows of the schema; `expressions` holds a list for each image."""
    rows = []
    for image, texts in enumerate(expressions):
        for number, text in enumerate(texts):
            box = None if text.startswith("no ") else [1.0, 2.0, 9.0, 8.0]
            rows.append(
                {
                    "image": {"path": None, "bytes": b"never opened"},
                    "expression": text,
                    "box": box,
                    "boxes": [] if box is None else [box],
                    "no_target": box is None,
                    "mask": None,
                    "width": 16,
                    "height": 12,
                    "category": None if categories is None else categories[image],
                    "image_id": f"image {image}",
                    "ref_id": f"{image}-{number}",
                    "sent_id": f"{image}-{number}",
                    "source": "mine",
                    "split": "train",
                }
            )
    return Dataset.from_list(rows, features=FEATURES)


@pytest.fixture(scope="module")
def rows():
    """60 images with two expressions each."""
    rng = np.random.default_rng(0)
    pairs = [(f"the {c} {t}", f"{t} on the left") for c in COLORS for t in THINGS]
    return table([pairs[int(number)] for number in rng.integers(len(pairs), size=60)])


def drawn(rows, epoch=0):
    return [rows.negative_at(epoch, index) for index in range(len(rows))]


def test_the_share_of_the_rows_asks_for_what_is_not_there(rows):
    changed = [text for epoch in range(10) for text in drawn(NegativeRows(rows, {"share": 0.3}), epoch)]
    assert 0.25 < sum(text is not None for text in changed) / len(changed) < 0.35


def test_negative_rows_say_no_target_and_the_others_stay(rows):
    made = NegativeRows(rows, {"share": 0.5})
    original = made.positives
    for index in range(len(rows)):
        row, expression = made[index], made.negative_at(0, index)
        validate_row(row)
        if expression is None:
            assert row == original[index]
        else:
            assert row["expression"] == expression != original[index]["expression"]
            assert (row["box"], row["boxes"], row["no_target"], row["mask"]) == (None, [], True, None)
            assert row["image_id"] == original[index]["image_id"]
            assert row["sent_id"] != original[index]["sent_id"]


def test_rows_are_a_function_of_seed_epoch_and_index(rows):
    first, again = (NegativeRows(rows, {"share": 0.5, "seed": 3}) for _ in range(2))
    assert drawn(first, 2) == drawn(again, 2) != drawn(first, 3)
    assert drawn(first, 2) != drawn(NegativeRows(rows, {"share": 0.5, "seed": 4}), 2)
    assert [first.negative_at(2, index) for index in (7, 3, 9)] == [drawn(again, 2)[index] for index in (7, 3, 9)]


@pytest.mark.parametrize("workers", [0, 2])
def test_they_are_the_same_over_any_number_of_workers(rows, workers):
    made = NegativeRows(rows, {"share": 0.5})
    loader = DataLoader(
        KeyedDataset(made), sampler=EpochSampler(made, seed=1, epoch=3), batch_size=8, num_workers=workers,
        collate_fn=list,
    )  # fmt: skip
    asked = {row["row_index"]: row["expression"] for batch in loader for row in batch}
    own = made.positives["expression"]
    assert [asked[index] for index in range(len(made))] == [
        own[index] if text is None else text for index, text in enumerate(drawn(made, 3))
    ]


@pytest.mark.parametrize("kind", ["other_image", "edited"])
def test_no_negative_says_what_the_image_is_said_to_show(rows, kind):
    own = {}
    for image, text in zip(rows["image_id"], rows["expression"]):
        own.setdefault(image, []).append(content_words(text))
    made = NegativeRows(rows, {"share": 1.0, "kinds": [kind]})
    texts = [(image, text) for epoch in range(3) for image, text in zip(rows["image_id"], drawn(made, epoch))]
    assert sum(text is not None for _, text in texts) > 300
    for image, text in texts:
        assert text is None or not any(content_words(text) <= words for words in own[image]), (image, text)
    if kind == "other_image":
        assert {text for _, text in texts if text} <= set(rows["expression"])


def test_an_edit_that_is_another_expression_of_the_image_is_not_taken():
    options = {"share": 1.0, "kinds": ["edited"], "groups": ["tint"], "words": {"tint": ["red | blue"]}}
    made = NegativeRows(table([["the red car", "the big blue car"], ["the red car"]]), options)
    assert drawn(made) == [None, "the big red car", "the blue car"]


def test_an_expression_of_the_same_category_elsewhere_is_not_taken():
    rows = table([["a b"], ["c d"], ["e f"]], categories=["person", "person", "dog"])
    made = NegativeRows(rows, {"share": 1.0, "kinds": ["other_image"]})
    assert drawn(made)[:2] == ["e f", "e f"]
    assert drawn(made)[2] in ("a b", "c d")


def test_kinds_stand_in_for_each_other_and_rows_that_none_serves_stay():
    rows = table([["the red car"], ["the red car"], ["it"], ["it"]])
    made = NegativeRows(rows, {"share": 1.0, "kinds": ["other_image", "edited"]})
    texts = [drawn(made, epoch) for epoch in range(20)]
    assert {row[0] for row in texts} > {"it"}
    only_edits = NegativeRows(rows, {"share": 1.0, "kinds": ["edited"]})
    assert drawn(only_edits)[2:] == [None, None]
    assert None not in drawn(only_edits)[:2]


def test_rows_without_target_stay_as_they_are():
    made = NegativeRows(table([["no dog", "a red cup"], ["no cat", "a green bus"]]), {"share": 1.0})
    assert [text is None for text in drawn(made)] == [True, False, True, False]


def test_images_are_those_of_the_table_for_unique_batches(rows):
    made = NegativeRows(rows, {"share": 0.5})
    assert list(image_ids_of(made)(4)) == list(rows["image_id"])


def test_one_epoch_as_a_table_for_evaluation(rows):
    made = NegativeRows(rows, {"share": 0.5})
    whole = made.table(epoch=2)
    assert whole.features == FEATURES
    assert [row["expression"] for row in whole.remove_columns("image")] == [
        made.row_at(2, index)["expression"] for index in range(len(made))
    ]
    assert list(made["expression"]) == [made[index]["expression"] for index in range(len(made))]
    assert whole["no_target"][:] == [made.row_at(2, index)["no_target"] for index in range(len(made))]


def test_how_many_rows_can_be_served_is_logged(caplog):
    with caplog.at_level(logging.INFO, "hivg_hf"):
        NegativeRows(table([["the red car"], ["it"]]), {"share": 0.4, "kinds": ["edited"]})
    assert "about 20 % of the rows with a target ask for what is not there" in caplog.text


# -- through the loader --------------------------------------------------------------------------------------------


@pytest.fixture
def csv(tmp_path):
    lines = ["image,expression,x1,y1,x2,y2"]
    for number, thing in enumerate(THINGS * 2):
        Image.new("RGB", (16, 12)).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png,the {COLORS[number % 4]} {thing},1,2,9,8")
    (tmp_path / "my.csv").write_text("\n".join(lines))
    return tmp_path / "my.csv"


def test_any_table_is_loaded_with_negatives(csv):
    made = load_grounding_dataset(csv, "all", box_format="xyxy", negatives={"share": 0.5})
    assert isinstance(made, NegativeRows)
    assert 2 <= sum(row["no_target"] for row in map(made.__getitem__, range(len(made)))) <= 10
    plain = load_grounding_dataset(csv, "all", box_format="xyxy")
    assert made.positives["expression"] == plain["expression"]


def test_parts_of_a_mixture_draw_anew_in_each_epoch(csv):
    part = {"source": str(csv), "split": "all", "box_format": "xyxy"}
    mixture = load_grounding_dataset("mixture", "all", parts=[part, part], negatives={"share": 0.5})
    texts = [sorted(mixture.row_at(epoch, index)["expression"] for index in range(24)) for epoch in range(3)]
    assert texts[0] != texts[1] != texts[2]
    assert any(mixture.row_at(0, index)["no_target"] for index in range(24))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"negatives": {"share": 2}}, "negatives.share is a share of the rows from 0 to 1, got 2"),
        ({"negatives": {"shares": 0.2}}, "Unknown key `shares` in negatives: did you mean `share`"),
        ({"negatives": {"kinds": ["wrong"]}}, r"negatives.kinds\[0\] must be one of 'other_image', 'edited'"),
        ({"negatives": {"kinds": []}}, "negatives.kinds is empty"),
        ({"negatives": {"seed": -1}}, "negatives.seed must be 0 or more, got -1"),
        ({"negatives": {"groups": ["colour"]}}, "no word group colour"),
        ({"negatives": {"words": {"color": "red"}}}, "negatives.words.color must be a list of texts, got 'red'"),
        ({"negatives": 0.2}, "negatives must be a mapping. Got 0.2"),
        ({"negatives": {}, "streaming": True}, "which a stream does not hold"),
    ],
)
def test_what_cannot_be_done_is_refused_in_a_sentence(csv, options, message):
    with pytest.raises(ValueError, match=message):
        load_grounding_dataset(csv, "all", box_format="xyxy", **options)


def test_a_table_that_no_kind_serves_is_refused():
    with pytest.raises(ValueError, match="no row can be given an expression that names nothing by the kinds other_im"):
        NegativeRows(table([["it"], ["it"]]), Negatives())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"negatives": {"shares": 0.2}}, "Unknown key `shares` in data.train.negatives"),
        ({"negatives": {"share": "all"}}, "data.train.negatives.share must be a number. Got 'all'"),
        ({"negative": {}}, "Unknown key `negative` in data.train: did you mean `negatives`"),
    ],
)
@pytest.mark.parametrize("source", ["refshapes", "refcoco"])
def test_a_recipe_checks_them_before_anything_is_loaded(source, spec, message):
    with pytest.raises(ValueError, match=message):
        check_rows("data.train", {"source": source, "split": "train", **spec})
    check_rows("data.train", {"source": source, "split": "train", "negatives": {"words": {"color": ["mauve"]}}})


# -- RefShapes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["other_image", "edited"])
def test_negatives_of_refshapes_name_no_object_of_the_scene(kind):
    options = {"expressions_per_scene": 3, "plural_fraction": 0.3, "wordings": "varied"}
    made = load_grounding_dataset(
        "refshapes", "train", seed=5, size=45, masks=False, negatives={"share": 1.0, "kinds": [kind]}, **options
    )
    samples = refshapes_samples("train", 5, **options)
    scenes = [next(samples) for _ in range(40)]
    meant = {one.text: one.meaning for sample in scenes for one in sample.expressions}
    texts = drawn(made)
    assert sum(text is not None for text in texts) >= 30  # of 45; some have no such edit
    for index, text in enumerate(texts):
        sample = scenes[index // 3]
        assert text not in [one.text for one in sample.expressions]
        if kind == "other_image" and text is not None:
            assert referents(meant[text], sample.scene) == []


@pytest.mark.parametrize("options", [{"foils": True}, {"negatives": {"groups": ["size"]}}])
def test_what_refshapes_cannot_do_with_negatives_is_refused(options):
    with pytest.raises(ValueError, match="read one split, and omit foils, negatives"):
        load_grounding_dataset("refshapes", "val", size=4, **{"negatives": {}, **options})
