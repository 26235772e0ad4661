"""Streams: memory that does not grow with the rows, one order for any number of workers, resumed at any row."""

import json
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
from torch.utils.data import DataLoader

from hivg_hf.data import GroundingAugmentation, GroundingCollator, KeyedDataset
from hivg_hf.data.loading import load_grounding_dataset
from hivg_hf.data.schema import FEATURES

ROWS = 47


@pytest.fixture
def source(tmp_path, make_image):
    make_image(tmp_path / "a.png")
    row = {"image": "a.png", "box": [1, 2, 30, 40], "width": 64, "height": 48}
    lines = (json.dumps({**row, "expression": f"object {i}"}) for i in range(ROWS))
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines))
    return path


def _stream(source, **options):
    return load_grounding_dataset(source, "all", box_format="xyxy", streaming=True, **options)


def _seen(loader):
    return [(row["epoch"], row["row_index"]) for batch in loader for row in batch]


def test_a_stream_is_an_iterable_dataset_of_the_schema(source):
    stream = _stream(source, shuffle=False)
    assert isinstance(stream, datasets.IterableDataset)
    row = next(iter(stream))
    assert set(row) == {*FEATURES, "row_index"}
    assert (row["expression"], row["box"], row["image"]["bytes"]) == ("object 0", [1.0, 2.0, 30.0, 40.0], None)
    assert len(stream) == ROWS
    assert [
        row["expression"] for row in stream.map(lambda row: {"expression": row["expression"].upper()}).take(2)
    ] == [
        "OBJECT 0",
        "OBJECT 1",
    ]


@pytest.mark.parametrize("batch_size", [1, 5])
def test_the_order_is_the_same_with_0_1_and_2_workers(source, batch_size):
    orders = []
    for workers in (0, 1, 2):
        stream = _stream(source, seed=3, batch_size=batch_size)
        stream.set_epoch(2)
        loader = DataLoader(stream, batch_size=batch_size, num_workers=workers, collate_fn=list)
        orders.append(_seen(loader))
    assert orders[0] == orders[1] == orders[2]
    assert sorted(orders[0]) == [(2, index) for index in range(ROWS)]
    assert orders[0] != sorted(orders[0])


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("batches", [0, 1, 4, 9])
def test_resuming_in_the_middle_of_an_epoch_loses_no_row_and_repeats_none(source, workers, batches):
    def loader(stream):
        return DataLoader(stream, batch_size=5, num_workers=workers, collate_fn=list)

    unbroken = _stream(source, seed=3, batch_size=5)
    unbroken.set_epoch(0)
    whole = _seen(loader(unbroken))
    interrupted = _stream(source, seed=3, batch_size=5)
    interrupted.set_epoch(0)
    reader = iter(loader(interrupted))
    first = [next(reader) for _ in range(batches)]
    state = json.loads(json.dumps(interrupted.state_dict(rows_seen=batches * 5)))
    resumed = _stream(source, seed=3, batch_size=5)
    resumed.load_state_dict(state)
    resumed.set_epoch(0)  # what a training loop does at the start of every epoch, also of a resumed one
    assert _seen(first) + _seen(loader(resumed)) == whole


def test_without_workers_the_stream_counts_itself(source):
    stream = _stream(source, seed=1)
    whole = [row["row_index"] for row in stream]
    reader = iter(stream)
    head = [next(reader)["row_index"] for _ in range(10)]
    other = _stream(source, seed=1)
    other.load_state_dict(stream.state_dict())
    assert head + [row["row_index"] for row in other] == whole
    assert [row["row_index"] for row in other] == whole  # the iteration after the resumed one is whole again


def test_the_next_epoch_has_another_order_and_workers_that_live_on_see_it(source):
    stream = _stream(source, seed=1, batch_size=4)
    loader = DataLoader(stream, batch_size=4, num_workers=1, collate_fn=list, persistent_workers=True)
    orders = []
    for epoch in (0, 1):
        stream.set_epoch(epoch)
        orders.append(_seen(loader))
    assert sorted(orders[1]) == [(1, index) for index in range(ROWS)]
    assert [index for _, index in orders[0]] != [index for _, index in orders[1]]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loop_that_names_no_epoch_draws_another_augmentation_in_each(source, workers, tiny_processor):
    augmentation = GroundingAugmentation.for_processor(tiny_processor)
    stream = _stream(source, seed=1, batch_size=8)
    loader = DataLoader(
        stream, 8, num_workers=workers, collate_fn=GroundingCollator(tiny_processor, augmentation, masks=False)
    )
    first, second = (torch.cat([batch["pixel_values"] for batch in loader]) for _ in range(2))
    assert len(first) == len(second) == ROWS
    assert (first != second).flatten(1).any(1).float().mean() > 0.9


def test_rows_of_a_named_epoch_are_the_same_whenever_they_are_asked_for(source, tiny_processor):
    augmentation = GroundingAugmentation.for_processor(tiny_processor)
    collate = GroundingCollator(tiny_processor, augmentation, masks=False)
    stream = _stream(source, seed=1, batch_size=8)
    stream.set_epoch(3)
    row = next(iter(stream))
    keyed = KeyedDataset(stream)[3, row["row_index"]]
    assert torch.equal(collate([row])["pixel_values"], collate([keyed])["pixel_values"])


def test_a_state_of_another_seed_is_refused(source):
    state = _stream(source, seed=1).state_dict()
    with pytest.raises(ValueError, match="the state was taken with seed 1, this stream has seed 2"):
        _stream(source, seed=2).load_state_dict(state)


STREAM_ALL = """
import json, resource, sys
from pathlib import Path
from hivg_hf.data.loading import load_grounding_dataset

path = Path(sys.argv[1])
row = {"image": "a.png", "box": [1, 2, 30, 40], "width": 64, "height": 48}
for rows in map(int, sys.argv[2:]):
    with path.open("w") as file:
        for i in range(rows):
            columns = {"expression": f"the object with the number {i} in a long list", "image_id": str(i % 999)}
            file.write(json.dumps({**row, **columns}) + "\\n")
    stream = load_grounding_dataset(path, "all", box_format="xyxy", streaming=True, verify_images="no", seed=1)
    total = sum(row["row_index"] for row in stream)
    assert total == rows * (rows - 1) // 2, "a row was lost or repeated"
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def _peak_megabytes(path, *row_counts):
    """Peak resident memory of one process after streaming so many rows, and then so many."""
    command = [sys.executable, "-c", STREAM_ALL, str(path), *map(str, row_counts)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert run.returncode == 0, run.stderr
    return [int(peak) for peak in run.stdout.split()]


def test_memory_grows_by_little_with_the_rows(tmp_path):
    few, many = _peak_megabytes(tmp_path / "rows.jsonl", 1_000, 16_000)
    # 400 bytes a row (offset, position, id of its object) and what the allocator keeps; a row itself takes 2,000.
    assert many - few < 15_000 * 400 / 2**20 + 8


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_million_rows_stay_under_one_and_a_half_gigabytes(tmp_path):
    (peak,) = _peak_megabytes(tmp_path / "rows.jsonl", 1_000_000)
    assert peak < 1_500
