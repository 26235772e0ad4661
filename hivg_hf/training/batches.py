"""From an order of rows to the batches of one process: the same global batches whatever the number of processes.

    order of an epoch     k0 k1 k2 k3 k4 k5 k6 k7 | k8 ...           one global batch per optimizer step
    2 processes, 2 pieces [k0 k1] [k2 k3] [k4 k5] [k6 k7]
                          rank 0  rank 1  rank 0  rank 1
                          `--- micro 0 -' `--- micro 1 -'

Pieces differ by at most one sample when they cannot be equal; the trainer then weights their losses by their size.
Rows at the end of an epoch that fill no whole global batch are left out of that epoch (its order changes with the
epoch), as the official code does (drop_last in hivg_train.py).
"""

from __future__ import annotations

from collections.abc import Iterator

from torch.utils.data import DataLoader, Sampler

from hivg_hf.data import EpochSampler
from hivg_hf.data.order import RowKey


class GlobalBatchSampler(Sampler[list[RowKey]]):
    """Yield this process's micro-batches of row keys.

    Args:
        order: Keys of an epoch.
        global_batch_size: Samples per optimizer step over all processes.
        accumulation: Micro-batches per optimizer step and process.
        rank, processes: Of this process.

    Raises:
        ValueError: If an epoch has no whole global batch.
    """

    def __init__(
        self, order: EpochSampler, global_batch_size: int, accumulation: int = 1, rank: int = 0, processes: int = 1
    ) -> None:
        if len(order) < global_batch_size:
            raise ValueError(
                f"The training data has {len(order)} rows, fewer than one batch of {global_batch_size}: lower the "
                "batch size."
            )
        self.order, self.global_batch_size, self.accumulation = order, global_batch_size, accumulation
        self.rank, self.processes = rank, processes
        self.steps = len(order) // global_batch_size

    @property
    def batch_size(self) -> int:
        """The largest micro-batch."""
        return -(-self.global_batch_size // (self.accumulation * self.processes))

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration yields."""
        self.order.set_epoch(epoch)

    def __len__(self) -> int:
        return self.steps * self.accumulation

    def __iter__(self) -> Iterator[list[RowKey]]:
        keys = iter(self.order)
        pieces = self.processes * self.accumulation
        for _ in range(self.steps):
            batch = [next(keys) for _ in range(self.global_batch_size)]
            for piece in range(self.rank, pieces, self.processes):
                start, stop = (self.global_batch_size * edge // pieces for edge in (piece, piece + 1))
                yield batch[start:stop]


class EpochDataLoader(DataLoader):
    """A `DataLoader` whose epoch the Trainer sets, in the form that it looks for."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration yields."""
        self.batch_sampler.set_epoch(epoch)
