"""GRIT as img2dataset writes it: tars of a picture, its caption and a JSON file with the columns."""

import io
import json
import tarfile
from decimal import Decimal

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torch.utils.data import DataLoader

from hivg_hf.data.loading import load_grounding_dataset
from hivg_hf.data.order import without_image_decoding
from hivg_hf.data.readers import FORMATS, find_source
from hivg_hf.data.readers.grit import read_grit
from hivg_hf.data.rows import BrokenRowsError

CAPTION = "a red cup beside two green plates"
CUP, PLATES = CAPTION.index("a red cup"), CAPTION.index("two green plates")
ENTRIES = [
    [CUP, CUP + 9, 0.1, 0.2, 0.5, 0.6, 0.9],
    [PLATES, len(CAPTION), 0.5, 0.5, 0.75, 1.0, 0.8],
    [PLATES, len(CAPTION), 0.75, 0.5, 1.0, 1.0, 0.4],
]


def _sample(key, entries=ENTRIES, **changes):
    """The JSON of one pair; the sizes are those before img2dataset scaled the picture."""
    columns = {"key": key, "caption": CAPTION, "url": "u", "width": 999, "height": 999, "status": "success"}
    return {**columns, "noun_chunks": entries[:1], "ref_exps": entries, **changes}


def _write(path, samples):
    with tarfile.open(path, "w") as tar:
        for number, sample in enumerate(samples):
            file = io.BytesIO()
            pixels = np.random.default_rng([int(path.stem), number]).integers(0, 256, (20, 40, 3), dtype=np.uint8)
            PIL.Image.fromarray(pixels).save(file, "JPEG")
            columns = sample if isinstance(sample, bytes) else json.dumps(sample).encode()
            for name, data in {"jpg": file.getvalue(), "txt": CAPTION.encode(), "json": columns}.items():
                member = tarfile.TarInfo(f"{path.stem}{number:04d}.{name}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


@pytest.fixture
def shards(tmp_path):
    """Two tars with four and three pairs; the second pair has no expressions."""
    for shard, count in (("00000", 4), ("00001", 3)):
        samples = [_sample(f"{shard}{number:04d}", [] if (shard, number) == ("00000", 1) else ENTRIES)
                   for number in range(count)]  # fmt: skip
        _write(tmp_path / f"{shard}.tar", samples)
    return tmp_path


def test_tars_are_recognized_and_give_a_row_for_each_expression(shards):
    assert find_source(str(shards / "*.tar")) is find_source(str(shards / "00001.tar")) is FORMATS["grit"]
    rows = without_image_decoding(load_grounding_dataset(str(shards / "*.tar"), "all"))
    assert rows["expression"][:2] == ["a red cup", "two green plates"]
    assert len(rows) == 2 * 6  # the pair without expressions gives none
    cup, plates = rows[0], rows[1]
    assert cup["boxes"] == [pytest.approx([4, 4, 20, 12])]  # of the picture as it is, not of the columns' 999
    assert plates["boxes"] == [pytest.approx([20, 10, 30, 20]), pytest.approx([30, 10, 40, 20])]
    assert (cup["width"], cup["height"]) == (40, 20)
    assert cup["image"]["bytes"]
    assert cup["image_id"] == plates["image_id"] != rows[2]["image_id"]


def test_options_are_those_of_a_file(shards):
    source = str(shards / "*.tar")
    apart = load_grounding_dataset(source, "all", several="apart", min_score=0.5)
    assert len(apart) == 2 * 6
    assert len(load_grounding_dataset(source, "all", several="apart")) == 3 * 6
    assert load_grounding_dataset(source, "all", expressions="noun_chunks")["expression"][:] == ["a red cup"] * 6
    sides = [load_grounding_dataset(source, side, holdout=0.4) for side in ("train", "val")]
    assert sum(map(len, sides)) == 12
    assert not set(sides[0]["image_id"]) & set(sides[1]["image_id"])


@pytest.mark.parametrize("workers", [0, 2])
def test_tars_are_streamed_forward_and_every_row_comes_once(shards, workers):
    whole = load_grounding_dataset(str(shards / "*.tar"), "all")
    keys = sorted(zip(whole["image_id"], whole["expression"], strict=True))
    options = {"seed": 3, "batch_size": 2, "lanes": 2, "buffer": 4}
    stream = load_grounding_dataset(str(shards / "*.tar"), "all", streaming=True, **options)
    loader = DataLoader(stream, batch_size=None, num_workers=workers)
    assert sorted((row["image_id"], row["expression"]) for row in loader) == keys
    stream.set_epoch(1)
    assert sorted((row["image_id"], row["expression"]) for row in stream) == keys


def test_a_stream_in_its_own_order_is_the_table(shards):
    whole = load_grounding_dataset(str(shards / "*.tar"), "all")
    stream = load_grounding_dataset(str(shards / "*.tar"), "all", streaming=True, shuffle=False)
    assert [row["sent_id"] for row in stream] == whole["sent_id"][:]


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (_sample("k", [["left", 9, 0, 0, 1, 1, 0.5]]), r"ref_exps has .*left.*expected numbers \[start, end, x1"),
        (_sample("k", [[0, 9, "0,1", "0,2", "0,5", "0,6", "0,9"]]), "ref_exps has .*0,1.*expected numbers"),
        (_sample("k", [[0, 9, 0.1, 0.2, 0.5, True, 0.9]]), "ref_exps has .*expected numbers"),
        (_sample("k", [[0, 9, 0.1, 0.2, 0.5, 0.6, float("nan")]]), "ref_exps has .*expected numbers"),
        (_sample("k", [[0, 9, 0.1, 0.2, 0.5, 0.6, 0.9, 1]]), "ref_exps has .*expected numbers"),
        (_sample("k", [[0, 90, 0.1, 0.2, 0.5, 0.6, 0.9]]), "characters 0 to 90 are not within its caption of 33"),
        (_sample("k", [[0, 9, 10, 20, 30, 12, 0.9]]), r"is not within 0\.\.1"),
        (_sample("k", caption=None), "its caption is None, expected text"),
        ({"key": "k", "caption": CAPTION, "noun_chunks": []}, "it has no ref_exps, only"),
        (b'{"key": "k", "caption"', "it has no ref_exps, only"),
    ],
)
def test_a_spoiled_sample_is_named_with_its_file_and_row(tmp_path, sample, message):
    _write(tmp_path / "00000.tar", [_sample("a"), sample, _sample("b")])
    with pytest.raises(BrokenRowsError, match=message) as caught:
        load_grounding_dataset(str(tmp_path / "00000.tar"), "all")
    assert "row 1 of 00000.tar" in str(caught.value)
    assert len(load_grounding_dataset(str(tmp_path / "00000.tar"), "all", on_error="skip")) == 4


