"""Grounding figures under a named protocol, with bootstrap intervals.

    compute_grounding_metrics(predictions, references, protocol)      summary.py
        match ids, check numbers; errors list the culprits            matching.py
        overlap of each row under the protocol                        scoring.py, protocols.py, overlaps.py
        ratios of sums, split by buckets                              summary.py, buckets.py
        intervals over images                                         bootstrap.py

Beside it: figures about expressions that name nothing or several things (no_target.py, average_precision.py) and about
what a score is worth (score_curves.py), and what a training loop measures from batches of tensors (batch.py).
"""

from .batch import GroundingEvalMetrics, batch_box_iou
from .bootstrap import ratio_difference_intervals, ratio_intervals
from .grounding_accuracy import GROUNDING_ACCURACY
from .no_target import balanced_threshold, choose_threshold, score_auc, threshold_report
from .protocols import PROTOCOLS, MetricProtocol, get_protocol
from .score_curves import (
    area_under_risk_coverage,
    base_rate_weights,
    expected_calibration_error,
    matthews_correlation,
    reliability_bins,
    risk_coverage,
    score_report,
)
from .scoring import RowScores, score_rows
from .summary import compute_grounding_metrics, summarize_rows

__all__ = [
    "GROUNDING_ACCURACY",
    "PROTOCOLS",
    "GroundingEvalMetrics",
    "MetricProtocol",
    "RowScores",
    "area_under_risk_coverage",
    "balanced_threshold",
    "base_rate_weights",
    "batch_box_iou",
    "choose_threshold",
    "compute_grounding_metrics",
    "expected_calibration_error",
    "get_protocol",
    "matthews_correlation",
    "ratio_difference_intervals",
    "ratio_intervals",
    "reliability_bins",
    "risk_coverage",
    "score_auc",
    "score_report",
    "score_rows",
    "summarize_rows",
    "threshold_report",
]
