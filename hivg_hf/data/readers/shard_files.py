"""Files of one kind that are one table, read in parts, from the start of any part.

Parquet, JSON Lines, CSV and WebDataset tars, local (a file, a pattern, a folder) or on the Hub (`owner/name`, which is
streamed).
Nothing is kept in memory beyond a batch, except the lines of a CSV file, and where those of a JSON Lines file begin.
A row that cannot be read keeps its place, with a sentence that says why.
"""

import glob
import hashlib
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hivg_hf.modeling.image_sources_hivg import MAX_BYTES
from hivg_hf.utils.checked_tar import CheckedTar

from .label_studio import IMAGE_SUFFIXES
from .tables import header_of, open_records, refuse_twice, whole_parquet

KINDS = {
    ".parquet": "parquet",
    ".json": "lines",
    ".jsonl": "lines",
    ".ndjson": "lines",
    ".csv": "csv",
    ".tsv": "csv",
    ".tar": "tar",
}
METADATA_NAMES = ("metadata.parquet", "metadata.jsonl", "metadata.csv")  # of an image folder, as `datasets` reads it
PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])  # what `datasets` stores for an Image
PICTURE_KEYS = {field.name for field in PICTURE}
ROWS_TO_INFER_FROM = 1000
ROWS_AT_ONCE = 64  # that `records` decodes
MISFITS = (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError, UnicodeEncodeError)
BUFFER_BYTES = 2**20
HUB = "hf://"

# A chunk of rows, and what is wrong with those that could not be read: (table, {row: sentence}).
Chunk = tuple[pa.Table, dict[int, str]]


@dataclass(frozen=True)
class Part:
    """Consecutive rows of one file; `stop` is None where only reading it tells how many there are."""

    file: str
    start: int
    stop: int | None


