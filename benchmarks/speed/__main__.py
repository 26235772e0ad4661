"""Measure this package beside the official computation and beside other models; random weights, nothing downloaded.

    OMP_NUM_THREADS=1 python -m benchmarks.speed --out benchmarks/results/2026-11-20-cpu.json --pages

Prints tables, and how the ratios moved against the last results in benchmarks/results. Exit status 1 where a limit
that the project holds itself to is missed.
"""

import logging
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from . import report
from .run import GROUPS, run_benchmark

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"


def main(
    groups: Annotated[list[str] | None, typer.Argument(help=f"Any of: {', '.join(GROUPS)}. Default: all.")] = None,
    out: Annotated[Path | None, typer.Option(help="Results file to write; a plot is written beside it.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Alternating rounds.")] = 15,
    slow_rounds: Annotated[int | None, typer.Option(min=1, help="Rounds of the groups that take minutes.")] = None,
    compiled: Annotated[bool, typer.Option("--compiled", help="Measure torch.compile too.")] = False,
    update: Annotated[bool, typer.Option("--update", help="Keep the groups of --out that are not named.")] = False,
    pages: Annotated[
        bool, typer.Option("--pages", help="Write the tables of README.md and docs/speed.md anew.")
    ] = False,
    only_report: Annotated[
        bool, typer.Option("--only-report", help="Measure nothing; report the file --out.")
    ] = False,
) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    console = Console()
    before = report.last_results(RESULTS)
    if only_report:
        results = report.load_results(out) if out else before
    else:

        def keep(so_far: dict) -> None:
            if out:
                report.save_results(so_far, out)

        held = report.load_results(out) if update and out and out.is_file() else None
        results = run_benchmark(groups or list(GROUPS), rounds, slow_rounds, compiled, keep, held)
    for group in results["groups"].values():
        console.print(report.cases_table(group))
    if before is not None and not only_report:
        console.print(report.changes_table(report.compare_results(before, results)))
    if out:
        report.plot_results(results, out.with_suffix(".svg"))
    if pages:
        report.write_pages(results, ROOT)
    missed = report.missed_limits(results)
    for sentence in missed:
        console.print(f"[red]missed:[/red] {sentence}")
    raise typer.Exit(1 if missed else 0)


if __name__ == "__main__":
    typer.run(main)
