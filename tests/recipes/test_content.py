"""What a recipe extends is read first, values change from outside, and the official recipes stay as published."""

import json
from pathlib import Path

import pytest
import yaml

from hivg_hf.recipes import find_recipe, override, read_recipe, recipe_names
from hivg_hf.recipes.files import BASES, FOLDER

# Each official recipe as one file held it before they shared bases; a setting that changes on purpose changes here.
RESOLVED = json.loads((Path(__file__).parents[1] / "fixtures" / "recipes" / "resolved.json").read_text())


def write(path, **content):
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize("name", RESOLVED)
def test_an_official_recipe_resolves_to_what_was_published(name):
    assert read_recipe(name) == RESOLVED[name]


def test_every_official_setting_cites_its_source():
    files = [*BASES.glob("*.yaml"), *(find_recipe(name) for name in RESOLVED)]
    for path in files:
        for line in path.read_text().splitlines():
            key, _, comment = line.partition("#")
            is_setting = ":" in key and key.split(":", 1)[1].strip() not in ("", "|")
            if is_setting and not key.lstrip().startswith(("name:", "- name:", "root:", "images:", "test")):
                assert comment.strip(), f"{path.name}: {line}"


def test_bases_are_found_but_not_offered():
    assert "official-base" not in recipe_names()
    assert find_recipe("official-base").parent == BASES
    assert len(recipe_names()) == len(list(FOLDER.glob("*.yaml")))


def test_a_file_extends_a_shipped_recipe_or_one_beside_it(tmp_path):
    write(
        tmp_path / "base.yaml", name="base", seed=1, data={"a": {"x": 1, "y": 2}}, phases=[{"name": "p", "epochs": 1}]
    )
    mine = write(
        tmp_path / "mine.yaml", extends="base.yaml", data={"a": {"y": 3}}, phases={"p": {"epochs": 2, "keep": "last"}}
    )
    assert read_recipe(mine) == {
        "name": "mine",
        "seed": 1,
        "data": {"a": {"x": 1, "y": 3}},
        "phases": [{"name": "p", "epochs": 2, "keep": "last"}],
    }
    of_shipped = write(tmp_path / "other.yaml", extends="refcoco-base", seed=14)
    assert read_recipe(of_shipped) == {**RESOLVED["refcoco-base"], "name": "other", "seed": 14}


def test_lists_and_nothing_take_the_place_of_what_was_there(tmp_path):
    write(tmp_path / "base.yaml", phases=[{"name": "p"}], data={"augmentation": {"jitter": 0.1}})
    mine = write(tmp_path / "mine.yaml", extends="base.yaml", phases=[{"name": "q"}], data={"augmentation": None})
    assert read_recipe(mine) == {"name": "mine", "phases": [{"name": "q"}], "data": {"augmentation": None}}


def test_what_cannot_be_extended_is_refused(tmp_path):
    loop = write(tmp_path / "a.yaml", extends="b.yaml")
    write(tmp_path / "b.yaml", extends="a.yaml")
    with pytest.raises(ValueError, match=r"cannot extend itself \(a.yaml -> b.yaml -> a.yaml\): remove one `extends`"):
        read_recipe(loop)
    with pytest.raises(FileNotFoundError, match=r"none of that name ships; did you mean `refcoco-base`\?"):
        read_recipe(write(tmp_path / "c.yaml", extends="refcoco-bas"))
    with pytest.raises(
        ValueError, match=r"`extends` in .*d.yaml must be a file or the name of a recipe.* Got \['x'\]"
    ):
        read_recipe(write(tmp_path / "d.yaml", extends=["x"]))
    with pytest.raises(ValueError, match=r"no `stage_9` in recipe.phases: did you mean `stage_\d`\?"):
        read_recipe(write(tmp_path / "e.yaml", extends="refcoco-base", phases={"stage_9": {"epochs": 1}}))


def test_values_are_overridden_at_any_depth():
    content = {"seed": 1, "data": {"train": {"size": 5}}, "phases": [{"name": "a", "epochs": 1}, {"name": "b"}]}
    changed = override(content, ["seed=2", "data.train.size=6", "phases.b.options={x: [1]}", "phases.a.epochs=0.5"])
    assert changed == {
        "seed": 2,
        "data": {"train": {"size": 6}},
        "phases": [{"name": "a", "epochs": 0.5}, {"name": "b", "options": {"x": [1]}}],
    }
    assert content["seed"] == 1
    assert content["data"] == {"train": {"size": 5}}


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("other.yaml", r"After the recipe, hivg train takes NAME=VALUE, got 'other.yaml'"),
        ("=3", r"takes NAME=VALUE, got '=3'"),
        ("seed=[", r"'seed=\[': the value is not YAML"),
        ("phases.stage.epochs=3", r"There is no `stage` in recipe.phases: did you mean `stage_1`\?"),
        ("phases..epochs=3", r"There is no `` in recipe.phases: expected some of: stage_1"),
    ],
)
def test_an_override_that_leads_nowhere_is_refused(pair, message):
    with pytest.raises(ValueError, match=message):
        override({"phases": [{"name": "stage_1"}]}, [pair])


def test_what_no_file_can_be_named_by_is_not_found(tmp_path):
    for name in ("a" * 5000, "a\0b"):
        with pytest.raises(FileNotFoundError, match="No recipe at a"):
            read_recipe(write(tmp_path / "mine.yaml", extends=name))


def test_a_chain_of_recipes_ends(tmp_path):
    for number in range(30):
        write(tmp_path / f"{number}.yaml", extends=f"{number + 1}.yaml")
    with pytest.raises(ValueError, match=r"^0\.yaml extends more than 20 recipes"):
        read_recipe(tmp_path / "0.yaml")
