"""The code blocks of the README and of docs/*.md, and a program that runs a page as a reader would.

A comment above a block changes what is done with it: `<!-- not run: REASON -->`, `<!-- file: NAME -->` (write it to a
file), and `<!-- test adds: OPTIONS -->` or `<!-- test adds to VERB: OPTIONS -->` (for commands, what only tests need).

    PYTHONPATH=tests python -m helpers.pages README.md docs/fine-tune.md    # in the folder that the pages work in
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

BLOCK = re.compile(r"(?:<!-- (?P<note>[^\n]+?) -->\n)?```(?P<language>\w+)\n(?P<code>.*?)```", re.DOTALL)
NOT_RUN, FILE = "not run: ", "file: "
DOCS = Path(__file__).parents[2] / "docs"


class Block(NamedTuple):
    note: str
    language: str
    code: str
    line: int


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page in order."""
    text = page.read_text(encoding="utf-8")
    for match in BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("code"))
        yield Block(match["note"] or "", match["language"], match["code"], line)


def run_page(page: Path) -> None:
    """Run a page's Python in this process and its commands in a shell; the first that fails ends the program."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page):
        if block.note.startswith(NOT_RUN):
            continue
        if block.note.startswith(FILE):
            Path(block.note.removeprefix(FILE)).write_text(block.code, encoding="utf-8")
        elif block.language == "python":
            print(f"\n>>> {page.name}, line {block.line + 1}\n{block.code}", flush=True)
            exec(compile("\n" * block.line + block.code, str(page), "exec"), names)
        elif block.language == "bash":
            for command in filter(None, map(str.strip, block.code.splitlines())):
                print(f"\n$ {command}", flush=True)
                subprocess.run(["bash", "-c", command], check=True)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        run_page(Path(name))
