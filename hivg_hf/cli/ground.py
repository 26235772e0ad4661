"""`hivg ground`: find what expressions name in images, print it, draw it.

    hivg ground street.jpg "the man in blue" "the dog"
    hivg ground photos/ "the man in blue" --out grounded
    hivg ground 'photos/**/*.jpg' "the dog" --json > found.jsonl
    producer | hivg ground - --out grounded

Exit status: 0 all answered, 1 some images could not be used, 2 nothing could be done.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from tqdm import tqdm

from hivg_hf.hub import DEFAULT_MODEL
from hivg_hf.utils.imports import require_package
from hivg_hf.utils.inert import printable

from . import EXIT_STATUS_ON_ERROR, MODEL_NAMES, note_what_tiny_knows, run_verb

if TYPE_CHECKING:
    from hivg_hf.inference.files import Question, ResultsFile
    from hivg_hf.inference.pictures import Asker, PictureWriter

EXIT_STATUS_SOME_FAILED = 1
RESULTS_NAME = "results.jsonl"


def ground(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE EXPRESSION...",
            help="An image file, folder, URL or quoted pattern, then what to find in it. '-' as the image reads JSON "
            'Lines from standard input, {"image": ..., "expressions": [...]}. Further existing image files may '
            "stand before the expressions, as a shell writes them for an unquoted pattern.",
        ),
    ],
    model: Annotated[
        str, typer.Option(help=f"{MODEL_NAMES} Default: {DEFAULT_MODEL}, which knows rendered shapes only.")
    ] = "",
    zero_shot: Annotated[
        str,
        typer.Option(
            metavar="CLIP",
            help="Folder or Hub id of a plain CLIP that answers without training, in place of --model. Far weaker "
            "than a trained model: docs/zero-shot.md.",
        ),
    ] = "",
    proposals: Annotated[
        str,
        typer.Option(
            metavar="DETECTOR",
            help="With --zero-shot: zero-shot detector whose boxes CLIP chooses from, or 'components' for drawings on "
            "plain ground. Default: the box comes from CLIP's own map.",
        ),
    ] = "",
    out: Annotated[
        Path | None,
        typer.Option(
            help="For one image the picture to write, else a folder for pictures and results.jsonl. A run that is "
            "started again with the same folder leaves out what is done. "
            "Default: NAME.grounded.png, or the folder 'grounded'."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON Lines, one per image, and nothing else.")
    ] = False,
    no_pictures: Annotated[bool, typer.Option("--no-pictures", help="Draw nothing; answers only.")] = False,
    mask: Annotated[bool, typer.Option("--mask", help="Find the object's pixels too, not only its box.")] = False,
    heatmap: Annotated[
        bool, typer.Option("--heatmap", help="Also draw how similar each place is to the expression.")
    ] = False,
    layers: Annotated[bool, typer.Option("--layers", help="Also draw which words each bridge reads where.")] = False,
    threshold: Annotated[
        float | None, typer.Option(help="Scores below it mean 'not found'; docs/scores.md helps to choose it.")
    ] = None,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Search folders to their depth.")] = False,
    batch_size: Annotated[int, typer.Option(help="Pairs of image and expression per pass.", min=1)] = 8,
    num_workers: Annotated[int, typer.Option(help="Processes that open images beside the model.", min=0)] = 0,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda:0, ... Default: an accelerator if there is one.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16. Default: the checkpoint's.")] = None,
    backend: Annotated[
        str, typer.Option(help="torch, or onnx: onnxruntime on the CPU, where it is faster.")
    ] = "torch",
    precision: Annotated[
        str | None, typer.Option(help="fp32, bf16 (torch) or int8 (onnx). Default: the checkpoint's; fp32 in onnx.")
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the code that a Hub repository brings.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Do not say what the default model knows.")] = False,
) -> None:
    """Find what expressions name in images: prints boxes in pixels and scores, and draws them."""
    from hivg_hf.inference import load_pipeline
    from hivg_hf.inference.files import (
        IMAGE_SUFFIXES,
        Question,
        ResultsFile,
        find_images,
        read_questions,
        split_images_and_expressions,
    )
    from hivg_hf.inference.pictures import Asker, PictureWriter

    if no_pictures and (heatmap or layers):
        raise ValueError(f"{'--heatmap' if heatmap else '--layers'} draws pictures: omit it, or omit --no-pictures.")
    if layers and backend != "torch":
        raise ValueError("--layers draws what the torch backend records: omit it, or omit --backend onnx.")
    images, expressions = split_images_and_expressions(arguments)
    from_lines = images == ["-"]
    found, single = ([], False) if from_lines else find_images(images, recursive)
    if not from_lines and not expressions:
        raise ValueError("Say what to find after the image, as in: hivg ground street.jpg 'the man in blue'")
    single = single and not (out is not None and out.is_dir())
    if out is not None and not single and out.suffix.lower() in IMAGE_SUFFIXES:
        raise ValueError(f"The answers to several images need a folder, and --out '{out}' is the name of a picture.")
    target = out or Path(f"{Path(found[0][0].partition('?')[0]).stem}.grounded.png" if single else "grounded")
    name = f"zero-shot {zero_shot} {proposals}".strip() if zero_shot else model or DEFAULT_MODEL
    keep_results = not single and (out is not None or not no_pictures)
    results = ResultsFile(target / RESULTS_NAME, name) if keep_results else None
    if mask and (as_json or keep_results):
        require_package("pycocotools", extra="data")  # writes masks as run lengths; asked for before the work begins
    if zero_shot or proposals:
        given = {
            "model": model,
            "mask": mask,
            "layers": layers,
            "dtype": dtype,
            "trust-remote-code": trust_remote_code,
            "backend": backend != "torch",
            "precision": precision,
        }
        pipe = _load_zero_shot(zero_shot, proposals, device, [f"--{name}" for name, value in given.items() if value])
    else:
        note_what_tiny_knows(name, quiet=quiet)
        pipe = load_pipeline(name, device, dtype, trust_remote_code, backend, precision)
    writer = None if no_pictures else PictureWriter(pipe, target, single, heatmap, layers)
    options = {
        "mask": mask,
        "heatmap": heatmap and writer is not None,
        "threshold": threshold,
        "batch_size": batch_size,
    }
    report = Report(results, writer, as_json, single)
    questions: Any
    if from_lines:
        questions = report.usable(read_questions(sys.stdin, expressions))
    else:
        asked = [Question(image, tuple(expressions), picture) for image, picture in found]
        questions = report.not_done(asked if single else _leave_out_pictures_of_earlier_runs(asked, images, target))
    _show_cut_expressions_as_lines()
    with Asker(pipe, num_workers, **options) as asker:
        report.follow(asker, questions)
    if report.failed:
        raise typer.Exit(EXIT_STATUS_ON_ERROR if report.answered + report.skipped == 0 else EXIT_STATUS_SOME_FAILED)


def _load_zero_shot(clip: str, proposals: str, device: str | None, refused: list[str]) -> Any:
    """A plain CLIP that answers like a pipeline; `refused` are options given that mean nothing to it."""
    from hivg_hf.zero_shot import DetectorProposals, TextDetector, ZeroShotGrounder, component_proposals

    if not clip:
        raise ValueError("--proposals belongs to --zero-shot: a trained model finds boxes by itself.")
    if refused:
        raise ValueError(f"--zero-shot does not go with {', '.join(refused)}: a plain CLIP gives boxes and heat maps.")
    source: Any = component_proposals if proposals == "components" else None
    if proposals and source is None:
        source = DetectorProposals(TextDetector.from_pretrained(proposals, device))
    return ZeroShotGrounder.from_pretrained(clip, device, proposals=source)


class Report:
    """Prints, draws and records answers as they come, and counts."""

    def __init__(self, results: ResultsFile | None, writer: PictureWriter | None, as_json: bool, single: bool):
        self.results = results
        self.writer = writer
        self.as_json = as_json
        self.single = single
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
        from hivg_hf.inference import answer_as_json

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
                tqdm.write(printable(_as_text(question, answer["results"], drawn)), file=sys.stdout)
        if self.as_json:
            tqdm.write(printable(json.dumps(row, ensure_ascii=False, allow_nan=False)), file=sys.stdout)
        if self.results is not None:
            self.results.add(row)

    def _fail(self, sentence: str) -> None:
        self.failed += 1
        tqdm.write(printable(f"hivg: {sentence}"), file=sys.stderr)

    def _summarize(self, seconds: float) -> None:
        counts = f"{self.answered} images in {seconds:.1f} s ({self.answered / max(seconds, 1e-9):.1f} images/s)"
        more = [f"{self.failed} failed"] if self.failed else []
        more += [f"{self.skipped} were done before"] if self.skipped else []
        place = f"; results in {self.results.path.resolve()}" if self.results is not None else ""
        tqdm.write(printable(f"hivg: {', '.join([counts, *more])}{place}"), file=sys.stderr)


def _leave_out_pictures_of_earlier_runs(questions: list[Question], images: list[str], folder: Path) -> list[Question]:
    """Without what lies in the output folder, where that stands in a folder that was searched."""
    from hivg_hf.inference.files import is_url

    folder = folder.resolve()
    if any(is_url(image) or Path(image).resolve().is_relative_to(folder) for image in images):
        return questions  # the images themselves lie in it, as with --out .
    return [question for question in questions if not Path(question.image).resolve().is_relative_to(folder)]


def _as_text(question: Question, results: Sequence[dict[str, Any]], drawn: Sequence[Path]) -> str:
    lines = [question.image]
    for result in results:
        box = "  ".join(f"{side} {value:7.1f}" for side, value in result["box"].items())
        score = "  --" if result["score"] is None else f"{result['score']:.2f}"
        missing = "" if result.get("found", True) else "  (not found: below the threshold)"
        lines.append(f"  {score}  {box}  {result['expression']}{missing}")
    return "\n".join([*lines, *(f"  wrote {path}" for path in drawn)])


def _show_cut_expressions_as_lines() -> None:
    """The sentence is for the reader of the terminal, to whom the place in our code that gave it says nothing."""
    from hivg_hf.modeling.processing_hivg import ExpressionCutWarning

    show_others = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if issubclass(category, ExpressionCutWarning):
            tqdm.write(printable(f"hivg: {message}"), file=sys.stderr)
        else:
            show_others(message, category, *place, **more)

    warnings.showwarning = show


def main() -> None:
    run_verb("ground")
