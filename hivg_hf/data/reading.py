"""Reading a source whole: every row made once, what is usable kept, what is not counted by name."""

import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from os import PathLike, fspath
from typing import Any, get_args

import datasets
import numpy as np

from hivg_hf.utils.strict_mapping import check_plain_values, refuse_other

from .readers import SOURCES, find_source
from .readers.common import Annotations
from .rows import BrokenRowsError, MultiTarget, RowBuilder, RowProblem, VerifyImages, count_kinds
from .schema import FEATURES
from .splits import Totals, UnknownSplitError, compare_totals

logger = logging.getLogger(__name__)

ROWS_PER_TABLE = 5_000
_NO_SPLIT = "(any)"  # a name that no source has: the refusal lists those that it has


@dataclass
class ReadReport:
    """What reading a split met.

    Attributes:
        totals: usable expressions, objects and images.
        problems: rows that cannot be used.
        dropped: rows with several targets that `multi_target="drop"` left out.
        differences: how the counts differ from the published ones, as sentences.
        notes: what the reader left out by the format's own rules.
    """

    source: str
    split: str
    totals: Totals
    problems: list[RowProblem] = field(default_factory=list)
    dropped: int = 0
    differences: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def open_source(
    source: str,
    split: str,
    *,
    multi_target: MultiTarget = "keep",
    verify_images: VerifyImages = "quick",
    streaming: bool = False,
    **options: Any,
) -> RowBuilder:
    """The rows of a split, not made yet.

    Args:
        source, split, multi_target, verify_images: As `load_grounding_dataset` takes them.
        streaming: Whether a dataset of the Hub is read as it is needed, and not downloaded before.
        options: Of the reader.

    Raises:
        ValueError: the source, the split, or an option is unknown.
    """
    refuse_other("multi_target", multi_target, get_args(MultiTarget))
    refuse_other("verify_images", verify_images, get_args(VerifyImages))
    reader = find_source(source, options.pop("format", None), streaming).load()
    check_options(reader, source, options)
    annotations: Annotations = reader(split, source=source, **options)
    if not len(annotations.records):
        raise ValueError(f"{source} {split} has no rows at all; are the files the right ones?")
    return RowBuilder(annotations, multi_target, verify_images)


def list_splits(source: str, **options: Any) -> list[str]:
    """The splits that a source has, without making its rows; `["all"]` of a file whose rows name none.

    Args:
        source: as `load_grounding_dataset` takes it.
        **options: of the reader.

    Raises:
        ValueError: an option is unknown or the source cannot be read.
    """
    try:
        open_source(source, _NO_SPLIT, **{**options, "verify_images": "no"})
    except UnknownSplitError as error:
        return list(error.known)
    return ["all"]


def read_rows(builder: RowBuilder, source: str) -> tuple[datasets.Dataset, ReadReport]:
    """Make every row of a split.

    Returns:
        The usable rows, and the report that says what was not usable.
    """
    count = _Counter(builder, source)
    tables = [_table(rows) for rows in chunks(count.usable(), ROWS_PER_TABLE)]
    dataset = datasets.concatenate_datasets(tables) if tables else _table([])
    return dataset, count.report()


def usable_positions(builder: RowBuilder, source: str) -> tuple[np.ndarray, ReadReport]:
    """Positions of usable rows (N,) int64; every row is made once and forgotten."""
    count = _Counter(builder, source)
    for _ in count.usable():
        pass
    return np.asarray(count.positions, dtype=np.int64), count.report()


def settle(report: ReadReport, on_error: str, total: int) -> None:
    """Log what was read, and stop or continue where rows cannot be used.

    Raises:
        BrokenRowsError: `on_error="raise"` and there are such rows.
        ValueError: no row is left.
    """
    name = f"{report.source} {report.split}"
    if report.problems and on_error == "raise":
        raise BrokenRowsError(report.source, report.split, report.problems, total)
    if not report.totals.expressions:
        raise ValueError(f"{name}: none of its {total:,} rows can be used ({count_kinds(report.problems)}).")
    totals = report.totals
    objects = "" if totals.objects is None else f" of {totals.objects:,} objects"
    logger.info("%s: %s expressions%s in %s images.", name, f"{totals.expressions:,}", objects, f"{totals.images:,}")
    if report.problems:
        logger.warning(
            "%s: left out %d of %d rows that cannot be used (%s).",
            name, len(report.problems), total, count_kinds(report.problems),
        )  # fmt: skip
    if report.dropped:
        logger.warning("%s: left out %d rows with several targets.", name, report.dropped)
    for line in (*report.differences, *report.notes):
        logger.warning("%s: %s.", name, line)


