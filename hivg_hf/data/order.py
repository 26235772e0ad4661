"""The order of training rows: a pure function of (seed, epoch), carried by the keys that a sampler hands out.

A row is asked for by the key `(epoch, index)`. The key reaches the worker process that loads the row, so whatever is
random about the row (its augmentation) is a function of (seed, epoch, index) too. Workers, prefetching and restarts
have no state that could be lost, which is what makes a resumed run equal to one that was never stopped.
"""

from collections.abc import Callable, Iterator, Sequence, Sized
from typing import Any, TypeAlias

import numpy as np
from torch.utils.data import Dataset, Sampler

RowKey: TypeAlias = tuple[int, int]

# Keeps the stream of the order apart from every other stream that is seeded with the same (seed, epoch).
ORDER_STREAM = 1


def epoch_order(length: int, seed: int, epoch: int) -> np.ndarray:
    """The permutation (length,) int64 in which one epoch visits its rows; the same on every machine."""
    return np.random.default_rng([seed, epoch, ORDER_STREAM]).permutation(length)


class EpochSampler(Sampler[RowKey]):
    """Yield the keys `(epoch, index)` of one epoch, in an order that only (seed, epoch) decide.

    Args:
        length: the number of rows, or anything with a length, for example the dataset.
        seed: the seed of the run.
        shuffle: False yields the rows in their own order.
        epoch: the epoch to begin with; `set_epoch` changes it between epochs.
    """

    def __init__(self, length: int | Sized, seed: int = 0, shuffle: bool = True, epoch: int = 0) -> None:
        self.length = length if isinstance(length, int) else len(length)
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration yields."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[RowKey]:
        epoch = self.epoch
        order = epoch_order(self.length, self.seed, epoch) if self.shuffle else np.arange(self.length)
        return ((epoch, int(index)) for index in order)

    def __len__(self) -> int:
        return self.length


class UniqueImageSampler(EpochSampler):
    """An `EpochSampler` whose batches have no image twice, for the contrastive loss.

    Two expressions of one image in a batch are no negatives of each other. Cut the keys into consecutive batches of
    `batch_size`: every full batch holds distinct images, as long as no image has more rows than there are batches.
    Rows beyond that come last, behind the rows that fill no whole batch.

    Args:
        image_ids: the image of each row, for example the `image_id` column; or a function from the epoch to them, for
            a mixture (see `image_ids_of`).
        batch_size: the global batch: rows per optimizer step over all processes.
        seed, epoch: as in `EpochSampler`.
    """

    def __init__(
        self, image_ids: Sequence[Any] | Callable[[int], Sequence[Any]], batch_size: int, seed: int = 0, epoch: int = 0
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        # Numbers at once: the names of a large dataset need not be sorted again in every epoch.
        self.image_ids = image_ids if callable(image_ids) else _codes(image_ids)
        self.batch_size = batch_size
        super().__init__(len(self._image_codes(epoch)), seed=seed, epoch=epoch)

    def _image_codes(self, epoch: int) -> np.ndarray:
        """A whole number for the image of each row (N,)."""
        return _codes(self.image_ids(epoch)) if callable(self.image_ids) else self.image_ids

    def __iter__(self) -> Iterator[RowKey]:
        epoch = self.epoch
        image_codes = self._image_codes(epoch)
        return ((epoch, int(index)) for index in unique_image_order(image_codes, self.batch_size, self.seed, epoch))


def _codes(values: Sequence[Any]) -> np.ndarray:
    """Equal values to equal whole numbers from 0 (N,)."""
    return np.unique(np.asarray(values), return_inverse=True)[1].reshape(-1)


def unique_image_order(image_codes: np.ndarray, batch_size: int, seed: int, epoch: int) -> np.ndarray:
    """An epoch's permutation of rows (N,) whose consecutive batches hold each image at most once.

    Rows are grouped by image, the images in random order, and dealt like cards to the batches: rows of one image go
    to neighboring batches, never to the same one. Batches, and rows in a batch, are shuffled afterwards.

    Args:
        image_codes: integer code of each row's image (N,).
        batch_size: rows per batch.
    """
    rng = np.random.default_rng([seed, epoch, ORDER_STREAM])
    order = rng.permutation(len(image_codes))
    image_rank = rng.permutation(int(image_codes.max(initial=-1)) + 1)
    ranks = image_rank[image_codes[order]]
    by_image = np.argsort(ranks, kind="stable")
    order, ranks = order[by_image], ranks[by_image]
    occurrence = np.arange(len(order)) - np.searchsorted(ranks, ranks)  # 0, 1, 2, ... within each image
    batches = len(order) // batch_size
    while (fitting := int((occurrence < batches).sum())) // batch_size < batches:
        batches = fitting // batch_size  # an image with more rows than batches leaves some over
    dealt = occurrence < batches
    # What fills no whole batch: one row each of some images, so that the short last batch is free of doubles too.
    first_rows = np.flatnonzero(dealt & (occurrence == 0))
    over = rng.permutation(first_rows)[: int(dealt.sum()) - batches * batch_size]
    dealt[over] = False
    full = order[dealt].reshape(batch_size, batches).T  # row j of the deal goes to batch j mod batches
    full = rng.permuted(full[rng.permutation(batches)], axis=1)  # (batches, batch_size)
    rest = np.ones(len(order), dtype=bool)
    rest[over] = False
    return np.concatenate([full.reshape(-1), order[over], rng.permutation(order[rest & ~dealt])])


class KeyedDataset(Dataset[dict[str, Any]]):
    """Give the rows of a dataset by `(epoch, index)` keys, each row carrying `epoch` and `row_index`.

    A sampler of another kind asks by index alone; such a row carries no epoch, which the sampler did not say.

    The images of a `datasets.Dataset` stay undecoded paths or bytes: the collator opens them, strictly, and names the
    row when one is broken.

    Args:
        rows: a `datasets.Dataset` of the schema, a `GroundingMixture`, or any sequence of such rows.
    """

    def __init__(self, rows: Sequence[dict[str, Any]] | Any) -> None:
        self.rows = without_image_decoding(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: RowKey | int) -> dict[str, Any]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        row = self.rows.row_at(epoch, index) if hasattr(self.rows, "row_at") else self.rows[index]
        return {**row, "row_index": index, **({"epoch": epoch} if isinstance(key, tuple) else {})}


def image_ids_of(rows: Any) -> Any:
    """What `UniqueImageSampler` takes for a dataset: its `image_id` column, or a mixture's function of the epoch."""
    return rows.image_ids if hasattr(rows, "image_ids") else column_values(rows, "image_id")


def column_values(rows: Any, name: str) -> Any:
    """A whole column as a list. A cached dataset would otherwise fetch the picture of every row on the way.

    Of `NegativeRows`, the column of the table under them.
    """
    rows = getattr(rows, "positives", rows)
    return rows.select_columns([name])[name][:] if hasattr(rows, "select_columns") else rows[name]


def without_image_decoding(rows: Any) -> Any:
    """The same dataset with its `image` column undecoded (path and bytes); other sequences as they are."""
    import datasets

    if hasattr(rows, "row_at"):  # decodes nothing itself
        return rows
    features = getattr(rows, "features", None)
    if features is None or not isinstance(features.get("image"), datasets.Image) or not features["image"].decode:
        return rows
    return rows.cast_column("image", datasets.Image(decode=False))
