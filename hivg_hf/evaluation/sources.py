"""What `hivg evaluate` is told on the command line, opened: models of any kind, data of any source."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import concatenate_datasets

from hivg_hf.data import load_grounding_dataset
from hivg_hf.data.splits import split_names
from hivg_hf.hub import download_checked, load_with_stages, resolve_model
from hivg_hf.hub.files import read_json
from hivg_hf.inference import DTYPES, check_engine, open_onnx
from hivg_hf.modeling import HiVGConfig
from hivg_hf.utils.devices import warn_of_slow_bfloat16
from hivg_hf.utils.strict_mapping import refuse_other, refuse_unknown

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
    clip_config: Any = None,
    tokenizer: str | None = None,
) -> OpenedModel:
    """A model and its processor.

    Args:
        name: what `hivg_hf.hub.resolve_model` knows (`tiny`, `official:base-mixup`, a folder, a Hub id, an adapter
            that names its base), or an official `.pth` file.
        revision: branch, tag or commit on the Hub.
        dtype: float32 (the default), bfloat16 or float16.
        overrides: config fields that replace the checkpoint's ("two settings" of one model).
        backend, precision: as of `load_pipeline`; fp32 by default.
        clip_config: of an official file whose CLIP is not a published one: its `CLIPConfig` or a dict of one.
        tokenizer: of an official file: folder or Hub id; None takes that of OpenAI's CLIP.

    Raises:
        FileNotFoundError: the model does not exist.
        ValueError: it is not a HiVG model, or an option does not go with it.
    """
    if dtype is not None:
        refuse_other("dtype", dtype, DTYPES)
    check_engine(backend, precision, dtype=dtype)
    dtype = dtype or ("bfloat16" if precision == "bf16" else "float32")
    warn_of_slow_bfloat16(DTYPES[dtype])
    refuse_unknown(overrides or {}, HiVGConfig.__annotations__, "the overrides of the config")
    if backend == "onnx" and (overrides or name.endswith(_OFFICIAL_SUFFIXES)):
        raise ValueError(
            "The onnx backend measures a model folder as it is: convert an official file, and omit --set."
        )
    if name.endswith(_OFFICIAL_SUFFIXES):
        if revision:
            raise ValueError(f"{name} is an official file, which has no revision: omit it.")
        from hivg_hf.conversion import load_official_checkpoint

        model, processor = load_official_checkpoint(
            name, return_processor=True, tokenizer=tokenizer, clip_config=clip_config, **(overrides or {})
        )
        return OpenedModel(model.to(DTYPES[dtype]).eval(), processor, None)
    if clip_config is not None or tokenizer is not None:
        raise ValueError(f"{name} has its CLIP's config and tokenizer with it: give them for official files alone.")
    name = resolve_model(f"{name}@{revision}" if revision else name)
    folder = download_checked(name)
    # The Hub's cache keeps each commit in snapshots/<commit>.
    commit = folder.name if folder.parent.name == "snapshots" else None
    if backend == "onnx":
        return OpenedModel(*open_onnx(name, precision or "fp32"), commit)
    model, processor = load_with_stages(str(folder), dtype=DTYPES[dtype], **(overrides or {}))
    return OpenedModel(model.eval(), processor, commit)


def held_out_rows(run: str) -> tuple[str, str, dict[str, Any]]:
    """Source, split and reader options of the rows that a run of `hivg train` held out for validation.

    Raises:
        ValueError: If `run` is not the folder of a run, or the run held nothing out.
    """
    path = Path(run) / "recipe.json"
    if not path.is_file():
        raise ValueError(
            f"--split held-out means the rows that a run of `hivg train` held out, and {run} is not the folder of a "
            "run: give that folder as the model, or name --data and its split."
        )
    spec = read_json(path).get("data", {}).get("validation")
    if not spec:
        raise ValueError(f"The run {run} held out no rows: name --data and a split of it.")
    return spec["source"], spec["split"], {name: spec[name] for name in spec if name not in ("source", "split")}


def open_foils(source: str, split: str, options: Mapping[str, Any]) -> Any:
    """For RefShapes, the scenes where one object is named, with expressions of another; None for any other source."""
    if source != "refshapes":
        return None
    parts = [
        load_grounding_dataset(source, part, **{**options, "foils": True})
        for part in split_names(split)
        if part not in ("none", "plural")
    ]
    return concatenate_datasets(parts) if parts else None
