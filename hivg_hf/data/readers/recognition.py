"""Which format a file or a folder is in, by its name and by what it begins with; None where nothing tells."""

import glob
import json
import os
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

HEAD_BYTES = 1 << 20
LINES_LOOKED_AT = 20
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

# Keys that only one format has in a record of it.
KEYS = {
    "chat": ("messages", "conversations"),
    "odvg": ("grounding", "detection"),
    "grit": ("ref_exps", "noun_chunks"),
}


def recognize(name: str) -> str | None:
    """A key of `FORMATS` for a path or a Hub id.

    A file that does not exist is recognized by its suffix alone, so that its reader can say that it is missing.
    """
    path = Path(name)
    if path.is_dir():
        return _folder_format(path)
    suffix = path.suffix.lower()
    if is_in_shards(name):
        return _shards_format(name)
    if suffix in (".csv", ".tsv"):
        return "table"
    if suffix == ".parquet":
        return _parquet_format(path) if path.is_file() else "table"
    if suffix in (".jsonl", ".ndjson"):
        return next((found for record in _first_lines(path) if (found := _record_format(record))), "table")
    if suffix == ".json":
        return _json_format(path)
    if suffix == ".xml":
        return "cvat"
    if suffix in (".yaml", ".yml") and path.is_file():
        return "yolo"
    return "hub" if not suffix and HUB_ID.fullmatch(name) and not path.exists() else None


def is_in_shards(name: str) -> bool:
    """Whether a source is a tar, a pattern of files or files of a dataset on the Hub."""
    path = Path(name)
    return path.suffix.lower() == ".tar" or name.startswith("hf://") or (glob.has_magic(name) and not path.exists())


def is_cache(folder: Path) -> bool:
    """Whether a folder is one that `write_cache` made."""
    return os.path.isfile(folder / "cache.json")  # pathlib raises where no file can have the name


def is_saved(folder: Path) -> bool:
    """Whether a folder is one that `save_to_disk` of `datasets` made."""
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def _folder_format(folder: Path) -> str | None:
    from .yolo import roboflow_splits, yaml_file

    if yaml_file(folder) is not None:
        return "yolo"
    if roboflow_splits(folder):
        return "roboflow"
    if is_saved(folder) or next(folder.rglob("*.parquet"), None) is not None:
        return "hub"
    first = next(folder.rglob("*.xml"), None)
    if first is None:
        return None
    listed = folder / "train.txt"
    numbered = listed.is_file() and listed.read_text(errors="replace").split("\n", 1)[0].strip().isdigit()
    return "dior-rsvg" if numbered and b"<description>" in first.read_bytes() else "voc"


def _shards_format(name: str) -> str:
    """`grit` where the first file holds its keys, otherwise `shards`; files of the Hub are not looked into."""
    first = Path(name if os.path.exists(name) else min(glob.glob(name, recursive=True), default=name))
    if not first.is_file():
        return "shards"
    if first.suffix.lower() != ".tar":
        found = recognize(str(first))
    else:
        found = next(filter(None, map(_record_format, _first_samples(first))), None)
    return "grit" if found == "grit" else "shards"


def _first_samples(path: Path) -> Iterator[Any]:
    """The JSON files at the beginning of a tar; none of one that is damaged, whose reader says so."""
    import tarfile

    from hivg_hf.utils.checked_tar import CheckedTar

    try:
        with CheckedTar.open(path, "r:") as tar:
            members = (member for member in islice(tar, LINES_LOOKED_AT) if member.isfile())
            for member in members:
                if member.name.lower().endswith(".json") and member.size <= HEAD_BYTES:
                    yield json.loads(tar.extractfile(member).read())  # type: ignore[union-attr]
    except (OSError, ValueError, RecursionError, tarfile.TarError):
        return


def _parquet_format(path: Path) -> str:
    import pyarrow.parquet

    try:
        columns = dict.fromkeys(pyarrow.parquet.read_schema(path).names)
    except (OSError, ValueError):
        return "table"  # whose reader says what is wrong with the file
    return _record_format(columns) or "table"


def _first_lines(path: Path) -> Iterator[Any]:
    """The objects in the first lines of a file; lines that are not JSON are left out."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    for line in head.split(b"\n")[:LINES_LOOKED_AT]:
        try:
            yield json.loads(line)
        except (ValueError, RecursionError):
            continue


def _json_format(path: Path) -> str:
    """COCO is an object; the others are arrays, and their first element tells."""
    if not path.is_file():
        return "coco"
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    try:
        text = head.decode(json.detect_encoding(head), "ignore").lstrip("\ufeff \t\r\n")
        if not text.startswith("["):
            return "coco"
        first, _ = json.JSONDecoder().raw_decode(text[1:].lstrip())
    except (ValueError, RecursionError):
        return "coco"  # whose reader says what is wrong with the file
    if not isinstance(first, Mapping):
        return "coco"
    if "data" in first or _is_label_studio_min(first):
        return "label-studio"
    return _record_format(first) or "table"


def _is_label_studio_min(record: Mapping[str, Any]) -> bool:
    return any(
        isinstance(entry, Mapping) and "rectanglelabels" in entry
        for value in record.values()
        if isinstance(value, list)
        for entry in value
    )


def _record_format(record: Any) -> str | None:
    if not isinstance(record, Mapping):
        return None
    return next((name for name, keys in KEYS.items() if any(key in record for key in keys)), None)
