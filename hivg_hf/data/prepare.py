"""A survey of datasets before anything is trained on them: counts, faults, leaks, statistics, and pictures.

Nothing is repaired and nothing is left out here; the survey says what there is, row by row where it is wrong.
"""

import logging
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image, ImageDraw

from hivg_hf.utils.atomic import atomic_path, write_json

from .augmentation import resize_mask
from .collator import open_row_image, scale_box
from .loading import load_grounding_dataset
from .lookalikes import group_lookalikes
from .order import column_values, without_image_decoding
from .reading import ReadReport, open_source, read_rows
from .rows import RowProblem, count_kinds
from .schema import decode_mask
from .splits import Totals
from .survey_page import write_survey_page

logger = logging.getLogger(__name__)

TILE = 320  # pixels
CAPTION = 40
TILES = 12
TILE_COLUMNS = 4
IMAGE_KINDS = ("missing image", "unreadable image", "image size")


@dataclass
class Surveyed:
    """One split of one source, read and looked at."""

    source: str
    split: str
    rows: datasets.Dataset
    report: ReadReport

    @property
    def name(self) -> str:
        """`source:split`, as the command line writes it."""
        return f"{self.source}:{self.split}"

    @property
    def is_train(self) -> bool:
        """Whether the split is trained on, by its name."""
        return self.split.startswith("train")


@dataclass
class Survey:
    """Several splits together.

    Attributes:
        leaks: images that a training split shares with an evaluation split, by the pair's names.
        lookalikes: images of an evaluation split that are near-identical to one of training under another name.
        shared_expressions: expressions, in lower case, that both have.
    """

    splits: list[Surveyed] = field(default_factory=list)
    leaks: dict[str, list[str]] = field(default_factory=dict)
    lookalikes: dict[str, list[str]] = field(default_factory=dict)
    shared_expressions: dict[str, list[str]] = field(default_factory=dict)

    @property
    def problems(self) -> list[RowProblem]:
        """Every row that cannot be used."""
        return [problem for split in self.splits for problem in split.report.problems]

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {
            "splits": {split.name: describe(split) for split in self.splits},
            "shared_images": self.leaks,
            "near_identical_images": self.lookalikes,
            "shared_expressions": {pair: len(shared) for pair, shared in self.shared_expressions.items()},
        }


def survey(specs: Sequence[Mapping[str, Any]], decode: bool = True) -> Survey:
    """Read splits whole and look at every row and every picture.

    Args:
        specs: for each split the arguments of `load_grounding_dataset`, with `source` and `split`.
        decode: decode every picture, which finds damage that sizes and end marks do not show.

    Raises:
        ValueError: a source, a split or an option is unknown.
        FileNotFoundError: an annotation file or a folder is missing.
    """
    result = Survey()
    for spec in specs:
        options = {key: value for key, value in spec.items() if key not in ("source", "split", "on_error")}
        source, split = str(spec["source"]), spec["split"]
        if source == "refshapes":  # made, not read: there is nothing to check
            rows = load_grounding_dataset(source, split, **options)
            report = ReadReport(source, split, _count(rows))
        else:
            options.setdefault("verify_images", "decode" if decode else "quick")
            rows, report = read_rows(open_source(source, split, **options), source)
            split = report.split
        result.splits.append(Surveyed(source, split, rows, report))
        logger.info("%s: %s rows, %d problems.", f"{source}:{split}", f"{len(rows):,}", len(report.problems))
    result.leaks = shared_values(result.splits, "image_id")
    result.shared_expressions = shared_values(result.splits, "expression")
    if any(split.is_train for split in result.splits) and not all(split.is_train for split in result.splits):
        result.lookalikes = near_identical_images(result.splits)
    return result


def _pairs(splits: Sequence[Surveyed]) -> list[tuple[Surveyed, Surveyed]]:
    """Every training split with every evaluation split."""
    return [(train, other) for train in splits if train.is_train for other in splits if not other.is_train]


