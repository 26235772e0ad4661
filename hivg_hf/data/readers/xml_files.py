"""Annotations in XML: Pascal VOC folders, CVAT for images 1.1, and DIOR-RSVG, which is VOC with descriptions.

    VOC, DIOR-RSVG   annotation > object > name, bndbox (xmin, ymin, xmax, ymax), description; one file an image
    CVAT             annotations > image (name, width, height, subset) > box (label, xtl, ytl, xbr, ybr) > attribute

VOC's devkit counts pixels from 1 and includes the last; LabelImg, CVAT, Roboflow and DIOR-RSVG write corners as they
are. DIOR-RSVG's split files number the objects of all XML files in the order of their names. Checked against
DIOR-RSVG's loader (ZhanYang-nwpu/RSVG-pytorch data_loader.py); VOC and CVAT only against descriptions.
"""

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..schema import shown
from .common import Annotations, need_file, need_folder, plain_number
from .phrases import Entry, Phrase, PhraseFile, Several, each

WORDS = ("description", "expression", "caption", "phrase", "referring_expression", "text")
CORNERS = ("xmin", "ymin", "xmax", "ymax")
CVAT_CORNERS = ("xtl", "ytl", "xbr", "ybr")
SPLITS = ("train", "val", "valid", "validation", "test")
PICTURE_FOLDERS = ("JPEGImages", "images", "")


def read_voc(
    split: str,
    *,
    source: str,
    images: Any = None,
    holdout: float | None = None,
    several: Several = "together",
    one_based: bool = False,
    check_format: bool = True,
) -> Annotations:
    """Read a folder of Pascal VOC files; the expression is an object's description, or its class.

    Args:
        split: of `ImageSets/Main/<split>.txt` or of a folder of that name; `all`, or `train` and `val` with `holdout`,
            where there are none.
        source: the folder (`Annotations/`, `JPEGImages/`, or both kinds of files side by side).
        images: folder or folders of the pictures; those of the layout by default.
        holdout: share of the images whose rows are `val`.
        several: `together`, objects of one image with the same words are targets of one row; `apart`, rows of their
            own.
        one_based: True for files of the VOC devkit itself, whose first pixel is 1 and whose last is included.
        check_format: whether to refuse a box format that the numbers contradict.
    """
    root = need_folder(source, "Pascal VOC")
    listed = _listed_splits(root)
    files = [(path, _split_of(path, root, listed)) for path in sorted(root.rglob("*.xml"))]

    def parse(file: tuple[Path, str], _: int) -> list[Entry]:
        root, shared = _voc_image(file[0])
        return each(root.findall("object"), lambda entry: [_object(entry, one_based, split=file[1], **shared)])

    folders = images if images is not None else _picture_folders(root)
    reader = PhraseFile(
        root.name, str(root), files, parse, lambda at: str(files[at][0].relative_to(root)), "xyxy", folders, several
    )
    return reader.annotations(split, holdout, check_format)


def read_dior_rsvg(split: str, *, source: str, images: Any = None) -> Annotations:
    """Read DIOR-RSVG: one row for each object of the split.

    Args:
        split: `train`, `val` or `test`.
        source: the folder with `Annotations/`, `JPEGImages/` and `<split>.txt`.
        images: folder or folders of the pictures; `JPEGImages` by default.
    """
    root = need_folder(source, "DIOR-RSVG")
    parts = {
        int(line): name
        for name in ("train", "val", "test")
        if (root / f"{name}.txt").is_file()
        for line in need_file(root / f"{name}.txt", "DIOR-RSVG").read_text().split()
    }
    # The authors walk the folder as the file system lists it, which on theirs is by name.
    files = sorted((root / "Annotations").rglob("*.xml"), key=lambda path: path.name)
    units = [(path, number) for path in files for number in range(_count_objects(path))]

    def parse(position: int, _: int) -> list[Entry]:
        path, number = units[position]
        image, shared = _voc_image(path)
        return [_object(image.findall("object")[number], False, split=parts.get(position), **shared)]

    chosen = [position for position in range(len(units)) if position in parts]
    reader = PhraseFile(
        root.name,
        str(root),
        chosen,
        parse,
        lambda at: f"object {units[chosen[at]][1]} of {units[chosen[at]][0].name}",
        "xyxy",
        images if images is not None else _picture_folders(root),
    )
    return reader.annotations(split)


