"""COCO-style JSON: boxes as (x, y, width, height) in pixels, bit-equal when read back; masks as run lengths.

The targets of one row are annotations that share a `ref_id` and an `expression`, which `read_coco_json` reads as one.
"""

import json
from pathlib import Path
from typing import Any

from hivg_hf.utils.atomic import atomic_path

from . import Pictures


def write_coco(rows: Any, path: Path, pictures: Pictures) -> list[str]:
    """Write one file; returns what was lost."""
    images: dict[str, dict[str, Any]] = {}
    categories: dict[str, int] = {}
    notes: list[dict[str, Any]] = []
    image_of_ref: dict[str, str] = {}
    known: set[tuple[str, str]] = set()
    for number, row in enumerate(rows):
        name = pictures.name(row)
        size = {"width": row["width"], "height": row["height"]}
        image = images.setdefault(name, {"id": len(images) + 1, "file_name": name, **size})
        category = categories.setdefault(row["category"] or "object", len(categories) + 1)
        # The rows of an object keep its id, except where that would join them with another row.
        ref_id = row["ref_id"]
        if image_of_ref.setdefault(ref_id, name) != name or (ref_id, row["sent_id"]) in known:
            ref_id = f"{ref_id}#{number}"
        known.add((ref_id, row["sent_id"]))
        shared = {"image_id": image["id"], "category_id": category, "ref_id": ref_id}
        shared["sentences"] = [{"sent": row["expression"], "sent_id": row["sent_id"]}]
        if row["no_target"]:
            notes.append({"id": len(notes) + 1, **shared, "no_target": True})
        for position, (x1, y1, x2, y2) in enumerate(row["boxes"]):
            box = [x1, y1, x2 - x1, y2 - y1]
            note = {"id": len(notes) + 1, **shared, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            if row["mask"] is not None and position == 0:  # one mask is of all targets together
                note["segmentation"] = dict(row["mask"])
            notes.append(note)
    content = {
        "images": list(images.values()),
        "annotations": notes,
        "categories": [{"id": number, "name": name} for name, number in categories.items()],
    }
    with atomic_path(path) as unfinished:
        unfinished.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return []
