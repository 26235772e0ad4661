"""`negatives` on the command line: written out, measured, and refused where rows are judged as they are."""

import json

import pytest
from PIL import Image
from typer.testing import CliRunner

from hivg_hf import load_grounding_dataset
from hivg_hf.cli import app


@pytest.fixture
def table(tmp_path):
    """Eight pictures, each of something else."""
    return write_table(tmp_path, ("red car", "blue dog", "green cup", "black bus") * 2)


def write_table(folder, things):
    lines = ["image,expression,x1,y1,x2,y2"]
    for number, thing in enumerate(things):
        Image.new("RGB", (16, 12)).save(folder / f"{number}.png")
        lines.append(f"{number}.png,the {thing},1,2,9,8")
    (folder / "my.csv").write_text("\n".join(lines))
    return folder / "my.csv"


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


HALF = ("--box-format", "xyxy", "--option", "negatives={share: 0.5, seed: 2}")


def test_converted_data_keeps_the_rows_that_name_nothing(table, tmp_path):
    done = run("convert-data", table, tmp_path / "out", "--to", "parquet", *HALF)
    assert done.exit_code == 0, done.output
    written = load_grounding_dataset(next((tmp_path / "out").rglob("*.parquet")), "all")
    rows = load_grounding_dataset(table, "all", box_format="xyxy", negatives={"share": 0.5, "seed": 2})
    assert written["expression"][:] == rows["expression"][:]
    assert written["no_target"][:] == rows["no_target"][:]
    assert {*written["no_target"]} == {True, False}


def test_an_own_table_is_evaluated_with_rows_that_name_nothing(table, tmp_path, tiny_checkpoint):
    done = run(
        "evaluate", "--model", tiny_checkpoint, "--data", table, "--split", "all", "--score-threshold", "0.5",
        "--no-plots", "--gallery", 0, "--resamples", 0, "--option", "box_format=xyxy",
        "--option", "negatives={share: 0.5, seed: 2}", "--out", tmp_path / "out",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["counts"]["no_target"] + results["counts"]["one_target"] == 8
    assert results["counts"]["no_target"] > 0
    assert {"n_acc", "t_acc"} <= set(results["figures"])


def test_rows_are_not_cleaned_with_negatives_among_them(table, tmp_path):
    done = run("clean", table, tmp_path / "out", *HALF)
    assert done.exit_code == 2
    assert "here they are judged as they are: omit negatives" in done.output
