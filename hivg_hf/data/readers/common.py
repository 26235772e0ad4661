"""What the readers share: the shape of what they return, boxes, masks, and where images may lie.

A reader is a function `read(split, root=..., ...) -> Annotations`. It does not build rows: it returns the records of
the split and a function from one record to one draft, so that the same reader serves a dataset in memory and a stream.
"""

import difflib
import functools
import os
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hivg_hf.modeling.processing_inputs_hivg import SMALLEST_DOUBTFUL_SIDE
from hivg_hf.utils.imports import require_package

from ..schema import MOST_PIXELS, checked_run_lengths, shown

# What a record of any content can raise while it is read: it is then one row that cannot be used.
ROW_ERRORS = (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError)

# The steps that pycocotools takes along a row's polygons, 5 a pixel, may not exceed a few hundred megabytes.
MOST_OUTLINE_PIXELS = 2_000_000

# A missing picture is looked for among this many files below its folder.
MOST_FILES_LISTED = 100_000

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


class RowError(ValueError):
    """What is wrong with one row, and the kind of problem it is counted as."""

    def __init__(self, kind: str, reason: str) -> None:
        self.kind = kind
        super().__init__(reason)


@dataclass
class Draft:
    """One annotation as its source says it, before anything is checked.

    Attributes:
        image: path, or `{"path": ..., "bytes": ...}` where the source embeds pictures.
        boxes: every target, xyxy pixels of the original image; [] with `no_target`.
        mask: COCO run lengths `{"size", "counts"}` of all targets together, or None.
        width, height: of the image as annotated; None where the source does not say.
        box: the one box that stands for several, where the source says so already.
        source: where the annotation came from at first, where a table holds rows of several sources.
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
    box: list[float] | None = None
    source: str | None = None


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
        place: where a record stands in its file, for messages about what it says; None where ids are enough.
        shards: the `ShardRecords` that `read` takes rows from, where the source is read forward.
    """

    source: str
    split: str
    records: Sequence[Any]
    read: Callable[[Any], Draft]
    name_record: Callable[[Any, int], str] = lambda record, position: f"record {position}"
    notes: list[str] = field(default_factory=list)
    counts_objects: bool = True
    place: Callable[[Any], str] | None = None
    shards: Any = None


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
                raise FileNotFoundError(f"Image folder not found: {folder}; images= must name an existing one.")
        places = [os.path.join(folder, below) for folder in self.folders for below in IMAGE_FOLDERS]
        self._places = [place for place in places if os.path.isdir(place)]

    def __call__(self, file_name: str) -> str:
        """The path of a picture; where it should be if it is missing, so that the check of the rows can say so.

        Raises:
            ValueError: it is not a file name.
        """
        file_name = clean_file_name(file_name)
        if os.path.isabs(file_name):
            return file_name
        # One name has two spellings in Unicode: macOS stores accents apart, everybody else types them as one letter.
        spellings = [file_name] if file_name.isascii() else [*_spellings(file_name)]
        for position, place in enumerate(self._places):
            for spelling in spellings:
                path = os.path.join(place, spelling)
                if os.path.isfile(path):
                    if position:  # pictures of one dataset lie together: look there first next time
                        self._places.insert(0, self._places.pop(position))
                    return path
        return str(self.folders[0] / file_name)

    def picture_name(self, file_name: str) -> str:
        """One name for a picture, however a table spells it: relative to the folder that holds it.

        `a.jpg`, `./a.jpg`, `sub/../a.jpg`, `sub\\..\\a.jpg` and its absolute path are all `a.jpg`.

        Raises:
            ValueError: it is not a file name.
        """
        path = os.path.abspath(self(file_name))
        for folder in map(os.path.abspath, self.folders):
            if os.path.commonpath([folder, path]) == folder:
                return Path(os.path.relpath(path, folder)).as_posix()
        return path


def _spellings(file_name: str) -> dict[str, None]:
    """The spellings of a name in Unicode, its own first."""
    return dict.fromkeys([file_name, *(unicodedata.normalize(form, file_name) for form in ("NFC", "NFD"))])


def where_it_may_be(path: str) -> str:
    """A clause that says where a missing picture may lie, "" where nothing like it is near.

    Args:
        path: where it was looked for.
    """
    missing = Path(path)
    folder = next((parent for parent in missing.parents if parent.is_dir()), None)
    if folder is None or folder == Path(folder.anchor or "/"):
        return ""
    if missing.parent != folder:
        outer = f"; there is no folder {missing.parent.name} in {folder}"
    else:
        outer = ""
    near = _names_below(str(folder)).get(_folded(missing.name), ())
    near = near or _names_below(str(folder)).get(_folded(missing.stem), ())
    if not near:
        return outer
    found = near[0]
    more = f" (and {len(near) - 1} more of that name)" if len(near) > 1 else ""
    if os.path.dirname(found) and os.path.basename(found) == missing.name:
        below = str(folder / os.path.dirname(found))
        return f"; it is in {below}{more}: say images={below!r}, or put the folder into the name"
    return f"; there is {folder / found}{more}: names must agree in case and suffix"


