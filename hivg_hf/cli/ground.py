"""`hivg ground`: find what expressions name in images, print it, draw it.

    hivg ground street.jpg "the man in blue" "the dog"
    hivg ground photos/ "the man in blue" --out grounded
    hivg ground 'photos/**/*.jpg' "the dog" --json > found.jsonl
    producer | hivg ground - --out grounded

Exit status: 0 all answered, 1 some images could not be used, 2 nothing could be done.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from hivg_hf.hub import DEFAULT_MODEL
from hivg_hf.utils.imports import require_package

from . import EXIT_STATUS_ON_ERROR, EXIT_STATUS_SOME_FAILED, Model, note_what_tiny_knows, run_verb
from ._options import Backend, Device, Dtype, Precision, Quiet, ReduceJpeg, TrustRemoteCode

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
    model: Model = "",
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
            help="For one image the picture to write, else a folder for pictures and results.jsonl. Run again "
            "with the same folder, it skips what is done. "
            "Default: NAME.grounded.png, or the folder 'grounded'."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON Lines, one per image, and nothing else.")
    ] = False,
    no_pictures: Annotated[bool, typer.Option("--no-pictures", help="Print answers only; draw nothing.")] = False,
    mask: Annotated[bool, typer.Option("--mask", help="Find the object's pixels too, not only its box.")] = False,
    heatmap: Annotated[
        bool, typer.Option("--heatmap", help="Also draw how similar each place is to the expression.")
    ] = False,
    layers: Annotated[bool, typer.Option("--layers", help="Also draw which words each bridge reads where.")] = False,
    threshold: Annotated[
        float | None, typer.Option(help="Scores below it mean 'not found'; docs/scores.md says how to choose it.")
    ] = None,
    multiple: Annotated[
        bool,
        typer.Option(
            "--multiple", help="Every box that reaches the threshold (0.5 unless the model or you say otherwise)."
        ),
    ] = False,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Search subfolders too.")] = False,
    batch_size: Annotated[int, typer.Option(help="Pairs of image and expression per pass.", min=1)] = 8,
    num_workers: Annotated[int, typer.Option(help="Processes that open images beside the model.", min=0)] = 0,
    reduce_jpeg: ReduceJpeg = False,
    device: Device = None,
    dtype: Dtype = None,
    backend: Backend = "torch",
    precision: Precision = None,
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
) -> None:
    """Find what expressions name in images: prints boxes in pixels and scores, and draws them."""
    from hivg_hf.hub.files import weights_fingerprint
    from hivg_hf.inference import load_pipeline, threshold_in_use
    from hivg_hf.inference.files import read_assignment, read_questions
    from hivg_hf.inference.pictures import Asker, PictureWriter
    from hivg_hf.inference.results_file import ResultsFile
    from hivg_hf.modeling.processing_inputs_hivg import check_threshold

    from ._ground_report import Report, print_warnings_as_lines

    check_threshold(threshold, "--threshold")
    if no_pictures and (heatmap or layers):
        raise ValueError(f"{'--heatmap' if heatmap else '--layers'} draws pictures: omit it, or omit --no-pictures.")
    if layers and backend != "torch":
        raise ValueError("--layers draws what the torch backend records: omit it, or omit --backend onnx.")
    assignment = read_assignment(arguments, out, recursive)
    name = f"zero-shot {zero_shot} {proposals}".strip() if zero_shot else model or DEFAULT_MODEL
    keep_results = not assignment.single and (out is not None or not no_pictures)
    weights = None if zero_shot or not keep_results else weights_fingerprint(name)
    shaping: dict[str, Any] = {"mask": mask, "heatmap": heatmap, "layers": layers, "threshold": threshold}
    shaping |= {"reduce_jpeg": reduce_jpeg, "dtype": dtype, "precision": precision}
    shaping["backend"] = backend if backend != "torch" else None
    place = assignment.target / RESULTS_NAME
    results = ResultsFile.hold(place, name, weights, multiple, shaping) if keep_results else None
    if mask and (as_json or keep_results):
        require_package("pycocotools", extra="data")  # writes masks as run lengths; asked for before the work begins
    if zero_shot or proposals:
        given = {
            "model": model,
            "mask": mask,
            "layers": layers,
            "multiple": multiple,
            "dtype": dtype,
            "trust-remote-code": trust_remote_code,
            "backend": backend != "torch",
            "precision": precision,
            "reduce-jpeg": reduce_jpeg,
        }
        pipe = _load_zero_shot(zero_shot, proposals, device, [f"--{name}" for name, value in given.items() if value])
    else:
        note_what_tiny_knows(name, quiet=quiet)
        pipe = load_pipeline(name, device, dtype, trust_remote_code, backend, precision)
    writer = None if no_pictures else PictureWriter(pipe, assignment.target, assignment.single, heatmap, layers)
    report = Report(results, writer, as_json, assignment.single, threshold_in_use(pipe, threshold, multiple))
    if assignment.questions is None:
        questions: Any = report.usable(read_questions(sys.stdin, assignment.expressions))
    else:
        questions = report.not_done(assignment.questions)
    print_warnings_as_lines()
    options: dict[str, Any] = {"mask": mask, "heatmap": heatmap, "threshold": threshold, "batch_size": batch_size}
    # a plain CLIP knows neither
    options |= {
        name: True for name, is_given in {"multiple": multiple, "reduce_jpeg": reduce_jpeg}.items() if is_given
    }
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


def main() -> None:
    run_verb("ground")
