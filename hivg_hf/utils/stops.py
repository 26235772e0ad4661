"""SIGINT and SIGTERM end the `hivg` command with one sentence and its status, from its first import to its exit.

Before the words are read there is nothing to clean up, and the process ends at once. While a verb works, a signal is
raised as an error, so that what is half written is removed. After that the process is on its way out, which a signal
neither speeds up nor spoils, unless the exit hangs.
"""

import _thread
import atexit
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Literal, NoReturn

STATUS: dict[int, int] = {signal.SIGINT: 130, signal.SIGTERM: 143}  # as shells have it
STOPPED = "hivg: stopped"

# A terminal signals the whole group, and a launcher in it signals its children again: both are one stop.
SAME_STOP_SECONDS = 1.0

_phase: Literal["before", "working", "after"] = "before"
_owner = 0  # process that listens; forks of it inherit its handlers
_stop: int | None = None  # the signal that stopped the work
_since = float("-inf")  # when it came, or when the work ended


class TerminatedError(KeyboardInterrupt):
    """SIGTERM, raised like Ctrl-C so that what is half written is removed; nothing that catches errors catches it."""


def listen() -> None:
    """Hear both signals from now on until the process ends: for a process that is the command and nothing else."""
    global _owner
    _owner = os.getpid()
    _take_over()
    atexit.register(_deafen)


@contextmanager
def stops_raised() -> Iterator[None]:
    """Raise SIGINT as KeyboardInterrupt and SIGTERM as TerminatedError, where nobody else handles them.

    Signals of one second are one stop: what cleans up after the first is not disturbed by the second.
    """
    global _phase, _owner, _stop, _since
    if threading.current_thread() is not threading.main_thread():  # where signals cannot be handled
        yield
        return
    _owner, _stop, _since, _phase = os.getpid(), None, float("-inf"), "working"
    taken, hook = _take_over(), sys.unraisablehook
    sys.unraisablehook = functools.partial(_raise_again, hook)
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in taken.items():
            signal.signal(number, handler)
        _since, _phase = time.monotonic(), "after"


def stop_heard() -> int | None:
    """The signal that `stops_raised` raised last, even if a library caught it."""
    return _stop if threading.current_thread() is threading.main_thread() else None


@contextmanager
def handlers_kept() -> Iterator[None]:
    """Around the start of a library that puts handlers of its own in place of those that listen."""
    ours = [number for number in STATUS if signal.getsignal(number) is _hear]
    try:
        yield
    finally:
        for number in ours:
            if signal.getsignal(number) is not _hear:
                signal.signal(number, _hear)


def _take_over() -> dict[int, Any]:
    """Handle the signals that end a process by default; returns their handlers until now."""
    defaults = (signal.SIG_DFL, signal.default_int_handler)
    taken = {number: handler for number in STATUS if (handler := signal.getsignal(number)) in defaults}
    for number in taken:
        signal.signal(number, _hear)
    return taken


def _hear(number: int, _frame: FrameType | None) -> None:
    global _stop, _since
    if os.getpid() != _owner:  # a worker: whoever started it says what happened
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        signal.raise_signal(number)
        return
    is_same_stop = time.monotonic() - _since < SAME_STOP_SECONDS
    if _phase == "before" or (_phase == "after" and not is_same_stop):
        _end_now(number)
    if _phase == "working" and not is_same_stop:
        _stop, _since = number, time.monotonic()
        raise TerminatedError if number == signal.SIGTERM else KeyboardInterrupt


def _raise_again(hook: Callable[[Any], Any], ignored: Any) -> None:
    """A stop that came where Python lets no error out, as in `__del__` and in callbacks of imports, comes again."""
    global _since
    if _phase != "working" or _stop is None or not issubclass(ignored.exc_type, KeyboardInterrupt):
        hook(ignored)
        return
    _since = float("-inf")
    _thread.start_new_thread(_signal_soon, (_stop,))  # not threading, whose locks the main thread may hold


def _signal_soon(number: int) -> None:
    time.sleep(0.1)
    signal.raise_signal(number)


def _end_now(number: int) -> NoReturn:
    _deafen()
    try:
        if _stop is None:
            os.write(2, f"{STOPPED}.\n".encode())  # not print, which the signal may have interrupted
    finally:  # also where nobody reads it any more
        os._exit(STATUS[number if _stop is None else _stop])


def _deafen() -> None:
    """Ignore what comes now: while an interpreter is taken apart, the default handlers would end it without a word."""
    for number in STATUS:
        if signal.getsignal(number) is _hear:
            signal.signal(number, signal.SIG_IGN)
