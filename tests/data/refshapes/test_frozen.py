"""Published rows are frozen: pixels, expressions and boxes of every split, by hash, for three seeds.

Published figures, cached renderings and the shipped checkpoint's training rest on these rows. What is new (a kind of
expression, a wording) gets a split or an option of its own, and never changes what the old ones draw.
"""

import hashlib
from itertools import islice

import numpy as np
import pytest

from hivg_hf import load_grounding_dataset
from hivg_hf.data.refshapes import refshapes_dataset, refshapes_samples

SEEDS = (0, 7, 100)
ROWS, SCENES = 4, 24
SPLITS_OF_0_1 = ("train", "val", "testA", "testB", "compositional", "text", "none")
FROZEN_SPLITS = (*SPLITS_OF_0_1, "plural")
RECIPE_OPTIONS = {"expressions_per_scene": 6, "no_target_fraction": 0.1, "stored_side": 112, "objects": True}
RECIPE_SAMPLES = {name: RECIPE_OPTIONS[name] for name in ("expressions_per_scene", "no_target_fraction")}

RENDERED = {
    "train": ["542fe307d50a7d0b", "cee79ec5d38a3d7c", "eccb365378b8a6f9"],
    "val": ["59dfdb8c36177c51", "e67414dec9bd345f", "059355f2056272c0"],
    "testA": ["cdde6844899f73ac", "e6bf2ce378a3697c", "b39b34484a3edb94"],
    "testB": ["3c04f54d11af5d46", "a013177a83919f5b", "72d41bc7092b287e"],
    "compositional": ["579e0b847d122fad", "15a4e0f5b39fc286", "c9af9212fa0974e4"],
    "text": ["3872033ea6be40bf", "54ee5a489d131519", "0529cd52bb10f489"],
    "none": ["abd038eec26a109b", "bdbc7cf5e579531c", "ccbeb8e01dd0d604"],
    "recipe": ["06f41744d65e6e00", "8b245141f5ec4aed", "1cf22a87297c619b"],
    "recipe, attributes": ["a8914ca3ceccc392", "2c0f0f58026a77b8", "513637ce814c2534"],
    "foils": ["2950521e3a774792", "738b301570d3ff78", "ce96aaff277894da"],
    "shifted": ["a6b84c7e35cb1197", "64f9b1fc206ec33c", "ad0dffaae0a64a09"],
    "plural": ["f300b54278169707", "e168655311e1f48a", "1b12a45a4fed5459"],
}
DRAWN = {
    "train": ["5b2a94850fddd384", "26b5d73b4b0ff1f2", "eb926569fba1d531"],
    "val": ["3d9da6ffe9a73443", "67936af3282c4600", "1ceb39fe5039f7a5"],
    "testA": ["cce093226bad006d", "aa004848f3c806a3", "3be2bf288c685020"],
    "testB": ["e525b14a8dbf4823", "239749d15cecca7e", "9d49a3e4c9580db8"],
    "compositional": ["b82a264028778059", "3b6f03facf84a06b", "2e78b6dc343bb9dd"],
    "text": ["1099b361744f8949", "1e97244910f3da32", "9d9c68301818c736"],
    "none": ["4e2129ad873e2b28", "a8fd0e2558131a19", "e942dc6ee784cbc8"],
    "recipe": ["df3bb5aacf3626bc", "473e932a9d5d1b8a", "8ea5b0bcaa9cac4f"],
    "recipe, attributes": ["232850c38363bba7", "399cc694c2c489dc", "f2312bbfae652520"],
    "plural": ["9d1040f034cfa38b", "4b97ff5b1e3b052b", "db11c57b03b9ebea"],
    "varied": ["97f3cc8a9484cd2c", "3ecb7136093fc2b8", "231cd6d7a4427fc0"],
    "text, plural": ["dcdffc1458ed21cf", "69e32895117e18bb", "45cb4e47787cbe56"],
}


def hash_of_rows(rows):
    """Pixels, size, expression, boxes, mask and names of rows."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(np.asarray(row["image"]).tobytes())
        names = ("width", "height", "expression", "box", "boxes", "no_target", "mask", "category", "image_id")
        digest.update(repr([row[name] for name in (*names, "ref_id", "sent_id", "split")]).encode())
        digest.update(repr(row.get("objects")).encode())
    return digest.hexdigest()[:16]


def hash_of_samples(split, seed, **options):
    """Scenes and expressions of a split before anything is drawn: cheap, so many of them."""
    digest = hashlib.sha256()
    for sample in islice(refshapes_samples(split, seed, **options), SCENES):
        scene = sample.scene
        digest.update(repr([scene.width, scene.height, scene.background.seed]).encode())
        for item in scene.objects:
            digest.update(repr([item.shape, item.color, item.size, item.filling, item.rgb, item.interior]).encode())
            digest.update(repr([round(float(edge), 6) for edge in item.box_xyxy]).encode())
        named = [one.targets if len(one.targets) > 1 else one.target for one in sample.expressions]
        said = [(one.text, one.kind) for one in sample.expressions]
        digest.update(repr([(*words, what) for words, what in zip(said, named, strict=True)]).encode())
    return digest.hexdigest()[:16]


@pytest.mark.parametrize("split", FROZEN_SPLITS)
def test_rendered_rows_of_a_published_split_stay_as_they_are(split):
    found = [hash_of_rows(load_grounding_dataset("refshapes", split, seed=seed, size=ROWS)) for seed in SEEDS]
    assert found == RENDERED[split]


def test_splits_joined_by_a_plus_are_their_rows_one_after_the_other():
    joined = list(load_grounding_dataset("refshapes", "val+none", seed=7, size=ROWS))
    assert hash_of_rows(joined[:ROWS]) == RENDERED["val"][1]
    assert hash_of_rows(joined[ROWS:]) == RENDERED["none"][1]


@pytest.mark.parametrize("split", FROZEN_SPLITS)
def test_scenes_and_expressions_of_a_published_split_stay_as_they_are(split):
    assert [hash_of_samples(split, seed) for seed in SEEDS] == DRAWN[split]


@pytest.mark.parametrize("kinds", [None, ("attribute",)])
def test_rows_that_the_shipped_recipe_trains_on_stay_as_they_are(kinds):
    name = "recipe" if kinds is None else "recipe, attributes"
    rows = [refshapes_dataset("train", seed, ROWS, kinds=kinds, **RECIPE_OPTIONS) for seed in SEEDS]
    assert [hash_of_rows(table) for table in rows] == RENDERED[name]
    assert [hash_of_samples("train", seed, kinds=kinds, **RECIPE_SAMPLES) for seed in SEEDS] == DRAWN[name]


def test_what_training_may_say_besides_stays_as_it_is():
    options = {"plural_fraction": 0.3, "wordings": "varied"}
    assert [hash_of_samples("train", seed, **options) for seed in SEEDS] == DRAWN["varied"]
    assert [hash_of_samples("text", seed, plural_fraction=1.0) for seed in SEEDS] == DRAWN["text, plural"]


@pytest.mark.parametrize(("name", "options"), [("foils", {"foils": True}), ("shifted", {"style": "outline-noise"})])
def test_controls_and_the_shifted_domain_stay_as_they_are(name, options):
    assert [hash_of_rows(refshapes_dataset("val", seed, ROWS, **options)) for seed in SEEDS] == RENDERED[name]
