"""GRIT, Kosmos-2's grounded image-text pairs: rows of Parquet or JSONL, or tars with the pictures inside.

`ref_exps` (expressions that refer) and `noun_chunks` are lists of [start, end, x1, y1, x2, y2, score]: characters of
`caption` and a box in 0..1. A picture is in the row or the tar, or is named by its `key`, as img2dataset stores it
(`00001/000012345.jpg`); it may have been scaled, so that its own size counts. In img2dataset's tars the columns are in
the JSON file of each sample. Checked against Open-GroundingDINO's converter (tools/grit2odvg.py).
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from hivg_hf.utils.strict_mapping import refuse_other

from ..schema import shown
from .common import Annotations, ImageFinder, need_file, plain_number
from .phrases import Entry, Phrase, PhraseFile, Several, each
from .recognition import is_in_shards
from .shard_files import PICTURE_KEYS, ShardFiles
from .shards import RowsOfShards, ShardRecords
from .tables import open_records, place_of

Expressions = Literal["ref_exps", "noun_chunks"]
ENTRY = "[start, end, x1, y1, x2, y2, score]"
SHARD_DIGITS = 5


def read_grit(
    split: str,
    *,
    source: str,
    images: Any = None,
    holdout: float | None = None,
    several: Several = "together",
    expressions: Expressions = "ref_exps",
    min_score: float = 0.0,
) -> Annotations:
    """Read GRIT.

    Args:
        split: `all`, or `train` and `val` with `holdout`.
        source: a Parquet or JSONL file with GRIT's columns, a JSON array of them, a tar, or a pattern of such files.
        images: folder or folders of the pictures where the rows do not hold them; the file's own folder by default.
        holdout: share of the images whose rows are `val`.
        several: `together`, boxes of one image with the same words are targets of one row; `apart`, rows of their own.
        expressions: `ref_exps` or `noun_chunks`.
        min_score: boxes of a lower score, which Kosmos-2's grounding model gave, are left out.
    """
    refuse_other("expressions", expressions, get_args(Expressions))
    records, folder = _open(source)
    folders = images if images is not None else folder
    find = ImageFinder(folders)

    def phrase(row: Mapping[str, Any], entry: Any) -> list[Phrase]:
        start, end, *box = _numbers(entry, expressions)
        if len(box) > 4 and box.pop() < min_score:
            return []
        caption = row.get("caption")
        if not isinstance(caption, str):
            raise ValueError(f"its caption is {shown(caption)}, expected text")
        if not (0 <= start < end <= len(caption) and start == int(start) and end == int(end)):
            raise ValueError(f"characters {start:g} to {end:g} are not within its caption of {len(caption)}")
        return [Phrase(image=_image(row, find), expression=caption[int(start) : int(end)].strip(), boxes=[box])]

    def parse(row: Mapping[str, Any], _: int) -> list[Entry]:
        if expressions not in row:
            raise ValueError(f"it has no {expressions}, only {shown(list(row))}")
        return each(row[expressions] or [], lambda entry: phrase(row, entry))

    in_shards = isinstance(records, ShardRecords)
    name = source if in_shards else Path(source).stem
    place = records.place if in_shards else lambda position: place_of(records, position, Path(source))
    file = PhraseFile(name, source, records, parse, place, "xyxy_normalized", folders, several, sized=False)
    annotations = file.annotations(split, holdout)
    if in_shards:
        records.hold("ahead", [])
        annotations.shards = RowsOfShards(records, np.asarray(annotations.records)[:, 0])
    return annotations


def _open(source: str) -> tuple[Any, Any]:
    """The rows of a file or of shards, and the folder where their pictures are looked for."""
    if is_in_shards(source) or Path(source).is_dir():
        files = ShardFiles(source)
        return ShardRecords(files), files.folder or "."
    path = need_file(Path(source), "the GRIT file")
    return open_records(path), path.parent


def _numbers(entry: Any, expressions: str) -> list[float]:
    """The six or seven numbers of an entry; text and decimal types are numbers too, true and NaN are not.

    Raises:
        ValueError: it is something else.
    """
    try:
        if isinstance(entry, (str, bytes, Mapping)) or len(entry) not in (6, 7):
            raise TypeError
        numbers = [math.nan if isinstance(value, bool) else float(plain_number(value)) for value in entry]
    except (TypeError, ValueError, OverflowError):
        numbers = [math.nan]
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"{expressions} has {shown(entry)}, expected numbers {ENTRY}")
    return numbers


def _image(row: Mapping[str, Any], find: ImageFinder) -> Any:
    """The picture that a row holds, or `000012345.jpg`, below its shard's folder where img2dataset put it there."""
    held = row.get("image")
    if isinstance(held, Mapping) and held.keys() == PICTURE_KEYS and held["bytes"] is not None:
        return held
    key = row.get("key")
    if not isinstance(key, (str, int)):
        raise ValueError(f"it holds no picture, and its key is {shown(key)}, expected the name of one")
    name = f"{key}.jpg"
    sharded = f"{str(key)[:SHARD_DIGITS]}/{name}"
    return sharded if not Path(find(name)).is_file() and Path(find(sharded)).is_file() else name
