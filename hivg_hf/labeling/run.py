"""From a folder of pictures to rows that train: the teacher finds, templates describe, files are written."""

import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import PIL.Image

from hivg_hf.modeling.image_loading_hivg import load_grounding_image
from hivg_hf.modeling.pipeline_streams_hivg import INPUT_ERRORS
from hivg_hf.utils.held_folder import folder_lock, sweep_leftovers
from hivg_hf.zero_shot.proposal_scores import crop_box

from .colors import name_color
from .exports import write_coco, write_label_studio, write_table
from .progress import FoundObjects
from .review_page import read_rejected, write_review_page
from .scene import Scene, SceneObject, distinct
from .teachers import Teacher
from .templates import DEFAULT_TEMPLATES, check_template, write_expressions

SOURCE_PREFIX = "pseudo:"
MOST_OBJECTS = 40  # of a picture, the best
Captioner = Callable[[PIL.Image.Image], str]


@dataclass
class LabelReport:
    """What a run did.

    Attributes:
        pictures: with at least one expression.
        found_before: pictures that an earlier run had asked the teacher about.
        without_expression: pictures in which nothing was found, or nothing could be singled out.
        failed: picture to sentence, of those that could not be used.
        rejected: expressions left out by `rejected.txt`.
        by_template: number of expressions.
    """

    pictures: int = 0
    found_before: int = 0
    without_expression: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    rejected: int = 0
    by_template: Counter[str] = field(default_factory=Counter)


def label_pictures(
    images: Iterable[str],
    out: str | Path,
    teacher: Teacher,
    threshold: float = 0.35,
    doubtful: float = 0.15,
    templates: Sequence[str] = DEFAULT_TEMPLATES,
    per_object: int = 3,
    seed: int = 0,
    captioner: Captioner | None = None,
    local_files: str = "",
    table: str = "labels.jsonl",
    nouns: Sequence[str] | None = None,
) -> LabelReport:
    """Label pictures.

    Writes into `out`: the table, `coco.json`, `label-studio.json` with its interface, `review.html`, and
    `objects.jsonl`, from which a run that was cut short resumes.

    Args:
        images: paths of pictures.
        out: folder of the labels.
        teacher: who finds the objects.
        threshold: objects from this score on are described.
        doubtful: objects from this score on count as distractors.
        templates: see `templates.check_template`.
        per_object: at most so many expressions for an object.
        seed: decides which.
        captioner: picture (the crop of an object) -> words. Its words become an expression where no other object of
            the picture got the same; unlike a template's they are not proved to single the object out.
        local_files: see `exports.write_label_studio`.
        table: name of the table, ending in `.jsonl` or `.parquet`.
        nouns: what the teacher looks for, recorded so that another list is not mixed with these.

    Raises:
        ValueError: a template or threshold is wrong, or `out` was made with other settings.
        RuntimeError: another process labels in `out`.
    """
    if not 0 <= doubtful <= threshold <= 1:
        raise ValueError(f"Expected 0 <= doubtful <= threshold <= 1, got {doubtful} and {threshold}.")
    if Path(table).suffix not in (".jsonl", ".parquet"):
        raise ValueError(f"Expected a table that ends in .jsonl or .parquet, got {table!r}.")
    templates = [check_template(template) for template in templates]
    out = Path(out)
    settings = {"teacher": teacher.name, "nouns": None if nouns is None else list(nouns), "doubtful": doubtful}
    settings["captioner"] = captioner is not None
    source, report, rows = SOURCE_PREFIX + teacher.name, LabelReport(), []
    with folder_lock(out, "labeling in"):
        sweep_leftovers(out)
        rejected = read_rejected(out)
        with closing(FoundObjects(out / "objects.jsonl", settings)) as progress:
            for image in images:
                found = _find(image, out, teacher, doubtful, captioner, progress, report)
                if found is None:
                    continue
                written = _rows(found, threshold, templates, per_object, seed, source)
                kept = [row for row in written if row["sent_id"] not in rejected]
                report.rejected += len(written) - len(kept)
                report.by_template.update(row["template"] for row in kept)
                report.pictures += bool(kept)
                report.without_expression += not kept
                rows += kept
        write_table(rows, out / table)
        write_coco(rows, out / "coco.json")
        write_label_studio(rows, out / "label-studio.json", local_files)
        write_review_page(rows, out / "review.html", f"Labels by {teacher.name}")
    return report


