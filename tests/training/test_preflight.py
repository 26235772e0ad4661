"""What would end a run after hours is said before its first step, by --dry-run too."""

from collections import namedtuple

import pytest

from helpers.training import tiny_recipe
from hivg_hf.training import check_before_training, parse_recipe

PHASE = {"name": "a", "train": "heads", "epochs": 1, "learning_rate": 1e-3, "batch_size": 8}
MODEL = {"preset": "tiny", "tokenizer": "refshapes"}
ROWS = {"source": "refshapes", "split": "train", "size": 24}


def recipe(**changes):
    content = {"name": "r", "model": MODEL, "data": {"train": ROWS}, "phases": [PHASE]}
    return parse_recipe({**content, **changes})


def table(folder, name="rows.csv", splits=("train", "val")):
    lines = [f"a.png,the red box,1,1,9,9,{split}" for split in splits]
    path = folder / name
    path.write_text("\n".join(["image,expression,xmin,ymin,xmax,ymax,split", *lines]) + "\n")
    return {"source": str(path), "images": str(folder), "box_format": "xyxy"}


@pytest.mark.parametrize("where", ["validation", "tests"])
def test_a_split_that_is_not_there_is_named_when_the_recipe_is_read(where):
    spec = {**ROWS, "split": "testC"}
    with pytest.raises(ValueError, match=rf"data.{where}.*: unknown RefShapes split 'testC'; expected one of train"):
        recipe(data={"train": ROWS, where: {"x": spec} if where == "tests" else spec})


def test_splits_of_tables_and_of_published_data_are_known_too(tmp_path):
    rows = table(tmp_path)
    tests = {"x": {**rows, "split": "dev"}}
    with pytest.raises(ValueError, match=r"data.tests.x: .*rows.csv has no split 'dev'; it has train, val"):
        check_before_training(recipe(data={"train": ROWS, "tests": tests}), tmp_path)
    tests = {"x": {"source": "refcoco", "split": "testC", "root": "/nowhere"}}
    with pytest.raises(ValueError, match=r"data.tests.x: refcoco has no split 'testC'"):
        check_before_training(recipe(data={"train": ROWS, "tests": tests}), tmp_path, planning=True)
    parts = [{**ROWS, "split": "testC"}]
    with pytest.raises(ValueError, match="unknown RefShapes split 'testC'"):
        check_before_training(
            recipe(data={"train": {"source": "mixture", "split": "train", "parts": parts}}), tmp_path, planning=True
        )


def test_missing_files_end_a_run_and_a_plan_unless_their_counts_are_published(tmp_path):
    tests = {"x": {**table(tmp_path), "source": str(tmp_path / "gone.csv"), "split": "val"}}
    plan = recipe(data={"train": ROWS, "tests": tests})
    for planning in (True, False):
        with pytest.raises(FileNotFoundError, match=r"data.tests.x: .*gone.csv"):
            check_before_training(plan, tmp_path, planning)
    published = recipe(data={"train": {"source": "unc", "split": "train", "root": "/nowhere", "images": "/nowhere"}})
    (missing,) = check_before_training(published, tmp_path, planning=True)
    assert missing.startswith("data.train: ")
    with pytest.raises(FileNotFoundError, match=r"data\.train: "):
        check_before_training(published, tmp_path)
    weights = recipe(model={"checkpoint": "/nowhere/model"})
    with pytest.raises(FileNotFoundError, match=r"model\.checkpoint: there is no /nowhere/model"):
        check_before_training(weights, tmp_path, planning=True)


def test_a_later_phase_that_cannot_run_is_found_at_once(tmp_path, tiny_checkpoint):
    small = {**PHASE, "name": "b", "data": {**ROWS, "size": 4}}
    with pytest.raises(ValueError, match=r"Phase 'b' takes batches of 8 rows, and its training data has 4: lower"):
        check_before_training(recipe(phases=[PHASE, small]), tmp_path)
    deep = {**PHASE, "name": "b", "train": "lora", "vision_layers": 99, "text_layers": 1}
    with pytest.raises(ValueError, match=r"'b' adapts 99 vision and 1 text layers, but the model has"):
        check_before_training(recipe(phases=[PHASE, deep]), tmp_path)


def test_a_disk_too_small_for_any_phase_is_found_before_the_first(tmp_path, monkeypatch, tiny_checkpoint):
    plan = parse_recipe(tiny_recipe(tiny_checkpoint))
    assert check_before_training(plan, tmp_path / "not" / "there") == []
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage(0, 0, 2**20))
    with pytest.raises(OSError, match=r"has 0.00 GiB free, but this phase may need .* GiB"):
        check_before_training(plan, tmp_path)
