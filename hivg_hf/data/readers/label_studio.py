"""Label Studio's JSON export (and its JSON-MIN): rectangles in percent of the image, labels or a text for each region.

An expression is the text that somebody typed for a region (a `TextArea` with `perRegion`, which shares the region's
id), or, without one, the region's labels. Checked against Label Studio's pages on its task format and on
RectangleLabels. CVAT and Label Studio also export COCO and Pascal VOC, which have readers of their own.
"""

import os
import re
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from hivg_hf.utils.strict_mapping import refuse_other

from ..schema import shown
from .common import Annotations, ImageFinder, need_file
from .phrases import Entry, Phrase, PhraseFile, Several, each
from .tables import load_json_array

Annotator = Literal["only", "first", "last"]
UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{8}-(?=.)")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


def read_label_studio(
    split: str,
    *,
    source: str,
    images: Any = None,
    holdout: float | None = None,
    several: Several = "together",
    image_key: str | None = None,
    annotator: Annotator = "only",
    check_format: bool = True,
) -> Annotations:
    """Read an export.

    Args:
        split: a value of the tasks' `data.split`; `all`, or `train` and `val` with `holdout`, where they have none.
        source: the path of the JSON file.
        images: folder or folders of the pictures; the file's own folder by default. What Label Studio puts before the
            name of an upload (`/data/upload/1/1a2b3c4d-`) need not be in the folder.
        holdout: share of the images whose rows are `val`.
        several: `together`, regions of one image with the same words are targets of one row; `apart`, rows of their
            own.
        image_key: the key of `data` that holds the picture, where there are several.
        annotator: which annotation of a task that several people did: `only` refuses such tasks.
        check_format: whether to refuse a box format that the numbers contradict.
    """
    refuse_other("annotator", annotator, get_args(Annotator))
    path = need_file(Path(source), "the Label Studio export")
    tasks = load_json_array(path)
    folders = images if images is not None else path.parent
    find = ImageFinder(folders)

    def parse(task: Mapping[str, Any], _: int) -> list[Entry]:
        data = task["data"] if isinstance(task.get("data"), Mapping) else task
        picture = _file_name(_picture(data, image_key), find)
        return _phrases(_regions(task, annotator), {"image": picture, "split": data.get("split")}, data)

    file = PhraseFile(
        path.stem,
        str(path),
        tasks,
        parse,
        lambda position: _place(tasks[position], position, path),
        "xywh_100",
        folders,
        several,
    )
    return file.annotations(split, holdout, check_format)


def _place(task: Any, position: int, path: Path) -> str:
    number = task.get("id") if isinstance(task, Mapping) else None
    return f"task {position if number is None else shown(number)} of {path.name}"


def _regions(task: Mapping[str, Any], annotator: Annotator) -> list[Mapping[str, Any]]:
    """The regions of the one annotation of a task that counts.

    Raises:
        ValueError: several people annotated it, and nobody said whose counts.
    """
    if "annotations" not in task and "completions" not in task:  # JSON-MIN: regions stand in the task itself
        lists = [value for value in task.values() if isinstance(value, list)]
        return [
            {"id": f"{number}:{index}", "type": "rectanglelabels", "value": region, **region}
            for number, regions in enumerate(lists)
            for index, region in enumerate(regions)
            if isinstance(region, Mapping) and "width" in region
        ]
    annotations = [
        annotation
        for annotation in task.get("annotations", task.get("completions")) or []
        if not annotation.get("was_cancelled")
    ]
    if not annotations:
        return []
    best = [annotation for annotation in annotations if annotation.get("ground_truth")] or annotations
    if len(best) > 1 and annotator == "only":
        raise ValueError(f"{len(best)} people annotated it; say annotator='first' or 'last', or mark the ground truth")
    return list(best[-1 if annotator == "last" else 0]["result"])


def _phrases(regions: Sequence[Mapping[str, Any]], shared: Mapping[str, Any], data: Mapping[str, Any]) -> list[Entry]:
    texts: dict[Any, list[Any]] = {}
    rectangles: dict[Any, Mapping[str, Any]] = {}
    labels: dict[Any, list[str]] = {}
    for number, region in enumerate(regions):
        value, region_id = region.get("value") or {}, region.get("id", number)
        if "text" in value and region.get("type") == "textarea":
            content = value["text"]
            texts.setdefault(region_id, []).extend(content if isinstance(content, list) else [content])
        elif {"x", "y", "width", "height"} <= set(value) and region.get("type", "").startswith("rectangle"):
            rectangles[region_id] = region
        labels.setdefault(region_id, []).extend(value.get("rectanglelabels") or value.get("labels") or [])
    if not rectangles and data.get("no_target"):
        return [Phrase(expression=data.get("expression"), boxes=[], no_target=True, **shared)]

    def phrases(region_id: Any) -> list[Phrase]:
        region, named = rectangles[region_id], labels.get(region_id) or []
        value = region["value"]
        if value.get("rotation") or region.get("image_rotation"):
            raise ValueError("a box of it, or its image, is rotated; expected upright ones")
        words = texts.get(region_id) or ([" ".join(map(str, named))] if named else [])
        if not words:
            raise ValueError("a box of it has neither a text nor a label")
        return [
            Phrase(
                expression=word,
                boxes=[[value[key] for key in ("x", "y", "width", "height")]],
                width=region.get("original_width"),
                height=region.get("original_height"),
                category=str(named[0]) if len(named) == 1 and texts.get(region_id) else None,
                **shared,
            )
            for word in words
        ]

    return each(rectangles, phrases)


def _picture(data: Mapping[str, Any], image_key: str | None) -> Any:
    if image_key is not None:
        return data[image_key]
    if "image" in data:
        return data["image"]
    named = [value for value in data.values() if isinstance(value, str) and value.lower().endswith(IMAGE_SUFFIXES)]
    if len(named) != 1:
        raise ValueError(f"its data names {len(named)} pictures, expected one; say image_key=")
    return named[0]


def _file_name(named: Any, find: ImageFinder) -> Any:
    """The file of a picture that an export names by URL, by storage, or by the name of an upload."""
    if not isinstance(named, str):
        return named
    parts = urllib.parse.urlsplit(named)
    local = urllib.parse.parse_qs(parts.query).get("d") if "local-files" in parts.path else None
    if local:
        name = urllib.parse.unquote(local[0])
    elif parts.scheme in ("http", "https", "s3", "gs", "azure-blob") or parts.path.startswith("/data/"):
        name = urllib.parse.unquote(os.path.basename(parts.path))
    else:
        return named
    for candidate in (name, os.path.basename(name), UPLOAD_PREFIX.sub("", os.path.basename(name))):
        if candidate and os.path.isfile(find(candidate)):
            return candidate
    return name
