"""The answers of `hivg ground` on disk: JSON Lines that let a stopped run go on."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from .files import Question


class ResultsFile:
    """JSON Lines, one per image, appended as answers come; what is already there need not be asked again.

    A line counts as done when image, expressions, model and `multiple` (whether every box was asked for) are the same
    and its picture still exists. Lines of images that failed are kept as a record and tried again. A last line that a
    killed process left unfinished is cut off.
    """

    def __init__(self, path: Path, model: str, multiple: bool = False):
        self.path = path
        self.model = model
        self.multiple = multiple
        self._done: dict[tuple[str, tuple[str, ...]], dict[str, Any]] = {}
        self._file: IO[str] | None = None
        if path.exists():
            self._read()

    def is_done(self, question: Question, needs_picture: bool) -> bool:
        row = self._done.get((question.image, _once(question.expressions)))
        if row is None or (row.get("model"), row.get("multiple", False)) != (self.model, self.multiple):
            return False
        return not needs_picture or (row.get("picture") is not None and os.path.exists(row["picture"]))

    def add(self, row: dict[str, Any]) -> None:
        """Append a row and hand it to the operating system, so that a killed process loses none that it added."""
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a", encoding="utf-8")
        row = {**row, "model": self.model, **({"multiple": True} if self.multiple else {})}
        self._file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None

    def _read(self) -> None:
        whole = 0
        with self.path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                whole += len(line)
                row = json.loads(line)
                if "results" in row:
                    asked = _once(result["expression"] for result in row["results"])
                    self._done[(row["image"], asked)] = row
        if whole < self.path.stat().st_size:
            with self.path.open("rb+") as file:
                file.truncate(whole)


def _once(expressions: Iterable[str]) -> tuple[str, ...]:
    """Each expression once: it has as many results as boxes were found."""
    return tuple(dict.fromkeys(expressions))
