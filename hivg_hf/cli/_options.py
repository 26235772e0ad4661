"""Options that several verbs have: how a model is loaded, and how data is read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

Device = Annotated[str | None, typer.Option(help="cpu, cuda:0, ... Default: an accelerator if there is one.")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16. Default: the checkpoint's.")]
Backend = Annotated[str, typer.Option(help="torch, or onnx: onnxruntime on the CPU, where it is faster.")]
Precision = Annotated[
    str | None, typer.Option(help="fp32, bf16 (torch) or int8 (onnx). Default: the checkpoint's; fp32 in onnx.")
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run the code that a Hub repository brings.")
]
ReduceJpeg = Annotated[
    bool,
    typer.Option("--reduce-jpeg", help="Decode large JPEGs at a reduced scale: much faster, a little less exact."),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Do not say what the default model knows.")]
Column = Annotated[
    list[str] | None,
    typer.Option(help="How a table calls a column of ours, as in expression=caption; may be given again."),
]
ReaderOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Option of the data's reader, KEY=VALUE, as in root=/data or several=apart; may be given again."
    ),
]
Images = Annotated[list[Path] | None, typer.Option(help="Folder of the pictures; may be given again.")]
BoxFormat = Annotated[str | None, typer.Option(help="What the boxes of a table mean, as in xyxy.")]


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
