"""What an evaluation leaves on disk, and how it is read back: results as JSON, predictions as Parquet."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from hivg_hf.inference import OnnxModel
from hivg_hf.metrics import MetricProtocol, RowScores
from hivg_hf.modeling.modeling_hivg import HiVGForVisualGrounding
from hivg_hf.utils.atomic import atomic_path
from hivg_hf.utils.whole_weights import tensors_hash

RESULTS_NAME = "results.json"
PREDICTIONS_NAME = "predictions.parquet"
RESULTS_FORMAT = 1

_PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "numpy", "pillow")
# How this machine prepares data, not which data it is.
_MACHINE_OPTIONS = ("workers", "cache_dir")
_REFERENCE_COLUMNS = (
    "expression", "box", "boxes", "no_target", "width", "height", "category", "image_id", "ref_id", "sent_id",
    "source", "split",
)  # fmt: skip
_MASK = pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.string())])
_BOX = pa.list_(pa.float64())
# Columns where a model answers with several boxes; masks of each stand in rows of several targets alone.
_SEVERAL = {"predicted_boxes": "boxes_xyxy", "scores": "scores", "predicted_masks": "masks"}
_TYPES = {
    "box": _BOX,
    "boxes": pa.list_(_BOX),
    "predicted_boxes": pa.list_(_BOX),
    "target_mask": _MASK,
    "predicted_mask": _MASK,
    "predicted_masks": pa.list_(_MASK),
}


def describe_model(model: torch.nn.Module, name: str, revision: str | None = None) -> dict[str, Any]:
    """What a results file says of a model: id, revision, number and hash of the weights, and the engine where it is
    not torch."""
    described = {"id": name, "revision": revision or getattr(model.config, "_commit_hash", None)}
    if isinstance(model, OnnxModel):
        with torch.device("meta"):
            parameters = HiVGForVisualGrounding(model.config).num_parameters()
        return {
            **described,
            "weights_sha256": model.identity.hivg_weights_sha256,
            "parameters": parameters,
            "dtype": "float32",
            "engine": f"onnxruntime, {model.path.name}",
        }
    return {
        **described,
        "weights_sha256": weights_hash(model),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
    }


def weights_hash(model: torch.nn.Module) -> str:
    """SHA-256 over names, shapes, types and bytes of the state dict: the same weights in any file layout."""
    return tensors_hash(sorted(model.state_dict().items()))


def describe_data(
    references: Sequence[Mapping[str, Any]], source: str, split: str, options: Mapping[str, Any]
) -> dict[str, Any]:
    """What a results file says of the data; the hash covers expressions, boxes and image ids, in order."""
    digest = hashlib.sha256()
    for row in references:
        content = [row.get("expression"), row.get("box"), row.get("boxes"), row.get("image_id")]
        digest.update(json.dumps(content).encode() + b"\n")
    return {
        "source": source,
        "split": split,
        "options": {name: value for name, value in options.items() if name not in _MACHINE_OPTIONS},
        "rows": len(references),
        "sha256": digest.hexdigest(),
    }


def describe_versions() -> dict[str, str]:
    """Versions of what computed the figures."""
    from hivg_hf.utils.version import __version__

    found = {"hivg_hf": __version__, "python": platform.python_version()}
    return {**found, **{name: importlib.metadata.version(name) for name in _PACKAGES}}


def read_results(path: str | Path) -> dict[str, Any]:
    """Read a results file, or the one in an evaluation's folder.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is not a results file, or of a newer format.
    """
    path = Path(path)
    path = path / RESULTS_NAME if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"Results file not found: {path}: write one with `hivg evaluate --out FOLDER`.")
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        version = results["format_version"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a results file of `hivg evaluate`: {error!r}.") from error
    if version > RESULTS_FORMAT:
        raise ValueError(f"{path} has format {version}, this version reads up to {RESULTS_FORMAT}: update hivg_hf.")
    return results


def write_predictions(
    path: str | Path,
    predictions: Sequence[Mapping[str, Any]],
    rows: RowScores,
    protocol: str | MetricProtocol,
) -> None:
    """One line per row: what was asked, what was answered, and how it was judged."""
    correct = rows.correct(protocol)
    several = {name: key for name, key in _SEVERAL.items() if any(key in prediction for prediction in predictions)}
    lines = []
    for index, (prediction, reference) in enumerate(zip(predictions, rows.references, strict=True)):
        judged = bool(rows.has_box[index])
        lines.append(
            {
                "id": prediction["id"],
                **{name: reference.get(name) for name in _REFERENCE_COLUMNS},
                "target_mask": reference.get("mask"),
                "predicted_box": prediction["box_xyxy"],
                "score": prediction["score"],
                **{name: prediction.get(key) for name, key in several.items()},
                "predicted_mask": prediction["mask"],
                "canvas_box": prediction["canvas_box"],
                "canvas_size": prediction["canvas_size"],
                "canvas_offset": prediction["canvas_offset"],
                "iou": float(rows.ious[index]) if judged else None,
                "correct": bool(correct[index]) if judged else None,
            }
        )
    columns = {
        name: pa.array([line[name] for line in lines], type=_TYPES.get(name)) for name in (lines[0] if lines else {})
    }
    with atomic_path(path) as temporary:
        pq.write_table(pa.table(columns), temporary)


def read_predictions(folder: str | Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Predictions and references of an earlier evaluation, from its folder.

    Raises:
        FileNotFoundError: the folder has no predictions.
    """
    path = Path(folder) / PREDICTIONS_NAME
    if not path.is_file():
        raise FileNotFoundError(
            f"There are no predictions in {folder}: write some with `hivg evaluate --out {folder}`."
        )
    predictions, references = [], []
    for line in pq.read_table(path).to_pylist():
        references.append(
            {"id": line["id"], **{name: line[name] for name in _REFERENCE_COLUMNS}, "mask": line["target_mask"]}
        )
        predictions.append(
            {
                "id": line["id"],
                "box_xyxy": line["predicted_box"],
                "mask": line["predicted_mask"],
                **{name: line[name] for name in ("score", "canvas_box", "canvas_size", "canvas_offset")},
                **{key: line[name] for name, key in _SEVERAL.items() if name in line},
            }
        )
    return predictions, references
