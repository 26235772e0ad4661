"""What a model is measured under: one changed dataset per condition, the same for every model with the same seed."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from hivg_hf.data.collator import open_row_image

from .corruptions import CORRUPTIONS, STRENGTHS, corrupt_image, jpeg, resize_away
from .wording import PARTS, REWORDINGS

RESOLUTIONS = (0.75, 0.5, 0.35, 0.25, 0.15)  # of the picture's sides
QUALITIES = (75, 50, 30, 15, 5)  # of a JPEG file
_WHITE = 255


@dataclass(frozen=True)
class Condition:
    """One change of every row.

    Args:
        kind: `corruption`, `resolution`, `jpeg`, `wording` or `removed` (a part of the expression).
        name: Which one of the kind.
        strength: 1 to 5 for pictures; None for expressions.
        value: What the strength means, for `resolution` (share of the sides) and `jpeg` (quality).
    """

    kind: str
    name: str
    strength: int | None = None
    value: float | None = None

    @property
    def key(self) -> str:
        """A name that is unique among the conditions, such as `corruption/fog/3`."""
        return "/".join(str(part) for part in (self.kind, self.name, self.strength) if part is not None)


def all_conditions() -> list[Condition]:
    """Every condition of the report, in its order."""
    pictures = [Condition("corruption", name, strength) for name in CORRUPTIONS for strength in STRENGTHS]
    pictures += [Condition("resolution", "resolution", s, v) for s, v in zip(STRENGTHS, RESOLUTIONS, strict=True)]
    pictures += [Condition("jpeg", "quality", s, v) for s, v in zip(STRENGTHS, QUALITIES, strict=True)]
    words = [Condition("wording", name) for name in REWORDINGS] + [Condition("removed", name) for name in PARTS]
    return [*pictures, *words]


class ChangedRows:
    """The rows of a dataset under a condition; read row by row, as `predict` does.

    Attributes:
        kept: Number in the dataset of each row; an expression to which a change does not apply is left out.
    """

    def __init__(self, dataset: Any, condition: Condition, seed: int) -> None:
        self.dataset, self.condition, self.seed = dataset, condition, seed
        self.kept, self.expressions = list(range(len(dataset))), None
        if condition.kind in ("wording", "removed"):
            change = (REWORDINGS if condition.kind == "wording" else PARTS)[condition.name]
            changed = [
                change(expression, np.random.default_rng(self._seed(row)))
                for row, expression in enumerate(dataset["expression"])
            ]
            self.kept = [row for row, expression in enumerate(changed) if expression is not None]
            self.expressions = [changed[row] for row in self.kept]

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, place: int) -> dict[str, Any]:
        row = self.dataset[self.kept[place]]
        if self.expressions is not None:
            return {**row, "expression": self.expressions[place]}
        return {**row, "image": self._change(open_row_image(row), self.kept[place])}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[place] for place in range(len(self)))

    def _change(self, image: Image.Image, row: int) -> Image.Image:
        condition = self.condition
        if condition.kind == "corruption":
            return corrupt_image(image, condition.name, condition.strength, self._seed(row))
        pixels = np.asarray(image.convert("RGB"), dtype=np.float32) / _WHITE
        is_size = condition.kind == "resolution"
        changed = resize_away(pixels, condition.value) if is_size else jpeg(pixels, int(condition.value))
        return Image.fromarray((np.clip(changed, 0, 1) * _WHITE).round().astype(np.uint8))

    def _seed(self, row: int) -> tuple[int, int, int]:
        return self.seed, zlib.crc32(self.condition.key.encode()), row