@functools.lru_cache(maxsize=8)
def _names_below(folder: str) -> dict[str, list[str]]:
    """Files below a folder by their name and by their stem, both folded."""
    names: dict[str, list[str]] = {}
    count = 0
    for place, _, files in os.walk(folder):
        for name in sorted(files):
            relative = os.path.relpath(os.path.join(place, name), folder)
            for key in {_folded(name), _folded(Path(name).stem)}:
                names.setdefault(key, []).append(relative)
        count += len(files)
        if count > MOST_FILES_LISTED:
            break
    return names


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def clean_file_name(file_name: str) -> str:
    """A file name with "/" between folders, without "." and "..".

    Raises:
        ValueError: it is not text, is blank, or holds a NUL or half a surrogate pair, which no file name does.
    """
    if not isinstance(file_name, str) or not file_name.strip():
        raise ValueError(f"its image is {shown(file_name)}, expected a file name")
    if "\0" in file_name or any("\ud800" <= character <= "\udfff" for character in file_name):
        raise ValueError(f"its image {shown(file_name)} is not a file name: it holds a NUL or half a character")
    return os.path.normpath(file_name.replace("\\", "/"))


def whole_side(value: Any, name: str) -> int | None:
    """A width or height in pixels, None where a record leaves it empty.

    Args:
        value: what the record says; text of a CSV file too.
        name: `width` or `height`, for the message.

    Raises:
        ValueError: it is not a whole number of pixels that a picture can have.
    """
    if is_blank_number(value):  # NaN too: so says a table of numbers
        return None
    try:
        number = float("nan") if isinstance(value, (bool, np.bool_)) else float(plain_number(value))
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    if not 1 <= number <= MOST_PIXELS or number != int(number):
        raise ValueError(f"its {name} is {shown(value)}, expected a whole number of pixels")
    return int(number)


def cell_text(value: Any) -> str:
    """A cell as text; "" where it is empty, also as tables of numbers say so (NaN); bytes are UTF-8, or hex."""
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8").strip()
        except UnicodeDecodeError:
            return value.hex()
    return "" if value is None or (isinstance(value, float) and value != value) else str(value).strip()


def is_blank_number(value: Any) -> bool:
    """Whether a cell for a number is empty, in any of the ways in which tables and pandas write that."""
    return cell_text(value).lower() in ("", "nan", "none", "null", "n/a", "na", "<na>")


def plain_number(value: Any) -> Any:
    """A cell for a number; Python alone reads `1_0` as 10.

    Raises:
        ValueError: it is text with an underscore.
    """
    if isinstance(value, str) and "_" in value:
        raise ValueError(f"{shown(value)} is not a number")
    return value


def truth(value: Any, name: str) -> bool:
    """A cell that says yes or no; no where it is empty.

    Raises:
        ValueError: it says neither.
    """
    lowered = "" if is_blank_number(value) else cell_text(value).lower()
    if lowered not in ("", "0", "1", "0.0", "-0.0", "1.0", "true", "false", "yes", "no"):
        raise ValueError(f"{name} is {shown(value)}, expected true or false")
    return lowered in ("1", "1.0", "true", "yes")


def four_numbers(box: Any, spelled: Any = None) -> list[float]:
    """A box of any format as four floats.

    Args:
        box: a list of four.
        spelled: how the file writes it, for the message.

    Raises:
        ValueError: it is not four numbers; true and false are not numbers.
    """
    spelled = box if spelled is None else spelled
    values = list(box) if isinstance(box, Sequence) and not isinstance(box, (str, bytes)) else []
    if len(values) != 4 or any(isinstance(value, bool) or value is None for value in values):
        advice = "; write its values as a list, or as four columns" if isinstance(spelled, Mapping) else ""
        raise ValueError(f"box {shown(spelled)} is not four numbers{advice}")
    try:
        return [float(plain_number(value)) for value in values]
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"box {shown(spelled)} is not four numbers") from error


def xywh_to_xyxy(box: Sequence[float]) -> list[float]:
    """(x, y, width, height) to (x1, y1, x2, y2), in the same unit."""
    x, y, width, height = four_numbers(box)
    return [x, y, x + width, y + height]


def cxcywh_to_xyxy(box: Sequence[float]) -> list[float]:
    """(center x, center y, width, height) to (x1, y1, x2, y2), in the same unit."""
    x, y, width, height = four_numbers(box)
    return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]


def as_xyxy(box: Sequence[float]) -> list[float]:
    """Four numbers that are (x1, y1, x2, y2) already."""
    return four_numbers(box)


