"""The device that a name means, or one sentence with those that are here; and which one accelerate takes."""

import logging
import os
import platform
import re
from typing import Any

import torch
from accelerate.utils import parse_flag_from_env

logger = logging.getLogger(__name__)


def find_device(name: Any) -> str:
    """A device as torch writes it, checked by making a tensor there.

    Args:
        name: A name in any case, such as `"cuda:1"`; or, as in a transformers pipeline, the number of an accelerator,
            of which -1 is the CPU; or None, which takes the first accelerator, or else the CPU.

    Raises:
        ValueError: If this machine does not have the device.
    """
    here = available_devices()
    device = here[:2][-1] if name is None else device_name(name)
    try:
        if torch.device(device).type != "meta":  # it has shapes and no numbers
            torch.empty(0, device=device)
            return device
    except (RuntimeError, AssertionError, NotImplementedError, ImportError):  # each kind of device has its own
        pass
    only = " only: this installation of torch sees no accelerator" if len(here) == 1 else ""
    raise ValueError(f"The device {str(name)!r} is not available here; expected {' or '.join(here)}{only}.")


def device_name(name: Any) -> str:
    """What a user calls a device (see `find_device`) -> as torch writes it, whether or not it is available."""
    device = str(name).strip().lower()
    if not re.fullmatch(r"-?\d+", device):
        return device
    here = available_devices()
    kind = here[1].partition(":")[0] if len(here) > 1 else "accelerator"
    return "cpu" if int(device) == -1 else f"{kind}:{int(device)}"


def available_devices() -> list[str]:
    """The CPU, then the accelerators that torch can use."""
    if not torch.accelerator.is_available():
        return ["cpu"]
    kind = torch.accelerator.current_accelerator()
    count = torch.accelerator.device_count()
    return ["cpu", *(f"{kind.type}:{index}" for index in range(count))] if kind else ["cpu"]


def choose_device(name: Any) -> None:
    """Train or evaluate on this device; accelerate reads the choice when its first process group is joined.

    Raises:
        ValueError: If torch has no such device here, or several processes were launched, each with its own.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(f"--device {name} is for one process; the launcher gives each of several its own: omit it.")
    device = find_device(name)
    if device.partition(":")[0] == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    else:
        os.environ["ACCELERATE_TORCH_DEVICE"] = device


def wants_cpu() -> bool:
    """Whether to stay on the CPU: asked for, or there is nothing else."""
    return parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()


def warn_of_slow_bfloat16(dtype: torch.dtype, device: Any = None) -> None:
    """Say so where a processor is asked to compute in bfloat16 and has no instructions for it: answers take about six
    times as long as in float32 (a base model on a Zen 3 EPYC, docs/speed.md).

    Args:
        dtype: Of the computation.
        device: Where it runs; by default the one that accelerate takes.
    """
    on_cpu = wants_cpu() if device is None else torch.device(device).type == "cpu"
    if on_cpu and dtype == torch.bfloat16 and not _computes_in_bfloat16():
        logger.warning(
            "This processor has no instructions for bfloat16 and takes several times as long in it as in float32: "
            "use fp32, or int8 with the onnx backend."
        )


def _computes_in_bfloat16() -> bool:
    """Whether the processor has AVX512-BF16 or AMX; True where it cannot be told, which is anything but an x86-64."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
