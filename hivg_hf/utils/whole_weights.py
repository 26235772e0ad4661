"""Weights are whole, or refused by name: transformers and PEFT load what fits and leave the rest at random values."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from .strict_mapping import parse_json

INDEX_FILE = "model.safetensors.index.json"
_SHARD_NAME = re.compile(r"[A-Za-z0-9][\w-]*\.safetensors", re.ASCII)
_SHOWN = 3


def load_whole(
    kind: Any,
    source: str | Path,
    *,
    may_be_new: Callable[[str], bool] = lambda name: False,
    **options: Any,
) -> Any:
    """`from_pretrained` that never answers with weights the files do not hold.

    Args:
        kind: Class to load with.
        source: A folder, or a Hub id.
        may_be_new: Whether a weight may be missing and start at random, for a model that grows.
        options: Of `from_pretrained`.

    Raises:
        FileNotFoundError: There are no safetensors weights.
        ValueError: They are damaged, or some are missing, of another shape, NaN or infinite; with names and counts.
    """
    if (folder := Path(source)).is_dir():
        shards_of(folder)  # transformers opens whatever path the index names
    if folder.is_dir() and not any(folder.glob("*.safetensors*")):
        pickled = ", ".join(sorted(path.name for path in folder.glob("pytorch_model*.bin")))
        raise FileNotFoundError(
            f"The folder {source} has no model.safetensors"
            + (f", and pickled weights ({pickled}) are not opened: save the model as safetensors." if pickled else ".")
        )
    try:
        with quiet_transformers():
            model, report = kind.from_pretrained(
                source, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True, **options
            )
    except SafetensorError as error:
        raise ValueError(f"The weights of {source} are damaged ({error}); save or download them again.") from None
    missing = [name for name in report["missing_keys"] if not may_be_new(name)]
    shapes = [f"{name} {tuple(found)} for {tuple(wanted)}" for name, found, wanted in report["mismatched_keys"]]
    if missing or shapes or report["error_msgs"]:
        strange = report["unexpected_keys"] if missing else []  # a renamed weight is missing and strange at once
        _refuse(source, missing, strange, shapes, report["error_msgs"])
    check_finite(source, model.state_dict())
    return model


def shards_of(folder: Path) -> list[str]:
    """The files that the index of a model's weights names; [] where there is no index.

    Raises:
        ValueError: It names something else than files of weights beside it.
    """
    path = folder / INDEX_FILE
    if not path.is_file():
        return []
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"The file {path} is not readable JSON ({error}); save the model again.") from None
    shards = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(shards, dict) or not shards:
        raise ValueError(f"The file {path} names no shards (weight_map); save the model again.")
    for name in shards.values():
        if not isinstance(name, str) or not _SHARD_NAME.fullmatch(name):
            raise ValueError(
                f"The file {path} names {str(name)[:200]!r}, which is not a shard such as "
                "model-00001-of-00002.safetensors in the same folder; save the model again."
            )
    return sorted(set(shards.values()))


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and no warnings of transformers: what they would say of weights is said here, as an error."""
    was_shown, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if was_shown:
            transformers_logging.enable_progress_bar()


def check_fit(source: str | Path, state: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """Refuse a state dict that has not exactly the names and shapes of another, or holds NaN or infinite values.

    Args:
        source: Where it was read, for the message.
        state: Name -> tensor.
        expected: The same of the model that it is for.

    Raises:
        ValueError: With names and counts.
    """
    shapes = [
        f"{name} {tuple(tensor.shape)} for {tuple(expected[name].shape)}"
        for name, tensor in state.items()
        if name in expected and tensor.shape != expected[name].shape
    ]
    missing, strange = expected.keys() - state.keys(), state.keys() - expected.keys()
    if missing or strange or shapes:
        _refuse(source, missing, strange, shapes)
    check_finite(source, state)


def check_finite(source: str | Path, state: Mapping[str, torch.Tensor]) -> None:
    """Refuse weights that hold NaN or infinite values.

    Raises:
        ValueError: With names and count.
    """
    # offloaded weights are elsewhere ("meta"); types of one byte have no infinite values
    broken = [
        name
        for name, tensor in state.items()
        if tensor.is_floating_point() and tensor.itemsize > 1 and not tensor.is_meta and not tensor.isfinite().all()
    ]
    if broken:
        kinds = ", ".join(sorted({str(state[name].dtype).removeprefix("torch.") for name in broken}))
        raise ValueError(
            f"The weights of {source} cannot be used: {len(broken)} of {len(state)} hold NaN or infinite values in "
            f"{kinds} ({_some(broken)}); take a copy from before that happened, or load in float32 if it happens in "
            "another type only."
        )


def _refuse(
    source: str | Path,
    missing: Iterable[str],
    strange: Iterable[str],
    shapes: Iterable[str],
    others: Iterable[str] = (),
) -> None:
    found = (("missing", missing), ("not expected", strange), ("of another shape", shapes), ("unreadable", others))
    parts = [f"{len(names)} {what} ({_some(names)})" for what, given in found if (names := sorted(given))]
    raise ValueError(
        f"The weights of {source} are not those of its model: {', '.join(parts)}; save or download them again, or "
        "take the config that they were saved with."
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + ", ..." * (len(names) > _SHOWN)


def tensors_hash(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """SHA-256 over names, shapes, types and bytes, in the order given: the same weights in any file layout."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
