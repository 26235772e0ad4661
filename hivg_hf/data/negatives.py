"""Expressions that name nothing, made from any table while it trains, so that its score learns to say no.

A share of the rows with a target asks for something else: the expression of another image, or its own with one word
edited. Which rows, and what they ask, is a function of (seed, epoch, row), as augmentation and order are: resuming is
exact, and workers and processes play no part.
"""

import copy
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from hivg_hf.utils.strict_mapping import build_strictly

from .order import column_values, without_image_decoding
from .word_edits import WordEdits

logger = logging.getLogger(__name__)

# Keeps the draw of negatives apart from every other stream with the same seed.
NEGATIVE_STREAM = 4
TRIES = 20  # other images that are looked at for one row
ROWS_TRIED = 64  # before training: how many of them can be given an expression that names nothing
_ARTICLES = frozenset(("the", "a", "an"))

Kind = Literal["other_image", "edited"]


@dataclass(frozen=True)
class Negatives:
    """How many rows ask for something that their picture does not show, and how it is made up.

    Args:
        share: Of the rows with a target, from 0 to 1.
        kinds: `other_image`: an expression of another image that shares its words with none of this image's own.
            `edited`: one word replaced within its group, and the result equal to no expression of this image. A row
            that one kind cannot serve takes the other; where neither can, it stays as it is.
        groups: Whose words are edited: `color`, `size`, `position`, `relation`, `category`, or a group of `words`.
            Size, position and relation usually pick one of several alike ("the left dog"), so that their edit names
            another object of the picture; they are for data where it does not.
        words: Further words by group; see `WordEdits`.
        seed: Another seed chooses other rows and words.
    """

    share: float = 0.2
    kinds: list[Kind] = field(default_factory=lambda: ["other_image", "edited"])
    groups: list[str] = field(default_factory=lambda: ["color", "category"])
    words: dict[str, list[str]] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"negatives.share is a share of the rows from 0 to 1, got {self.share}.")
        if self.seed < 0:
            raise ValueError(f"negatives.seed must be 0 or more, got {self.seed}.")
        if not self.kinds:
            raise ValueError("negatives.kinds is empty: name other_image or edited, or omit negatives.")
        for name, texts in self.words.items():
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                raise ValueError(f"negatives.words.{name} must be a list of texts, got {texts!r}.")
        WordEdits(self.groups, self.words)

    @classmethod
    def read(cls, content: Any, where: str = "negatives") -> "Negatives":
        """Of a mapping as a recipe holds it, or as it is.

        Raises:
            ValueError: A key is not known, or a value is of the wrong type or out of range.
        """
        return content if isinstance(content, cls) else build_strictly(cls, content, where)

    def __str__(self) -> str:
        return f"{self.share:.0%} with an expression that names nothing ({', '.join(self.kinds)})"


class NegativeMaker(Protocol):
    """Gives a row an expression that names nothing in its picture, or None where it finds none."""

    def edited(self, index: int, rng: np.random.Generator) -> str | None:
        """The row's own expression with one word replaced."""
        ...

    def other_image(self, index: int, rng: np.random.Generator) -> str | None:
        """An expression of another image."""
        ...


class NegativeRows:
    """Rows of a table, some of which ask, in each epoch anew, for what their picture does not show.

    Such a row has another `expression`, no `box`, no `boxes`, no `mask` and no `category`, and says `no_target`.

    Args:
        positives: a `datasets.Dataset` of the schema.
        options: a `Negatives`, or the mapping of a recipe.
        maker: makes the expressions; by default from the table's own, which knows no more of a picture than what its
            rows say.

    Raises:
        ValueError: an option is wrong, or no row can be given an expression that names nothing.
    """

    def __init__(
        self, positives: Any, options: Negatives | Mapping[str, Any], maker: NegativeMaker | None = None
    ) -> None:
        self.options = Negatives.read(options)
        self.positives = without_image_decoding(positives)
        self.maker = maker or TableNegatives(
            column_values(self.positives, "expression"),
            column_values(self.positives, "image_id"),
            column_values(self.positives, "category"),
            self.options,
        )
        self._may_change = ~np.asarray(column_values(self.positives, "no_target"), dtype=bool)
        self._numbers = np.arange(len(self.positives))  # of the rows in the table that `maker` knows
        self._check_that_some_can_be_made()

    def __len__(self) -> int:
        return len(self.positives)

    def __getitem__(self, index: int | str) -> Any:
        """The row of an index in the first epoch, or a whole column."""
        return column_values(self.table(), index) if isinstance(index, str) else self.row_at(0, index)

    def row_at(self, epoch: int, index: int) -> dict[str, Any]:
        """The row of an index in an epoch."""
        row, expression = self.positives[index], self.negative_at(epoch, index)
        return row if expression is None else {**row, **_asking(expression, row)}

    def negative_at(self, epoch: int, index: int) -> str | None:
        """What a row asks in an epoch in place of its own expression; None where it keeps that."""
        number = int(self._numbers[index])
        rng = np.random.default_rng([self.options.seed, epoch, number, NEGATIVE_STREAM])
        is_chosen = rng.random() < self.options.share
        return self._make(number, rng) if is_chosen and self._may_change[number] else None

    def select(self, indices: Sequence[int]) -> "NegativeRows":
        """Some of the rows; each asks in every epoch what it asks here."""
        chosen = copy.copy(self)
        chosen.positives, chosen._numbers = self.positives.select(indices), self._numbers[list(indices)]
        return chosen

    def image_ids(self, epoch: int) -> list[str]:
        """The image of every index, for `UniqueImageSampler`; the same in every epoch."""
        return column_values(self.positives, "image_id")

    def table(self, epoch: int = 0) -> Any:
        """The rows of one epoch as a `datasets.Dataset`, for evaluation.

        Raises:
            ValueError: they are those of a prepared cache, whose pictures are attached row by row.
        """
        from datasets import Dataset, Features, Image, concatenate_datasets

        if self.positives.format["type"] == "custom":
            raise ValueError("negatives of a prepared cache train, and cannot be evaluated: read the source itself.")
        names = list(_asking("", {"ref_id": "", "sent_id": ""}))
        columns = [column_values(self.positives, name) for name in names]
        plain = [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]
        for index in range(len(self)):
            if (expression := self.negative_at(epoch, index)) is not None:
                plain[index] = _asking(expression, plain[index])
        features = self.positives.features
        changed = Dataset.from_list(plain, features=Features({name: features[name] for name in names}))
        kept = self.positives.remove_columns(names)
        whole = concatenate_datasets([kept, changed], axis=1).select_columns(list(features))
        return whole.cast_column("image", Image()) if isinstance(features.get("image"), Image) else whole

    def _make(self, index: int, rng: np.random.Generator) -> str | None:
        return make_negative(self.maker, self.options, index, rng)

    def _check_that_some_can_be_made(self) -> None:
        served = served_share(self.maker, self.options, np.flatnonzero(self._may_change))
        if not served and self.options.share > 0:
            raise ValueError(
                "negatives: no row can be given an expression that names nothing by the kinds "
                f"{', '.join(self.options.kinds)}: name more kinds or groups, add words, or omit negatives."
            )
        logger.info(
            "negatives: about %.0f %% of the rows with a target ask for what is not there.",
            100 * self.options.share * served,
        )


