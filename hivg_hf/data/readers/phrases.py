"""What the formats share that say several expressions at once: a line, a task or a file of one image with its phrases.

Such a reader only turns one unit (a line of ODVG, an XML file, a Label Studio task, ...) into `Phrase`s; which rows
belong to a split, boxes that belong together, names for messages and the look at the numbers are here.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from hivg_hf.utils.strict_mapping import refuse_other

from ..division import choose_rows, embedded_name
from ..schema import shown
from .boxes import BOX_FORMATS, MOST_BOXES, Look, numbers_of, refuse_contradicted, to_pixels
from .common import (
    ROW_ERRORS,
    Annotations,
    Draft,
    ImageFinder,
    cell_text,
    segmentation_to_mask,
    whole_side,
)

Several = Literal["together", "apart"]


@dataclass
class Phrase:
    """One expression on one picture, as a format says it.

    Attributes:
        image: file name, or `{"path", "bytes"}`.
        boxes: four values each, in the format of the reader.
        width, height: of the image as annotated; None where the format does not say.
        segmentations: COCO polygons or run lengths, one for each box; [] without masks.
    """

    image: Any
    expression: Any
    boxes: list[Any]
    width: Any = None
    height: Any = None
    split: Any = None
    category: str | None = None
    no_target: bool = False
    segmentations: list[Any] = field(default_factory=list)


# A phrase that cannot be read stands as its error, and costs none of its neighbors.
Entry = Phrase | Exception
Parse = Callable[[Any, int], Sequence[Entry]]


def each(items: Iterable[Any], make: Callable[[Any], list[Phrase]]) -> list[Entry]:
    """The phrases of every item of a unit, and for an item that cannot be read, its error.

    Raises:
        ValueError: `items` is a string, whose characters would be taken for items.
    """
    if isinstance(items, str):
        raise ValueError(f"it has {shown(items, 40)} where a list of boxes is expected")
    entries: list[Entry] = []
    for item in items:
        try:
            entries += make(item)
        except ROW_ERRORS as error:
            entries.append(error)
    return entries


@dataclass
class PhraseFile:
    """A file or folder of units with phrases.

    Attributes:
        source: the name for the `source` column.
        path: for messages.
        units: anything with a length and an index.
        parse: a unit and its position to phrases; raises one of `ROW_ERRORS` where it is not what the format promises.
        place: the position of a unit to words, for messages.
        box_format: what the four values of a box mean.
        several: whether boxes of one image with the same expression are targets of one row, or rows of their own.
        sized: False where pictures may have been scaled, so that the file decides on the size.
    """

    source: str
    path: str
    units: Sequence[Any]
    parse: Parse
    place: Callable[[int], str]
    box_format: str
    images: Any
    several: Several = "together"
    sized: bool = True

    def __post_init__(self) -> None:
        refuse_other("several", self.several, get_args(Several))
        refuse_other("box_format", self.box_format, BOX_FORMATS)
        self.find = ImageFinder(self.images)
        self._last: tuple[int, list[Entry]] = (-1, [])

    def annotations(self, split: str, holdout: float | None = None, check: bool = True) -> Annotations:
        """The rows of one split; a unit that cannot be read is a row of every split, so that none loses it.

        Raises:
            ValueError: the split does not exist, or the numbers contradict the box format.
        """
        keys, splits, empty = self._index()
        keys_of = np.asarray(keys, dtype=np.int64).reshape(-1, 2)
        positions, split = choose_rows(splits, lambda: self._pictures(keys_of), split, holdout, self.path, self.find)
        chosen: Any = keys_of[positions]
        has_splits = any(splits)
        if check:
            refuse_contradicted(self._looks(chosen), self.box_format, self.path)
        notes = [f"{empty:,} entries without expressions give no rows"] if empty else []

        def read(key: Sequence[int]) -> Draft:
            phrase = self._phrase(key)
            if has_splits and not cell_text(phrase.split):
                raise ValueError("it names no split, while others do")
            return self._draft(phrase, f"{int(key[0])}:{int(key[1])}")

        def name(key: Sequence[int], _: int) -> str:
            return self.place(int(key[0])) + (f", expression {int(key[1])}" if key[1] >= 0 else "")

        return Annotations(
            self.source, split, chosen, read, name, notes=notes, place=lambda key: self.place(int(key[0]))
        )

    def looks(self) -> list[Look]:
        """Boxes all over the file with the sizes of their images."""
        return list(self._looks(np.asarray(self._index()[0], dtype=np.int64).reshape(-1, 2)))

    def _index(self) -> tuple[list[tuple[int, int]], list[str | None], int]:
        """(unit, phrase) and split of every phrase, (unit, -1) for a unit that cannot be read; units without any."""
        keys: list[tuple[int, int]] = []
        splits: list[str | None] = []
        empty = 0
        for position in range(len(self.units)):
            try:
                phrases = self._phrases(position)
            except ROW_ERRORS:
                keys.append((position, -1))
                splits.append(None)
                continue
            empty += not phrases
            keys += [(position, number) for number in range(len(phrases))]
            splits += [None if isinstance(phrase, Exception) else cell_text(phrase.split) for phrase in phrases]
        return keys, splits, empty

    def _phrase(self, key: Sequence[int]) -> Phrase:
        """One phrase.

        Raises:
            ValueError: it cannot be read, or another of `ROW_ERRORS`.
        """
        entry = self._phrases(int(key[0]))[int(key[1])]
        if isinstance(entry, Exception):
            raise entry
        return entry

    def _phrases(self, position: int) -> list[Entry]:
        """The phrases of a unit; those of the last one are kept, since rows are mostly read in order."""
        if self._last[0] != position:
            phrases = self.parse(self.units[position], position)
            self._last = (position, _together(phrases) if self.several == "together" else _apart(phrases))
        return self._last[1]

    def _pictures(self, keys: np.ndarray) -> list[Any]:
        entries = [None if number < 0 else self._phrases(int(unit))[number] for unit, number in keys]
        return [entry.image if isinstance(entry, Phrase) else None for entry in entries]

    def _looks(self, keys: np.ndarray) -> Iterator[Look]:
        """Boxes all over the rows with the sizes of their images; what cannot be read is left out."""
        for key in keys[:: max(1, len(keys) // MOST_BOXES)]:
            try:
                phrase = self._phrase(key)
                boxes = [numbers_of(box) for box in phrase.boxes]
                width, height = self._size(phrase)
            except ROW_ERRORS:
                continue
            yield from ((box, width, height) for box in boxes)

    def _size(self, phrase: Phrase) -> tuple[int, int]:
        """Width and height of a phrase's image, from the file where the format does not say it."""
        width, height = whole_side(phrase.width, "width"), whole_side(phrase.height, "height")
        if self.sized and width is not None and height is not None:
            return width, height
        from ..image_check import image_facts
        from .common import RowError, where_it_may_be

        picture = phrase.image if isinstance(phrase.image, dict) else self.find(phrase.image)
        facts = image_facts(picture)
        if facts.problem is not None or facts.width is None or facts.height is None:
            hint = where_it_may_be(picture) if facts.kind == "missing image" and isinstance(picture, str) else ""
            raise RowError(facts.kind or "unreadable image", f"{facts.problem or 'its image has no size'}{hint}")
        return facts.width, facts.height

    def _draft(self, phrase: Phrase, row_id: str) -> Draft:
        embedded = isinstance(phrase.image, dict)
        width, height = self._size(phrase)
        return Draft(
            image=phrase.image if embedded else self.find(phrase.image),
            expression=phrase.expression,
            boxes=[to_pixels(box, self.box_format, width, height) for box in phrase.boxes],
            no_target=phrase.no_target,
            mask=segmentation_to_mask(phrase.segmentations, height, width) if phrase.segmentations else None,
            width=width,
            height=height,
            category=phrase.category,
            image_id=embedded_name(phrase.image) if embedded else self.find.picture_name(phrase.image),
            ref_id=row_id,
            sent_id=row_id,
        )


