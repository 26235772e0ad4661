"""Anybody's own rows: JSONL, CSV or Parquet with one expression a row, and a box format that is said, never guessed.

Columns, each renamed by `columns={"image": "file", ...}` where a file calls it otherwise:

- `image`: file name below `images`, or an absolute path;
- `expression`;
- `box`: four numbers ([..] in JSON, "10 20 30 40" or "10,20,30,40" in CSV), or four columns of its own (below);
- `boxes`: several boxes, in place of `box` (JSON only);
- optional: `no_target` (true where the expression names nothing), `split`, `width`, `height`, `category`,
  `image_id`, `ref_id`, `sent_id`, and `mask` (COCO run lengths or polygons, JSON only).
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..schema import checked_run_lengths, shown
from ..splits import distinct_splits, held_out_images, resolve_split
from .common import (
    SMALLEST_DOUBTFUL_SIDE,
    Annotations,
    Draft,
    ImageFinder,
    as_xyxy,
    cell_text,
    cxcywh_to_xyxy,
    four_numbers,
    need_file,
    segmentation_to_mask,
    truth,
    whole_side,
    xywh_to_xyxy,
)
from .tables import column_of, header_of, open_records

CONVERTERS = {"xyxy": as_xyxy, "xywh": xywh_to_xyxy, "cxcywh": cxcywh_to_xyxy}
BOX_FORMATS = (*CONVERTERS, *(f"{name}_normalized" for name in CONVERTERS))
# Four columns that hold a box, by the format they spell. Which one a file means is still said by box_format.
BOX_COLUMNS = {
    "xyxy": (("x1", "y1", "x2", "y2"), ("xmin", "ymin", "xmax", "ymax")),
    "xywh": (("x", "y", "w", "h"), ("left", "top", "w", "h"), ("x", "y", "box_width", "box_height")),
    "cxcywh": (("cx", "cy", "w", "h"),),
}


def read_tabular(
    split: str,
    *,
    source: str,
    box_format: str | None = None,
    images: Any = None,
    columns: Mapping[str, str] | None = None,
    holdout: float | None = None,
    masks: bool = True,
) -> Annotations:
    """Read one split of a JSONL, CSV, TSV or Parquet file.

    Args:
        split: a value of the file's `split` column. A file without one has the single split `all`, or, with
            `holdout`, `train` and `val`.
        source: the path of the file.
        box_format: one of `BOX_FORMATS`; pixels of the original image, or 0..1 of it for `..._normalized`.
        images: folder or folders of the pictures; the file's own folder unless told.
        columns: our name to the file's name, where they differ.
        holdout: share of the images (0..1) whose rows are `val`, chosen by a hash of the image's name; the same image
            is never in both.
        masks: whether to keep masks.

    Raises:
        ValueError: `box_format` is missing or unknown, a column is missing, or there is no such split.
    """
    path = need_file(Path(source), "the table")
    if box_format not in BOX_FORMATS:
        raise ValueError(
            f"{path}: say what its boxes mean with box_format=, one of {', '.join(BOX_FORMATS)}"
            + (f"; got {box_format!r}." if box_format is not None else ".")
        )
    records = open_records(path)
    header = header_of(records)
    names = _resolve_columns(header, columns or {}, box_format, path)
    find = ImageFinder(images if images is not None else path.parent)
    splits = column_of(records, names["split"]) if names["split"] in header else []
    positions, split = _select_split(records, splits, names, split, holdout, path, find)
    has_splits = any(splits)

    def read(position: int) -> Draft:
        record = records[position]
        if has_splits and not cell_text(record.get(names["split"])):
            raise ValueError(f"its {names['split']} is blank, while other rows name one")
        return _draft(record, position, names, box_format, find, masks)

    return Annotations(path.stem, split, positions, read, lambda record, _: f"row {record}")


def _resolve_columns(header: list[str], renamed: Mapping[str, str], box_format: str, path: Path) -> dict[str, Any]:
    """Our column names to the file's; `box` may be four of them."""
    missing = [f"{theirs!r} for {ours}" for ours, theirs in renamed.items() if theirs not in header]
    if header and missing:
        raise ValueError(f"{path} has no column {', '.join(missing)}; it has {', '.join(header)}.")
    names: dict[str, Any] = {
        ours: renamed.get(ours, ours) for ours in (*_OPTIONAL, "image", "expression", "box", "boxes")
    }
    lost = [ours for ours in ("image", "expression") if header and names[ours] not in header]
    four = next((four for four in _box_columns(box_format) if set(four) <= set(header)), None)
    if header and names["box"] not in header and names["boxes"] not in header:
        names["box"] = four
        lost += [] if four else [f"box (or {', '.join(_box_columns(box_format)[0])})"]
    if lost:
        raise ValueError(
            f"{path} lacks the column {' and '.join(lost)}; it has {', '.join(header)}. "
            "Rename with columns={'expression': 'their name'}."
        )
    return names


_OPTIONAL = ("no_target", "split", "width", "height", "category", "image_id", "ref_id", "sent_id", "mask")


def _box_columns(box_format: str) -> Sequence[tuple[str, ...]]:
    return BOX_COLUMNS[box_format.removesuffix("_normalized")]


