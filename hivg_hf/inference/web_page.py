"""The page of `hivg demo`: a picture, one expression per line, and what the model finds."""

import atexit
import functools
import html
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import PIL.Image
import PIL.ImageOps

from hivg_hf.data.refshapes import example_scenes
from hivg_hf.hub import DEFAULT_MODEL, is_tiny
from hivg_hf.modeling.image_loading_hivg import load_grounding_image
from hivg_hf.modeling.pipeline_hivg import VisualGroundingPipeline
from hivg_hf.modeling.pipeline_streams_hivg import answers_of
from hivg_hf.modeling.processing_hivg import DEFAULT_THRESHOLD
from hivg_hf.utils.imports import require_package
from hivg_hf.visualize import draw_grounding, draw_heatmap

from .web_guard import PageGuard
from .web_workers import GroundingWorkers, unanswered

TITLE = "HiVG: find what an expression names"
MOST_EXPRESSIONS = 16
MOST_CHARACTERS = 500
MOST_PIXELS = 40_000_000
# JPEGs are decoded at a half, a quarter or an eighth of their size for the price of the smaller picture.
MOST_JPEG_PIXELS = 170_000_000
# What cameras and browsers write; Pillow reads many more, some of them with other programs' help.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
# Pictures, masks and heat maps are shown at most this large, whatever was uploaded.
DISPLAY_SIDE = 1280
COLUMNS = ("expression", "score", "left", "top", "right", "bottom")
EXAMPLES_SEED = 7
SLIDER_STEP = 0.01
# System fonts: the page must look the same without a network.
FONTS = ("system-ui", "sans-serif")
# All but gradio's "share", which sends the picture to another site.
BUTTONS = ["fullscreen", "download"]
# gradio keeps 50 KB for each of the latest sessions, and a stranger can open any number.
SESSIONS = 500
# Files of visitors are deleted after an hour, looked through every ten minutes.
DELETE_CACHE = (600, 3600)


def answer_question(
    pipe: VisualGroundingPipeline,
    image: Any,
    lines: str,
    threshold: float = 0.0,
    mask: bool = True,
    multiple: bool = False,
) -> tuple[PIL.Image.Image | None, list[tuple[PIL.Image.Image, str]], list[list[Any]], str]:
    """Ground the expressions of the page's form.

    Args:
        pipe: The pipeline.
        image: The upload, in any form the pipeline takes, or None.
        lines: One expression per line.
        threshold: Scores below it count as not found; 0 turns that off; with `multiple` it takes
            the model's own.
        mask: Whether to tint the object's pixels.
        multiple: Whether to find every object that fits.

    Returns:
        The annotated picture, a heat map with its expression for each line, a row of `COLUMNS` for each box, and a
        sentence as HTML. Pictures are at most `DISPLAY_SIDE` wide and high (enlarged ones aside), boxes in pixels of
        the upload. Where the question cannot be answered there is only the sentence, which says why.
    """
    try:
        expressions = _checked_expressions(lines)
        if image is None:
            raise ValueError("Choose an example or upload a picture first.")
        if not isinstance(threshold, (int, float)) or not 0 <= threshold <= 1:
            raise ValueError(f"The threshold must be a number from 0 to 1, got {str(threshold)[:20]}.")
        picture, scale = _open_picture(image)
        options: dict[str, Any] = {
            "mask": bool(mask),
            "heatmap": True,
            "map_side": DISPLAY_SIDE,
            "batch_size": len(expressions),
        }
        # 0 as well, over the threshold of a calibrated model; but the model's own is left to it: it may have a second
        # one for further boxes.
        untouched = multiple and (threshold == 0 or abs(threshold - _first_threshold(pipe)) <= SLIDER_STEP / 2)
        if not untouched:
            options["threshold"] = threshold
        if multiple:
            options["multiple"] = True
        results = answers_of(pipe(picture, expressions, **options))
    except (ValueError, OSError) as error:
        return unanswered(_without_path(str(error), image))
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):  # what torch says where there is none
            raise
        return unanswered("There was not enough memory for this picture: send a smaller one.")
    height, width = results[0]["heatmap"].shape
    shown = picture if picture.size == (width, height) else picture.resize((width, height), PIL.Image.Resampling.BOX)
    across, down = width / picture.width, height / picture.height
    drawn = draw_grounding(shown, [_scaled(result, across, down) for result in results])
    maps = {result["expression"]: result["heatmap"] for result in results}
    heatmaps = [(draw_heatmap(shown, heatmap), expression) for expression, heatmap in maps.items()]
    lost = [result["expression"] for result in results if not result.get("found", True)]
    message = f"Below the threshold, so perhaps not in the picture: {', '.join(lost)}." if lost else ""
    rows = [_table_row(_scaled(result, *scale)) for result in results]
    return drawn, heatmaps, rows, html.escape(message, quote=False)


