"""COCO-style JSON with expressions: `images`, `annotations` (bbox xywh pixels), `categories`.

The expression stands in the annotation (`expression`, `caption`, `phrase` or `sentences`) or in its image (`caption`,
as MDETR's files have it). Several annotations with the same image and expression are several targets of it only where
they say so themselves, by the same `ref_id`; one that names nothing says `"no_target": true`.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..division import choose_rows
from ..schema import shown
from .common import ROW_ERRORS, Annotations, Draft, ImageFinder, cell_text, file_stem, need_file, truth
from .phrases import Entry, Phrase, PhraseFile, Several, each
from .refer import Instances, id_key

EXPRESSION_KEYS = ("expression", "caption", "phrase", "sentence", "sentences")


def read_coco_json(
    split: str,
    *,
    source: str,
    images: Any = None,
    holdout: float | None = None,
    expressions: Literal["own", "category"] = "own",
    several: Several = "together",
    masks: bool = True,
) -> Annotations:
    """Read one split of a COCO-style file.

    Args:
        split: a value of the images' or annotations' `split`. A file that has none has the single split `all`, or,
            with `holdout`, `train` and `val`.
        source: the path of the JSON file.
        images: folder or folders of the pictures; the file's own folder by default.
        holdout: share of the images (0..1) whose rows are `val`.
        expressions: `own`, or `category` for files of plain detection, whose class names then are the expressions.
        several: with `category`, whether boxes of one class in an image are targets of one row (`together`) or rows
            of their own (`apart`).
        masks: whether to draw segmentations into run-length masks.
    """
    if expressions not in ("own", "category"):
        raise ValueError(f"expressions must be own or category, got {expressions!r}.")
    path = need_file(Path(source), "the COCO file")
    instances = Instances.load(path)
    folders = images if images is not None else path.parent
    if expressions == "category":
        return _detections(instances, path, folders, several, masks).annotations(split, holdout)
    if instances.annotations and not any(_says_something(note, instances) for note in instances.annotations):
        raise ValueError(
            f"{path}: no annotation has an expression; looked for {', '.join(EXPRESSION_KEYS)}, and for the caption "
            "of its image. Say expressions='category' to take the names of the categories."
        )
    splits = [_split_of(annotation, instances) for annotation in instances.annotations]
    find = ImageFinder(folders)
    chosen, split = choose_rows(splits, lambda: _pictures(instances), split, holdout, str(path), find)
    stems = _shared_stems(instances.images)
    has_splits = any(splits)
    records = _expressions_of(instances, chosen)

    def read(record: _Expression) -> Draft:
        if record.problem is None and has_splits and any(not splits[position] for position in record.positions):
            raise ValueError("its split is blank, while others name one")
        if record.problem is not None:
            raise ValueError(record.problem)
        draft = _draft(instances, record, find, masks)
        if draft.image_id in stems:
            draft.image_id = find.picture_name(instances.image(record.image_id)["file_name"])
        return draft

    return Annotations(path.stem, split, records, read, lambda record, _: record.name)


def _detections(instances: Instances, path: Path, folders: Any, several: Several, masks: bool) -> PhraseFile:
    """The boxes of every image with the names of their categories."""
    notes: dict[str | None, list[Any]] = {}
    for annotation in instances.annotations:
        key = id_key(annotation.get("image_id")) if isinstance(annotation, Mapping) else None
        notes.setdefault(key, []).append(annotation)

    def phrase(note: Any, image: Mapping[str, Any]) -> list[Phrase]:
        name = instances.category_name(note)
        segmentation = [note["segmentation"]] if masks and note.get("segmentation") else []
        shared = {key: image.get(key) for key in ("width", "height", "split")}
        return [Phrase(image["file_name"], name, [note["bbox"]], category=name, segmentations=segmentation, **shared)]

    known = {id_key(image.get("id")) for image in instances.images if isinstance(image, Mapping)}
    lost = [note for key, members in notes.items() if key not in known for note in members]
    units = [*instances.images, *lost]

    def parse(unit: Mapping[str, Any], position: int) -> list[Entry]:
        if position >= len(instances.images):  # an annotation of no image
            instances.image(unit.get("image_id"))
        members = notes.get(id_key(unit.get("id")), ())
        image = instances.image(unit["id"]) if members else unit
        return each(members, lambda note: phrase(note, image))

    def place(position: int) -> str:
        if position < len(instances.images):
            return f"image {shown(units[position].get('file_name'))} of {path.name}"
        return f"an annotation of no image in {path.name}"

    return PhraseFile(path.stem, str(path), units, parse, place, "xywh", folders, several)


def _says_something(annotation: Any, instances: Instances) -> bool:
    """Whether an annotation, or its image, has an expression, or cannot be read at all."""
    if not isinstance(annotation, Mapping) or any(key in annotation for key in EXPRESSION_KEYS):
        return True
    try:
        return "caption" in instances.image(annotation.get("image_id"))
    except ValueError:
        return True


def _pictures(instances: Instances) -> list[Any]:
    """The picture of every annotation, None for an unknown image."""
    pictures: list[Any] = []
    for annotation in instances.annotations:
        try:
            pictures.append(instances.image(annotation["image_id"])["file_name"])
        except ROW_ERRORS:
            pictures.append(None)
    return pictures


@dataclass
class _Expression:
    """One expression of the file, its number among those of its ref, and the annotations that are its targets."""

    name: str
    ref_id: str = ""
    image_id: Any = None
    number: int = 0
    sentence: Any = None
    positions: list[int] = field(default_factory=list)
    problem: str | None = None


def _expressions_of(instances: Instances, positions: Sequence[int]) -> list[_Expression]:
    """Every expression of the annotations at these positions; one that cannot be read, with what is wrong."""
    refs: dict[Any, list[int]] = {}
    for position in positions:
        annotation = instances.annotations[position]
        ref = id_key(annotation.get("ref_id")) if isinstance(annotation, Mapping) else None
        refs.setdefault(position if ref is None else ref, []).append(position)
    ids = Counter(
        id_key(annotation.get("id")) for annotation in instances.annotations if isinstance(annotation, Mapping)
    )
    expressions: list[_Expression] = []
    for ref, members in refs.items():
        annotation = instances.annotations[members[0]]
        name = ref
        if isinstance(ref, int):  # no ref_id: the annotation's own id, where it is one
            own = _own_id(annotation)
            name = own if own is not None and ids[own] == 1 else f"annotation {ref}"
        expressions.extend(_expressions_of_ref(instances, str(name), members))
    return expressions


def _own_id(annotation: Any) -> str | None:
    return id_key(annotation.get("id")) if isinstance(annotation, Mapping) else None


def _expressions_of_ref(instances: Instances, ref_id: str, positions: list[int]) -> list[_Expression]:
    """The expressions of the annotations that share a `ref_id`: those with the same words are targets of one."""
    annotations = [instances.annotations[position] for position in positions]
    problem = _problem_of_ref(instances, annotations)
    if problem is not None:
        return [
            _Expression(f"ref_id {ref_id}, annotation {position}", ref_id, positions=[position], problem=problem)
            for position in positions
        ]
    image_id = annotations[0]["image_id"]
    by_words: dict[str, list[int]] = {}
    for position, annotation in zip(positions, annotations, strict=True):
        by_words.setdefault(repr(_own_expressions(annotation)), []).append(position)
    if len(by_words) == 2 and "[]" in by_words:  # further targets of the one expression need not repeat it
        by_words = {max(by_words, key=len): positions}
    expressions: list[_Expression] = []
    for members in by_words.values():
        worded = [words for position in members if (words := _own_expressions(instances.annotations[position]))]
        caption = instances.image(image_id).get("caption")
        for sentence in worded[0] if worded else [caption]:
            name, number = f"ref_id {ref_id}, annotation {members[0]}", len(expressions)
            expressions.append(_Expression(name, ref_id, image_id, number, sentence, members))
    return expressions


def _problem_of_ref(instances: Instances, annotations: Sequence[Any]) -> str | None:
    images = {}
    for annotation in annotations:
        if not isinstance(annotation, Mapping):
            return f"it is {shown(annotation)}, expected an object {{...}}"
        try:
            image = instances.image(annotation.get("image_id"))
        except ValueError as error:
            return str(error)
        images[id_key(annotation["image_id"])] = image
    if len(images) > 1:
        listed = ", ".join(shown(image.get("file_name")) for image in list(images.values())[:3])
        return f"its ref_id is on {len(images)} images ({listed}); give the objects of each image ids of their own"
    return None


def _draft(instances: Instances, record: _Expression, find: ImageFinder, masks: bool) -> Draft:
    if record.sentence is None:
        raise ValueError(f"it has no expression; expected one of {', '.join(EXPRESSION_KEYS)}")
    annotations = [instances.annotations[position] for position in record.positions]
    targets = [annotation for annotation in annotations if annotation.get("bbox")]
    if targets and len(targets) < len(annotations):
        raise ValueError(f"{len(annotations) - len(targets)} of its {len(annotations)} targets have no bbox")
    named = record.sentence if isinstance(record.sentence, Mapping) else {"sent": record.sentence}
    sent_id = named.get("sent_id")
    sent = {
        "sent": named.get("sent", named.get("raw")),
        "sent_id": f"{record.ref_id}:{record.number}" if sent_id is None else sent_id,
    }
    no_target = any(truth(annotation.get("no_target"), "no_target") for annotation in annotations)
    ref = {"ref_id": record.ref_id, "image_id": record.image_id}
    return instances.draft(ref, targets, sent, find, masks, no_target=no_target)


def _split_of(annotation: Any, instances: Instances) -> str:
    """The split of an annotation, else of its image; "" where neither names one or the image is unknown."""
    if not isinstance(annotation, Mapping):
        return ""
    own = cell_text(annotation.get("split"))
    if own:
        return own
    try:
        return cell_text(instances.image(annotation.get("image_id")).get("split"))
    except ValueError:
        return ""


def _own_expressions(annotation: Mapping[str, Any]) -> list[Any]:
    """The expressions that stand in an annotation itself."""
    for key in EXPRESSION_KEYS:
        if annotation.get(key) not in (None, []):
            return annotation[key] if isinstance(annotation[key], list) else [annotation[key]]
    return []


def _shared_stems(images: Sequence[Any]) -> set[str]:
    """Names without folder and suffix that several pictures of the file have: they cannot tell those apart."""
    stems: dict[str, set[str]] = {}
    for image in images:
        name = image.get("file_name") if isinstance(image, Mapping) else None
        if isinstance(name, str) and name.strip() and "\0" not in name:
            name = os.path.normpath(name.replace("\\", "/"))
            stems.setdefault(file_stem(name), set()).add(name)
    return {stem for stem, names in stems.items() if len(names) > 1}
