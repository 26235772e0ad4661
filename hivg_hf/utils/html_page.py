"""Pages of HTML that are one file and open without a network."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .atomic import atomic_path

_NOTHING_BESIDE = (
    '<meta http-equiv="Content-Security-Policy" '
    "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
)
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
{policy}<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --line: #8884; }}
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 1.5rem auto; max-width: {width}rem; padding: 0 1rem; }}
h1 {{ font-size: 1.4rem; margin: 0 0 .3rem; }}
h2 {{ font-size: 1.1rem; margin: 2rem 0 .6rem; }}
.wide {{ overflow-x: auto; }}
{style}
</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""


def write_page(
    path: str | Path, title: str, body: str, style: str = "", width: int = 80, *, stands_alone: bool = True
) -> None:
    """Write a page, whole or not at all.

    Args:
        path: The file.
        title: Plain text, also the heading.
        body: HTML below the heading.
        style: CSS beside the common one.
        width: Of the text, in rem.
        stands_alone: Everything is in the page, so that browsers may refuse to run or load anything.
    """
    page = _PAGE.format(
        policy=_NOTHING_BESIDE if stands_alone else "", title=html.escape(title), body=body, style=style, width=width
    )
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def html_table(head: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    """A table of plain texts and numbers, whose cells have the class `n`; on a narrow screen it scrolls by itself."""

    def cell(value: Any) -> str:
        is_number = isinstance(value, (int, float))
        return f'<td class="n">{value:,}</td>' if is_number else f"<td>{html.escape(str(value))}</td>"

    top = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(map(cell, line)) + "</tr>" for line in lines)
    return f'<div class="wide"><table><tr>{top}</tr>{body}</table></div>'