def make_negative(maker: NegativeMaker, options: Negatives, index: int, rng: np.random.Generator) -> str | None:
    """An expression that names nothing in a row's picture, of the kinds in random order; None where none is found."""
    makers: list[Callable[..., str | None]] = [getattr(maker, kind) for kind in options.kinds]
    for number in rng.permutation(len(makers)):
        if (expression := makers[number](index, rng)) is not None:
            return expression
    return None


def served_share(maker: NegativeMaker, options: Negatives, rows: np.ndarray) -> float:
    """The share of rows (N,) that can be given an expression that names nothing, of `ROWS_TRIED` among them."""
    tried = rows[np.linspace(0, len(rows) - 1, min(ROWS_TRIED, len(rows))).astype(int)]
    rngs = [np.random.default_rng([options.seed, int(index), NEGATIVE_STREAM]) for index in tried]
    made = [make_negative(maker, options, int(index), rng) for index, rng in zip(tried, rngs, strict=True)]
    return sum(text is not None for text in made) / max(len(made), 1)


class TableNegatives:
    """Expressions that name nothing as far as a table's own rows tell.

    Args:
        expressions, image_ids, categories: a value for each row; no category is None.
        options: whose words are edited.
    """

    def __init__(
        self,
        expressions: Sequence[str],
        image_ids: Sequence[str],
        categories: Sequence[str | None],
        options: Negatives,
    ) -> None:
        self._expressions, self._categories = list(expressions), list(categories)
        images = list(image_ids)
        self._images = np.unique(np.asarray(images, dtype=str), return_inverse=True)[1].reshape(-1)  # (N,)
        self._order = np.argsort(self._images, kind="stable")
        self._starts = np.searchsorted(self._images[self._order], np.arange(self._images.max(initial=-1) + 2))
        self._tells_categories = len({*self._categories} - {None}) > 1
        self._edits = WordEdits(options.groups, options.words)

    def edited(self, index: int, rng: np.random.Generator) -> str | None:
        """One word replaced; refused where an expression of the image says as much, or more."""
        own = self._own_words(index)
        for text in self._edits.edits(self._expressions[index], rng):
            if not any(content_words(text) <= words for words in own):
                return text
        return None

    def other_image(self, index: int, rng: np.random.Generator) -> str | None:
        """An expression that is not part of one of the image's own, nor the other way round, of another category."""
        own = self._own_words(index)
        here = {self._categories[row] for row in self._rows_of_image(index)} - {None}
        for other in rng.integers(len(self._expressions), size=TRIES):
            words = content_words(self._expressions[other])
            is_alike = any(words <= mine or mine <= words for mine in own)
            if self._tells_categories and self._categories[other] in here:
                is_alike = True
            if self._images[other] != self._images[index] and not is_alike:
                return self._expressions[other]
        return None

    def _rows_of_image(self, index: int) -> np.ndarray:
        image = self._images[index]
        return self._order[self._starts[image] : self._starts[image + 1]]

    def _own_words(self, index: int) -> list[frozenset[str]]:
        return [content_words(self._expressions[row]) for row in self._rows_of_image(index)]


def content_words(expression: str) -> frozenset[str]:
    """Lower-case words of an expression without articles."""
    return frozenset(re.findall(r"\w+", expression.lower())) - _ARTICLES


def _asking(expression: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a row that asks for something that is not there."""
    return {
        "expression": expression,
        "box": None,
        "boxes": [],
        "no_target": True,
        "mask": None,
        "category": None,
        "ref_id": f"{row['ref_id']}-none",
        "sent_id": f"{row['sent_id']}-none",
    }
