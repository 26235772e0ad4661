"""`make demo`: render RefShapes scenes of several shapes to PNG files and run `hivg ground` on them.

    python scripts/demo.py [--seed 7] [--out demo] [--model FOLDER_OR_HUB_ID]

The scenes are of split `val`, which no training has seen. The pictures to look at are the files
`demo/*.grounded.png`; the terminal shows the expressions, and the same commands work on your own pictures.
"""

import argparse
import shlex
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from hivg_hf.cli import main as hivg
from hivg_hf.data.refshapes import refshapes_dataset

# The name of a picture, and the aspect ratio (width / height) it should have at least and at most.
FORMS = {"wide": (1.4, 9.0), "tall": (0.0, 0.7), "square": (0.9, 1.1), "another": (0.0, 9.0)}
EXPRESSIONS_PER_SCENE = 3
SCENES_TO_CHOOSE_FROM = 40


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Render scenes and ground expressions in them.")
    parser.add_argument("--seed", type=int, default=7, help="another seed renders other scenes")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for scenes and pictures")
    parser.add_argument("--model", help="model folder or Hub id; default: the checkpoint that is included")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    for name, image, expressions in choose_scenes(options.seed):
        scene = options.out / f"{name}.png"
        image.save(scene)
        command = ["ground", str(scene), *expressions, "--mask", "--out", str(options.out / f"{name}.grounded.png")]
        command += ["--model", options.model] if options.model else []
        print(f"\n$ hivg {shlex.join(command)}", flush=True)
        run(command)


def choose_scenes(seed: int) -> Iterator[tuple[str, Any, list[str]]]:
    """A scene of each form that has all its expressions: (name, picture, expressions)."""
    rows = refshapes_dataset(
        "val",
        seed=seed,
        size=SCENES_TO_CHOOSE_FROM * EXPRESSIONS_PER_SCENE,
        expressions_per_scene=EXPRESSIONS_PER_SCENE,
        masks=False,
    )
    scenes = [list(group) for _, group in groupby(rows, key=lambda row: row["image_id"])]
    scenes = [scene for scene in scenes if len({row["expression"] for row in scene}) == EXPRESSIONS_PER_SCENE]
    for name, (least, most) in FORMS.items():
        fitting = (scene for scene in scenes if least <= scene[0]["width"] / scene[0]["height"] <= most)
        scene = next(fitting, None)
        if scene is not None:
            scenes.remove(scene)
            yield name, scene[0]["image"], [row["expression"] for row in scene]


def run(command: Sequence[str]) -> None:
    """The `hivg` command in this process; an exit status other than 0 ends the demo with it."""
    try:
        hivg(command)
    except SystemExit as ended:
        if ended.code:
            raise


if __name__ == "__main__":
    main()