def shared_values(splits: Sequence[Surveyed], column: str) -> dict[str, list[str]]:
    """What stands in a training split and in an evaluation split, over all sources (`image_id` is global)."""
    values = {split.name: {str(value).lower() for value in column_values(split.rows, column)} for split in splits}
    if column == "image_id":
        values = {split.name: set(column_values(split.rows, column)) for split in splits}
    shared = {
        f"{train.name} and {other.name}": values[train.name] & values[other.name] for train, other in _pairs(splits)
    }
    return {pair: sorted(both) for pair, both in shared.items() if both}


def near_identical_images(splits: Sequence[Surveyed]) -> dict[str, list[str]]:
    """`evaluation image = training image` of pictures that look the same and have different names."""
    pictures: dict[Any, Any] = {}
    names: dict[str, set[str]] = {}
    for split in splits:
        rows = without_image_decoding(split.rows).select_columns(["image_id", "image"]) if len(split.rows) else ()
        names[split.name] = set()
        for row in rows:
            names[split.name].add(row["image_id"])
            pictures.setdefault(row["image_id"], row["image"])
    leader = group_lookalikes(pictures)
    found = {}
    for train, other in _pairs(splits):
        trained = {leader[name]: name for name in sorted(names[train.name])}
        same = [
            f"{name} = {trained[leader[name]]}"
            for name in sorted(names[other.name] - names[train.name])
            if leader[name] in trained
        ]
        if same:
            found[f"{train.name} and {other.name}"] = same
    return found


def describe(split: Surveyed) -> dict[str, Any]:
    """Counts, faults and statistics of a split, ready for JSON."""
    report = split.report
    return {
        "read": asdict(report.totals),
        "differs_from_published": report.differences,
        "left_out_by_format": report.notes,
        "rows_that_cannot_be_used": {
            "by_kind": dict(Counter(problem.kind for problem in report.problems)),
            "images": sorted({str(problem) for problem in report.problems if problem.kind in IMAGE_KINDS}),
            "rows": [str(problem) for problem in report.problems if problem.kind not in IMAGE_KINDS],
        },
        "statistics": statistics(split.rows) if len(split.rows) else {},
    }


def statistics(rows: datasets.Dataset) -> dict[str, Any]:
    """What the rows are like: words, targets, relative box areas, sizes of pictures, categories."""
    expressions, boxes_of, widths, heights = (
        column_values(rows, name) for name in ("expression", "boxes", "width", "height")
    )
    words = np.array([len(expression.split()) for expression in expressions])
    targets = Counter(len(boxes) for boxes in boxes_of)
    areas = np.array(
        [
            (x2 - x1) * (y2 - y1) / (width * height)
            for boxes, width, height in zip(boxes_of, widths, heights, strict=True)
            for x1, y1, x2, y2 in boxes
        ]
    )
    categories = Counter(category for category in column_values(rows, "category") if category is not None)
    return {
        "words_per_expression": _spread(words),
        "distinct_expressions": len({expression.lower() for expression in expressions}),
        "rows_by_number_of_targets": {str(number): count for number, count in sorted(targets.items())},
        "box_area_share_of_image": _spread(areas) if len(areas) else {},
        "image_width_pixels": _spread(np.array(widths)),
        "image_height_pixels": _spread(np.array(heights)),
        "rows_with_mask": sum(mask is not None for mask in column_values(rows, "mask")),
        "most_frequent_categories": dict(categories.most_common(10)),
    }


def _spread(values: np.ndarray) -> dict[str, float]:
    low, median, high = (round(float(value), 4) for value in np.quantile(values, (0.05, 0.5, 0.95)))
    return {"mean": round(float(values.mean()), 4), "p5": low, "median": median, "p95": high}


def _count(rows: datasets.Dataset) -> Totals:
    return Totals(len(rows), *(len(set(column_values(rows, name))) for name in ("ref_id", "image_id")))


