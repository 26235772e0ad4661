"""`hivg calibrate`: fields in a config, of a converted official model too; and what it refuses to touch."""

import csv
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from parity.official_cases import made_case
from typer.testing import CliRunner, Result

from benchmarks.speed.official_reference import OfficialLayers
from hivg_hf import TINY_CHECKPOINT
from hivg_hf.cli import app
from hivg_hf.data.refshapes import refshapes_dataset
from hivg_hf.inference import load_pipeline

WORDS = (
    "red star",
    "blue disc",
    "the ring",
    "left box",
    "a tall one",
    "that",
    "small star",
    "thing",
    "cup",
    "far dot",
)


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    """A random official file, converted: its score is made of token similarity."""
    folder = tmp_path_factory.mktemp("official")
    case = made_case(OfficialLayers([0, 3, 7, 11], [1, 4, 8, 12], [12]), vocab_size=len(tiny_tokenizer))
    case.save(folder)
    tiny_tokenizer.save_pretrained(folder / "tokenizer")
    options = ["--args", folder / "args.json", "--clip-config", folder / "clip.json", "--tokenizer"]
    words = ["convert", folder / "official.safetensors", folder / "model", *options, folder / "tokenizer"]
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return folder / "model"


@pytest.fixture(scope="module")
def table(official: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 rows; the model's own box is the truth in those of even number, so that half of its boxes are right."""
    folder = tmp_path_factory.mktemp("table")
    rows = [*refshapes_dataset("val", seed=3, size=20, masks=False)]
    for number, row in enumerate(rows):
        row["image"].convert("RGB").save(folder / f"{number}.png")
    asked = [{"image": str(folder / f"{i}.png"), "text": word} for i in range(20) for word in WORDS]
    answers = list(zip(asked, load_pipeline(official)(asked, batch_size=32), strict=True))
    # Of each two the surer one comes first, so that the score says something about which is right.
    pairs = [sorted(answers[at : at + 2], key=lambda pair: -pair[1]["score"]) for at in range(0, len(answers), 2)]
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "expression", "xmin", "ymin", "xmax", "ymax"])
        for number, (question, result) in enumerate(pair for both in pairs for pair in both):
            box = list(result["box"].values()) if number % 2 == 0 else [0, 0, 2, 2]
            writer.writerow([Path(question["image"]).name, question["text"], *box])
    return folder / "table.csv"


def calibrate(model: Path | str, data: Path | str, *options: str) -> Result:
    return CliRunner().invoke(
        app, ["calibrate", str(model), "--data", str(data), "--split", "all", "--box-format", "xyxy", *options]
    )


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def test_a_converted_official_model_and_a_table_of_200_rows(official: Path, table: Path, tmp_path: Path) -> None:
    before = config_of(official)
    result = calibrate(official, table, "--out", str(tmp_path / "calibrated"))
    assert result.exit_code == 0, result.output
    assert "200 rows, of which 0 name nothing; 100 boxes are right." in result.output
    after = config_of(tmp_path / "calibrated")
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {"score_similarity_scale", "score_similarity_bias", "score_threshold"}
    assert config_of(official) == before
    pipe = load_pipeline(tmp_path / "calibrated")
    answer = pipe(str(table.parent / "0.png"), "red star")
    assert answer["found"] == (answer["score"] >= 0.5)
    assert pipe(str(table.parent / "0.png"), "red star", threshold=0.0)["found"] is True


def test_a_table_whose_rows_all_have_a_target_gets_rows_that_name_nothing(
    official: Path, table: Path, tmp_path: Path
) -> None:
    asked = ("--option", "negatives={share: 0.5, seed: 1}", "--base-rate", "0.3")
    result = calibrate(official, table, *asked, "--out", str(tmp_path / "calibrated"))
    assert result.exit_code == 0, result.output
    found = re.search(r"200 rows, of which (\d+) name nothing", result.output)
    assert found is not None
    assert 20 <= int(found[1]) <= 100
    assert "for which this holds: 0.3" in result.output


