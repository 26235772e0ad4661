"""Whether the running program is the `hivg` command, which need not load the model to print its help."""

import multiprocessing
import sys
from pathlib import Path


def is_command() -> bool:
    """Whether this process is `hivg`, `python -m hivg_hf` or a script that says so, and not one that it started.

    A script says so by `HIVG_COMMAND = True` before it imports the package.

    The one flag that lets `import hivg_hf` leave transformers alone: the command registers the model when it runs a
    verb. A worker inherits the arguments but runs no verb, so it counts as any other program.
    """
    if multiprocessing.parent_process() is not None or not sys.argv:
        return False
    if getattr(sys.modules.get("__main__"), "HIVG_COMMAND", False) is True:
        return True
    if sys.argv[0] == "-m":  # of python -m, until the module has been found
        return sys.orig_argv[sys.orig_argv.index("-m") + 1] == "hivg_hf" if "-m" in sys.orig_argv else False
    program = Path(sys.argv[0])
    if program.name.lower() == "hivg.exe":
        return True
    try:  # the script that pip writes; a program of the user's own may be called hivg too
        return program.name == "hivg" and b"hivg_hf.cli" in program.read_bytes()[:4096]
    except OSError:
        return False
