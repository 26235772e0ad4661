"""YAML files are checked before anything of them is built: size with aliases written out, depth, repeated keys."""

import time
from pathlib import Path
from typing import Literal

import pytest
import yaml

from benchmarks.study.plan import load_study
from hivg_hf.training import load_recipe
from hivg_hf.utils.strict_mapping import MAX_YAML_BYTES, check_plain_values, parse_json, parse_yaml, read_yaml

RECIPES = Path(__file__).parents[2] / "hivg_hf" / "recipes"


def chain(first: str, link: str, length: int = 12) -> str:
    """Lines that each name the line before ten times."""
    lines = [first]
    for number in range(1, length):
        lines.append(f"a{number}: &a{number} " + link.format(", ".join([f"*a{number - 1}"] * 10)))
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (chain("a0: &a0 [x, x]", "[{}]"), r"more than 100000 values once its aliases are written out"),
        (chain("a0: &a0 {k: 1}", "{{<<: [{}]}}"), r"more than 100000 values once its aliases are written out"),
        (chain("a0: &a0 {k: 1}", "{{b: [{}], c: 2}}"), r"more than 100000 values once its aliases"),
        ("a: &a [*a]", r"an alias stands inside its own anchor, at line 1"),
        ("a: &a {b: {c: *a}}", r"an alias stands inside its own anchor"),
        ("[" * 100_000, r"nested deeper than 50 levels"),
        ("- " * 500 + "x", r"nested deeper than 50 levels"),
        ("{a: " * 60 + "1" + "}" * 60, r"nested deeper than 50 levels"),
        ("phases: 1\nname: x\nphases: 2", r"the key `phases` stands twice in one mapping, at line 1"),
        ("a: " + "9" * 5000, r"4300 digits"),
        ("a: 2026-99-99", r"month must be in 1..12"),
        ("a: !!python/object/apply:os.getcwd []", r"could not determine a constructor for the tag"),
        ("a: b\x00c", r"special characters are not allowed"),
    ],
)
@pytest.mark.parametrize("load", [load_recipe, load_study])
def test_hostile_yaml_is_refused_in_one_sentence(load, text, message, tmp_path):
    path, start = tmp_path / "recipe.yaml", time.monotonic()
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path} is not valid YAML: ")
    assert "\n" not in str(caught.value)
    assert time.monotonic() - start < 10


def test_a_file_larger_than_any_recipe_is_not_read(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("a: " + "b" * MAX_YAML_BYTES)
    with pytest.raises(ValueError, match=r"recipe\.yaml holds 262147 bytes; a recipe has at most 262144"):
        read_yaml(path, "recipe")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "b": 2, "a": 3}', r"the key 'a' stands twice in one object"),
        ('[{"x": {"a": 1, "a": 1}}]', r"the key 'a' stands twice"),
        ("[" * 100_000, r"nested too deeply"),
        ('{"a":' * 100_000, r"nested too deeply"),
        ("{", r"Expecting property name"),
        ("9" * 5000, r"4300 digits"),
        (b"\xff{}", r"decode"),
    ],
)
def test_json_that_says_two_things_or_none_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_json(text)


def test_json_is_read_in_every_encoding_that_json_has():
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
        assert parse_json('{"ä": [1, {}]}'.encode(encoding)) == {"ä": [1, {}]}


def test_ordinary_aliases_and_merge_keys_mean_what_yaml_says():
    text = "base: &base {a: 1, b: [2, 3]}\nmore: {<<: *base, a: 4}\nlist: [*base, *base]\n"
    assert parse_yaml(text) == yaml.safe_load(text)
    assert parse_yaml("") is None


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.name)
def test_the_repository_s_files_are_read_as_before(path):
    assert dict(read_yaml(path, "recipe")) == yaml.safe_load(path.read_text(encoding="utf-8"))


def _reader(several: Literal["together", "apart"] | None = None, mode: Literal["a", "b"] = "a", share: float = 0.1):
    """Keywords of the kinds that readers have."""


@pytest.mark.parametrize("values", [{"several": "together"}, {"several": None}, {"mode": "b"}, {"share": 1}])
def test_a_choice_that_may_be_left_out_is_taken(values):
    check_plain_values(values, _reader, "data.train")
    check_plain_values(values, _reader, "data.train", choices=False)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"several": "both"}, r"data\.train\.several must be one of 'together', 'apart' or empty\. Got 'both'\.$"),
        ({"several": 3}, r"several must be one of 'together', 'apart' or empty\. Got 3"),
        ({"mode": "c"}, r"mode must be one of 'a', 'b'\. Got 'c'"),
        ({"share": "2"}, r"share must be a number\. Got '2'\.$"),
        ({"share": "1e-4"}, r"share must be a number\. Got '1e-4' \(YAML reads 1e-4 as a text: write 1\.0e-4\)"),
    ],
)
def test_a_value_of_another_kind_is_named_with_what_it_may_be(values, message):
    with pytest.raises(ValueError, match=message):
        check_plain_values(values, _reader, "data.train")
    if "share" not in values:  # a reader refuses these itself
        check_plain_values(values, _reader, "data.train", choices=False)