def _together(entries: Sequence[Entry]) -> list[Entry]:
    """Phrases with the same words on the same image become one with all their boxes, in the place of the first."""
    merged: dict[Any, Any] = {}
    for number, phrase in enumerate(entries):
        if isinstance(phrase, Exception):
            merged[number] = phrase
            continue
        words = phrase.expression if isinstance(phrase.expression, str) and phrase.expression.strip() else number
        image = phrase.image if isinstance(phrase.image, str) else id(phrase.image)
        first = merged.setdefault((image, words, phrase.no_target), phrase)
        if first is not phrase:
            masked = len(first.segmentations) == len(first.boxes) and len(phrase.segmentations) == len(phrase.boxes)
            first.segmentations = [*first.segmentations, *phrase.segmentations] if masked else []
            first.boxes = [*first.boxes, *phrase.boxes]
            first.category = first.category if first.category == phrase.category else None
    return list(merged.values())


def _apart(entries: Sequence[Entry]) -> list[Entry]:
    """A phrase for every box."""
    split: list[Entry] = []
    for phrase in entries:
        if isinstance(phrase, Exception):
            split.append(phrase)
            continue
        masks = phrase.segmentations if len(phrase.segmentations) == len(phrase.boxes) else [None] * len(phrase.boxes)
        split += [
            Phrase(**{**phrase.__dict__, "boxes": [box], "segmentations": [mask] if mask else []})
            for box, mask in zip(phrase.boxes, masks, strict=True)
        ] or [phrase]
    return split