@dataclass
class ShardFiles:
    """The files of a table, their one schema, and their rows.

    Args:
        source: A file, a quoted pattern, a folder of tables or of pictures with `metadata.csv`, a dataset on the Hub
            (`owner/name` or `owner/name@revision`), or a pattern of its files (`hf://datasets/owner/name/*.parquet`).
        split: Split of a Hub dataset. Defaults to its only one.
        config: Configuration of a Hub dataset. Defaults to its only one.
        streaming: Whether files of the Hub are read over the network as they are needed, or downloaded before.
        token: Access token for the Hub. Defaults to that of the login.

    Raises:
        FileNotFoundError: If the file is missing or dataset.
        ValueError: If the files are of several kinds or of none that is read, or the split has to be chosen.
    """

    source: str
    split: str | None = None
    config: str | None = None
    streaming: bool = True
    token: str | None = field(default=None, repr=False)
    files: list[str] = field(init=False)
    schema: pa.Schema = field(init=False)
    _footers: dict[str, tuple[pa.Schema, int]] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.is_local = self.names_files(self.source)
        if self.is_local and (self.split or self.config):
            raise ValueError(f"--split and --config choose inside a Hub dataset, and '{self.source}' is a local one.")
        self.files = [*map(os.path.abspath, _local_files(self.source))] if self.is_local else self._hub_files()
        kinds = sorted({KINDS.get(os.path.splitext(file)[1].lower(), os.path.basename(file)) for file in self.files})
        if len(kinds) != 1 or kinds[0] not in KINDS.values():
            raise ValueError(
                f"'{self.source}' holds {', '.join(kinds[:5])}: expected files of one kind, "
                f"{', '.join(sorted(KINDS))}."
            )
        self.kind = kinds[0]
        self.schema = self._read_schema()
        refuse_twice(self.schema.names, f"'{self.source}'")

    @staticmethod
    def names_files(source: str) -> bool:
        """Whether a source is a file, a pattern or a folder of this machine, and not a dataset of the Hub."""
        if source.startswith(HUB):
            return False
        if os.path.exists(source) or glob.has_magic(source) or os.path.splitext(source)[1].lower() in KINDS:
            return True
        return os.path.isabs(source) or source.startswith(".") or source.count("/") != 1

    @property
    def folder(self) -> Path | None:
        """Folder that relative names of pictures are resolved against."""
        return Path(self.files[0]).parent if self.is_local else None

    def parts(self, rows_per_part: int) -> list[Part]:
        """The rows of all files in order, cut; a file whose length is not known in advance is one part."""
        parts = []
        for file in self.files:
            rows = self.count(file)
            if rows is None:
                parts.append(Part(file, 0, None))
                continue
            starts = range(0, rows, rows_per_part)
            parts += [Part(file, start, min(start + rows_per_part, rows)) for start in starts]
        return parts

    def chunks(self, file: str, start: int, size: int) -> Iterator[Chunk]:
        """The rows of a file from one on, at most `size` at a time."""
        if self.kind == "parquet":
            return ((_conform(table, self.schema, file), {}) for table in self._parquet_tables(file, start, size))
        if self.kind == "tar":
            return self._tar_chunks(file, start, size)
        return self._record_chunks(file, start, size)

    def records(self, file: str, start: int) -> Iterator[dict[str, Any] | str]:
        """The rows of a file from one on, as the file has them; of one that cannot be read, what is wrong."""
        if self.kind == "parquet":
            for table in self._parquet_tables(file, start, ROWS_AT_ONCE):
                yield from table.to_pylist()
        elif self.kind == "tar":
            yield from _samples(file, self._open(file), start)
        else:
            records = _records(file)
            yield from _readable(records, start, len(records))

    def content_hash(self) -> str:
        """A hash of the bytes of all files: read here, and as the Hub states them for files that are streamed.

        Pictures that rows name by path or URL are not part of it.
        """
        folders = {file.rpartition("/")[0] for file in self.files if file.startswith(HUB)}
        listed = {HUB + entry["name"]: entry for folder in sorted(folders) for entry in self._hub_listing(folder)}
        digest = hashlib.sha256()
        for file in self.files:
            if file.startswith(HUB):
                digest.update(f"{listed[file]['size']} {listed[file]['blob_id']}\n".encode())
            else:
                with open(file, "rb") as opened:
                    digest.update(hashlib.file_digest(opened, "sha256").digest())
        return digest.hexdigest()

    def _hub_listing(self, folder: str) -> list[Any]:
        from huggingface_hub import HfFileSystem

        return HfFileSystem(token=self.token).ls(folder, detail=True, refresh=True)

    def _hub_files(self) -> list[str]:
        import datasets

        if self.source.startswith(HUB) and glob.has_magic(self.source):
            return self._matching()
        name, _, revision = self.source.removeprefix(HUB + "datasets/").partition("@")
        try:
            builder = datasets.load_dataset_builder(name, self.config, revision=revision or None, token=self.token)
        except (datasets.exceptions.DatasetNotFoundError, FileNotFoundError):
            raise FileNotFoundError(
                f"Input not found: '{self.source}' is not a local file, and there is no such dataset on the Hub, "
                "or it is private and no token opens it (`hf auth login`)."
            ) from None
        splits = {str(split): list(files) for split, files in (builder.config.data_files or {}).items()}
        split = self.split or (next(iter(splits)) if len(splits) == 1 else None)
        if split not in splits:
            found = ", ".join(splits) or "no data files"
            raise ValueError(f"The dataset '{self.source}' has the splits {found}: choose one with --split.")
        files = splits[split]
        if self.streaming and all(file.endswith((".parquet", ".tar")) for file in files):
            return files
        return [self._download(file) for file in files]

    def _matching(self) -> list[str]:
        from huggingface_hub import HfFileSystem

        found = sorted(HfFileSystem(token=self.token).glob(self.source))
        if not found:
            raise FileNotFoundError(f"Input not found: '{self.source}' matches no file of the Hub.")
        return [file if self.streaming else self._download(file) for file in (HUB + name for name in found)]

    def _download(self, file: str) -> str:
        """A file of the Hub in the local cache: tables without pictures in them are small."""
        from huggingface_hub import HfFileSystem, hf_hub_download

        place = HfFileSystem(token=self.token).resolve_path(file)
        revision = place.revision
        return hf_hub_download(
            place.repo_id, place.path_in_repo, repo_type="dataset", revision=revision, token=self.token
        )

    def _open(self, file: str) -> Any:
        if not file.startswith(HUB):
            return open(file, "rb")
        from huggingface_hub import HfFileSystem

        return HfFileSystem(token=self.token).open(file, "rb")

    def count(self, file: str) -> int | None:
        """Rows of a file; None of a tar on the Hub, which only reading it would tell."""
        if self.kind == "parquet":
            return self._footers[file][1]
        if self.kind == "tar":
            return None if file.startswith(HUB) else sum(1 for _ in _samples(file, self._open(file), 0, read=False))
        return len(_records(file))

    def _read_schema(self) -> pa.Schema:
        if self.kind == "parquet":
            self._footers = {file: self._footer(file) for file in self.files}
            return _common_schema({file: schema for file, (schema, _) in self._footers.items()})
        if self.kind == "tar":
            samples = _samples(self.files[0], self._open(self.files[0]), 0)
            return _infer([*islice(samples, 100)])
        records = _records(self.files[0])
        if self.kind == "csv":
            return pa.schema([(name, pa.string()) for name in header_of(records)])
        return _infer([record for record in _readable(records, 0, ROWS_TO_INFER_FROM) if isinstance(record, dict)])

    def _footer(self, file: str) -> tuple[pa.Schema, int]:
        """The columns of a Parquet file, and how many rows it has."""
        with whole_parquet(file), self._open(file) as opened:
            parquet = pq.ParquetFile(opened)
            return parquet.schema_arrow, parquet.metadata.num_rows

    def _parquet_tables(self, file: str, start: int, size: int) -> Iterator[pa.Table]:
        with self._open(file) as opened:
            # Buffered: a row group is decoded as it is read, and not held in memory whole.
            parquet = pq.ParquetFile(opened, buffer_size=BUFFER_BYTES, pre_buffer=False)
            groups: list[int] = []
            skipped = 0
            for group in range(parquet.num_row_groups):
                rows = parquet.metadata.row_group(group).num_rows
                if not groups and skipped + rows <= start:
                    skipped += rows
                else:
                    groups.append(group)
            for batch in parquet.iter_batches(size, row_groups=groups):
                first = max(start - skipped, 0)
                skipped += len(batch)
                if first < len(batch):
                    yield pa.Table.from_batches([batch.slice(first)])

    def _record_chunks(self, file: str, start: int, size: int) -> Iterator[Chunk]:
        records = _records(file)
        for first in range(start, len(records), size):
            yield _as_table(list(_readable(records, first, first + size)), self.schema)

    def _tar_chunks(self, file: str, start: int, size: int) -> Iterator[Chunk]:
        chunk: list[dict[str, Any] | str] = []
        for sample in _samples(file, self._open(file), start):
            chunk.append(sample)
            if len(chunk) == size:
                yield _as_table(chunk, self.schema)
                chunk = []
        if chunk:
            yield _as_table(chunk, self.schema)