def build_page(
    pipe: VisualGroundingPipeline, name: str | None = None, examples_seed: int = EXAMPLES_SEED, **limits: Any
) -> Any:
    """The page as `gradio.Blocks`; `serve` serves it.

    Args:
        pipe: The pipeline.
        name: What the model is called; by default where its weights came from. The page shows it.
        examples_seed: Seed of the scenes to choose from. Only the model in the package, which was trained on such
            scenes, has them.
        limits: `workers` and `seconds` of `GroundingWorkers`.

    Raises:
        ImportError: If gradio is not installed.
    """
    gr = require_package("gradio", extra="demo")
    _page_folder()  # before gradio's components are made, which read the variable once
    name = name or getattr(pipe.model, "name_or_path", "")
    examples = _write_examples(examples_seed) if is_tiny(name) else []
    workers = GroundingWorkers(pipe, answer_question, **limits)

    def answer(*values: Any) -> Any:
        return workers.ask(*values)

    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=DELETE_CACHE) as page:
        page.grounding_workers = workers
        gr.Markdown(f"# {TITLE}\nOne expression per line. {_what_is_found(pipe)}")
        gr.HTML(_about_model(name), elem_id="model", js_on_load=None)
        with gr.Row():
            with gr.Column(scale=1):
                image = gr.Image(label="Picture", sources=["upload", "clipboard"], elem_id="picture", height=320)
                image.preprocess = _uploaded_path  # on the instance: gradio writes stub files beside subclasses
                text = gr.Textbox(
                    label="Expressions, one per line",
                    lines=4,
                    elem_id="expressions",
                    max_length=MOST_EXPRESSIONS * (MOST_CHARACTERS + 1),
                )
                with gr.Accordion("Options", open=False):
                    several = _answers_with_several(pipe)
                    label = "Not found below this score" + ("" if several else " (0: never)")
                    threshold = gr.Slider(0, 1, value=_first_threshold(pipe), step=SLIDER_STEP, label=label)
                    mask = gr.Checkbox(value=True, label="Tint the object's pixels")
                    every = gr.Checkbox(value=several, visible=several, label="Every object that fits")
                button = gr.Button("Find", variant="primary", elem_id="find")
                if examples:
                    gr.Examples(examples, [image, text], label="Scenes the model has not seen", elem_id="examples")
            with gr.Column(scale=2):
                message = gr.HTML(elem_id="message", js_on_load=None)
                with gr.Tab("Boxes"):
                    picture = gr.Image(
                        show_label=False, type="pil", interactive=False, elem_id="boxes", format="png", buttons=BUTTONS
                    )
                with gr.Tab("Heat maps", elem_id="heatmap-tab"):
                    heatmaps = gr.Gallery(
                        show_label=False, columns=2, elem_id="heatmaps", format="png", buttons=BUTTONS
                    )
                table = gr.Dataframe(
                    headers=list(COLUMNS), datatype="str", interactive=False, elem_id="table", label="Found", wrap=True
                )
        outputs = [picture, heatmaps, table, message]
        inputs = [image, text, threshold, mask, every]
        for event in (button.click, text.submit):
            event(answer, inputs, outputs, concurrency_limit=workers.workers, concurrency_id="model")
    return page


def _answers_with_several(pipe: Any) -> bool:
    return getattr(getattr(getattr(pipe, "model", None), "config", None), "num_queries", 1) > 1


def _first_threshold(pipe: Any) -> float:
    """Where the slider begins: what the pipeline would take by itself."""
    config = getattr(getattr(pipe, "model", None), "config", None)
    own = getattr(config, "score_threshold", None)
    if own is None:
        return DEFAULT_THRESHOLD if _answers_with_several(pipe) else 0.0
    return float(own)


def _what_is_found(pipe: Any) -> str:
    if _answers_with_several(pipe):
        return "Each gets a box for every object it names."
    return "Each gets one box: the object it names."


def serve(
    page: Any,
    host: str = "127.0.0.1",
    port: int | None = None,
    queue_size: int = 32,
    max_upload_mb: int = 32,
    **more: Any,
) -> Any:
    """Serve the page behind a `PageGuard`, with limits on waiting visitors and on the size of uploads.

    Args:
        page: What `build_page` made.
        host: Address to listen on.
        port: Port to listen on. Defaults to the first free one from 7860 on.
        queue_size: Visitors that may wait; more are asked to come back.
        max_upload_mb: Largest upload in megabytes.
        more: Further options of `gradio.Blocks.launch`.
    """
    gr = require_package("gradio", extra="demo")
    from starlette.middleware import Middleware

    guard = Middleware(
        PageGuard,
        folder=_page_folder(),
        most_upload_bytes=max_upload_mb * 2**20,
        is_healthy=lambda: page.grounding_workers.is_healthy,
        functions=page.fns,
    )
    theme = gr.themes.Default(font=list(FONTS), font_mono=["ui-monospace", "monospace"])
    page.queue(max_size=queue_size, api_open=False)
    # The guard stands before these routes, too; nothing of the page needs them.
    off = {"ssr_mode": False, "mcp_server": False, "enable_monitoring": False, "show_error": False}
    return page.launch(
        server_name=host,
        server_port=port,
        max_file_size=f"{max_upload_mb}mb",
        theme=theme,
        footer_links=[],
        state_session_capacity=SESSIONS,
        app_kwargs={"middleware": [guard]},
        **{**off, **more},
    )