def segmentation_to_mask(segmentations: Iterable[Any], height: Any, width: Any) -> dict[str, Any] | None:
    """COCO segmentations (polygons or run lengths) of one or several objects to one run-length mask.

    Args:
        segmentations: per object, a list of polygons [x, y, x, y, ...] in pixels, or a run-length dict.
        height, width: of the image, in pixels.

    Returns:
        `{"size": [height, width], "counts": str}`, None where there is nothing to draw.

    Raises:
        ValueError: a polygon is not pairs of numbers in the picture, or run lengths are not a mask of it.
    """
    coco = require_package("pycocotools.mask", extra="data")
    segmentations = [segmentation for segmentation in segmentations if segmentation]
    if not segmentations:
        return None
    height, width = whole_side(height, "height"), whole_side(width, "width")
    if height is None or width is None or height * width > MOST_PIXELS:
        raise ValueError(f"its mask needs the size of its image, got {shown(width)} x {shown(height)}")
    parts: list[dict[str, Any]] = []
    outline = 0.0
    for segmentation in segmentations:
        if isinstance(segmentation, Mapping):
            parts.append(checked_run_lengths(segmentation, height, width))
            continue
        # Fewer than three points enclose nothing; COCO has a few such polygons.
        polygons = [_checked_polygon(polygon, height, width) for polygon in segmentation]
        polygons = [polygon for polygon in polygons if len(polygon) >= 3]
        outline += sum(np.abs(np.diff(polygon, axis=0, append=polygon[:1])).sum() for polygon in polygons)
        if outline > MOST_OUTLINE_PIXELS:
            raise ValueError(f"the outline of its mask is {outline:,.0f} pixels long, expected that of an object")
        if polygons:
            parts.extend(coco.frPyObjects([polygon.reshape(-1).tolist() for polygon in polygons], height, width))
    if not parts:
        return None
    merged = coco.merge(parts)
    return {"size": [int(side) for side in merged["size"]], "counts": merged["counts"].decode("ascii")}


def _checked_polygon(polygon: Any, height: int, width: int) -> np.ndarray:
    """[x, y, x, y, ...] in pixels -> (points, 2) float64, at most one picture's side outside of the picture.

    pycocotools walks along the outline pixel by pixel and keeps every step: a corner far away takes all memory, and
    one that is not a number ends the process.
    """
    if not isinstance(polygon, Sequence) or isinstance(polygon, (str, bytes)) or len(polygon) % 2:
        raise ValueError(f"a polygon of its mask is {shown(polygon)}, expected pairs of numbers [x, y, x, y, ...]")
    if not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in polygon):
        raise ValueError(f"a polygon of its mask is {shown(polygon)}, expected pairs of numbers [x, y, x, y, ...]")
    points = np.asarray([float(value) for value in polygon], dtype=np.float64).reshape(-1, 2)
    side = np.array([width, height])
    if not ((points >= -side) & (points <= 2 * side)).all():  # NaN compares as False
        raise ValueError(
            f"a polygon of its mask has corners far from its image of {width} x {height}: {shown(polygon)}"
        )
    if len(points) >= 3 and points.max() <= 1 and min(height, width) > SMALLEST_DOUBTFUL_SIDE:
        raise ValueError(
            f"a polygon of its mask lies within 0..1 ({shown(polygon)}); expected pixels, which are those times "
            f"{width} and {height}"
        )
    return points


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
        raise FileNotFoundError(f"Folder not found: {root}, where {source} was looked for.")
    return root


def need_file(path: Path, source: str) -> Path:
    """`path`, which must be a file.

    Raises:
        FileNotFoundError: it is not; the message lists what the folder holds.
    """
    if not path.is_file():
        if path.is_dir():
            raise FileNotFoundError(f"{source} needs a file, and {path} is a folder.")
        if not path.parent.is_dir():
            raise FileNotFoundError(f"{source} needs the file {path}; there is no folder {path.parent}.")
        beside = _names_like(path)
        held = f"that folder holds {', '.join(beside[:12])}" if beside else "that folder is empty"
        raise FileNotFoundError(f"{source} needs the file {path}; {held}.")
    return path


def _names_like(path: Path) -> list[str]:
    """What stands in the folder of a file, names like its own first; not the folder that a run is about to fill."""
    beside = sorted(entry.name for entry in path.parent.iterdir() if not _holds_nothing(entry))
    alike = difflib.get_close_matches(path.name, beside)
    return [*alike, *(name for name in beside if name not in alike)]


def _holds_nothing(entry: Path) -> bool:
    if entry.name.startswith("."):
        return True
    try:
        return entry.is_dir() and all(inside.name.startswith(".") for inside in entry.iterdir())
    except OSError:
        return False
