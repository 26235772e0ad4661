"""`hivg evaluate` from the command to the files, on one process and on two."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hivg_hf.checkpoints import TINY_CHECKPOINT
from hivg_hf.cli import app

ROOT = Path(__file__).parents[2]
DATA = ["--data", "refshapes", "--split", "val", "--seed", "5", "--size", "11"]


@pytest.fixture(scope="module")
def checkpoint(tiny_model, tiny_processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_model.save_pretrained(folder)
    tiny_processor.save_pretrained(folder)
    return folder


def run(*arguments):
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


@pytest.fixture(scope="module")
def alone(checkpoint, tmp_path_factory):
    """Results on one process."""
    out = tmp_path_factory.mktemp("alone")
    result = run("--model", checkpoint, *DATA, "--batch-size", 3, "--resamples", 50, "--out", out)
    assert result.exit_code == 0, result.output
    return out, result.output, json.loads((out / "results.json").read_text())


def test_one_command_writes_figures_predictions_plots_and_failures(alone, checkpoint):
    out, printed, results = alone
    names = {"results.json", "predictions.parquet", "failures.html"}
    pictures = {"accuracy_by_length.png", "iou_histogram.png", "scores.png"}
    assert {file.name for file in out.iterdir()} == names | pictures
    assert results["counts"]["rows"] == 11
    assert results["model"]["id"] == str(checkpoint)
    assert results["data"]["options"] == {"seed": 5, "size": 11}
    assert "N = 11 rows of 11 images, each once, on 1 process; protocol pixel" in printed
    assert f"{results['figures']['mean_iou']:.4f}" in printed
    error = results["score"]["calibration_error"]
    assert f"score, 0% of the expressions naming nothing: calibration error {error:.3f}" in printed
    assert str((out / "failures.html").resolve()) in printed


@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param(["accelerate.commands.launch", "--config_file", "CONFIG"], id="accelerate"),
        pytest.param(["torch.distributed.run", "--nproc_per_node", "2"], id="torchrun", marks=pytest.mark.slow),
    ],
)
def test_two_processes_count_every_row_once_and_find_the_same_figures(launcher, alone, checkpoint, tmp_path):
    # `accelerate launch --cpu --num_processes 2` would start one process without saying so.
    config = ROOT / "hivg_hf" / "recipes" / "accelerate" / "multi_cpu.yaml"
    command = [sys.executable, "-m", *(str(config) if word == "CONFIG" else word for word in launcher)]
    arguments = ["--model", checkpoint, *DATA, "--batch-size", 3, "--resamples", 50, "--out", tmp_path / "out"]
    script = [str(ROOT / "scripts" / "evaluate.py"), *map(str, arguments), "--no-plots", "--gallery", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    finished = subprocess.run(
        [*command, *script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240
    )
    assert finished.returncode == 0, finished.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    expected = alone[2]
    assert results["settings"]["processes"] == 2
    assert results["counts"] == expected["counts"]
    # Another number of threads adds in another order: the last bits of a box may differ, no count may.
    assert results["figures"] == pytest.approx(expected["figures"], abs=1e-6)
    for name in ("acc@0.5", "acc@0.7", "acc@0.9", "center_acc"):
        assert results["figures"][name] == expected["figures"][name]
    for name, interval in expected["intervals"].items():
        assert results["intervals"][name] == pytest.approx(interval, abs=1e-6)
    assert results["model"]["weights_sha256"] == expected["model"]["weights_sha256"]
    assert results["data"] == expected["data"]


def test_two_settings_of_one_model_are_compared_row_by_row(alone, checkpoint, tmp_path):
    out, _, first = alone
    changed = ["--set", "bridge_mask_padding=false", "--compare", out, "--out", tmp_path]
    result = run("--model", checkpoint, *DATA, "--resamples", 50, "--no-plots", "--gallery", 2, *changed)
    assert result.exit_code == 0, result.output
    comparison = json.loads((tmp_path / "comparison.json").read_text())
    assert comparison["n"] == 11
    assert comparison["first"]["config_overrides"] == {"bridge_mask_padding": False}
    figures = comparison["figures"]["mean_iou"]
    assert figures["second"] == pytest.approx(first["figures"]["mean_iou"])
    assert figures["first"] != figures["second"]
    assert (tmp_path / "disagreements.html").is_file()
    assert "second - first" in result.output


def test_another_model_is_evaluated_for_the_comparison(checkpoint, tmp_path):
    result = run(
        "--model", checkpoint, *DATA, "--compare", checkpoint, "--resamples", 20, "--no-plots", "--out", tmp_path
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    comparison = json.loads((tmp_path / "comparison.json").read_text())
    assert comparison["figures"]["mean_iou"]["difference"] == 0
    assert comparison["first"]["weights_sha256"] == comparison["second"]["weights_sha256"]


def test_without_matplotlib_plots_are_left_out_unless_they_are_asked_for(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = run("--model", checkpoint, *DATA, "--plots", "--out", tmp_path / "asked")
    assert result.exit_code == 2
    assert "pip install 'hivg_hf[plots]', or omit --plots" in result.output
    assert not (tmp_path / "asked").exists()
    result = run("--model", checkpoint, *DATA, "--resamples", 0, "--no-masks", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "hivg: no plots, since matplotlib is not installed" in result.output
    assert not list((tmp_path / "out").glob("*.png"))


def test_controls_stand_beside_the_figures_in_one_command(checkpoint, tmp_path):
    split = ["--data", "refshapes", "--split", "val+none", "--seed", "5", "--size", "4"]
    extra = ["--controls", "--score-threshold", "0.5", "--no-plots", "--resamples", "20", "--no-masks"]
    result = run("--model", checkpoint, *split, *extra, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    results = json.loads((tmp_path / "results.json").read_text())
    assert (results["counts"]["rows"], results["counts"]["no_target"]) == (8, 4)
    assert set(results["controls"]) == {"bridge-off", "constant-text", "other-expression"}
    assert 0 < results["controls"]["other-expression"]["n"] <= 4
    assert {"n_acc", "t_acc", "f1_precision"} <= set(results["figures"])
    assert results["score"]["given_threshold"]["threshold"] == 0.5
    assert "control other-expression" in result.output


def test_plural_expressions_are_measured_by_f1_in_one_command(checkpoint, tmp_path):
    split = ["--data", "refshapes", "--split", "plural+val", "--seed", "5", "--size", "3", "--controls"]
    result = run("--model", checkpoint, *split, "--no-plots", "--resamples", 20, "--no-masks", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["counts"]["skipped_several_targets"] == 3
    assert {"f1_precision", "ap@0.5", "t_acc"} <= set(results["figures"])
    assert "f1_precision" in result.output
    assert "n_acc" not in results["figures"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model", "/nowhere", *DATA], "Model folder not found: '/nowhere'."),
        (["--model", "MODEL", "--data", "refshapes", "--split", "test"], "unknown RefShapes split 'test'"),
        (["--model", "MODEL", "--data", "refshapes", "--split", "val+"], "A split has no name in 'val+'"),
        (["--model", "MODEL", *DATA, "--protocol", "coco"], "Unknown protocol 'coco': choose one of pixel"),
        (["--model", "MODEL", *DATA, "--option", "root"], "--option takes NAME=VALUE, got 'root'."),
        (
            ["--model", "MODEL", *DATA, "--score-threshold", "nan"],
            "score_threshold must be a number from 0 to 1, got nan",
        ),
        (["--model", "MODEL", *DATA, "--multiple-threshold", "20"], "multiple_threshold must be a number from 0 to 1"),
        (["--model", "MODEL", *DATA, "--dtype", "int8"], "dtype must be one of float32, bfloat16, float16"),
    ],
)
def test_mistakes_are_answered_with_one_sentence(arguments, sentence, checkpoint, tmp_path):
    arguments = [str(checkpoint) if argument == "MODEL" else argument for argument in arguments]
    result = run(*arguments, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert sentence in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "my.csv", "--seed", 5], "--seed would change nothing without --data refshapes"),
        (["--data", "my.csv", "--seed", 5, "--size", 4], "--seed and --size would change nothing without"),
        (["--data", "refshapes", "--set", "fusion_layer=2"], "did you mean `fusion_layers`?"),
        (["--data", "refshapes", "--constant-expression", "x"], "--constant-expression would change nothing without"),
        (["--data", "refshapes", "--controls", "--backend", "onnx"], "--controls reaches into the torch model"),
        (["--data", "refshapes", "--card"], "--card would change nothing without --robustness or --adversarial"),
        (
            ["--data", "refshapes", "--robustness", "--card"],
            "--card writes into a model's folder, and nowhere is not a folder",
        ),
        (["--data", "refshapes", "--robustness", "--card", "--set", "score_threshold=0.5"], "--set changes it"),
        (["--data", "refshapes", "--device", "cuda:99"], "The device 'cuda:99' is not available here; expected cpu"),
        (["--data", "refshapes", "--precision", "int8"], "torch backend has the precisions fp32, bf16, got 'int8'"),
    ],
)
def test_options_that_do_not_apply_are_refused(words, message, tmp_path):
    result = run("--model", "nowhere", *words, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert message in result.output


def test_the_card_of_the_shipped_checkpoint_is_not_written_into_the_package(tmp_path):
    before = (Path(TINY_CHECKPOINT) / "README.md").read_bytes()
    for name in ("tiny", TINY_CHECKPOINT):
        result = run("--model", name, *DATA, "--adversarial", "--card", "--out", tmp_path / "out")
        assert result.exit_code == 2
        assert "is made of model_cards/results by scripts/make_cards.py" in " ".join(result.output.split())
    assert (Path(TINY_CHECKPOINT) / "README.md").read_bytes() == before


def test_one_command_puts_how_a_model_breaks_on_its_card(checkpoint, tmp_path):
    model = shutil.copytree(checkpoint, tmp_path / "my-model")
    (model / "README.md").write_text("# mine\n\nMy words.\n")
    words = ["--adversarial", "--card", "--no-plots", "--gallery", 0, "--resamples", 0]
    result = run("--model", model, *DATA[:-1], 4, *words, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    card = (model / "README.md").read_text()
    assert card.startswith("# mine\n\nMy words.\n\n### How it breaks\n")
    assert "| attacked pixels, 8 of 255 | val |" in card
    assert str(tmp_path) not in card


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--split", "held-out"], "is not the folder of a run: give that folder as the model, or name --data"),
        (["--split", "held-out", "--data", "refshapes"], "omit --data and its options"),
        (["--split", "held-out", "--box-format", "xyxy"], "omit --data and its options"),
        ([], "Name the rows with --data, or give the folder of a run as model and --split held-out"),
    ],
)
def test_held_out_rows_are_those_of_a_run(words, message, checkpoint, tmp_path):
    result = run("--model", checkpoint, *words, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


def test_pictures_and_box_format_of_a_table_are_options_of_their_own(checkpoint, tmp_path, make_image):
    make_image(tmp_path / "photos" / "a.png")
    (tmp_path / "my.csv").write_text("image,expression,x,y,w,h\na.png,the box,1,2,30,40\n")
    words = ["--data", tmp_path / "my.csv", "--images", tmp_path / "photos", "--box-format", "xywh", "--no-plots"]
    result = run("--model", checkpoint, *words, "--split", "all", "--resamples", 0, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    options = json.loads((tmp_path / "out" / "results.json").read_text())["data"]["options"]
    assert options == {"images": [str(tmp_path / "photos")], "box_format": "xywh"}


def test_what_is_compared_is_looked_for_before_the_work(checkpoint, tmp_path):
    (tmp_path / "empty").mkdir()
    words = ["evaluate", "--model", checkpoint, *DATA, "--no-plots", "--out", tmp_path / "out"]
    for other, message in ((tmp_path / "empty", "has no model"), (tmp_path / "gone.pth", "Model folder not found")):
        result = CliRunner().invoke(app, [str(word) for word in [*words, "--compare", other]])
        assert result.exit_code == 2
        assert message in result.output
        assert not (tmp_path / "out").exists()
