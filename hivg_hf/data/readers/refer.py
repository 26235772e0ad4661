"""REFER folders: `<root>/<dataset>/instances.json` with `refs(<author>).p`, as github.com/lichengunc/refer lays out.

A ref is one object with several sentences; boxes and file names come from `instances.json` (the ref's own `file_name`
carries the annotation's number). Boxes there are xywh pixels. The pickles were written by Python 2.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hivg_hf.data.readers.common import (
    Annotations,
    Draft,
    ImageFinder,
    file_stem,
    need_file,
    need_folder,
    segmentation_to_mask,
    xywh_to_xyxy,
)
from hivg_hf.data.splits import resolve_split
from hivg_hf.safe_pickle import load_pickle


@dataclass(frozen=True)
class ReferLayout:
    """Folder, author of the splits, the splits, and other names for them."""

    folder: str
    author: str
    splits: Sequence[str]
    aliases: Mapping[str, str]


# RefCOCO and RefCOCO+ have no `test`: people who say so mean testA, as the Hub's jxu124/refcoco does.
UNC: dict[str, Any] = {
    "folder": "refcoco",
    "author": "unc",
    "splits": ("train", "val", "testA", "testB"),
    "aliases": {"test": "testA"},
}
LAYOUTS = {
    "refcoco": ReferLayout(**UNC),
    "refcoco+": ReferLayout(**{**UNC, "folder": "refcoco+"}),
    "refcocog-umd": ReferLayout("refcocog", "umd", ("train", "val", "test"), {}),
    "refcocog-google": ReferLayout("refcocog", "google", ("train", "val"), {}),
    "refclef-unc": ReferLayout("refclef", "unc", ("train", "val", "testA", "testB", "testC"), {}),
    "refclef-berkeley": ReferLayout("refclef", "berkeley", ("train", "val", "test"), {}),
}


def read_refer(split: str, *, source: str, root: Any = None, images: Any = None, masks: bool = True) -> Annotations:
    """Read one split of a REFER dataset.

    Args:
        split: `train`, `val`, `testA`, ... as the dataset has them.
        source: a key of `LAYOUTS`; `refcocog` alone is refused, since its two splits differ.
        root: the folder that holds `refcoco/`, `refcoco+/`, `refcocog/` or `refclef/`.
        images: folder or folders of the pictures; `root` unless told.
        masks: whether to draw the polygons into run-length masks.
    """
    layout = LAYOUTS[source]
    split = resolve_split(split, layout.splits, source, layout.aliases)
    folder = need_folder(root, source) / layout.folder
    refs = load_pickle(need_file(folder / f"refs({layout.author}).p", source))
    instances = Instances.load(need_file(folder / "instances.json", source))
    find = ImageFinder(images if images is not None else root)
    wanted = [ref for ref in refs if _in_split(ref["split"], split)]
    records = [(ref, sentence) for ref in wanted for sentence in ref["sentences"]]

    def read(record: tuple[dict[str, Any], dict[str, Any]]) -> Draft:
        ref, sentence = record
        return instances.draft(ref, [ref["ann_id"]], sentence, find, masks)

    return Annotations(source, split, records, read, _name_record)


class Instances:
    """A COCO `instances.json`: images, annotations and categories by id."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        self.images = {image["id"]: image for image in content["images"]}
        self.annotations = {annotation["id"]: annotation for annotation in content["annotations"]}
        self.categories = {category["id"]: category["name"] for category in content.get("categories", [])}
        self._last_mask: tuple[tuple[int, ...], dict[str, Any] | None] = ((), None)

    @classmethod
    def load(cls, path: Path) -> "Instances":
        """Read the file.

        Raises:
            ValueError: it is no JSON, or lacks images or annotations.
        """
        try:
            return cls(json.loads(path.read_text(encoding="utf-8")))
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a COCO file with images and annotations ({error!r}).") from error

    def draft(
        self,
        ref: Mapping[str, Any],
        annotation_ids: Sequence[int],
        sentence: Mapping[str, Any],
        find: ImageFinder,
        masks: bool,
    ) -> Draft:
        """One sentence of a ref whose targets are the given annotations."""
        image = self.images[ref["image_id"]]
        annotations = [self.annotations[annotation_id] for annotation_id in annotation_ids]
        mask = self._mask(annotations, image) if masks and annotations else None
        names = {self.categories.get(annotation["category_id"]) for annotation in annotations}
        return Draft(
            image=find(image["file_name"]),
            expression=sentence["sent"],
            boxes=[xywh_to_xyxy(annotation["bbox"]) for annotation in annotations],
            no_target=not annotations,
            mask=mask,
            width=image["width"],
            height=image["height"],
            category=names.pop() if len(names) == 1 else None,
            image_id=file_stem(image["file_name"]),
            ref_id=str(ref["ref_id"]),
            sent_id=str(sentence["sent_id"]),
        )

    def _mask(self, annotations: Sequence[Mapping[str, Any]], image: Mapping[str, Any]) -> dict[str, Any] | None:
        """The mask of annotations; the sentences of a ref follow each other, so that the last one is kept."""
        ids = tuple(annotation["id"] for annotation in annotations)
        if self._last_mask[0] != ids:
            segmentations = [annotation.get("segmentation") for annotation in annotations]
            self._last_mask = (ids, segmentation_to_mask(segmentations, image["height"], image["width"]))
        return self._last_mask[1]


def _in_split(ref_split: str, split: str) -> bool:
    """Whether a ref belongs to a split; RefClef has refs of two test splits, written `testAB` or `testBC`."""
    if split in ("testA", "testB", "testC"):
        return ref_split.startswith("test") and split[-1] in ref_split[len("test") :]
    return ref_split == split


def _name_record(record: tuple[dict[str, Any], dict[str, Any]], position: int) -> str:
    ref, sentence = record
    return f"ref_id {ref.get('ref_id')}, sent_id {sentence.get('sent_id')}"
