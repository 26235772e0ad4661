"""One run of the benchmark: groups after each other, and everything measured as one results dict.

Results hold `format`, `date`, `machine`, and per group `rounds`, `cases` (operations, parameters, memory, seconds),
`comparisons`, `differences`, and when it was measured on how busy a machine. `report.py` reads them.
"""

import gc
import logging
import os
import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from hivg_hf.modeling.configuration_hivg import HiVGConfig

from .groups import (
    Group,
    engines_group,
    expressions_group,
    inference_group,
    mask_head_group,
    neighbor_group,
    training_group,
)
from .measure import Case, count_operations, ratio_of_medians, time_rounds, utc_now, working_memory
from .neighbors import neighbor_cases

logger = logging.getLogger(__name__)

FORMAT = 1


def _inference(size: str, batch: int, **options: bool) -> Group:
    official, new = HiVGConfig.preset(f"{size}-unc"), HiVGConfig.preset(size)
    return inference_group(f"{size}, batch {batch}", official, new, batch, **options)


def _training(size: str, batch: int) -> Group:
    official, new = (HiVGConfig.preset(name, fusion_dropout=0.0) for name in (f"{size}-unc", size))
    return training_group(f"{size}, training step, batch {batch}", official, new, batch)


def _expressions(count: int) -> Group:
    """With the layout of the authors' ViT-L/14-336: 11 of 24 layers come before the first bridge."""
    official = {"skip_padded_patches": False, "bridge_mask_padding": False, "pad_align": "pixel"}
    config = HiVGConfig.preset("large-336", **official)
    return expressions_group(f"large-336, {count} expressions of one image", config, count)


def _neighbors() -> Group:
    official, new = HiVGConfig.preset("base-unc"), HiVGConfig.preset("base")
    with tempfile.TemporaryDirectory() as folder:
        return neighbor_group("neighbors, batch 1", official, new, neighbor_cases(Path(folder)))


# Each builder takes `compiled`; groups whose round takes long (True) may be given fewer rounds.
GROUPS: dict[str, tuple[Callable[[bool], Group], bool]] = {
    "base-1": (lambda compiled: _inference("base", 1, variants=True, compiled=compiled), False),
    "mask-head": (lambda compiled: mask_head_group("mask head, batch 1", HiVGConfig.preset("base-unc"), 1), False),
    "training-8": (lambda compiled: _training("base", 8), True),
    "neighbors": (lambda compiled: _neighbors(), True),
    "base-8": (lambda compiled: _inference("base", 8), True),
    "large-1": (lambda compiled: _inference("large", 1), True),
    "engines": (lambda compiled: engines_group("base, engines, batch 1", HiVGConfig.preset("base")), False),
    "expressions-4": (lambda compiled: _expressions(4), True),
    "expressions-16": (lambda compiled: _expressions(16), True),
    "large-8": (lambda compiled: _inference("large", 8), True),
}


def run_benchmark(
    names: Sequence[str],
    rounds: int = 15,
    slow_rounds: int | None = None,
    compiled: bool = False,
    keep: Callable[[dict[str, Any]], object] = lambda results: None,
    before: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Measure some groups, one after the other.

    Args:
        names: keys of `GROUPS`.
        rounds: alternating rounds of each group.
        slow_rounds: rounds of the slow groups; default the same number.
        compiled: also measure `torch.compile`.
        keep: called with the results so far after each group, so that a stopped run leaves what it measured.
        before: results whose other groups are taken over.

    Raises:
        ValueError: for an unknown name, or `before` from another machine or other libraries.
    """
    unknown = [name for name in names if name not in GROUPS]
    if unknown:
        raise ValueError(f"Unknown groups {unknown}; the benchmark has {list(GROUPS)}.")
    machine = describe_machine()
    if before is not None and before["machine"] != machine:
        raise ValueError(
            f"The results to update were measured on {before['machine']}, this is {machine}: measure all groups anew."
        )
    groups = dict(before["groups"]) if before is not None else {}
    results: dict[str, Any] = {"format": FORMAT, "date": utc_now(), "machine": machine, "groups": groups}
    for name in names:
        build, slow = GROUPS[name]
        torch.manual_seed(0)
        group = build(compiled)
        measured = measure_group(group, (slow_rounds or rounds) if slow else rounds)
        # the rounds alone keep one processor busy: a load above that is somebody else's
        groups[name] = {**measured, "date": utc_now(), "load": round(os.getloadavg()[0], 2)}
        logger.info("measured %s", group.name)
        keep(results)
        del group
        gc.collect()
    return results


def measure_group(group: Group, rounds: int) -> dict[str, Any]:
    """Operations and memory of each case once, then the alternating rounds."""
    cases = {case.name: _measure_once(case) for case in group.cases}
    seconds = time_rounds(group.cases, rounds)  # (rounds, cases)
    column = {case.name: seconds[:, place] for place, case in enumerate(group.cases)}
    for name, values in column.items():
        cases[name]["seconds"] = [round(float(value), 6) for value in values]
        cases[name]["median_seconds"] = float(np.median(values))
    return {
        "title": group.name,
        "rounds": rounds,
        "cases": cases,
        "comparisons": [
            {
                **asdict(comparison),
                "time": asdict(ratio_of_medians(column[comparison.slow], column[comparison.fast])),
                "operations": _share(cases, comparison.fast, comparison.slow, "operations"),
                "memory": _share(cases, comparison.fast, comparison.slow, "peak_memory"),
            }
            for comparison in group.comparisons
        ],
        "differences": group.differences,
    }


def _measure_once(case: Case) -> dict[str, Any]:
    measured = {"batch": case.batch, "note": case.note, "parameters": case.parameters}
    if case.timed_only:
        case.run()
        return {**measured, "operations": None, "working_memory": None, "peak_memory": None}
    # Counted first: optimizer states and caches made by a first run are no part of what a run needs.
    operations = count_operations(case.run, case.models)
    working = working_memory(case.run)
    bytes_each = next((p.element_size() for model in case.models for p in model.parameters()), 4)
    return {
        **measured,
        "operations": operations,
        "working_memory": working,
        "peak_memory": None if working is None else working + case.parameters * bytes_each,
    }


def _share(cases: dict[str, dict[str, Any]], fast: str, slow: str, field: str) -> float | None:
    """fast / slow of what is counted once."""
    if not cases[fast][field] or not cases[slow][field]:
        return None
    return cases[fast][field] / cases[slow][field]


def describe_machine() -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "processor": _processor_name(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "clock": "processor time of the process",
    }


def _processor_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