@lru_cache(maxsize=1)
def _records(file: str) -> Sequence[dict[str, Any]]:
    """The rows of a text table; a CSV file is parsed whole, which once per process is enough."""
    return open_records(Path(file))


def _local_files(source: str) -> list[str]:
    if os.path.isdir(source):
        named = [os.path.join(source, name) for name in METADATA_NAMES]
        files = [path for path in named if os.path.isfile(path)][:1] or sorted(
            entry.path for entry in os.scandir(source) if os.path.splitext(entry.path)[1].lower() in KINDS
        )
        if not files:
            has_pictures = any(os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES for name in os.listdir(source))
            advice = "add metadata.csv with the columns file_name and an expression, or use `hivg ground`"
            raise FileNotFoundError(
                f"No table in the folder '{source}'{f': {advice}' if has_pictures else ''}; expected "
                f"{', '.join(sorted(KINDS))}."
            )
        return files
    if os.path.isfile(source):
        return [source]
    files = sorted(path for path in glob.glob(source, recursive=True) if os.path.isfile(path))
    if not files:
        raise FileNotFoundError(f"Input not found: '{source}' matches no file.")
    return files


def _readable(records: Sequence[dict[str, Any]], start: int, stop: int) -> Iterator[dict[str, Any] | str]:
    """Records, or what is wrong with them."""
    for position in range(start, min(stop, len(records))):
        try:
            yield records[position]
        except ValueError as error:
            yield f"The row cannot be read: {error}."


