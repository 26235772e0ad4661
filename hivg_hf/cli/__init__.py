"""The `hivg` command: one file per verb in this folder, imported when its verb is called.

A verb `v` is a function `v` in `hivg_hf/cli/v.py` whose parameters typer reads; `main` of that file is
`run_verb("v")`, so that a script and the command are the same parser and the same function.
"""

import functools
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Any, NoReturn

import typer
from huggingface_hub.errors import StrictDataclassError
from typer.core import TyperCommand, TyperGroup

from hivg_hf.utils.inert import printable
from hivg_hf.utils.plugins import find_plugin, plugin_names
from hivg_hf.utils.stops import STATUS, STOPPED, stop_heard, stops_raised
from hivg_hf.utils.version import __version__

from ._habits import habits_named, meant_verb
from ._options import in_shell_words, running

# verb: (where its function is, one line for `hivg --help`). The lines stand here so that the help imports no torch.
VERBS = {
    "get": ("hivg_hf.cli.get:get", "Download a model, or what the authors of HiVG publish, once."),
    "ground": ("hivg_hf.cli.ground:ground", "Find what expressions name in a picture, and draw it."),
    "video": ("hivg_hf.cli.video:video", "Find what expressions name in every frame of a video, and draw it."),
    "ground-dataset": (
        "hivg_hf.cli.ground_dataset:ground_dataset",
        "Find what every row of a table names, and write Parquet.",
    ),
    "train": ("hivg_hf.cli.train:train", "Train a model by a recipe; the same command again resumes the run."),
    "label": ("hivg_hf.cli.label:label", "Find objects in pictures without labels, and write expressions for them."),
    "survey": ("hivg_hf.cli.survey:survey", "Look at a dataset: counts, faults, shared images, contact sheets."),
    "recipes": ("hivg_hf.cli.recipes:recipes", "List, show and copy the training recipes that ship."),
    "evaluate": ("hivg_hf.cli.evaluate:evaluate", "Measure a checkpoint on a dataset and write a results file."),
    "calibrate": (
        "hivg_hf.cli.calibrate:calibrate",
        "Fit a model's score to the chance that its box is right, and its threshold.",
    ),
    "convert-data": ("hivg_hf.cli.convert_data:convert_data", "Read data in any format and write it in another."),
    "clean": ("hivg_hf.cli.clean:clean", "Rank rows whose labels look wrong, for review."),
    "convert": ("hivg_hf.cli.convert:convert", "Convert an official checkpoint file to a model folder."),
    "export": ("hivg_hf.cli.export:export", "Write a model for other runtimes."),
    "push": ("hivg_hf.cli.push:push", "Upload a model folder to the Hub in one commit, and load it back."),
    "demo": ("hivg_hf.cli.demo:demo", "Serve a web page to try a model on pictures."),
}

# What a user can cause and fix. Anything else is a fault of ours, and its traceback is what we need to see.
# StrictDataclassError wraps the refusal of a config in the name of its check; the sentence is its cause.
USER_ERRORS = (ValueError, TypeError, OSError, ImportError, RuntimeError, StrictDataclassError)

HELP = {"help_option_names": ["-h", "--help"]}

PLUGINS = "hivg_hf.verbs"  # the entry points by which other packages add verbs

EXIT_STATUS_ON_ERROR = 2
EXIT_STATUS_SOME_FAILED = 1  # of several inputs; the others were answered
RESUMING = ("train", "ground", "ground-dataset", "label", "get", "push")  # verbs that keep what is done

MODEL_NAMES = "tiny, official:base-mixup, a model or run folder, or a Hub id."
Model = Annotated[str, typer.Option(help=f"{MODEL_NAMES} Default: tiny, which knows rendered shapes only.")]
TINY_KNOWS = "the model tiny knows rendered shapes only; for photos: {option} official:base-mixup"
_noted: list[str] = []


