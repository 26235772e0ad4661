"""Tables as sequences of objects: JSONL, JSON arrays, CSV and Parquet files.

A line of JSONL is read when it is asked for; only where the lines begin is kept in memory. CSV is held as plain cells,
since a quoted cell may run over lines.
"""

import codecs
import csv
import io
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa

from hivg_hf.utils.safe_pickle import foreign_kind
from hivg_hf.utils.strict_mapping import parse_json

from ..schema import shown_text
from .common import cell_text

SUFFIXES = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".json")
DELIMITERS = (",", ";", "\t", "|")
_SAID_DELIMITER = re.compile(r'"?sep=([,;\t|])"?', re.IGNORECASE)


def open_records(path: Path, encoding: str | None = None) -> Sequence[dict[str, Any]]:
    """The rows of a table by position; JSONL and Parquet stay on the disk.

    Args:
        path: the file.
        encoding: of a text file, as Python names it (`cp1252`, `utf-16`). Defaults to UTF-8, or UTF-16 where the file
            begins with its byte-order mark.

    Raises:
        ValueError: the suffix or the encoding is unknown, or the file is not text in it.
    """
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".ndjson"):
        return JsonLines(path, encoding)
    if suffix in (".csv", ".tsv"):
        return CsvRows(path, encoding)
    if suffix == ".parquet":
        return _open_parquet(path)
    if suffix == ".json":
        return JsonRows(load_json_array(path))
    raise ValueError(f"{path}: expected a file that ends in {', '.join(SUFFIXES)}.")


def _open_parquet(path: Path) -> Any:
    """A Parquet file as a table of `datasets`.

    Raises:
        ValueError: it is not a whole Parquet file, or a column is of a type that `datasets` does not have.
    """
    import datasets
    import pyarrow.parquet as pq

    with whole_parquet(path):
        schema = pq.read_schema(path)
    for column in schema:
        try:
            datasets.Features.from_arrow_schema(pa.schema([column]))
        except (ValueError, NotImplementedError):
            raise ValueError(
                f"{path}: the type of its column {column.name!r}, {column.type}, is not read; remove the column, or "
                "write it as text or as a struct."
            ) from None
    return undecoded(datasets.Dataset.from_parquet(str(path)))


@contextmanager
def whole_parquet(name: str | Path) -> Iterator[None]:
    """Name the file in what pyarrow says of one that is cut off or of another kind.

    Raises:
        ValueError: it is so.
    """
    try:
        yield
    except (pa.ArrowInvalid, OSError) as error:
        if isinstance(error, OSError) and (error.errno is not None or type(error) is not OSError):
            raise  # the system's or the network's word, not pyarrow's
        words = str(error).partition(". ")[0].rstrip(".")
        raise ValueError(f"{name} is damaged, or not a Parquet file ({words}); write or download it again.") from None


def stored_splits(source: str, config: str | None = None, revision: str | None = None) -> list[str]:
    """The splits that a folder of `datasets` or a dataset on the Hub keeps apart; [] of a single saved table.

    Raises:
        ValueError: the source is neither here nor on the Hub.
    """
    import datasets

    if (Path(source) / "state.json").is_file():
        return []
    index = Path(source) / "dataset_dict.json"
    if index.is_file():
        return list(json.loads(index.read_text(encoding="utf-8"))["splits"])
    try:
        return list(datasets.get_dataset_split_names(source, config, revision=revision))
    except (OSError, ValueError) as error:  # also what datasets and huggingface_hub raise: both derive from these
        reason = " ".join(str(error).split())
        raise ValueError(
            f"File or folder not found: {source}, and as a dataset on the Hub it cannot be read: {shown_text(reason)}"
        ) from error


def open_stored(source: str, split: str | None, config: str | None = None, revision: str | None = None) -> Any:
    """One of the `stored_splits`, or the single table, with its pictures undecoded."""
    import datasets

    if (Path(source) / "state.json").is_file() or (Path(source) / "dataset_dict.json").is_file():
        saved = datasets.load_from_disk(source)
        return undecoded(saved[split] if split else saved)
    return undecoded(datasets.load_dataset(source, config, split=split, revision=revision))


def undecoded(table: Any) -> Any:
    """The same table with every column of pictures as paths and bytes."""
    import datasets

    for name, feature in table.features.items():
        if isinstance(feature, datasets.Image):
            table = table.cast_column(name, datasets.Image(decode=False))
    return table


def load_json(path: Path) -> Any:
    """The content of a JSON file in UTF-8, UTF-16 or UTF-32.

    Raises:
        ValueError: it is not JSON.
    """
    try:
        return parse_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}).") from error


def load_json_array(path: Path) -> list[Any]:
    """The elements of a JSON file that is one array.

    Raises:
        ValueError: it is not.
    """
    content = load_json(path)
    if not isinstance(content, list):
        raise ValueError(f"{path} is a {type(content).__name__}, expected an array of rows [...].")
    return content


