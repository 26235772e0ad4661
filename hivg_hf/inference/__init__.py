"""A checkpoint answers questions: pipeline, files, datasets, web page, ONNX."""

from typing import TYPE_CHECKING

from hivg_hf.utils.lazy import lazy_names

if TYPE_CHECKING:
    from .calibration import calibrate_similarity_score
    from .dataset_input import DatasetInput
    from .dataset_run import DatasetRun
    from .ground_batch import GroundBatch
    from .loading import DTYPES, answer_as_json, check_engine, load_pipeline
    from .onnx_export import check_onnx, export_onnx, write_current_onnx
    from .onnx_model import OnnxModel, open_onnx

__all__ = [
    "DTYPES",
    "DatasetInput",
    "DatasetRun",
    "GroundBatch",
    "OnnxModel",
    "answer_as_json",
    "calibrate_similarity_score",
    "check_engine",
    "check_onnx",
    "export_onnx",
    "load_pipeline",
    "open_onnx",
    "write_current_onnx",
]

__getattr__ = lazy_names(
    __name__,
    {
        "DTYPES": "loading",
        "DatasetInput": "dataset_input",
        "DatasetRun": "dataset_run",
        "GroundBatch": "ground_batch",
        "OnnxModel": "onnx_model",
        "answer_as_json": "loading",
        "calibrate_similarity_score": "calibration",
        "check_engine": "loading",
        "check_onnx": "onnx_export",
        "export_onnx": "onnx_export",
        "load_pipeline": "loading",
        "open_onnx": "onnx_model",
        "write_current_onnx": "onnx_export",
    },
)
