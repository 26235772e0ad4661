"""Several datasets as one, each with its share of every epoch, as a function of (seed, epoch, index)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .order import column_values, without_image_decoding

# Keeps the order inside the parts apart from the order of the epoch.
MIXTURE_STREAM = 3


class GroundingMixture:
    """Rows of several datasets in fixed shares.

    A part is used up before any of its rows comes again: over the epochs it is walked through pass by pass, each pass
    in another order. Which row an index means is a function of (seed, epoch, index), so that a resumed run
    continues with the same rows.

    Args:
        parts: datasets of the schema, by name.
        weights: relative share of each part in an epoch; defaults to its own length.
        size: rows per epoch; defaults to the sum of all lengths.
        seed: seed of the passes.
    """

    def __init__(
        self,
        parts: Mapping[str, Any],
        weights: Mapping[str, float] | None = None,
        size: int | None = None,
        seed: int = 0,
    ) -> None:
        if not parts:
            raise ValueError("a mixture needs at least one dataset.")
        unknown = set(weights or {}) - set(parts)
        if unknown:
            raise ValueError(f"weights name {', '.join(sorted(unknown))}; the parts are {', '.join(parts)}.")
        shares = {name: float((weights or {}).get(name, len(part))) for name, part in parts.items()}
        if min(shares.values()) <= 0:
            raise ValueError(f"weights must be positive, got {shares}; omit the part instead.")
        self.parts = {name: without_image_decoding(part) for name, part in parts.items()}
        self.counts = divide(size or sum(map(len, parts.values())), shares)
        self.seed = seed
        self._names = list(self.parts)
        self._ends = np.cumsum([self.counts[name] for name in self._names])
        self._orders: dict[tuple[int, int], np.ndarray] = {}

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The row of an index in the first epoch."""
        return self.row_at(0, index)

    def row_at(self, epoch: int, index: int) -> dict[str, Any]:
        """The row that an index means in an epoch."""
        name, row = self._locate(epoch, index)
        part = self.parts[name]
        return part.row_at(epoch, row) if hasattr(part, "row_at") else part[row]

    def image_ids(self, epoch: int) -> list[str]:
        """The image of every index in an epoch, for `UniqueImageSampler`."""
        columns = {name: column_values(part, "image_id") for name, part in self.parts.items()}
        places = (self._locate(epoch, index) for index in range(len(self)))
        return [columns[name][row] for name, row in places]

    def _locate(self, epoch: int, index: int) -> tuple[str, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is outside the mixture of {len(self)} rows.")
        place = int(np.searchsorted(self._ends, index, side="right"))
        name = self._names[place]
        drawn = epoch * self.counts[name] + index - (int(self._ends[place - 1]) if place else 0)
        number, position = divmod(drawn, len(self.parts[name]))
        return name, int(self._pass_order(place, number)[position])

    def _pass_order(self, place: int, number: int) -> np.ndarray:
        """The order (rows,) in which a part is walked through for the `number`-th time."""
        if (place, number) not in self._orders:
            if len(self._orders) > 2 * len(self._names):
                self._orders.clear()
            rng = np.random.default_rng([self.seed, place, number, MIXTURE_STREAM])
            self._orders[place, number] = rng.permutation(len(self.parts[self._names[place]]))
        return self._orders[place, number]


def mix_datasets(
    parts: Mapping[str, Any] | Sequence[Any],
    weights: Mapping[str, float] | Sequence[float] | None = None,
    size: int | None = None,
    seed: int = 0,
) -> GroundingMixture:
    """Mix datasets of the schema; a list of them is named `0`, `1`, ...

    Args:
        parts: the datasets.
        weights: their relative shares of an epoch; defaults to their lengths.
        size: rows per epoch; defaults to the sum of the lengths.
        seed: seed of the order inside the parts.
    """
    if not isinstance(parts, Mapping):
        parts = {str(number): part for number, part in enumerate(parts)}
        if weights is not None and not isinstance(weights, Mapping):
            weights = dict(zip(parts, weights, strict=True))
    if weights is not None and not isinstance(weights, Mapping):
        raise TypeError("weights of named parts must be a mapping from their names.")
    return GroundingMixture(parts, weights, size, seed)


def divide(total: int, shares: Mapping[str, float]) -> dict[str, int]:
    """Divide a number of rows by shares: whole numbers that add up to it, the largest remainders rounded up."""
    exact = {name: total * share / sum(shares.values()) for name, share in shares.items()}
    counts = {name: int(value) for name, value in exact.items()}
    left = total - sum(counts.values())
    for name in sorted(exact, key=lambda name: counts[name] - exact[name])[:left]:
        counts[name] += 1
    return counts
