"""GRIT, Kosmos-2's grounded image-text pairs: rows of Parquet, JSONL, or one JSON file for each image.

`ref_exps` (expressions that refer) and `noun_chunks` are lists of [start, end, x1, y1, x2, y2, score]: characters of
`caption` and a box in 0..1. A picture is named by its `key`, as img2dataset stores it (`00001/000012345.jpg`), and may
have been scaled, so that its own size counts. Checked against Open-GroundingDINO's converter (tools/grit2odvg.py).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from hivg_hf.utils.strict_mapping import refuse_other

from ..schema import shown
from .common import Annotations, ImageFinder, need_file
from .phrases import Entry, Phrase, PhraseFile, Several, each
from .tables import open_records, place_of

Expressions = Literal["ref_exps", "noun_chunks"]
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
    """Read a file of GRIT.

    Args:
        split: `all`, or `train` and `val` with `holdout`.
        source: a Parquet or JSONL file with GRIT's columns, or a JSON array of them.
        images: folder or folders of the pictures; the file's own folder by default.
        holdout: share of the images whose rows are `val`.
        several: `together`, boxes of one image with the same words are targets of one row; `apart`, rows of their own.
        expressions: `ref_exps` or `noun_chunks`.
        min_score: boxes of a lower score, which Kosmos-2's grounding model gave, are left out.
    """
    refuse_other("expressions", expressions, get_args(Expressions))
    path = need_file(Path(source), "the GRIT file")
    records = open_records(path)
    folders = images if images is not None else path.parent
    find = ImageFinder(folders)

    def phrase(row: Mapping[str, Any], entry: Any) -> list[Phrase]:
        if len(entry) < 6:
            raise ValueError(f"{expressions} has {shown(entry)}, expected [start, end, x1, y1, x2, y2, score]")
        start, end, *box = entry
        if len(entry) > 6 and entry[6] < min_score:
            return []
        if not (0 <= start < end <= len(row["caption"]) and start == int(start) and end == int(end)):
            raise ValueError(f"characters {start} to {end} are not within its caption")
        words = row["caption"][int(start) : int(end)].strip()
        return [Phrase(image=_file_name(str(row["key"]), find), expression=words, boxes=[list(box[:4])])]

    def parse(row: Mapping[str, Any], _: int) -> list[Entry]:
        return each(row.get(expressions) or [], lambda entry: phrase(row, entry))

    file = PhraseFile(
        path.stem,
        str(path),
        records,
        parse,
        lambda position: place_of(records, position, path),
        "xyxy_normalized",
        folders,
        several,
        sized=False,
    )
    return file.annotations(split, holdout)


def _file_name(key: str, find: ImageFinder) -> str:
    """`000012345.jpg`, below the folder of its shard where img2dataset put it there."""
    name = f"{key}.jpg"
    sharded = f"{key[:SHARD_DIGITS]}/{name}"
    return sharded if not Path(find(name)).is_file() and Path(find(sharded)).is_file() else name
