"""What `datasets` wrote is read again: rows of the schema as they were, other tables by their columns."""

import datasets
import numpy as np
import pytest

from hivg_hf import load_grounding_dataset
from hivg_hf.data.order import without_image_decoding
from hivg_hf.data.rows import BrokenRowsError
from hivg_hf.data.schema import FEATURES, shown
from hivg_hf.data.splits import split_names

KEPT = [name for name in FEATURES if name not in ("image", "split")]


@pytest.fixture(scope="module")
def rows():
    """RefShapes rows with masks, one that names nothing, and one with several targets whose box was chosen."""
    table = load_grounding_dataset("refshapes", "val+none", seed=1, size=3)
    content = [dict(row) for row in without_image_decoding(table)]
    x1, y1, x2, y2 = content[0]["box"]
    content[0]["boxes"] = [[x1, y1, x1 + 4, y1 + 4], [x2 - 4, y2 - 4, x2, y2]]
    return datasets.Dataset.from_list(content, features=table.features).select_columns(list(FEATURES))


def saved(rows, kind, folder):
    if kind == "parquet":
        rows.to_parquet(folder / "val.parquet")
        return folder / "val.parquet"
    if kind == "folder of parquet":
        (folder / "data").mkdir()
        rows.to_parquet(folder / "data" / "val-00000-of-00001.parquet")
        return folder
    table = rows if kind == "table" else datasets.DatasetDict({"train": rows.select([0]), "val": rows})
    table.save_to_disk(folder / kind)
    return folder / kind


def content(table):
    """Rows as plain values, each picture as its pixels."""
    return [{**{n: row[n] for n in KEPT}, "pixels": np.asarray(row["image"]).tolist()} for row in table]


@pytest.mark.parametrize("kind", ["parquet", "folder of parquet", "table", "dict"])
@pytest.mark.parametrize("streaming", [False, True])
def test_rows_of_the_schema_come_back_as_they_were(kind, streaming, rows, tmp_path):
    path = saved(rows, kind, tmp_path)
    splits = ("val", "none") if kind in ("parquet", "table") else ("val",)  # the rows' own column, or the stored split
    found = []
    for split in splits:
        read = load_grounding_dataset(str(path), split, **({"streaming": True, "shuffle": False} if streaming else {}))
        table = datasets.Dataset.from_list([{n: row[n] for n in FEATURES} for row in read], features=FEATURES)
        assert set(table["split"]) == {split}
        found += content(table)
    assert found == content(rows)


def test_masks_and_multi_target_are_options_as_of_any_table(rows, tmp_path):
    path = str(saved(rows, "table", tmp_path))
    assert load_grounding_dataset(path, "val", masks=False)["mask"] == [None] * 3
    assert len(load_grounding_dataset(path, "val", multi_target="drop")) == 2


def test_several_splits_are_joined_and_only_tables_can_be(rows, tmp_path):
    path = str(saved(rows, "table", tmp_path))
    assert load_grounding_dataset(path, "none+val")["split"] == ["none"] * 3 + ["val"] * 3
    with pytest.raises(ValueError, match=r"'val\+none' of .* cannot be joined: only tables can"):
        load_grounding_dataset(path, "val+none", streaming=True)
    with pytest.raises(ValueError, match=r"no split 'gone'; it has none, val"):
        load_grounding_dataset(path, "val+gone")
    with pytest.raises(ValueError, match=r"A split has no name in 'val\+'"):
        split_names("val+")


def table_of(pictures, **columns):
    count = len(pictures)
    return {
        "image": pictures,
        "expression": [f"star {i}" for i in range(count)],
        "box": [[1.0, 2, 30, 40]] * count,
    } | columns


@pytest.fixture
def pictures(make_image, tmp_path):
    return [make_image(tmp_path / f"{number}.png", seed=number) for number in range(3)]


def stored(table, kind, folder):
    path = folder / "own.parquet"
    if kind == "images":
        datasets.Dataset.from_dict(table).cast_column("image", datasets.Image()).to_parquet(path)
        return path
    blobs = [open(name, "rb").read() for name in table["image"]]
    cells = blobs if kind == "bytes" else [{"bytes": blob, "path": "p.png"} for blob in blobs]  # one name for all
    datasets.Dataset.from_dict({**table, "image": cells}).to_parquet(path)
    return path


