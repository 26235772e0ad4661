"""Ask a pipeline many questions in order, and draw its answers: what `hivg ground` does between its arguments and its
output."""

import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import PIL.Image
from torch.utils.data import Dataset

from hivg_hf.modeling.image_loading_hivg import load_grounding_image
from hivg_hf.modeling.pipeline_hivg import VisualGroundingPipeline
from hivg_hf.modeling.pipeline_streams_hivg import answers_of
from hivg_hf.utils.atomic import atomic_path
from hivg_hf.visualize import bridge_attention, draw_bridge_attention, draw_grounding, draw_heatmap

from .files import Question, is_url, picture_path, url_name

JPEG_QUALITY = 95
PANEL_GAP = 8


class Asker:
    """Streams questions through a pipeline; answers come in the questions' order.

    Use it as a context manager: it keeps downloaded images until it is closed, so that drawing does not fetch them
    a second time.
    """

    def __init__(self, pipe: VisualGroundingPipeline, num_workers: int = 0, **options: Any):
        self.pipe = pipe
        self.num_workers = num_workers
        self.options = {**options, "on_error": "return"}
        self._downloads = tempfile.TemporaryDirectory(prefix="hivg-")

    def __enter__(self) -> "Asker":
        return self

    def __exit__(self, *_: object) -> None:
        self._downloads.cleanup()

    def ask(self, questions: Iterable[Question]) -> Iterator[tuple[Question, dict[str, Any]]]:
        """Yields each question with `{"results": [...]}` or `{"error": sentence}`.

        A list is read by `num_workers` processes; any other iterable here, one question at a time.
        """
        if isinstance(questions, list):
            stream = self.pipe(_Items(questions, self), num_workers=self.num_workers, **self.options)
            yield from zip(questions, map(_as_answer, stream), strict=True)
            return
        pending: deque[Question] = deque()

        def items() -> Iterator[dict[str, Any]]:
            for question in questions:
                pending.append(question)
                try:
                    item = self.item(question)
                except (OSError, ValueError):  # the pipeline will meet the same error, and report it
                    item = {"image": question.image, "text": question.expressions}
                yield item

        for answer in self.pipe(items(), num_workers=0, **self.options):
            yield pending.popleft(), _as_answer(answer)

    def item(self, question: Question) -> dict[str, Any]:
        return {"image": self.local_image(question), "text": question.expressions}

    def local_image(self, question: Question) -> str:
        """The image's path; a URL is downloaded the first time."""
        if not is_url(question.image):
            return question.image
        path = Path(self._downloads.name) / (url_name(question.image) + ".png")
        if not path.exists():
            picture = load_grounding_image(question.image)
            with atomic_path(path) as temporary:
                picture.save(temporary)
        return str(path)


class PictureWriter:
    """Draws answers: one picture for one image, or a folder of pictures that are called as their images.

    Args:
        pipe: what answered; asked again for the bridges' attention.
        target: the picture's path when there is one image, else the folder.
        single: whether there is one image.
        heatmap: also draw `NAME.heatmap.png`, a panel per expression.
        layers: also draw `NAME.layers-1.png`, ... for each expression.
    """

    def __init__(
        self, pipe: VisualGroundingPipeline, target: Path, single: bool, heatmap: bool = False, layers: bool = False
    ):
        self.pipe = pipe
        self.target = target
        self.single = single
        self.heatmap = heatmap
        self.layers = layers

    def path(self, question: Question) -> Path:
        """Absolute path of the annotated picture."""
        return (self.target if self.single else picture_path(self.target, question.name)).resolve()

    def write(self, question: Question, file: str, results: Sequence[dict[str, Any]]) -> list[Path]:
        """Draw what was found in the image `file`; returns the absolute paths, the annotated picture first."""
        path = self.path(question)
        if path == Path(file).resolve():
            raise ValueError(f"Drawing would overwrite the image '{question.image}' itself: choose another --out.")
        picture = load_grounding_image(file)
        drawn = {path: draw_grounding(picture, results)}
        if self.heatmap:
            by_expression: dict[str, list[dict[str, Any]]] = {}
            for result in results:
                by_expression.setdefault(result["expression"], []).append(result)
            panels = [
                draw_grounding(draw_heatmap(picture, own[0]["heatmap"]), [_box_only(result) for result in own])
                for own in by_expression.values()
            ]
            drawn[path.with_name(f"{path.stem}.heatmap.png")] = _side_by_side(panels)
        if self.layers:
            for number, expression in enumerate(question.expressions, start=1):
                attention = bridge_attention(self.pipe.model, self.pipe.processor, picture, expression)
                table = draw_bridge_attention(picture, attention, self.pipe.processor.image_processor)
                drawn[path.with_name(f"{path.stem}.layers-{number}.png")] = table
        for target, image in drawn.items():
            _save(image, target)
        return list(drawn)


class _Items(Dataset):
    """Questions as a map-style dataset, which worker processes can read."""

    def __init__(self, questions: list[Question], asker: Asker):
        self.questions = questions
        self.asker = asker

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.asker.item(self.questions[index])


def _as_answer(answer: Any) -> dict[str, Any]:
    return answer if isinstance(answer, dict) else {"results": answers_of(answer)}


def _box_only(result: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in result.items() if key != "mask"}


def _side_by_side(panels: Sequence[PIL.Image.Image]) -> PIL.Image.Image:
    width = sum(panel.width for panel in panels) + PANEL_GAP * (len(panels) - 1)
    sheet = PIL.Image.new("RGB", (width, max(panel.height for panel in panels)), "white")
    left = 0
    for panel in panels:
        sheet.paste(panel, (left, 0))
        left += panel.width + PANEL_GAP
    return sheet


def _save(picture: PIL.Image.Image, path: Path) -> None:
    with atomic_path(path) as temporary:
        try:
            picture.save(temporary, **({"quality": JPEG_QUALITY} if path.suffix.lower() in (".jpg", ".jpeg") else {}))
        except ValueError:
            raise ValueError(f"A picture cannot be written as '{path.name}': end its name in .png or .jpg.") from None
