"""Rates, memory and resuming of `hivg ground-dataset` over 100,000 rendered rows.

    python -m benchmarks.scale render ROWS              small RefShapes pictures in eight Parquet files
    python -m benchmarks.scale measure ROWS OUT.json [MODEL]    every figure below; takes three passes over the rows
    python -m benchmarks.scale video OUT.json [MODEL]           frames per second and memory over 10,000 frames

- rows per second of the pipeline's own loop and of a `DatasetRun` over the same rows, in alternating rounds;
- resident memory of the command at 10,000 rows and at the end;
- a run that is killed (SIGKILL) three times after its first shard, compared with one that is not;
- the same on Ray with two actors, one of which is killed.
"""

import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from hivg_hf.checkpoints import TINY_CHECKPOINT

FILES = 8
ROWS_PER_FILE = 12_500
ROUND_ROWS = 2_048
ROUNDS = 3
SHARD_SIZE = 2_500
KILLS = 3
ENGINE = {"device": "cpu", "backend": "onnx", "precision": "int8"}


def render(folder: Path, rows_per_file: int = ROWS_PER_FILE) -> None:
    """Scenes of RefShapes scaled to 64 pixels, four expressions each, as PNG in Parquet."""
    from datasets import Image

    from hivg_hf.data.refshapes import refshapes_dataset

    folder.mkdir(parents=True, exist_ok=True)
    for number in range(FILES):
        rows = refshapes_dataset("train", seed=100 + number, size=rows_per_file, masks=False, stored_side=64)
        rows = rows.cast_column("image", Image(decode=False)).select_columns(["image", "expression", "sent_id"])
        rows.to_parquet(folder / f"rows-{number}.parquet")


def measure(folder: Path, out: Path, model: str = TINY_CHECKPOINT) -> None:
    figures: dict[str, Any] = {
        "model": Path(model).name,
        "engine": ENGINE,
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
    }

    def note(name: str, value: Any) -> None:
        figures[name] = value
        print(name, json.dumps(value), flush=True)
        out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")

    pattern = str(folder / "*.parquet")
    note("rates", compare_rates(str(folder / "rows-0.parquet"), model))
    with tempfile.TemporaryDirectory() as place:
        whole, killed, on_ray = (Path(place) / name for name in ("whole", "killed", "ray"))
        note("undisturbed", watch(command(pattern, whole, model), whole))
        note("killed", {**watch(command(pattern, killed, model), killed, KILLS), **compare(whole, killed)})
        ray = [*command(pattern, on_ray, model), "--engine", "ray", "--concurrency", "2"]
        note("ray", {**watch(ray, on_ray, kill_actor=True), **compare(whole, on_ray)})