@pytest.mark.parametrize("kind", ["images", "bytes", "structs"])
def test_a_table_may_hold_its_pictures(kind, pictures, tmp_path):
    path = str(stored(table_of(pictures), kind, tmp_path))
    found = load_grounding_dataset(path, "all", box_format="xyxy")
    expected = load_grounding_dataset
    assert [image.tobytes() for image in found["image"]] == [
        image.tobytes()
        for image in datasets.Dataset.from_dict({"i": pictures}).cast_column("i", datasets.Image())["i"]
    ]
    assert len(set(found["image_id"])) == 3  # whatever their names, other pictures
    assert expected(path, "all", box_format="xyxy", verify_images="decode")["image_id"] == found["image_id"]
    shares = load_grounding_dataset(path, "train", box_format="xyxy", holdout=0.4)
    assert len(shares) == 2
    normalized = datasets.Dataset.from_parquet(path).map(lambda row: {"box": [0.25, 0.25, 0.5, 0.5]})
    normalized.to_parquet(tmp_path / "n.parquet")
    row = load_grounding_dataset(str(tmp_path / "n.parquet"), "all", box_format="xyxy_normalized")[0]
    assert row["box"] == [16, 12, 32, 24]


def test_other_columns_need_a_box_format_and_may_be_renamed(pictures, tmp_path):
    table = {"photo": pictures, "caption": ["a"] * 3, "bbox": [[1.0, 2, 30, 40]] * 3}
    datasets.Dataset.from_dict(table).cast_column("photo", datasets.Image()).save_to_disk(tmp_path / "own")
    with pytest.raises(ValueError, match=r"own: say what its boxes mean with box_format="):
        load_grounding_dataset(str(tmp_path / "own"), "all")
    columns = {"image": "photo", "expression": "caption", "box": "bbox"}
    found = load_grounding_dataset(str(tmp_path / "own"), "all", box_format="xywh", columns=columns)
    assert found[0]["box"] == [1, 2, 31, 42]


def test_a_dataset_of_one_split_may_be_held_out_or_read_by_its_column(pictures, tmp_path):
    table = datasets.Dataset.from_dict(table_of(pictures, split=["train", "val", "val"]))
    datasets.DatasetDict({"train": table}).save_to_disk(tmp_path / "one")
    assert len(load_grounding_dataset(str(tmp_path / "one"), "train", box_format="xyxy")) == 3
    assert len(load_grounding_dataset(str(tmp_path / "one"), "val", box_format="xyxy")) == 2


def test_a_dataset_that_is_neither_here_nor_on_the_hub_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"File or folder not found: me/mine, and as a dataset on the Hub it cannot"):
        load_grounding_dataset("me/mine", "val")


@pytest.mark.parametrize("kind", ["images", "bytes", "structs"])
def test_messages_hold_no_picture_and_at_most_2000_characters(kind, pictures, tmp_path):
    path = stored(table_of(pictures * 40, box=[[9.0, 9, 3, 3]] * 120), kind, tmp_path)
    with pytest.raises(BrokenRowsError, match=r"120 of 120 rows") as caught:
        load_grounding_dataset(str(path), "all", box_format="xyxy", check_format=False)
    message = str(caught.value)
    assert len(message) <= 2_000
    assert "PNG" not in message
    assert "\\x" not in message
    assert len(caught.value.problems) == 120


def test_bytes_in_a_value_are_shown_as_their_number():
    assert shown({"bytes": b"\x89PNG" * 9, "more": [bytearray(3)]}) == "{'bytes': <36 bytes>, 'more': [<3 bytes>]}"


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("named", [False, True])
def test_a_ref_id_on_two_pictures_is_refused_as_in_coco_files(suffix, named, pictures, tmp_path):
    table = datasets.Dataset.from_dict(
        {
            "image": ["0.png", "1.png", "1.png", "2.png", "2.png"],
            "expression": ["a", "b", "c", "d", "e"],
            "box": ["1 2 30 40"] * 5,
            "ref_id": ["7", "7", "8", "9", ""],
            "split": ["val", "val", "val", "val", "val"],
            **({"image_id": ["x", "y", "y", "z", "z"]} if named else {}),
        }
    )
    path = tmp_path / f"rows.{suffix}"
    {"jsonl": table.to_json, "csv": table.to_csv, "parquet": table.to_parquet}[suffix](path)
    with pytest.raises(BrokenRowsError, match=r"its ref_id is on 2 images \('(x', 'y|0.png', '1.png)'\)") as caught:
        load_grounding_dataset(str(path), "val", box_format="xyxy")
    assert [problem.row for problem in caught.value.problems] == ["row 0", "row 1"]
    assert len(load_grounding_dataset(str(path), "val", box_format="xyxy", on_error="skip")) == 3


def test_splits_may_number_their_objects_apart(pictures, tmp_path):
    table = datasets.Dataset.from_dict(
        {**table_of(["0.png", "1.png"]), "ref_id": ["1", "1"], "split": ["train", "val"]}
    )
    table.to_json(tmp_path / "rows.jsonl")
    for split in ("train", "val"):
        assert len(load_grounding_dataset(str(tmp_path / "rows.jsonl"), split, box_format="xyxy")) == 1
