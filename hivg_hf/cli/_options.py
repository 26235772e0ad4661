"""Options that several verbs have, how a model is loaded and how data is read; and messages in their words."""

import re
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any

import typer


def _checked_device(name: str | None) -> str | None:
    if name is None:
        return None
    from hivg_hf.utils.devices import find_device  # imports torch

    return find_device(name)


Device = Annotated[
    str | None,
    typer.Option(callback=_checked_device, help="cpu, cuda:0, ... Default: an accelerator if there is one."),
]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16. Default: the checkpoint's.")]
Backend = Annotated[str, typer.Option(help="torch, or onnx: onnxruntime on the CPU, where it is faster.")]
Precision = Annotated[
    str | None, typer.Option(help="fp32, bf16 (torch) or int8 (onnx). Default: the checkpoint's; fp32 in onnx.")
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run the code in the model's Hub repository.")
]
ReduceJpeg = Annotated[
    bool,
    typer.Option("--reduce-jpeg", help="Decode large JPEGs at a reduced scale: much faster, a little less exact."),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Omit the note on what the default model knows.")]
Column = Annotated[
    list[str] | None,
    typer.Option(help="What your table calls one of our columns, such as expression=caption; repeatable."),
]
ReaderOption = Annotated[
    list[str] | None,
    typer.Option(help="Option of the data's reader, KEY=VALUE, such as root=/data or several=apart; repeatable."),
]
Images = Annotated[list[Path] | None, typer.Option(help="Folder of the pictures; repeatable.")]
BoxFormat = Annotated[str | None, typer.Option(help="What the boxes of a table mean: xyxy, xywh or cxcywh.")]
Seed = Annotated[int | None, typer.Option(help="Seed of generated data (RefShapes).")]
Size = Annotated[int | None, typer.Option(help="Rows of generated data per split.")]


def reader_options(
    option: Sequence[str] | None = None,
    column: Sequence[str] | None = None,
    images: Sequence[Path] | None = None,
    box_format: str | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Arguments of `load_grounding_dataset` from those of a command line; `more` are a verb's own, None if not given.

    Raises:
        ValueError: a pair has no "=", or an option is given twice.
    """
    from hivg_hf.utils.strict_mapping import read_options

    options = read_options(option or [], "--option")
    named = {
        "images": [str(folder) for folder in images] if images else None,
        "box_format": box_format,
        **more,
        "columns": read_options(column or [], "--column", as_text=True) or None,
    }
    twice = [name for name, value in named.items() if value is not None and name in options]
    if twice:
        raise ValueError(f"--option gives {', '.join(twice)}, which another argument gives too; give one of them.")
    return {**options, **{name: value for name, value in named.items() if value is not None}}


HELD_OUT = "held-out"


def named_rows(model: str, data: str | None, split: str, options: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
    """Source, split and reader options of the rows that a verb asks a model about: named, or held out by its run.

    Raises:
        ValueError: neither is said, or both; or the model is not a run that held rows out.
    """
    if split == HELD_OUT:
        from hivg_hf.evaluation.sources import held_out_rows

        if data is not None or options:
            raise ValueError(f"--split {HELD_OUT} reads what the run {model} held out: omit --data and its options.")
        return held_out_rows(model)
    if data is None:
        raise ValueError(f"Name the rows with --data, or give the folder of a run as model and --split {HELD_OUT}.")
    return data, split, options


# `box_format='xyxy'`, `root=`, `allow_urls=True`, but nothing inside a path (`split=train/part-0.parquet`).
_ARGUMENT = re.compile(
    r"""(?<![\w./=-])(?P<name>[a-z][a-z_]*)=(?P<value>'[^'\n]*'|"[^"\n]*"|\{[^{}\n]*\}|[\w.+-]*\w|(?!\w))(?![\w/=])"""
)
_PAIR = re.compile(r"""['"](\w+)['"]: (['"][^'"]*['"]|\.\.\.)""")
_running: ContextVar[tuple[Any, Mapping[str, Any]] | None] = ContextVar("_running", default=None)


def running(command: Any, given: Mapping[str, Any]) -> None:
    """The verb that runs from now on, and what it was given: in its words messages are printed."""
    _running.set((command, given))


def in_shell_words(message: str) -> str:
    """A message of the library, which names settings as Python does, in the words of the verb that runs.

    Everywhere below `cli` a setting is written `name='value'`. That becomes the verb's own option (`--name value`),
    an option of the reader (`--option name=value`) or, where a recipe runs, its key (`name: value`); names that are
    none of these stay.
    """
    if (verb := _running.get()) is None:
        return message
    command, given = verb
    options = {one.name: one for one in command.params if one.param_type_name == "option"}
    if "split" not in options and any("SOURCE:SPLIT" in str(one.metavar) for one in command.params):
        message = re.sub(r"\bsplit='(\w+)'", r"SOURCE:\1", message)  # of `hivg survey`
    return _ARGUMENT.sub(lambda found: _in_words_of(options, given, found) or found[0], message)


def _in_words_of(options: Mapping[str, Any], given: Mapping[str, Any], found: re.Match[str]) -> str:
    name, value = found["name"], found["value"]
    value = value.lower() if value in ("True", "False") else _unquoted(value)
    if name in options and options[name].is_flag:
        return (options[name].secondary_opts if value == "false" else options[name].opts)[0]
    if given.get("recipe") and not given.get("data") and name in _reader_names():
        return f"{name}: {value or '...'}"
    if name == "columns" and "column" in options:
        pairs = _PAIR.findall(found["value"])
        return " ".join(f"--column {ours}={_unquoted(theirs)}" for ours, theirs in pairs) or "--column"
    if name in options:
        return f"{options[name].opts[0]} {value}".rstrip()
    if "option" in options and name in _reader_names():
        return f"--option {name}={value or '...'}"
    return ""


def _unquoted(value: str) -> str:
    """A value without the quotes that a shell does not need."""
    return value if " " in value else value.strip("'\"")


def _reader_names() -> set[str]:
    """The options of `load_grounding_dataset` and of every reader."""
    import inspect

    from hivg_hf.data import load_grounding_dataset
    from hivg_hf.data.readers import FORMATS, SOURCES

    readers = [
        load_grounding_dataset,
        *{source.reader: source.load() for source in [*SOURCES.values(), *FORMATS.values()]}.values(),
    ]
    return {"format", *(name for reader in readers for name in inspect.signature(reader).parameters)} - {
        "source",
        "split",
    }
