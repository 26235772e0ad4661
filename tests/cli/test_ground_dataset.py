"""`hivg ground-dataset`: a table without boxes in, Parquet with boxes out, in one command."""

import csv
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Image
from typer.testing import CliRunner

from hivg_hf.cli import app
from hivg_hf.data.refshapes import refshapes_dataset


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("table")
    rows: Dataset = refshapes_dataset("val", seed=3, size=4, masks=False, stored_side=64)
    with (folder / "pairs.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "caption"])
        for number, row in enumerate(rows.cast_column("image", Image(decode=False))):
            (folder / f"{number}.png").write_bytes(row["image"]["bytes"])
            writer.writerow([f"{number}.png", row["expression"]])
    return folder / "pairs.csv"


def test_file_names_and_captions_become_boxes_in_one_command(
    table: Path, tiny_checkpoint: str, tmp_path: Path
) -> None:
    arguments = ["ground-dataset", str(table), str(tmp_path / "out"), "--model", tiny_checkpoint, "--shard-size", "3"]
    done = CliRunner().invoke(app, arguments)  # the columns have common names
    assert done.exit_code == 0, done.output
    assert "4 rows in" in done.output
    assert "rows/s); 2 shards in" in done.output
    rows = pq.read_table(tmp_path / "out")
    assert rows.column_names == ["file_name", "caption", "box", "score", "found", "error"]
    assert rows.column("error").null_count == len(rows) == 4
    again = CliRunner().invoke(app, arguments)
    assert "4 rows in 2 shards were done before" in again.output
    assert "0 rows in" in again.output


def test_rows_with_errors_end_with_status_1_and_mistakes_with_2(
    table: Path, tiny_checkpoint: str, tmp_path: Path
) -> None:
    bad = table.with_name("bad.csv")
    bad.write_text(table.read_text(encoding="utf-8") + "none.png,the red star\n", encoding="utf-8")
    table.with_name("empty.csv").touch()
    table.with_name("noise.parquet").write_bytes(bytes(range(200)))
    arguments = ["--model", tiny_checkpoint]
    done = CliRunner().invoke(app, ["ground-dataset", str(bad), str(tmp_path / "a"), *arguments])
    assert done.exit_code == 1
    assert "1 have an error" in done.output
    assert "the first error: Image file not found:" in done.output
    for wrong, message in [
        ([str(table), str(tmp_path / "b"), "--image-column", "photo"], "There is no column 'photo'"),
        ([str(table), str(tmp_path / "b"), "--engine", "spark"], "--engine must be one of local, ray"),
        ([str(table), str(tmp_path / "b"), "--num-gpus", "1"], "are options of --engine ray"),
        ([str(table.with_name("no.csv")), str(tmp_path / "b")], "Input not found"),
        ([str(table.with_name("empty.csv")), str(tmp_path / "b")], "empty.csv' is empty: give a table with a line of"),
        ([str(table.with_name("noise.parquet")), str(tmp_path / "b")], "noise.parquet is damaged, or not a Parquet"),
    ]:
        done = CliRunner().invoke(app, ["ground-dataset", *wrong, *arguments])
        assert done.exit_code == 2
        assert message in done.output.replace("\n", " ")
        assert not (tmp_path / "b").exists()


def test_a_table_none_of_whose_rows_can_be_read_is_not_said_to_be_empty(
    table: Path, tiny_checkpoint: str, tmp_path: Path
) -> None:
    odd = table.with_name("commas.csv")
    odd.write_text("file_name,caption\n0.png,the red, small one\n", encoding="utf-8")
    done = CliRunner().invoke(app, ["ground-dataset", str(odd), str(tmp_path / "out"), "--model", tiny_checkpoint])
    assert done.exit_code == 1
    assert "the first error: The row cannot be read: it has 3 cells, the header has 2." in done.output


def test_two_columns_of_one_name_are_refused(table: Path, tiny_checkpoint: str, tmp_path: Path) -> None:
    columns = [pa.array(["0.png"]), pa.array(["red"]), pa.array(["blue"])]
    pq.write_table(pa.table(columns, names=["image", "expression", "expression"]), table.with_name("twice.parquet"))
    words = [
        "ground-dataset",
        str(table.with_name("twice.parquet")),
        str(tmp_path / "out"),
        "--model",
        tiny_checkpoint,
    ]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2
    assert "twice.parquet' has the column 'expression' twice; rename or remove one." in done.output
    assert not (tmp_path / "out").exists()


def test_columns_are_named_as_in_every_verb(table: Path, tiny_checkpoint: str, tmp_path: Path) -> None:
    odd = table.with_name("odd.csv")
    odd.write_text(table.read_text(encoding="utf-8").replace("file_name,caption", "Foto,no"), encoding="utf-8")
    start = ["ground-dataset", str(odd), str(tmp_path / "out"), "--model", tiny_checkpoint]
    done = CliRunner().invoke(app, [*start, "--column", "image=Foto", "--column", "expression=no"])
    assert done.exit_code == 0, done.output
    assert pq.read_table(tmp_path / "out").column("error").null_count == 4
    for wrong, message in [
        (["--column", "box=no"], "--column box: of a table without boxes, only image and expression are read"),
        (["--column", "image=Foto", "--image-column", "Foto"], "--column image=Foto and another option name one"),
        (["--column", "image"], "--column takes NAME=VALUE, got 'image'"),
    ]:
        done = CliRunner().invoke(app, [*start, *wrong])
        assert done.exit_code == 2
        assert message in " ".join(done.output.split())
