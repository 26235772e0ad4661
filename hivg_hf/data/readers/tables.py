"""Tables as sequences of objects: JSONL, CSV and Parquet files.

A line of JSONL is read when it is asked for; only where the lines begin is kept in memory. CSV is held as plain cells,
since a quoted cell may run over lines.
"""

import csv
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

SUFFIXES = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")


def open_records(path: Path) -> Sequence[dict[str, Any]]:
    """The rows of a table by position; JSONL and Parquet stay on the disk."""
    if path.suffix in (".jsonl", ".ndjson"):
        return JsonLines(path)
    if path.suffix in (".csv", ".tsv"):
        return CsvRows(path)
    if path.suffix == ".parquet":
        import datasets

        return datasets.Dataset.from_parquet(str(path))
    raise ValueError(f"{path}: expected a file that ends in {', '.join(SUFFIXES)}.")


def header_of(records: Sequence[dict[str, Any]]) -> list[str]:
    """The columns of a table, gathered from its first hundred records: JSON objects may leave keys out."""
    columns: dict[str, None] = {}
    for position in range(min(len(records), 100)):
        try:
            columns.update(dict.fromkeys(records[position]))
        except ValueError:
            continue  # reported with its position when the row is read
    return list(columns)


def column_of(records: Sequence[dict[str, Any]], column: str) -> list[str | None]:
    """One column as text; None for a record that cannot be read."""
    values: list[str | None] = []
    for position in range(len(records)):
        try:
            values.append(str(value).strip() if (value := records[position].get(column)) is not None else "")
        except ValueError:
            values.append(None)
    return values


class JsonLines(Sequence[dict[str, Any]]):
    """The objects of a JSONL file by position, 8 bytes of memory for each; blank lines do not count.

    Args:
        path: the file, one JSON object a line.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._offsets = _line_offsets(self.path)
        self._file: Any = None
        self._process = 0

    def __len__(self) -> int:
        return len(self._offsets)

    @overload
    def __getitem__(self, position: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, position: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, position: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        """Read one object.

        Raises:
            IndexError: there are fewer lines.
            ValueError: the line is no JSON object; the message names it.
        """
        if isinstance(position, slice):
            return [self[index] for index in range(*position.indices(len(self)))]
        # Worker processes must not share a file handle: its position would be shared too.
        if self._file is None or self._process != os.getpid():
            self._file, self._process = self.path.open("rb"), os.getpid()
        self._file.seek(int(self._offsets[position]))
        line = self._file.readline()
        try:
            content = json.loads(line)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"line is not JSON ({error})") from error
        if not isinstance(content, dict):
            raise ValueError(f"line is a {type(content).__name__}, expected an object {{...}}")
        return content

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}


class CsvRows(Sequence[dict[str, Any]]):
    """The rows of a CSV or TSV file with a header line, by position.

    Args:
        path: the file; `.tsv` is divided by tabs, anything else by commas.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        path = Path(path)
        # utf-8-sig: spreadsheets put a byte-order mark before the first column's name.
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            self._header = [name.strip() for name in next(rows, [])]
            self._rows = [tuple(row) for row in rows if row]

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, position: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, position: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, position: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        """Read one row.

        Raises:
            IndexError: there are fewer rows.
            ValueError: it has more or fewer cells than the header.
        """
        if isinstance(position, slice):
            return [self[index] for index in range(*position.indices(len(self)))]
        cells = self._rows[position]
        if len(cells) != len(self._header):
            raise ValueError(f"it has {len(cells)} cells, the header has {len(self._header)}")
        return dict(zip(self._header, cells, strict=True))


def _line_offsets(path: Path) -> np.ndarray:
    """Byte offsets of the lines that are not blank (lines,) int64."""
    offsets, position = [], 0
    with path.open("rb") as file:
        for line in file:
            if line.strip():
                offsets.append(position)
            position += len(line)
    return np.asarray(offsets, dtype=np.int64)
