"""`hivg get NAME`: download a model, or what the authors publish, once; every later use is offline.

hivg get official:base-mixup
hivg get official:annotations
hivg get official:base-mixup --file Downloads/mixup_pretraining_base.zip
"""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from hivg_hf.conversion.published import ANNOTATIONS, OFFICIAL_NAMES, PREFIX, PUBLISHED_FILES

from . import run_verb, say, terminal


def get(
    name: Annotated[
        str,
        typer.Argument(
            help="official:base-mixup, official:annotations, a Hub id, ... Omit it to list the official names."
        ),
    ] = "",
    file: Annotated[
        Path | None, typer.Option(help="The published file of an official name, if you downloaded it by hand.")
    ] = None,
) -> None:
    """Download and convert a model once and print its folder; from then on its name works offline everywhere."""
    from hivg_hf.hub import download_checked, open_official, resolve_model

    if not name:
        return _list()
    if name.startswith(PREFIX):
        folder = open_official(name.removeprefix(PREFIX), file)
    elif file is not None:
        raise ValueError(f"--file goes with an official name such as official:base-mixup, not with {name!r}.")
    else:
        folder = download_checked(resolve_model(name))
    say(f"{name}: {folder.resolve()}")
    if name == PREFIX + ANNOTATIONS:
        say(f"Use them: hivg evaluate --data unc --option root={folder} --option images=PICTURES ...")
    elif name.startswith(PREFIX) and name.endswith("-clip"):
        say(f"Train it: hivg train --data TABLE --images PICTURES --base {name}")
    else:
        say(f"Try it: hivg ground street.jpg 'the man in blue' --model {name}")


def _list() -> None:
    """The names that the authors' files stand behind, with what is downloaded for each."""
    table = Table(title="Published by the authors of HiVG, on Google Drive")
    for heading in ("name", "download", "file"):
        table.add_column(heading, justify="right" if heading == "download" else "left")
    for name, key in OFFICIAL_NAMES.items():
        table.add_row(PREFIX + name, f"{PUBLISHED_FILES[key].size / 1e9:.2f} GB", key)
    terminal(soft_wrap=True).print(table)


def main() -> None:
    run_verb("get")
