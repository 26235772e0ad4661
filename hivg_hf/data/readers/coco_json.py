"""COCO-style JSON with expressions: `images`, `annotations` (bbox xywh pixels), `categories`.

The expression stands in the annotation (`expression`, `caption`, `phrase` or `sentences`) or in its image (`caption`,
as MDETR's files have it). Several annotations with the same image and expression are several targets of it only where
they say so themselves, by the same `ref_id`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hivg_hf.data.readers.common import Annotations, Draft, ImageFinder, file_stem, need_file
from hivg_hf.data.readers.refer import Instances
from hivg_hf.data.splits import resolve_split

EXPRESSION_KEYS = ("expression", "caption", "phrase", "sentence", "sentences")


def read_coco_json(split: str, *, source: str, images: Any = None, masks: bool = True) -> Annotations:
    """Read one split of a COCO-style file.

    Args:
        split: a value of the images' or annotations' `split`; `all` reads a file that has none.
        source: the path of the JSON file.
        images: folder or folders of the pictures; the file's own folder unless told.
        masks: whether to draw segmentations into run-length masks.
    """
    path = need_file(Path(source), "the COCO file")
    instances = Instances.load(path)
    annotations = list(instances.annotations.values())
    of = {annotation["id"]: _split_of(annotation, instances) for annotation in annotations}
    known = sorted({name for name in of.values() if name is not None})
    split = resolve_split(split, known or ["all"], str(path))
    find = ImageFinder(images if images is not None else path.parent)
    groups: dict[Any, list[dict[str, Any]]] = {}
    for annotation in annotations:
        if not known or of[annotation["id"]] == split:
            groups.setdefault(annotation.get("ref_id", f"annotation {annotation['id']}"), []).append(annotation)
    records = [
        (str(ref_id).removeprefix("annotation "), number, group, sentence)
        for ref_id, group in groups.items()
        for number, sentence in enumerate(_expressions(group[0], instances.images[group[0]["image_id"]]))
    ]

    def read(record: tuple[str, int, list[dict[str, Any]], Any]) -> Draft:
        ref_id, number, group, sentence = record
        if sentence is None:
            raise ValueError(f"it has no expression; expected one of {', '.join(EXPRESSION_KEYS)}")
        named = sentence if isinstance(sentence, Mapping) else {"sent": sentence}
        ref = {"ref_id": ref_id, "image_id": group[0]["image_id"]}
        sent = {"sent": named.get("sent", named.get("raw")), "sent_id": named.get("sent_id", f"{ref_id}:{number}")}
        targets = [annotation["id"] for annotation in group if annotation.get("bbox")]
        draft = instances.draft(ref, targets, sent, find, masks)
        draft.image_id = file_stem(instances.images[group[0]["image_id"]]["file_name"])
        return draft

    return Annotations(path.stem, split, records, read, lambda record, _: f"ref_id {record[0]}")


def _split_of(annotation: Mapping[str, Any], instances: Instances) -> str | None:
    return annotation.get("split", instances.images[annotation["image_id"]].get("split"))


def _expressions(annotation: Mapping[str, Any], image: Mapping[str, Any]) -> list[Any]:
    """The expressions of an annotation, else its image's caption; [None] where there is none."""
    for holder, keys in ((annotation, EXPRESSION_KEYS), (image, ("caption",))):
        for key in keys:
            if holder.get(key):
                return holder[key] if isinstance(holder[key], list) else [holder[key]]
    return [None]
