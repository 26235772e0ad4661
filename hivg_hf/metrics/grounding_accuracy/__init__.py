"""Metrics in the shape that the `evaluate` library loads from a folder: `evaluate.load(GROUNDING_ACCURACY)`."""

from pathlib import Path

GROUNDING_ACCURACY = str(Path(__file__).parent)
