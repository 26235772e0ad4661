"""The page of `hivg demo`: a picture, one expression per line, and what the model finds."""

import tempfile
from pathlib import Path
from typing import Any

import PIL.Image

from .example_scenes import example_scenes
from .import_utils import require_package
from .modeling.image_loading_hivg import load_grounding_image
from .modeling.pipeline_hivg import VisualGroundingPipeline
from .visualize import draw_grounding, draw_heatmap

TITLE = "HiVG: find what an expression names"
MOST_EXPRESSIONS = 16
MOST_PIXELS = 40_000_000
COLUMNS = ("expression", "score", "left", "top", "right", "bottom")
EXAMPLES_SEED = 7
# System fonts: the page must look the same without a network.
FONTS = ("system-ui", "sans-serif")


def answer_question(
    pipe: VisualGroundingPipeline, image: Any, lines: str, threshold: float = 0.0, mask: bool = True
) -> tuple[PIL.Image.Image | None, list[tuple[PIL.Image.Image, str]], list[list[Any]], str]:
    """Ground the expressions of the page's form.

    Args:
        pipe: the pipeline.
        image: the upload, in any form the pipeline takes, or None.
        lines: one expression per line.
        threshold: scores below it count as not found; 0 turns that off.
        mask: whether to tint the object's pixels.

    Returns:
        The annotated picture, a heat map with its expression for each line, a row of `COLUMNS` for each line, and a
        sentence. Where the question cannot be answered there is only the sentence, which says why.
    """
    expressions = [line.strip() for line in (lines or "").splitlines() if line.strip()]
    try:
        if image is None:
            raise ValueError("Choose an example or upload a picture first.")
        if not expressions:
            raise ValueError("Write at least one expression, for example: the large red star")
        if len(expressions) > MOST_EXPRESSIONS:
            raise ValueError(f"Write at most {MOST_EXPRESSIONS} expressions; these are {len(expressions)}.")
        picture = load_grounding_image(image)
        if picture.width * picture.height > MOST_PIXELS:
            raise ValueError(f"The picture has more than {MOST_PIXELS // 10**6} million pixels; send a smaller one.")
        options = {"threshold": threshold} if threshold > 0 else {}
        results = pipe(picture, expressions, mask=mask, heatmap=True, batch_size=MOST_EXPRESSIONS, **options)
    except (ValueError, OSError) as error:
        return None, [], [], f"⚠ {_without_path(str(error), image)}"
    heatmaps = [(draw_heatmap(picture, result["heatmap"]), result["expression"]) for result in results]
    lost = [result["expression"] for result in results if not result.get("found", True)]
    message = f"Below the threshold, so perhaps not in the picture: {', '.join(lost)}." if lost else ""
    return draw_grounding(picture, results), heatmaps, [_table_row(result) for result in results], message


def build_page(pipe: VisualGroundingPipeline, examples_seed: int = EXAMPLES_SEED) -> Any:
    """The page as `gradio.Blocks`; `.queue(...).launch(...)` serves it.

    Raises:
        ImportError: gradio is not installed.
    """
    gr = require_package("gradio", extra="demo")
    examples = _write_examples(examples_seed)

    def answer(*values: Any) -> Any:
        return answer_question(pipe, *values)

    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        gr.Markdown(f"# {TITLE}\nOne expression per line. Each gets one box: the object it names.")
        with gr.Row():
            with gr.Column(scale=1):
                image = gr.Image(label="Picture", sources=["upload", "clipboard"], elem_id="picture", height=320)
                image.preprocess = _uploaded_path  # on the instance: gradio writes stub files beside subclasses
                text = gr.Textbox(label="Expressions, one per line", lines=4, elem_id="expressions")
                with gr.Accordion("Options", open=False):
                    threshold = gr.Slider(0, 1, value=0, step=0.01, label="Not found below this score (0: never)")
                    mask = gr.Checkbox(value=True, label="Tint the object's pixels")
                button = gr.Button("Find", variant="primary", elem_id="find")
                gr.Examples(examples, [image, text], label="Scenes the model has not seen", elem_id="examples")
            with gr.Column(scale=2):
                message = gr.Markdown(elem_id="message")
                with gr.Tab("Boxes"):
                    picture = gr.Image(show_label=False, type="pil", interactive=False, elem_id="boxes", format="png")
                with gr.Tab("Heat maps", elem_id="heatmap-tab"):
                    heatmaps = gr.Gallery(show_label=False, columns=2, elem_id="heatmaps", format="png")
                table = gr.Dataframe(headers=list(COLUMNS), interactive=False, elem_id="table", label="Found")
        outputs = [picture, heatmaps, table, message]
        inputs = [image, text, threshold, mask]
        for event in (button.click, text.submit):
            # One question at a time: two would share the same cores and both be slower.
            event(answer, inputs, outputs, concurrency_limit=1, concurrency_id="model")
    return page


def serve(
    page: Any,
    host: str = "127.0.0.1",
    port: int | None = None,
    queue_size: int = 32,
    max_upload_mb: int = 10,
    **more: Any,
) -> Any:
    """Serve the page, with limits on waiting visitors and on the size of uploads.

    Args:
        page: what `build_page` made.
        host: address to listen on.
        port: port to listen on; by default the first free one from 7860 on.
        queue_size: visitors that may wait; more are asked to come back.
        max_upload_mb: largest upload in megabytes.
        more: further options of `gradio.Blocks.launch`.
    """
    gr = require_package("gradio", extra="demo")
    theme = gr.themes.Default(font=list(FONTS), font_mono=["ui-monospace", "monospace"])
    page.queue(max_size=queue_size)
    return page.launch(
        server_name=host, server_port=port, max_file_size=f"{max_upload_mb}mb", theme=theme, footer_links=[], **more
    )


def _uploaded_path(payload: Any) -> str | None:
    """The uploaded file as it is.

    gradio's own step would open it first, and answer one that is no image with the word "Error".
    """
    return None if payload is None else payload.path


def _write_examples(seed: int) -> list[list[str]]:
    folder = Path(tempfile.mkdtemp(prefix="hivg-examples-"))
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
    if isinstance(image, str):
        return sentence.replace(image, Path(image).name)
    return sentence
