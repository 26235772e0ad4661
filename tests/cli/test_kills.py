"""Runs killed at any moment end, started again with the same words, with the same bits and rows as one in peace."""

import os
from pathlib import Path

import pytest

from helpers.scripts import found_by

KILLS, SEED = os.environ.get("HIVG_KILLS", "50"), os.environ.get("HIVG_FUZZ_SEED", "0")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="runs are forks of one process that has imported everything")
def test_killed_runs_end_as_runs_in_peace(tmp_path: Path) -> None:
    """HIVG_KILLS=50 kills over the three verbs; the seed is HIVG_FUZZ_SEED."""
    found = found_by(Path(__file__).with_name("kill_runs.py"), str(tmp_path), KILLS, SEED)
    assert found["differing"] == []
    assert sum(counts["kills"] for counts in found["counts"].values()) == int(KILLS)
