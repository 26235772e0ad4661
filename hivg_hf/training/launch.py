"""How the training was started: on which processes and devices; what cannot work is refused at once."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable

from accelerate.utils import parse_flag_from_env

from hivg_hf.utils.devices import wants_cpu


def check_launch() -> None:
    """Refuse a launch that would silently do something else.

    Raises:
        ValueError: For FSDP on the CPU: accelerate turns it into plain data parallelism without a word.
    """
    if parse_flag_from_env("ACCELERATE_USE_FSDP") and wants_cpu():
        raise ValueError(
            "FSDP does not run on the CPU (accelerate would train plain data parallel instead, without saying so): "
            "use multi_cpu.yaml (`hivg recipes multi_cpu --copy` writes it), or drop use_cpu from the configuration."
        )


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
