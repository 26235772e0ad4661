"""Manifests: what a folder held when it was written, so that whoever reads it later can tell whether it is whole."""

import hashlib
import json
import logging
from pathlib import Path

from .atomic import write_json

MANIFEST_FILE = "manifest.json"

logger = logging.getLogger(__name__)


def write_manifest(folder: str | Path, resumable: bool = True) -> None:
    """Write the size and SHA-256 of every file in a folder to its `manifest.json`.

    Args:
        folder: With all its files written.
        resumable: Whether training can resume from it; False for weights without optimizer and schedule.
    """
    folder = Path(folder)
    files = {
        str(path.relative_to(folder)): {"size": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / MANIFEST_FILE
    }
    write_json(folder / MANIFEST_FILE, {"resumable": resumable, "files": files})


def find_damage(folder: str | Path) -> str | None:
    """The first difference between a folder and its manifest, as a phrase; None where there is none."""
    path = Path(folder) / MANIFEST_FILE
    if not path.is_file():
        return f"it has no {MANIFEST_FILE}, as if hivg_hf 0.1 or another trainer had written it"
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
        expected = {name: (int(entry["size"]), str(entry["sha256"])) for name, entry in files.items()}
    except (ValueError, LookupError, TypeError, AttributeError):
        return f"its {MANIFEST_FILE} is damaged"
    for name, (size, digest) in expected.items():
        file = Path(folder) / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes instead of {size}"
        if _sha256(file) != digest:
            return f"the content of {name} has changed since it was written"
    return None


def newest_whole_checkpoint(folder: str | Path) -> str | None:
    """The newest `checkpoint-N` that training can resume from; damaged ones after it are named in the log.

    Returns:
        Its path, or None where there is no checkpoint at all.

    Raises:
        ValueError: If there are checkpoints and none is whole, or the best one so far is damaged.
    """
    found = [path for path in Path(folder).glob("checkpoint-*") if path.name.split("-")[1].isdigit()]
    damaged: dict[str, str] = {}
    for path in sorted(found, key=lambda path: int(path.name.split("-")[1]), reverse=True):
        damage = find_damage(path) or _why_not_resumable(path)
        if damage is None:
            for name, why in damaged.items():
                logger.warning("%s is damaged (%s): resuming from %s instead.", Path(folder) / name, why, path.name)
            _check_best(path)
            return str(path)
        damaged[path.name] = damage
    if not damaged:
        return None
    reasons = "; ".join(f"{name}: {why}" for name, why in damaged.items())
    raise ValueError(
        f"None of the checkpoints in {folder} is whole ({reasons}): restore one, or delete them to start from the "
        "beginning."
    )


def check_resumable(checkpoint: str | Path) -> None:
    """Refuse to resume from a damaged checkpoint.

    Raises:
        ValueError: Naming what is damaged.
    """
    damage = find_damage(checkpoint) or _why_not_resumable(Path(checkpoint))
    if damage:
        raise ValueError(
            f"Training cannot resume from {checkpoint}: {damage}. Choose another checkpoint, or start without one; if "
            "you know that the folder is right, call hivg_hf.utils.manifest.write_manifest on it."
        )


def _why_not_resumable(checkpoint: Path) -> str | None:
    resumable = json.loads((checkpoint / MANIFEST_FILE).read_text(encoding="utf-8")).get("resumable")
    return None if resumable else "it has weights only (save_only_model)"


def _check_best(checkpoint: Path) -> None:
    """The best checkpoint so far is loaded when training ends, which is too late to find it damaged."""
    best = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8")).get("best_global_step")
    path = checkpoint.with_name(f"checkpoint-{best}")
    if best and path.is_dir():
        damage = find_damage(path)
        if damage:
            raise ValueError(
                f"{path}, the best checkpoint so far, is damaged ({damage}): restore it, or delete all checkpoints in "
                f"{path.parent} to start from the beginning."
            )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
