"""Tasks for Label Studio: one for each row, boxes in percent of the image, the expression as the text of each region.

The numbers are as exact as percent in double precision: boxes are bit-equal when read back. Pictures are named as
local files (`/data/local-files/?d=...`); the labeling setup that shows them is `LABELING_SETUP`.
"""

import json
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hivg_hf.utils.atomic import atomic_path

from . import Pictures

LABELING_SETUP = """<View>
  <Image name="image" value="$image"/>
  <Text name="row" value="$expression"/>
  <RectangleLabels name="label" toName="image"><Label value="object"/></RectangleLabels>
  <TextArea name="expression" toName="image" perRegion="true" editable="true"/>
</View>
"""


def write_label_studio(rows: Any, path: Path, pictures: Pictures) -> list[str]:
    """Write one file of tasks; returns what was lost."""
    tasks = [label_studio_task(row, pictures.name(row)) for row in rows]
    with atomic_path(path) as unfinished:
        unfinished.write_text(json.dumps(tasks, ensure_ascii=False, indent=1), encoding="utf-8")
    return []


def label_studio_task(row: Mapping[str, Any], name: str, **data: Any) -> dict[str, Any]:
    """The task of a row.

    Args:
        row: a row of the schema.
        name: of its picture.
        **data: further fields to show beside it.
    """
    result: list[dict[str, Any]] = []
    for number, box in enumerate(row["boxes"]):
        sides = (row["width"], row["height"]) * 2
        x1, y1, x2, y2 = (edge * 100 / side for edge, side in zip(box, sides, strict=True))
        region = {
            "id": f"box{number}",
            "to_name": "image",
            "original_width": row["width"],
            "original_height": row["height"],
            "image_rotation": 0,
        }
        value = {"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1, "rotation": 0}
        label = {**value, "rectanglelabels": [row["category"] or "object"]}
        text = {**value, "text": [row["expression"]]}
        result += [
            {**region, "from_name": "label", "type": "rectanglelabels", "value": label},
            {**region, "from_name": "expression", "type": "textarea", "value": text},
        ]
    image = f"/data/local-files/?d={urllib.parse.quote(name)}"
    shown = {"image": image, "expression": row["expression"], "no_target": row["no_target"], **data}
    return {"data": shown, "annotations": [{"result": result}]}
