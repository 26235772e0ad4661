"""Run studies of methods, bridges and seeds, and write their document from the results.

python -m benchmarks.study benchmarks/study/refshapes-study.yaml  # resumes; Ctrl-C loses one cell
python -m benchmarks.study benchmarks/study/refshapes-study.yaml --cells 10  # at most ten cells now
python -m benchmarks.study benchmarks/study/refshapes-study.yaml --jobs 2    # two runs at a time
python -m benchmarks.study benchmarks/study/{refshapes-study,refshapes-fair,later-bridges}.yaml --report  # no runs
"""

import argparse
import logging
from pathlib import Path

from hivg_hf.training.launch import quiet_libraries

from . import load_study, run_study, write_report


def main() -> None:
    """Parse, run, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", type=Path, nargs="+", help="the studies' YAML files, one part of the document each")
    parser.add_argument("--out", type=Path, help="folder of the runs; runs/NAME by default")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"), help="holds a folder per study")
    parser.add_argument("--document", type=Path, help="docs/NAME.md of the first by default")
    parser.add_argument("--cells", type=int, help="stop after so many cells")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; each has its share of the cores")
    parser.add_argument("--threads", type=int, help="threads of each run instead of its share of the cores")
    parser.add_argument("--report", action="store_true", help="write the document and run nothing")
    arguments = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("hivg_hf").setLevel(logging.INFO)
    quiet_libraries()
    studies = [load_study(path) for path in arguments.studies]
    if arguments.report:
        document = arguments.document or Path("docs") / f"{studies[0].name}.md"
        print(write_report(studies, arguments.results, document))
        return
    for study in studies:
        out = arguments.out or Path("runs") / study.name
        results = arguments.results / study.name
        run_study(study, out, results, arguments.cells, arguments.jobs, arguments.threads)


if __name__ == "__main__":
    main()
