"""Columns as people call them: which column of a table is the image, the expression, the box.

A name of ours always counts. Otherwise names that mean only one thing are understood, in any case (`file_name`,
`Caption`, `BBOX`); where two columns could be it, nothing is chosen and the user is asked.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from .boxes import layout_and_full

logger = logging.getLogger(__name__)

OPTIONAL = ("no_target", "split", "width", "height", "category", "image_id", "ref_id", "sent_id", "mask")
OURS = (*OPTIONAL, "image", "expression", "box", "boxes")

# Columns of classes, which name kinds of objects and not one of them.
CLASS_NAMES = ("class", "class_name", "label", "category")

# By rank: a column of an earlier tuple is taken before one of a later.
ALIASES: Mapping[str, Sequence[Sequence[str]]] = {
    "image": (
        ("filename", "file_name", "image_path", "image_file", "img_path", "image_name", "img_name"),
        ("img", "file", "path"),
    ),
    "expression": (
        ("caption", "text", "phrase", "sentence", "description", "referring_expression", "query", "prompt", "sent"),
        CLASS_NAMES,
    ),
    "box": (("bbox", "bounding_box", "bndbox"),),
    "boxes": (("bboxes", "bounding_boxes"),),
    "split": (("subset",),),
    "width": (("image_width", "img_width"),),
    "height": (("image_height", "img_height"),),
}

# Four columns that hold a box, by the layout they spell. Which one a file means is still said by box_format.
BOX_COLUMNS = {
    "xyxy": (("x1", "y1", "x2", "y2"), ("xmin", "ymin", "xmax", "ymax"), ("x_min", "y_min", "x_max", "y_max")),
    "xywh": (
        ("x", "y", "w", "h"),
        ("left", "top", "w", "h"),
        ("x", "y", "box_width", "box_height"),
        ("bbox_x", "bbox_y", "bbox_width", "bbox_height"),
        ("x", "y", "width", "height"),
        ("left", "top", "width", "height"),
    ),
    "cxcywh": (
        ("cx", "cy", "w", "h"),
        ("x_center", "y_center", "w", "h"),
        ("cx", "cy", "width", "height"),
        ("x_center", "y_center", "width", "height"),
    ),
}

# What Roboflow exports as "TensorFlow object detection CSV" is always corners in pixels.
DETECTION_CSV = {"filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax"}


def resolve_columns(header: Sequence[str], renamed: Mapping[str, str], box_format: str, source: str) -> dict[str, Any]:
    """Our column names to the file's; `box` may be four of them.

    Args:
        header: the columns of the file; [] where nothing is known, which refuses nothing.
        renamed: what the user says, our name to the file's.
        box_format: which four columns may hold a box.
        source: for messages.

    Raises:
        ValueError: a column is missing, or two of them may be the one.
    """
    unknown = [ours for ours in renamed if ours not in OURS]
    if unknown:
        raise ValueError(f"{source}: columns= renames {', '.join(unknown)}; expected some of {', '.join(OURS)}.")
    missing = [f"{theirs!r} for {ours}" for ours, theirs in renamed.items() if theirs not in header]
    if header and missing:
        raise ValueError(f"{source} has no column {', '.join(missing)}; it has {', '.join(header)}.")
    taken = set(renamed.values())
    names: dict[str, Any] = {}
    for ours in OURS:
        if ours in renamed:
            names[ours] = renamed[ours]
        else:
            names[ours] = _by_name(ours, [name for name in header if name not in taken], source) or ours
    if names["category"] == names["expression"]:
        names["category"] = "category" if names["expression"] != "category" else "(none)"
    lost = [ours for ours in ("image", "expression") if header and names[ours] not in header]
    if header and names["box"] not in header and names["boxes"] not in header:
        layouts = BOX_COLUMNS[layout_and_full(box_format)[0]]
        names["box"] = _four_columns(header, layouts)
        if names["box"] and (other := _four_columns([one for one in header if one not in names["box"]], layouts)):
            raise ValueError(
                f"{source}: the columns {', '.join(names['box'])} and {', '.join(other)} may both be its box; rename "
                "or remove four of them."
            )
        lost += [] if names["box"] else [f"box (or {', '.join(layouts[0])})"]
        for side in ("width", "height"):
            if names["box"] and names[side] in names["box"]:  # of the box, then, and not of the picture
                names[side] = _by_name(side, [name for name in header if name not in names["box"]], source) or "(none)"
    if lost:
        spelled = spelled_layout(header) if lost[-1].startswith("box") else None
        hints = [f"The columns {', '.join(spelled[1])} go with box_format={spelled[0]!r}."] if spelled else []
        if lost[0] in ("image", "expression"):
            hints.append(f"Say which it is with columns={{{lost[0]!r}: 'its name'}}.")
        elif not spelled:
            hints.append("Say which it is with columns={'box': 'its name'}; four columns must have such names.")
        raise ValueError(
            f"{source} lacks the column {' and '.join(lost)}; it has {', '.join(header)}. {' '.join(hints)}"
        )
    understood = {ours: names[ours] for ours in ALIASES if names[ours] != ours and ours not in renamed}
    if any(theirs in header for theirs in understood.values() if isinstance(theirs, str)):
        listed = ", ".join(f"{theirs} as {ours}" for ours, theirs in understood.items() if theirs in header)
        logger.info("%s: reads %s.", source, listed)
    return names


def _by_name(ours: str, header: Sequence[str], source: str) -> str | None:
    """The one column that is called like ours, or like one of its other names.

    Raises:
        ValueError: there are several.
    """
    if ours in header:
        return ours
    for names in ((ours,), *ALIASES.get(ours, ())):
        found = [name for name in header if name.strip().lower().replace(" ", "_").replace("-", "_") in names]
        if len(found) > 1:
            raise ValueError(
                f"{source}: the columns {', '.join(map(repr, found))} may all be its {ours}; say which with "
                f"columns={{{ours!r}: {found[0]!r}}}."
            )
        if found:
            return found[0]
    return None


def spelled_layout(header: Sequence[str]) -> tuple[str, tuple[str, ...]] | None:
    """The layout that four columns of a file spell, and these columns: `("xywh", ("X", "Y", "W", "H"))`."""
    for layout, spellings in BOX_COLUMNS.items():
        if columns := _four_columns(header, spellings):
            return layout, columns
    return None


def _four_columns(header: Sequence[str], layouts: Sequence[tuple[str, ...]]) -> tuple[str, ...] | None:
    """The columns of the file that spell one of the layouts, in any case."""
    by_lower = {name.strip().lower(): name for name in header}
    for layout in layouts:
        if set(layout) <= set(header):
            return layout
        if set(layout) <= set(by_lower):
            return tuple(by_lower[name] for name in layout)
    return None
