"""`hivg demo`: a web page to try a model on pictures. Needs `pip install 'hivg_hf[demo]'`."""

import os
from typing import Annotated, Any

import typer

from hivg_hf.hub import DEFAULT_MODEL
from hivg_hf.utils.imports import require_package

from . import MODEL_NAMES, run_verb
from ._options import Backend, Device, Dtype, Precision


def demo(
    model: Annotated[str, typer.Option(help=MODEL_NAMES)] = DEFAULT_MODEL,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes the first free one from 7860 on.")] = 0,
    device: Device = None,
    dtype: Dtype = None,
    backend: Backend = "torch",
    precision: Precision = None,
    queue_size: Annotated[int, typer.Option(help="Visitors who may wait; others are asked to come back.", min=1)] = 32,
    max_upload_mb: Annotated[int, typer.Option(help="Largest upload in megabytes.", min=1)] = 32,
    workers: Annotated[int | None, typer.Option(help="Questions answered at once. Default: 2.", min=1)] = None,
    time_limit: Annotated[
        float | None, typer.Option(help="Seconds a question may take before the page gives up on it. Default: 60.")
    ] = None,
    root_path: Annotated[
        str | None, typer.Option(help="Path under which a proxy shows the page to visitors, for example /hivg.")
    ] = None,
) -> None:
    """Serve a web page: upload a picture or pick an example, write one expression per line, see what is found."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # nothing is sent anywhere, and no network is needed
    require_package("gradio", extra="demo")
    from hivg_hf.inference import load_pipeline
    from hivg_hf.inference.web_page import build_page, serve

    limits: dict[str, Any] = {"workers": workers, "seconds": time_limit}
    limits = {name: value for name, value in limits.items() if value is not None}
    pipe = load_pipeline(model, device, dtype, backend=backend, precision=precision)
    page = build_page(pipe, model, **limits)
    serve(page, host, port or None, queue_size, max_upload_mb, **({"root_path": root_path} if root_path else {}))


def main() -> None:
    run_verb("demo")
