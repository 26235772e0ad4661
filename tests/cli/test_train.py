"""`hivg train`: one parser for the command and the script, and what it refuses."""

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from hivg_hf.cli import app
from hivg_hf.training import user_data

REPOSITORY = Path(__file__).parent.parent.parent
TINY = REPOSITORY / "hivg_hf" / "recipes" / "hivg-tiny-refshapes.yaml"


def run(*words):
    return CliRunner().invoke(app, ["train", *map(str, words)])


def test_dry_run_prints_the_plan_and_trains_nothing(tmp_path):
    result = run(TINY, "--dry-run", "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert "Training on 1 process" in result.output
    names = [phase["name"] for phase in yaml.safe_load(TINY.read_text())["phases"]]
    assert all(f"\n{name}: trains " in f"\n{result.output}" for name in names)
    for line in ("optimizer steps", "trainable parameters", "contrastive negatives", "memory per process"):
        assert result.output.count(line) == len(names)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "Name a recipe, for example hivg-tiny-refshapes, or your own data with --data."),
        (("nowhere.yaml",), "No recipe at nowhere.yaml"),
        ((TINY, "--data", "x.csv"), "Name a recipe"),
        (("--data", "x.csv", "--epochs", 0), "--epochs must be above 0, got 0"),
        (("x.csv",), "x.csv is data, where a recipe (a YAML file or its name) was expected: write --data x.csv."),
        (("rows.JSONL", "--images", "photos"), "write --data rows.JSONL."),
        ((REPOSITORY / "docs",), "docs is data, where a recipe"),
    ],
)
def test_what_it_cannot_do_is_one_sentence(words, message):
    result = run(*words)
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--epochs", 1), "--epochs goes"),
        (("--seed", 13), "--seed goes"),
        (("--base", "tiny"), "--base goes"),
        (("--images", "x"), "--images goes"),
        (("--val", "x.csv"), "--val goes"),
        (("--box-format", "y"), "--box-format goes"),
        (("--option", "foo=bar"), "--option goes"),
        (("--lr", "1e-4"), "--lr goes"),
        (("--batch-size", 4), "--batch-size goes"),
        (("--epochs", 1, "--seed", 99, "--base", "nowhere"), "--base, --epochs, --seed go"),
    ],
)
@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_options_of_own_data_are_refused_beside_a_recipe(words, named, dry, tmp_path):
    result = run(TINY, *words, *dry, "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert f"hivg: {named} with --data; a recipe says all of this itself" in result.output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("pair", "advice"),
    [
        ("seed=3", "--option seed is about the training, and --option says how the data is read: write --seed 3."),
        ("batch_size=4", "write --batch-size 4."),
        ("epochs=1", "write --epochs 1."),
        ("lr=1e-4", "write --lr 1e-4."),
        ("learning_rate=0.1", "write --lr 0.1."),
        ("base=tiny", "write --base tiny."),
        ("val=x.csv", "write --val x.csv."),
        ("out=runs", "write --out runs."),
        ("source=x.csv", "write --data x.csv."),
        ("device=cpu", "write --device cpu."),
        ("split=train", "--option split does not go with --data, which reads the splits train and val"),
        ("streaming=true", "--option streaming does not go with --data"),
    ],
)
def test_a_setting_of_the_training_among_those_of_the_reader_is_named(pair, advice, monkeypatch):
    monkeypatch.setattr(user_data, "_open_base", None)  # refused before anything is opened
    result = run("--data", "x.csv", "--option", pair)
    assert result.exit_code == 2
    assert f"{advice}" in result.output
    assert "Traceback" not in result.output


def test_folder_and_box_format_of_own_data_may_be_given_as_options_of_the_reader(monkeypatch):
    planned = []

    def plan(**options):
        planned.append(options)
        raise ValueError("seen")

    monkeypatch.setattr(user_data, "plan_user_training", plan)
    run("--data", "my.csv", "--images", "photos", "--box-format", "xyxy")
    run("--data", "my.csv", "--option", "images=photos", "--option", "box_format=xyxy")
    assert planned[0] == planned[1]
    assert (planned[0]["images"], planned[0]["box_format"]) == ("photos", "xyxy")
    result = run("--data", "my.csv", "--images", "photos", "--option", "images=photos")
    assert "--option gives images, which another argument gives too; give one of them." in result.output


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_a_misspelt_key_is_found_before_anything_is_made(dry, tmp_path):
    content = yaml.safe_load(TINY.read_text())
    content["phases"][1]["loss_weights"] = {"giuo": 2.0}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    result = run(path, *dry, "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert "Unknown key `giuo`" in result.output
    assert "did you mean `giou`?" in result.output
    assert not (tmp_path / "run").exists()


def test_a_device_that_torch_has_not_got_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    result = run(TINY, "--dry-run", "--device", "cuda:99", "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert "hivg: The device 'cuda:99' is not available here; expected cpu" in result.output


def test_a_device_for_several_processes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = run(TINY, "--dry-run", "--device", "cpu", "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert "--device cpu is for one process" in result.output


def test_fsdp_on_the_cpu_is_refused_in_one_sentence(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    result = run(TINY)
    assert result.exit_code == 2
    assert result.output.strip().splitlines()[-1].startswith("hivg: FSDP does not run on the CPU")
