"""The official shuffled splits, `ref_data_shuffled/<dataset>/<dataset>_<split>.pth`: lists of tuples by torch.save.

    unc, unc+, gref, gref_umd   (file, {"height", "width"}, box xywh, phrase, polygons)
    referit                     (file, mask file,           box xyxy, phrase, attributes)
    flickr                      (file,                      box xyxy, phrase)
    mixup                       (file, {...} | "flickr" | "referit", box xywh, phrase, polygons | ...)

Official: datasets/data_loader.py:257-323. It casts boxes to int before use; here they stay as they are written.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from hivg_hf.utils.safe_pickle import load_torch_file

from ..splits import resolve_split
from .common import (
    Annotations,
    Draft,
    ImageFinder,
    as_xyxy,
    file_stem,
    need_file,
    need_folder,
    segmentation_to_mask,
    xywh_to_xyxy,
)

SPLITS = {
    "unc": ("train", "val", "trainval", "testA", "testB"),
    "unc+": ("train", "val", "trainval", "testA", "testB"),
    "gref": ("train", "val"),
    "gref_umd": ("train", "val", "test"),
    "referit": ("train", "val", "trainval", "test"),
    "flickr": ("train", "val", "test"),
    "mixup": ("train", "val", "test"),
}
XYXY_DATASETS = ("referit", "flickr")
# Official: datasets/data_loader.py:244-246. ReferIt has a file of its own for it.
JOINED = {("unc", "trainval"): ("train", "val"), ("unc+", "trainval"): ("train", "val")}


def read_official_split(
    split: str, *, source: str, root: Any = None, images: Any = None, masks: bool = True
) -> Annotations:
    """Read one official split.

    Args:
        split: a split of the dataset.
        source: `unc`, `unc+`, `gref`, `gref_umd`, `referit`, `flickr` or `mixup`.
        root: the folder that holds `<dataset>/<dataset>_<split>.pth`.
        images: folder or folders of the pictures; defaults to `root`.
        masks: whether to draw COCO's polygons (or run lengths) into run-length masks.
    """
    aliases = {"test": "testA"} if source in ("unc", "unc+") else {}
    split = resolve_split(split, SPLITS[source], source, aliases)
    root = need_folder(root, source)
    files = JOINED.get((source, split), (split,))
    paths = [need_file(root / source / f"{source}_{file}.pth", source) for file in files]
    records = [record for path in paths for record in load_torch_file(path)]
    find = ImageFinder(images if images is not None else root)
    convert = as_xyxy if source in XYXY_DATASETS else xywh_to_xyxy

    def read(numbered: tuple[int, Any]) -> Draft:
        # The tuples carry no ids: their place in the file is the only stable name.
        position, record = numbered
        file_name, size, box, phrase, polygons = map(_plain, _fields(record, source))
        width, height = (int(size["width"]), int(size["height"])) if isinstance(size, Mapping) else (None, None)
        drawn = masks and width is not None and height is not None and isinstance(polygons, (list, Mapping))
        return Draft(
            image=find(file_name),
            expression=phrase,
            boxes=[convert(box)],
            mask=segmentation_to_mask([polygons], height, width) if drawn else None,
            width=width,
            height=height,
            image_id=file_stem(file_name),
            ref_id=str(position),
            sent_id=str(position),
        )

    numbered = list(enumerate(records))
    return Annotations(source, split, numbered, read, lambda record, _: f"record {record[0]}", counts_objects=False)


def _plain(value: Any) -> Any:
    """numpy's numbers and arrays, however deep in lists and tuples, as Python's."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    return [_plain(part) for part in value] if isinstance(value, (list, tuple)) else value


def _fields(record: Any, source: str) -> tuple[Any, Any, Any, Any, Any]:
    """(file, size or tag, box, phrase, polygons) of a record of any of the datasets."""
    if source == "flickr":
        file_name, box, phrase = record
        return file_name, None, box, phrase, None
    if len(record) != 5:
        raise ValueError(
            f"a record of {source} has {len(record)} fields, expected 5 (TransVG's files lack sizes and masks; use "
            "those of ref_data_shuffled)"
        )
    return tuple(record)
