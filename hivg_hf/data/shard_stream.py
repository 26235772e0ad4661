"""Rows of shards in a shuffled order that only (seed, epoch) decide, read forward, resumed at any row at once.

    an epoch      runs of `batch_size` rows, dealt to lanes:   run 0 -> lane 0, run 1 -> lane 1, ... run L -> lane 0
    a lane        a stretch of the files, in another order of files in every pass, cut into blocks
    a block       `buffer / lanes` consecutive rows of the lane (of every source its share), shuffled

What a row of the epoch is follows from its index by arithmetic: nothing has to be read again to resume, and processes
and workers may ask for any rows. One that always asks for the same lanes reads nothing but those, forward.
`IterableDataset.shuffle` of `datasets` loses its buffer when it resumes.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .mixture import divide
from .rows import RowBuilder, RowProblem
from .streaming import GroundingStream

logger = logging.getLogger(__name__)

# Keep the draws apart from every other that is seeded with the same (seed, epoch).
FILES_STREAM, BLOCK_STREAM, SHARES_STREAM = 14, 15, 16
MOST_WARNINGS = 10  # of one process, about rows that cannot be used


class ShardStream(GroundingStream):
    """A stream over one table in shards, or several in fixed shares of every epoch.

    Every row comes once in an epoch; of several tables, a table is used up before any of its rows comes again (lane by
    lane). The order depends on the seed, `batch_size`, `lanes` and `buffer`, and not on how many processes and workers
    read; where `lanes` is a multiple of batches per step times workers, none reads what another one reads.

    Args:
        builders: Make the rows of each table; their annotations have `shards`.
        weights: Relative share of each table; its number of rows unless given.
        size: Rows of an epoch; the sum of all tables unless given.
        seed: Of the order.
        shuffle: False yields the rows in their own order.
        batch_size: Rows of a run, which come from one lane: those of a batch, or of a part of it.
        lanes: How many stretches are read side by side.
        buffer: Rows that are held to be shuffled, over all lanes.
        on_error: `raise` stops at a row that cannot be used; with `skip` another row of its block comes in its place.

    Raises:
        ValueError: A number is too small, or a table is not in shards.
    """

    def __init__(
        self,
        builders: Sequence[RowBuilder],
        weights: Sequence[float] | None = None,
        size: int | None = None,
        seed: int = 0,
        shuffle: bool = True,
        batch_size: int = 8,
        lanes: int = 16,
        buffer: int = 2048,
        on_error: str = "raise",
    ) -> None:
        for name, value in (("lanes", lanes), ("buffer", buffer), ("size", 1 if size is None else size)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        counts = [len(builder) for builder in builders]
        super().__init__(builders[0], range(size or sum(counts)), seed, False, batch_size)
        self.builders, self.counts, self.on_error = list(builders), counts, on_error
        self.is_shuffled, self.lanes, self.buffer = shuffle, lanes if shuffle else 1, buffer
        shares = {str(number): float(share) for number, share in enumerate(weights or counts)}
        if min(shares.values()) <= 0:
            raise ValueError(f"weights must be positive, got {list(shares.values())}; omit the part instead.")
        self.block_rows = max(1, buffer // self.lanes)
        self.lane_ends = np.cumsum([self._lane_rows(lane) for lane in range(self.lanes)]).tolist()
        self._counts_of_lanes = self._divide_lanes(divide(len(self), shares))
        self._shares_of: dict[int, np.ndarray] = {}
        self._blocks: dict[int, tuple[tuple[int, int], list[tuple[int, int]]]] = {}
        self._warnings, self._process = 0, os.getpid()

    def row_at(self, epoch: int, index: int) -> dict[str, Any]:
        """The row that an index means in an epoch.

        Raises:
            ValueError: It cannot be used and `on_error` is `raise`, or its whole block cannot.
        """
        run, offset = divmod(index, self.batch_size)
        turn, lane = divmod(run, self.lanes)
        block, place = divmod(turn * self.batch_size + offset, self.block_rows)
        rows = self._block(epoch, lane, block)
        for step in range(len(rows)):
            source, position = rows[(place + step) % len(rows)]
            row = self.builders[source].build(position)
            if isinstance(row, RowProblem):
                self._refuse(row, source)
            elif row is not None:
                return row
        name = self.builders[rows[place][0]].annotations.source
        raise ValueError(
            f"{name}: none of {len(rows)} neighboring rows can be used; look at them with on_error=raise."
        )

    def image_ids(self, epoch: int) -> list[str]:
        """What `UniqueImageSampler` asks for.

        Raises:
            ValueError: Always: only reading every row would tell.
        """
        raise ValueError("unique_images needs the image of every row at once, which shards do not tell: omit it.")

    def state_dict(self, rows_seen: int | None = None) -> dict[str, int]:
        """As of any stream, with what else decides the order."""
        return {**super().state_dict(rows_seen), **self._layout()}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """As of any stream.

        Raises:
            ValueError: The state was taken with another seed or another layout, so that the orders differ.
        """
        for name, value in self._layout().items():
            if state_dict.get(name) != value:
                raise ValueError(
                    f"the state was taken with {name}={state_dict.get(name)}, this stream has {name}={value}; with "
                    "another order the rows that followed cannot be known."
                )
        super().load_state_dict(state_dict)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_blocks": {}}

    def _layout(self) -> dict[str, int]:
        return {"rows": len(self), "batch_size": self.batch_size, "lanes": self.lanes, "buffer": self.buffer}

    def _refuse(self, problem: RowProblem, source: int) -> None:
        sentence = f"{self.builders[source].annotations.source}: {problem}"
        if self.on_error == "raise":
            raise ValueError(f'{sentence}. Fix it, or omit such rows with on_error="skip".')
        self._warnings += 1
        if self._warnings <= MOST_WARNINGS:
            logger.warning("%s. Another row comes in its place.", sentence)

    def _lane_rows(self, lane: int) -> int:
        """Rows of an epoch that a lane gives: those of every L-th run, of which the very last may be short."""
        runs = -(-len(self) // self.batch_size)
        rows = len(range(lane, runs, self.lanes)) * self.batch_size
        return rows - (runs * self.batch_size - len(self)) * ((runs - 1) % self.lanes == lane)

    def _divide_lanes(self, totals: Mapping[str, int]) -> list[list[int]]:
        """Rows of each table in each lane of an epoch: equal shares, whose sums over the lanes are the totals."""
        given, lanes = dict.fromkeys(totals, 0), []
        for lane, end in enumerate(self.lane_ends):
            wanted = {name: max(total * end / len(self) - given[name], 1e-9) for name, total in totals.items()}
            counts = divide(self._lane_rows(lane), wanted)
            given = {name: given[name] + counts[name] for name in totals}
            lanes.append(list(counts.values()))
        return lanes

    def _block(self, epoch: int, lane: int, block: int) -> list[tuple[int, int]]:
        """(table, position) of the rows of a block, shuffled; their records are held until the lane's next block."""
        if self._process != os.getpid():  # a worker process begins with files of its own
            self._blocks, self._process = {}, os.getpid()
        if lane in self._blocks and self._blocks[lane][0] == (epoch, block):
            return self._blocks[lane][1]
        shares, rows = self._lane_shares(lane), []
        for source, builder in enumerate(self.builders):
            walked = epoch * int(shares[-1, source])
            first, last = (walked + int(shares[edge, source]) for edge in (block, block + 1))
            spans = self._spans(source, lane, first, last)
            builder.annotations.shards.hold((lane, id(self)), spans)
            rows += [(source, position) for start, stop in spans for position in range(start, stop)]
        if self.is_shuffled:
            rng = np.random.default_rng([self.seed, epoch, lane, block, BLOCK_STREAM])
            rows = [rows[place] for place in rng.permutation(len(rows))]
        self._blocks[lane] = (epoch, block), rows
        return rows

    def _lane_shares(self, lane: int) -> np.ndarray:
        """Rows of each table in the first blocks of a lane (blocks + 1, tables), the same in every epoch."""
        if lane not in self._shares_of:
            count = self._lane_rows(lane)
            edges = np.minimum(np.arange(-(-count // self.block_rows) + 1) * self.block_rows, count)
            if len(self.builders) == 1:
                self._shares_of[lane] = edges[:, None]
            else:
                labels = np.repeat(np.arange(len(self.builders)), self._counts_of_lanes[lane])
                labels = np.random.default_rng([self.seed, lane, SHARES_STREAM]).permutation(labels)  # (rows,)
                before = [np.concatenate([[0], np.cumsum(labels == source)]) for source in range(len(self.builders))]
                self._shares_of[lane] = np.stack([counted[edges] for counted in before], axis=1)
        return self._shares_of[lane]

    def _spans(self, source: int, lane: int, first: int, last: int) -> list[tuple[int, int]]:
        """Positions in a table of the rows `first` to `last` that a lane reads of it, counted over all passes."""
        count, total = self.counts[source], len(self)
        begin, end = (count * edge // total for edge in ([0, *self.lane_ends][lane], self.lane_ends[lane]))
        begin, end = (begin, end) if begin < end else (0, count)  # fewer rows than lanes: each lane reads all
        spans = []
        while first < last:
            number, offset = divmod(first, end - begin)
            rows = min(last - first, end - begin - offset)
            spans += self._file_spans(source, number, begin + offset, begin + offset + rows)
            first += rows
        return spans

    def _file_spans(self, source: int, number: int, first: int, last: int) -> list[tuple[int, int]]:
        """The same for rows of one pass, which goes through the files in an order of its own."""
        ends = self.builders[source].annotations.shards.ends
        counts = np.diff(ends, prepend=0)
        rng = np.random.default_rng([self.seed, number, source, FILES_STREAM])
        order = rng.permutation(len(ends)) if self.is_shuffled else np.arange(len(ends))
        passed = np.cumsum(counts[order])  # rows of the pass up to the end of its files
        spans = []
        for place in range(int(np.searchsorted(passed, first, side="right")), len(order)):
            if (before := int(passed[place] - counts[order[place]])) >= last:
                break
            shift = int(ends[order[place]] - passed[place])
            spans.append((shift + max(first, before), shift + min(last, int(passed[place]))))
        return [(start, stop) for start, stop in spans if start < stop]


def mix_streams(
    parts: Mapping[str, Any], weights: Mapping[str, float] | None, size: int | None, **options: Any
) -> ShardStream:
    """Streams of shards as one, each with its share of every epoch.

    Args:
        parts: `ShardStream`s by name.
        weights: Their shares; their numbers of rows unless given.
        size: Rows of an epoch; the sum of all unless given.
        options: Of `ShardStream`.

    Raises:
        ValueError: A part is not in shards.
    """
    others = [name for name, part in parts.items() if not isinstance(part, ShardStream)]
    if others:
        raise ValueError(
            f"a streamed mixture takes shards (tars, patterns of files, datasets of the Hub), and {others[0]} is read "
            "by number: give it the option format=shards, or omit streaming."
        )
    builders = [builder for part in parts.values() for builder in part.builders]
    shares = None if weights is None else [weights[name] for name in parts]
    return ShardStream(builders, shares, size, **options)
