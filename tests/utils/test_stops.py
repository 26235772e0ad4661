"""A signal ends the command with its sentence at whatever moment it comes, from the first import to the exit."""

import os
import signal
import subprocess
import sys

import pytest

from helpers.scripts import ROOT

# A program that is the command (see `hivg_hf.utils.program`), with what sends the signal to it.
BEGINNING = """# hivg_hf.cli
import atexit, os, signal, sys, threading, time
import hivg_hf
from hivg_hf.utils import stops
stops.SAME_STOP_SECONDS = 60  # a busy machine is slow
HOW = int(os.environ["HOW"])
hear = lambda *_, raise_signal=signal.raise_signal, how=HOW, **__: raise_signal(how)
hivg_hf.register = lambda: None  # loads torch, which this verb does not need
"""
VERB = """
from hivg_hf import cli
import hivg_hf.cli.recipes
{}
cli.main(["recipes"])
"""
STOPPED = {
    "while it is imported": "hear()" + VERB.format(""),
    "before the words are read": VERB.format("cli.LazyGroup.make_context = hear"),
    "in the verb": VERB.format("cli.recipes.say = hear"),
    "twice": VERB.format("cli.recipes.say, say, cli.say = hear, cli.say, lambda *a, **k: (hear(), say(*a, **k))"),
    "where a library makes an error of it": VERB.format(
        "def say(*_):\n    try:\n        hear()\n    except BaseException as error:\n"
        "        raise RuntimeError('a worker died') from error\ncli.recipes.say = say"
    ),
    "where a library catches it": VERB.format(
        "def say(*_):\n    try:\n        hear()\n    except BaseException:\n        pass\ncli.recipes.say = say"
    ),
    "where Python ignores errors": VERB.format(
        "Ignores = type('_', (), {'__del__': hear})\n"
        "def say(*_):\n    Ignores()\n    time.sleep(50)\ncli.recipes.say = say"
    ),
    "after the verb": VERB.format("cli.LazyGroup.invoke = lambda *a, run=cli.LazyGroup.invoke: (run(*a), hear())"),
    "where a library has a handler of its own": VERB.format(
        "def say(*_):\n    with stops.handlers_kept():\n        signal.signal(HOW, lambda *_: os._exit(1))\n"
        "    hear()\ncli.recipes.say = say"
    ),
    "in an exit that hangs": VERB.format(
        "stops.SAME_STOP_SECONDS = 0\n"
        "def hang():\n    while stops._phase != 'after':\n        time.sleep(0.01)\n"
        "    signal.pthread_kill(threading.main_thread().ident, HOW)\n    time.sleep(60)\n"
        "threading.Thread(target=hang).start()"
    ),
}
FINISHED = {
    "in the exit": "atexit.register(hear)" + VERB.format(""),
    "while the interpreter is taken apart": "last = type('_', (), {'__del__': hear})()" + VERB.format(""),
}
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}
# A shell starts what runs in the background with SIGINT ignored, and programs inherit that.
HEARING = (
    "import os, signal, sys\n"
    "signal.signal(signal.SIGINT, signal.SIG_DFL)\n"
    "os.execv(sys.executable, [sys.executable, sys.argv[1]])"
)


def ends_of(program):
    """Signal to status and errors of the program that sends it to itself; both at once, since starting takes time."""
    common = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    processes = {
        how: subprocess.Popen(
            [sys.executable, "-c", HEARING, str(program)], env={**environment, "HOW": str(int(how))}, **common
        )
        for how in STATUS
    }
    return {how: (process.communicate()[1], process.returncode) for how, process in processes.items()}


@pytest.mark.parametrize("moment", STOPPED)
def test_a_stop_is_said_once_and_has_its_status(moment, tmp_path):
    (tmp_path / "hivg").write_text(BEGINNING + STOPPED[moment])
    assert ends_of(tmp_path / "hivg") == {how: ("hivg: stopped.\n", status) for how, status in STATUS.items()}


AT_AN_IMPORT = """
import os, signal, sys
class Sender:
    def find_spec(self, name, *_):
        if name == "typer":  # which the parser needs
            sys.meta_path.remove(self)
            signal.raise_signal(int(os.environ["HOW"]))
sys.meta_path.insert(0, Sender())
"""


@pytest.mark.parametrize("script", ["train", "evaluate"])
def test_a_script_that_is_the_command_hears_its_first_imports(script, tmp_path):
    (tmp_path / f"{script}.py").write_text(AT_AN_IMPORT + (ROOT / "scripts" / f"{script}.py").read_text())
    expected = {how: ("hivg: stopped.\n", status) for how, status in STATUS.items()}
    assert ends_of(tmp_path / f"{script}.py") == expected


@pytest.mark.parametrize("moment", FINISHED)
def test_what_is_done_stays_done(moment, tmp_path):
    (tmp_path / "hivg").write_text(BEGINNING + FINISHED[moment])
    assert ends_of(tmp_path / "hivg") == dict.fromkeys(STATUS, ("", 0))


def test_a_worker_of_the_command_is_not_the_command(tmp_path):
    """What it was forked with is the command's handler."""
    ends = VERB.format(
        "def say(*_):\n    child = os.fork()\n    if not child:\n        hear()\n        os._exit(5)\n"
        "    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=sys.stderr)\n    os._exit(7)\n"
        "cli.recipes.say = say"
    )
    (tmp_path / "hivg").write_text(BEGINNING + "HOW == 2 and os._exit(7)" + ends)
    assert ends_of(tmp_path / "hivg")[signal.SIGTERM] == ("-15\n", 7)