def _find(
    image: str,
    out: Path,
    teacher: Teacher,
    doubtful: float,
    captioner: Captioner | None,
    progress: FoundObjects,
    report: LabelReport,
) -> dict[str, Any] | None:
    """What an earlier run or the teacher finds in a picture, None where the picture cannot be used."""
    name = _relative(image, out)
    size_bytes = os.path.getsize(image) if os.path.isfile(image) else None
    if (row := progress.done(name, size_bytes)) is not None:
        report.found_before += 1
        return row
    try:
        picture = load_grounding_image(image)
        found = _objects(picture, teacher(picture, doubtful), captioner)
    except INPUT_ERRORS as error:
        report.failed[image] = str(error)
        progress.add({"image": name, "error": str(error)})
        return None
    size = {"width": picture.width, "height": picture.height}
    row = {"image": name, "size_bytes": size_bytes, **size, "objects": found}
    progress.add(row)
    return row


def _objects(picture: PIL.Image.Image, detections: Iterable[Any], captioner: Captioner | None) -> list[dict[str, Any]]:
    items = [SceneObject(_bare(one.label), one.box, one.score) for one in detections]
    found = []
    for item in distinct(items)[:MOST_OBJECTS]:
        values = {**asdict(item), "color": name_color(picture, item.box)}
        del values["is_doubtful"]  # by the threshold, which may change
        if captioner is not None:
            values["caption"] = " ".join(captioner(crop_box(picture, item.box)).split())
        found.append(values)
    return found


def _bare(label: str) -> str:
    """A label as templates need it: lower case, one line, without an article."""
    return re.sub(r"^(?:the|a|an) (?=.)", "", " ".join(label.lower().split()))


def _rows(
    found: Mapping[str, Any], threshold: float, templates: Sequence[str], per_object: int, seed: int, source: str
) -> list[dict[str, Any]]:
    """Rows of one picture; which expressions depends on (seed, picture's name) alone."""
    values = [{**item, "box": tuple(item["box"])} for item in found["objects"]]
    captions = [item.pop("caption", "") for item in values]
    objects = tuple(SceneObject(**item, is_doubtful=item["score"] < threshold) for item in values)
    scene = Scene(found["width"], found["height"], objects)
    expressions = write_expressions(scene, templates, per_object, (seed, zlib.crc32(found["image"].encode())))
    texts = [(one.target, one.text, one.template) for one in expressions]
    for target, caption in enumerate(captions):
        if caption and captions.count(caption) == 1 and not objects[target].is_doubtful:
            texts.append((target, caption, "caption"))
    image_id = os.path.splitext(found["image"])[0]
    rows = []
    for target, text, template in texts:
        item = objects[target]
        rows.append(
            {
                **{"image": found["image"], "expression": text, "box": list(item.box), "boxes": [list(item.box)]},
                **{"no_target": False, "width": found["width"], "height": found["height"]},
                **{"category": item.category, "image_id": image_id, "ref_id": f"{image_id}:{target}"},
                # The words themselves: the same label keeps its name when templates or seed change.
                **{"sent_id": f"{image_id}:{target}:{text}", "source": source, "score": item.score},
                "template": template,
            }
        )
    return rows


def _relative(image: str, folder: Path) -> str:
    """A picture's path relative to the label folder, with forward slashes; absolute on another drive."""
    try:
        return Path(os.path.relpath(os.path.abspath(image), folder.resolve())).as_posix()
    except ValueError:
        return Path(image).resolve().as_posix()
