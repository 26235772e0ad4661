"""What the readers share: the shape of what they return, boxes, masks, and where images may lie.

A reader is a function `read(split, root=..., ...) -> Annotations`. It does not build rows: it returns the records of
the split and a function from one record to one draft, so that the same reader serves a dataset in memory and a stream.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hivg_hf.import_utils import require_package

# Where published layouts keep their pictures, below the folder that the user names.
IMAGE_FOLDERS = (
    "",
    "images",
    "train2014",
    "images/train2014",
    "images/mscoco/images/train2014",
    "mscoco/images/train2014",
    "coco/train2014",
    "other/images/mscoco/images/train2014",
    "referit/images",
    "images/saiapr_tc-12",
    "saiapr_tc-12",
    "flickr30k-images",
    "flickr30k_images",
    "Flickr30k/flickr30k-images",
)


@dataclass
class Draft:
    """One annotation as its source says it, before anything is checked.

    Attributes:
        image: path, or `{"path": ..., "bytes": ...}` where the source embeds pictures.
        boxes: every target, xyxy pixels of the original image; [] with `no_target`.
        mask: COCO run lengths `{"size", "counts"}` of all targets together, or None.
        width, height: of the image as annotated; None where the source does not say.
    """

    image: Any
    expression: Any
    boxes: list[list[float]]
    image_id: str
    ref_id: str
    sent_id: str
    no_target: bool = False
    mask: dict[str, Any] | None = None
    width: int | None = None
    height: int | None = None
    category: str | None = None


@dataclass
class Annotations:
    """One split of one source: its records, and how one of them becomes a draft.

    Attributes:
        source: the name that goes into the `source` column.
        split: the split in the source's own words.
        records: anything with a length and an index; reading one must not need the others.
        read: record to draft; a record that is not what the format promises raises ValueError, KeyError or TypeError.
        name_record: how a record that cannot even be read is named, (record, position) to text.
        notes: what the reader left out by the format's own rules, for the log.
        counts_objects: whether `ref_id` tells objects apart, so that they can be counted.
    """

    source: str
    split: str
    records: Sequence[Any]
    read: Callable[[Any], Draft]
    name_record: Callable[[Any, int], str] = lambda record, position: f"record {position}"
    notes: list[str] = field(default_factory=list)
    counts_objects: bool = True


class ImageFinder:
    """Find pictures by file name below the folders that a user names, in the layouts that datasets are published in.

    Args:
        folders: one folder or several.
    """

    def __init__(self, folders: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> None:
        if isinstance(folders, (str, os.PathLike)):
            folders = [folders]
        self.folders = [Path(folder) for folder in folders]
        if not self.folders:
            raise ValueError("images= names no folder; give the folder that holds the pictures.")
        for folder in self.folders:
            if not folder.is_dir():
                raise FileNotFoundError(f"There is no image folder {folder}; images= must name an existing one.")
        places = [os.path.join(folder, below) for folder in self.folders for below in IMAGE_FOLDERS]
        self._places = [place for place in places if os.path.isdir(place)]

    def __call__(self, file_name: str) -> str:
        """The path of a picture; where it should be if it is missing, so that the check of the rows can say so."""
        if os.path.isabs(file_name):
            return file_name
        for position, place in enumerate(self._places):
            path = os.path.join(place, file_name)
            if os.path.isfile(path):
                if position:  # pictures of one dataset lie together: look there first next time
                    self._places.insert(0, self._places.pop(position))
                return path
        return str(self.folders[0] / file_name)


def xywh_to_xyxy(box: Sequence[float]) -> list[float]:
    """(x, y, width, height) to (x1, y1, x2, y2), in the same unit."""
    x, y, width, height = (float(value) for value in box)
    return [x, y, x + width, y + height]


def cxcywh_to_xyxy(box: Sequence[float]) -> list[float]:
    """(centre x, centre y, width, height) to (x1, y1, x2, y2), in the same unit."""
    x, y, width, height = (float(value) for value in box)
    return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]


def as_xyxy(box: Sequence[float]) -> list[float]:
    """Four numbers that are (x1, y1, x2, y2) already."""
    x1, y1, x2, y2 = (float(value) for value in box)
    return [x1, y1, x2, y2]


def segmentation_to_mask(segmentations: Iterable[Any], height: int, width: int) -> dict[str, Any] | None:
    """COCO segmentations (polygons or run lengths) of one or several objects to one run-length mask.

    Args:
        segmentations: per object, a list of polygons [x, y, x, y, ...] in pixels, or a run-length dict.
        height, width: of the image, in pixels.

    Returns:
        `{"size": [height, width], "counts": str}`, None where there is nothing to draw.
    """
    coco = require_package("pycocotools.mask", extra="data")
    parts = []
    for segmentation in segmentations:
        if isinstance(segmentation, Mapping):
            parts.append(_run_lengths(coco, segmentation, height, width))
        else:
            # Fewer than three points enclose nothing; COCO has a few such polygons.
            polygons = [[float(value) for value in polygon] for polygon in segmentation or [] if len(polygon) >= 6]
            parts.extend(coco.frPyObjects(polygons, height, width) if polygons else [])
    if not parts:
        return None
    merged = coco.merge(parts)
    return {"size": [int(side) for side in merged["size"]], "counts": merged["counts"].decode("ascii")}


def _run_lengths(coco: Any, segmentation: Mapping[str, Any], height: int, width: int) -> dict[str, Any]:
    counts = segmentation["counts"]
    if isinstance(counts, list):
        return coco.frPyObjects(dict(segmentation), height, width)
    return {
        "size": list(segmentation["size"]),
        "counts": counts.encode("ascii") if isinstance(counts, str) else counts,
    }


def file_stem(file_name: str) -> str:
    """The name that identifies a picture in every dataset that holds it: the file's name without folder and suffix."""
    return Path(str(file_name)).stem


def need_folder(root: Any, source: str) -> Path:
    """The folder `root` of a source.

    Raises:
        ValueError: none was given.
        FileNotFoundError: it is not there.
    """
    if root is None:
        raise ValueError(f"{source} is read from files: give root=, the folder that holds its annotations.")
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"There is no folder {root}, where {source} was looked for.")
    return root


def need_file(path: Path, source: str) -> Path:
    """`path`, which must be a file.

    Raises:
        FileNotFoundError: it is not; the message lists what the folder holds.
    """
    if not path.is_file():
        beside = sorted(entry.name for entry in path.parent.iterdir()) if path.parent.is_dir() else []
        held = f"that folder holds {', '.join(beside[:12])}" if beside else f"there is no folder {path.parent}"
        raise FileNotFoundError(f"{source} needs the file {path}; {held}.")
    return path
