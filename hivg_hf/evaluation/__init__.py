"""Evaluation that can be quoted: figures with their protocol, controls, comparisons, and files that say it all.

evaluate_model      predict every row once, score, run the controls            run.py, predict.py, controls.py
write_evaluation    results.json, predictions.parquet, plots, failures.html    records.py, plots.py, gallery.py
compare_rows        two models or settings on the same expressions, paired     compare.py
"""

from .compare import compare_rows, disagreements
from .controls import CONTROLS, apply_control, bridges_off, constant_bridge_text, other_expressions
from .predict import predict, references_of
from .records import describe_data, describe_model, read_predictions, read_results, weights_hash
from .reports import write_comparison, write_evaluation
from .run import Evaluation, EvaluationSettings, evaluate_model

__all__ = [
    "CONTROLS",
    "Evaluation",
    "EvaluationSettings",
    "apply_control",
    "bridges_off",
    "compare_rows",
    "constant_bridge_text",
    "describe_data",
    "describe_model",
    "disagreements",
    "evaluate_model",
    "other_expressions",
    "predict",
    "read_predictions",
    "read_results",
    "references_of",
    "weights_hash",
    "write_comparison",
    "write_evaluation",
]
