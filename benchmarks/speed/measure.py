"""What is measured of a piece of work: operations, processor time in alternating rounds, and peak memory.

Processor time of this process instead of the clock on the wall: on a shared machine the same forward pass takes up to
ten times as long on the wall while its processor time moves by a few percent. Rounds alternate between the cases, so
that a slow minute slows all of them, and figures are ratios of medians with bootstrap intervals over rounds.
"""

import ctypes
import datetime
import gc
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

# glibc's `mallopt` names; see its manual page. Blocks above the threshold come from the system and go back at once.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
SMALL_THRESHOLD, LARGEST_THRESHOLD = 1 << 16, 1 << 25


def utc_now() -> str:
    """The moment of a measurement, for results files."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass
class Case:
    """One piece of work that is measured beside others.

    Args:
        name: unique in its group.
        run: does the work once.
        batch: samples (an image with an expression) that one run answers.
        models: what `run` computes with; their attention is set to eager while operations are counted.
        parameters: number of parameters, adapters included.
        note: what distinguishes it, for tables.
        timed_only: operations and memory are not measured (a compiled graph hides them).
    """

    name: str
    run: Callable[[], Any]
    batch: int = 1
    models: tuple[nn.Module, ...] = ()
    parameters: int = 0
    note: str = ""
    timed_only: bool = False


@dataclass(frozen=True)
class Ratio:
    """A ratio of medians and its 95 % interval."""

    value: float
    low: float
    high: float


def count_operations(run: Callable[[], Any], models: Sequence[nn.Module] = ()) -> int:
    """Floating point operations of one run, a multiplication and an addition counted as two.

    The counter does not see scaled-dot-product attention on a CPU, hence eager attention while it counts.

    Args:
        run: the work.
        models: transformers models whose attention is switched.
    """
    with _eager_attention(models), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@contextmanager
def _eager_attention(models: Sequence[nn.Module]) -> Iterator[None]:
    before = [model.config._attn_implementation for model in models]
    for model in models:
        model.set_attn_implementation("eager")
    try:
        yield
    finally:
        for model, implementation in zip(models, before, strict=True):
            model.set_attn_implementation(implementation)


def time_rounds(cases: Sequence[Case], rounds: int, clock: Callable[[], float] = time.process_time) -> np.ndarray:
    """Processor seconds of each run, (rounds, cases). Each round runs every case once, each time beginning with
    another one. Every case must have run before: the first run of many things is slower than the rest.

    Raises:
        ValueError: fewer than one round.
    """
    if rounds < 1:
        raise ValueError(f"A benchmark needs at least one round. Got {rounds}.")
    seconds = np.zeros((rounds, len(cases)))
    for number in range(rounds):
        for place in range(len(cases)):
            index = (number + place) % len(cases)
            with _no_garbage_collection():
                start = clock()
                cases[index].run()
                seconds[number, index] = clock() - start
    return seconds


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def ratio_of_medians(slow: np.ndarray, fast: np.ndarray, draws: int = 2000, seed: int = 0) -> Ratio:
    """median(slow) / median(fast) with its bootstrap interval; rounds are drawn together, since they ran together.

    Args:
        slow, fast: (rounds,) seconds of the two cases.
    """
    rounds = np.random.default_rng(seed).integers(len(slow), size=(draws, len(slow)))  # (draws, rounds)
    ratios = np.median(slow[rounds], axis=1) / np.median(fast[rounds], axis=1)
    low, high = np.quantile(ratios, (0.025, 0.975))
    return Ratio(float(np.median(slow) / np.median(fast)), float(low), float(high))


def working_memory(run: Callable[[], Any]) -> int | None:
    """Bytes by which the resident memory of the process grows at the peak of one run, beyond what it held before.

    While it is measured, every block of 64 KiB or more is given back to the system when it is freed, so that blocks
    kept by the allocator from earlier runs hide nothing. None where the system is not a Linux with glibc.
    """
    status = Path("/proc/self/status")
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is None or not hasattr(libc, "malloc_trim"):
        return None
    gc.collect()
    libc.mallopt(M_MMAP_THRESHOLD, SMALL_THRESHOLD)
    try:
        libc.malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is held now
        before = _kibibytes(status, "VmRSS")
        run()
        return max(_kibibytes(status, "VmHWM") - before, 0) * 1024
    except OSError:  # a container may forbid clear_refs
        return None
    finally:
        # Where glibc's own thresholds end up in a process that works with tensors. Setting one alone would leave the
        # other at 128 KiB: memory would go back to the system after every layer, and come again page by page.
        libc.mallopt(M_MMAP_THRESHOLD, LARGEST_THRESHOLD)
        libc.mallopt(M_TRIM_THRESHOLD, 2 * LARGEST_THRESHOLD)


def _kibibytes(status: Path, field: str) -> int:
    line = next(line for line in status.read_text().splitlines() if line.startswith(field + ":"))
    return int(line.split()[1])
