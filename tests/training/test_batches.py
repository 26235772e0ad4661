"""Batches are the same for any number of processes and micro-batches."""

import pytest

from hivg_hf.data.order import EpochSampler
from hivg_hf.training.batches import GlobalBatchSampler


def global_batches(processes, accumulation, rows=23, batch=7, epoch=2):
    """The keys of each optimizer step, gathered from all processes."""
    samplers = [
        GlobalBatchSampler(EpochSampler(rows, seed=3), batch, accumulation, rank, processes)
        for rank in range(processes)
    ]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    micro = [list(sampler) for sampler in samplers]
    assert all(len(batches) == len(sampler) for batches, sampler in zip(micro, samplers))
    steps = len(micro[0]) // accumulation
    return [
        sorted(
            key
            for batches in micro
            for part in batches[step * accumulation : (step + 1) * accumulation]
            for key in part
        )
        for step in range(steps)
    ], micro


@pytest.mark.parametrize(("processes", "accumulation"), [(1, 1), (1, 3), (2, 1), (2, 2), (3, 2), (7, 1)])
def test_optimizer_steps_see_the_same_rows_whoever_holds_them(processes, accumulation):
    one, _ = global_batches(1, 1)
    many, micro = global_batches(processes, accumulation)
    assert many == one
    assert len(one) == 3
    assert all(len(batch) == 7 for batch in many)
    sizes = {len(part) for batches in micro for part in batches}
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 1


def test_epochs_differ_in_order_and_carry_their_number():
    (first, *_), _ = global_batches(1, 1, epoch=0)
    (second, *_), _ = global_batches(1, 1, epoch=1)
    assert {epoch for epoch, _ in first} == {0}
    assert {epoch for epoch, _ in second} == {1}
    assert [index for _, index in first] != [index for _, index in second]


def test_an_epoch_without_a_whole_batch_is_refused():
    with pytest.raises(ValueError, match=r"has 5 rows, fewer than one batch of 7"):
        GlobalBatchSampler(EpochSampler(5), 7)
