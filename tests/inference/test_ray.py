"""Two actors of a real local Ray cluster, one of them killed, give the rows that one process gives."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from datasets import Image

from hivg_hf.data.refshapes import refshapes_dataset
from hivg_hf.inference import DatasetInput, DatasetRun, GroundBatch
from hivg_hf.inference.dataset_run import read_rows

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SIZE = 60


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    ray = pytest.importorskip("ray")
    # Workers are started anew, and must find the package and its model code.
    paths = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": paths})
    yield ray
    ray.shutdown()


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("table") / "rows.parquet"
    rows = refshapes_dataset("val", seed=3, size=SIZE, masks=False, stored_side=64)
    rows.cast_column("image", Image(decode=False)).select_columns(["image", "expression", "sent_id"]).to_parquet(path)
    return path


def test_a_killed_actor_changes_no_row(cluster: Any, table: Path, tiny_checkpoint: str, tmp_path: Path) -> None:
    from hivg_hf.inference.ray import run_parts

    def make(name: str) -> DatasetRun:
        ground = GroundBatch(tiny_checkpoint, batch_size=2, engine={"device": "cpu"})
        return DatasetRun(DatasetInput(str(table)), ground, tmp_path / name, 2)

    alone, shared = make("alone"), make("shared")
    for part in alone.missing():
        alone.run(part)
    killed: list[int] = []

    def kill_one_actor() -> None:
        while not list(shared.folder.glob("shard-*")):
            time.sleep(0.01)
        for process in psutil.Process().children(recursive=True):
            if not killed and "_PartActor" in " ".join(process.cmdline()):
                killed.append(process.pid)
                process.kill()

    killer = threading.Thread(target=kill_one_actor)
    killer.start()
    reports: list[Any] = []
    run_parts(shared, shared.missing(), reports.append, concurrency=2)
    killer.join()
    assert killed
    assert sum(report.rows for report in reports) == SIZE
    rows, expected = list(read_rows(shared.folder)), list(read_rows(alone.folder))
    assert [row["sent_id"] for row in rows] == [row["sent_id"] for row in expected]
    for row, other in zip(rows, expected, strict=True):
        assert row["box"] == pytest.approx(other["box"], abs=1e-2)


def test_a_dataset_of_yours_gets_the_columns(cluster: Any, table: Path, tiny_checkpoint: str, tmp_path: Path) -> None:
    from hivg_hf.inference.ray import ground_dataset

    rows = cluster.data.read_parquet(str(table)).limit(8)
    grounded = ground_dataset(rows, model=tiny_checkpoint, concurrency=1, rows_per_call=4)
    grounded.write_parquet(str(tmp_path / "out"))
    found = cluster.data.read_parquet(str(tmp_path / "out")).to_pandas()
    assert set(found.columns) == {"image", "expression", "sent_id", "box", "score", "found", "error"}
    assert found["error"].isna().all()
    assert len(found) == 8
