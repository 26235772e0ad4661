"""Speed and memory of the pipeline: batch sizes side by side, precisions side by side, and a long stream.

    python -m benchmarks.speed.pipeline --out benchmarks/results/pipeline/2026-11-20-cpu.json

Rounds of all settings alternate, so that a disturbance of the machine meets all of them; medians are reported, of wall
time and of the processor time of this process, which other programs on the machine disturb less.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers

import hivg_hf
from hivg_hf.data.refshapes import refshapes_dataset
from hivg_hf.inference import load_pipeline
from hivg_hf.utils.atomic import write_json

BATCH_SIZES = (1, 4, 16)
# The stream repeats these many rendered scenes: memory is what is measured, and rendering would take most of the time.
SCENES = 500
SEED = 11


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure the pipeline's speed and memory.")
    parser.add_argument("--model", default=hivg_hf.TINY_CHECKPOINT)
    parser.add_argument("--images", type=int, default=10_000, help="length of the stream whose memory is measured")
    parser.add_argument("--mark", type=int, default=1_000, help="images after which memory is first read")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images-per-round", type=int, default=96)
    parser.add_argument("--compile", action="store_true", help="also measure torch.compile; takes minutes")
    today = datetime.now(UTC).date().isoformat()
    parser.add_argument("--out", type=Path, default=Path(f"benchmarks/results/pipeline/{today}-cpu.json"))
    options = parser.parse_args(arguments)
    scenes = refshapes_dataset("val", seed=SEED, size=SCENES, masks=False)
    rows = [{"image": row["image"], "text": row["expression"]} for row in scenes]
    report = {"machine": describe_machine(), "model": Path(options.model).name, "data": f"refshapes val, seed {SEED}"}
    some = rows[: options.images_per_round]
    report["batch_size"] = compare_batch_sizes(options.model, some, options.rounds)
    report["precision"] = compare_precisions(options.model, some, options.rounds, options.compile)
    report["stream"] = measure_stream(options.model, rows, options.images, options.mark)
    write_json(options.out, report)
    print(json.dumps(report, indent=2))
    print(f"wrote {options.out.resolve()}")


def compare_batch_sizes(model: str, rows: list[dict[str, Any]], rounds: int) -> dict[str, Any]:
    """The same images at each batch size."""
    pipe = load_pipeline(model, "cpu", "float32")
    cases = {str(size): _runner(pipe, rows, size) for size in BATCH_SIZES}
    figures = alternate(cases, len(rows), rounds)
    slowest = figures[str(BATCH_SIZES[0])]
    for figure in figures.values():
        figure["speedup_over_batch_1"] = round(slowest["cpu_ms_per_image"] / figure["cpu_ms_per_image"], 3)
    return figures


def compare_precisions(model: str, rows: list[dict[str, Any]], rounds: int, compiled: bool) -> dict[str, Any]:
    """float32, bfloat16 and, where asked for, torch.compile, all at batch size 16."""
    size = BATCH_SIZES[-1]
    cases = {dtype: _runner(load_pipeline(model, "cpu", dtype), rows, size) for dtype in ("float32", "bfloat16")}
    if compiled:
        pipe = load_pipeline(model, "cpu", "float32")
        pipe.model.forward = torch.compile(pipe.model.forward, dynamic=True)
        cases["float32, torch.compile"] = _runner(pipe, rows, size)
    return alternate(cases, len(rows), rounds)


def measure_stream(model: str, rows: list[dict[str, Any]], images: int, mark: int) -> dict[str, Any]:
    """Resident memory after `mark` and after all images of one stream."""
    pipe = load_pipeline(model, "cpu", "float32")
    process = psutil.Process()

    def endless() -> Iterator[dict[str, Any]]:
        for index in range(images):
            yield rows[index % len(rows)]

    memory: dict[int, float] = {}
    start = time.perf_counter()
    for count, _ in enumerate(pipe(endless(), batch_size=BATCH_SIZES[-1]), start=1):
        if count in (mark, images) or count % (images // 10) == 0:
            memory[count] = round(process.memory_info().rss / 2**20, 1)
    seconds = time.perf_counter() - start
    return {
        "images": images,
        "batch_size": BATCH_SIZES[-1],
        "images_per_second": round(images / seconds, 1),
        "resident_mb_after_images": memory,
        "growth_mb": round(memory[images] - memory[mark], 1),
    }


def alternate(cases: dict[str, Callable[[], None]], images: int, rounds: int) -> dict[str, dict[str, Any]]:
    """Medians per case over alternating rounds; the first round of each warms up and is not counted."""
    wall: dict[str, list[float]] = {name: [] for name in cases}
    cpu: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds + 1):
        for name, run in cases.items():
            before = time.perf_counter(), time.process_time()
            run()
            if number:
                wall[name].append((time.perf_counter() - before[0]) / images)
                cpu[name].append((time.process_time() - before[1]) / images)
    return {
        name: {
            "images_per_second": round(1 / statistics.median(wall[name]), 1),
            "wall_ms_per_image": round(1000 * statistics.median(wall[name]), 2),
            "cpu_ms_per_image": round(1000 * statistics.median(cpu[name]), 2),
            "cpu_ms_least_and_most": [round(1000 * min(cpu[name]), 2), round(1000 * max(cpu[name]), 2)],
        }
        for name in cases
    }


def describe_machine() -> dict[str, Any]:
    names = [line.split(":")[1].strip() for line in _cpu_lines() if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "hivg_hf": hivg_hf.__version__,
        "date": datetime.now(UTC).date().isoformat(),
    }


def _cpu_lines() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def _runner(pipe: Any, rows: list[dict[str, Any]], batch_size: int) -> Callable[[], None]:
    def run() -> None:
        pipe(rows, batch_size=batch_size)

    return run


if __name__ == "__main__":
    main()
