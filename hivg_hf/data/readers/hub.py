"""RefCOCO as it stands on the Hub, in three schemas that differ in everything but the name.

    jxu124/refcoco, refcocoplus, refcocog    one row per object; bbox xyxy pixels (its `raw_anns` keep xywh); several
                                             sentences; `image_path` but no pixels; RefCOCO's testA is called `test`
    lmms-lab/RefCOCO, RefCOCOplus, RefCOCOg  one row per object; bbox xywh pixels; `answer` holds the expressions
                                             (`question` is a prompt); pictures inside; no train
    moondream/refcoco-m                      one row per picture; samples with bbox xywh, sentences and a mask

Boxes of jxu124 are checked against its own `raw_anns`, since both conventions stand in one row.
"""

import json
import math
from collections.abc import Sequence
from typing import Any

from ..order import without_image_decoding
from ..splits import resolve_split
from .common import Annotations, Draft, ImageFinder, as_xyxy, file_stem, segmentation_to_mask, xywh_to_xyxy


def read_jxu124(split: str, *, source: str, root: Any = None, images: Any = None, masks: bool = True) -> Annotations:
    """Read a split of jxu124/refcoco and its siblings.

    Args:
        split: `train`, `val`, `testA`, `testB` or, of refcocog, `test`, whatever the Hub calls them.
        source: the Hub id.
        root: a local copy of the repository; otherwise it is fetched.
        images: folder or folders of COCO's train2014 pictures, which the repository does not hold.
        masks: whether to draw the polygons of `raw_anns`.
    """
    if images is None:
        raise ValueError(f"{source} has no pictures: give images=, the folder of COCO's train2014.")
    aliases = {} if source.endswith("refcocog") else {"testA": "test"}
    table, split = _load_split(source, split, root, aliases)
    find = ImageFinder(images)

    def read(record: tuple[int, int]) -> Draft:
        row = table[record[0]]
        sentence, annotation, image = row["sentences"][record[1]], *_raw_parts(row)
        box, raw_box = as_xyxy(row["bbox"]), xywh_to_xyxy(annotation["bbox"])
        if any(not math.isclose(a, b, abs_tol=0.51) for a, b in zip(box, raw_box, strict=True)):
            raise ValueError(f"bbox {box} (xyxy) is not the box {raw_box} of its own raw_anns")
        segmentation = annotation.get("segmentation") if masks else None
        return Draft(
            image=find(row["image_path"].rsplit("/", 1)[-1]),
            expression=sentence["sent"],
            boxes=[box],
            mask=segmentation_to_mask([segmentation], image["height"], image["width"]) if segmentation else None,
            width=image["width"],
            height=image["height"],
            image_id=file_stem(row["image_path"]),
            ref_id=str(row["ref_id"]),
            sent_id=str(sentence["sent_id"]),
        )

    records = _sentence_keys(table["sentences"])
    return Annotations(source, split, records, read, _name_record(table, "ref_id"))


def read_lmms_lab(split: str, *, source: str, root: Any = None) -> Annotations:
    """Read a split of lmms-lab/RefCOCO and its siblings; they have no train, and nothing stands in for it.

    Args:
        split: as the Hub has it; `val` of RefCOCO holds 8,811 objects, not the 3,811 of RefCOCO's val.
        source: the Hub id.
        root: a local copy of the repository; otherwise it is fetched.
    """
    table, split = _load_split(source, split, root, {})

    def read(record: tuple[int, int]) -> Draft:
        row = table[record[0]]
        return Draft(
            image=row["image"],
            expression=row["answer"][record[1]],
            boxes=[xywh_to_xyxy(row["bbox"])],
            image_id=_coco_stem(row["file_name"]),
            ref_id=str(row["question_id"]),
            sent_id=f"{row['question_id']}:{record[1]}",
        )

    return Annotations(source, split, _sentence_keys(table["answer"]), read, _name_record(table, "question_id"))


def read_moondream(split: str, *, source: str, root: Any = None, masks: bool = True) -> Annotations:
    """Read moondream/refcoco-m, RefCOCO's validation split with redrawn masks.

    Args:
        split: `validation`.
        source: the Hub id.
        root: a local copy of the repository; otherwise it is fetched.
        masks: whether to keep its masks.
    """
    table, split = _load_split(source, split, root, {})
    records = [
        (row, number, sentence)
        for row, samples in enumerate(table["samples"])
        for number, sample in enumerate(samples)
        for sentence in range(len(sample["sentences"]))
    ]

    def read(record: tuple[int, int, int]) -> Draft:
        row = table[record[0]]
        sample = row["samples"][record[1]]
        size = sample["mask"]["size"] if sample.get("mask") else (None, None)
        return Draft(
            image=row["image"],
            expression=sample["sentences"][record[2]],
            boxes=[xywh_to_xyxy(sample["bbox"])],
            mask=dict(sample["mask"]) if masks and sample.get("mask") else None,
            height=size[0],
            width=size[1],
            category=sample.get("category"),
            image_id=_coco_stem(row["file_name"]),
            ref_id=str(sample["id"]),
            sent_id=f"{sample['id']}:{record[2]}",
        )

    return Annotations(source, split, records, read, lambda record, _: f"picture {record[0]}, sample {record[1]}")


def _load_split(source: str, split: str, root: Any, aliases: dict[str, str]) -> tuple[Any, str]:
    """The split's table, with undecoded pictures, and its name there."""
    import datasets

    repository = str(root) if root is not None else source
    split = resolve_split(split, datasets.get_dataset_split_names(repository), source, aliases)
    return without_image_decoding(datasets.load_dataset(repository, split=split)), split


def _sentence_keys(column: Sequence[Sequence[Any]]) -> list[tuple[int, int]]:
    return [(row, number) for row, sentences in enumerate(column) for number in range(len(sentences))]


def _raw_parts(row: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The annotation and the image that a row of jxu124 carries as JSON text."""
    annotation, image = json.loads(row["raw_anns"]), json.loads(row["raw_image_info"])
    return annotation, image


def _coco_stem(file_name: str) -> str:
    """COCO_train2014_<image> of a RefCOCO file name, which ends in the annotation's number."""
    return "_".join(file_stem(file_name).split("_")[:3])


def _name_record(table: Any, column: str) -> Any:
    return lambda record, _: f"{column} {table[record[0]][column]}, expression {record[1]}"
