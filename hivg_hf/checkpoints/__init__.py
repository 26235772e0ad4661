"""The checkpoint in the package, trained from nothing on RefShapes: for trying things out and for tests."""

from pathlib import Path

TINY_CHECKPOINT = str(Path(__file__).parent / "hivg-tiny-refshapes")
