"""REFER folders: `<root>/<dataset>/instances.json` with `refs(<author>).p`, as github.com/lichengunc/refer lays out.

A ref is one object with several sentences; boxes and file names come from `instances.json` (the ref's own `file_name`
carries the annotation's number). Boxes there are xywh pixels. The pickles were written by Python 2.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hivg_hf.utils.safe_pickle import load_pickle
from hivg_hf.utils.strict_mapping import parse_json

from ..schema import shown
from ..splits import resolve_split
from .common import (
    Annotations,
    Draft,
    ImageFinder,
    clean_file_name,
    file_stem,
    need_file,
    need_folder,
    segmentation_to_mask,
    xywh_to_xyxy,
)


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
        images: folder or folders of the pictures; defaults to `root`.
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
        return instances.draft(ref, [instances.annotation(ref["ann_id"])], sentence, find, masks)

    return Annotations(source, split, records, read, _name_record)


class Instances:
    """A COCO `instances.json`: images, annotations and categories, as lists and by id.

    Ids are compared as text, since exports write `1` and `"1"` for the same thing. An id that means two things names
    neither: only the rows that use it cannot be read.
    """

    def __init__(self, content: Mapping[str, Any]) -> None:
        self.images, self.annotations = list(content["images"]), list(content["annotations"])
        self._images = _ById(self.images, "image", "file_name")
        self._annotations = _ById(self.annotations, "annotation", "bbox")
        self._categories = _ById(content.get("categories") or [], "category", "name")
        self._last_mask: tuple[tuple[int, ...], dict[str, Any] | None] = ((), None)

    @classmethod
    def load(cls, path: Path) -> "Instances":
        """Read the file.

        Raises:
            ValueError: it is not JSON, or lacks images or annotations.
        """
        try:
            return cls(parse_json(path.read_bytes()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(f"{path} is not a COCO file with images and annotations ({reason}).") from error

    def image(self, image_id: Any) -> Mapping[str, Any]:
        """The image of an id.

        Raises:
            ValueError: no image has it, or several that differ.
        """
        return self._images[image_id]

    def annotation(self, annotation_id: Any) -> Mapping[str, Any]:
        """The annotation of an id.

        Raises:
            ValueError: no annotation has it, or several that differ.
        """
        return self._annotations[annotation_id]

    def category_name(self, annotation: Mapping[str, Any]) -> str:
        """The name of an annotation's category.

        Raises:
            ValueError: the file names none.
        """
        return self._categories[annotation.get("category_id")]["name"]

    def draft(
        self,
        ref: Mapping[str, Any],
        annotations: Sequence[Mapping[str, Any]],
        sentence: Mapping[str, Any],
        find: ImageFinder,
        masks: bool,
        no_target: bool = False,
    ) -> Draft:
        """One sentence of a ref whose targets are the given annotations.

        Raises:
            ValueError: the image is not there, or an annotation is on another one.
        """
        image = self.image(ref["image_id"])
        for annotation in annotations:
            if "image_id" in annotation and id_key(annotation["image_id"]) != id_key(ref["image_id"]):
                raise ValueError(
                    f"it is on image {shown(ref['image_id'])}, its annotation on image {shown(annotation['image_id'])}"
                )
        mask = self._mask(annotations, image) if masks and annotations else None
        file_name = clean_file_name(image.get("file_name"))
        return Draft(
            image=find(file_name),
            expression=sentence["sent"],
            boxes=[xywh_to_xyxy(annotation["bbox"]) for annotation in annotations],
            no_target=no_target,
            mask=mask,
            width=image.get("width"),
            height=image.get("height"),
            category=self._category(annotations),
            image_id=file_stem(file_name),
            ref_id=str(ref["ref_id"]),
            sent_id=str(sentence["sent_id"]),
        )

    def _category(self, annotations: Sequence[Mapping[str, Any]]) -> str | None:
        """The one category of annotations; None where they have several, or one that the file does not name."""
        ids = {id_key(annotation.get("category_id")) for annotation in annotations}
        only = ids.pop() if len(ids) == 1 else None
        return self._categories[only].get("name") if only is not None and only in self._categories else None

    def _mask(self, annotations: Sequence[Mapping[str, Any]], image: Mapping[str, Any]) -> dict[str, Any] | None:
        """The mask of annotations; the sentences of a ref follow each other, so that the last one is kept."""
        ids = tuple(id(annotation) for annotation in annotations)
        if self._last_mask[0] != ids:
            segmentations = [annotation.get("segmentation") for annotation in annotations]
            self._last_mask = (ids, segmentation_to_mask(segmentations, image.get("height"), image.get("width")))
        return self._last_mask[1]


class _ById:
    """Records of a COCO file by id, with a sentence for an id that none or several of them have."""

    def __init__(self, records: Sequence[Any], kind: str, shown_field: str) -> None:
        self.kind, self.shown_field = kind, shown_field
        self._first: dict[str, Mapping[str, Any]] = {}
        self._further: dict[str, list[Mapping[str, Any]]] = {}
        for record in records:
            key = id_key(record.get("id")) if isinstance(record, Mapping) else None
            if key is not None and self._first.setdefault(key, record) != record:
                self._further.setdefault(key, []).append(record)

    def __contains__(self, key: str) -> bool:
        return key in self._first

    def __getitem__(self, number: Any) -> Mapping[str, Any]:
        key = id_key(number)
        if key is None or key not in self._first:
            raise ValueError(f"its {self.kind}_id {shown(number)} is not the id of any {self.kind} in the file")
        if key in self._further:
            records = [self._first[key], *self._further[key]]
            listed = ", ".join(shown(record.get(self.shown_field)) for record in records[:3])
            raise ValueError(
                f"its {self.kind}_id {shown(number)} is the id of {len(records)} different {self.kind}s ({listed}); "
                "number them apart"
            )
        return self._first[key]


def id_key(number: Any) -> str | None:
    """An id in the form in which ids are compared: 7, 7.0 and "7" are one; None where it is not an id."""
    if isinstance(number, bool) or not isinstance(number, (int, float, str)):
        return None
    if isinstance(number, float):
        return str(int(number)) if number.is_integer() else None
    return (
        str(number).strip() or None if isinstance(number, str) else format(number, "x" if abs(number) >> 64 else "d")
    )


def _in_split(ref_split: str, split: str) -> bool:
    """Whether a ref belongs to a split; RefClef has refs of two test splits, written `testAB` or `testBC`."""
    if split in ("testA", "testB", "testC"):
        return ref_split.startswith("test") and split[-1] in ref_split[len("test") :]
    return ref_split == split


def _name_record(record: tuple[dict[str, Any], dict[str, Any]], position: int) -> str:
    ref, sentence = record
    return f"ref_id {ref.get('ref_id')}, sent_id {sentence.get('sent_id')}"
