"""`make demo`: render RefShapes scenes of several shapes to PNG files and run `hivg ground` on them.

    python scripts/demo.py [--seed 7] [--out demo] [--model FOLDER_OR_HUB_ID]

The scenes are of split `val`, which no training has seen. The pictures to look at are the files
`demo/*.grounded.png`; the terminal shows the expressions, and the same commands work on your own pictures.
"""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from hivg_hf.cli import main as hivg
from hivg_hf.data.refshapes import example_scenes


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Render scenes and ground expressions in them.")
    parser.add_argument("--seed", type=int, default=7, help="another seed renders other scenes")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for scenes and pictures")
    parser.add_argument("--model", help="model folder or Hub id; default: the checkpoint that is included")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    for name, image, expressions in example_scenes(options.seed):
        scene = options.out / f"{name}.png"
        image.save(scene)
        command = ["ground", str(scene), *expressions, "--mask", "--out", str(options.out / f"{name}.grounded.png")]
        command += ["--model", options.model] if options.model else []
        print(f"\n$ hivg {shlex.join(command)}", flush=True)
        run(command)


def run(command: Sequence[str]) -> None:
    """The `hivg` command in this process; an exit status other than 0 ends the demo with it."""
    try:
        hivg(command)
    except SystemExit as ended:
        if ended.code:
            raise


if __name__ == "__main__":
    main()
