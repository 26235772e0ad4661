"""A dataset of the Hub is streamed, grounded, and pushed back with a card that says what was done."""

import io
import json
import tarfile
import tomllib
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from datasets import Image
from huggingface_hub import DatasetCard

from helpers.hub_state import Hub
from helpers.interpreter import Interpreter
from hivg_hf.data.refshapes import refshapes_dataset

JOB_SCRIPT = Path(__file__).parents[2] / "scripts" / "jobs" / "ground_dataset.py"

RUN = """
import os
os.environ["HF_TOKEN"] = "hf_alice"
from typer.testing import CliRunner
from hivg_hf.cli import app
done = CliRunner().invoke(app, ["ground-dataset", *args])
os.environ.pop("HF_TOKEN")
result = {"status": done.exit_code, "output": done.output}
"""

LOAD = """
from datasets import load_dataset
rows = load_dataset(repo_id, split="train")
result = {"columns": rows.column_names, "boxes": rows["box"][:], "size": rows[0]["image"].size}
"""


@pytest.fixture
def pairs(hub: Hub, tmp_path: Path) -> Hub:
    rows = refshapes_dataset("val", seed=3, size=5, masks=False, stored_side=64)
    rows = rows.cast_column("image", Image(decode=False)).select_columns(["image", "expression"])
    rows.to_parquet(tmp_path / "rows.parquet")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for number, row in enumerate(rows):
            for name, data in (("png", row["image"]["bytes"]), ("txt", row["expression"].encode())):
                member = tarfile.TarInfo(f"{number:03d}.{name}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    hub.create("alice/pairs").commit(
        "rows", {"data/train-00000-of-00001.parquet": (tmp_path / "rows.parquet").read_bytes()}
    )
    hub.create("alice/tars").commit("rows", {"rows.tar": packed.getvalue()})
    hostile = json.dumps({"image": str(tmp_path / "rows.parquet"), "text": "the red star"})
    hub.create("alice/names").commit("rows", {"rows.jsonl": hostile.encode()})
    return hub


def test_parquet_is_streamed_and_pushed_back_with_its_card(
    pairs: Hub, home: Interpreter, tiny_checkpoint: str, tmp_path: Path
) -> None:
    arguments = ["alice/pairs", str(tmp_path / "out"), "--model", tiny_checkpoint, "--shard-size", "2"]
    done = home.run(RUN, args=[*arguments, "--push", "alice/grounded"])
    assert done["status"] == 0, done["output"]
    files = pairs.repositories["alice/grounded"].head.files
    assert sorted(path for path in files if path.endswith(".parquet")) == [
        f"data/train-{number:05d}-of-00003.parquet" for number in range(3)
    ]
    card = DatasetCard(files["README.md"].decode())
    assert card.data.source_datasets == ["alice/pairs"]
    assert "Rows: 5, of which 0 have an error." in card.text
    loaded = home.run(LOAD, repo_id="alice/grounded")
    assert loaded["columns"] == ["image", "expression", "box", "score", "found", "error"]
    assert loaded["boxes"] == pq.read_table(tmp_path / "out").column("box").to_pylist()
    assert max(loaded["size"]) == 64


@pytest.mark.parametrize("source", ["alice/tars", "hf://datasets/alice/tars/*.tar"])
def test_rows_that_changed_on_the_hub_are_not_mixed_with_the_old_ones(
    source: str, pairs: Hub, home: Interpreter, tiny_checkpoint: str, tmp_path: Path
) -> None:
    arguments = [source, str(tmp_path / "out"), "--model", tiny_checkpoint, "--text-column", "txt"]
    done = home.run(RUN, args=arguments)
    assert done["status"] == 0, done["output"]
    repository = pairs.repositories["alice/tars"]
    files = repository.head.files
    repository.commit("a card, and the same rows", {**files, "README.md": b"Tars."})
    done = home.run(RUN, args=arguments)
    assert (done["status"], "were done before" in done["output"]) == (0, True), done["output"]
    repository.commit("other rows", {**files, "rows.tar": files["rows.tar"].replace(b"the ", b"eht ", 1)})
    done = home.run(RUN, args=arguments)
    assert done["status"] == 2
    assert f"The rows of '{source}' changed since the run in" in done["output"]


def test_a_tar_is_streamed(pairs: Hub, home: Interpreter, tiny_checkpoint: str, tmp_path: Path) -> None:
    done = home.run(RUN, args=["alice/tars", str(tmp_path / "out"), "--model", tiny_checkpoint])
    assert done["status"] == 0, done["output"]
    rows = pq.read_table(tmp_path / "out")
    assert rows.column_names == ["__key__", "png", "txt", "box", "score", "found", "error"]
    assert rows.column("error").null_count == len(rows) == 5


def test_rows_of_the_hub_open_no_file_of_this_machine(
    pairs: Hub, home: Interpreter, tiny_checkpoint: str, tmp_path: Path
) -> None:
    done = home.run(RUN, args=["alice/names", str(tmp_path / "out"), "--model", tiny_checkpoint])
    assert done["status"] == 1
    assert "may not open files of this machine" in pq.read_table(tmp_path / "out").column("error")[0].as_py()
    done = home.run(RUN, args=["alice/none", str(tmp_path / "out"), "--model", tiny_checkpoint])
    assert done["status"] == 2
    assert "no such dataset on the Hub" in done["output"].replace("\n", " ")
    done = home.run(RUN, args=["alice/pairs", str(tmp_path / "o"), "--model", tiny_checkpoint, "--split", "test"])
    assert "has the splits train: choose one with --split" in done["output"].replace("\n", " ")


JOB = """
import os, runpy, sys
os.environ["HF_TOKEN"] = "hf_alice"
os.chdir(folder)
sys.argv = ["ground_dataset.py", *args]
try:
    runpy.run_path(script, run_name="__main__")
except SystemExit as end:
    result = end.code
finally:
    os.environ.pop("HF_TOKEN")
"""


def test_the_script_for_jobs_runs_from_dataset_to_dataset(
    pairs: Hub, home: Interpreter, tiny_checkpoint: str, tmp_path: Path
) -> None:
    lines = JOB_SCRIPT.read_text(encoding="utf-8").split("# ///\n")[0].splitlines()
    metadata = tomllib.loads("\n".join(line.removeprefix("# ") for line in lines if not line.startswith("# ///")))
    assert metadata["dependencies"] == ["hivg-hf"]
    arguments = ["alice/pairs", "alice/by-job", "--text-column", "expression", "--model", tiny_checkpoint]
    status = home.run(JOB, script=str(JOB_SCRIPT), folder=str(tmp_path), args=[*arguments, "--batch-size", "2"])
    assert not status
    assert "data/train-00000-of-00001.parquet" in pairs.repositories["alice/by-job"].head.files