def read_cvat(
    split: str,
    *,
    source: str,
    images: Any = None,
    holdout: float | None = None,
    several: Several = "together",
    attribute: str | None = None,
    check_format: bool = True,
) -> Annotations:
    """Read "CVAT for images 1.1"; the expression is an attribute of a box, or its label.

    Args:
        split: a `subset` of the images; `all`, or `train` and `val` with `holdout`, where there are none.
        source: the path of `annotations.xml`.
        images: folder or folders of the pictures; the file's own folder by default.
        holdout: share of the images whose rows are `val`.
        several: `together`, boxes of one image with the same words are targets of one row; `apart`, rows of their own.
        attribute: the attribute that holds the expression; one that is called `expression`, `description`, `caption`,
            `phrase` or `text` by default.
        check_format: whether to refuse a box format that the numbers contradict.
    """
    path = need_file(Path(source), "the CVAT file")
    pictures = _root_of(path).findall("image")
    keys = WORDS if attribute is None else (attribute,)

    def phrase(box: Any, shared: Mapping[str, Any]) -> list[Phrase]:
        if float(box.get("rotation") or 0):
            raise ValueError("a box of it is rotated; expected upright ones")
        attributes = {entry.get("name"): entry.text or "" for entry in box.findall("attribute")}
        label = box.get("label")
        words = next((attributes[key] for key in keys if key in attributes), label if attribute is None else None)
        if words is None:
            raise ValueError(f"a box of it has no attribute {attribute!r}; it has {shown(sorted(attributes))}")
        corners = [box.attrib[key] for key in CVAT_CORNERS]
        return [Phrase(expression=words, category=label, boxes=[corners], **shared)]

    def parse(picture: Any, _: int) -> list[Entry]:
        shared = {"image": picture.get("name"), "split": picture.get("subset")}
        shared |= {side: picture.get(side) for side in ("width", "height")}
        return each(picture.findall("box"), lambda box: phrase(box, shared))

    file = PhraseFile(
        path.stem,
        str(path),
        pictures,
        parse,
        lambda at: f"image {shown(pictures[at].get('name'))} of {path.name}",
        "xyxy",
        images if images is not None else path.parent,
        several,
    )
    return file.annotations(split, holdout, check_format)


def _root_of(path: Path) -> Any:
    """The root element of an XML file.

    Raises:
        ValueError: it is not XML, or declares entities, which annotations do not need and which can be bombs.
    """
    data = path.read_bytes()
    if b"<!DOCTYPE" in data[:4096] or b"<!ENTITY" in data[:65536]:
        raise ValueError(f"{path} declares a document type, which is not read; remove that line")
    try:
        return ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise ValueError(f"{path} is not XML ({error})") from error


def _voc_image(path: Path) -> tuple[Any, dict[str, Any]]:
    """The root of a VOC file, and what its objects share."""
    root = _root_of(path)
    name = root.findtext("filename") or root.findtext("path") or ""
    sides = {side: _size(root.findtext(f"size/{side}")) for side in ("width", "height")}
    return root, {"image": name.strip(), **sides}


def _object(entry: Any, one_based: bool, **shared: Any) -> Phrase:
    """The phrase of an object of a VOC file."""
    corners = entry.find("bndbox")
    if corners is None:
        raise ValueError("an object of it has no bndbox")
    box: list[Any] = [corners.findtext(key) for key in CORNERS]
    if one_based:
        box = [float(plain_number(edge)) - (position < 2) for position, edge in enumerate(box)]
    category = entry.findtext("name")
    words = next((text for key in WORDS if (text := entry.findtext(key)) is not None), category)
    return Phrase(expression=words, boxes=[box], category=category, **shared)


def _count_objects(path: Path) -> int:
    try:
        return len(_root_of(path).findall("object"))
    except ValueError:
        return 0


def _size(text: str | None) -> str | None:
    """A side as VOC writes it; some tools write 0 for "not known"."""
    return None if text is None or text.strip() in ("", "0") else text


def _listed_splits(root: Path) -> dict[str, str]:
    """Name of an image without suffix to its split, from the lists of the layout."""
    lists = [root / folder / f"{name}.txt" for folder in ("ImageSets/Main", "") for name in SPLITS]
    return {
        line.split()[0].removesuffix(".jpg").removesuffix(".png"): path.stem
        for path in lists
        if path.is_file()
        for line in path.read_text(encoding="utf-8-sig").splitlines()
        if line.strip()
    }


def _split_of(path: Path, root: Path, listed: dict[str, str]) -> str:
    if listed:
        return listed.get(path.stem, "")
    folders = path.relative_to(root).parts[:-1]
    return next((name for name in folders if name in SPLITS), "")


def _picture_folders(root: Path) -> Sequence[Path]:
    return list(_existing(root))


def _existing(root: Path) -> Iterator[Path]:
    for base in (root, *(root / name for name in SPLITS)):
        for folder in PICTURE_FOLDERS:
            if (base / folder).is_dir():
                yield base / folder
