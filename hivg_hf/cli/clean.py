"""`hivg clean`: rank rows whose labels look wrong, for people to review.

    hivg clean my.csv review/ --model runs/mine/merged --box-format xyxy
    hivg clean refcoco review/ --model me/hivg --split train --option root=/data --option images=/data/train2014

Writes review.csv (every suspicious row, with why), label-studio.json (the same rows to correct in Label Studio), and
kept.txt: ids of the rows without suspicion. The data stays as it is. docs/data.md says how well it works.
"""

import csv
from pathlib import Path
from typing import Annotated, Any

import typer

from . import MODEL_NAMES, note_what_tiny_knows, run_verb, say
from ._options import BoxFormat, Column, Images, Quiet, ReaderOption, reader_options

HEAD = ("rank", "probability", "iou", "row", "sent_id", "image_id", "expression", "boxes", "model_box", "reasons")


def clean(
    source: Annotated[str, typer.Argument(metavar="DATA", help="File, folder, or name of a dataset; docs/data.md.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the review; created if missing.")],
    model: Annotated[str, typer.Option(help=f"{MODEL_NAMES} It should know such data.")] = "tiny",
    split: Annotated[str, typer.Option(help="Split to look at.")] = "all",
    images: Images = None,
    box_format: BoxFormat = None,
    column: Column = None,
    option: ReaderOption = None,
    threshold: Annotated[
        float,
        typer.Option(help="Lists rows whose label is wrong with at least this probability.", min=0, max=1),
    ] = 0.5,
    batch_size: Annotated[int, typer.Option(help="Rows per pass.", min=1)] = 32,
    quiet: Quiet = False,
) -> None:
    """Rank suspicious rows by a model's disagreement and by contradictions between rows."""
    from hivg_hf.data import load_grounding_dataset
    from hivg_hf.evaluation import predict
    from hivg_hf.evaluation.sources import open_model
    from hivg_hf.evaluation.suspects import find_suspects
    from hivg_hf.utils.atomic import write_text
    from hivg_hf.utils.held_folder import folder_lock

    options = reader_options(option, column, images, box_format)
    if "negatives" in options:
        raise ValueError("negatives change what rows say, and here they are judged as they are: omit negatives.")
    rows = load_grounding_dataset(source, split, **options)
    if source != "refshapes":
        note_what_tiny_knows(model, quiet=quiet)
    opened = open_model(model)
    with folder_lock(out, "writing to"):
        predictions = predict(opened[0], opened[1], rows, batch_size=batch_size, description="looking")
        found = find_suspects(rows, predictions)
        listed = [int(at) for at in found.ranking() if found.probability[at] >= threshold or found.reasons[at]]
        _write_review(out, rows, predictions, found, listed)
        suspicious = set(listed)
        kept = [name for at, name in enumerate(rows["sent_id"]) if at not in suspicious]
        write_text(out / "kept.txt", "".join(f"{name}\n" for name in kept))
    say(f"{len(listed):,} of {len(rows):,} rows look suspicious: {(out / 'review.csv').resolve()}")
    say(f"To correct them in Label Studio: {(out / 'label-studio.json').resolve()}")
    say(f"The others: {(out / 'kept.txt').resolve()}")


def _write_review(out: Path, rows: Any, predictions: list[dict[str, Any]], found: Any, listed: list[int]) -> None:
    """The table and the tasks of the rows at these positions, the most suspicious first."""
    from hivg_hf.data.order import without_image_decoding
    from hivg_hf.data.writers import Pictures
    from hivg_hf.data.writers.label_studio import LABELING_SETUP, label_studio_task
    from hivg_hf.utils.atomic import atomic_path, write_json, write_text
    from hivg_hf.utils.inert import table_cell

    plain, pictures = without_image_decoding(rows), Pictures(out, copy=False)
    tasks = []
    with atomic_path(out / "review.csv") as path, path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file)
        writer.writerow(HEAD)
        for rank, at in enumerate(listed, 1):
            row, why = plain[at], "; ".join(found.reasons[at])
            probability, iou = round(float(found.probability[at]), 4), round(float(found.iou[at]), 4)
            names = (row["sent_id"], row["image_id"], row["expression"])
            model_box = [round(edge, 2) for edge in predictions[at]["box_xyxy"]]
            cells = [rank, probability, iou, at, *names, row["boxes"], model_box, why]
            writer.writerow([table_cell(cell) if isinstance(cell, str) else cell for cell in cells])
            tasks.append(label_studio_task(row, pictures.name(row), reasons=why, probability=probability, number=at))
    write_json(out / "label-studio.json", tasks)
    write_text(out / "label-studio.xml", LABELING_SETUP)


def main() -> None:
    """Entry of `python -m hivg_hf.cli.clean`."""
    run_verb("clean")