def _samples(file: str, opened: Any, start: int, read: bool = True) -> Iterator[dict[str, Any] | str]:
    """Samples of a WebDataset tar: consecutive members of one name before its first dot, by the rest of the name.

    Raises:
        ValueError: If the file is cut or damaged.
    """
    key, number, sample = None, -1, {}
    try:
        with opened, CheckedTar.open(fileobj=opened, mode="r|" if file.startswith(HUB) else "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # it would remember every one
                folder, _, base = member.name.rpartition("/")
                stem, _, field_name = base.partition(".")
                name = f"{folder}/{stem}"
                if not member.isfile():
                    continue
                if name != key:
                    if key is not None and number >= start:
                        yield sample
                    key, number, sample = name, number + 1, {"__key__": name.removeprefix("/")}
                if read and number >= start and member.size <= MAX_BYTES:
                    sample[field_name.lower()] = _member_value(
                        field_name.lower(), member.name, tar.extractfile(member)
                    )
            if not file.startswith(HUB):
                tar.check_end()
    except tarfile.TarError as error:
        raise ValueError(f"{file} is not a whole tar file ({error}); fetch it again.") from None
    if key is not None and number >= start:
        yield sample


def _member_value(field_name: str, name: str, file: Any) -> Any:
    data = file.read()
    suffix = "." + field_name.rpartition(".")[2]
    if suffix in IMAGE_SUFFIXES:
        return {"bytes": data, "path": name}
    try:
        if suffix == ".json":
            return json.loads(data)
        if suffix in (".txt", ".text", ".caption", ".cls"):
            return data.decode("utf-8").strip()
    except (ValueError, RecursionError):
        return None  # a row without its expression says so
    return data


def _infer(rows: Sequence[Any]) -> pa.Schema:
    """One type per column, from the first rows; where values have no type in common, the first one decides."""
    names = dict.fromkeys(name for row in rows if isinstance(row, dict) for name in row)
    fields = []
    for name in names:
        values = [row[name] for row in rows if isinstance(row, dict) and row.get(name) is not None]
        if any(isinstance(value, dict) and value.keys() == PICTURE_KEYS for value in values):
            kind = PICTURE
        else:
            kind = next(filter(None, map(_type_of, (values, values[:1]))), pa.string())
        fields.append((name, pa.string() if pa.types.is_null(kind) else kind))
    return pa.schema(fields)


def _type_of(values: list[Any]) -> pa.DataType | None:
    try:
        return pa.array(values).type
    except MISFITS:
        return None


def _as_table(rows: Sequence[dict[str, Any] | str], schema: pa.Schema) -> Chunk:
    """Rows of a file as a table of the one schema, and what is wrong with them."""
    errors = {number: row for number, row in enumerate(rows) if isinstance(row, str)}
    records = [{} if isinstance(row, str) else row for row in rows]
    columns = []
    for column in schema:
        values = [record.get(column.name) for record in records]
        try:
            columns.append(pa.array(values, column.type))
        except MISFITS:
            columns.append(pa.array(_fitting(values, column, errors), column.type))
    return pa.Table.from_arrays(columns, schema=schema), errors


def _fitting(values: list[Any], column: pa.Field, errors: dict[int, str]) -> list[Any]:
    """The values that fit the column's type; rows with others get an error."""
    for number, value in enumerate(values):
        try:
            pa.array([value], column.type)
        except MISFITS:
            values[number] = None
            errors.setdefault(number, f"{column.name} holds {value!r:.80}, expected {column.type} as in other rows.")
    return values


def _common_schema(schemas: dict[str, pa.Schema]) -> pa.Schema:
    """The columns of several Parquet files, each of a type that holds the values of all.

    Raises:
        ValueError: Files have other columns, or one column of types that have nothing in common.
    """
    first, *others = schemas
    for file in others:
        if schemas[file].names != schemas[first].names:
            raise ValueError(
                f"{file} has the columns {', '.join(schemas[file].names)}; other files: "
                f"{', '.join(schemas[first].names)}."
            )
    return pa.schema(
        [_common_field(place, schemas) for place in range(len(schemas[first].names))], schemas[first].metadata
    )


def _common_field(place: int, schemas: dict[str, pa.Schema]) -> pa.Field:
    """The column at a place, of a type that holds the values of all files."""
    column, *_ = (schema.field(place) for schema in schemas.values())
    for file, schema in schemas.items():
        if (other := schema.field(place).type) != column.type:
            kind = _common_type(column.type, other)
            if kind is None:
                raise ValueError(
                    f"{file}: its column {column.name!r} is {other}, in other files {column.type}: give it one type."
                )
            column = column.with_type(kind)
    return column


def _common_type(first: pa.DataType, second: pa.DataType) -> pa.DataType | None:
    """A type that holds the values of both; text holds numbers, as they are written."""
    first, second = (kind.value_type if pa.types.is_dictionary(kind) else kind for kind in (first, second))
    is_text = [pa.types.is_string(kind) or pa.types.is_large_string(kind) for kind in (first, second)]
    if any(is_text) and all(text or pa.types.is_primitive(kind) for text, kind in zip(is_text, (first, second))):
        return pa.string()
    try:
        schemas = [pa.schema([("column", kind)]) for kind in (first, second)]
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
        return None


def _conform(table: pa.Table, schema: pa.Schema, file: str) -> pa.Table:
    """A table of one file in the schema of all.

    Raises:
        ValueError: A value does not fit.
    """
    if table.schema.equals(schema):
        return table.replace_schema_metadata(schema.metadata)
    try:
        return table.cast(schema)
    except MISFITS as error:
        raise ValueError(
            f"{file} has a value that does not fit the type that its column has in all files: {error}."
        ) from None
