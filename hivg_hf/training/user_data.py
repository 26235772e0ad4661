"""Train on your own data: a whole recipe from one table of rows, with defaults that fit how many rows there are.

The plan is an ordinary recipe (see `recipe.py`), so that `hivg train --data ...` and a recipe file are the same
run, and whoever outgrows the defaults can write the plan down and change it.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hivg_hf.data.augmentation import DIRECTION_WORDS
from hivg_hf.data.negatives import Negatives, TableNegatives, served_share
from hivg_hf.data.readers.common import ROW_ERRORS
from hivg_hf.data.reading import list_splits, open_source
from hivg_hf.hub import resolve_model

logger = logging.getLogger(__name__)

# Rows up to which a class of defaults holds: batch size, share held out, evaluations without gain.
SIZES = (
    (200, {"batch_size": 8, "holdout": 0.2, "early_stop": 6}),
    (2_000, {"batch_size": 16, "holdout": 0.15, "early_stop": 5}),
    (20_000, {"batch_size": 32, "holdout": 0.1, "early_stop": 4}),
    (None, {"batch_size": 64, "holdout": 0.05, "early_stop": 3}),
)
STEPS_PER_PHASE = 900
LINES_PER_PHASE = 30  # of the log, beside those of evaluations
FEWEST_EPOCHS, MOST_EPOCHS = 3, 40
ROWS_FOR_WORKERS = 1_000
# Rows that ask for what is not there, so that the score learns to say so; where at least so many rows can.
NEGATIVE_SHARE, FEWEST_SERVED = 0.2, 0.5
HOLDOUT_BY_SIZE = -1.0  # stands for the share that the number of rows decides, until they are counted

# Official: 2.5e-4 for the warm-up of bridge and heads, 1e-4 for the first stage, at width 768 (hivg_train.py:22-34).
HEADS_LEARNING_RATE, STAGE_LEARNING_RATE, OFFICIAL_WIDTH = 2.5e-4, 1e-4, 768
MOST_LEARNING_RATE = 1e-3

# Points of Acc@0.5 on a domain that the shipped model had not seen (docs/own-rows.md): what so many rows
# brought, and how much less HiLoRA in stages brought with 2,000.
GAINED_POINTS, STAGES_BEHIND = {200: 2.5, 2_000: 5.6, 10_000: 8.1}, 2.3

# People who describe their own pictures say more than the five official words that a crop can make wrong.
PLACE_WORDS = (
    *DIRECTION_WORDS,
    *("above", "below", "under", "upper", "lower", "center", "centre", "corner", "side", "between", "next to", "near"),
    *("first", "second", "third", "last", "largest", "biggest", "smallest", "closest", "farthest", "only"),
)


def plan_user_training(
    data: str,
    images: str | None,
    base: str,
    out: str | None = None,
    box_format: str | None = None,
    val: str | None = None,
    epochs: float | None = None,
    seed: int = 13,
    learning_rate: float | None = None,
    batch_size: int | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Plan a training run on somebody's own table.

    Args:
        data: whatever `load_grounding_dataset` reads: a table, a folder that `datasets` saved, a dataset on the Hub.
            A `split` column with `train` and `val` is followed, and so are splits that are stored apart; without
            either, images are held out for validation.
        images: folder of the pictures; defaults to the table's own folder.
        base: a HiVG model by any name that `hivg_hf.hub.resolve_model` knows, or folder or Hub id of a plain CLIP.
        out: folder of the run; only its name is read, as the name of the run.
        box_format: what the boxes mean; required for every format but COCO's.
        val: a table of its own for validation.
        epochs: passes over the training rows in each phase, in place of the default for the size.
        seed: seed of the run.
        learning_rate: of the first phase, in place of the default for the width of the base; later phases keep their
            ratio to it.
        batch_size: rows of an optimizer step, in place of the default for the number of rows.
        **options: further options of the reader, for example `columns` or `multi_target`; `negatives`, in place of
            the default, is for the training rows alone (None makes none).

    Returns:
        A recipe for `hivg_hf.training.recipe.parse_recipe`.

    Raises:
        ValueError: the base is neither a HiVG nor a CLIP, the split column lacks `train` or `val`, or an option of the
            reader is wrong.
        FileNotFoundError: a file or a folder is missing.
    """
    kind, config = _open_base(base)
    base = resolve_model(base)
    chosen = {"negatives": options.pop("negatives")} if "negatives" in options else None
    reading = {"source": data, "images": images, "box_format": box_format, **options}
    reading = {key: value for key, value in reading.items() if value is not None}
    specs = _divide(reading, val)
    training_rows = _read(specs["train"])
    defaults = _defaults(len(training_rows))
    for spec in specs.values():
        if spec.get("holdout") == HOLDOUT_BY_SIZE:
            spec["holdout"] = defaults["holdout"]
    if specs["train"].get("holdout"):
        training_rows = _read(specs["train"])
    rows, held_out = len(training_rows), len(_read(specs["validation"]))
    logger.info("%s: %s rows to train on, %s held out for validation.", data, f"{rows:,}", f"{held_out:,}")
    if share := specs["validation"].get("holdout"):
        logger.info("The held-out rows are the split val with the option holdout=%s of %s.", share, data)
    logger.info(
        "Low-rank terms go into all linear layers at once: with 2,000 rows of a domain new to the shipped model, "
        "HiLoRA in stages was %.1f points behind. 200, 2,000 and 10,000 rows brought %s points (docs/own-rows.md).",
        *(STAGES_BEHIND, ", ".join(f"{points:.1f}" for points in GAINED_POINTS.values())),
    )
    specs["train"].update(_default_negatives(training_rows, config) if chosen is None else chosen)
    tests = {"test": specs.pop("test")} if "test" in specs else {}
    losses = _default_losses(kind, training_rows)
    batch_size = min(batch_size or defaults["batch_size"], rows)
    epochs = epochs or _epochs(rows, batch_size)
    return {
        "name": Path(out).name if out else f"{Path(data).stem}-{Path(base).name}",
        "seed": seed,
        "model": {kind: base},
        "data": {
            **specs,
            "tests": tests,
            "augmentation": {"scale_count": 3, "whole_image_words": list(PLACE_WORDS)},
            "unique_images": len({row.image_id for row in training_rows}) >= 2 * batch_size,
        },
        "defaults": {
            "batch_size": batch_size,
            "epochs": epochs,
            "early_stop": defaults["early_stop"],
            "warmup": 0.05,
            "max_grad_norm": 1.0,
            **losses,
            "log_every": max(1, round(epochs * rows / batch_size) // LINES_PER_PHASE),
        },
        "phases": _phases(kind, config, learning_rate),
        "hilora": {"targets": "all-linear"},
        "workers": min(4, (os.cpu_count() or 1) - 1) if rows >= ROWS_FOR_WORKERS else 0,
    }


def _open_base(base: str) -> tuple[str, Mapping[str, Any]]:
    """Whether a base is a HiVG `checkpoint` or a plain `clip`, and its configuration.

    Raises:
        ValueError: it is neither.
    """
    from transformers import PretrainedConfig

    from .model_start import locate

    if Path(base).is_file():
        raise ValueError(f"{base} is a file; convert it first: hivg convert {base} FOLDER, then --base FOLDER.")
    try:
        config, _ = PretrainedConfig.get_config_dict(locate(base, weights=False))
    except OSError as error:
        said = str(error).partition("\n")[0]  # general advice follows
        raise ValueError(f"{base} is neither a model folder nor a Hub id that can be reached: {said}") from error
    model_type = config.get("model_type")
    if model_type not in ("hivg", "clip"):
        raise ValueError(f"{base} is a model of type {model_type!r}; training starts from a HiVG or a CLIP model.")
    return ("checkpoint", config) if model_type == "hivg" else ("clip", config)


def _divide(reading: dict[str, Any], val: str | None) -> dict[str, dict[str, Any]]:
    """What to read for `train`, `validation` and, where the table has one, `test`.

    Raises:
        ValueError: the table has a split column without `train`, or without `val` where no other file stands in.
    """
    splits = _splits_of(reading)
    train = {**reading, "split": "train"}
    if val is not None:
        other = {**reading, "source": val}
        found = _splits_of(other)
        wanted = next((name for name in ("val", "validation") if name in found), "all")
        if found and wanted == "all":
            raise ValueError(f"{val} has the splits {', '.join(sorted(found))}, and none is called val.")
        return {"train": train if splits else {**train, "split": "all"}, "validation": {**other, "split": wanted}}
    if not splits:
        train["holdout"] = HOLDOUT_BY_SIZE
        return {"train": train, "validation": {**train, "split": "val"}}
    named = {"val" if name in ("validation", "valid") else name for name in splits}
    if not {"train", "val"} <= named:
        raise ValueError(
            f"{reading['source']} has the splits {', '.join(sorted(splits))}; train and val are needed. Name them so, "
            "or remove the column to have images held out."
        )
    specs = {"train": train, "validation": {**reading, "split": "val"}}
    return {**specs, "test": {**reading, "split": "test"}} if "test" in splits else specs


def _splits_of(reading: Mapping[str, Any]) -> set[str]:
    """The splits that the rows of a source name; empty where they name none."""
    options = {key: value for key, value in reading.items() if key not in ("source", "on_error")}
    return set(list_splits(str(reading["source"]), **options)) - {"all"}


class _Said(NamedTuple):
    """What a row says, before it is checked; one that cannot be read counts, and is refused by name later."""

    image_id: str = ""
    expression: Any = None
    category: Any = None
    no_target: bool = False
    has_mask: bool = False


def _read(spec: Mapping[str, Any]) -> list[_Said]:
    """What the rows of a spec say, without their pictures."""
    options = {key: value for key, value in spec.items() if key not in ("source", "split", "on_error")}
    if options.get("holdout") == HOLDOUT_BY_SIZE:
        options, spec = {key: value for key, value in options.items() if key != "holdout"}, {**spec, "split": "all"}
    builder = open_source(str(spec["source"]), spec["split"], **{**options, "verify_images": "no"})
    rows = []
    for record in builder.annotations.records:
        try:
            draft = builder.annotations.read(record)
            has_mask = draft.mask is not None
            rows.append(_Said(draft.image_id, draft.expression, draft.category, draft.no_target, has_mask))
        except ROW_ERRORS:
            rows.append(_Said())
    return rows


def _default_negatives(rows: Sequence[_Said], config: Mapping[str, Any]) -> dict[str, Any]:
    """A share of negatives, for a model whose score trains and a table that has none of its own.

    Without them a score learns from rows that all have a target, and a model that always answers is what comes out.
    """
    usable = [row for row in rows if isinstance(row.expression, str)]
    why = ""
    if config.get("model_type") == "hivg" and config.get("score", "head") != "head":
        why = "the model has no score that trains"
    elif any(row.no_target for row in usable):
        why = "the table has expressions of its own that name nothing"
    else:
        options = Negatives(NEGATIVE_SHARE)
        maker = TableNegatives(
            [row.expression for row in usable],
            [str(row.image_id) for row in usable],
            [None if row.category is None else str(row.category) for row in usable],
            options,
        )
        served = served_share(maker, options, np.arange(len(usable)))
        if served >= FEWEST_SERVED:
            return {"negatives": {"share": NEGATIVE_SHARE}}
        why = f"only {served:.0%} of its expressions can be turned into one that names nothing"
    logger.info("No negatives (expressions that name nothing) are made up: %s.", why)
    return {}


def _default_losses(kind: str, rows: Sequence[_Said]) -> dict[str, Any]:
    """Loss weights for a table without masks: boxes must not replace what a trained mask head has learned.

    A new head is trained on the boxes, as in the official code.
    """
    if kind == "clip" or any(row.has_mask for row in rows):
        return {}
    logger.info("No row has a mask: the mask head of the model is not trained.")
    return {"loss_weights": {"mask_focal": 0.0, "mask_dice": 0.0}}


def _defaults(rows: int) -> dict[str, Any]:
    return next(values for most, values in SIZES if most is None or rows < most)


def _epochs(rows: int, batch_size: int) -> int:
    """Passes that make about `STEPS_PER_PHASE` steps, within bounds."""
    return min(MOST_EPOCHS, max(FEWEST_EPOCHS, round(STEPS_PER_PHASE * batch_size / rows)))


def _phases(kind: str, config: Mapping[str, Any], learning_rate: float | None) -> list[dict[str, Any]]:
    """Bridge and heads alone where they are new (a CLIP base), then low-rank terms in all layers at once."""
    clip = config if kind == "clip" else config["clip_config"]
    vision, text = ({**clip.get(f"{tower}_config", {})} for tower in ("vision", "text"))
    # Left out of a saved config where they have CLIPConfig's defaults.
    depth, text_depth = (tower.get("num_hidden_layers", 12) for tower in (vision, text))
    # Narrow models learn at higher rates, the official ones stand for width 768; one that grounds, by the root.
    gain = max(1.0, OFFICIAL_WIDTH / vision.get("hidden_size", OFFICIAL_WIDTH))
    phases = []
    if kind == "clip":
        phases.append(
            {"name": "warmup", "train": "heads", "learning_rate": min(HEADS_LEARNING_RATE * gain, MOST_LEARNING_RATE)}
        )
    rate = min(STAGE_LEARNING_RATE * (gain if kind == "clip" else gain**0.5), MOST_LEARNING_RATE)
    phases.append(
        {"name": "lora", "train": "lora", "vision_layers": depth, "text_layers": text_depth, "learning_rate": rate}
    )
    ratio = 1.0 if learning_rate is None else learning_rate / phases[0]["learning_rate"]
    return [{**phase, "learning_rate": phase["learning_rate"] * ratio} for phase in phases]
