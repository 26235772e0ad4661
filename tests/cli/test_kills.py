"""Runs killed at any moment end, started again with the same words, with the same bits and rows as one in peace."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

KILLS, SEED = os.environ.get("HIVG_KILLS", "50"), os.environ.get("HIVG_FUZZ_SEED", "0")
ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="runs are forks of one process that has imported everything")
def test_killed_runs_end_as_runs_in_peace(tmp_path: Path) -> None:
    """HIVG_KILLS=50 kills over the three verbs; the seed is HIVG_FUZZ_SEED."""
    command = [sys.executable, str(Path(__file__).with_name("kill_runs.py")), str(tmp_path), KILLS, SEED]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    sys.stdout.write(f"\n{json.dumps(found)}\n")
    assert found["differing"] == []
    assert sum(counts["kills"] for counts in found["counts"].values()) == int(KILLS)