def place_of(records: Sequence[Any], position: int, path: Path) -> str:
    """Where a row stands, as an editor counts: `line 12 of rows.csv`, or its number where a file has no lines."""
    lines = getattr(records, "lines", None)
    if lines is None:
        return f"row {position} of {path.name}"
    return f"line {int(lines[position])} of {path.name}"


def header_of(records: Sequence[dict[str, Any]]) -> list[str]:
    """The columns of a table, gathered from its first hundred records: JSON objects may leave keys out."""
    if hasattr(records, "column_names"):
        return list(records.column_names)
    columns: dict[str, None] = {}
    for position in range(min(len(records), 100)):
        try:
            columns.update(dict.fromkeys(records[position]))
        except ValueError:
            continue  # reported with its position when the row is read
    return list(columns)


def column_of(records: Any, column: str) -> list[str | None]:
    """One column as text; None for a record that cannot be read."""
    if hasattr(records, "select_columns"):  # other columns may hold pictures
        if column not in records.column_names:
            return [""] * len(records)
        return [cell_text(value) for value in records.select_columns([column])[column]]
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
        encoding: as Python names it; UTF-8 or a UTF-16 that says so itself by default.

    Attributes:
        lines: (N,) int64, the number of each object's line in the file, from 1.
    """

    def __init__(self, path: str | os.PathLike[str], encoding: str | None = None) -> None:
        self.path = Path(path)
        encoding = encoding or _marked_encoding(self.path)
        self._decoded: list[str] | None = None
        if encoding is not None:  # line ends are bytes of other characters there: such files are held in memory
            decoded = _decode(self.path, encoding, "strict").splitlines()
            self.lines = np.array([number for number, line in enumerate(decoded, 1) if line.strip()], dtype=np.int64)
            self._decoded = [decoded[number - 1] for number in self.lines]
            self._offsets = self.lines
        else:
            self._offsets, self.lines = _line_offsets(self.path)
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
            ValueError: the line is not JSON object; the message names it.
        """
        if isinstance(position, slice):
            return [self[index] for index in range(*position.indices(len(self)))]
        if self._decoded is not None:
            return _json_object(self._decoded[position])
        # Worker processes must not share a file handle: its position would be shared too.
        if self._file is None or self._process != os.getpid():
            self._file, self._process = self.path.open("rb"), os.getpid()
        self._file.seek(int(self._offsets[position]))
        return _json_object(self._file.readline())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}


class JsonRows(list[Any]):
    """The objects of a JSON array by position; one that is not an object is refused when it is asked for."""

    def __getitem__(self, position: Any) -> Any:
        content = super().__getitem__(position)
        if not isinstance(position, slice) and not isinstance(content, dict):
            raise ValueError(f"it is a {type(content).__name__}, expected an object {{...}}")
        return content


