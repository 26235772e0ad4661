"""The order of rows: a function of (seed, epoch) alone, whatever the workers."""

import numpy as np
import pytest
from torch.utils.data import DataLoader

from hivg_hf.data.order import EpochSampler, KeyedDataset, UniqueImageSampler


def test_an_epoch_visits_every_row_once_and_repeats_for_the_same_seed_and_epoch():
    first = list(EpochSampler(50, seed=3, epoch=2))
    assert sorted(first) == [(2, index) for index in range(50)]
    assert list(EpochSampler(50, seed=3, epoch=2)) == first


@pytest.mark.parametrize(("seed", "epoch"), [(4, 2), (3, 1)])
def test_another_seed_or_epoch_gives_another_order(seed, epoch):
    def order(seed, epoch):
        return [index for _, index in EpochSampler(50, seed=seed, epoch=epoch)]

    assert order(seed, epoch) != order(3, 2)


def test_set_epoch_changes_the_next_iteration_not_a_running_one():
    sampler = EpochSampler(5, shuffle=False)
    running = iter(sampler)
    sampler.set_epoch(7)
    assert list(running) == [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4)]
    assert list(sampler) == [(7, 0), (7, 1), (7, 2), (7, 3), (7, 4)]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_rows_carry_their_key_through_any_number_of_workers(workers):
    rows = [{"expression": f"object {index}"} for index in range(8)]
    loader = DataLoader(
        KeyedDataset(rows),
        sampler=EpochSampler(8, shuffle=False, epoch=5),
        batch_size=3,
        num_workers=workers,
        collate_fn=list,
    )
    seen = [(row["epoch"], row["row_index"], row["expression"]) for batch in loader for row in batch]
    assert seen == [(5, index, f"object {index}") for index in range(8)]


def _batches(sampler, image_ids, batch_size):
    indices = [index for _, index in sampler]
    assert sorted(indices) == list(range(len(image_ids)))
    return [[image_ids[index] for index in indices[i : i + batch_size]] for i in range(0, len(indices), batch_size)]


@pytest.mark.parametrize(("rows", "images", "batch_size"), [(100, 40, 8), (97, 60, 10), (64, 64, 64), (30, 9, 4)])
def test_no_batch_holds_an_image_twice(rows, images, batch_size):
    image_ids = [f"image {i % images}" for i in range(rows)]
    for epoch in range(3):
        batches = _batches(UniqueImageSampler(image_ids, batch_size, seed=1, epoch=epoch), image_ids, batch_size)
        assert all(len(set(batch)) == len(batch) for batch in batches)


def test_an_image_with_more_rows_than_batches_leaves_its_surplus_for_the_end():
    image_ids = ["crowded"] * 10 + [f"image {i}" for i in range(12)]
    batches = _batches(UniqueImageSampler(image_ids, batch_size=4, seed=0), image_ids, 4)
    assert batches[-1].count("crowded") > 1
    clean = [batch for batch in batches if len(set(batch)) == len(batch)]
    assert len(clean) >= 4  # 12 other images and one crowded row in each of four batches


def test_unique_images_come_in_another_order_every_epoch():
    image_ids = np.arange(40) // 2
    orders = [[index for _, index in UniqueImageSampler(image_ids, 5, seed=0, epoch=epoch)] for epoch in (0, 1)]
    assert orders[0] != orders[1]
    assert orders[0] == [index for _, index in UniqueImageSampler(image_ids, 5, seed=0, epoch=0)]


def test_a_batch_size_below_one_is_refused():
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        UniqueImageSampler(["a"], batch_size=0)
