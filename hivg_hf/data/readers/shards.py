"""Tables in shards: tars (WebDataset), patterns of Parquet, JSON Lines or CSV files, and datasets of the Hub.

    shards/*.tar                          samples of a picture and a JSON file (or a text and a JSON file)
    shards/train-*.parquet                columns as in any other table, pictures inside or beside
    owner/name                            the files of a split, read over the network as they are needed
    hf://datasets/owner/name/en/*.parquet some of its files

Columns are those of `tabular.py`. The picture of a sample is its `image`, the keys of its JSON are columns, and its
text is the `expression`. How many rows a Parquet file holds stands at its end; tars are counted by their headers, and
tars of the Hub, which would have to be read for that, are downloaded into its cache.
"""

import os
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..splits import resolve_split
from .columns import CLASS_NAMES
from .common import Annotations, Draft, cell_text
from .shard_files import HUB, PICTURE_KEYS, ShardFiles
from .tabular import Table, own_fields

READ_AHEAD = 256  # rows that one question reads, where nobody said which come next
MOST_READERS = 128  # open files
ROWS_LOOKED_AT = 256  # for a box format that the numbers contradict
TEXT_FIELDS = ("txt", "text", "caption")


def read_shards(
    split: str,
    *,
    source: str,
    box_format: str | None = None,
    images: Any = None,
    columns: Mapping[str, str] | None = None,
    check_format: bool = True,
    decimal_comma: bool = False,
    masks: bool = True,
    config: str | None = None,
    revision: str | None = None,
) -> Annotations:
    """Read one split of a table in shards.

    Args:
        split: of a Hub dataset, as the Hub has it. Of files, what their column `split` says in every row; `all` where
            they have none.
        source: a pattern, a tar, a folder of such files, `owner/name` or `hf://datasets/...`.
        box_format: what its boxes mean, as for a file.
        images: folder or folders of the pictures where the shards do not hold them.
        columns: our name to the shards' name.
        check_format: whether to refuse a box format that the first numbers contradict.
        decimal_comma: whether numbers in text have decimal commas.
        masks: whether to keep masks.
        config: which of several configurations of a Hub dataset.
        revision: of a Hub dataset: branch, tag or commit.

    Raises:
        FileNotFoundError: nothing matches.
        ValueError: the files are of several kinds, a column is missing, or the split does not exist.
    """
    files = _open(source, split, config, revision)
    records = ShardRecords(files)
    folder = images if images is not None else files.folder or "."
    table = Table(records, Path(source), columns or {}, box_format, folder, masks, decimal_comma)
    names, is_split = table.names, files.is_local and table.names["split"] in table.header
    if files.is_local and not is_split:
        split = resolve_split(split, ["all"], f"{source} (no column {names['split']!r})")
    if names["expression"].lower() in CLASS_NAMES:
        raise ValueError(
            f"{source}: the column {names['expression']!r} names classes, and rows of one class are put together, "
            "which shards cannot be; name the column of the expressions with columns={'expression': ...}."
        )
    if check_format:
        table.refuse_contradicted(range(min(len(records), ROWS_LOOKED_AT)))
        records.hold("ahead", [])

    read = _Reader(table, split if is_split else None)
    rows = range(len(records))
    return Annotations(source, split, rows, read, records.name_record, place=records.place, shards=records)


@dataclass(frozen=True)
class _Reader:
    """From a position to a draft; picklable, unlike a function in a function.

    Args:
        table: Its rows.
        split: What the column `split` has to say in every row; None where there is none.
    """

    table: Table
    split: str | None

    def __call__(self, position: int) -> Draft:
        record = self.table.records[position]
        own_split = cell_text(record.get(self.table.names["split"]))
        if self.split is not None and own_split != self.split:
            raise ValueError(
                f"it belongs to the split {own_split!r}, not {self.split!r}; shards hold rows of one split"
            )
        draft = self.table.draft(position)
        return own_fields(draft, record) if self.table.is_own_schema else draft


def _open(source: str, split: str, config: str | None, revision: str | None) -> ShardFiles:
    """The files of a source, here or on the Hub."""
    if revision is not None:
        source = f"{source}@{revision}"
    is_pattern = source.startswith(HUB) and any(sign in source for sign in "*?[")
    if is_pattern or ShardFiles.names_files(source):
        chosen, config = None, None
    else:
        chosen = split
    files = ShardFiles(source, chosen, config)
    return files if files.is_local or files.kind == "parquet" else ShardFiles(source, chosen, config, streaming=False)