def test_without_out_the_models_own_config_changes_and_nothing_else(
    official: Path, table: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    pipe = load_pipeline(official)
    pipe.save_pretrained(own)
    before = {path.name: path.read_bytes() for path in own.iterdir()}
    result = calibrate(own, table, "--precision", "0.5")
    assert result.exit_code == 0, result.output
    after = {path.name: path.read_bytes() for path in own.iterdir()}
    assert {name for name in after if after[name] != before.get(name)} == {"config.json"}
    assert before.keys() == after.keys()
    assert str(own / "config.json") in result.output


def test_the_shipped_checkpoint_is_left_alone(table: Path) -> None:
    before = (Path(TINY_CHECKPOINT) / "config.json").read_bytes()
    result = calibrate("tiny", table)
    assert result.exit_code == 2
    assert "is the checkpoint in the package" in result.output
    assert "give --out" in result.output
    assert (Path(TINY_CHECKPOINT) / "config.json").read_bytes() == before


def test_a_device_that_is_not_here_is_refused_before_the_work(official: Path, table: Path) -> None:
    result = calibrate(official, table, "--device", "cuda:99")
    assert result.exit_code == 2
    assert "The device 'cuda:99' is not available here; expected cpu" in result.output


def test_too_few_rows_and_one_kind_are_one_sentence_and_write_nothing(
    official: Path, table: Path, tmp_path: Path
) -> None:
    lines = table.read_text().splitlines(keepends=True)
    few, wrong = table.with_name("few.csv"), table.with_name("wrong.csv")
    few.write_text("".join(lines[:10]))
    wrong.write_text("".join([lines[0], *lines[2::2]]))
    for file, message in ((few, "needs at least 50 rows, got 9."), (wrong, "All 100 boxes are wrong")):
        result = calibrate(official, file, "--out", str(tmp_path / "out"))
        assert result.exit_code == 2
        assert message in result.output
        assert "Traceback" not in result.output
    result = calibrate(official, table, "--base-rate", "0.1", "--out", str(tmp_path / "out"))
    assert "none of these 200 without a target" in result.output
    assert not (tmp_path / "out").exists()


def test_a_second_threshold_is_carried_over_where_no_row_names_several_things(tmp_path: Path) -> None:
    rows = ["--data", "refshapes", "--split", "val+none", "--seed", "8100", "--size", "40"]
    result = CliRunner().invoke(app, ["calibrate", "tiny", *rows, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "Further boxes of an answer count from" in result.output
    assert "as before, in new scores" in result.output
    before, after = (config_of(Path(folder)) for folder in (TINY_CHECKPOINT, tmp_path / "out"))

    def value(config: dict[str, float]) -> float:
        threshold = config["multiple_threshold"]
        return (math.log(threshold / (1 - threshold)) - config["score_bias"]) * config["score_temperature"]

    assert value(after) == pytest.approx(value(before), abs=1e-4)


def test_a_folder_inside_the_model_or_the_model_itself_is_no_place_for_a_copy(official: Path, table: Path) -> None:
    before = config_of(official)
    inside = official / "calibrated"
    for out, message in ((inside, "lies inside the model"), (official / ".", "is the model itself: omit --out")):
        result = calibrate(official, table, "--out", str(out))
        assert result.exit_code == 2
        assert message in result.output
    assert not inside.exists()
    assert config_of(official) == before


def test_a_threshold_that_no_box_reaches_or_that_rests_on_few_is_said(
    official: Path, table: Path, tmp_path: Path
) -> None:
    lines = table.read_text().splitlines(keepends=True)
    rows = table.with_name("mostly-wrong.csv")
    asked = [{"image": str(table.parent / line.split(",")[0]), "text": line.split(",")[1]} for line in lines[1::2]]
    answers = [*zip(load_pipeline(official)(asked, batch_size=32), lines[1::2], strict=True)]
    sure = [line for _, line in sorted(answers, key=lambda pair: -pair[0]["score"])]
    # Of 103 boxes 3 are right, and surer than most others, though not than all.
    rows.write_text("".join([lines[0], *sure[20:23], *lines[2::2]]))
    result = calibrate(official, rows, "--out", str(tmp_path / "silent"))
    assert result.exit_code == 0, result.output
    assert "which no box of these rows reaches: say with --precision" in result.output
    assert "Few of these boxes are right (3)" in result.output
    assert "Few of these boxes reach" not in result.output
    result = calibrate(official, table, "--out", str(tmp_path / "plain"))
    assert "Few of these boxes" not in result.output


def test_a_model_stored_in_half_precision_is_calibrated_in_float32(
    official: Path, table: Path, tmp_path: Path
) -> None:
    pipe = load_pipeline(official)
    pipe.model.to(torch.bfloat16)
    pipe.save_pretrained(tmp_path / "half")
    result = calibrate(tmp_path / "half", table)
    assert result.exit_code == 0, result.output
    assert config_of(tmp_path / "half")["dtype"] == "bfloat16"
    assert config_of(tmp_path / "half")["score_threshold"] == 0.5


def test_files_for_other_runtimes_are_named_where_they_hold_the_old_score(
    official: Path, table: Path, tmp_path: Path
) -> None:
    shutil.copytree(official, tmp_path / "own")
    (tmp_path / "own" / "onnx").mkdir()
    result = calibrate(tmp_path / "own", table)
    assert result.exit_code == 0, result.output
    assert "hold the old score: hivg export" in result.output


def test_the_rows_that_a_run_held_out_are_named_by_the_run(official: Path, table: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(official, run / "merged")
    (run / "results.json").write_text(json.dumps({"model": "merged"}))
    spec = {"source": str(table), "split": "val", "holdout": 0.5, "box_format": "xyxy"}
    (run / "recipe.json").write_text(json.dumps({"data": {"validation": spec}}))
    words = ["calibrate", str(run), "--split", "held-out", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "100 rows, of which 0 name nothing" in result.output
    for more, message in (
        (["--data", str(table)], "--split held-out reads what the run"),
        (["--split", "val"], "Name the rows with --data, or give the folder of a run as model"),
    ):
        result = CliRunner().invoke(app, [*words, *more])
        assert result.exit_code == 2
        assert message in result.output
