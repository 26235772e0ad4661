"""The doors of packages: names that are imported when somebody first asks for them."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(package: str, home_of: Mapping[str, str]) -> Callable[[str], Any]:
    """A package's `__getattr__`, which takes each name from the module of the package that holds it.

    Nothing is kept in the package: what replaces a name in its module is seen through the door.

    Args:
        package: `__name__` of the package.
        home_of: name to the module in the package, relative to it.
    """

    def get(name: str) -> Any:
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{home_of[name]}"), name)

    return get
