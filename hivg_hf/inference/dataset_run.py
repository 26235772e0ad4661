"""Ground a whole dataset into a folder of Parquet shards that survives being killed.

The rows of the input are cut into parts, and a part becomes one shard, which appears under its name when it is whole.
A part is computed in the same batches by whoever computes it. So the rows of a run do not depend on how often it was
killed, on how many processes worked on it, or on which process did what.

Rows that changed meanwhile are not mixed with those that were answered: a run that starts again compares the bytes of
its files, or what the Hub states of them, with those that it began with. It does not notice other pictures behind the
same paths and URLs, and files that change while it reads them, unless their number of rows does.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hivg_hf.hub.files import weights_fingerprint
from hivg_hf.utils.atomic import atomic_path
from hivg_hf.utils.held_folder import folder_lock

from .dataset_input import PICTURE, Chunk, DatasetInput, Part
from .ground_batch import GroundBatch

SETTINGS_NAME = ".hivg-run.json"  # hidden: `datasets.load_dataset(folder)` reads what is visible
# Passes that a chunk of rows is read for at once: enough that a short last batch, and starting workers, cost little.
PASSES_PER_CHUNK = 32


@dataclass(frozen=True)
class Progress:
    """Rows that were written since the last report, and how many of them have an error."""

    rows: int
    failed: int


class DatasetRun:
    """A folder of shards `shard-00000-of-00012.parquet`, some of them still to do; picklable.

    Args:
        source: The rows.
        ground: What answers them.
        folder: Where the shards go.
        shard_size: Rows per shard; at most that much work is lost when a run is killed.

    Raises:
        ValueError: If a column is missing or taken, the input is empty, or the folder holds a run with other settings.
    """

    def __init__(self, source: DatasetInput, ground: GroundBatch, folder: Path, shard_size: int):
        if shard_size < 1:
            raise ValueError(f"shard_size must be at least 1, got {shard_size}.")
        ground.check_columns(source.schema.names)
        self.source, self.ground, self.folder = source, ground, Path(folder).absolute()
        self.several = _holds_lists(source.schema, ground.text_column)
        ground.several = self.several
        self.schema = self._output_schema()
        self.parts = source.parts(shard_size)
        if not self.parts:
            raise ValueError(f"'{source.source}' has no rows.")
        self._cursor: tuple[str, int, Iterator[Chunk], Chunk] | None = None
        with folder_lock(self.folder, "writing to"):  # of two runs that begin at once, one finds the other's settings
            self._check_settings(shard_size)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cursor": None}

    @property
    def rows(self) -> int | None:
        """Rows of the input, where its files say how many there are."""
        counts = [part.stop - part.start for part in self.parts if part.stop is not None]
        return sum(counts) if len(counts) == len(self.parts) else None

    def path(self, index: int) -> Path:
        return self.folder / f"shard-{index:05d}-of-{len(self.parts):05d}.parquet"

    def missing(self) -> list[int]:
        """Parts that are still to do."""
        return [index for index in range(len(self.parts)) if not self.path(index).exists()]

    def run(self, index: int, report: Callable[[Progress], None] = lambda _: None) -> Progress:
        """Compute one part and write its shard."""
        part, rows, failed = self.parts[index], 0, 0
        with atomic_path(self.path(index)) as temporary, pq.ParquetWriter(temporary, self.schema) as writer:
            for table, errors in self._chunks(part):
                grounded = self._grounded(table, errors)
                writer.write_table(grounded)
                bad = len(grounded) - grounded.column(self.ground.prefix + "error").null_count
                rows, failed = rows + len(table), failed + bad
                report(Progress(len(table), bad))
        if part.stop is not None and rows != part.stop - part.start:
            self.path(index).unlink()
            raise ValueError(f"{part.file} changed while it was read: {rows} rows from row {part.start} on.")
        return Progress(rows, failed)

    def read_progress(self, index: int) -> Progress:
        """What the shard of a part holds."""
        shard = pq.ParquetFile(self.path(index))
        errors = shard.read(columns=[self.ground.prefix + "error"]).column(0)
        return Progress(shard.metadata.num_rows, len(errors) - errors.null_count)

    def first_error(self, parts: Sequence[int]) -> str | None:
        """What went wrong in the first row of these shards that has an error."""
        name = self.ground.prefix + "error"
        for index in parts:
            errors = pq.read_table(self.path(index), columns=[name]).column(name).drop_null()
            if len(errors):
                return errors[0].as_py()
        return None

    def _chunks(self, part: Part) -> Iterator[Chunk]:
        """The rows of a part in equal chunks, whatever pieces a file is read in.

        A part that begins where the last one ended reads on: finding a row in the middle of a file costs time.
        """
        size = self.ground.batch_size * PASSES_PER_CHUNK
        if self._cursor is not None and self._cursor[:2] == (part.file, part.start):
            _, position, chunks, held = self._cursor
        else:
            position, chunks = part.start, self.source.chunks(part.file, part.start, size)
            held = (self.source.schema.empty_table(), {})
        self._cursor = None
        while part.stop is None or position < part.stop:
            wanted = size if part.stop is None else min(size, part.stop - position)
            while len(held[0]) < wanted and (chunk := next(chunks, None)) is not None:
                held = _join(held, chunk)
            count = min(wanted, len(held[0]))
            if not count:
                break
            position += count
            yield _cut(held, 0, count)
            held = _cut(held, count, len(held[0]))
        self._cursor = (part.file, position, chunks, held)

    def _grounded(self, table: pa.Table, errors: dict[int, str]) -> pa.Table:
        grounded = self.ground(table)
        for name, kind in self.ground.added_types(self.several).items() if errors else ():
            values = grounded.column(self.ground.prefix + name).to_pylist()
            for row, sentence in errors.items():  # what is left of such a row may look like a question
                values[row] = sentence if name == "error" else None
            place = grounded.schema.get_field_index(self.ground.prefix + name)
            grounded = grounded.set_column(place, self.ground.prefix + name, pa.array(values, kind))
        return grounded.cast(self.schema)

    def _output_schema(self) -> pa.Schema:
        """The input's columns and the added ones, with what `datasets` needs to show pictures."""
        from datasets import Features, Image

        schema = self.source.schema
        try:
            features = Features.from_arrow_schema(schema)
        except (ValueError, TypeError, KeyError, NotImplementedError):  # a type that `datasets` does not have
            features = None
        for name, kind in self.ground.added_types(self.several).items():
            schema = schema.append(pa.field(self.ground.prefix + name, kind))
        if features is None:
            return schema
        for column in self.source.schema:
            if column.type in (PICTURE, pa.struct(list(PICTURE)[::-1])):
                features[column.name] = Image()
        added = Features.from_arrow_schema(pa.schema([schema.field(name) for name in schema.names[len(features) :]]))
        return schema.with_metadata(Features({**features, **added}).arrow_schema.metadata)

    def _check_settings(self, shard_size: int) -> None:
        """Note what the rows depend on, and refuse a folder of other settings."""
        ground = self.ground
        parts = [f"{os.path.basename(part.file)} {part.start} {part.stop}" for part in self.parts]
        rows = "\n".join([*parts, self.source.content_hash()])
        settings = {
            "source": self.source.source,
            "split": self.source.split,
            "rows": hashlib.sha256(rows.encode()).hexdigest()[:16],
            "model": str(ground.model),
            "weights": weights_fingerprint(ground.model),
            "columns": [ground.image_column, ground.text_column, ground.prefix],
            "mask": ground.mask,
            "threshold": ground.threshold,
            **({"multiple": True} if ground.multiple else {}),
            "batch_size": ground.batch_size,
            "engine": {name: value for name, value in ground.engine.items() if value and name != "device"},
            "shard_size": shard_size,
            **({"reduce_jpeg": True} if ground.reduce_jpeg else {}),
        }
        path = self.folder / SETTINGS_NAME
        if path.exists():
            stored = json.loads(path.read_text(encoding="utf-8"))
            other = sorted(name for name in {*settings, *stored} if stored.get(name) != settings.get(name))
            if other == ["rows"]:
                raise ValueError(
                    f"The rows of '{self.source.source}' changed since the run in '{self.folder}' began, which has "
                    "answered the old ones: choose a new folder, or restore the old rows."
                )
            if other:
                changes = ", ".join(f"{name} {stored.get(name)!r}, now {settings.get(name)!r}" for name in other)
                raise ValueError(
                    f"The folder '{self.folder}' holds a run with other settings ({changes}): choose a new folder, or "
                    "use the same settings."
                )
            return
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def read_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """All rows of a folder of shards in order, as Python objects."""
    for path in sorted(folder.glob("shard-*.parquet")):
        for batch in pq.ParquetFile(path).iter_batches():
            yield from batch.to_pylist()


def _join(first: Chunk, second: Chunk) -> Chunk:
    shifted = {row + len(first[0]): sentence for row, sentence in second[1].items()}
    return pa.concat_tables([first[0], second[0]]), {**first[1], **shifted}


def _cut(chunk: Chunk, start: int, stop: int) -> Chunk:
    table, errors = chunk
    kept = {row - start: sentence for row, sentence in errors.items() if start <= row < stop}
    return table.slice(start, stop - start), kept


def _holds_lists(schema: pa.Schema, name: str) -> bool:
    """Whether the column of expressions holds lists of them."""
    names: Sequence[str] = [
        one for one in name.split(";") if one in schema.names or one.partition(".")[0] in schema.names
    ]
    column, _, inner = names[0].partition(".") if names[0] not in schema.names else (names[0], "", "")
    kind = schema.field(column).type
    for part in inner.split(".") if inner else ():
        if not pa.types.is_struct(kind) or kind.get_field_index(part) < 0:
            raise ValueError(f"The column {column!r} ({kind}) has no field {part!r}.")
        kind = kind.field(part).type
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)
