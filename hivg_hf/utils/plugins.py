"""What other packages add: by an entry point, which installing them makes, or by name, which takes permission.

A package says in its metadata, for example, `[project.entry-points."hivg_hf.readers"] boxes = "mine:read_boxes"`. A
name such as `my_package.readers:read_boxes` needs no metadata, but a recipe is a file that people pass on, and
importing runs code: so such names work only where the person at the keyboard has said so (`--allow-code`).
"""

import importlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.metadata import entry_points
from typing import Any

_CODE_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_allowed: ContextVar[bool] = ContextVar("hivg_code_allowed", default=False)


def plugin_names(group: str) -> list[str]:
    """Names under which installed packages offer something; nothing of them is imported."""
    return sorted({entry.name for entry in entry_points(group=group)})


def find_plugin(group: str, name: str) -> Any:
    """What an installed package offers under a name, imported; None where no package does.

    Raises:
        ValueError: Several packages offer it.
        ImportError: It cannot be imported; the message names the package.
    """
    found = list(entry_points(group=group, name=name))
    if not found:
        return None
    if len({entry.value for entry in found}) > 1:
        raise ValueError(
            f"Several packages offer {name!r} as {group} ({', '.join(entry.value for entry in found)}): remove all "
            "but one."
        )
    try:
        return found[0].load()
    except (ImportError, AttributeError) as error:
        raise ImportError(f"The package that offers {name!r} as {group} does not load: {error}") from error


def is_code_name(name: str) -> bool:
    """Whether a text has the form `package.module:function`."""
    return _CODE_NAME.fullmatch(name) is not None


@contextmanager
def allowing_code(allowed: bool = True) -> Iterator[None]:
    """Within the block, names of the form `package.module:function` are imported; permission is never taken away."""
    token = _allowed.set(_allowed.get() or allowed)
    try:
        yield
    finally:
        _allowed.reset(token)


def load_code(name: str, what: str) -> Any:
    """Import `package.module:function`, where that is allowed.

    Args:
        name: Of the function.
        what: It is used as, for messages: "the data source".

    Raises:
        ValueError: Nobody allowed it.
        ImportError: The module or function does not exist.
    """
    if not _allowed.get():
        raise ValueError(
            f"{name!r} as {what} would import and run code of that module: if you trust it, add allow_code=True."
        )
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ImportError(f"{name!r} as {what} cannot be imported: {error}") from error