def _table(rows: list[dict[str, Any]]) -> datasets.Dataset:
    return datasets.Dataset.from_dict({name: [row[name] for row in rows] for name in FEATURES}, features=FEATURES)


class _Counter:
    """Goes through a source once and keeps count of what it meets."""

    def __init__(self, builder: RowBuilder, source: str) -> None:
        self.builder, self.source = builder, source
        self.problems: list[RowProblem] = []
        self.positions: list[int] = []
        self.dropped = 0
        self.objects: set[str] = set()
        self.images: set[str] = set()
        # Hashes, 16 bytes a row: (image, words) to the boxes that it was first seen with.
        self._boxes_of: dict[int, int] = {}
        self._repeated, self._disputed = 0, set[int]()

    def usable(self) -> Iterator[dict[str, Any]]:
        for position in range(len(self.builder)):
            row = self.builder.build(position)
            if isinstance(row, RowProblem):
                self.problems.append(row)
            elif row is None:
                self.dropped += 1
            else:
                self.positions.append(position)
                self.objects.add(row["ref_id"])
                self.images.add(row["image_id"])
                self._compare(row)
                yield row

    def _compare(self, row: Mapping[str, Any]) -> None:
        """Count a row that repeats an earlier one, or gives its expression another box."""
        words = hash((row["image_id"], " ".join(row["expression"].lower().split())))
        boxes = hash(tuple(map(tuple, row["boxes"])))
        first = self._boxes_of.get(words)
        if first is None:
            self._boxes_of[words] = boxes
        elif first == boxes:
            self._repeated += 1
        else:
            self._disputed.add(words)

    def _notes(self) -> list[str]:
        """What is odd about rows that can be used."""
        notes = []
        if self._repeated:
            notes.append(f"{self._repeated:,} rows repeat an earlier one (same image, expression and box)")
        if self._disputed:
            notes.append(
                f"{len(self._disputed):,} expressions name different boxes of one image in rows of their own; "
                "several='together' makes them targets of one row where a table is read"
            )
        return notes

    def report(self) -> ReadReport:
        annotations = self.builder.annotations
        objects = len(self.objects) if annotations.counts_objects else None
        totals = Totals(len(self.positions), objects, len(self.images))
        # Published are the totals of whole splits: rows that were left out count, though not whose object they name.
        whole = Totals(len(self.builder)) if self.problems or self.dropped else totals
        return ReadReport(
            annotations.source,
            annotations.split,
            totals,
            self.problems,
            self.dropped,
            _differences(self.source, annotations.split, whole),
            [*annotations.notes, *self._notes()],
        )


def _differences(source: str, split: str, found: Totals) -> list[str]:
    published_as = SOURCES[source].published_as if source in SOURCES else ""
    if not published_as:
        return []
    if source.startswith("jxu124/"):  # its own names of RefCOCO's splits
        split = {"validation": "val", "test": "test" if source.endswith("refcocog") else "testA"}.get(split, split)
    return compare_totals(published_as, split, found)


def check_options(reader: Callable[..., Any], source: str, options: Mapping[str, Any]) -> None:
    """Refuse options that a reader does not know, and plain ones of another type.

    Raises:
        ValueError: with what it takes.
    """
    known = [name for name in inspect.signature(reader).parameters if name not in ("split", "source")]
    unknown = [name for name in options if name not in known]
    if unknown:
        raise ValueError(f"{source} has no option {', '.join(unknown)}; it takes {', '.join(known)}.")
    check_plain_values({name: _plain(value) for name, value in options.items()}, reader, source, choices=False)


def _plain(value: Any) -> Any:
    """A path as a text and a number of numpy as Python's, which count for the same."""
    value = fspath(value) if isinstance(value, PathLike) else value
    return value.item() if isinstance(value, np.generic) else value


def chunks(rows: Iterable[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    """Lists of `size` rows, the last one shorter."""
    chunk: list[dict[str, Any]] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
