"""Streams of shards: every row once, one order for any number of processes and workers, resumed at once."""

import io
import json
import pickle
import tarfile
from collections import Counter

import PIL.Image
import pytest
from torch.utils.data import DataLoader

from hivg_hf.data import EpochSampler, KeyedDataset, UniqueImageSampler
from hivg_hf.data.loading import load_grounding_dataset
from hivg_hf.data.order import image_ids_of
from hivg_hf.data.readers.shard_files import ShardFiles
from hivg_hf.data.readers.shards import ShardRecords
from hivg_hf.data.shard_stream import ShardStream
from hivg_hf.training.batches import GlobalBatchSampler

SIZES = (7, 12, 9, 19)  # of four tars
ROWS = sum(SIZES)


def picture(number):
    file = io.BytesIO()
    PIL.Image.new("RGB", (40, 30), (number % 256, 0, 0)).save(file, "PNG")
    return file.getvalue()


def write_tar(path, rows):
    with tarfile.open(path, "w") as tar:
        for number, row in rows:
            for name, data in {"png": picture(number), "json": json.dumps(row).encode()}.items():
                member = tarfile.TarInfo(f"part/{number:05d}.{name}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder, first = tmp_path_factory.mktemp("shards"), 0
    for number, size in enumerate(SIZES):
        rows = [(row, {"caption": f"object {row}", "bbox": [1, 2, 30, 20]}) for row in range(first, first + size)]
        write_tar(folder / f"{number}.tar", rows)
        first += size
    return folder


def open_stream(shards, **options):
    options = {"seed": 3, "batch_size": 2, "lanes": 4, "buffer": 20, "box_format": "xyxy", **options}
    return load_grounding_dataset(str(shards / "*.tar"), "all", streaming=True, **options)


def numbers(rows):
    return [int(row["expression"].removeprefix("object ")) for row in rows]


@pytest.mark.parametrize("lanes", [1, 4, 16, 64])
@pytest.mark.parametrize("batch_size", [1, 2, 8, 100])
@pytest.mark.parametrize("buffer", [1, 20, 1000])
def test_an_epoch_has_every_row_once_and_the_next_another_order(shards, lanes, batch_size, buffer):
    stream = open_stream(shards, lanes=lanes, batch_size=batch_size, buffer=buffer)
    assert isinstance(stream, ShardStream)
    assert len(stream) == ROWS
    orders = []
    for epoch in (0, 1):
        stream.set_epoch(epoch)
        orders.append(numbers(stream))
        assert sorted(orders[-1]) == list(range(ROWS))
    assert orders[0] != orders[1]
    assert orders[0] != sorted(orders[0])


def test_rows_in_their_own_order_are_those_of_the_files(shards):
    assert numbers(open_stream(shards, shuffle=False)) == list(range(ROWS))
    assert numbers(load_grounding_dataset(str(shards / "*.tar"), "all", box_format="xyxy")) == list(range(ROWS))


def test_a_row_depends_on_seed_epoch_and_index_alone(shards):
    stream = open_stream(shards)
    whole = [[stream.row_at(epoch, index)["expression"] for index in range(ROWS)] for epoch in (0, 1)]
    again = pickle.loads(pickle.dumps(stream))
    assert [again.row_at(1, index)["expression"] for index in reversed(range(ROWS))] == whole[1][::-1]
    assert [stream.row_at(0, index)["expression"] for index in range(ROWS)] == whole[0]
    other = open_stream(shards, seed=4)
    assert [other.row_at(0, index)["expression"] for index in range(ROWS)] != whole[0]


@pytest.mark.parametrize("batches", [0, 1, 5, 17])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_resumes_in_the_middle_of_an_epoch(shards, batches, workers):
    def loader(stream):
        return DataLoader(stream, batch_size=2, num_workers=workers, collate_fn=list)

    whole = [row for batch in loader(open_stream(shards)) for row in numbers(batch)]
    stream = open_stream(shards)
    state = json.loads(json.dumps(stream.state_dict(rows_seen=2 * batches)))
    stream.load_state_dict(state)
    assert [row for batch in loader(stream) for row in numbers(batch)] == whole[2 * batches :]


@pytest.mark.parametrize("change", [{"seed": 9}, {"lanes": 8}, {"batch_size": 4}, {"buffer": 8}])
def test_a_state_of_another_order_is_refused(shards, change):
    state = open_stream(shards).state_dict()
    with pytest.raises(ValueError, match=f"the state was taken with (seed|{next(iter(change))})"):
        open_stream(shards, **change).load_state_dict(state)


def units(stream, processes, workers, batch=8, epoch=1):
    """The keys of the batches that each worker of each process asks for, by (rank, worker)."""
    for rank in range(processes):
        order = EpochSampler(len(stream), shuffle=stream.shuffle_rows, epoch=epoch)
        keys = list(GlobalBatchSampler(order, batch, 1, rank, processes))
        for worker in range(workers):
            yield [key for piece in keys[worker::workers] for key in piece]


@pytest.mark.parametrize(("processes", "workers"), [(1, 1), (1, 2), (2, 1), (2, 2), (4, 1)])
def test_what_one_worker_reads_no_other_reads(shards, processes, workers, monkeypatch):
    streams = [open_stream(shards, lanes=8) for _ in range(processes * workers)]  # each worker has its own
    whole = open_stream(shards, lanes=8)
    read, plain = [], ShardRecords._read
    monkeypatch.setattr(ShardRecords, "_read", lambda self, a, b: read.extend(range(a, b)) or plain(self, a, b))
    asked = []
    for stream, keys in zip(streams, units(whole, processes, workers), strict=True):
        asked += numbers(stream.row_at(epoch, index) for epoch, index in keys)
    assert max(Counter(read).values()) == 1
    assert sorted(asked) == sorted(numbers(whole.row_at(1, index) for index in range(ROWS // 8 * 8)))


def test_a_worker_opens_each_file_of_its_stretch_once(shards, monkeypatch):
    stream = open_stream(shards, lanes=1, batch_size=4, buffer=5)  # ten blocks in four files
    opened, plain = [], ShardFiles.records
    monkeypatch.setattr(ShardFiles, "records", lambda self, *place: opened.append(place) or plain(self, *place))
    assert len(list(stream)) == ROWS
    assert len(opened) == len(SIZES)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_any_number_of_workers_gives_the_same_batches(shards, workers):
    stream = open_stream(shards)
    order = EpochSampler(len(stream), shuffle=stream.shuffle_rows, epoch=2)
    sampler = GlobalBatchSampler(order, 8)
    batches = DataLoader(KeyedDataset(stream), batch_sampler=sampler, num_workers=workers, collate_fn=list)
    expected = [stream.row_at(2, index) for index in range(ROWS // 8 * 8)]
    assert [row for batch in batches for row in numbers(batch)] == numbers(expected)


def test_a_mixture_keeps_its_shares_and_uses_a_part_up_before_it_comes_again(shards):
    few, many = str(shards / "[0]*.tar"), str(shards / "[123]*.tar")  # 7 and 40 rows
    parts = [{"source": few, "weight": 1}, {"source": many, "weight": 3}]
    options = {"box_format": "xyxy"}
    parts = [{**part, **options} for part in parts]
    mixed = load_grounding_dataset(
        "mixture", "all", streaming=True, parts=parts, size=32, batch_size=2, lanes=2, buffer=8, seed=5
    )
    counts, orders = Counter(), []
    for epoch in range(5):
        mixed.set_epoch(epoch)
        orders.append(numbers(mixed))
        assert len(orders[-1]) == len(mixed) == 32
        assert sum(number < 7 for number in orders[-1]) == 8
        counts.update(orders[-1])
    assert len({tuple(order) for order in orders}) == 5
    assert sorted({counts[number] for number in range(7)}) in ([5, 6], [5, 6, 7])  # 40 draws of 7 rows
    assert {counts[number] for number in range(7, 47)} == {3}  # 120 draws of 40 rows
    start = numbers(mixed.row_at(0, index) for index in range(16))
    assert 0 < sum(number < 7 for number in start) < 16  # within the epoch too


def test_parts_that_are_read_by_number_are_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(picture(0))
    (tmp_path / "rows.jsonl").write_text('{"image": "a.png", "expression": "a", "box": [0, 0, 9, 9]}')
    parts = [{"source": str(tmp_path / "rows.jsonl"), "box_format": "xyxy"}]
    with pytest.raises(ValueError, match=r"rows.jsonl is read by number: give it the option format=shards"):
        load_grounding_dataset("mixture", "all", streaming=True, parts=parts)
    parts[0]["format"] = "shards"
    assert len(load_grounding_dataset("mixture", "all", streaming=True, parts=parts)) == 1
    with pytest.raises(ValueError, match="lanes only applies to streams: omit it, or add streaming=True"):
        load_grounding_dataset("mixture", "all", parts=parts, lanes=2)


@pytest.fixture
def broken(tmp_path):
    """Twelve rows, of which the fourth has a box outside and the tenth no text."""
    rows = [{"caption": f"object {row}", "bbox": [1, 2, 30, 20]} for row in range(12)]
    rows[3]["bbox"], rows[9]["caption"] = [1, 2, 300, 20], None
    write_tar(tmp_path / "a.tar", enumerate(rows))
    return tmp_path


def test_a_row_that_cannot_be_used_is_named_when_it_comes(broken):
    with pytest.raises(ValueError, match=r"box outside|row 3 of a.tar|reaches 260 pixels out of its image"):
        list(open_stream(broken, shuffle=False))


def test_another_row_of_its_block_comes_in_the_place_of_one_that_is_left_out(broken, caplog):
    stream = open_stream(broken, on_error="skip", lanes=2, buffer=12)
    for _ in range(2):
        seen = numbers(stream)
        assert len(seen) == 12
        assert set(seen) == {*range(12)} - {3, 9}
    assert "its expression is None, expected text" in caplog.text
    assert "Another row comes in its place" in caplog.text


def test_a_block_without_a_row_to_use_is_refused(broken):
    with pytest.raises(ValueError, match="none of 1 neighboring rows can be used"):
        list(open_stream(broken, on_error="skip", buffer=1, lanes=1))


def test_numbers_that_cannot_be_are_refused(shards):
    for name in ("lanes", "buffer", "batch_size"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            open_stream(shards, **{name: 0})
    with pytest.raises(ValueError, match="unique_images needs the image of every row at once"):
        UniqueImageSampler(image_ids_of(open_stream(shards)), 8)