def _select_split(
    records: Sequence[dict[str, Any]],
    splits: Sequence[str | None],
    names: Mapping[str, Any],
    split: str,
    holdout: float | None,
    path: Path,
    find: ImageFinder,
) -> tuple[Sequence[int], str]:
    """Positions of the split's rows, and its name in the file."""
    if any(splits):
        split = resolve_split(split, distinct_splits(splits, str(path)), str(path))
        # A record without a split, or one that cannot be read, belongs nowhere: every split reports it, so that none
        # loses it in silence.
        return [position for position, value in enumerate(splits) if not value or value == split], split
    if holdout is None:
        return range(len(records)), resolve_split(split, ["all"], f"{path} (no column {names['split']!r})")
    split = resolve_split(split, ["train", "val"], str(path))
    pictures = [_picture_name(find, image) for image in column_of(records, names["image"])]
    held_out = held_out_images([picture for picture in pictures if picture is not None], holdout)
    return [
        position
        for position, picture in enumerate(pictures)
        if picture is None or (picture in held_out) == (split == "val")
    ], split


def _picture_name(find: ImageFinder, file_name: str | None) -> str | None:
    """The one name of a row's picture, None where it has none (then both sides report the row)."""
    try:
        return None if file_name is None else find.picture_name(file_name)
    except ValueError:
        return None


def _draft(
    record: Mapping[str, Any], position: int, names: Mapping[str, Any], box_format: str, find: ImageFinder, masks: bool
) -> Draft:
    file_name = record.get(names["image"])
    if not cell_text(file_name):
        raise ValueError("it names no image")
    file_name = file_name.strip() if isinstance(file_name, str) else file_name
    width, height = (whole_side(record.get(names[side]), side) for side in ("width", "height"))
    path = find(file_name)
    if box_format.endswith("_normalized") and (width is None or height is None):
        width, height = _image_size(path)
    row_id = cell_text(record.get(names["sent_id"])) or str(position)
    mask = record.get(names["mask"]) if masks else None
    return Draft(
        image=path,
        expression=record.get(names["expression"]),
        boxes=[_convert_box(box, box_format, width, height, path) for box in _raw_boxes(record, names)],
        no_target=truth(record.get(names["no_target"]), "no_target"),
        mask=_mask(mask, height, width),
        width=width,
        height=height,
        category=cell_text(record.get(names["category"])) or None,
        image_id=cell_text(record.get(names["image_id"])) or find.picture_name(file_name),
        ref_id=cell_text(record.get(names["ref_id"])) or row_id,
        sent_id=row_id,
    )


def _raw_boxes(record: Mapping[str, Any], names: Mapping[str, Any]) -> list[Any]:
    """The boxes of a record as four values each; [] where its cells are empty."""
    if isinstance(names["box"], tuple):
        box = [record.get(column) for column in names["box"]]
        return [] if all(value in (None, "") for value in box) else [box]
    if record.get(names["boxes"]):
        return list(record[names["boxes"]])
    whole: Any = record.get(names["box"])
    return [] if whole is None or (isinstance(whole, str) and not whole.strip()) else [whole]


def _convert_box(box: Any, box_format: str, width: int | None, height: int | None, path: str) -> list[float]:
    raw = four_numbers(re.split(r"[\s,;]+", box.strip(" \t[]()")) if isinstance(box, str) else box, box)
    xyxy = CONVERTERS[box_format.removesuffix("_normalized")](raw)
    if not box_format.endswith("_normalized"):
        if min(raw) >= 0 and max(raw) <= 1:
            _refuse_shares(raw, box_format, path)
        return xyxy
    if width is None or height is None or max(abs(value) for value in xyxy) > 2:
        raise ValueError(f"box {shown(box)} is not within 0..1, as box_format={box_format!r} says")
    return [xyxy[0] * width, xyxy[1] * height, xyxy[2] * width, xyxy[3] * height]


def _refuse_shares(raw: list[float], box_format: str, path: str) -> None:
    """Refuse a box in pixels whose four numbers lie in 0..1, unless the picture is that small.

    Raises:
        ValueError: the numbers are shares of the image; the message names the format they can have.
    """
    width, height = _image_size(path)
    if width is None or height is None or min(width, height) <= SMALLEST_DOUBTFUL_SIDE:
        return
    likely = [f"{box_format}_normalized"]
    if box_format == "xyxy" and (raw[2] <= raw[0] or raw[3] <= raw[1]):
        likely = ["xywh_normalized", "cxcywh_normalized"]
    raise ValueError(
        f"box {raw} lies within the first pixel of its image of {width} x {height}, read as {box_format} in pixels; "
        f"is it box_format={' or '.join(map(repr, likely))}?"
    )


def _mask(mask: Any, height: int | None, width: int | None) -> dict[str, Any] | None:
    """A mask from run lengths or polygons; polygons need the image's size."""
    mask = json.loads(mask) if isinstance(mask, str) and mask.strip() else mask
    if not mask:
        return None
    if isinstance(mask, Mapping):
        checked = checked_run_lengths(mask, height, width)
        return {"size": checked["size"], "counts": checked["counts"].decode("ascii")}
    if height is None or width is None:
        raise ValueError("a mask of polygons needs the columns width and height")
    return segmentation_to_mask([mask], height, width)


def _image_size(path: str) -> tuple[int | None, int | None]:
    from ..image_check import image_facts

    facts = image_facts(path)
    if facts.problem is not None:
        raise ValueError(facts.problem)
    return facts.width, facts.height
