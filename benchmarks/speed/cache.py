"""How much faster rows of a cache `--for eval` load than JPEGs decode, side by side.

    OMP_NUM_THREADS=1 python -m benchmarks.speed.cache --out benchmarks/results/data/cache.json

Writes photographs of 1024 x 768 pixels (smooth noise, JPEG quality 90), reads each as a row from the file and from the
cache, in turn, and times the way from the row to normalized tensors on the square of 224 pixels. Exit status 1 where
the cache is less than 5 times faster, or its tensors differ in one bit.
"""

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image

from hivg_hf.data.cache import load_cache, write_cache
from hivg_hf.data.collator import letterbox, open_row_image
from hivg_hf.data.order import KeyedDataset
from hivg_hf.data.schema import FEATURES
from hivg_hf.modeling.image_processing_hivg import HiVGImageProcessor
from hivg_hf.utils.atomic import write_json

WIDTH, HEIGHT = 1024, 768
NEEDED = 5.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="results file")
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        results = measure(Path(folder), options.images, options.rounds)
    print(json.dumps(results, indent=2))
    if options.out:
        write_json(options.out, results)
    return 0 if results["bit_equal"] and results["times_faster"] >= NEEDED else 1


def measure(folder: Path, images: int, rounds: int) -> dict[str, Any]:
    """Time both ways in alternating rounds, in process CPU time."""
    image_processor = HiVGImageProcessor()
    rows = write_photographs(folder, images)
    write_cache({"val": rows}, folder / "cache", "eval", image_processor)
    sources = {"jpeg": KeyedDataset(rows), "cache": KeyedDataset(load_cache(folder / "cache", "val"))}
    bit_equal = all(
        np.array_equal(load(sources["jpeg"], i, image_processor), load(sources["cache"], i, image_processor))
        for i in range(images)
    )
    seconds: dict[str, list[float]] = {name: [] for name in sources}
    for _ in range(rounds):
        for name, source in sources.items():
            start = time.process_time()
            for index in range(images):
                load(source, index, image_processor)
            seconds[name].append((time.process_time() - start) / images)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "what": "row to normalized pixel_values (3, 224, 224), one process, one thread, process CPU time",
        "image": f"JPEG quality 90, {WIDTH} x {HEIGHT}",
        "milliseconds_per_row": {name: round(value * 1e3, 3) for name, value in median.items()},
        "milliseconds_per_row_of_each_round": {
            name: [round(value * 1e3, 3) for value in values] for name, values in seconds.items()
        },
        "times_faster": round(median["jpeg"] / median["cache"], 2),
        "bit_equal": bit_equal,
        "images": images,
        "rounds": rounds,
        "machine": {"processor": platform.processor() or platform.machine(), "python": platform.python_version()},
    }


def load(rows: KeyedDataset, index: int, image_processor: HiVGImageProcessor) -> np.ndarray:
    """A row's `pixel_values` (3, S, S), as the collator makes them."""
    row = rows[(0, index)]
    cached = row.get("letterboxed")
    if cached is not None:
        return image_processor.place(cached["pixels"], cached["top"], cached["left"])["pixel_values"]
    placed = letterbox(open_row_image(row), None, None, image_processor)
    return image_processor.place(placed.pixels, placed.top, placed.left)["pixel_values"]


def write_photographs(folder: Path, count: int) -> datasets.Dataset:
    """Rows of JPEG files that cost about what photographs cost to decode: noise at several scales."""
    rng = np.random.default_rng(0)
    paths = []
    for number in range(count):
        layers = [
            Image.fromarray(rng.integers(0, 256, (HEIGHT // scale, WIDTH // scale, 3), dtype=np.uint8))
            for scale in (64, 16, 4)
        ]
        pixels = [np.asarray(layer.resize((WIDTH, HEIGHT)), dtype=np.float32) for layer in layers]
        blended = (0.6 * pixels[0] + 0.3 * pixels[1] + 0.1 * pixels[2]).astype(np.uint8)
        paths.append(folder / f"{number}.jpg")
        Image.fromarray(blended).save(paths[-1], quality=90)
    columns: dict[str, list[Any]] = {name: [None] * count for name in FEATURES}
    box = [100.0, 100.0, 500.0, 400.0]
    columns.update(
        image=[{"path": str(path), "bytes": None} for path in paths],
        expression=["the thing"] * count,
        box=[box] * count,
        boxes=[[box]] * count,
        no_target=[False] * count,
        width=[WIDTH] * count,
        height=[HEIGHT] * count,
        image_id=[path.stem for path in paths],
    )
    return datasets.Dataset.from_dict(columns, features=FEATURES)


if __name__ == "__main__":
    sys.exit(main())
