"""Runs of several phases: resumed after kills, refused where they must be, kept only where they gain."""

import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file

from helpers.training import folder_bytes, run_staged, tiny_recipe
from hivg_hf import HiVGConfig, HiVGForVisualGrounding, HiVGProcessor
from hivg_hf.data.rows import BrokenRowsError
from hivg_hf.hilora import load_stages
from hivg_hf.training import HiVGTrainer, StagedTraining, parse_recipe, staged
from hivg_hf.training.report import ReadableLog
from hivg_hf.training.run_folder import claim_folder

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def unbroken_run(tiny_checkpoint, tmp_path_factory):
    """The folder of a run that nobody disturbs."""
    folder = tmp_path_factory.mktemp("runs") / "unbroken"
    run_staged(tiny_recipe(tiny_checkpoint), str(folder))
    return folder


class Forked:
    """A forked process with the three calls of `subprocess.Popen` that are needed here."""

    def __init__(self, process):
        self.process, self.kill, self.wait = process, process.kill, process.join
        process.start()

    def poll(self):
        return self.process.exitcode


def kill_and_resume(start, folder, kills, seed, stride):
    """Start the run again and again until it is done; kill it `kills` times, at random moments in which it works."""
    rng, hits = random.Random(seed), 0
    while True:
        process, before = start(), progress(folder)
        if hits < kills:
            # the imports take the longest: wait until it has got somewhere (a few things written), then a moment more
            steps = rng.randint(1, stride)
            while process.poll() is None and len(progress(folder) - before) < steps:
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.1))
            if process.poll() is None:
                process.kill()
                hits += 1
        process.wait()
        if process.poll() == 0:
            assert hits == kills
            return
        assert process.poll() == -signal.SIGKILL


def progress(folder):
    """What the run has written so far: checkpoints, results, published folders."""
    parts = [*folder.glob("phases/*/*"), *folder.glob("adapters/*"), *folder.glob("exports/*")]
    return {str(path) for path in parts if not path.name.startswith(".")}


