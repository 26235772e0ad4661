"""A checkpoint answers questions: pipeline, files, datasets, web page, ONNX."""

from typing import TYPE_CHECKING

from hivg_hf.utils.lazy import lazy_names

if TYPE_CHECKING:
    from .calibrated_folder import check_place, save_calibration
    from .calibration import Calibration, calibrate_score
    from .dataset_input import DatasetInput
    from .dataset_run import DatasetRun
    from .ground_batch import GroundBatch
    from .loading import DTYPES, answer_as_json, check_engine, load_pipeline, threshold_in_use
    from .onnx_export import check_onnx, export_onnx, write_current_onnx
    from .onnx_model import OnnxModel, open_onnx

__all__ = [
    "DTYPES",
    "Calibration",
    "DatasetInput",
    "DatasetRun",
    "GroundBatch",
    "OnnxModel",
    "answer_as_json",
    "calibrate_score",
    "check_engine",
    "check_onnx",
    "check_place",
    "export_onnx",
    "load_pipeline",
    "open_onnx",
    "save_calibration",
    "threshold_in_use",
    "write_current_onnx",
]

__getattr__ = lazy_names(
    __name__,
    {
        "DTYPES": "loading",
        "Calibration": "calibration",
        "DatasetInput": "dataset_input",
        "DatasetRun": "dataset_run",
        "GroundBatch": "ground_batch",
        "OnnxModel": "onnx_model",
        "answer_as_json": "loading",
        "calibrate_score": "calibration",
        "check_engine": "loading",
        "check_onnx": "onnx_export",
        "check_place": "calibrated_folder",
        "export_onnx": "onnx_export",
        "load_pipeline": "loading",
        "open_onnx": "onnx_model",
        "save_calibration": "calibrated_folder",
        "threshold_in_use": "loading",
        "write_current_onnx": "onnx_export",
    },
)
