"""How the training was started: on which processes and devices; what cannot work is refused at once."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable


def check_launch() -> None:
    """Refuse a launch that would silently do something else.

    Raises:
        ValueError: For FSDP on the CPU: accelerate turns it into plain data parallelism without a word.
    """
    if _is_true("ACCELERATE_USE_FSDP") and wants_cpu():
        raise ValueError(
            "FSDP does not run on the CPU (accelerate would train plain data parallel instead, without saying so): "
            "use multi_cpu.yaml (`hivg recipes multi_cpu --copy` writes it), or drop use_cpu from the configuration."
        )


def choose_device(device: str) -> None:
    """Train on this device; accelerate reads the choice when its first process group is joined.

    Raises:
        ValueError: If torch has no such device here, or several processes were launched, each with its own.
    """
    from hivg_hf.utils.devices import find_device

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(f"--device {device} is for one process; the launcher gives each of several its own: omit it.")
    device = find_device(device)
    if device.partition(":")[0] == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    else:
        os.environ["ACCELERATE_TORCH_DEVICE"] = device


def describe_processes() -> str:
    """How many processes train, on what; each process group is joined on the first call."""
    from accelerate import PartialState

    state = PartialState(cpu=True) if wants_cpu() else PartialState()
    count = state.num_processes
    kind = f", {state.distributed_type.value}" if count > 1 else ""
    return f"Training on {count} process{'es' * (count > 1)} ({state.device.type}{kind})"


def count_processes() -> int:
    """Processes of this training."""
    from accelerate import PartialState

    return PartialState().num_processes


def wants_cpu() -> bool:
    """Whether training is to stay on the CPU: asked for, or there is nothing else."""
    import torch

    return _is_true("ACCELERATE_USE_CPU") or not torch.cuda.is_available()


def announcer() -> Callable[[str], None]:
    """Prints on the first process only."""
    import typer

    return typer.echo if os.environ.get("RANK", "0") == "0" else lambda text: None


def quiet_libraries() -> None:
    """Leave out what the libraries tell about their own business: bars of weight files, an inner deprecation."""
    import transformers

    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()


def _is_true(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true", "yes")
