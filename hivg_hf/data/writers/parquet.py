"""Parquet with the rows as they are, pictures inside: what `load_grounding_dataset` and the Hub read as it is."""

from pathlib import Path
from typing import Any

from datasets import Dataset

from hivg_hf.utils.atomic import atomic_path

from ..schema import FEATURES
from . import Pictures


def write_parquet(rows: Any, path: Path, pictures: Pictures) -> list[str]:
    """Write one file; nothing is lost."""
    with atomic_path(path) as unfinished:
        _embedded(rows).to_parquet(unfinished)
    return []


def _embedded(rows: Any) -> Dataset:
    """The rows with the bytes of their pictures."""

    def embed(row: dict[str, Any]) -> dict[str, Any]:
        picture = row["image"]
        if picture is not None and picture.get("bytes") is None and picture.get("path"):
            path = Path(picture["path"])
            return {"image": {"path": path.name, "bytes": path.read_bytes()}}
        return {"image": picture}

    features = {name: rows.features[name] for name in FEATURES}
    return rows.select_columns(list(FEATURES)).map(embed, features=type(rows.features)(features))
