"""Tables as sequences of objects: JSONL, CSV and Parquet files.

A line of JSONL is read when it is asked for; only where the lines begin is kept in memory. CSV is held as plain cells,
since a quoted cell may run over lines.
"""

import csv
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from .common import cell_text

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
            values.append(cell_text(records[position].get(column)))
        except (ValueError, AttributeError):
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
        except RecursionError as error:
            raise ValueError("line is nested too deeply") from error
        except UnicodeDecodeError as error:
            raise ValueError(
                f"line is not UTF-8 text ({error.reason}, byte {error.start}); save the file as UTF-8"
            ) from error
        except ValueError as error:  # also a whole number of more digits than Python reads
            raise ValueError(f"line is not JSON ({error})") from error
        if not isinstance(content, dict):
            raise ValueError(f"line is a {type(content).__name__}, expected an object {{...}}")
        return content

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}


class CsvRows(Sequence[dict[str, Any]]):
    """The rows of a CSV or TSV file with a header line, by position.

    A row that cannot be read keeps its position, and reading resumes with the line after the one it began on: a quote
    that nobody closes would otherwise swallow the rows up to the next one.

    Args:
        path: the file; `.tsv` is divided by tabs, anything else by commas.

    Raises:
        ValueError: the header cannot be read, or names a column twice.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        path = Path(path)
        _refuse_utf_16(path)
        # utf-8-sig: spreadsheets put a byte-order mark before the first column's name. Bytes of another encoding
        # become lone surrogates, so that only their rows are refused.
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            lines = file.readlines()
        delimiter = "\t" if path.suffix == ".tsv" else ","
        rows = _csv_rows(lines, delimiter)
        header = next(rows, ())
        if isinstance(header, str):
            raise ValueError(f"{path}: its header cannot be read: {header}.")
        self._header = [name.strip() for name in header]
        twice = sorted({name for name in self._header if self._header.count(name) > 1})
        if twice:
            raise ValueError(f"{path} has the column {', '.join(map(repr, twice))} twice; rename or remove one.")
        self._rows = list(rows)

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
            ValueError: it is not CSV or not UTF-8, or has more or fewer cells than the header.
        """
        if isinstance(position, slice):
            return [self[index] for index in range(*position.indices(len(self)))]
        cells = self._rows[position]
        if isinstance(cells, str):
            raise ValueError(cells)
        if len(cells) != len(self._header):
            raise ValueError(f"it has {len(cells)} cells, the header has {len(self._header)}")
        return dict(zip(self._header, cells, strict=True))


def _refuse_utf_16(path: Path) -> None:
    """Refuse what spreadsheets call "Unicode text"; in UTF-8, no text holds a zero byte."""
    with path.open("rb") as file:
        start = file.read(4)
    if start[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in start:
        raise ValueError(f"{path} is UTF-16 or UTF-32 text, expected UTF-8; save it as CSV UTF-8.")


def _csv_rows(lines: list[str], delimiter: str) -> Iterator[tuple[str, ...] | str]:
    """The rows of a file as their cells, the header first; what is wrong with a row, as a sentence, in its place."""
    columns, line = 0, 0
    reader, start = _csv_reader(lines, line, delimiter), line
    closing: set[int] = set()  # lines that only a quote of another row makes the end of a cell
    while line < len(lines):
        try:
            cells = next(reader)
            end = start + reader.line_num
            fault = "a quote in it belongs to another row" if line in closing else _encoding_fault(cells)
            if fault is None and end - line > 1 and columns and _spans_rows(cells, columns, delimiter):
                fault = "a quoted cell holds the end of one row and the start of another; is a quote missing?"
                closing.add(end - 1)
        except csv.Error as error:
            cells, fault = [], f"it is not CSV ({error}); is a quote open, or not doubled?"
        if fault is not None:
            yield f"{fault} (line {line + 1} of the file)"
            line += 1
            reader, start = _csv_reader(lines, line, delimiter), line
            continue
        line = end
        columns = columns or len(cells)
        if cells:
            yield tuple(cells)


def _csv_reader(lines: list[str], start: int, delimiter: str) -> Any:
    """A strict reader of the lines from one on: a quote in the wrong place is an error, not text."""
    return csv.reader((lines[index] for index in range(start, len(lines))), delimiter=delimiter, strict=True)


def _encoding_fault(cells: list[str]) -> str | None:
    for cell in cells:
        if not cell.isascii() and any("\udc80" <= character <= "\udcff" for character in cell):
            return "it is not UTF-8 text; save the file as CSV UTF-8"
    return None


def _spans_rows(cells: list[str], columns: int, delimiter: str) -> bool:
    """Whether the cells of several lines are those of several rows, between two quotes that are not a pair.

    Then a cell holds the rest of one row and the start of another, or whole rows, or the cells are not as many as the
    header's.
    """
    for column, cell in enumerate(cells):
        pieces = cell.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        if len(pieces) == 1:
            continue
        rest, *between, start = (piece.count(delimiter) for piece in pieces)
        if (rest >= columns - 1 - column and start >= column) or max(between, default=0) >= columns - 1:
            return True
    return len(cells) != columns


def _line_offsets(path: Path) -> np.ndarray:
    """Byte offsets of the lines that are not blank (lines,) int64."""
    offsets, position = [], 0
    with path.open("rb") as file:
        for line in file:
            if line.strip():
                offsets.append(position)
            position += len(line)
    return np.asarray(offsets, dtype=np.int64)