@pytest.mark.timeout(900)  # processes of its own, whose imports take minutes on a busy machine
def test_a_killed_and_resumed_run_ends_with_the_same_weights(forkserver, tiny_checkpoint, unbroken_run, tmp_path):
    recipe, folder = tiny_recipe(tiny_checkpoint), tmp_path / "run"
    kill_and_resume(
        lambda: Forked(forkserver.Process(target=run_staged, args=(recipe, str(folder)))),
        folder,
        kills=2,
        seed=1,
        stride=6,
    )
    assert folder_bytes(folder) == folder_bytes(unbroken_run)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_kills_by_the_command_line(tiny_checkpoint, tmp_path):
    """The same command, killed at ten random moments over warm-up and three stages."""
    content = tiny_recipe(tiny_checkpoint)
    content["phases"] = [{**phase, "epochs": 2} for phase in content["phases"]]
    run_staged(content, str(tmp_path / "unbroken"))
    recipe, folder = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(yaml.safe_dump(content))
    command = [sys.executable, "scripts/train.py", str(recipe), "--out", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    start = functools.partial(subprocess.Popen, command, cwd=REPOSITORY, env=environment)
    kill_and_resume(start, folder, kills=10, seed=3, stride=4)
    assert folder_bytes(folder) == folder_bytes(tmp_path / "unbroken")


def test_an_evaluation_that_a_kill_prevented_is_made_after_the_restart(
    tiny_checkpoint, unbroken_run, tmp_path, monkeypatch
):
    """Checkpoints after every step, evaluations after every epoch: the one at step 3 must not be lost."""
    recipe = tiny_recipe(tiny_checkpoint)
    recipe["phases"] = recipe["phases"][:1]
    evaluate = HiVGTrainer.evaluate

    def dies_while_training(self, *args, **kwargs):
        if self.is_in_train:
            raise KeyboardInterrupt
        return evaluate(self, *args, **kwargs)

    monkeypatch.setattr(HiVGTrainer, "evaluate", dies_while_training)
    with pytest.raises(KeyboardInterrupt):
        run_staged(recipe, str(tmp_path))
    monkeypatch.undo()
    run_staged(recipe, str(tmp_path))
    found, expected = (
        json.loads((folder / "results.json").read_text())["phases"][0] for folder in (tmp_path, unbroken_run)
    )
    assert found["best_step"] == expected["best_step"] == 3
    steps = [entry["step"] for entry in found["log"] if "eval_accuracy" in entry]
    assert steps == [entry["step"] for entry in expected["log"] if "eval_accuracy" in entry] == [3, 6]


def test_a_run_leaves_results_curves_and_a_card(unbroken_run):
    folder = unbroken_run
    results = json.loads((folder / "results.json").read_text())
    assert results["model"] == "merged"
    assert [phase["name"] for phase in results["phases"]] == ["warmup", "stage_1", "stage_2", "stage_3"]
    assert [phase["steps"] for phase in results["phases"]] == [6, 3, 3, 3]
    assert results["phases"][1]["kept"] == "after"
    assert results["phases"][1]["why"] == "the recipe keeps the last weights"
    assert set(results["phases"][1]["parameters"]) >= {"CLIP vision", "bridge", "grounding head", "LoRA vision"}
    assert results["phases"][1]["parameters"]["CLIP vision"][0] == 0
    assert results["evaluation"]["validation"]["counts"]["rows"] == 10
    assert "loss_token_focal" in results["phases"][0]["log"][0]
    with Image.open(folder / "training-curves.png") as picture:
        assert picture.width > 600
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 20
    card = (folder / "merged" / "README.md").read_text()
    assert "| stage_2 | lora | 3 | 8 |" in card
    assert f'pipeline("visual-grounding", model="{folder.name}/merged")' in card
    assert not list(folder.rglob("checkpoint-*"))
    assert not list(folder.rglob(".*.partial"))


def test_a_phase_loads_its_model_once_and_begins_at_the_accuracy_the_one_before_ended_with(
    tiny_checkpoint, tmp_path, monkeypatch
):
    loaded, measured = [], []
    load, evaluate = staged.load_after, HiVGTrainer.evaluate

    def counted(recipe, done, changes=None):
        loaded.append(len(done))
        return load(recipe, done, changes)

    def counted_before_training(self, *args, **kwargs):
        metrics = evaluate(self, *args, **kwargs)
        if not self.is_in_train:
            measured.append(metrics["eval_accuracy"])
        return metrics

    monkeypatch.setattr(staged, "load_after", counted)
    monkeypatch.setattr(HiVGTrainer, "evaluate", counted_before_training)
    recipe = tiny_recipe(tiny_checkpoint)
    recipe["phases"] = [{**phase, "epochs": 1, "save_every": None, "keep": "last"} for phase in recipe["phases"][:3]]
    results = StagedTraining(parse_recipe(recipe), tmp_path).run()
    assert loaded == [0, 1, 2, 3]  # each phase, and the end
    assert len(measured) == 1
    before = [phase["accuracy_before"] for phase in results["phases"]]
    assert before == [measured[0], *(phase["accuracy_after"] for phase in results["phases"][:-1])]
    assert results["evaluation"]["validation"]["figures"]["acc@0.5"] == results["phases"][-1]["accuracy_after"]


@pytest.mark.parametrize("changes", [{"config": {"fusion_dropout": 0.0}}, {"eval_batch_size": 3}])
def test_a_phase_that_changes_the_model_or_how_it_is_measured_measures_anew(
    changes, tiny_checkpoint, tmp_path, monkeypatch
):
    evaluate, measured = HiVGTrainer.evaluate, []

    def noted(self, *args, **kwargs):
        measured.append(self.is_in_train)
        return evaluate(self, *args, **kwargs)

    monkeypatch.setattr(HiVGTrainer, "evaluate", noted)
    recipe = tiny_recipe(tiny_checkpoint)
    short = {**recipe["phases"][0], "epochs": None, "steps": 1, "save_every": None, "evaluate_every": 5}
    recipe["phases"] = [short, {**short, "name": "again", **changes}]
    StagedTraining(parse_recipe(recipe), tmp_path).run()
    assert measured.count(False) == 2


def test_the_same_command_on_a_finished_run_answers_at_once(unbroken_run, tiny_checkpoint):
    folder = unbroken_run
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    results = StagedTraining(parse_recipe(tiny_recipe(tiny_checkpoint)), folder).run()
    assert results == json.loads((folder / "results.json").read_text())
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")} == before


@pytest.mark.parametrize("part", ["01-warmup", "03-stage_2"])
@pytest.mark.parametrize("pattern", ["phase.json", "**/*.safetensors", "manifest.json"])
def test_a_damaged_result_of_a_phase_is_named(part, pattern, unbroken_run, tiny_checkpoint, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(unbroken_run, folder)
    (folder / "results.json").unlink()
    (folder / "phases" / part / "published").unlink(missing_ok=True)
    victim = next((folder / "phases" / part / "result").glob(pattern))
    victim.write_bytes(b"")
    with pytest.raises(ValueError, match=rf"phases/{part}/result is damaged: .*{victim.name}.*delete it to train"):
        run_staged(tiny_recipe(tiny_checkpoint), str(folder))


@pytest.mark.parametrize("content", ["", "{}", "[", "null"])
def test_damaged_records_of_a_run_are_made_again(content, unbroken_run, tiny_checkpoint, tmp_path, caplog):
    folder = tmp_path / "run"
    shutil.copytree(unbroken_run, folder)
    expected = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(content)
    with caplog.at_level("WARNING", logger="hivg_hf"):
        found = StagedTraining(parse_recipe(tiny_recipe(tiny_checkpoint)), folder).run()
    assert "results.json is damaged: it is made again" in caplog.text
    assert found["phases"] == expected["phases"]
    assert found["evaluation"]["validation"]["counts"] == expected["evaluation"]["validation"]["counts"]


def test_a_damaged_start_accuracy_is_measured_again(unbroken_run, tiny_checkpoint, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(unbroken_run, folder)
    (folder / "results.json").unlink()
    shutil.rmtree(folder / "phases" / "04-stage_3" / "result")
    (folder / "phases" / "04-stage_3" / "start.json").write_text("{}")
    run_staged(tiny_recipe(tiny_checkpoint), str(folder))
    assert folder_bytes(folder) == folder_bytes(unbroken_run)
    found, expected = (
        json.loads((run / "phases" / "04-stage_3" / "start.json").read_text()) for run in (folder, unbroken_run)
    )
    assert found["eval_accuracy"] == expected["eval_accuracy"]


@pytest.mark.parametrize("mode", ["additive", "progressive"])
def test_a_stage_without_gain_leaves_no_trace(mode, tiny_checkpoint, tmp_path):
    """Random weights gain nothing: the second stage is judged and rejected, the first one kept by order."""
    recipe = tiny_recipe(tiny_checkpoint, hilora={"mode": mode})
    recipe["phases"] = [
        {**phase, "epochs": 1, "save_every": None, "vision_layers": 2} for phase in recipe["phases"][1:3]
    ]
    recipe["phases"][1]["keep"] = "best"
    results = StagedTraining(parse_recipe(recipe), tmp_path).run()
    first, second = results["phases"]
    assert (first["kept"], second["kept"]) == ("after", "before")
    assert second["why"].startswith("no evaluation beat the accuracy 0.0000")
    name = "stage_1" if mode == "additive" else "hilora"
    assert [path.name for path in (tmp_path / "adapters").iterdir()] == [name]
    assert [path.name for path in (tmp_path / "exports").iterdir()] == ["stage_1"]
    one, two = (folder_bytes(tmp_path / "phases" / part / "result") for part in ("01-stage_1", "02-stage_2"))
    assert one == two
    load_stages(tmp_path)


def test_a_rejected_first_stage_leaves_the_model_as_it_was(tiny_checkpoint, tmp_path, caplog):
    recipe = tiny_recipe(tiny_checkpoint)
    recipe["phases"] = [{**recipe["phases"][1], "keep": "best", "save_every": None}]
    with caplog.at_level("INFO", logger="hivg_hf"):
        results = StagedTraining(parse_recipe(recipe), tmp_path).run()
    assert results["phases"][0]["kept"] == "before"
    assert "stage_1 is undone: no evaluation beat the accuracy" in caplog.text
    assert not (tmp_path / "adapters").exists()
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    start = load_file(Path(tiny_checkpoint) / "model.safetensors")
    assert all(torch.equal(tensor, start[name]) for name, tensor in merged.items())


def test_rows_that_are_refused_do_not_hold_the_folder(tiny_checkpoint, tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    table, run = tmp_path / "mine.csv", tmp_path / "run"
    table.write_text("image,expression,x1,y1,x2,y2\na.png,,1,1,9,9\n" + 9 * "a.png,a star,1,1,9,9\n")
    recipe = tiny_recipe(tiny_checkpoint)
    spec = {"source": str(table), "split": "all", "images": str(tmp_path), "box_format": "xyxy"}
    recipe["data"] = {"train": spec}
    with pytest.raises(BrokenRowsError, match="expression is blank"):
        StagedTraining(parse_recipe(recipe), run).run()
    with pytest.raises(ValueError, match="takes batches of 80 rows"):
        StagedTraining(parse_recipe({**recipe, "defaults": {**recipe["defaults"], "batch_size": 80}}), run).run()
    assert not run.exists()
    notes = tmp_path / "of-mine" / "phases" / "notes.txt"
    notes.parent.mkdir(parents=True)
    notes.write_text("of the moon")
    with pytest.raises(BrokenRowsError, match="expression is blank"):
        StagedTraining(parse_recipe(recipe), tmp_path / "of-mine").run()
    assert notes.read_text() == "of the moon"  # what stood there before is not ours to delete
    other = {**recipe, "seed": 8}
    run.mkdir()
    claim_folder(run, parse_recipe(other))  # any other recipe may begin here, but not a second one
    with pytest.raises(ValueError, match="holds a run of another recipe"):
        StagedTraining(parse_recipe(recipe), run).run()
    assert (run / "recipe.json").is_file()


def test_undone_training_leaves_the_thresholds_of_the_start(tiny_checkpoint, tmp_path):
    start = shutil.copytree(tiny_checkpoint, tmp_path / "start")
    config = HiVGConfig.from_pretrained(start)
    config.score_threshold, config.multiple_threshold = 0.25, 0.5
    config.save_pretrained(start)
    recipe = tiny_recipe(str(start))
    recipe["model"]["config"] = {}
    stage = {**recipe["phases"][1], "save_every": None}
    for keep, kept, thresholds in (("best", "before", (0.25, 0.5)), ("last", "after", (None, None))):
        recipe["phases"] = [{**stage, "keep": keep}]
        results = StagedTraining(parse_recipe(recipe), tmp_path / keep).run()
        assert results["phases"][0]["kept"] == kept
        left = HiVGConfig.from_pretrained(tmp_path / keep / results["model"])
        assert (left.score_threshold, left.multiple_threshold) == thresholds


def test_a_tuner_of_peft_is_a_phase_between_others(tiny_checkpoint, tmp_path):
    """Its result is a plain model, from which a stage continues, and its export gives that model on the first base."""
    recipe = tiny_recipe(tiny_checkpoint)
    tuner = {"peft_type": "OFT", "r": 0, "oft_block_size": 8}
    phase = {"name": "oft", "train": "peft", "tuner": tuner, "targets": "all-linear", "steps": 2, "keep": "last"}
    recipe["phases"] = [{**phase, "save_every": 1}, recipe["phases"][1]]
    results = StagedTraining(parse_recipe(recipe), tmp_path).run()
    assert [one["kept"] for one in results["phases"]] == ["after", "after"]
    assert results["phases"][0]["parameters"]["OFT vision"][0] > 0
    merged = HiVGForVisualGrounding.from_pretrained(tmp_path / "phases" / "01-oft" / "result")
    start = HiVGForVisualGrounding.from_pretrained(tiny_checkpoint)
    assert not torch.equal(*(one.clip.text_model.encoder.layers[0].mlp.fc1.weight for one in (merged, start)))
    exported = PeftModel.from_pretrained(start, tmp_path / "exports" / "oft")
    processor = HiVGProcessor.from_pretrained(tiny_checkpoint)
    inputs = processor(images=[Image.new("RGB", (64, 48), "red")] * 2, text=["the red box", "a star"])
    with torch.no_grad():
        one, other = (model.eval()(**inputs).pred_boxes for model in (merged, exported))
    assert (one - other).abs().max() <= 1e-6
    assert load_stages(tmp_path).peft_config.keys() == {"stage_1"}


def test_a_killed_phase_of_a_tuner_resumes_bit_for_bit(tiny_checkpoint, tmp_path):
    recipe = tiny_recipe(tiny_checkpoint)
    recipe["phases"] = [
        {"name": "ia3", "train": "peft", "tuner": {"peft_type": "IA3", "feedforward_modules": []}, "steps": 4,
         "keep": "last", "save_every": 2}
    ]  # fmt: skip
    StagedTraining(parse_recipe(recipe), tmp_path / "whole").run()

    def kill(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ReadableLog, "on_step_end", kill, raising=False)
        with pytest.raises(KeyboardInterrupt):
            StagedTraining(parse_recipe(recipe), tmp_path / "killed").run()
    StagedTraining(parse_recipe(recipe), tmp_path / "killed").run()
    assert folder_bytes(tmp_path / "whole" / "model") == folder_bytes(tmp_path / "killed" / "model")


@pytest.mark.parametrize("mode", ["additive", "progressive"])
def test_stages_with_one_schedule_go_through_it_once(mode, tiny_checkpoint, tmp_path):
    recipe = tiny_recipe(tiny_checkpoint, hilora={"schedule": "shared", "mode": mode})
    stage = {**recipe["phases"][1], "epochs": None, "steps": 2, "save_every": None, "warmup": 0.5}
    recipe["phases"] = [stage, {**stage, "name": "stage_2", "vision_layers": 3}]
    recipe["phases"] = [
        {key: value for key, value in phase.items() if value is not None} for phase in recipe["phases"]
    ]
    results = StagedTraining(parse_recipe(recipe), tmp_path).run()
    rates = [
        entry["learning_rate"] for phase in results["phases"] for entry in phase["log"] if "learning_rate" in entry
    ]
    assert rates == pytest.approx([0, 5e-4, 1e-3, 5e-4])


def test_a_phase_may_change_the_model_it_begins_with(tiny_checkpoint, tmp_path):
    """As the official large models: heads first without bridges, then with new ones."""
    recipe = tiny_recipe(tiny_checkpoint)
    common = {"train": "heads", "steps": 1, "save_every": None}
    recipe["phases"] = [
        {"name": "warmup", **common, "config": {"bridge_layers": []}},
        {"name": "heads", **common, "config": {"bridge_layers": [0, 2]}, "keep": "last"},
    ]
    results = StagedTraining(parse_recipe(recipe), tmp_path).run()
    assert results["model"] == "model"
    weights = load_file(tmp_path / "model" / "model.safetensors")
    layers = {name.split(".")[4] for name in weights if ".bridge." in name}
    assert layers == {"0", "2"}
    without = load_file(tmp_path / "phases" / "01-warmup" / "result" / "model.safetensors")
    assert not any(".bridge." in name for name in without)