class LazyGroup(TyperGroup):
    """A group of verbs that imports the one that is called, and turns its errors and stops into one sentence."""

    verb = ""  # that is called, once the words have said it

    def list_commands(self, ctx: Any) -> list[str]:
        return [*VERBS, *(name for name in plugin_names(PLUGINS) if name not in VERBS)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A nameplate of the verb, enough for the help; `resolve_command` returns the verb itself."""
        if cmd_name in VERBS:
            return TyperCommand(cmd_name, help=VERBS[cmd_name][1])
        known = cmd_name in plugin_names(PLUGINS)
        return TyperCommand(cmd_name, help="A verb of another installed package.") if known else None

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        verbs = self.list_commands(ctx)
        if args and args[0] not in verbs and not args[0].startswith("-") and (meant := meant_verb(args[0], verbs)):
            ctx.fail(f"No such command '{args[0]}': here it is hivg {meant}.")
        verb, command, rest = super().resolve_command(ctx, args)
        self.verb = verb or ""
        return verb, _load_verb(verb) if verb in verbs else command, rest

    def main(self, *args: Any, **options: Any) -> Any:
        """Run the words; however a library ends what a signal interrupts, the command was stopped."""
        try:
            with stops_raised():
                return super().main(*args, **options)
        except BaseException as ended:
            stop = stop_heard()
            if stop is None and getattr(ended, "code", None) == STATUS[signal.SIGINT]:  # typer's, of KeyboardInterrupt
                stop = signal.SIGINT
            if stop is None:
                raise
        self._stopped(stop)

    def _stopped(self, stop: int) -> NoReturn:
        with suppress(OSError):  # the terminal may be gone
            say(f"{STOPPED}{'; the same command resumes.' if self.verb in RESUMING else '.'}", err=True)
        sys.exit(STATUS[stop])

    def invoke(self, ctx: Any) -> Any:
        try:
            with habits_named():
                return super().invoke(ctx)
        except BrokenPipeError:  # the reader of a pipe left, as `head` does; click ends the process quietly
            raise
        except (typer.Exit, typer.Abort):  # RuntimeErrors by ancestry, but a verb's own way of ending
            raise
        except USER_ERRORS as error:
            if os.environ.get("HIVG_TRACEBACK") or stop_heard() is not None:
                raise
            cause = error.__cause__ or error if isinstance(error, StrictDataclassError) else error
            say(f"hivg: {in_shell_words(str(cause).strip()) or type(cause).__name__}", err=True)
            raise typer.Exit(EXIT_STATUS_ON_ERROR) from None


app = typer.Typer(
    name="hivg",
    cls=LazyGroup,
    help="Visual grounding: an expression and an image in, one box out. HIVG_TRACEBACK=1 shows where an error arose.",
    no_args_is_help=True,
    context_settings=HELP,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        say(f"hivg_hf {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Keep `app` a group; the verbs come from the table."""


def main(args: Sequence[str] | None = None) -> None:
    """Run the `hivg` command.

    Args:
        args: the words after `hivg`; the process's own by default.

    Raises:
        SystemExit: always; status 0 on success, 2 after an error that the user can fix, 130 and 143 after a stop.
    """
    app(args=None if args is None else list(args), prog_name="hivg")


def say(text: str, err: bool = False, nl: bool = True) -> None:
    """Print a line; what steers a terminal is shown and not obeyed, since names and expressions are strangers'."""
    typer.echo(printable(text), err=err, nl=nl)


def terminal(**options: Any) -> Any:
    """A console of rich for tables, to which words are words: no markup, and nothing that steers a terminal."""
    from rich.console import Console  # a tenth of a second, which most verbs do not need

    class PlainConsole(Console):
        def render_str(self, text: str, **how: Any) -> Any:
            return super().render_str(printable(text), **{**how, "markup": False, "emoji": False})

    return PlainConsole(**options)


def note_what_tiny_knows(model: str, option: str = "--model", quiet: bool = False) -> None:
    """One line on stderr, once per process, where the model is the one in the package, whatever it is called."""
    from hivg_hf.hub import is_tiny

    if quiet or _noted or not is_tiny(model):
        return
    _noted.append(model)
    say(f"hivg: {TINY_KNOWS.format(option=option)}", err=True)


def run_verb(verb: str) -> None:
    """Run one verb with the process's own arguments; `scripts/VERB.py` calls this through `hivg_hf.cli.VERB.main`."""
    main([verb, *sys.argv[1:]])


def _load_verb(verb: str) -> Any:
    """Import a verb's function and make typer's command of it."""
    if verb in VERBS:
        module_name, _, function_name = VERBS[verb][0].partition(":")
        function = getattr(importlib.import_module(module_name), function_name)
    else:
        function = find_plugin(PLUGINS, verb)

    @functools.wraps(function)
    def run(*args: Any, **options: Any) -> Any:
        sys.modules["hivg_hf"].register()  # the words have passed, the work begins
        running(command, options)
        return function(*args, **options)

    single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    single.command(name=verb, context_settings=HELP)(run)
    command = typer.main.get_command(single)
    return command
