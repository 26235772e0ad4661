"""Tables in shards: tars, patterns of files and datasets of the Hub are one table, read forward."""

import io
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Image

from hivg_hf.data import load_grounding_dataset
from hivg_hf.data.readers import FORMATS, find_source
from hivg_hf.data.refshapes import refshapes_dataset
from hivg_hf.data.schema import FEATURES


@pytest.fixture(scope="module")
def rows():
    return refshapes_dataset("train", seed=3, size=10, stored_side=64).cast_column("image", Image(decode=False))


@pytest.fixture
def folder(rows, tmp_path):
    """The same rows as two Parquet files, as two tars of JSON, and as two JSON Lines files."""
    for number, part in enumerate((rows.select(range(4)), rows.select(range(4, 10)))):
        part.to_parquet(tmp_path / f"part-{number}.parquet", batch_size=3)
        samples = [(row, {name: row[name] for name in ("expression", "box", "mask")}) for row in part]
        write_tar(tmp_path / f"part-{number}.tar", samples)
        for place, (row, _) in enumerate(samples):
            (tmp_path / f"{number}-{place}.png").write_bytes(row["image"]["bytes"])
        lines = ({**columns, "file_name": f"{number}-{place}.png"} for place, (_, columns) in enumerate(samples))
        (tmp_path / f"part-{number}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def write_tar(path, samples):
    with tarfile.open(path, "w") as tar:
        for number, (row, columns) in enumerate(samples):
            for name, data in {"png": row["image"]["bytes"], "json": json.dumps(columns).encode()}.items():
                member = tarfile.TarInfo(f"{path.stem}/{number:05d}.{name}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize(
    ("pattern", "split", "options"),
    [
        ("part-*.parquet", "train", {}),
        ("part-*.tar", "all", {"box_format": "xyxy"}),
        ("part-*.jsonl", "all", {"box_format": "xyxy"}),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_a_pattern_is_one_table(pattern, split, options, streaming, folder, rows):
    order = {"streaming": True, "shuffle": False} if streaming else {}
    read = list(load_grounding_dataset(str(folder / pattern), split, **options, **order))
    assert [row["expression"] for row in read] == rows["expression"][:]
    for row, expected in zip(read, rows, strict=True):
        assert set(row) - {"row_index"} == set(FEATURES)
        assert row["box"] == pytest.approx(expected["box"])
        assert row["mask"] == expected["mask"]
        assert (row["width"], row["height"]) == (expected["width"], expected["height"])
    if pattern.endswith("parquet"):
        assert [row["ref_id"] for row in read] == rows["ref_id"][:]
        assert read[0]["source"] == "refshapes"


def test_a_tar_alone_and_a_text_beside_the_picture_are_read(rows, tmp_path):
    with tarfile.open(tmp_path / "one.tar", "w") as tar:
        members = {"png": rows[0]["image"]["bytes"], "txt": b"the red star\n", "json": b'{"bbox": [1, 2, 9, 9]}'}
        for name, data in members.items():
            member = tarfile.TarInfo(f"a.{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    (row,) = load_grounding_dataset(str(tmp_path / "one.tar"), "all", box_format="xywh")
    assert (row["expression"], row["box"], row["sent_id"]) == ("the red star", [1.0, 2.0, 10.0, 11.0], "a")


def test_a_box_may_be_whole_numbers_in_one_row_and_not_in_the_next(rows, tmp_path):
    boxes = [[1, 2, 9, 9]] * 120 + [[1.5, 2, 9, 9]]
    write_tar(tmp_path / "a.tar", [(rows[0], {"expression": "a", "box": box}) for box in boxes])
    read = load_grounding_dataset(str(tmp_path / "a.tar"), "all", box_format="xyxy")
    assert read["box"][119:] == [[1.0, 2.0, 9.0, 9.0], [1.5, 2.0, 9.0, 9.0]]


def test_what_is_recognized_as_shards():
    shards = FORMATS["shards"]
    for name in ("a/*.parquet", "a/b-[0-9].jsonl", "a.tar", "hf://datasets/me/x/data/*.parquet"):
        assert find_source(name) is shards
    assert find_source("me/x") is FORMATS["hub"]
    assert find_source("me/x", streaming=True) is shards
    assert find_source("refcoco", streaming=True) is not shards


def test_what_cannot_be_read_as_shards_is_refused_in_one_sentence(folder, rows, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none-\*.tar' matches no file"):
        load_grounding_dataset(str(folder / "none-*.tar"), "all", box_format="xyxy")
    with pytest.raises(ValueError, match=r"split 'train'.*all|no column 'split'"):
        load_grounding_dataset(str(folder / "part-*.tar"), "train", box_format="xyxy")
    with pytest.raises(ValueError, match=r"it belongs to the split 'train', not 'val'"):
        load_grounding_dataset(str(folder / "part-*.parquet"), "val")
    with pytest.raises(ValueError, match=r"say what its boxes mean with box_format="):
        load_grounding_dataset(str(folder / "part-*.tar"), "all")
    with pytest.raises(ValueError, match=r"has no option holdout"):
        load_grounding_dataset(str(folder / "part-*.tar"), "all", box_format="xyxy", holdout=0.1)
    write_tar(folder / "classes.tar", [(rows[0], {"label": "star", "bbox": [1, 2, 9, 9]})])
    with pytest.raises(ValueError, match=r"the column 'label' names classes"):
        load_grounding_dataset(str(folder / "classes.tar"), "all", box_format="xyxy")
    table = pa.table({"image": ["a.png"], "expression": ["a"]})
    pq.write_table(table, tmp_path / "part-2.parquet")
    with pytest.raises(ValueError, match=r"part-2.parquet has the columns image, expression; other files: image,"):
        load_grounding_dataset(str(folder / "part-*.parquet"), "train")


def test_a_box_format_that_the_first_rows_contradict_is_refused(rows, tmp_path):
    corners = [(rows[0], {"expression": "a", "box": [30, 30, 50, 50]})] * 40
    write_tar(tmp_path / "a.tar", corners)
    with pytest.raises(ValueError, match=r"xywh"):
        load_grounding_dataset(str(tmp_path / "a.tar"), "all", box_format="xywh", on_error="skip")


def test_a_file_that_is_cut_is_refused_before_it_is_read(folder):
    whole = (folder / "part-1.tar").read_bytes()
    (folder / "part-1.tar").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"part-1.tar is not a whole tar file"):
        load_grounding_dataset(str(folder / "part-*.tar"), "all", box_format="xyxy", streaming=True)


def test_a_file_that_shrinks_while_it_is_read_is_refused(folder):
    stream = load_grounding_dataset(
        str(folder / "part-*.tar"), "all", box_format="xyxy", streaming=True, shuffle=False, buffer=2
    )
    write_tar(folder / "part-1.tar", [])
    with pytest.raises(RuntimeError, match=r"part-1.tar changed while it was read"):
        list(stream)
