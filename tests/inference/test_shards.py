"""A dataset run gives the same rows however often it is killed and however many processes work on it."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, Image, concatenate_datasets

from hivg_hf import HiVGForVisualGrounding, HiVGProcessor, VisualGroundingPipeline
from hivg_hf.data.refshapes import refshapes_dataset
from hivg_hf.inference import ShardedRun, ground_shards

SCRIPT = Path(__file__).parents[2] / "scripts" / "ground_dataset.py"


@pytest.fixture(scope="module")
def pipe(tiny_model: HiVGForVisualGrounding, tiny_processor: HiVGProcessor) -> VisualGroundingPipeline:
    return VisualGroundingPipeline(tiny_model, processor=tiny_processor, device="cpu")


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return refshapes_dataset("val", seed=3, size=23, masks=False)


def rows_of(run: ShardedRun) -> list[dict[str, Any]]:
    return list(run.read())


def test_shards_hold_every_row_once_and_in_order(
    pipe: VisualGroundingPipeline, dataset: Dataset, tmp_path: Path
) -> None:
    run = ShardedRun(tmp_path, len(dataset), 5, {"model": "tiny"})
    assert ground_shards(pipe, dataset, run, run.missing(), show_progress=False, batch_size=4) == 0
    rows = rows_of(run)
    assert [row["row"] for row in rows] == list(range(23))
    assert [row["sent_id"] for row in rows] == dataset["sent_id"][:]
    assert [row["expression"] for row in rows] == dataset["expression"][:]
    alone = pipe(dataset[7]["image"], dataset[7]["expression"])
    assert rows[7]["box"] == pytest.approx(alone["box"], abs=1e-2)
    assert len(list(tmp_path.iterdir())) == 6  # five shards and the settings, nothing half written


def test_a_stopped_run_goes_on_and_two_processes_share_it(
    pipe: VisualGroundingPipeline, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ShardedRun(tmp_path / "whole", len(dataset), 4, {})
    ground_shards(pipe, dataset, whole, whole.missing(), show_progress=False, batch_size=3)
    halves = ShardedRun(tmp_path / "halves", len(dataset), 4, {})
    missing = halves.missing()
    with monkeypatch.context() as patch:
        postprocess, calls = pipe.postprocess, []

        def stop_in_the_third_shard(*args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            if len(calls) > 5:
                raise KeyboardInterrupt
            return postprocess(*args, **kwargs)

        patch.setattr(pipe, "postprocess", stop_in_the_third_shard)
        with pytest.raises(KeyboardInterrupt):
            ground_shards(pipe, dataset, halves, missing[0::2], show_progress=False, batch_size=3)
    with pytest.raises(FileNotFoundError, match="of 6 shards"):
        rows_of(halves)
    ground_shards(pipe, dataset, halves, halves.missing()[1::2], show_progress=False, batch_size=3)
    ground_shards(pipe, dataset, halves, halves.missing(), show_progress=False, batch_size=3)
    assert rows_of(halves) == rows_of(whole)


def test_rows_that_cannot_be_used_keep_their_place(pipe: VisualGroundingPipeline, tmp_path: Path) -> None:
    good = refshapes_dataset("val", seed=3, size=2, masks=False).cast_column("image", Image(decode=False))
    broken = good.select([0]).map(lambda row: {"image": {"bytes": row["image"]["bytes"][:200], "path": None}})
    dataset = concatenate_datasets([good.select([0]), broken.cast(good.features), good.select([1])])
    run = ShardedRun(tmp_path, 3, 8, {})
    assert ground_shards(pipe, dataset, run, [0], show_progress=False) == 1
    rows = rows_of(run)
    assert ["error" in row for row in rows] == [False, True, False]
    assert "truncated or damaged" in rows[1]["error"]
    assert rows[1]["sent_id"] == dataset[1]["sent_id"]


def test_a_folder_of_other_settings_is_refused(tmp_path: Path) -> None:
    ShardedRun(tmp_path, 10, 5, {"model": "one"})
    ShardedRun(tmp_path, 10, 5, {"model": "one"})
    with pytest.raises(ValueError, match="holds a run with another model, rows"):
        ShardedRun(tmp_path, 11, 5, {"model": "two"})
    with pytest.raises(ValueError, match="shard_size must be at least 1"):
        ShardedRun(tmp_path / "x", 10, 0, {})


@pytest.mark.timeout(900)  # it starts two processes, whose imports take minutes on a machine that is busy
def test_killed_and_started_again_the_script_gives_the_same_rows(
    pipe: VisualGroundingPipeline, tmp_path: Path
) -> None:
    pipe.save_pretrained(tmp_path / "model")
    command = [sys.executable, str(SCRIPT), "--data", "refshapes", "--split", "val", "--option", "seed=5"]
    command += ["--option", "size=60", "--model", str(tmp_path / "model"), "--shard-size", "1", "--batch-size", "2"]
    killed = subprocess.Popen([*command, "--out", str(tmp_path / "run")], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 400
    while len(list((tmp_path / "run").glob("shard-*.jsonl"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    settings = json.loads((tmp_path / "run" / "settings.json").read_text())
    run = ShardedRun(tmp_path / "run", 60, 1, {key: settings[key] for key in settings.keys() - {"rows", "shard_size"}})
    assert 0 < len(run.missing()) < 60
    subprocess.run([*command, "--out", str(tmp_path / "run")], check=True, capture_output=True)
    whole = ShardedRun(tmp_path / "whole", 60, 1, {})
    dataset = refshapes_dataset("val", seed=5, size=60)
    ground_shards(pipe, dataset, whole, whole.missing(), show_progress=False, batch_size=2)
    for row, expected in zip(rows_of(run), rows_of(whole), strict=True):
        assert {**row, "box": None, "score": None} == {**expected, "box": None, "score": None}
        # Weights that were read from a file may lie otherwise in memory, and the last bits of a sum with them.
        assert row["box"] == pytest.approx(expected["box"], abs=1e-2)
