"""`hivg video IN EXPRESSION... --out OUT.mp4`: find expressions in every frame of a video, and draw them.

hivg video street.mp4 "the red car" --out boxed.mp4
hivg video street.mp4 "the red car" "the dog" --json > boxes.jsonl
"""

import json
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from tqdm import tqdm

from hivg_hf.hub import DEFAULT_MODEL
from hivg_hf.utils.inert import printable

from . import Model, note_what_tiny_knows, run_verb, say
from ._options import Backend, Device, Dtype, Precision, Quiet, TrustRemoteCode


def video(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A video file.")],
    expressions: Annotated[list[str], typer.Argument(metavar="EXPRESSION...", help="What to find in every frame.")],
    out: Annotated[
        Path | None, typer.Option(help="Video to write, with the boxes drawn; .mp4, .mkv or .webm.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON Lines, one per frame, and nothing else.")
    ] = False,
    model: Model = "",
    smooth: Annotated[bool, typer.Option(help="Steady the boxes over time, or draw each frame's own.")] = True,
    threshold: Annotated[float | None, typer.Option(help="Draw no box in frames whose score is below it.")] = None,
    multiple: Annotated[
        bool,
        typer.Option("--multiple", help="Every box that reaches the threshold, frame by frame, not steadied."),
    ] = False,
    batch_size: Annotated[int, typer.Option(help="Pairs of frame and expression per pass.", min=1)] = 8,
    device: Device = None,
    dtype: Dtype = None,
    backend: Backend = "torch",
    precision: Precision = None,
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
) -> None:
    """Find expressions in every frame of a video: prints boxes, or draws them into a new video."""
    from hivg_hf.inference import answer_as_json, load_pipeline
    from hivg_hf.inference.video import VideoWriter, frame_rate
    from hivg_hf.modeling.processing_inputs_hivg import check_threshold

    check_threshold(threshold, "--threshold")
    if out is None and not as_json:
        raise ValueError("Say what to make: --out VIDEO.mp4 draws the boxes, --json prints them.")
    if out is not None and out.resolve() == source.resolve():
        raise ValueError(f"Writing would overwrite the video '{source}' itself: choose another --out.")
    rate = frame_rate(source)
    note_what_tiny_knows(model or DEFAULT_MODEL, quiet=quiet)
    pipe = load_pipeline(model or DEFAULT_MODEL, device, dtype, trust_remote_code, backend, precision)
    writer = None if out is None else VideoWriter(out, rate)
    start, frames = time.monotonic(), 0
    options = {"smooth": False, "multiple": True} if multiple else {"smooth": smooth}
    results = pipe.video(source, expressions, batch_size=batch_size, threshold=threshold, **options)
    try:
        for result in tqdm(results, unit=" frames", file=sys.stderr):
            frames += 1
            if as_json:
                plain = [answer_as_json(one) for one in result["results"]]
                line = {"frame": result["frame"], "time": result["time"], "results": plain}
                tqdm.write(printable(json.dumps(line, ensure_ascii=False, allow_nan=False)), file=sys.stdout)
            if writer is not None:
                visible = [one for one in result["results"] if one.get("found", True)]
                writer.write(result["image"], visible)
        if writer is not None:
            writer.finish()
    finally:
        if writer is not None:
            writer.close()
    seconds = time.monotonic() - start
    place = f"; wrote {out.resolve()}" if out is not None else ""
    say(f"hivg: {frames} frames in {seconds:.1f} s ({frames / max(seconds, 1e-9):.1f} frames/s){place}", err=True)


def main() -> None:
    """Run the verb with the arguments of the process."""
    run_verb("video")
