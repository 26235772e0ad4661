"""Kinds of phases from outside: refused where they are not whole, before anything is loaded."""

from dataclasses import dataclass

import pytest

from hivg_hf.training import GroundingPhase, HeadsPhase, Phase, parse_recipe, phase_kinds
from hivg_hf.training.phase_training import build_arguments

ROWS = {"source": "refshapes", "split": "train", "size": 8}


@dataclass(frozen=True, kw_only=True)
class WithoutBatches(Phase):
    """Does not say how rows become batches."""


@dataclass(frozen=True, kw_only=True)
class Patient(HeadsPhase):
    """Reads a key of its own, which the trainer takes."""

    patience: int = 3

    def training_arguments(self, evaluates):
        return {**super().training_arguments(evaluates), "early_stop": self.patience if evaluates else None}


def recipe_with(train):
    phase = {"name": "a", "train": train, "steps": 1, "learning_rate": 1e-4, "batch_size": 4}
    return {"name": "r", "model": {"checkpoint": "x"}, "data": {"train": ROWS}, "phases": [phase]}


@pytest.mark.parametrize(
    ("kind", "missing"),
    [
        (WithoutBatches, "collator"),
        (dict, "hivg_hf.training.Phase below it"),
        (len, "hivg_hf.training.Phase below it"),
    ],
)
def test_a_kind_that_is_not_whole_is_refused_with_what_it_lacks(kind, missing, monkeypatch):
    monkeypatch.setattr(phase_kinds, "find_plugin", lambda group, name: kind if name == "mine" else None)
    with pytest.raises(ValueError, match=rf"recipe.phases\[0\].train: the kind 'mine' .* lacks {missing}\.$"):
        parse_recipe(recipe_with("mine"))


@pytest.mark.parametrize("kind", [GroundingPhase, HeadsPhase])
def test_a_whole_kind_is_taken(kind, monkeypatch):
    monkeypatch.setattr(phase_kinds, "find_plugin", lambda group, name: kind if name == "mine" else None)
    (phase,) = parse_recipe(recipe_with("mine")).phases
    assert type(phase) is kind


def test_an_unknown_kind_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"recipe.phases\[0\].train must be one of 'pretrain', .*Got 'mine'"):
        parse_recipe(recipe_with("mine"))


@pytest.mark.parametrize(("evaluates", "expected"), [(True, 3), (False, None)])
def test_a_kind_has_a_say_in_the_trainer_s_arguments(evaluates, expected, monkeypatch, tmp_path):
    monkeypatch.setattr(phase_kinds, "find_plugin", lambda group, name: Patient if name == "mine" else None)
    recipe = parse_recipe(recipe_with("mine"))
    made = build_arguments(recipe, recipe.phases[0], tmp_path, evaluates, rows=8)
    assert made.early_stop == expected
