"""What a teacher found, one JSON line per picture, so that a run that was cut short resumes.

Only the teacher's work is kept here: expressions are written from it anew every time, which takes seconds, so that
other templates need no second run of the teacher.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any


class FoundObjects:
    """The file `objects.jsonl` of a label folder.

    A line is `{"image", "size_bytes", "settings", "width", "height", "objects": [...]}` or, for a picture that could
    not be used, `{"image", "settings", "error"}`, which is tried again. A last line that a killed process left
    unfinished is cut off.

    Args:
        path: the file.
        settings: of the teacher; what was found with others cannot be mixed with them.

    Raises:
        ValueError: the file was made with other settings.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path, self.settings = path, dict(settings)
        self._rows: dict[str, dict[str, Any]] = {}
        self._file: IO[str] | None = None
        if path.exists():
            self._read()

    def done(self, image: str, size_bytes: int | None) -> dict[str, Any] | None:
        """What was found in a picture, None where it was not asked, failed, or was replaced by one of another size."""
        row = self._rows.get(image)
        return row if row is not None and "objects" in row and row["size_bytes"] == size_bytes else None

    def add(self, row: dict[str, Any]) -> None:
        """Append a row, and hand it to the operating system."""
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a", encoding="utf-8")
        self._file.write(json.dumps({**row, "settings": self.settings}, ensure_ascii=False) + "\n")
        self._file.flush()
        self._rows[row["image"]] = row

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _read(self) -> None:
        whole = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    break
                whole += len(line)
                try:
                    row = json.loads(line)
                except ValueError:
                    raise ValueError(
                        f"{self.path} (line {number}) is not JSON: delete the file to start over."
                    ) from None
                if row.get("settings") != self.settings:
                    self._refuse(number, row.get("settings"))
                self._rows[row["image"]] = row
        if whole < self.path.stat().st_size:
            with self.path.open("rb+") as file:
                file.truncate(whole)

    def _refuse(self, number: int, other: Any) -> None:
        other = other if isinstance(other, dict) else {}
        changed = sorted(key for key in {*self.settings, *other} if self.settings.get(key) != other.get(key))
        before, now = ({key: values.get(key) for key in changed} for values in (other, self.settings))
        raise ValueError(
            f"{self.path} (line {number}) was made with {before}, and now {now} was asked for: choose another folder "
            "for the labels, or delete that file to ask the teacher again."
        )
