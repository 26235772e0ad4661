"""A dataset run gives the same rows from every kind of file, however often it is killed, and bad rows stop nothing."""

import csv
import io
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Image, load_dataset

from hivg_hf.data.refshapes import refshapes_dataset
from hivg_hf.inference import DatasetInput, DatasetRun, GroundBatch
from hivg_hf.inference.dataset_run import read_rows

SIZE = 11


@pytest.fixture(scope="module")
def rows() -> Dataset:
    rendered = refshapes_dataset("val", seed=3, size=SIZE, masks=False, stored_side=64)
    return rendered.cast_column("image", Image(decode=False)).select_columns(["image", "expression", "sent_id"])


@pytest.fixture(scope="module")
def folder(rows: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same rows as CSV and JSON Lines beside picture files, Parquet with small row groups, and a tar."""
    folder = tmp_path_factory.mktemp("rows")
    (folder / "photos").mkdir()
    pq.write_table(rows.with_format("arrow")[:], folder / "rows.parquet", row_group_size=4)
    table = [{"file_name": f"photos/{number}.png", "caption": row["expression"]} for number, row in enumerate(rows)]
    for number, row in enumerate(rows):
        (folder / "photos" / f"{number}.png").write_bytes(row["image"]["bytes"])
    with (folder / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["file_name", "caption"])
        writer.writeheader()
        writer.writerows(table)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table), encoding="utf-8")
    write_tar(folder / "rows.tar", rows)
    return folder


def write_tar(path: Path, rows: Any) -> None:
    with tarfile.open(path, "w") as tar:
        for number, row in enumerate(rows):
            members = {"png": row["image"]["bytes"], "json": json.dumps({"caption": row["expression"]}).encode()}
            for name, data in members.items():
                member = tarfile.TarInfo(f"part/{number:05d}.{name}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def make_run(
    model: str, source: Path | str, out: Path, image: str, text: str, shard_size: int = 3, **options: Any
) -> DatasetRun:
    rows = DatasetInput(str(source))
    options = {"images": rows.folder, **options}
    ground = GroundBatch(model, image, text, batch_size=2, engine={"device": "cpu"}, **options)
    return DatasetRun(rows, ground, out, shard_size)


def finish(run: DatasetRun) -> list[dict[str, Any]]:
    for part in run.missing():
        run.run(part)
    return list(read_rows(run.folder))


@pytest.fixture(scope="module")
def expected(tiny_checkpoint: str, rows: Dataset) -> list[list[float]]:
    grounded = GroundBatch(tiny_checkpoint, engine={"device": "cpu"})(rows[:])
    assert grounded["error"] == [None] * SIZE
    return grounded["box"]


@pytest.mark.parametrize(
    ("name", "image", "text"),
    [
        ("rows.csv", "file_name", "caption"),
        ("rows.jsonl", "file_name", "caption"),
        ("rows.parquet", "image", "expression"),
        ("rows.tar", "jpg;png", "json.caption"),
    ],
)
def test_every_kind_of_file_gives_the_same_boxes_in_order(
    tiny_checkpoint: str, folder: Path, expected: list[list[float]], tmp_path: Path, name: str, image: str, text: str
) -> None:
    run = make_run(tiny_checkpoint, folder / name, tmp_path, image, text)
    assert (run.rows, len(run.parts)) == (SIZE, 4)
    found = finish(run)
    for row, box in zip(found, expected, strict=True):
        assert row["error"] is None
        assert row["box"] == pytest.approx(box, abs=1e-2)
    assert list(found[0])[-4:] == ["box", "score", "found", "error"]
    assert set(run.source.schema.names) < set(found[0])
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", *[".parquet"] * 4]  # nothing half written


def test_what_is_written_is_read_by_datasets_with_its_pictures(
    tiny_checkpoint: str, folder: Path, tmp_path: Path
) -> None:
    finish(make_run(tiny_checkpoint, folder / "rows.tar", tmp_path / "out", "png", "json.caption"))
    loaded = load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.num_rows == SIZE
    assert max(loaded[0]["png"].size) == 64
    assert len(loaded[0]["box"]) == 4


def test_parts_can_be_computed_in_any_order_and_the_run_travels(
    tiny_checkpoint: str, folder: Path, tmp_path: Path
) -> None:
    straight = make_run(tiny_checkpoint, folder / "rows.parquet", tmp_path / "a", "image", "expression", 5)
    finish(straight)
    mixed = pickle.loads(
        pickle.dumps(make_run(tiny_checkpoint, folder / "rows.parquet", tmp_path / "b", "image", "expression", 5))
    )
    for part in (2, 0, 1):
        mixed.run(part)
    assert list(read_rows(mixed.folder)) == list(read_rows(straight.folder))  # to the last bit


def test_a_file_name_in_a_folder_of_several_files_keeps_their_order(
    tiny_checkpoint: str, folder: Path, rows: Dataset, tmp_path: Path
) -> None:
    for number, (start, stop) in enumerate([(0, 4), (4, 5), (5, SIZE)]):
        write_tar(tmp_path / f"in-{number}.tar", rows.select(range(start, stop)))
    run = make_run(tiny_checkpoint, tmp_path / "in-*.tar", tmp_path / "out", "png", "json.caption", 3)
    assert [(part.start, part.stop) for part in run.parts] == [(0, 3), (3, 4), (0, 1), (0, 3), (3, 6)]
    assert [row["json"]["caption"] for row in finish(run)] == rows["expression"][:]


def test_bad_rows_carry_their_error_and_keep_their_place(tiny_checkpoint: str, folder: Path, tmp_path: Path) -> None:
    good = {"file_name": "photos/0.png", "caption": "the red star", "id": 1}
    lines = [json.dumps(good), "{broken", json.dumps({**good, "file_name": "photos/99.png"}), "[1]", json.dumps(good)]
    lines += [json.dumps({**good, "id": "not a number"}), json.dumps({**good, "caption": ["a", "b"]}), '{"id": 3}']
    lines += [json.dumps({**good, "file_name": "http://127.0.0.1:9/x.png"}), json.dumps(good)]
    (folder / "bad.jsonl").write_text("\n".join(lines), encoding="utf-8")
    found = finish(make_run(tiny_checkpoint, folder / "bad.jsonl", tmp_path, "file_name", "caption", 4))
    errors = [row["error"] for row in found]
    assert [number for number, error in enumerate(errors) if error is None] == [0, 4, 9]
    assert "is not JSON" in errors[1]
    assert "not found" in errors[2]
    assert "expected an object" in errors[3]
    assert errors[5] == "id holds 'not a number', expected int64 as in other rows."
    assert errors[6] == "caption holds ['a', 'b'], expected string as in other rows."
    assert "no image" in errors[7]
    assert "not fetched unless allowed" in errors[8]
    assert found[0]["box"] == pytest.approx(found[9]["box"], abs=1e-2)
    assert [row["box"] is None for row in found] == [error is not None for error in errors]


def test_several_expressions_of_a_row_share_its_picture(tiny_checkpoint: str, folder: Path, tmp_path: Path) -> None:
    lines = [
        {"image": "photos/0.png", "text": ["the red star", "the blue ring"]},
        {"image": "photos/1.png", "text": ["the star"]},
    ]
    (folder / "lists.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    found = finish(make_run(tiny_checkpoint, folder / "lists.jsonl", tmp_path, "image", "text"))
    assert [len(row["box"]) for row in found] == [2, 1]
    assert [len(row["score"]) for row in found] == [2, 1]


def test_other_settings_and_changed_input_are_refused(tiny_checkpoint: str, folder: Path, tmp_path: Path) -> None:
    arguments = (tiny_checkpoint, folder / "rows.csv", tmp_path, "file_name", "caption")
    make_run(*arguments)
    make_run(*arguments)
    with pytest.raises(ValueError, match=r"other settings .*shard_size 3, now 4"):
        make_run(*arguments, shard_size=4)
    with pytest.raises(ValueError, match=r"other settings .reduce_jpeg None, now True"):
        make_run(*arguments, reduce_jpeg=True)
    with pytest.raises(ValueError, match=r"other settings .threshold None, now 0.5"):
        make_run(*arguments, threshold=0.5)
    with pytest.raises(ValueError, match=r"no column 'image' for the image; the columns are file_name, caption"):
        make_run(tiny_checkpoint, folder / "rows.csv", tmp_path / "x", "image", "caption")


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl", "rows.parquet", "rows.tar"])
def test_a_row_that_changed_between_kill_and_resume_is_noticed(
    tiny_checkpoint: str, folder: Path, tmp_path: Path, name: str
) -> None:
    """Of the same length, at the same time, in a file of the same size."""
    table = tmp_path / name
    table.write_bytes((folder / name).read_bytes())
    columns = ("image", "expression") if name == "rows.parquet" else ("file_name", "caption")
    columns = ("png", "json.caption") if name == "rows.tar" else columns
    make_run(tiny_checkpoint, table, tmp_path / "out", *columns, images=folder)
    before, times = table.read_bytes(), table.stat()
    expression = max(re.findall(rb"[a-z]+ [a-z]+ [a-z]+", before), key=len)
    table.write_bytes(before.replace(expression, expression[::-1]))
    os.utime(table, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(ValueError, match=rf"rows of '.*{name}' changed since .*: choose a new folder, or restore"):
        make_run(tiny_checkpoint, table, tmp_path / "out", *columns, images=folder)
    table.write_bytes(before)
    make_run(tiny_checkpoint, table, tmp_path / "out", *columns, images=folder)


def test_input_that_is_missing_or_mixed_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"Input not found: .* matches no file"):
        DatasetInput(str(tmp_path / "no.parquet"))
    with pytest.raises(ValueError, match=r"expected files of one kind"):
        DatasetInput(str(folder))
    with pytest.raises(FileNotFoundError, match=r"metadata.csv with the columns file_name"):
        DatasetInput(str(folder / "photos"))
    with pytest.raises(ValueError, match=r"choose inside a Hub dataset"):
        DatasetInput(str(folder / "rows.csv"), split="train")
    pq.write_table(pq.read_table(folder / "rows.parquet").slice(0, 2), tmp_path / "a-0.parquet")
    pq.write_table(pq.read_table(folder / "rows.parquet").drop_columns(["sent_id"]), tmp_path / "a-1.parquet")
    with pytest.raises(
        ValueError, match=r"has the columns image, expression; other files: image, expression, sent_id"
    ):
        DatasetInput(str(tmp_path / "a-*.parquet")).parts(3)
    (tmp_path / "cut.tar").write_bytes((folder / "rows.tar").read_bytes()[:700])
    with pytest.raises(ValueError, match=r"not a whole tar file"):
        DatasetInput(str(tmp_path / "cut.tar")).parts(3)


@pytest.mark.timeout(900)  # starts processes, whose imports take a minute on a busy machine
def test_killed_and_started_again_the_command_ends_with_the_same_rows(
    tiny_checkpoint: str, folder: Path, expected: list[list[float]], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "hivg_hf", "ground-dataset", str(folder / "rows.csv"), str(tmp_path / "out")]
    command += ["--image-column", "file_name", "--text-column", "caption", "--model", tiny_checkpoint]
    command += ["--shard-size", "1", "--batch-size", "2", "--device", "cpu"]
    killed = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 400
    while not list((tmp_path / "out").glob("shard-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("shard-*")}
    assert before
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    shards = f"{len(before)} shard{'' if len(before) == 1 else 's'}"
    assert len(before) == SIZE or f"{len(before)} rows in {shards} were done before" in done.stderr
    assert all(path.stat().st_mtime_ns == written for path, written in before.items())
    for row, box in zip(read_rows(tmp_path / "out"), expected, strict=True):
        assert row["box"] == pytest.approx(box, abs=1e-2)
