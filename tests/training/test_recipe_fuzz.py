"""Damaged recipes are refused in one sentence, and a misspelt key is never read as if it were not there."""

import copy
import os
import random
from collections import Counter
from pathlib import Path

import pytest

from hivg_hf.recipes import read_recipe, recipe_names
from hivg_hf.training.recipe import parse_recipe

CASES = int(os.environ.get("HIVG_FUZZ_RECIPES", "400"))
SEED = os.environ.get("HIVG_FUZZ_SEED", "0")
VALUES = (
    *(None, True, -1, 0, 1, 7.5, float("nan"), float("inf"), -(10**30), "", "x", "../../outside", "\ud800"),
    *([], {}, [[]], [None], {"a": 1}, "a" * 5000, [1] * 300),
)
# What stands under these is named by the user, not by the program.
FREE = ("tests", "parts", "extra")


def places(node, path=()):
    yield path
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in list(items):
        yield from places(value, (*path, key))


def damage(recipe, rng):
    """(kind, recipe): a value replaced, a key removed, or a key misspelt."""
    recipe = copy.deepcopy(recipe)
    path = rng.choice([path for path in places(recipe) if path])
    node = recipe
    for key in path[:-1]:
        node = node[key]
    kind = rng.choice(["replaced", "removed", "misspelt"])
    if kind == "replaced":
        node[path[-1]] = rng.choice(VALUES)
    elif kind == "removed" or not isinstance(node, dict) or (len(path) > 1 and path[-2] in FREE):
        kind = "removed"
        del node[path[-1]]
    else:
        key = path[-1]
        place = rng.randrange(len(key))
        node[key[:place] + "q" + key[place:]] = node.pop(key)
    return kind, path, recipe


@pytest.fixture(scope="module")
def recipes(tmp_path_factory):
    """Every recipe that ships, with its variables filled in."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("DATA", "CLIP", "COCO", "OFFICIAL", "HIVG_DATA", "HIVG_CLIP"):
            patch.setenv(name, str(tmp_path_factory.getbasetemp()))
        yield {name: read_recipe(name) for name in recipe_names()}


def test_a_damaged_recipe_is_read_or_refused_in_one_sentence(recipes):
    counts, strays = Counter(), []
    for case in range(CASES):
        rng = random.Random(f"{SEED}-{case}")
        name = rng.choice(sorted(recipes))
        kind, path, recipe = damage(recipes[name], rng)
        where = f"{case}: {name} {kind} {'.'.join(map(str, path))}"
        try:
            parse_recipe(recipe)
            counts[kind, "read"] += 1
            if kind == "misspelt":
                strays.append(f"{where} was read")
        except (ValueError, FileNotFoundError) as error:
            counts[kind, "refused"] += 1
            if "\n" in str(error) or not 10 < len(str(error)) < 2000:
                strays.append(f"{where}: a message of {len(str(error))} characters: {str(error)[:200]}")
        except Exception as error:
            strays.append(f"{where}: {type(error).__name__}: {str(error)[:200]}")
    assert strays == []
    assert counts["misspelt", "refused"] > CASES / 10
    assert not any(Path("..").glob("outside*"))
