"""Where a run's model comes from, by every name that a model has."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from helpers.training import tiny_recipe
from hivg_hf import TINY_CHECKPOINT, HiVGConfig
from hivg_hf.hilora.folders import save_export
from hivg_hf.training import model_start, parse_recipe, plan_training, plan_user_training
from hivg_hf.training.model_start import build_model, build_processor, plain_checkpoint, start_name
from hivg_hf.training.recipe import ModelRecipe
from hivg_hf.training.results import _base_on_the_hub


@pytest.fixture
def run_folder(tmp_path: Path, tiny_model: Any, tiny_processor: Any) -> Path:
    """What additive stages leave: `base/` without what they learned, and `merged/` with it."""
    folder, bias = tmp_path / "run", tiny_model.clip.text_projection.weight
    tiny_model.save_pretrained(folder / "base")
    learned = tiny_model.state_dict() | {"clip.text_projection.weight": bias + 1}
    tiny_model.save_pretrained(folder / "merged", state_dict=learned)
    for name in ("base", "merged"):
        tiny_processor.save_pretrained(folder / name)
    (folder / "recipe.json").write_text("{}")
    (folder / "results.json").write_text(json.dumps({"model": "merged"}))
    return folder


@pytest.mark.parametrize("name", ["tiny", "hivg-tiny-refshapes", TINY_CHECKPOINT])
def test_the_shipped_model_is_planned_and_opened_by_each_of_its_names(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = parse_recipe({**tiny_recipe(name), "model": {"checkpoint": name}})
    assert plan_training(recipe)[0].parameters
    assert build_model(recipe.model).name_or_path == TINY_CHECKPOINT
    assert build_processor(recipe.model, None).image_processor.size
    assert start_name(recipe.model) == TINY_CHECKPOINT
    assert _base_on_the_hub(recipe) is None  # a model card must not call it a repository


def test_a_run_is_continued_from_its_finished_model(run_folder: Path, tiny_model: Any) -> None:
    """And not from `base/`, which lacks what additive stages learned."""
    found = build_model(ModelRecipe(checkpoint=str(run_folder)))
    assert torch.equal(found.clip.text_projection.weight, tiny_model.clip.text_projection.weight + 1)


def test_a_run_without_a_finished_model_is_refused(run_folder: Path) -> None:
    (run_folder / "results.json").unlink()
    with pytest.raises(FileNotFoundError, match="has no finished model yet"):
        build_model(ModelRecipe(checkpoint=str(run_folder)))


def test_under_an_adapter_to_go_on_with_lies_its_base(run_folder: Path) -> None:
    (run_folder / "adapters" / "hilora").mkdir(parents=True)
    assert plain_checkpoint(ModelRecipe(checkpoint=str(run_folder))) == str(run_folder / "base")


def test_a_revision_is_downloaded_for_a_plan_without_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(
        model_start, "download_checked", lambda name, **how: asked.append((name, how)) or TINY_CHECKPOINT
    )
    recipe = parse_recipe({**tiny_recipe(""), "model": {"checkpoint": "me/hivg@v1"}})
    plan_training(recipe)
    assert asked[0] == ("me/hivg@v1", {"patterns": ["*.json"]})
    build_model(recipe.model)
    assert asked[-1] == ("me/hivg@v1", {})
    assert start_name(recipe.model) == "me/hivg@v1"
    assert _base_on_the_hub(recipe) == "me/hivg"


def test_training_on_ones_own_table_takes_each_name_too(
    tmp_path: Path, make_image: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ["image,expression,x1,y1,x2,y2"]
    for number in range(8):
        make_image(tmp_path / f"{number}.png", seed=number)
        lines.append(f"{number}.png,the red box,1,1,20,20")
    (tmp_path / "rows.csv").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    plan = plan_user_training("rows.csv", None, "tiny", box_format="xyxy")
    assert plan["model"] == {"checkpoint": TINY_CHECKPOINT}


@pytest.mark.parametrize(
    ("base", "named"),
    [("me/hivg", ("me/hivg", None)), ("me/hivg@v1", ("me/hivg", "v1")), ("FOLDER", ("FOLDER", None))],
)
def test_an_exported_adapter_names_its_base_so_that_it_can_be_found(
    base: str, named: tuple[str, str | None], tmp_path: Path, tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    base, named = base.replace("FOLDER", str(tmp_path)), (named[0].replace("FOLDER", str(tmp_path)), named[1])
    targets = r"clip\.text_model\.encoder\.layers\.0\.self_attn\.q_proj"
    model = get_peft_model(copy.deepcopy(tiny_model), LoraConfig(r=2, target_modules=targets))
    save_export(model, "export", base=base)
    written = json.loads(Path("export/adapter_config.json").read_text())
    assert (written["base_model_name_or_path"], written["revision"]) == named


def test_thresholds_of_the_scores_before_training_are_not_kept() -> None:
    shipped = HiVGConfig.from_pretrained(TINY_CHECKPOINT)
    assert shipped.score_threshold is not None
    started = build_model(ModelRecipe(checkpoint="tiny")).config
    assert (started.score_threshold, started.multiple_threshold) == (None, None)
    assert started.score_temperature == shipped.score_temperature
    chosen = build_model(ModelRecipe(checkpoint="tiny", config={"score_threshold": 0.25})).config
    assert chosen.score_threshold == 0.25
