"""What `hivg evaluate` is told on the command line, opened: models of any kind, data of any source."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import concatenate_datasets

from hivg_hf.data import load_grounding_dataset
from hivg_hf.hub import download_checked, load_with_stages
from hivg_hf.inference import DTYPES, check_engine, open_onnx
from hivg_hf.modeling import HiVGConfig
from hivg_hf.utils.strict_mapping import refuse_unknown

INCLUDED_MODEL = "hivg-tiny-refshapes"
_OFFICIAL_SUFFIXES = (".pth", ".pt")


class OpenedModel(NamedTuple):
    """A model, its processor, and the commit it came from on the Hub (None for a local one)."""

    model: torch.nn.Module
    processor: Any
    commit: str | None


def open_model(
    name: str,
    *,
    revision: str | None = None,
    dtype: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    backend: str = "torch",
    precision: str | None = None,
) -> OpenedModel:
    """A model and its processor.

    Args:
        name: a folder, a Hub id, an adapter that names its base, an official `.pth` file, or the name of the
            checkpoint in the package.
        revision: branch, tag or commit on the Hub.
        dtype: float32 (the default), bfloat16 or float16.
        overrides: config fields that replace the checkpoint's ("two settings" of one model).
        backend, precision: as of `load_pipeline`; fp32 by default.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: it is no HiVG model, or an option does not go with it.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}.")
    check_engine(backend, precision, dtype=dtype)
    dtype = dtype or ("bfloat16" if precision == "bf16" else "float32")
    refuse_unknown(overrides or {}, HiVGConfig.__annotations__, "the overrides of the config")
    if backend == "onnx" and (overrides or name.endswith(_OFFICIAL_SUFFIXES)):
        raise ValueError(
            "The onnx backend measures a model folder as it is: convert an official file, and omit --set."
        )
    if name.endswith(_OFFICIAL_SUFFIXES):
        if overrides or revision:
            raise ValueError(
                f"{name} is an official file: it has no revision, and convert it first to change its config."
            )
        from hivg_hf.conversion import load_official_checkpoint

        model, processor = load_official_checkpoint(name, return_processor=True)
        return OpenedModel(model.to(DTYPES[dtype]).eval(), processor, None)
    if name == INCLUDED_MODEL and not Path(name).exists():
        from hivg_hf.checkpoints import TINY_CHECKPOINT

        name = TINY_CHECKPOINT
    if Path(name).is_absolute() and not Path(name).is_dir():
        raise FileNotFoundError(f"There is no model folder {name}.")
    name = f"{name}@{revision}" if revision else name
    folder = download_checked(name)
    # The Hub's cache keeps each commit in snapshots/<commit>.
    commit = folder.name if folder.parent.name == "snapshots" else None
    if backend == "onnx":
        return OpenedModel(*open_onnx(name, precision or "fp32"), commit)
    model, processor = load_with_stages(str(folder), dtype=DTYPES[dtype], **(overrides or {}))
    return OpenedModel(model.eval(), processor, commit)


def open_data(source: str, split: str, options: Mapping[str, Any]) -> Any:
    """Rows of one split, or of several joined by "+" ("val+none")."""
    parts = [load_grounding_dataset(source, part, **options) for part in split_names(split)]
    return parts[0] if len(parts) == 1 else concatenate_datasets(parts)


def open_foils(source: str, split: str, options: Mapping[str, Any]) -> Any:
    """For RefShapes, the same scenes with expressions of other objects; None for any other source."""
    if source != "refshapes":
        return None
    parts = [
        load_grounding_dataset(source, part, **{**options, "foils": True})
        for part in split_names(split)
        if part != "none"
    ]
    return concatenate_datasets(parts) if parts else None


def split_names(split: str) -> list[str]:
    """The splits of "val+none".

    Raises:
        ValueError: one of them is empty.
    """
    names = split.split("+")
    if not all(names):
        raise ValueError(f"A split has no name in {split!r}: write one, or several joined by '+', such as val+none.")
    return names
