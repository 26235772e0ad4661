"""Rows made one at a time, in an order that only (seed, epoch) decide, resumed at any row.

`IterableDataset.shuffle` of `datasets` keeps a buffer that its state dict loses. Here nothing is buffered: an epoch is
a permutation of positions, and a state is three numbers. Workers deal the batches of that one order among them, so
that a DataLoader gives the same batches with any number of workers.
"""

from collections.abc import Iterator
from typing import Any

import datasets
import numpy as np
import torch
from torch.utils.data import get_worker_info

from .order import epoch_order
from .rows import RowBuilder, RowProblem
from .schema import FEATURES


class GroundingStream(datasets.IterableDataset):
    """A stream of schema rows; images are not decoded, and memory holds one row at a time.

    Call `set_epoch` before each epoch, as transformers' Trainer does: it decides the order, and rows then carry
    `epoch` beside `row_index`, as those of `KeyedDataset` do. A loop that never calls it sees the first epoch's order
    again and again, in rows without an epoch, which `GroundingCollator` augments differently each time.

    Args:
        builder: makes the row at a position.
        positions: the positions (N,) that hold usable rows.
        seed: seed of the order.
        shuffle: False yields the rows in their own order.
        batch_size: rows per batch of the DataLoader that will read the stream; with several workers it decides which
            worker makes which row, and the order is the same for any number of workers when it is right.
    """

    def __init__(
        self,
        builder: RowBuilder,
        positions: np.ndarray | range,
        seed: int = 0,
        shuffle: bool = True,
        batch_size: int = 1,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        source = datasets.IterableDataset.from_generator(self._rows_from_start, features=FEATURES)
        super().__init__(ex_iterable=source._ex_iterable, info=source.info)
        self.builder = builder
        self.positions = positions
        self.seed = seed
        self.shuffle_rows = shuffle
        self.batch_size = batch_size
        # Shared, so that workers that outlive an epoch see the next one: [epoch, first row, rows yielded, was an epoch
        # named].
        self._place = torch.zeros(4, dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self.positions)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; its rows come from the first one, unless a loaded state belongs to this epoch."""
        self._place[3] = 1
        if epoch != int(self._place[0]):
            self._place[:3] = torch.tensor([epoch, 0, 0])

    def state_dict(self, rows_seen: int | None = None) -> dict[str, int]:
        """Where the stream stands.

        Args:
            rows_seen: rows of this epoch that were used. Needed with DataLoader workers, which read ahead of what was
                used; without workers the stream counts itself.
        """
        return {
            "seed": self.seed,
            "epoch": int(self._place[0]),
            "position": int(self._place[2]) if rows_seen is None else rows_seen,
        }

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Resume where a state was taken: the next iteration yields the rows that followed.

        Raises:
            ValueError: the state was taken with another seed, so that the orders differ.
        """
        if state_dict["seed"] != self.seed:
            raise ValueError(
                f"the state was taken with seed {state_dict['seed']}, this stream has seed {self.seed}; "
                "with another order the rows that followed cannot be known."
            )
        position = state_dict["position"]
        self._place[:] = torch.tensor([state_dict["epoch"], position, position, 1])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        epoch, first = int(self._place[0]), int(self._place[1])
        rows = epoch_order(len(self), self.seed, epoch) if self.shuffle_rows else range(len(self))
        worker = get_worker_info()
        for offset in self._dealt(len(rows) - first, worker):
            index = int(rows[first + offset])
            if worker is None:
                self._place[2] = first + offset + 1
            yield {**self.row_at(epoch, index), **({"epoch": epoch} if self._place[3] else {}), "row_index": index}
        if worker is None:
            self._place[1:3] = 0  # the next iteration begins the epoch anew

    def _dealt(self, count: int, worker: Any) -> Iterator[int]:
        """Offsets that this process yields: all of them, or every W-th batch in worker w of W."""
        if worker is None:
            yield from range(count)
            return
        for start in range(worker.id * self.batch_size, count, worker.num_workers * self.batch_size):
            yield from range(start, min(start + self.batch_size, count))

    def row_at(self, epoch: int, index: int) -> dict[str, Any]:
        """The row at an index, the same in every epoch; with it `KeyedDataset` and HiVGTrainer read in any order."""
        row = self.builder.build(int(self.positions[index]))
        if row is None or isinstance(row, RowProblem):
            raise ValueError(f"{self.builder.annotations.source} changed while it was read: {row}.")
        return row

    def _rows_from_start(self) -> Iterator[dict[str, Any]]:
        """What `map`, `filter` and `take` see: the first epoch, without the keys of a row."""
        rows = epoch_order(len(self), self.seed, 0) if self.shuffle_rows else range(len(self))
        return (self.row_at(0, int(index)) for index in rows)
