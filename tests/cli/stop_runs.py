"""Stops verbs that do not resume, by SIGINT and SIGTERM at random moments, and looks at what is left.

Run by `test_stops.py` in a process of its own, whose forks are the runs (see `kill_runs.py`). FOLDER/commands.json
maps a verb to its words, of which OUT is replaced. Prints a JSON object of counts and of what was wrong.

    python stop_runs.py FOLDER STOPS SEED [VERB]...
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import torch
from kill_runs import in_peace, start
from safetensors import safe_open

import hivg_hf.labeling
import hivg_hf.training  # noqa: F401  (imported before the forks)

STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}
READERS = {
    ".json": lambda path: json.loads(path.read_text()),
    ".jsonl": lambda path: [json.loads(line) for line in path.read_text().splitlines()],
    ".parquet": pq.read_table,
    ".safetensors": lambda path: safe_open(path, "np").keys(),
}


def names(out):
    return sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()) if out.is_dir() else None


def is_whole(path):
    try:
        READERS.get(path.suffix, Path.read_bytes)(path)
    except Exception:
        return False
    return path.stat().st_size > 0


def wrong_after(out, expected, status, how, said):
    """What a stopped run did wrong, as words."""
    left = names(out) or []
    faults = {
        "status": status != STATUS[how],
        "words": "Traceback" in said or said.count("hivg: stopped") != 1,
        "leftovers": any(".partial" in name for name in os.listdir(".")) or any(".partial" in name for name in left),
        "foreign files": not set(left) <= {*expected, ".lock", ".lock-holder"},
        "half files": not all(is_whole(out / name) for name in left),
    }
    return [name for name, is_wrong in faults.items() if is_wrong]


def stop_again_and_again(words, stops, rng):
    out, said = Path("out"), Path("said.txt")
    words = [str(out) if word == "OUT" else word for word in words]
    seconds, status = in_peace(words)
    if status:
        os.waitpid(start(words, said), 0)
    assert status == 0, f"{words} ended with {status}: {said.read_text()[-2000:]}"
    expected, faults, counts = names(out), [], {"stops": 0, "ended": 0}
    shutil.rmtree(out)
    while counts["stops"] < stops:
        child, how = start(words, said), rng.choice(list(STATUS))
        time.sleep(rng.uniform(0.02, 1) * seconds)
        if os.waitpid(child, os.WNOHANG)[0]:
            counts["ended"] += 1
        else:
            os.kill(child, how)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            if status:  # 0: it was done when the signal came
                counts["stops"] += 1
                wrong = wrong_after(out, expected, status, how, said.read_text())
                faults += [[how.name, wrong, status, said.read_text()[-1500:]]] if wrong else []
                _, status = in_peace(words)
                again = [] if status == 0 and names(out) == expected else [["the same command again", status]]
                faults += again
        shutil.rmtree(out, ignore_errors=True)
    return counts, faults


def run(folder, stops, seed, verbs):
    torch.set_num_threads(1)
    os.chdir(folder)
    commands = json.loads(Path("commands.json").read_text())
    found = {}
    for verb in verbs or commands:
        counts, faults = stop_again_and_again(commands[verb], stops, random.Random(f"{seed}-{verb}"))
        found[verb] = {**counts, "faults": faults}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
