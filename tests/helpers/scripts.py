"""Scripts beside the tests that fork: they need a process of their own, without pytest's threads."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def found_by(script: Path, *words: str) -> Any:
    """Run a script, print the JSON of its last line, which `pytest -s` shows, and give it."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [sys.executable, str(script), *words], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    sys.stdout.write(f"\n{json.dumps(found)}\n")
    return found
