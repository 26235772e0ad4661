"""`hivg recipes`: which training recipes ship, what one says, and a copy to change."""

from pathlib import Path
from typing import Annotated

import typer

from . import run_verb, say

SCHEMA_FILE = "recipe.schema.json"


def recipes(
    name: Annotated[str | None, typer.Argument(help="A recipe (or accelerate configuration) to show.")] = None,
    resolved: Annotated[
        bool, typer.Option("--resolved", help="Show it with everything that it extends written out.")
    ] = False,
    copy: Annotated[bool, typer.Option("--copy", help="Copy it to the current folder, for you to edit.")] = False,
    schema: Annotated[
        bool, typer.Option("--schema", help=f"Write {SCHEMA_FILE}, with which editors check recipes as you type.")
    ] = False,
) -> None:
    """List the training recipes that ship, show one, or copy one to the current folder."""
    from hivg_hf.recipes import accelerate_names, describe_recipe, recipe_names

    if schema:
        if name is not None or copy or resolved:
            raise ValueError("--schema is for all recipes: give it alone.")
        _write_schema(Path(SCHEMA_FILE))
        return
    if name is None:
        if copy or resolved:
            raise ValueError(f"{'--copy' if copy else '--resolved'} needs the name of a recipe: see `hivg recipes`.")
        width = max(map(len, recipe_names()))
        for known in recipe_names():
            say(f"{known:<{width}}  {describe_recipe(known)}")
        say(f"\nConfigurations of accelerate: {', '.join(accelerate_names())}")
        return
    text, file = _content(name, resolved)
    if not copy:
        say(text, nl=False)
        return
    target = Path(file)
    if target.exists():
        raise FileExistsError(f"{target} exists: rename or remove it, or copy to another folder.")
    from hivg_hf.utils.atomic import atomic_path

    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")
    say(str(target.resolve()))


def _write_schema(path: Path) -> None:
    from hivg_hf.training.recipe_schema import recipe_schema
    from hivg_hf.utils.atomic import write_json

    write_json(path, recipe_schema())
    say(f"{path.resolve()}\nIn a recipe beside it, the first line: # yaml-language-server: $schema={path.name}")


def _content(name: str, resolved: bool) -> tuple[str, str]:
    """The text of a recipe or an accelerate configuration, and the name of its file."""
    import yaml

    from hivg_hf.recipes import accelerate_names, find_accelerate, find_recipe, read_recipe

    if name in accelerate_names():
        path = find_accelerate(name)
    else:
        path = find_recipe(name)
        if resolved:
            return yaml.safe_dump(read_recipe(name), sort_keys=False, allow_unicode=True), path.name
    return path.read_text(encoding="utf-8"), path.name


def main() -> None:
    """Run the verb with the process's own arguments."""
    run_verb("recipes")
