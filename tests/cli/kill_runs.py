"""Kills `hivg train`, `ground` and `ground-dataset` again and again, and compares what is left with a run in peace.

Run by `test_kills.py` in a process of its own, which imports everything once: each run is a fork of it, killed at a
random moment by SIGKILL, SIGTERM or SIGINT, started again with the same words, and at last left alone. Prints a JSON
object of counts and of what differs.

    python kill_runs.py FOLDER KILLS SEED [VERB]...
"""

import hashlib
import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import pyarrow.parquet as pq
import torch

import hivg_hf.inference
import hivg_hf.training  # noqa: F401  (imported before the forks)
from hivg_hf import TINY_CHECKPOINT, load_grounding_dataset
from hivg_hf.cli import main
from hivg_hf.utils.stops import listen

PHASE = {"keep": "last", "batch_size": 4, "learning_rate": 1e-3, "steps": 6, "save_every": 2, "log_every": 1}
PHASE["evaluate_every"] = 3
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def make_inputs(folder):
    """A recipe of two phases with a merge at the end, pictures, and a table."""
    spec = {"source": "refshapes", "seed": 3, "size": 8}
    recipe = {
        "name": "killed", "seed": 5, "model": {"checkpoint": TINY_CHECKPOINT}, "workers": 0,
        "data": {"train": {**spec, "split": "train"}, "validation": {**spec, "split": "val"}},
        "hilora": {"mode": "additive"},
        "phases": [
            {"name": "warmup", "train": "heads", **PHASE},
            {"name": "stage", "train": "lora", "vision_layers": 2, "text_layers": 2, "rank": 2, **PHASE},
        ],
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    (folder / "pictures").mkdir()
    lines = []
    for number, row in enumerate(load_grounding_dataset("refshapes", "val", seed=4, size=24)):
        name = f"pictures/{number:02d}.png"
        row["image"].save(folder / name)
        lines.append(json.dumps({"image": name, "expression": row["expression"]}))
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")


VERBS = {
    "train": ["train", "recipe.yaml", "--out"],
    "ground": ["ground", "pictures", "the red star", "the blue ring", "--quiet", "--batch-size", "2", "--out"],
    "ground-dataset": [
        "ground-dataset", "rows.jsonl", "--model", "tiny", "--text-column", "expression", "--image-column", "image",
        "--shard-size", "3", "--batch-size", "2",
    ],
}  # fmt: skip


def words(verb, out):
    return [*VERBS[verb][:2], out, *VERBS[verb][2:]] if verb == "ground-dataset" else [*VERBS[verb], out]


def start(arguments, said=os.devnull):
    """Run the verb in a fork, its words into a file; returns its process id."""
    child = os.fork()
    if child:
        return child
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    listen()  # the fork is the command, as a process of its own would be
    quiet = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    try:
        main(arguments)
    except SystemExit as end:
        os._exit(end.code or 0)
    except BaseException:
        traceback.print_exc()
        os._exit(99)
    os._exit(0)


def in_peace(arguments):
    """Seconds that a run takes, and its exit status."""
    begun = time.monotonic()
    _, status = os.waitpid(start(arguments), 0)
    return time.monotonic() - begun, os.waitstatus_to_exitcode(status)


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def content(verb, out):
    """What has to be the same however often a run was killed."""
    leftovers = sorted(str(path.relative_to(out)) for path in out.rglob("*.partial"))
    if verb == "train":
        results = json.loads((out / "results.json").read_text())
        figures = {name: one["figures"] for name, one in results["evaluation"].items()}
        weights = {str(path.relative_to(out)): digest(path) for path in sorted(out.rglob("*.safetensors"))}
        return {"weights": weights, "figures": figures, "leftovers": leftovers}
    if verb == "ground":
        rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
        rows = sorted((row["image"], row["results"]) for row in rows)  # one of each, and none twice
        return {
            "rows": rows,
            "pictures": {p.name: digest(p) for p in sorted(out.glob("*.png"))},
            "leftovers": leftovers,
        }
    shards = sorted(out.glob("*.parquet"))
    return {
        "names": [path.name for path in shards],
        "rows": [pq.read_table(path).drop_columns(["image"]).to_pylist() for path in shards],
        "leftovers": leftovers,
    }


def kill_again_and_again(verb, kills, rng, expected, seconds):
    """Kill `kills` runs; one that ends before its kill is compared, and another begins in a new folder."""
    counts, differing, number = {"kills": 0, "ended": 0, "by": {}}, [], 0
    while counts["kills"] < kills:
        out = Path(f"killed-{verb}-{number}")
        number += 1
        alive = True
        while alive and counts["kills"] < kills:
            child = start(words(verb, str(out)))
            deadline = time.monotonic() + rng.uniform(0.02, 1) * seconds
            while time.monotonic() < deadline and alive:
                alive = os.waitpid(child, os.WNOHANG)[0] == 0
                time.sleep(0.002)
            if alive:
                how = rng.choice(SIGNALS)
                os.kill(child, how)
                os.waitpid(child, 0)
                counts["kills"] += 1
                counts["by"][how.name] = counts["by"].get(how.name, 0) + 1
        _, status = in_peace(words(verb, str(out)))  # one that is done already changes nothing
        counts["ended"] += 1
        if status or content(verb, out) != expected:
            found = content(verb, out) if status == 0 else {}
            differing.append([str(out), status, [key for key in expected if found.get(key) != expected[key]]])
    return counts, differing


def run(folder, kills, seed, verbs):
    torch.set_num_threads(1)
    os.chdir(folder)
    make_inputs(Path("."))
    counts, differing, times = {}, [], {}
    for place, verb in enumerate(verbs):
        times[verb], status = in_peace(words(verb, f"peace-{verb}"))
        assert status == 0, f"{verb} ended with {status}"
        expected = content(verb, Path(f"peace-{verb}"))
        share = kills // len(verbs) + (place < kills % len(verbs))
        counts[verb], found = kill_again_and_again(verb, share, random.Random(f"{seed}-{verb}"), expected, times[verb])
        differing += found
    sys.stdout.write(json.dumps({"counts": counts, "differing": differing, "seconds": times}) + "\n")


if __name__ == "__main__":
    run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:] or list(VERBS))
