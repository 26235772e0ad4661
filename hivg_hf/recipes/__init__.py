"""Training recipes and accelerate configurations, as files that ship with the package and are found by name."""

import difflib
from pathlib import Path

FOLDER = Path(__file__).parent


def recipe_names() -> list[str]:
    """Names of the recipes that ship."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def find_recipe(name: str | Path) -> Path:
    """The file of a recipe: a path as it stands, or the name of one that ships.

    Raises:
        FileNotFoundError: It is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    known = recipe_names()
    if str(name) in known:
        return FOLDER / f"{name}.yaml"
    close = difflib.get_close_matches(path.stem, known, n=1)
    hint = f"did you mean `{close[0]}`?" if close else f"expected a file or one of {', '.join(known)}."
    raise FileNotFoundError(f"No recipe at {name}, and none of that name ships; {hint}")