class ShardRecords(Sequence[dict[str, Any]]):
    """The rows of several files by position; files are read forward, and only rows that somebody holds are in memory.

    Args:
        files: of one table.

    Attributes:
        column_names: of all rows, as the first ones have them.
        ends: (files,) the position at which each file ends.
    """

    def __init__(self, files: ShardFiles) -> None:
        self.files = files
        counts = [files.count(file) or 0 for file in files.files]
        self.ends = np.cumsum(counts, dtype=np.int64)
        self._forget()
        self.column_names = list(files.schema.names)
        if files.kind in ("tar", "lines"):
            first = (_flat(record) for record in islice(files.records(files.files[0], 0), 100) if record)
            self.column_names = list(dict.fromkeys(name for record in first for name in record))

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, position: Any) -> Any:
        """One row as the file has it.

        Raises:
            IndexError: there are fewer rows.
            ValueError: it cannot be read.
        """
        if isinstance(position, slice):
            return [self[index] for index in range(*position.indices(len(self)))]
        if not 0 <= position < len(self):
            raise IndexError(f"row {position} is outside the table of {len(self)} rows.")
        if self._process != os.getpid():
            self._forget()  # worker processes must not share open files: their positions would be shared too
        if position not in self._rows:
            self.hold("ahead", [(position, min(position + READ_AHEAD, len(self)))])
        record = self._rows[position]
        if isinstance(record, str):
            raise ValueError(record.rstrip("."))
        return _flat(record)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_rows": {}, "_held": {}, "_readers": OrderedDict()}

    def hold(self, key: Hashable, spans: Iterable[tuple[int, int]]) -> None:
        """Read the rows of some spans of positions, in place of those that were held under the same key."""
        if self._process != os.getpid():
            self._forget()
        for position in self._held.pop(key, ()):
            self._rows.pop(position, None)
        rows: dict[int, dict[str, Any] | str] = {}
        for start, stop in spans:
            rows.update(zip(range(start, stop), self._read(start, stop), strict=True))
        self._rows.update(rows)
        self._held[key] = list(rows)

    def name_record(self, position: int, _: int) -> str:
        """How a row is named that cannot even be read."""
        return self.place(position)

    def place(self, position: int) -> str:
        """Where a row stands, for messages."""
        number = int(np.searchsorted(self.ends, position, side="right"))
        start = int(self.ends[number - 1]) if number else 0
        return f"row {position - start} of {os.path.basename(self.files.files[number])}"

    def _forget(self) -> None:
        self._rows: dict[int, dict[str, Any] | str] = {}
        self._held: dict[Hashable, list[int]] = {}
        self._readers: OrderedDict[int, Iterator[dict[str, Any] | str]] = OrderedDict()  # by the position that is next
        self._process = os.getpid()

    def _read(self, start: int, stop: int) -> Iterator[dict[str, Any] | str]:
        """The rows of consecutive positions; a reader that stands at the first of them reads on."""
        while start < stop:
            number = int(np.searchsorted(self.ends, start, side="right"))
            end = int(self.ends[number])
            file, begin = self.files.files[number], int(self.ends[number - 1]) if number else 0
            reader = self._readers.pop(start, None) or self.files.records(file, start - begin)
            rows = list(islice(reader, min(stop, end) - start))
            if len(rows) < min(stop, end) - start:
                raise RuntimeError(f"{file} changed while it was read: it holds fewer rows than before.")
            yield from rows
            start += len(rows)
            if start < end:
                self._readers[start] = reader
            while len(self._readers) > MOST_READERS:
                self._readers.popitem(last=False)


class RowsOfShards:
    """Shards whose records hold several rows each, by the positions of the rows.

    Args:
        records: the units.
        units: (rows,) the position of every row's unit, ascending.

    Attributes:
        ends: (files,) the row at which each file ends.
    """

    def __init__(self, records: ShardRecords, units: np.ndarray) -> None:
        self.records, self.units = records, units
        self.ends = np.searchsorted(units, records.ends, side="left")

    def hold(self, key: Hashable, spans: Iterable[tuple[int, int]]) -> None:
        """Read the units of some spans of rows, as `ShardRecords.hold` does."""
        self.records.hold(key, [(int(self.units[start]), int(self.units[stop - 1]) + 1) for start, stop in spans])


def _flat(record: dict[str, Any] | str) -> dict[str, Any]:
    """A sample of a tar as one row: its picture, its text and the keys of its JSON. Other rows stay as they are."""
    if isinstance(record, str) or "__key__" not in record:
        return {} if isinstance(record, str) else record
    row: dict[str, Any] = {}
    for name, value in record.items():
        if isinstance(value, dict) and value.keys() == PICTURE_KEYS:
            row.setdefault("image", value)
        elif isinstance(value, dict):
            row.update(value)
        elif name in TEXT_FIELDS:
            row.setdefault("expression", value)
        elif name != "__key__":
            row[name] = value
    return {"sent_id": record["__key__"], **row}
