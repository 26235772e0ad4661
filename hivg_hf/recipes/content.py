"""What a recipe says, before it is typed: what it extends is read first, and values can be changed from outside.

```yaml
extends: refcoco-base          # a file, or the name of a recipe that ships
seed: 14                       # a value takes the place of the base's
data: {defaults: {root: /d}}   # a mapping changes the keys it names and leaves the others
phases:
  stage_1: {epochs: 5}         # a mapping where the base has a list changes the phases it names
```

A list takes the place of the base's list, and `null` stands for "not given".
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hivg_hf.utils.strict_mapping import nearest, read_options, read_yaml

from .files import find_recipe

MOST_BASES = 20


def read_recipe(name: str | Path, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """The content of a recipe with what it extends, and with `key.sub=value` overrides.

    Args:
        name: A file, or the name of a recipe that ships.
        overrides: For example "seed=3" or "phases.stage_1.epochs=5"; values are read as YAML.

    Raises:
        FileNotFoundError: It, or what it extends, is not there.
        ValueError: It is not YAML, extends itself, or something changes a phase that is not there.
    """
    path = find_recipe(name)
    return override({"name": path.stem, **_extended(path, ())}, overrides)


def override(content: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """A recipe's content with `key.sub=value` pairs put in place.

    Raises:
        ValueError: A pair has no "=", or leads through something that has no keys.
    """
    changed = dict(content)
    for key, value in read_options(overrides, "After the recipe, hivg train").items():
        change: Any = value
        for part in reversed(key.split(".")):
            change = {part: change}
        changed = _merged(changed, change, "recipe")
    return changed


def _extended(path: Path, below: tuple[Path, ...]) -> dict[str, Any]:
    """The mapping in a file, put over the mapping in the file that it extends."""
    path = path.resolve()
    if path in below:
        chain = " -> ".join(file.name for file in (*below, path))
        raise ValueError(f"A recipe cannot extend itself ({chain}): remove one `extends`.")
    if len(below) > MOST_BASES:
        raise ValueError(
            f"{below[0].name} extends more than {MOST_BASES} recipes, one through the other: write it out."
        )
    content = dict(read_yaml(path, "recipe"))
    base = content.pop("extends", None)
    if base is None:
        return content
    if not isinstance(base, str):
        raise ValueError(f"`extends` in {path} must be a file or the name of a recipe that ships. Got {base!r}.")
    inherited = _extended(find_recipe(base, beside=path.parent), (*below, path))
    inherited.pop("name", None)  # a recipe without a name has its file's
    return _merged(inherited, content, "recipe")


def _merged(base: Any, changes: Any, where: str) -> Any:
    """`changes` over `base`: mappings key by key, lists of named items by name, anything else in its place."""
    if isinstance(base, list) and isinstance(changes, Mapping):
        return _with_named_items(base, changes, where)
    if not isinstance(base, Mapping) or not isinstance(changes, Mapping):
        return changes
    merged = dict(base)
    for key, value in changes.items():
        merged[key] = _merged(base[key], value, f"{where}.{key}") if key in base else value
    return merged


def _with_named_items(base: list[Any], changes: Mapping[str, Any], where: str) -> list[Any]:
    names = [str(item.get("name")) if isinstance(item, Mapping) else "" for item in base]
    items = list(base)
    for name, change in changes.items():
        if str(name) not in names:
            raise ValueError(f"There is no `{name}` in {where}: {nearest(name, filter(None, names))}")
        position = names.index(str(name))
        items[position] = _merged(base[position], change, f"{where}.{name}")
    return items
