"""Grounding figures under a named protocol, with bootstrap intervals.

    compute_grounding_metrics(predictions, references, protocol)      summary.py
        match ids, check numbers; errors list the culprits            matching.py
        overlap of each row under the protocol                        scoring.py, protocols.py, overlaps.py
        ratios of sums, split by buckets                              summary.py, buckets.py
        intervals over images                                         bootstrap.py

Beside it: figures about expressions that name nothing or several things (no_target.py, average_precision.py) and about
what a score is worth, and what a training loop measures from batches of tensors (batch.py).
"""

from .batch import GroundingEvalMetrics, batch_box_iou
from .bootstrap import ratio_difference_intervals, ratio_intervals
from .grounding_accuracy import GROUNDING_ACCURACY
from .no_target import choose_threshold, expected_calibration_error, score_auc, threshold_report
from .protocols import PROTOCOLS, MetricProtocol, get_protocol
from .scoring import RowScores, score_rows
from .summary import compute_grounding_metrics, summarize_rows

__all__ = [
    "GROUNDING_ACCURACY",
    "PROTOCOLS",
    "GroundingEvalMetrics",
    "MetricProtocol",
    "RowScores",
    "batch_box_iou",
    "choose_threshold",
    "compute_grounding_metrics",
    "expected_calibration_error",
    "get_protocol",
    "ratio_difference_intervals",
    "ratio_intervals",
    "score_auc",
    "score_rows",
    "summarize_rows",
    "threshold_report",
]
