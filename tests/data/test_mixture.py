"""Mixtures: fixed shares, every row before any twice, the same rows for the same (seed, epoch, index)."""

from collections import Counter

import pytest

from hivg_hf.data.mixture import divide, mix_datasets
from hivg_hf.data.order import KeyedDataset, UniqueImageSampler, image_ids_of


class _Rows(list):
    """A list of rows with the one column access that a mixture uses."""

    def __getitem__(self, key):
        return [row[key] for row in self] if isinstance(key, str) else super().__getitem__(key)


def _rows(name, count, images=None):
    return _Rows({"expression": f"{name}{i}", "image_id": f"{name}{i % (images or count)}"} for i in range(count))


def test_without_weights_an_epoch_holds_every_row_once():
    mixture = mix_datasets({"a": _rows("a", 5), "b": _rows("b", 3)})
    for epoch in range(3):
        seen = [mixture.row_at(epoch, index)["expression"] for index in range(len(mixture))]
        assert sorted(seen) == ["a0", "a1", "a2", "a3", "a4", "b0", "b1", "b2"]


def test_weights_decide_the_shares_and_rows_are_used_up_before_they_repeat():
    mixture = mix_datasets({"big": _rows("big", 12), "small": _rows("small", 3)}, {"big": 1, "small": 1}, size=12)
    assert mixture.counts == {"big": 6, "small": 6}
    epochs = [[mixture.row_at(epoch, i)["expression"] for i in range(12)] for epoch in range(2)]
    assert [sum(name.startswith("small") for name in epoch) for epoch in epochs] == [6, 6]
    counts = Counter(epochs[0] + epochs[1])
    assert {counts[f"big{i}"] for i in range(12)} == {1}  # two epochs of six
    assert {counts[f"small{i}"] for i in range(3)} == {4}


def test_rows_are_a_function_of_seed_epoch_and_index():
    def rows(seed, epoch):
        mixture = mix_datasets([_rows("a", 20), _rows("b", 20)], seed=seed)
        return [mixture.row_at(epoch, index)["expression"] for index in (30, 2, 17)]

    assert rows(1, 3) == rows(1, 3)
    assert rows(1, 3) != rows(1, 4)
    assert rows(1, 3) != rows(2, 3)
    mixture = mix_datasets([_rows("a", 20), _rows("b", 20)], seed=1)
    assert KeyedDataset(mixture)[(3, 30)]["expression"] == rows(1, 3)[0]


def test_batches_of_a_mixture_hold_no_image_twice_in_any_epoch():
    mixture = mix_datasets({"a": _rows("a", 40, images=16), "b": _rows("b", 20, images=12)}, {"a": 1, "b": 2}, size=48)
    sampler = UniqueImageSampler(image_ids_of(mixture), batch_size=8, seed=3)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        keys = list(sampler)
        assert sorted(keys) == [(epoch, index) for index in range(48)]
        images = [mixture.row_at(*key)["image_id"] for key in keys]
        assert all(len(set(images[i : i + 8])) == 8 for i in range(0, 48, 8))


def test_shares_are_whole_numbers_that_add_up():
    assert divide(10, {"a": 1, "b": 1, "c": 1}) == {"a": 4, "b": 3, "c": 3}
    assert divide(7, {"a": 0.5, "b": 0.25, "c": 0.25}) == {"a": 3, "b": 2, "c": 2}


@pytest.mark.parametrize(
    ("weights", "message"),
    [({"c": 1.0}, "weights name c; the parts are a, b"), ({"a": 0.0}, "weights must be positive")],
)
def test_impossible_weights_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        mix_datasets({"a": _rows("a", 2), "b": _rows("b", 2)}, weights)


def test_an_index_outside_is_an_index_error():
    with pytest.raises(IndexError, match="index 2 is outside the mixture of 2 rows"):
        mix_datasets([_rows("a", 2)])[2]