def contact_sheet(rows: datasets.Dataset, seed: int = 0, count: int = TILES) -> Image.Image:
    """A picture of rows chosen by `seed`, with their boxes and expressions drawn: the fastest check of a box format.

    Args:
        rows: a dataset of the schema.
        seed: another seed shows other rows.
        count: how many rows at most.
    """
    rows = without_image_decoding(rows)
    chosen = np.sort(np.random.default_rng(seed).permutation(len(rows))[:count])
    lines = -(-len(chosen) // TILE_COLUMNS)
    sheet = Image.new("RGB", (TILE_COLUMNS * TILE, lines * (TILE + CAPTION)), (32, 32, 32))
    for place, position in enumerate(chosen):
        corner = (place % TILE_COLUMNS * TILE, place // TILE_COLUMNS * (TILE + CAPTION))
        sheet.paste(_tile(rows[int(position)]), corner)
    return sheet


def _tile(row: Mapping[str, Any]) -> Image.Image:
    """One row: its picture with every box and the mask, the expression below."""
    from hivg_hf.visualize import draw_grounding

    picture = open_row_image(row)
    scale = (TILE - 6) / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    mask = None if row["mask"] is None else resize_mask(decode_mask(row["mask"]), *size)
    results = []
    for number, box in enumerate(row["boxes"]):
        scaled = scale_box(box, size[0] / picture.width, size[1] / picture.height)
        corners = dict(zip(("xmin", "ymin", "xmax", "ymax"), scaled, strict=True))
        results.append({"expression": str(number + 1), "box": corners, "score": None, "mask": mask})
        mask = None  # one mask is of all targets together: tint once
    tile = Image.new("RGB", (TILE, TILE + CAPTION), (32, 32, 32))
    tile.paste(draw_grounding(picture.resize(size), results, min_side=1), (3, 3))
    words = textwrap.wrap(row["expression"], 46)[:2] or [""]
    if row["no_target"]:
        words[0] = f"(no target) {words[0]}"
    ImageDraw.Draw(tile).multiline_text((6, TILE), "\n".join(words), fill=(255, 255, 255), font_size=14)
    return tile


def write_survey(result: Survey, folder: str | Path, seed: int = 0) -> list[Path]:
    """Write `survey.html`, `survey.json`, `problems.txt` and one contact sheet per split; returns the files."""
    folder = Path(folder)
    files = [folder / "survey.json"]
    write_json(files[0], result.to_dict())
    files.append(folder / "problems.txt")
    with atomic_path(files[1]) as path:
        lines = [f"{split.name}: {problem}\n" for split in result.splits for problem in split.report.problems]
        path.write_text("".join(lines), encoding="utf-8")
    files.append(folder / "survey.html")
    write_survey_page(files[-1], result, seed)
    for split in result.splits:
        if len(split.rows):
            name = split.name.replace("/", "-").replace(":", "-")
            files.append(folder / f"{name}.contact-sheet.jpg")
            with atomic_path(files[-1]) as path:
                contact_sheet(split.rows, seed).save(path, quality=88)
    return files


def summarize(result: Survey) -> str:
    """The survey in a few lines, for a terminal."""
    lines = []
    for split in result.splits:
        totals = split.report.totals
        objects = "" if totals.objects is None else f", {totals.objects:,} objects"
        lines.append(f"{split.name}: {totals.expressions or 0:,} expressions{objects}, {totals.images:,} images")
        faults = split.report.problems
        lines += [f"  {len(faults):,} rows cannot be used: {count_kinds(faults)}"] if faults else []
        lines += [f"  {line}" for line in (*split.report.differences, *split.report.notes)]
    for pair, images in result.leaks.items():
        lines.append(f"{pair} share {len(images):,} images, for example {', '.join(images[:3])}")
    for pair, same in result.lookalikes.items():
        lines.append(f"{pair} share {len(same):,} near-identical images, for example {', '.join(same[:3])}")
    if (
        not result.leaks
        and not result.lookalikes
        and any(split.is_train for split in result.splits)
        and len(result.splits) > 1
    ):
        lines.append("no image stands in a training split and in another one")
    return "\n".join(lines)
