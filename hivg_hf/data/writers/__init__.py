"""Writers: rows of the schema in the formats that other tools read. Each is read back by the reader of its format.

`WRITERS` names them; what a format cannot say is refused, or lost and reported, never changed in silence.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from hivg_hf.utils.atomic import atomic_path, check_name, folder_made

from ..division import embedded_name
from ..order import without_image_decoding

# Format to (`module:function`, the file of a split, what its numbers keep).
WRITERS: Mapping[str, tuple[str, str]] = {
    "coco": ("coco:write_coco", "{split}.json"),
    "odvg": ("jsonl:write_odvg", "{split}.jsonl"),
    "qwen": ("jsonl:write_qwen", "{split}.jsonl"),
    "label-studio": ("label_studio:write_label_studio", "{split}.json"),
    "yolo": ("yolo:write_yolo", "{split}"),
    "parquet": ("parquet:write_parquet", "{split}.parquet"),
}

SUFFIXES = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"RIFF": ".webp", b"GIF8": ".gif", b"BM": ".bmp"}


@dataclass
class Written:
    """What was written.

    Attributes:
        path: the file, or the folder.
        rows: how many rows.
        lost: what the rows said and the format cannot, as sentences.
    """

    path: Path
    rows: int
    lost: list[str] = field(default_factory=list)


def write_rows(
    rows: Any,
    folder: str | os.PathLike[str],
    to: str,
    split: str = "all",
    *,
    copy_images: bool = False,
    **options: Any,
) -> Written:
    """Write rows of the schema as another format.

    Args:
        rows: a dataset of the schema.
        folder: where to; made where it is not there. Pictures that rows embed are written to `images` below it.
        to: a key of `WRITERS`.
        split: names the file.
        copy_images: copy the pictures into the folder; otherwise the file refers to where they are.
        **options: of the format: `coordinates` of `qwen`.

    Raises:
        ValueError: the format or an option is unknown, or a row cannot be said in it.
    """
    if to not in WRITERS:
        raise ValueError(f"Unknown format {to!r}; expected one of {', '.join(WRITERS)}.")
    if not len(rows):
        raise ValueError("There are no rows to write.")
    check_name(split, "Split")
    where, name = WRITERS[to]
    module, _, function = where.partition(":")
    write: Callable[..., list[str]] = getattr(import_module(f"{__name__}.{module}"), function)
    folder = Path(folder)
    path = folder / name.format(split=split)
    if path.exists():
        raise FileExistsError(f"{path} already exists; choose another folder, or remove it.")
    rows = without_image_decoding(rows)
    pictures = Pictures(path if to == "yolo" else folder, copy_images or to == "yolo")
    with folder_made(folder), pictures.kept_with_their_table():
        lost = write(rows, path, pictures, **options)
    masks = sum(row["mask"] is not None for row in _select(rows, ["mask"]))
    if masks and to not in ("coco", "parquet"):
        lost = [*lost, f"{to} has no masks: those of {masks:,} rows were left out"]
    return Written(path, len(rows), lost)


class Pictures:
    """Names pictures in a written file, and puts them there where they have to be.

    Args:
        folder: the folder that names are relative to.
        copy: whether to copy files; pictures that rows embed are written in any case.
    """

    def __init__(self, folder: Path, copy: bool) -> None:
        self.folder, self.copy = folder, copy
        self._names: dict[str, str] = {}
        self._taken: set[str] = set()
        self._put_there: list[Path] = []

    @contextmanager
    def kept_with_their_table(self) -> Iterator[None]:
        """Take away what was put there for a table that could not be written."""
        try:
            yield
        except BaseException:
            with suppress(OSError):
                for path in self._put_there:
                    path.unlink(missing_ok=True)
                (self.folder / "images").rmdir()
            raise

    def name(self, row: Mapping[str, Any]) -> str:
        """The name of a row's picture, relative to the folder, with "/" between folders.

        Raises:
            ValueError: the row has no picture.
        """
        picture = row["image"]
        if picture is None or (picture.get("bytes") is None and not picture.get("path")):
            raise ValueError(f"row {row['sent_id']} has no picture.")
        embedded = picture.get("bytes") is not None
        key = row["image_id"] if embedded else os.path.abspath(picture["path"])
        if key not in self._names:
            if embedded or self.copy:
                self._names[key] = self._put(picture, key if embedded else os.path.basename(key))
            else:
                self._names[key] = Path(os.path.relpath(key, self.folder)).as_posix()
        return self._names[key]

    def _put(self, picture: Mapping[str, Any], wanted: str) -> str:
        """Write a picture below `images` under a name of its own."""
        data = picture.get("bytes")
        stem, suffix = os.path.splitext(os.path.basename(wanted.replace("\\", "/")) or embedded_name(dict(picture)))
        if data is not None and suffix.lower() not in (".jpg", ".jpeg", *SUFFIXES.values()):
            stem += suffix
            suffix = next((found for mark, found in SUFFIXES.items() if data.startswith(mark)), ".img")
        source = Path(picture["path"]).read_bytes() if data is None else data
        name, number = f"{stem}{suffix}", 1
        # Another split may have been written here, with other pictures of the same names.
        while name.lower() in self._taken or _holds_other(self.folder / "images" / name, source):
            number += 1
            name = f"{stem}-{number}{suffix}"
        self._taken.add(name.lower())
        target = self.folder / "images" / name
        if not target.exists():
            self._put_there.append(target)
            with atomic_path(target) as unfinished:
                unfinished.write_bytes(source)
        return f"images/{name}"


def _holds_other(path: Path, data: bytes) -> bool:
    return path.exists() and (path.stat().st_size != len(data) or path.read_bytes() != data)


def _select(rows: Any, columns: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    """Rows with some of their columns only, which decodes no picture."""
    yield from rows.select_columns(list(columns))
