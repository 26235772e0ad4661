"""`load_grounding_dataset`: any source and split to rows of the one schema, complete or with a sentence why not."""

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike, fspath
from pathlib import Path
from typing import Any, get_args

import datasets
import numpy as np

from hivg_hf.data.mixture import GroundingMixture
from hivg_hf.data.readers import SOURCES, find_source
from hivg_hf.data.readers.common import Annotations
from hivg_hf.data.rows import BrokenRowsError, MultiTarget, OnError, RowBuilder, RowProblem, VerifyImages, count_kinds
from hivg_hf.data.schema import FEATURES
from hivg_hf.data.splits import Totals, compare_totals
from hivg_hf.data.streaming import GroundingStream

logger = logging.getLogger(__name__)

ROWS_PER_TABLE = 5_000


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


def load_grounding_dataset(
    source: str | PathLike[str],
    split: str,
    *,
    streaming: bool = False,
    multi_target: MultiTarget = "keep",
    on_error: OnError = "raise",
    verify_images: VerifyImages = "quick",
    **options: Any,
) -> Any:
    """Load one split of any source as rows of the schema (`hivg_hf.data.schema.FEATURES`).

    Args:
        source: a name (`refcoco`, `unc`, `flickr30k-entities`, `refshapes`, `jxu124/refcoco`, ...; all of them in
            `hivg_hf.data.readers.SOURCES`), a file (.jsonl, .csv, .tsv, .parquet, or .json in COCO style), a folder
            written by `scripts/prepare_data.py`, or `mixture` with `parts=[{"source": ..., "weight": ...}, ...]`.
        split: exactly the split that is read. `validation` is understood for `val`; RefCOCO's `test` is its testA.
        streaming: True makes rows when they are asked for and returns a `GroundingStream`, an `IterableDataset`;
            further options are then `seed`, `shuffle` and `batch_size`.
        multi_target: for expressions with several targets. `keep` leaves `box` empty (training refuses such rows),
            `union` makes `box` the one around all, `drop` leaves the rows out. `boxes` has them all.
        on_error: `raise` stops with a list of every row that cannot be used; `skip` leaves them out and logs how many.
        verify_images: `quick` (files are there, whole, of the annotated size), `decode` (and can be decoded), `no`.
        **options: of the reader, such as `root`, `images`, `masks`, `box_format`; for `refshapes` those of
            `refshapes_dataset`.

    Returns:
        A `datasets.Dataset`, a `GroundingStream`, or a `GroundingMixture`.

    Raises:
        ValueError: the source, the split or an option is unknown, or rows cannot be used.
        FileNotFoundError: an annotation file or a folder is missing.
    """
    source = fspath(source)
    cached = source not in SOURCES and Path(source).is_dir()
    if (source == "refshapes" or cached) and (streaming or multi_target != "keep"):
        raise ValueError(
            f"{source} is read as it is: leave streaming and multi_target out"
            + (" (choose multi_target when the cache is made)." if cached else ".")
        )
    if source == "refshapes":
        from hivg_hf.data.refshapes import refshapes_dataset

        return refshapes_dataset(split, **options)
    if on_error not in get_args(OnError):
        raise ValueError(f"on_error must be one of {', '.join(get_args(OnError))}, got {on_error!r}.")
    if source == "mixture":
        shared: dict[str, Any] = {"streaming": streaming, "multi_target": multi_target, "on_error": on_error}
        return _load_mixture(split, verify_images=verify_images, **shared, **options)
    if cached:
        from hivg_hf.data.cache import load_cache

        return load_cache(source, split, **options)
    order = {key: options.pop(key) for key in ("seed", "shuffle", "batch_size") if streaming and key in options}
    builder = open_source(source, split, multi_target=multi_target, verify_images=verify_images, **options)
    if streaming:
        positions, report = _usable_positions(builder, source)
        _settle(report, on_error, len(builder))
        return GroundingStream(builder, positions, **order)
    dataset, report = read_rows(builder, source)
    _settle(report, on_error, len(builder))
    return dataset


