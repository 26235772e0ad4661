"""What `hivg ground` says, draws and records of its answers."""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from hivg_hf.inference import answer_as_json
from hivg_hf.inference.files import Question
from hivg_hf.inference.pictures import Asker, PictureWriter
from hivg_hf.inference.results_file import ResultsFile
from hivg_hf.modeling.processing_hivg import ExpressionCutWarning, SeveralPhrasesWarning
from hivg_hf.utils.inert import printable

from ._options import in_shell_words


class Report:
    """Prints, draws and records answers as they come, and counts.

    Args:
        results: the file that answers are added to and that says what is done; None keeps none.
        writer: draws them; None draws nothing.
        as_json: print JSON Lines in place of text.
        single: there is one image, so neither progress nor a summary is shown.
        threshold: what scores were compared with, if anything.
    """

    def __init__(
        self,
        results: ResultsFile | None,
        writer: PictureWriter | None,
        as_json: bool,
        single: bool,
        threshold: float | None = None,
    ) -> None:
        self.results = results
        self.writer = writer
        self.as_json = as_json
        self.single = single
        self.threshold = threshold
        self.answered = self.failed = self.skipped = 0

    def not_done(self, questions: list[Question]) -> list[Question]:
        """The questions that an earlier run into the same folder has not answered."""
        if self.results is None:
            return questions
        left = [question for question in questions if not self.results.is_done(question, self.writer is not None)]
        self.skipped = len(questions) - len(left)
        return left

    def usable(self, questions: Iterator[Question | ValueError]) -> Iterator[Question]:
        """Questions of a stream that can and need be asked; lines that cannot be read are reported."""
        for question in questions:
            if isinstance(question, ValueError):
                self._fail(str(question))
            elif self.not_done([question]):
                yield question

    def follow(self, asker: Asker, questions: Any) -> None:
        """Ask, and report each answer as it comes."""
        total = len(questions) if isinstance(questions, list) else None
        start = time.monotonic()
        with tqdm(total=total, unit=" images", disable=self.single, file=sys.stderr) as bar:
            try:
                for question, answer in asker.ask(questions):
                    self._take(asker, question, answer)
                    bar.update()
            finally:
                if self.results is not None:
                    self.results.close()
        if not self.single:
            self._summarize(time.monotonic() - start)

    def _take(self, asker: Asker, question: Question, answer: dict[str, Any]) -> None:
        row: dict[str, Any] = {"image": question.image}
        if "results" in answer and (self.as_json or self.results is not None):
            try:
                row["results"] = [answer_as_json(result) for result in answer["results"]]
            except ValueError as error:
                answer = {"error": str(error)}
        if "error" in answer:
            row |= answer
            self._fail(answer["error"])
        else:
            self.answered += 1
            drawn = self.writer.write(question, asker.local_image(question), answer["results"]) if self.writer else []
            if self.as_json or self.results is not None:
                row["picture"] = str(drawn[0]) if drawn else None
            if not self.as_json:
                tqdm.write(printable(_as_text(question, answer["results"], drawn, self.threshold)), file=sys.stdout)
        if self.as_json:
            tqdm.write(printable(json.dumps(row, ensure_ascii=False, allow_nan=False)), file=sys.stdout)
        if self.results is not None:
            self.results.add(row)

    def _fail(self, sentence: str) -> None:
        self.failed += 1
        tqdm.write(printable(f"hivg: {in_shell_words(sentence)}"), file=sys.stderr)

    def _summarize(self, seconds: float) -> None:
        counts = f"{self.answered} images in {seconds:.1f} s ({self.answered / max(seconds, 1e-9):.1f} images/s)"
        more = [f"{self.failed} failed"] if self.failed else []
        more += [f"{self.skipped} were done before"] if self.skipped else []
        place = f"; results in {self.results.path.resolve()}" if self.results is not None else ""
        tqdm.write(printable(f"hivg: {', '.join([counts, *more])}{place}"), file=sys.stderr)


def _as_text(
    question: Question, results: Sequence[dict[str, Any]], drawn: Sequence[Path], threshold: float | None
) -> str:
    lines = [question.image]
    for result in results:
        if not result.get("found", True):
            scores = f"score {result['score']:.2f}, threshold {threshold:.2f}"
            lines.append(f"  not found ({scores})  {result['expression']}")
            continue
        box = "  ".join(f"{side} {value:7.1f}" for side, value in result["box"].items())
        score = "  --" if result["score"] is None else f"{result['score']:.2f}"
        lines.append(f"  {score}  {box}  {result['expression']}")
    return "\n".join([*lines, *(f"  wrote {path}" for path in drawn)])


def print_warnings_as_lines() -> None:
    """Print warnings about expressions as plain lines: where in our code they arose says nothing to a user."""
    show_others = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if issubclass(category, (ExpressionCutWarning, SeveralPhrasesWarning)):
            tqdm.write(printable(f"hivg: {in_shell_words(str(message))}"), file=sys.stderr)
        else:
            show_others(message, category, *place, **more)

    warnings.showwarning = show
