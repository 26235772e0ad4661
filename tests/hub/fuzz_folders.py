"""Damages model folders at random and opens them: each must answer, or be refused in one sentence.

Run by `test_folder_fuzz.py` in a process of its own with a memory limit; prints a JSON object of counts and strays.

    python fuzz_folders.py FOLDER CASES SEED LIMIT_MIB
"""

import json
import random
import resource
import shutil
import signal
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from hivg_hf.inference import load_pipeline

REFUSALS = (ValueError, OSError, RuntimeError)
JSON_FILES = ("config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json")
VALUES = (
    None, True, -1, 0, 1, 3, 7.5, 1e308, 10**12, -(10**30), "", "x", "../../etc/passwd", "\ud800", [], {}, [[]],
    [None], {"a": 1}, "a" * 5000, [1] * 300,
)  # fmt: skip
SECONDS = 30


def places(node, path=()):
    """Every place of a JSON tree, the long lists of a tokenizer by their first entries."""
    yield path
    items = node.items() if isinstance(node, dict) else enumerate(node[:20]) if isinstance(node, list) else ()
    for key, value in list(items)[:200]:
        yield from places(value, (*path, key))


def damage_json(file, rng):
    """Replace, remove or add a value at a random place."""
    tree = json.loads(file.read_text(encoding="utf-8"))
    path = rng.choice([path for path in places(tree) if path])
    node = tree
    for key in path[:-1]:
        node = node[key]
    action = rng.randrange(4)
    if action == 0:
        del node[path[-1]]
    elif action == 1 and isinstance(node, dict):
        node[rng.choice(["auto_map", "text_config", "x", "_class", "torch_dtype", "dtype"])] = rng.choice(VALUES)
    else:
        node[path[-1]] = rng.choice(VALUES)
    file.write_text(json.dumps(tree), encoding="utf-8")
    return f"{file.name}:{'/'.join(map(str, path))}"


def damage_bytes(file, rng):
    """Cut, overwrite, empty or remove a file."""
    content = bytearray(file.read_bytes())
    action = rng.randrange(4)
    if action == 0:
        content = content[: rng.randrange(len(content) + 1)]
    elif action == 1:
        for _ in range(rng.randint(1, 20)):
            content[rng.randrange(min(len(content), 4096))] = rng.randrange(256)
    elif action == 2:
        content = bytearray(rng.randbytes(rng.randrange(200)))
    else:
        file.unlink()
        return f"{file.name} removed"
    file.write_bytes(content)
    return f"{file.name} bytes"


def open_and_ask(folder, picture):
    """ "answer", or the refusal's message; anything else is raised."""
    try:
        answer = load_pipeline(folder, device="cpu")(picture, "the red star")
    except REFUSALS as error:
        return str(error) or type(error).__name__
    box = answer["box"].values()
    assert all(np.isfinite(list(box))), f"not finite: {answer}"
    return "answer"


def main(source, cases, seed, limit):
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    warnings.simplefilter("ignore")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    counts, strays = {"answered": 0, "refused": 0}, []
    signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(TimeoutError(f"over {SECONDS} s")))
    for case in range(cases):
        rng = random.Random(f"{seed}-{case}")
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "model"
            shutil.copytree(source, folder)
            files = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".safetensors"))
            file = rng.choice(files)
            by_tree = file.name in JSON_FILES and rng.random() < 0.8
            what = damage_json(file, rng) if by_tree else damage_bytes(file, rng)
            signal.alarm(SECONDS)
            try:
                message = open_and_ask(folder, picture)
                if message == "answer":
                    counts["answered"] += 1
                elif message.count("\n") > 2 or len(message) > 1000:
                    strays.append([case, what, f"a message of {len(message)} characters: {message[:200]}"])
                else:
                    counts["refused"] += 1
            except BaseException as error:
                strays.append([case, what, f"{type(error).__name__}: {error}"[:300]])
            finally:
                signal.alarm(0)
    sys.stdout.write(json.dumps({**counts, "strays": strays}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]) << 20)