def _json_object(line: str | bytes) -> dict[str, Any]:
    try:
        content = parse_json(line)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"line is not UTF-8 text ({error.reason}, byte {error.start}); save the file as UTF-8, or say "
            "encoding='cp1252' (or whatever it is)"
        ) from error
    except ValueError as error:  # also a whole number of more digits than Python reads
        raise ValueError(f"line is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"line is a {type(content).__name__}, expected an object {{...}}")
    return content


class CsvRows(Sequence[dict[str, Any]]):
    """The rows of a CSV or TSV file with a header line, by position.

    A row that cannot be read keeps its position, and reading resumes with the line after the one it began on: a quote
    that nobody closes would otherwise swallow the rows up to the next one.

    Args:
        path: the file; divided by what divides its header: `,`, `;`, tabs or `|`.
        encoding: as Python names it; UTF-8 or a UTF-16 that says so itself by default.

    Attributes:
        column_names: those of the header.
        lines: (N,) the number of each row's first line in the file, from 1.

    Raises:
        ValueError: the header cannot be read or names a column twice, or no rows follow it.
    """

    def __init__(self, path: str | os.PathLike[str], encoding: str | None = None) -> None:
        path = Path(path)
        encoding = encoding or _marked_encoding(path)
        # Bytes that are not UTF-8 become lone surrogates, so that only their rows are refused.
        text = _decode(path, encoding or "utf-8", "strict" if encoding else "surrogateescape")
        # Spreadsheets put a byte-order mark before the first column's name.
        lines = io.StringIO(text.removeprefix("\ufeff"), newline="").readlines()
        named = _SAID_DELIMITER.fullmatch(lines[0].strip("\r\n")) if lines else None
        if named:  # Excel's own way to say what divides cells; the line stays, blank, so that lines keep their numbers
            lines[0] = "\n"
        rows = _csv_rows(lines, named[1] if named else _delimiter_of(lines[0] if lines else "", path))
        header = next(rows, (1, ()))[1]
        if isinstance(header, str):
            raise ValueError(f"{path}: its header cannot be read: {header}.")
        self.column_names = [name.strip() for name in header]
        refuse_twice(self.column_names, str(path))
        numbered = list(rows)
        if not numbered:
            if not any(header):
                raise ValueError(f"'{path}' is empty: give a table with a line of column names and rows below it.")
            names = shown_text(", ".join(header))
            raise ValueError(f"{path} has no rows: its first line, {names}, is read as the names of columns.")
        self.lines = [number for number, _ in numbered]
        self._rows = [row for _, row in numbered]

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
        if len(cells) != len(self.column_names):
            raise ValueError(f"it has {len(cells)} cells, the header has {len(self.column_names)}")
        return dict(zip(self.column_names, cells, strict=True))


def refuse_twice(column_names: Sequence[str], table: str) -> None:
    """Check that every column has a name of its own.

    Raises:
        ValueError: two columns of the table have the same name.
    """
    if twice := sorted({name for name in column_names if column_names.count(name) > 1}):
        raise ValueError(f"{table} has the column {', '.join(map(repr, twice))} twice; rename or remove one.")


def _marked_encoding(path: Path) -> str | None:
    """`utf-16` or `utf-32` where a file begins with that mark, as spreadsheets save "Unicode text"; None without one.

    Raises:
        ValueError: it is such text and lacks the mark, which would say in which order the bytes are; or no text.
    """
    if (foreign := foreign_kind(path)) not in (None, "empty"):
        raise ValueError(f"{path} is {foreign}; expected a table as text.")
    with path.open("rb") as file:
        start = file.read(4)
    if start == b"PK\x03\x04":
        raise ValueError(f"{path} is an Excel workbook or another archive: save it as CSV UTF-8, or unpack it.")
    if start in (b"\xff\xfe\0\0", b"\0\0\xfe\xff"):
        return "utf-32"
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16"
    if b"\0" in start:  # in UTF-8, no text holds a zero byte
        kind = "utf-32" if start.count(b"\0") > 2 else "utf-16"
        likely = f"{kind}-{'be' if start[0] == 0 else 'le'}"
        raise ValueError(
            f"{path} is UTF-16 or UTF-32 text without a byte-order mark, expected UTF-8; save it as UTF-8, or say "
            f"encoding={likely!r}."
        )
    return None


def _decode(path: Path, encoding: str, errors: str) -> str:
    try:
        return path.read_bytes().decode(encoding, errors)
    except LookupError as error:
        raise ValueError(f"{path}: unknown encoding {encoding!r}; expected one such as utf-8 or cp1252.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not {encoding} text ({error.reason}, byte {error.start}).") from error


def _delimiter_of(header: str, path: Path) -> str:
    """What divides the header's cells; quoted cells do not count."""
    bare = re.sub(r'"[^"]*"', "", header)
    counts = {delimiter: bare.count(delimiter) for delimiter in DELIMITERS}
    most = max(counts, key=lambda delimiter: counts[delimiter])
    return most if counts[most] else "\t" if path.suffix.lower() == ".tsv" else ","


def _csv_rows(lines: list[str], delimiter: str) -> Iterator[tuple[int, tuple[str, ...] | str]]:
    """The rows of a file by line, as their cells, the header first; what is wrong with a row, as a sentence, in its
    place.
    """
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
            yield line + 1, f"{fault} (line {line + 1} of the file)"
            line += 1
            reader, start = _csv_reader(lines, line, delimiter), line
            continue
        columns = columns or len(cells)
        if cells:
            yield line + 1, tuple(cells)
        line = end


def _csv_reader(lines: list[str], start: int, delimiter: str) -> Any:
    """A strict reader of the lines from one on: a quote in the wrong place is an error, not text."""
    return csv.reader((lines[index] for index in range(start, len(lines))), delimiter=delimiter, strict=True)


def _encoding_fault(cells: list[str]) -> str | None:
    for cell in cells:
        if not cell.isascii() and any("\udc80" <= character <= "\udcff" for character in cell):
            return "it is not UTF-8 text; save the file as CSV UTF-8, or say encoding='cp1252' (or whatever it is)"
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


def _line_offsets(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Byte offsets of the lines that are not blank (lines,) int64, and their numbers from 1 (lines,) int64."""
    offsets, numbers, position = [], [], 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            start = position
            position += len(line)
            if number == 1 and line.startswith(codecs.BOM_UTF8):
                start += len(codecs.BOM_UTF8)
                line = line[len(codecs.BOM_UTF8) :]
            if line.strip():
                offsets.append(start)
                numbers.append(number)
    return np.asarray(offsets, dtype=np.int64), np.asarray(numbers, dtype=np.int64)
