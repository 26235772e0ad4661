"""Writes labels: rows of the one schema, COCO, and tasks of Label Studio."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from hivg_hf.utils.atomic import atomic_path, write_json

# The columns of hivg_hf.data.schema.FEATURES that a table needs, in order; `split` is left out, so that a reader's
# `holdout` may divide the images. `score` and `template` go beyond the schema, and readers pass over them.
COLUMNS = (
    *("image", "expression", "box", "boxes", "no_target", "width", "height", "category"),
    *("image_id", "ref_id", "sent_id", "source", "score", "template"),
)


def write_table(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write rows as JSON Lines or Parquet, by the suffix; `box` is xyxy pixels.

    `load_grounding_dataset(path, "all", box_format="xyxy")` reads both.
    """
    with atomic_path(path) as temporary:
        if path.suffix == ".parquet":
            from datasets import Dataset, Features, Value

            from hivg_hf.data.schema import FEATURES

            types = {**FEATURES, "image": Value("string"), "score": Value("float32"), "template": Value("string")}
            features = Features({name: types[name] for name in COLUMNS})
            Dataset.from_list([dict(row) for row in rows], features=features).to_parquet(str(temporary))
        else:
            lines = (json.dumps({name: row[name] for name in COLUMNS}, ensure_ascii=False) + "\n" for row in rows)
            temporary.write_text("".join(lines), encoding="utf-8")


def write_coco(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write COCO's `images`, `annotations` (bbox xywh pixels, with `sentences` and `score`) and `categories`."""
    images: dict[str, dict[str, Any]] = {}
    categories: dict[str, int] = {}
    annotations: dict[str, dict[str, Any]] = {}
    for row in rows:
        size = {"width": row["width"], "height": row["height"]}
        image = images.setdefault(row["image"], {"id": len(images) + 1, "file_name": row["image"], **size})
        category = categories.setdefault(row["category"], len(categories) + 1)
        if row["ref_id"] not in annotations:
            x1, y1, x2, y2 = row["box"]
            annotations[row["ref_id"]] = {
                **{"id": len(annotations) + 1, "image_id": image["id"], "category_id": category},
                **{"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0},
                **{"score": row["score"], "ref_id": row["ref_id"], "sentences": []},
            }
        sentence = {"raw": row["expression"], "sent": row["expression"], "sent_id": row["sent_id"]}
        annotations[row["ref_id"]]["sentences"].append(sentence)
    named = [{"id": number, "name": name} for name, number in categories.items()]
    write_json(path, {"images": list(images.values()), "annotations": list(annotations.values()), "categories": named})


def write_label_studio(rows: Sequence[Mapping[str, Any]], path: Path, local_files: str = "") -> None:
    """Write tasks with predictions for Label Studio, and beside them `NAME.xml`, the labeling interface they fit.

    Args:
        rows: the labels.
        path: the JSON file.
        local_files: path of this file's folder below `LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT`; pictures are served
            from there.
    """
    tasks: dict[str, dict[str, Any]] = {}
    regions: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        place = f"{local_files.strip('/')}/{row['image']}".lstrip("/")
        url = f"/data/local-files/?d={quote(place)}"
        prediction: dict[str, Any] = {"model_version": row["source"], "result": []}
        task = tasks.setdefault(row["image"], {"data": {"image": url}, "predictions": [prediction]})
        if row["ref_id"] not in regions:
            regions[row["ref_id"]] = _regions(row, number=len(task["predictions"][0]["result"]))
            task["predictions"][0]["result"] += regions[row["ref_id"]]
        regions[row["ref_id"]][1]["value"]["text"].append(row["expression"])
    for task in tasks.values():
        scores = [region["score"] for region in task["predictions"][0]["result"]]
        task["predictions"][0]["score"] = min(scores)  # sorts tasks by their weakest box
    write_json(path, list(tasks.values()))
    labels = "".join(f"    <Label value={quoteattr(name)}/>\n" for name in dict.fromkeys(r["category"] for r in rows))
    with atomic_path(path.with_suffix(".xml")) as temporary:
        temporary.write_text(
            '<View>\n  <Image name="image" value="$image"/>\n'
            f'  <RectangleLabels name="label" toName="image">\n{labels}  </RectangleLabels>\n'
            '  <TextArea name="expression" toName="image" perRegion="true" editable="true" maxSubmissions="0"/>\n'
            "</View>\n",
            encoding="utf-8",
        )


def _regions(row: Mapping[str, Any], number: int) -> list[dict[str, Any]]:
    """An object's rectangle, and the text area of its expressions on the same region."""
    x1, y1, x2, y2 = row["box"]
    across, down = 100 / row["width"], 100 / row["height"]  # Label Studio counts in percent
    place = {"x": x1 * across, "y": y1 * down, "width": (x2 - x1) * across, "height": (y2 - y1) * down, "rotation": 0}
    shared = {
        **{"id": f"region-{number}", "to_name": "image", "score": row["score"], "image_rotation": 0},
        **{"original_width": row["width"], "original_height": row["height"]},
    }
    label = {"from_name": "label", "type": "rectanglelabels", "value": {**place, "rectanglelabels": [row["category"]]}}
    text: dict[str, Any] = {"from_name": "expression", "type": "textarea", "value": {**place, "text": []}}
    return [{**shared, **label}, {**shared, **text}]