def _load_mixture(
    split: str, parts: Sequence[Mapping[str, Any]], size: int | None = None, seed: int = 0, **shared: Any
) -> GroundingMixture:
    """The mixture of several sources; each part is a mapping of arguments of `load_grounding_dataset` and `weight`."""
    if shared.pop("streaming"):
        raise ValueError("a mixture draws rows by index and cannot be streamed; leave streaming out.")
    loaded: dict[str, Any] = {}
    weights: dict[str, float] = {}
    for number, part in enumerate(parts):
        spec = {"split": split, **shared, **part}
        name = f"{number}:{spec['source']}"
        if "weight" in spec:
            weights[name] = spec.pop("weight")
        loaded[name] = load_grounding_dataset(spec.pop("source"), spec.pop("split"), **spec)
    if weights and len(weights) < len(loaded):
        raise ValueError("give every part of the mixture a weight, or none.")
    return GroundingMixture(loaded, weights or None, size, seed)


def open_source(
    source: str,
    split: str,
    *,
    multi_target: MultiTarget = "keep",
    verify_images: VerifyImages = "quick",
    **options: Any,
) -> RowBuilder:
    """The rows of a split, not made yet.

    Raises:
        ValueError: the source, the split, or an option is unknown.
    """
    for name, value, choices in (
        ("multi_target", multi_target, get_args(MultiTarget)),
        ("verify_images", verify_images, get_args(VerifyImages)),
    ):
        if value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}.")
    reader = find_source(source).load()
    _check_options(reader, source, options)
    annotations: Annotations = reader(split, source=source, **options)
    if not len(annotations.records):
        raise ValueError(f"{source} {split} holds no rows at all; are the files the right ones?")
    return RowBuilder(annotations, multi_target, verify_images)


def refuse_several_targets(rows: Any) -> None:
    """Refuse to train on expressions with several targets for which nobody has said what their one box is.

    Args:
        rows: a dataset of the schema or a mixture.

    Raises:
        ValueError: there are such rows, read with `multi_target="keep"`; the message counts them.
    """
    if isinstance(rows, GroundingMixture):
        for part in rows.parts.values():
            refuse_several_targets(part)
        return
    columns = rows.select_columns(["box", "boxes"])
    undecided = sum(
        box is None and len(boxes) > 1 for box, boxes in zip(columns["box"], columns["boxes"], strict=True)
    )
    if undecided:
        raise ValueError(
            f"{undecided:,} of {len(rows):,} rows have several targets, where training needs one box: choose "
            "multi_target: union (the box around all) or multi_target: drop (leave them out)."
        )


def read_rows(builder: RowBuilder, source: str) -> tuple[datasets.Dataset, ReadReport]:
    """Make every row of a split.

    Returns:
        The usable rows, and the report that says what was not usable.
    """
    count = _Counter(builder, source)
    tables = [_table(rows) for rows in _chunks(count.usable(), ROWS_PER_TABLE)]
    dataset = datasets.concatenate_datasets(tables) if tables else _table([])
    return dataset, count.report()


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
                yield row

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
            list(annotations.notes),
        )


def _differences(source: str, split: str, found: Totals) -> list[str]:
    published_as = find_source(source).published_as
    if not published_as:
        return []
    if source.startswith("jxu124/"):  # its own names of RefCOCO's splits
        split = {"validation": "val", "test": "test" if source.endswith("refcocog") else "testA"}.get(split, split)
    return compare_totals(published_as, split, found)


def _usable_positions(builder: RowBuilder, source: str) -> tuple[np.ndarray, ReadReport]:
    """Positions of usable rows (N,) int64; every row is made once and forgotten."""
    count = _Counter(builder, source)
    for _ in count.usable():
        pass
    return np.asarray(count.positions, dtype=np.int64), count.report()


def _settle(report: ReadReport, on_error: str, total: int) -> None:
    """Log what was read, and stop or go on where rows cannot be used.

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


def _check_options(reader: Callable[..., Annotations], source: str, options: Mapping[str, Any]) -> None:
    known = [name for name in inspect.signature(reader).parameters if name not in ("split", "source")]
    unknown = [name for name in options if name not in known]
    if unknown:
        raise ValueError(f"{source} has no option {', '.join(unknown)}; it takes {', '.join(known)}.")


def _chunks(rows: Iterator[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    chunk: list[dict[str, Any]] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