def _about_model(name: str) -> str:
    """Which model answers, as HTML, and what the one in the package does not know."""
    shown = DEFAULT_MODEL if is_tiny(name) else name
    about = f"Model: <code>{html.escape(shown or 'without a name')}</code>"
    if is_tiny(name):
        about += ", which knows rendered shapes only. For photos: <code>hivg demo --model official:base-mixup</code>"
    return about


def _checked_expressions(lines: Any) -> list[str]:
    expressions = [line.strip() for line in str(lines or "").splitlines() if line.strip()]
    if not expressions:
        raise ValueError("Write at least one expression, for example: the large red star")
    if len(expressions) > MOST_EXPRESSIONS:
        raise ValueError(f"Write at most {MOST_EXPRESSIONS} expressions; these are {len(expressions)}.")
    longest = max(map(len, expressions))
    if longest > MOST_CHARACTERS:
        raise ValueError(f"An expression may have at most {MOST_CHARACTERS} characters; one of these has {longest}.")
    if any("\ud800" <= character <= "\udfff" for expression in expressions for character in expression):
        raise ValueError(
            "An expression has halves of characters (lone surrogates), which are not text: write it again."
        )
    return expressions


def _open_picture(image: Any) -> tuple[PIL.Image.Image, tuple[float, float]]:
    """The upright picture, and how many pixels of the upload one of its pixels stands for, across and down.

    The header alone decides whether pixels are read.
    """
    if not isinstance(image, (str, os.PathLike)):
        picture = load_grounding_image(image)
        _check_pixels(picture.width * picture.height, MOST_PIXELS)
        return picture, (1.0, 1.0)
    name = f"'{image}'"
    try:
        opened = PIL.Image.open(image, formats=FORMATS)
    except PIL.UnidentifiedImageError:
        raise ValueError(f"{name} is not an image of a kind this page reads: {', '.join(FORMATS)}.") from None
    except (PIL.Image.DecompressionBombError, SyntaxError, OSError, ValueError) as error:
        raise ValueError(f"{name} cannot be opened: {error}.") from None
    with opened:
        pixels = opened.width * opened.height
        is_baseline_jpeg = opened.format in ("JPEG", "MPO") and not opened.info.get("progressive")
        _check_pixels(pixels, MOST_JPEG_PIXELS if is_baseline_jpeg else MOST_PIXELS)
        if pixels <= MOST_PIXELS:
            return load_grounding_image(image), (1.0, 1.0)
        size, shrink = opened.size, 1
        while (size[0] // shrink) * (size[1] // shrink) > MOST_PIXELS:
            shrink *= 2
        opened.draft(None, (size[0] // shrink, size[1] // shrink))
        factors = size[0] / opened.width, size[1] / opened.height
        upright = PIL.ImageOps.exif_transpose(opened)
        if upright.size == opened.size[::-1] != opened.size:
            factors = factors[::-1]
        return load_grounding_image(upright), factors


def _check_pixels(pixels: int, limit: int) -> None:
    if pixels > limit:
        size, most = f"{pixels / 1e6:.0f} million pixels", f"{limit // 10**6} million"
        raise ValueError(f"The picture has {size}, more than {most}: send a smaller one.")


def _scaled(result: dict[str, Any], across: float, down: float) -> dict[str, Any]:
    factors = {"xmin": across, "xmax": across, "ymin": down, "ymax": down}
    return {**result, "box": {side: value * factors[side] for side, value in result["box"].items()}}


def _uploaded_path(payload: Any) -> str | None:
    """The uploaded file as it is.

    gradio's own step would open it first, and answer one that is not an image with the word "Error".
    """
    return None if payload is None else payload.path


@functools.cache
def _page_folder() -> Path:
    """A new folder of this process for uploads, examples and answers, which nobody else reads.

    gradio's default is one folder in /tmp for all its pages of all users.
    """
    parent = os.environ.get("GRADIO_TEMP_DIR")
    if parent:
        Path(parent).mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="hivg-demo-", dir=parent)).resolve()
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _write_examples(seed: int) -> list[list[str]]:
    folder = _page_folder() / f"examples-{seed}"
    folder.mkdir(exist_ok=True)
    examples = []
    for scene in example_scenes(seed):
        path = folder / f"{scene.name}.png"
        scene.image.save(path)
        examples.append([str(path), "\n".join(scene.expressions)])
    return examples


def _table_row(result: dict[str, Any]) -> list[Any]:
    score = None if result["score"] is None else round(result["score"], 3)
    return [result["expression"], score, *(round(value, 1) for value in result["box"].values())]


def _without_path(sentence: str, image: Any) -> str:
    """The name of the upload only: visitors need not learn where the server keeps it."""
    if isinstance(image, (str, os.PathLike)):
        return sentence.replace(str(image), Path(image).name)
    return sentence