def measure_video(out: Path, model: str = TINY_CHECKPOINT, frames: int = 10_000) -> None:
    """A colored square that moves over a gray picture, decoded, grounded and steadied."""
    import PIL.Image

    from hivg_hf.inference import load_pipeline
    from hivg_hf.inference.video import VideoWriter

    with tempfile.TemporaryDirectory() as place:
        writer = VideoWriter(Path(place) / "clip.mp4", 25)
        for number in range(frames):
            picture = PIL.Image.new("RGB", (160, 120), "gray")
            picture.paste("red", (number % 120, 40, number % 120 + 40, 80))
            writer.write(picture)
        writer.finish()
        writer.close()
        pipe = load_pipeline(model, device="cpu")
        process, memory, start = psutil.Process(), {}, time.process_time()
        for number, _ in enumerate(pipe.video(Path(place) / "clip.mp4", "the red square"), start=1):
            if number % 1000 == 0:
                memory[number] = round(process.memory_info().rss / 2**20, 1)
        seconds = time.process_time() - start
    figures = {
        "model": Path(model).name,
        "frames_per_cpu_second": frames / seconds,
        "resident_mb_after_frames": memory,
    }
    print(json.dumps(figures))
    out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def compare_rates(file: str, model: str) -> dict[str, float]:
    """Rows per second over the same rows, and the median ratio of neighboring rounds."""
    from datasets import Dataset, Image

    from hivg_hf.inference import DatasetInput, DatasetRun, GroundBatch

    ground = GroundBatch(model, engine=ENGINE)
    rows = Dataset.from_parquet(file).select(range(ROUND_ROWS)).cast_column("image", Image(decode=False))

    def own_loop() -> None:
        assert sum(1 for _ in ground.pipe(rows, batch_size=ground.batch_size)) == ROUND_ROWS

    def shards() -> None:
        with tempfile.TemporaryDirectory() as out:
            run = DatasetRun(DatasetInput(file), ground, Path(out), ROUND_ROWS)
            assert run.run(0).rows == ROUND_ROWS

    timed = [(cpu_seconds(own_loop), cpu_seconds(shards)) for _ in range(ROUNDS)]
    ratios = sorted(own / ours for own, ours in timed)
    return {
        "pipeline_rows_per_cpu_second": ROUND_ROWS / min(own for own, _ in timed),
        "run_rows_per_cpu_second": ROUND_ROWS / min(ours for _, ours in timed),
        "run_to_pipeline": ratios[len(ratios) // 2],
    }


def cpu_seconds(call: Callable[[], None]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def command(pattern: str, out: Path, model: str) -> list[str]:
    arguments = ["ground-dataset", pattern, str(out), "--image-column", "image", "--text-column", "expression"]
    return [
        sys.executable,
        "-m",
        "hivg_hf",
        *arguments,
        "--model",
        model,
        "--shard-size",
        str(SHARD_SIZE),
        *(word for name, value in ENGINE.items() for word in (f"--{name}", value)),
    ]


def watch(arguments: list[str], out: Path, kills: int = 0, kill_actor: bool = False) -> dict[str, Any]:
    """Run the command to its end, killing it or one of its actors on the way."""
    start, killed, actors_killed = time.monotonic(), 0, 0
    while killed < kills:
        process = subprocess.Popen(arguments, stderr=subprocess.DEVNULL)
        wanted = done(out) + 1 + killed
        while done(out) < wanted and process.poll() is None:
            time.sleep(0.2)
        time.sleep(3)  # into the next shard
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed += 1
    last_run = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
    said: list[str] = []
    reader = threading.Thread(target=lambda: said.extend(last_run.stderr or ()))
    reader.start()
    memory: dict[int, float] = {}
    while last_run.poll() is None:
        rows = done(out) * SHARD_SIZE
        try:
            memory[rows] = psutil.Process(last_run.pid).memory_info().rss / 2**20 or memory.get(
                rows, 0.0
            )  # 0: it just ended
            if kill_actor and not actors_killed and rows >= 2 * SHARD_SIZE:
                actors_killed += kill_one_actor(last_run.pid)
        except psutil.Error:
            pass
        time.sleep(0.5)
    reader.join()
    if last_run.returncode:
        raise RuntimeError(f"{' '.join(arguments)} ended with {last_run.returncode}: {''.join(said[-5:])}")
    last = max(memory)
    return {
        "wall_seconds": time.monotonic() - start,
        "summary": said[-1].strip().partition("; ")[0],
        "memory_mb_at_10000": memory.get(10_000),
        "memory_mb_at_end": memory[last],
        "rows_at_end": last,
        "kills": killed,
        "actors_killed": actors_killed,
    }


def kill_one_actor(driver: int) -> bool:
    """SIGKILL one of the actors that hold a model; Ray names its processes after what they run."""
    for process in psutil.Process(driver).children(recursive=True):
        title = " ".join(process.cmdline())
        if "_PartActor" in title or "MapWorker" in title:
            process.kill()
            print("killed", title, flush=True)
            return True
    return False


def done(out: Path) -> int:
    return len(list(out.glob("shard-*.parquet")))


def compare(one: Path, other: Path) -> dict[str, Any]:
    """Whether two runs hold the same rows, each once."""
    import numpy as np
    import pyarrow.parquet as pq

    columns = ["sent_id", "expression", "box", "score", "error"]
    tables = [
        pq.read_table(sorted(map(str, folder.glob("shard-*.parquet"))), columns=columns) for folder in (one, other)
    ]
    boxes = [np.array(table.column("box").to_pylist()) for table in tables]
    return {
        "rows": len(tables[1]),
        "same_rows_in_order": tables[0].select(columns[:2]).equals(tables[1].select(columns[:2])),
        "largest_difference_px": float(np.abs(boxes[0] - boxes[1]).max()),
        "errors": len(tables[1]) - tables[1].column("error").null_count,
    }


if __name__ == "__main__":
    if sys.argv[1:2] == ["render"]:
        render(Path(sys.argv[2]))
    elif sys.argv[1:2] == ["measure"]:
        measure(Path(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:5])
    elif sys.argv[1:2] == ["video"]:
        measure_video(Path(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else TINY_CHECKPOINT)
    else:
        sys.exit(__doc__)
