"""Throughput on an accelerator in bfloat16: images per second and the share of the device's peak.

Written against the CPU, where a small model runs through the same code; not yet tried on a CUDA device.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from hivg_hf.modeling.configuration_hivg import HiVGConfig
from hivg_hf.modeling.modeling_hivg import HiVGForVisualGrounding

from .inputs import Batch, random_batch
from .measure import count_operations

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


def peak_of(device_name: str) -> float | None:
    """Peak in TFLOP/s of a device by its name, or None where the table does not know it."""
    return next((peak for name, peak in PEAK_TFLOPS.items() if name in device_name), None)


def measure_accelerator(
    presets: Sequence[str] = ("base", "large"),
    batch_sizes: Sequence[int] = BATCH_SIZES,
    device: str = "cuda",
    peak_tflops: float | None = None,
    seconds: float = 3.0,
) -> dict[str, Any]:
    """Inference and training steps in bfloat16 at growing batch sizes, until the memory is full.

    Args:
        presets: names for `HiVGConfig.preset`.
        batch_sizes: B, in growing order.
        device: where to run.
        peak_tflops: of the device; default from `PEAK_TFLOPS`.
        seconds: how long each figure is measured.

    Returns:
        `device`, `peak_tflops` and `rows`: preset, work, batch, images per second, TFLOP/s, share of the peak, and
        the allocated memory at its peak in bytes.
    """
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
    peak = peak_tflops or peak_of(name)
    rows: list[dict[str, Any]] = []
    for preset in presets:
        config = HiVGConfig.preset(preset)
        model = HiVGForVisualGrounding(config)
        operations = _operations(model)
        model.to(device, torch.bfloat16)
        for work in ("inference", "training"):
            for size in batch_sizes:
                measured = _measure(model, work, size, device, seconds)
                if measured is None:
                    break
                tflops = measured["images_per_second"] * operations[work] / 1e12
                rows.append({"preset": preset, "work": work, "batch": size, **measured, "tflops": tflops})
                rows[-1]["share_of_peak"] = tflops / peak if peak else None
    return {"device": name, "peak_tflops": peak, "rows": rows}


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


def _measure(model: nn.Module, work: str, size: int, device: str, seconds: float) -> dict[str, float] | None:
    """Images per second and peak memory, or None where the memory does not suffice."""
    batch = _on_device(random_batch(model.config, size, labels=work == "training"), device)
    run = _inference(model, batch) if work == "inference" else _training(model, batch)
    try:
        run()
        _synchronize(device, reset=True)
        start, runs = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            run()
            runs += 1
            _synchronize(device)
        elapsed = time.perf_counter() - start
    except torch.OutOfMemoryError:
        model.zero_grad(set_to_none=True)
        return None
    peak = torch.cuda.max_memory_allocated(device) if device.startswith("cuda") else 0
    return {"images_per_second": runs * size / elapsed, "memory": peak}


def _on_device(batch: Batch, device: str) -> Batch:
    batch = {name: value.to(device) for name, value in batch.items()}
    batch["pixel_values"] = batch["pixel_values"].to(torch.bfloat16)
    return batch


def _inference(model: nn.Module, batch: Batch) -> Callable[[], object]:
    model.eval()
    return torch.no_grad()(lambda: model(**batch, output_masks=True))


def _training(model: nn.Module, batch: Batch) -> Callable[[], object]:
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=batch["pixel_values"].is_cuda)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        model(**batch).loss.backward()
        optimizer.step()

    return step


def _synchronize(device: str, reset: bool = False) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
        if reset:
            torch.cuda.reset_peak_memory_stats(device)
