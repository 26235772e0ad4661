"""What the verbs share that read data: `--images`, `--box-format`, `--column` and `--option` as reader options."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

COLUMN_HELP = "How a table calls a column of ours, as in expression=caption; may be given again."
OPTION_HELP = "Option of the data's reader, KEY=VALUE, as in root=/data or several=apart; may be given again."


def reader_options(
    option: Sequence[str] | None = None,
    column: Sequence[str] | None = None,
    images: Sequence[Path] | None = None,
    box_format: str | None = None,
) -> dict[str, Any]:
    """Arguments of `load_grounding_dataset` from those of a command line.

    Raises:
        ValueError: a pair has no "=", or an option is given twice.
    """
    from hivg_hf.utils.strict_mapping import read_options

    options = read_options(option or [], "--option")
    named = {
        "images": [str(folder) for folder in images] if images else None,
        "box_format": box_format,
        "columns": {ours: str(theirs) for ours, theirs in read_options(column or [], "--column").items()} or None,
    }
    twice = [name for name, value in named.items() if value is not None and name in options]
    if twice:
        raise ValueError(f"--option gives {', '.join(twice)}, which another argument gives too; give one of them.")
    return {**options, **{name: value for name, value in named.items() if value is not None}}
