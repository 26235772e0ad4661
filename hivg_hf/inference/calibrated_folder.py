"""Where a calibrated model may be written, and writing it."""

import json
import os
import shutil
from pathlib import Path

from huggingface_hub.constants import HF_HUB_CACHE

from hivg_hf.hub import is_tiny
from hivg_hf.hub.drive import official_cache
from hivg_hf.utils.atomic import atomic_folder, write_json
from hivg_hf.utils.manifest import MANIFEST_FILE


def check_place(folder: str | Path, out: str | Path | None) -> Path:
    """Where the calibrated model goes: its own folder, or a new one.

    Args:
        folder: the model's.
        out: a new folder; None changes the model's own.

    Raises:
        ValueError: the model's own folder must stay as it is, or the new one is not empty or lies in the model's.
        FileNotFoundError: there is no config in the folder.
        OSError: nothing can be written there.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        what = "an adapter" if (folder / "adapter_config.json").is_file() else "no model"
        raise FileNotFoundError(f"{folder} holds {what}, and a calibration is written into a model's config.json.")
    if out is not None:
        return _check_new(Path(out), folder)
    caches = (Path(HF_HUB_CACHE), official_cache())
    if is_tiny(folder):
        reason = "is the checkpoint in the package, which every use of it shares"
    elif any(folder.resolve().is_relative_to(cache.resolve()) for cache in caches):
        reason = "lies in a cache, where the next download undoes the change"
    elif (folder / MANIFEST_FILE).is_file():
        reason = "is part of a training run, which compares its files with their checksums"
    elif not os.access(folder, os.W_OK):
        reason = "cannot be written to"
    else:
        return folder
    raise ValueError(f"{folder} {reason}: give --out for a calibrated copy.")


def _check_new(out: Path, folder: Path) -> Path:
    """A place for a copy of a folder, which nothing of either would be lost in."""
    if out.resolve() == folder.resolve():
        raise ValueError(f"{out} is the model itself: omit --out to change its config, or choose another folder.")
    if out.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{out} lies inside the model {folder}, of which it would be a copy: choose another --out.")
    if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        raise ValueError(f"{out} is not an empty folder: choose another one for --out.")
    above = next(parent for parent in out.absolute().parents if parent.exists())
    if not (above.is_dir() and os.access(above, os.W_OK)):
        why = "cannot be written to" if above.is_dir() else "is a file"
        raise OSError(f"Cannot make the folder {out}: {above} {why}; choose another --out.")
    return out


def save_calibration(fields: dict[str, float], folder: str | Path, out: str | Path | None = None) -> Path:
    """Write calibrated fields into a model folder's config, or into a copy of the folder; all of it or nothing.

    Files for other runtimes (`onnx/`) hold the old score and are not copied.

    Args:
        fields: of `Calibration`.
        folder: the model's.
        out: folder of the copy.

    Returns:
        The folder that holds the calibrated model.

    Raises:
        ValueError: see `check_place`.
    """
    target, folder = check_place(folder, out), Path(folder)
    content = {**json.loads((folder / "config.json").read_text(encoding="utf-8")), **fields}
    if target == folder:
        write_json(folder / "config.json", content)
        return target
    with atomic_folder(target) as temporary:
        shutil.copytree(folder, temporary, ignore=shutil.ignore_patterns("onnx", MANIFEST_FILE), dirs_exist_ok=True)
        write_json(temporary / "config.json", content)
    return target
