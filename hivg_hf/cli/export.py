"""`hivg export`: a model for other runtimes. Needs `pip install 'hivg_hf[onnx]'`."""

from pathlib import Path
from typing import Annotated

import typer

from hivg_hf.hub import DEFAULT_MODEL

from . import MODEL_NAMES, note_what_tiny_knows, run_verb, say
from ._options import Quiet

FORMATS = ("onnx",)


def export(
    model: Annotated[str, typer.Argument(help=MODEL_NAMES)] = DEFAULT_MODEL,
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("exported"),
    format: Annotated[str, typer.Option(help="Output format; onnx is the only one.")] = "onnx",
    masks: Annotated[bool, typer.Option("--masks", help="Also output mask logits.")] = False,
    tokens: Annotated[bool, typer.Option("--tokens", help="Also output the similarity of each patch.")] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="Also write model_quantized.onnx, faster, smaller and less exact.")
    ] = False,
    float16: Annotated[
        bool, typer.Option("--float16", help="Also write model_fp16.onnx, half the size on disk.")
    ] = False,
    split: Annotated[
        bool,
        typer.Option(
            "--split", help="Also write text_model.onnx and grounding_model.onnx: words apart from pictures."
        ),
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Write a model as ONNX, with its tokenizer and settings, and check that it computes the same."""
    if format not in FORMATS:
        raise ValueError(f"--format must be one of {', '.join(FORMATS)}, got '{format}'.")
    from hivg_hf.inference import export_onnx, load_pipeline

    note_what_tiny_knows(model, option="hivg export", quiet=quiet)
    pipe = load_pipeline(model, "cpu", "float32")
    report = export_onnx(pipe.model, pipe.processor, out, masks, tokens, int8, float16, split)
    for name, difference in report.items():
        moved = name in ("int8_box", "float16_box", "split_box")
        what = "boxes move by at most (share of the square)" if moved else "differs from torch by at most"
        say(f"{name}: {what} {difference:.2g}")
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        say(f"wrote {path.resolve()} ({path.stat().st_size / 1e6:.1f} MB)")


def main() -> None:
    run_verb("export")
