"""`hivg label`: boxes and expressions for pictures that have none, by a teacher.

    hivg label photos/ labels --teacher IDEA-Research/grounding-dino-tiny --nouns "person, dog, car"
    hivg label photos/ labels --teacher google/owlv2-base-patch16-ensemble --nouns nouns.txt
    hivg label photos/ labels --teacher florence-community/Florence-2-base

The same command again resumes. Exit status: 0 all pictures were used, 1 some could not be, 2 nothing could be done.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer
from tqdm import tqdm

from hivg_hf.inference.files import find_images, is_url

from . import EXIT_STATUS_ON_ERROR, EXIT_STATUS_SOME_FAILED, run_verb, say
from ._options import Device


def label(
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGES...", help="Image files, folders or quoted patterns without labels.")
    ],
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT",
            help="Folder for labels.jsonl, coco.json, label-studio.json and review.html. Run again with the "
            "same folder, it asks the teacher about new pictures only.",
        ),
    ],
    teacher: Annotated[
        str,
        typer.Option(
            help="Folder or Hub id of the model that finds objects: a zero-shot object detection model (Grounding "
            "DINO, OWLv2, ...), Florence-2, or a plain CLIP."
        ),
    ],
    nouns: Annotated[
        str | None,
        typer.Option(
            help="What to look for: nouns between commas, or a text file with one per line. Optional for Florence-2."
        ),
    ] = None,
    threshold: Annotated[
        float, typer.Option(help="Objects with at least this score get expressions.", min=0, max=1)
    ] = 0.35,
    doubtful: Annotated[
        float,
        typer.Option(help="Objects with at least this score must not fit another's expression.", min=0, max=1),
    ] = 0.15,
    templates: Annotated[
        Path | None,
        typer.Option(help="Text file with a template per line, used beside the included ones; docs/labels.md."),
    ] = None,
    only_these_templates: Annotated[
        bool, typer.Option("--only-these-templates", help="Do not use the included templates.")
    ] = False,
    per_object: Annotated[int, typer.Option(help="At most this many expressions per object.", min=1)] = 3,
    seed: Annotated[int, typer.Option(help="Random seed of the choice among an object's expressions.", min=0)] = 0,
    parquet: Annotated[bool, typer.Option("--parquet", help="Write labels.parquet instead of labels.jsonl.")] = False,
    local_files: Annotated[
        str, typer.Option(help="Path of OUT below Label Studio's LOCAL_FILES_DOCUMENT_ROOT, for its pictures.")
    ] = "",
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Search subfolders too.")] = False,
    device: Device = None,
) -> None:
    """Label pictures: a teacher finds objects, and templates describe what they single out."""
    from hivg_hf.labeling import DEFAULT_TEMPLATES, label_pictures, load_teacher

    words = read_nouns(nouns)
    own = read_lines(templates) if templates is not None else []
    if only_these_templates and not own:
        raise ValueError("--only-these-templates needs --templates with at least one template.")
    found, _ = find_images(images, recursive)
    paths = [path for path, _ in found]
    if urls := [path for path in paths if is_url(path)]:
        raise ValueError(f"Labels refer to picture files: download {urls[0]} first.")
    report = label_pictures(
        tqdm(paths, unit=" pictures", file=sys.stderr),
        out,
        load_teacher(teacher, words, device),
        threshold=threshold,
        doubtful=doubtful,
        templates=own if only_these_templates else [*DEFAULT_TEMPLATES, *own],
        per_object=per_object,
        seed=seed,
        local_files=local_files,
        table="labels.parquet" if parquet else "labels.jsonl",
        nouns=words,
    )
    for image, sentence in report.failed.items():
        say(f"hivg: {image}: {sentence}", err=True)
    counts = [f"{sum(report.by_template.values())} expressions for {report.pictures} pictures"]
    counts += [f"{report.without_expression} pictures without any"] if report.without_expression else []
    counts += [f"{len(report.failed)} could not be used"] if report.failed else []
    counts += [f"{report.found_before} were searched before"] if report.found_before else []
    counts += [f"{report.rejected} rejected expressions left out"] if report.rejected else []
    say(f"{', '.join(counts)}; look through them in {(out / 'review.html').resolve()}")
    if report.failed:
        raise typer.Exit(EXIT_STATUS_ON_ERROR if len(report.failed) == len(paths) else EXIT_STATUS_SOME_FAILED)


def read_nouns(nouns: str | None) -> list[str] | None:
    """Nouns between commas, or the lines of a text file.

    Raises:
        ValueError: no noun is in it.
    """
    if nouns is None:
        return None
    words = read_lines(Path(nouns)) if nouns.endswith(".txt") else nouns.split(",")
    words = list(dict.fromkeys(word.strip() for word in words if word.strip()))
    if not words:
        raise ValueError(f"--nouns has no noun in it: {nouns!r}.")
    return words


def read_lines(path: Path) -> list[str]:
    """Lines of a text file that are not blank and not comments (`#`)."""
    if not path.is_file():
        raise FileNotFoundError(f"Text file not found: '{path}'")
    lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def main() -> None:
    run_verb("label")
