"""Which of a study's runs are left to do, and in which order, each in a process of its own.

The processes are their own so that several can run at a time and the peak of a process's memory is its cell's.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from .plan import Cell, Study
from .run import RESULTS_FILE, make_base, make_start, make_warmup, run_cell, start_folder, warmup_folder


def run_study(
    study: Study,
    out: Path,
    results: Path,
    max_cells: int | None = None,
    jobs: int = 1,
    threads: int | None = None,
) -> list[Path]:
    """Run every cell, and every run of the sweep, that has no results file yet.

    Args:
        study: What to run.
        out: Folder of the runs; may be deleted afterwards.
        results: Folder of the results files.
        max_cells: Stop after so many of them.
        jobs: Runs at a time.
        threads: Threads of each run; by default the machine's cores shared out among the jobs.

    Returns:
        The results files that were written.

    Raises:
        RuntimeError: A process failed; its own message came before.
    """
    cells = [cell for cell in study.runs() if not cell.results(results).is_file()][:max_cells]
    waiting = [step for step in _steps(study, cells, out, results) if not step.makes.is_file()]
    threads = threads or max((os.cpu_count() or 1) // jobs, 1)
    running: dict[Future[None], Step] = {}
    with ThreadPoolExecutor(jobs) as pool:
        while waiting or running:
            ready = [step for step in waiting if all(path.is_file() for path in step.needs)]
            for step in ready[: jobs - len(running)]:
                waiting.remove(step)
                running[pool.submit(_in_a_process, step, threads)] = step
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                del running[future]
                future.result()  # a failure ends the study; what else runs now is finished first
    return [cell.results(results) for cell in cells]


@dataclass(frozen=True)
class Step:
    """A process of a study.

    Args:
        name: For messages.
        makes: The file that says that it is done.
        needs: Files that have to be there first.
        call: What the process calls, with its arguments.
    """

    name: str
    makes: Path
    needs: tuple[Path, ...]
    call: tuple[Any, ...]


def _steps(study: Study, cells: Sequence[Cell], out: Path, results: Path) -> list[Step]:
    """Every process that cells need, each once, what is needed before what needs it."""
    steps: dict[Path, Step] = {}
    for cell in cells:
        chain: list[tuple[str, Path, tuple[Any, ...]]] = []
        if isinstance(study.base, dict):
            chain.append(("the base", out / "base" / RESULTS_FILE, (make_base, study, out)))
        if study.start is not None:
            name = f"the start of {cell.bridge}"
            chain.append((name, start_folder(cell, out) / RESULTS_FILE, (make_start, study, cell, out)))
        if study.warmup:
            name = f"the warm-up of {cell.bridge}, seed {cell.seed}"
            chain.append((name, warmup_folder(cell, out) / RESULTS_FILE, (make_warmup, study, cell, out)))
        needs: tuple[Path, ...] = ()
        for name, makes, call in chain:
            steps.setdefault(makes, Step(name, makes, needs, call))
            needs = (makes,)
        if cell.rate is None:
            needs = (*needs, *(sweep.results(results) for sweep in study.sweeps(cell.method)))
        makes = cell.results(results)
        steps[makes] = Step(str(cell), makes, needs, (run_cell, study, cell, out, results))
    return list(steps.values())


def _in_a_process(step: Step, threads: int) -> None:
    process = get_context("spawn").Process(target=_logged, args=(step.call, threads))
    process.start()
    process.join()
    if process.exitcode or not step.makes.is_file():
        raise RuntimeError(
            f"A process of {step.name} failed (its message is above): the same command resumes once that is fixed."
        )


def _logged(call: Sequence[Any], threads: int) -> None:
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("hivg_hf").setLevel(logging.INFO)
    torch.set_num_threads(threads)
    function, *arguments = call
    function(*arguments)
