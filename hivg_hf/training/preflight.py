"""What can be known before the first step is known then: split names, files, sizes, shapes, room on the disk."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hivg_hf.data.loading import SHARD_OPTIONS, load_grounding_dataset
from hivg_hf.data.readers import FORMATS, SOURCES, find_source
from hivg_hf.data.readers.recognition import is_cache
from hivg_hf.data.reading import open_source
from hivg_hf.data.splits import PUBLISHED, split_names

from .model_start import OFFICIAL_SUFFIXES
from .plan import phase_models
from .recipe import Recipe
from .rows import row_options
from .run_folder import check_room, disk_needed

_ON_THE_HUB = {FORMATS["hub"].reader, *(source.reader for source in SOURCES.values() if "hub:" in str(source.reader))}
_ORDER = ("on_error", "negatives", *SHARD_OPTIONS)  # say how rows are taken, not which there are


def check_before_training(recipe: Recipe, folder: str | Path, planning: bool = False) -> list[str]:
    """Refuse a run that would fail after hours, in a second or two; no weights and no pictures are read.

    Args:
        recipe: What would run.
        folder: Of the run.
        planning: Files of published data and weights may be missing, as on the machine of somebody who plans.

    Returns:
        What is missing, as sentences; empty unless `planning`.

    Raises:
        ValueError: A split, a size or a shape is wrong.
        FileNotFoundError: A file is missing.
        OSError: The disk is too small.
    """
    missing = []
    counts = {}
    for where, spec in row_specs(recipe):
        try:
            counts[where] = count_records(spec)
        except FileNotFoundError as error:
            if not planning or not _is_published(spec):
                raise FileNotFoundError(f"{where}: {error}") from error
            missing.append(f"{where}: {error}")
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    _check_sizes(recipe, counts)
    missing += _missing_weights(recipe, planning)
    if not _shape_is_in_weights(recipe):
        needed = max(disk_needed(model) for _, model in phase_models(recipe))
        check_room(Path(folder), needed)
    return missing


def row_specs(recipe: Recipe) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every description of rows in a recipe, and where it stands."""
    data = recipe.data
    yield "data.train", data.train
    if data.validation is not None:
        yield "data.validation", data.validation
    for name, spec in data.tests.items():
        yield f"data.tests.{name}", spec
    for phase in recipe.phases:
        if phase.data is not None:
            yield f"phases.{phase.name}.data", phase.data
        if trusted := getattr(getattr(phase, "reliability", None), "trusted", None):
            yield f"phases.{phase.name}.reliability.trusted", trusted


def count_records(spec: Mapping[str, Any]) -> int | None:
    """Rows that a description names, before any is checked; None where that is known only when they are loaded.

    Raises:
        ValueError: The split or an option is wrong.
        FileNotFoundError: An annotation file is missing.
    """
    source, split, options = str(spec["source"]), spec["split"], row_options(spec)
    if source == "refshapes":
        from hivg_hf.data.refshapes import SPLITS, refshapes_dataset

        names = split_names(split)
        for name in names:
            if name not in SPLITS:
                raise ValueError(f"unknown RefShapes split {name!r}; expected one of {', '.join(SPLITS)}.")
        return len(names) * options.get("size", inspect.signature(refshapes_dataset).parameters["size"].default)
    if source == "mixture":
        for part in options["parts"]:
            count_records({"split": split, **{key: value for key, value in part.items() if key != "weight"}})
        return options.get("size")
    if is_cache(Path(source)):  # opening it reads nothing
        return len(load_grounding_dataset(source, split, **options))
    if find_source(source, options.get("format")).reader in _ON_THE_HUB:  # asking would take a while
        return None
    options = {key: value for key, value in options.items() if key not in _ORDER}
    return len(open_source(source, split, **options).annotations.records)


def _check_sizes(recipe: Recipe, counts: Mapping[str, int | None]) -> None:
    for phase in recipe.phases:
        rows = counts.get("data.train" if phase.data is None else f"phases.{phase.name}.data")
        if rows is not None and rows < phase.batch_size:
            raise ValueError(
                f"{phase} takes batches of {phase.batch_size} rows, and its training data has {rows}: lower its "
                "batch_size."
            )


def _missing_weights(recipe: Recipe, planning: bool) -> list[str]:
    """Files that the model starts from and that are not there; a Hub id is asked for when it is loaded."""
    found = []
    for key in ("checkpoint", "clip"):
        name = getattr(recipe.model, key)
        if name and (Path(name).is_absolute() or name.endswith(OFFICIAL_SUFFIXES)) and not Path(name).exists():
            found.append(f"model.{key}: there is no {name}")
    if found and not (planning and recipe.model.preset):
        raise FileNotFoundError(f"{found[0]}: correct the path, or download it.")
    return found


def _is_published(spec: Mapping[str, Any]) -> bool:
    """Whether the number of rows is known without the data."""
    known = SOURCES.get(str(spec["source"]))
    return known is not None and bool(PUBLISHED.get(known.published_as))


def _shape_is_in_weights(recipe: Recipe) -> bool:
    """Whether only an official file of weights says how large the model is."""
    clip = recipe.model.clip
    return bool(clip and clip.endswith(OFFICIAL_SUFFIXES) and not recipe.model.preset)
