"""Where recipes and accelerate configurations are: a path as it stands, or the name of one that ships."""

import os
from pathlib import Path

from hivg_hf.utils.strict_mapping import nearest

FOLDER = Path(__file__).parent
BASES = FOLDER / "bases"  # what recipes extend; they name no data, so nothing trains by them alone
ACCELERATE = FOLDER / "accelerate"


def recipe_names() -> list[str]:
    """Names of the recipes that ship."""
    return _names(FOLDER)


def accelerate_names() -> list[str]:
    """Names of the accelerate configurations that ship."""
    return _names(ACCELERATE)


def find_recipe(name: str | Path, beside: Path | None = None) -> Path:
    """The file of a recipe: a path as it stands, or the name of one that ships.

    Args:
        name: The path or name.
        beside: A folder in which a relative path is looked for as well: that of the recipe which extends it.

    Raises:
        FileNotFoundError: It is neither.
    """
    for path in [Path(name), *([beside / name] if beside else [])]:
        if os.path.isfile(path):  # unlike `is_file`, not an error for a name that no file can have
            return path
    return _find(name, {path.stem: path for folder in (BASES, FOLDER) for path in folder.glob("*.yaml")}, "recipe")


def find_accelerate(name: str) -> Path:
    """The file of an accelerate configuration that ships.

    Raises:
        FileNotFoundError: There is none of that name.
    """
    return _find(name, {path.stem: path for path in ACCELERATE.glob("*.yaml")}, "accelerate configuration")


def describe_recipe(name: str) -> str:
    """The first sentence of the comment at the top of a recipe that ships."""
    lines = find_recipe(name).read_text(encoding="utf-8").splitlines()
    comment = " ".join(line.removeprefix("#").strip() for line in lines[:3] if line.startswith("#"))
    return comment.split(". ")[0].rstrip(".")


def _names(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.yaml"))


def _find(name: str | Path, known: dict[str, Path], what: str) -> Path:
    if str(name) in known:
        return known[str(name)]
    hint = nearest(Path(name).stem, known).replace("expected some of", "expected a file or one of")
    raise FileNotFoundError(f"No {what} at {name}, and none of that name ships; {hint}")
