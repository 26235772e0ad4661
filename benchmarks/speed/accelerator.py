"""Throughput on an accelerator in bfloat16, with and without `torch.compile`: images per second and share of the peak.

    python -m benchmarks.speed.accelerator --out benchmarks/results/accelerator/2026-11-26-h100.json

On a CPU a small model runs through the same code, in tests. docs/speed.md holds the table of the results.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import transformers
import typer
from torch import nn

from hivg_hf.modeling.configuration_hivg import HiVGConfig
from hivg_hf.modeling.modeling_hivg import HiVGForVisualGrounding
from hivg_hf.utils.atomic import write_json

from .inputs import Batch, random_batch
from .measure import count_operations, utc_now

# Dense bfloat16 peaks in TFLOP/s, from the makers' data sheets; the first name that the device's name contains.
PEAK_TFLOPS = {
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "A10G": 70.0,
    "RTX 4090": 165.0,
}
BATCH_SIZES = (1, 8, 32, 64, 128, 256)
ENGINES = ("eager", "compiled")


def peak_of(device_name: str) -> float | None:
    """Peak in TFLOP/s of a device by its name, or None where the table does not know it."""
    return next((peak for name, peak in PEAK_TFLOPS.items() if name in device_name), None)


def measure_accelerator(
    presets: Sequence[str] = ("base", "large"),
    batch_sizes: Sequence[int] = BATCH_SIZES,
    device: str = "cuda",
    peak_tflops: float | None = None,
    seconds: float = 3.0,
    engines: Sequence[str] = ENGINES,
    keep: Callable[[dict[str, Any]], object] = lambda results: None,
) -> dict[str, Any]:
    """Inference and training steps in bfloat16 at growing batch sizes, until the memory is full.

    Training keeps its weights in float32 and computes under autocast, as `bf16=True` does in a Trainer; inference has
    the weights in bfloat16.

    Args:
        presets: names for `HiVGConfig.preset`.
        batch_sizes: B, in growing order.
        device: where to run.
        peak_tflops: of the device; default from `PEAK_TFLOPS`.
        seconds: how long each figure is measured.
        engines: of `ENGINES`; a compiled model is compiled anew for every batch size, which takes a minute each.
        keep: called with the results so far after each row.

    Returns:
        `device`, `peak_tflops`, versions and `rows`: preset, work, engine, batch, images per second, TFLOP/s, share of
        the peak, and the allocated memory at its peak in bytes.
    """
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
    peak = peak_tflops or peak_of(name)
    rows: list[dict[str, Any]] = []
    results = {
        "date": utc_now(),
        "device": name,
        "peak_tflops": peak,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "rows": rows,
    }
    for preset in presets:
        model = HiVGForVisualGrounding(HiVGConfig.preset(preset))
        operations = _operations(model)
        for work in ("training", "inference"):  # inference rounds the weights
            model.to(device, torch.float32 if work == "training" else torch.bfloat16)
            for engine in engines:
                for size in batch_sizes:
                    measured = _measure(model, work, engine, size, device, seconds)
                    if measured is None:
                        break
                    tflops = measured["images_per_second"] * operations[work] / 1e12
                    rows.append({"preset": preset, "work": work, "engine": engine, "batch": size, **measured})
                    rows[-1] |= {"tflops": tflops, "share_of_peak": tflops / peak if peak else None}
                    keep(results)
    return results


def _operations(model: HiVGForVisualGrounding) -> dict[str, int]:
    """Operations for one image, counted on the CPU: box and mask, and a whole step without the optimizer."""
    batch = random_batch(model.config, 1, labels=True)
    inputs = {name: value for name, value in batch.items() if "labels" not in name}
    model.eval()
    inference = count_operations(torch.no_grad()(lambda: model(**inputs, output_masks=True)), [model])
    model.train()
    training = count_operations(lambda: model(**batch).loss.backward(), [model])
    model.zero_grad(set_to_none=True)
    return {"inference": inference, "training": training}


def _measure(
    model: nn.Module, work: str, engine: str, size: int, device: str, seconds: float
) -> dict[str, float] | None:
    """Images per second and peak memory, or None where the memory does not suffice."""
    batch = {
        name: value.to(device) for name, value in random_batch(model.config, size, labels=work == "training").items()
    }
    torch.compiler.reset()
    called = torch.compile(model) if engine == "compiled" else model
    run = (_inference if work == "inference" else _training)(model, called, batch)
    try:
        for _ in range(3):
            run()
        _synchronize(device, reset=True)
        start, runs = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            run()
            runs += 1
            _synchronize(device)
        elapsed = time.perf_counter() - start
    except torch.OutOfMemoryError:
        return None
    finally:
        model.zero_grad(set_to_none=True)
    peak = torch.cuda.max_memory_allocated(device) if device.startswith("cuda") else 0
    return {"images_per_second": runs * size / elapsed, "memory": peak}


def _inference(model: nn.Module, called: Callable[..., Any], batch: Batch) -> Callable[[], object]:
    model.eval()
    batch["pixel_values"] = batch["pixel_values"].to(torch.bfloat16)
    return torch.no_grad()(lambda: called(**batch, output_masks=True))


def _training(model: nn.Module, called: Callable[..., Any], batch: Batch) -> Callable[[], object]:
    model.train()
    device = batch["pixel_values"].device.type
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=device == "cuda")

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16):
            loss = called(**batch).loss
        loss.backward()
        optimizer.step()

    return step


def _synchronize(device: str, reset: bool = False) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
        if reset:
            torch.cuda.reset_peak_memory_stats(device)


def main(
    out: Annotated[Path, typer.Option(help="Results file; rows are written as they are measured.")],
    presets: Annotated[list[str] | None, typer.Argument(help="Default: base large.")] = None,
    batch_sizes: Annotated[str, typer.Option(help="Comma-separated, in growing order.")] = ",".join(
        map(str, BATCH_SIZES)
    ),
    engines: Annotated[str, typer.Option(help="Comma-separated.")] = ",".join(ENGINES),
    seconds: Annotated[float, typer.Option(min=0.0, help="How long each figure is measured.")] = 3.0,
) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)

    def keep(results: dict[str, Any]) -> None:
        write_json(out, results)
        row = results["rows"][-1]
        share = "" if row["share_of_peak"] is None else f", {row['share_of_peak']:.1%} of the peak"
        what = " ".join(str(row[name]) for name in ("preset", "work", "engine", "batch"))
        print(f"{what}: {row['images_per_second']:,.0f} images/s{share}", flush=True)

    sizes = [int(size) for size in batch_sizes.split(",")]
    measure_accelerator(presets or ("base", "large"), sizes, seconds=seconds, engines=engines.split(","), keep=keep)


if __name__ == "__main__":
    typer.run(main)
