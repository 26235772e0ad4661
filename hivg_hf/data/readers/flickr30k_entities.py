"""Flickr30K Entities, raw: `Sentences/<id>.txt` with marked phrases, `Annotations/<id>.xml` with boxes of chains.

    [/EN#38/people A young man] in [/EN#40/clothing a blue hat] walks [/EN#0/notvisual by] .

Chain 0 is not visual. An object of the XML names one or more chains and has a box, or says `scene` or `nobndbox`. A
phrase whose chain has several boxes has several targets; whether any of them or their union counts is the protocol's
choice (`multi_target`). Boxes are xyxy pixels.
"""

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from ..splits import resolve_split
from .common import Annotations, Draft, ImageFinder, need_file, need_folder, plain_number

SPLITS = ("train", "val", "test")
PHRASE = re.compile(r"\[/EN#(?P<chain>\d+)/(?P<types>[^ \]]*) (?P<words>[^\]]*)\]")
NOT_VISUAL = "0"


def read_flickr30k_entities(split: str, *, source: str, root: Any = None, images: Any = None) -> Annotations:
    """Read one split: one row per marked phrase that has a box.

    Args:
        split: `train`, `val` or `test`, listed in `<split>.txt`.
        source: `flickr30k-entities`.
        root: the folder with `train.txt`, `val.txt`, `test.txt`, `Sentences/` and `Annotations/`.
        images: folder or folders of the pictures; defaults to `root`.
    """
    split = resolve_split(split, SPLITS, source)
    root = need_folder(root, source)
    image_ids = need_file(root / f"{split}.txt", source).read_text(encoding="utf-8").split()
    records: list[dict[str, Any]] = []
    unmarked = 0
    for image_id in image_ids:
        boxes, width, height = read_boxes(need_file(root / "Annotations" / f"{image_id}.xml", source))
        for phrase in read_phrases(need_file(root / "Sentences" / f"{image_id}.txt", source)):
            if phrase["chain"] in boxes:
                facts = {"image_id": image_id, "boxes": boxes[phrase["chain"]], "width": width, "height": height}
                records.append({**phrase, **facts})
            else:
                unmarked += 1
    find = ImageFinder(images if images is not None else root)

    def read(record: dict[str, Any]) -> Draft:
        return Draft(
            image=find(f"{record['image_id']}.jpg"),
            expression=record["words"],
            boxes=record["boxes"],
            width=record["width"],
            height=record["height"],
            category=record["types"],
            image_id=record["image_id"],
            ref_id=f"{record['image_id']}:{record['chain']}",
            sent_id=f"{record['image_id']}:{record['sentence']}:{record['phrase']}",
        )

    notes = (
        [f"{unmarked:,} phrases have no box (not visual, scenes, or not drawn) and are no rows"] if unmarked else []
    )
    return Annotations(source, split, records, read, lambda record, _: f"sent_id of image {record['image_id']}", notes)


def read_phrases(path: Path) -> list[dict[str, Any]]:
    """The marked phrases of a sentence file: chain, types, words, and their place (sentence and phrase, from 0)."""
    phrases = []
    for sentence, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        for number, match in enumerate(PHRASE.finditer(line)):
            place = {"sentence": sentence, "phrase": number}
            phrases.append({"chain": match["chain"], "types": match["types"], "words": match["words"], **place})
    return [phrase for phrase in phrases if phrase["chain"] != NOT_VISUAL]


def read_boxes(path: Path) -> tuple[dict[str, list[list[float]]], int, int]:
    """The boxes of each chain (xyxy pixels) in an annotation file, and the image's width and height.

    Raises:
        ValueError: the file is not such XML.
    """
    try:
        tree = ElementTree.parse(path).getroot()
        width, height = (int(plain_number(tree.findtext(f"size/{side}", ""))) for side in ("width", "height"))
        boxes: dict[str, list[list[float]]] = {}
        for item in tree.iter("object"):
            corners = item.find("bndbox")
            if corners is None:
                continue
            box = [float(plain_number(corners.findtext(edge, ""))) for edge in ("xmin", "ymin", "xmax", "ymax")]
            for name in item.findall("name"):
                boxes.setdefault((name.text or "").strip(), []).append(box)
    except (ElementTree.ParseError, ValueError) as error:
        raise ValueError(f"{path} is not an annotation file of Flickr30K Entities ({error}).") from error
    return boxes, width, height