def test_numbers_as_text_and_in_decimal_types_are_numbers(tmp_path):
    written = [[str(value) for value in ENTRIES[0]]]
    _write(tmp_path / "00000.tar", [_sample("a", written, noun_chunks=written)])
    (row,) = load_grounding_dataset(str(tmp_path / "00000.tar"), "all")
    assert row["box"] == pytest.approx([4, 4, 20, 12])
    PIL.Image.new("RGB", (40, 20)).save(tmp_path / "a.jpg")
    exact = pa.array([[[Decimal(str(value)) for value in ENTRIES[0]]]], pa.list_(pa.list_(pa.decimal128(9, 4))))
    pq.write_table(pa.table({"key": ["a"], "caption": [CAPTION], "ref_exps": exact}), tmp_path / "rows.parquet")
    (row,) = load_grounding_dataset(tmp_path / "rows.parquet", "all")
    assert row["box"] == pytest.approx([4, 4, 20, 12])


def test_a_parquet_pattern_takes_pictures_by_their_keys(tmp_path):
    for number in range(2):
        PIL.Image.new("RGB", (40, 20), (number, 0, 0)).save(tmp_path / f"{number}.jpg")
        pq.write_table(pa.Table.from_pylist([_sample(f"{number}")]), tmp_path / f"part-{number}.parquet")
    assert len(load_grounding_dataset(str(tmp_path / "part-*.parquet"), "all")) == 4
    nameless = pa.Table.from_pylist([{"caption": CAPTION, "ref_exps": ENTRIES}])
    pq.write_table(nameless, tmp_path / "part-2.parquet")
    with pytest.raises(BrokenRowsError, match="it holds no picture, and its key is None"):
        load_grounding_dataset(tmp_path / "part-2.parquet", "all")


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="matches no file"):
        read_grit("all", source=str(tmp_path / "none-*.tar"))
    (tmp_path / "cut.tar").write_bytes(b"not a tar")
    with pytest.raises(ValueError, match="not a whole tar file"):
        read_grit("all", source=str(tmp_path / "cut.tar"))
