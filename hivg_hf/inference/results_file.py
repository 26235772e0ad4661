"""The answers of `hivg ground` on disk: JSON Lines from which a stopped run resumes."""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

from hivg_hf.utils.atomic import full_disk_named
from hivg_hf.utils.held_folder import folder_lock, sweep_leftovers

from .files import Question


class ResultsFile:
    """JSON Lines, one per image, appended as answers come; what is already there need not be asked again.

    A line counts as done when image (its file's time of change, too), expressions, model, weights and options are the
    same and its picture still exists, which no later line drew over. Lines of images that failed are kept as a record
    and tried again. A last line that a killed process left unfinished is cut off.

    Args:
        path: the file.
        model: what the model is called.
        weights: what tells its weights from others of that name; None where nothing does.
        multiple: whether every box was asked for.
        options: what else shapes the answers, as JSON; what is None or False counts as not given.
    """

    def __init__(
        self,
        path: Path,
        model: str,
        weights: str | None = None,
        multiple: bool = False,
        options: Mapping[str, Any] | None = None,
    ):
        self.path = path
        self.model = model
        self.weights = weights
        self.multiple = multiple
        given = (options or {}).items()
        self.options = {name: value for name, value in given if value is not None and value is not False}
        self._held = ExitStack()
        self._check: Callable[[], None] = lambda: None
        self._done: dict[tuple[str, tuple[str, ...]], dict[str, Any]] = {}
        self._drawn: dict[str, dict[str, Any]] = {}  # by picture, the last row that drew it
        self._file: IO[str] | None = None
        if path.exists():
            self._read()

    @classmethod
    def hold(cls, path: Path, *args: Any, **kwargs: Any) -> "ResultsFile":
        """The same for one process alone, until it is closed; what a killed one left half written is swept away.

        Raises:
            RuntimeError: another process writes to the file's folder.
            OSError: the folder cannot be written.
        """
        with ExitStack() as held:
            check = held.enter_context(folder_lock(path.parent, "writing to"))
            sweep_leftovers(path.parent)
            file = cls(path, *args, **kwargs)
            file._check, file._held = check, held.pop_all()
        return file

    def is_done(self, question: Question, needs_picture: bool) -> bool:
        row = self._done.get((question.image, _once(question.expressions)))
        if row is None or (row.get("model"), row.get("multiple", False)) != (self.model, self.multiple):
            return False
        if self.weights is not None and row.get("weights", self.weights) != self.weights:
            return False  # the folder of that name holds another model by now
        if row.get("options", {}) != self.options:
            return False
        modified = _time_of_change(question.image)
        if modified is not None and row.get("modified", modified) != modified:
            return False  # another picture has its name by now
        picture = row.get("picture")
        return not needs_picture or (
            picture is not None and os.path.exists(picture) and self._drawn.get(picture) is row
        )

    def add(self, row: dict[str, Any]) -> None:
        """Append a row and hand it to the operating system, so that a killed process loses none that it added.

        Raises:
            FileNotFoundError: the folder that this process holds was deleted or replaced.
            DiskFullError: there is no room for the row.
        """
        self._check()
        marks = {"model": self.model, "weights": self.weights, "multiple": self.multiple, "options": self.options}
        marks["modified"] = _time_of_change(row["image"])
        row = {**row, **{name: value for name, value in marks.items() if value}}
        with full_disk_named(self.path):
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self.path.open("a", encoding="utf-8")
            self._file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
            self._file.flush()

    def close(self) -> None:
        self._held.close()
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
                    expressions = _once(result["expression"] for result in row["results"])
                    self._done[(row["image"], expressions)] = row
                    self._drawn[row.get("picture")] = row
        if whole < self.path.stat().st_size:
            with self.path.open("rb+") as file:
                file.truncate(whole)


def _time_of_change(image: str) -> int | None:
    """Of a file, in nanoseconds; None of what is not one here, such as a URL."""
    try:
        return os.stat(image).st_mtime_ns
    except (OSError, ValueError):
        return None


def _once(expressions: Iterable[str]) -> tuple[str, ...]:
    """Each expression once: it has as many results as boxes were found."""
    return tuple(dict.fromkeys(expressions))
