"""The control with one query: the shipped recipe, and nothing changed in it but what one query cannot do."""

from benchmarks.queries import one_query
from hivg_hf.recipes.content import read_recipe
from hivg_hf.training import parse_recipe


def test_only_queries_plurals_and_the_start_differ_from_the_shipped_recipe():
    shipped = read_recipe("hivg-tiny-refshapes")
    control = one_query(shipped, "START")
    assert control["model"] == {"checkpoint": "START"}
    assert [phase["name"] for phase in control["phases"]] == [phase["name"] for phase in shipped["phases"][3:]]
    differences = dict(_differences(shipped["phases"][3:], control["phases"]))
    assert {path.split(".")[-1] for path in differences} == {"num_queries", "plural_fraction"}
    assert all(after in (0, 1) and before > after for before, after in differences.values())
    parse_recipe(control)


def test_phases_after_the_last_one_asked_for_are_left_out():
    control = one_query(read_recipe("hivg-tiny-refshapes"), "START", until="instances")
    assert [phase["name"] for phase in control["phases"]] == ["instances"]


def _differences(first, second, path=""):
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            yield from _differences(first[key], second[key], f"{path}.{key}")
    elif isinstance(first, list):
        assert len(first) == len(second)
        for number, (one, other) in enumerate(zip(first, second, strict=True)):
            yield from _differences(one, other, f"{path}.{number}")
    elif first != second:
        yield path, (first, second)
