"""Side-by-side measurements: this package, the official computation written straightforwardly, and its neighbors.

`python -m benchmarks.speed` runs them. Random weights, by configuration only: nothing is downloaded, and time does not
depend on what the weights know.
"""

from .measure import Case, Ratio, count_operations, ratio_of_medians, time_rounds, working_memory
from .run import run_benchmark

__all__ = [
    "Case",
    "Ratio",
    "count_operations",
    "ratio_of_medians",
    "run_benchmark",
    "time_rounds",
    "working_memory",
]
