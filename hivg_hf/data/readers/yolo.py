"""YOLO folders: `data.yaml` with class names, which become the expressions, and a text file of boxes for each image.

A line is `class cx cy w h` in 0..1, or `class x y x y ...`, the corners of a polygon, whose box is taken. Checked only
against descriptions (Ultralytics' and Roboflow's exports). A folder as Roboflow exports CSV or COCO (`train/`,
`valid/`, `test/` with `_annotations.csv` or `_annotations.coco.json`) is read here too.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..schema import shown
from ..splits import resolve_split
from .common import Annotations, need_folder, plain_number
from .label_studio import IMAGE_SUFFIXES
from .phrases import Entry, Phrase, PhraseFile, Several, each

SPLIT_KEYS = ("train", "val", "test")
ROBOFLOW_FILES = ("_annotations.csv", "_annotations.coco.json")


def read_yolo(
    split: str,
    *,
    source: str,
    holdout: float | None = None,
    several: Several = "together",
    check_format: bool = True,
) -> Annotations:
    """Read a YOLO dataset.

    Args:
        split: `train`, `val` or `test`, as `data.yaml` names them; `all`, or `train` and `val` with `holdout`, of one
            that names no folders.
        source: the folder, or its YAML file.
        holdout: share of the images whose rows are `val`.
        several: `together`, boxes of one class in an image are targets of one row; `apart`, rows of their own.
        check_format: whether to refuse a box format that the numbers contradict.
    """
    path = Path(source)
    config = path if path.suffix.lower() in (".yaml", ".yml") else yaml_file(need_folder(path, "YOLO"))
    if config is None:
        raise FileNotFoundError(f"data.yaml, which names the classes, not found in {path}.")
    content = _load(config)
    root = config.parent
    names = _class_names(content.get("names"), config)
    pictures = list(_pictures(content, root))

    def parse(picture: tuple[Path, str], _: int) -> list[Entry]:
        labels = _label_file(picture[0])
        lines = labels.read_text(encoding="utf-8-sig").splitlines() if labels.is_file() else []
        # Whole: it is looked for below the folder, of which a relative name would be put in front once more.
        shared = {"image": os.path.abspath(picture[0]), "split": picture[1]}
        return each(filter(str.strip, lines), lambda line: [_object(line, names, **shared)])

    file = PhraseFile(
        root.name,
        str(config),
        pictures,
        parse,
        lambda at: str(_label_file(pictures[at][0])),
        "cxcywh_normalized",
        root,
        several,
    )
    return file.annotations(split, holdout, check_format)


def read_roboflow(
    split: str, *, source: str, several: Several = "together", columns: Mapping[str, str] | None = None
) -> Annotations:
    """Read one split of a folder that Roboflow exported as CSV or COCO.

    Args:
        split: a folder of the export; `val` is understood for `valid`.
        source: the folder.
        several: `together`, boxes of one class in an image are targets of one row; `apart`, rows of their own.
        columns: for CSV, our name to the file's name, where they differ.
    """
    from .coco_json import read_coco_json
    from .tabular import read_tabular

    root = need_folder(source, "Roboflow's export")
    found = roboflow_splits(root)
    split = resolve_split(split, list(found), source)
    path = found[split]
    if path.suffix == ".csv":
        annotations = read_tabular("all", source=str(path), several=several, columns=columns)
    else:
        annotations = read_coco_json("all", source=str(path), several=several, expressions="category")
    annotations.source, annotations.split = root.name, split
    return annotations


def roboflow_splits(root: Path) -> dict[str, Path]:
    """Split to its file, of a folder that Roboflow exported."""
    return {
        folder.name: folder / name
        for folder in sorted(root.iterdir())
        for name in ROBOFLOW_FILES
        if (folder / name).is_file()
    }


def yaml_file(root: Path) -> Path | None:
    """The YAML file of a YOLO folder that names the classes, None where there is none."""
    return next((path for name in ("data.yaml", "data.yml", "dataset.yaml") if (path := root / name).is_file()), None)


def _load(config: Path) -> Mapping[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(config.read_text(encoding="utf-8-sig"))
    except yaml.YAMLError as error:
        raise ValueError(f"{config} is not YAML ({error}).") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{config} is a {type(content).__name__}, expected names and folders.")
    return content


def _class_names(names: Any, config: Path) -> dict[int, str]:
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, Mapping) or not names:
        raise ValueError(f"{config} has no names of classes, which are the expressions.")
    return {int(number): str(name) for number, name in names.items()}


def _pictures(content: Mapping[str, Any], root: Path) -> Iterator[tuple[Path, str]]:
    """Every picture with its split, "" where the file names no folders."""
    base = root / str(content.get("path") or "")
    listed = {key: content[key] for key in SPLIT_KEYS if content.get(key)}
    if not listed:
        yield from ((path, "") for path in _files_of("images", root, root))
    for split, places in listed.items():
        for place in places if isinstance(places, list) else [places]:
            yield from ((path, split) for path in _files_of(str(place), base, root))


def _files_of(place: str, base: Path, root: Path) -> list[Path]:
    """The pictures of a folder or of a list, sought from the dataset's base and, as Roboflow writes them, from below.

    Raises:
        FileNotFoundError: there is neither.
    """
    stripped = place.removeprefix("../").removeprefix("./")
    for candidate in (base / place, root / place, root / stripped):
        if candidate.is_dir():
            pictures = [path for path in candidate.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES]
            return sorted([*pictures, *_lost_pictures(candidate, pictures)])
        if candidate.is_file():
            lines = candidate.read_text(encoding="utf-8-sig").split("\n")
            return [candidate.parent / line.strip().removeprefix("./") for line in lines if line.strip()]
    raise FileNotFoundError(f"Folder not found: {base / place}, which data.yaml names.")


def _lost_pictures(folder: Path, pictures: list[Path]) -> Iterator[Path]:
    """Pictures that have boxes and are not there: their rows are named as missing, not passed over."""
    known = {_label_file(path) for path in pictures}
    labels = _label_file(folder / "any.jpg").parent
    for path in labels.rglob("*.txt") if labels != folder else ():
        if path not in known:
            yield folder / path.relative_to(labels).with_suffix(".jpg")


def _label_file(picture: Path) -> Path:
    """`.../images/train/a.jpg` to `.../labels/train/a.txt`: the last folder of that name is replaced."""
    parts = list(picture.with_suffix(".txt").parts)
    for position in range(len(parts) - 2, -1, -1):
        if parts[position] == "images":
            parts[position] = "labels"
            break
    return Path(*parts)


def _object(line: str, names: Mapping[int, str], **shared: Any) -> Phrase:
    """The class and the box (cx, cy, w, h) of a line."""
    first, *rest = line.split()
    try:
        number, values = int(float(plain_number(first))), [float(plain_number(value)) for value in rest]
    except ValueError as error:
        raise ValueError(f"its line {shown(line)} is not a class and numbers") from error
    if number not in names:
        raise ValueError(f"its class {number} has no name in data.yaml")
    if len(values) >= 6 and len(values) % 2 == 0:
        xs, ys = values[::2], values[1::2]
        left, top, right, bottom = min(xs), min(ys), max(xs), max(ys)
        values = [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]
    if len(values) != 4:
        raise ValueError(f"its line {shown(line)} has {len(values)} numbers, expected cx cy w h or a polygon")
    return Phrase(expression=names[number], category=names[number], boxes=[values], **shared)
