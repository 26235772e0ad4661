"""ODVG, the JSONL of Grounding DINO's family: MM-Grounding-DINO, LLMDet, Open-GroundingDINO and NVIDIA TAO.

One image a line: `filename` (TAO: `file_name`), `width`, `height`, and `grounding` (`caption`, `regions` of `phrase`
and `bbox`, one box or a list of boxes) or `detection` (`instances` of `bbox`, `category` or `label`). Boxes are xyxy
pixels. Checked against the format pages and loaders of Open-GroundingDINO (data_format.md) and mmdetection
(mmdet/datasets/odvg.py), TAO's only against its documentation.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..schema import shown
from .common import Annotations, need_file
from .phrases import Entry, Phrase, PhraseFile, Several, each
from .tables import JsonLines, load_json, place_of


def read_odvg(
    split: str,
    *,
    source: str,
    images: Any = None,
    holdout: float | None = None,
    several: Several = "together",
    caption: bool = False,
    label_map: Any = None,
    box_format: str = "xyxy",
    check_format: bool = True,
) -> Annotations:
    """Read an ODVG file.

    Args:
        split: `all`, or `train` and `val` with `holdout`; a line may also carry a `split`.
        source: the path of the JSONL file.
        images: folder or folders of the pictures; the file's own folder by default.
        holdout: share of the images whose rows are `val`.
        several: `together`, boxes of one image with one phrase are targets of one row; `apart`, rows of their own.
        caption: True takes a line's caption as its one expression, with the boxes of all its regions.
        label_map: JSON file from label to class name, for detection lines without `category`.
        box_format: xyxy pixels unless the file departs from the format.
        check_format: whether to refuse a box format that the numbers contradict.
    """
    path = need_file(Path(source), "the ODVG file")
    records = JsonLines(path)
    names = {} if label_map is None else load_json(need_file(Path(label_map), "the label map"))

    def parse(line: Mapping[str, Any], _: int) -> list[Entry]:
        shared = {
            "image": line["filename"] if "filename" in line else line["file_name"],
            **{key: line.get(key) for key in ("width", "height", "split")},
        }
        if "grounding" in line:
            return _grounding(line["grounding"], shared, caption)
        if "detection" in line:
            return each(line["detection"]["instances"], lambda entry: [_instance(entry, names, shared)])
        raise ValueError("it has neither 'grounding' nor 'detection'")

    file = PhraseFile(
        path.stem,
        str(path),
        records,
        parse,
        lambda position: place_of(records, position, path),
        box_format,
        images if images is not None else path.parent,
        several,
    )
    return file.annotations(split, holdout, check_format)


def _grounding(grounding: Mapping[str, Any], shared: dict[str, Any], caption: bool) -> list[Entry]:
    regions = grounding["regions"]
    if grounding.get("no_target"):
        return [Phrase(expression=grounding["caption"], boxes=[], no_target=True, **shared)]
    if caption:
        boxes = [box for region in regions for box in _boxes(region["bbox"])]
        return [Phrase(expression=grounding["caption"], boxes=boxes, **shared)]
    return each(regions, lambda region: [Phrase(expression=region["phrase"], boxes=_boxes(region["bbox"]), **shared)])


def _instance(instance: Mapping[str, Any], names: Mapping[str, str], shared: dict[str, Any]) -> Phrase:
    name = _category(instance, names)
    return Phrase(expression=name, category=name, boxes=[instance["bbox"]], **shared)


def _boxes(bbox: Any) -> list[Any]:
    """One box or a list of them, as a list."""
    if not isinstance(bbox, list) or not bbox:
        raise ValueError(f"box {shown(bbox)} is not four numbers")
    return bbox if isinstance(bbox[0], list) else [bbox]


def _category(instance: Mapping[str, Any], names: Mapping[str, str]) -> str:
    if "category" in instance:
        return instance["category"]
    label = str(instance["label"])
    if label not in names:
        raise ValueError(f"its label {shown(label)} has no name; give label_map=, the JSON file that names the labels")
    return names[label]
