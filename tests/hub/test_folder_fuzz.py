"""Damaged and hostile model folders answer, or are refused in one sentence, within a limit of memory and time."""

import json
import os
import subprocess
import sys
from pathlib import Path

CASES = int(os.environ.get("HIVG_FUZZ_FOLDERS", "40"))
SEED = int(os.environ.get("HIVG_FUZZ_SEED", "0"))
LIMIT_MIB = 8192  # of address space; torch and transformers alone map about 3 GiB


def test_damaged_folders_are_refused_in_a_sentence(tiny_checkpoint):
    command = [sys.executable, str(Path(__file__).with_name("fuzz_folders.py")), tiny_checkpoint]
    command += [str(CASES), str(SEED), str(LIMIT_MIB)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60 + 10 * CASES)
    assert result.returncode == 0, result.stderr[-3000:]
    counts = json.loads(result.stdout.splitlines()[-1])
    assert counts["strays"] == []
    assert counts["answered"] + counts["refused"] == CASES
