"""Optional packages: asked for at the moment of use, with a sentence that says how to install them."""

import importlib
import importlib.util
from types import ModuleType


def is_package_available(name: str) -> bool:
    """Whether `import name` would find a package; nothing is imported."""
    return importlib.util.find_spec(name) is not None


def require_package(name: str, extra: str) -> ModuleType:
    """Import an optional package.

    Args:
        name: the import name of the package, for example `pycocotools`; a dotted name imports that submodule.
        extra: the extra of `hivg_hf` that installs it, for example `data`.

    Returns:
        The imported module.

    Raises:
        ImportError: the package is not installed; the message names the command that installs it.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # A package that is there but misses one of its own dependencies is another problem: name the real culprit.
        if error.name is None or error.name.partition(".")[0] != name.partition(".")[0]:
            raise
        raise ImportError(
            f"The package {name.partition('.')[0]} is needed here but is not installed; "
            f"install it with: pip install 'hivg_hf[{extra}]'"
        ) from None
