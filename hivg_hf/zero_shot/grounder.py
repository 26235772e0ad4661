"""Zero-shot grounding: a plain CLIP answers expressions with boxes, without any training."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import PIL.Image
from transformers import CLIPModel

from hivg_hf.modeling.image_loading_hivg import load_grounding_image
from hivg_hf.modeling.pipeline_streams_hivg import (
    INPUT_ERRORS,
    Entry,
    EntryDataset,
    GroundingResults,
    ResultStream,
    is_one_image,
    make_item,
    pair_up,
)
from hivg_hf.modeling.processing_hivg import warn_of_phrases
from hivg_hf.modeling.processing_inputs_hivg import refuse_options

from .clip_towers import ZeroShotClip
from .map_boxes import CRITERIA, METHODS, box_from_map
from .proposal_scores import SCORINGS, score_proposals
from .proposals import ProposalSource
from .relation_parser import ANYTHING, Query, parse_expression
from .relations import resolve

CORNERS = ("xmin", "ymin", "xmax", "ymax")


class ZeroShotGrounder:
    """Find what expressions name, with a plain CLIP.

    ```python
    >>> grounder = ZeroShotGrounder.from_pretrained("openai/clip-vit-base-patch16")
    >>> grounder("street.jpg", "the man in blue")
    {'expression': 'the man in blue', 'box': {'xmin': 12.4, ...}, 'score': 0.41}
    ```

    Without proposals the box comes from the dense map. With proposals (a source of them here, or `boxes` per call)
    CLIP chooses among them, and relations in the expression are resolved.

    Args:
        encoder: the CLIP.
        proposals: callable, picture and expressions -> (K, 4) xyxy pixels.
        scoring: how CLIP looks at a proposal, one of `proposal_scores.SCORINGS`.
        relations: read "left of", "the second ... from the left", ... over proposals; False: CLIP reads the whole
            expression for every proposal.
        temperature: of the match of a proposal with a noun phrase, exp((logit - best logit) / temperature). Higher:
            more proposals count as "a dog" beside the most doglike, which ranks such as "the second dog" need.
        box_method, box_criterion: how a box comes from a map, see `map_boxes.box_from_map`.

    Raises:
        ValueError: a name is unknown.
    """

    def __init__(
        self,
        encoder: ZeroShotClip,
        proposals: ProposalSource | None = None,
        scoring: str = "crop+blur",
        relations: bool = True,
        temperature: float = 4.0,
        box_method: str = "levels",
        box_criterion: str = "correlation",
    ) -> None:
        for name, value, choices in (
            ("scoring", scoring, SCORINGS),
            ("box_method", box_method, METHODS),
            ("box_criterion", box_criterion, CRITERIA),
        ):
            if value not in choices:
                raise ValueError(f"Expected {name} to be one of {', '.join(choices)}, got {value!r}.")
        self.encoder, self.proposals, self.scoring, self.relations = encoder, proposals, scoring, relations
        if not temperature > 0:
            raise ValueError(f"Expected a temperature above 0, got {temperature}.")
        self.temperature = temperature
        self.box_method, self.box_criterion = box_method, box_criterion

    @classmethod
    def from_pretrained(
        cls, model: str, device: str | None = None, clip_options: dict[str, Any] | None = None, **options: Any
    ) -> "ZeroShotGrounder":
        """Open a CLIP by folder or Hub id; `clip_options` are those of `ZeroShotClip`."""
        return cls(ZeroShotClip.from_pretrained(model, device, **(clip_options or {})), **options)

    @classmethod
    def from_pipeline(
        cls,
        model: Any,
        processor: Any = None,
        tokenizer: Any = None,
        image_processor: Any = None,
        device: Any = None,
        clip_options: dict[str, Any] | None = None,
        task: str | None = None,
        dtype: Any = None,
        **options: Any,
    ) -> "ZeroShotGrounder":
        """What `pipeline("visual-grounding", model=..., mode="zero-shot", **options)` makes of the parts it loaded.

        Raises:
            ValueError: the model is not a plain CLIP.
        """
        if not isinstance(model, CLIPModel):
            raise ValueError(f"mode='zero-shot' needs a plain CLIP, got a {type(model).__name__}: omit mode.")
        if device is not None:
            model = model.to(device)
        tokenizer = tokenizer or getattr(processor, "tokenizer", None)
        image_processor = image_processor or getattr(processor, "image_processor", None)
        return cls(ZeroShotClip(model, tokenizer, image_processor, **(clip_options or {})), **options)

    def __call__(
        self,
        inputs: Any,
        text: Any = None,
        boxes: Any = None,
        heatmap: bool = False,
        threshold: float | None = None,
        on_error: str = "raise",
        **ignored: Any,
    ) -> Any:
        """Ground expressions; inputs and results are those of `pipeline("visual-grounding")`.

        Args:
            inputs: an image, a list of images, one or several `{"image", "text"}`, or a stream of them.
            text: an expression or a list of them, for every image or per image.
            boxes: for one image, proposals (K, 4) xyxy pixels in place of the grounder's own source.
            heatmap: add `"heatmap"`, the dense map of the whole expression in 0..1, float32 (height, width).
            threshold: add `"found"`, whether the score reaches this value.
            on_error: `"raise"`, or `"return"` to give `{"error": sentence}` in place of an answer.
            **ignored: `batch_size` and `num_workers`, which change no answer.

        Returns:
            `{"expression", "box", "score"}` per expression. `score` is in 0..1: of a map, how much of the map its box
            explains (a correlation); of proposals, the chosen one's share. Neither is a probability of being right.

        Raises:
            TypeError: an option is unknown.
            ValueError: an input cannot be used.
        """
        if ignored.pop("mask", False):
            raise ValueError("A plain CLIP finds boxes and no masks: omit mask.")
        unknown = {name: value for name, value in ignored.items() if name not in ("batch_size", "num_workers")}
        refuse_options("Zero-shot grounding", unknown)
        if on_error not in ("raise", "return"):
            raise ValueError(f"on_error must be one of raise, return, got {on_error!r}.")
        options: dict[str, Any] = {"heatmap": heatmap, "threshold": threshold, "on_error": on_error}
        if is_one_image(inputs) or isinstance(inputs, Mapping):
            return self._answer(lambda: Entry(inputs, text), boxes, **options)
        if boxes is not None:
            raise ValueError("boxes= belongs to one image; for several images give a source of proposals.")
        if isinstance(inputs, (list, tuple)):
            entries = pair_up(list(inputs), text)
            return [self._answer(partial(entries.__getitem__, n), None, **options) for n in range(len(entries))]
        length = len(inputs) if hasattr(inputs, "__len__") else None
        return ResultStream((self._answer(read, None, **options) for read in _readers(inputs, text)), length)

    def _answer(self, read: Callable[[], Entry], boxes: Any, on_error: str, **options: Any) -> Any:
        """Answer what `read` reads, which may fail too."""
        try:
            entry = read()
            item = make_item(entry.value, entry.text)
            several = not isinstance(item["text"], str)
            expressions = item["text"] if several else [item["text"]]
            warn_of_phrases(expressions)
            results = self.ground(load_grounding_image(item["image"]), expressions, boxes, **options)
        except INPUT_ERRORS as error:
            if on_error == "raise":
                raise
            return {"error": str(error)}
        return GroundingResults(results) if several else results[0]

    def ground(
        self,
        picture: PIL.Image.Image,
        expressions: Sequence[str],
        boxes: Any = None,
        heatmap: bool = False,
        threshold: float | None = None,
    ) -> list[dict[str, Any]]:
        """Answer expressions about one RGB picture, see `__call__`."""
        if boxes is None and self.proposals is not None:
            boxes = self.proposals(picture, expressions)
        elif boxes is not None and len(boxes) == 0:
            raise ValueError("boxes= has no proposal to choose from; omit it for a box from the map.")
        chosen = None if boxes is None or len(boxes) == 0 else checked_boxes(boxes, picture.size)
        maps = self.maps(picture, expressions) if heatmap or chosen is None else None
        if chosen is None:  # no source, or one that found nothing
            assert maps is not None
            found = [box_from_map(values, self.box_method, self.box_criterion) for values in maps]
            found = [(box, max(score, 0.0)) for box, score in found]
        else:
            fits = self.proposal_fits(picture, expressions, chosen)  # (E, K)
            found = [(chosen[int(row.argmax())], float(row.max())) for row in fits]
        results = []
        for number, (expression, (box, score)) in enumerate(zip(expressions, found, strict=True)):
            corners = dict(zip(CORNERS, (float(edge) for edge in box), strict=True))
            result: dict[str, Any] = {"expression": expression, "box": corners, "score": score}
            if threshold is not None:
                result["found"] = score >= threshold
            if heatmap:
                assert maps is not None
                low, high = maps[number].min(), maps[number].max()
                result["heatmap"] = ((maps[number] - low) / max(high - low, 1e-12)).astype(np.float32)
            results.append(result)
        return results

    def maps(self, picture: PIL.Image.Image, expressions: Sequence[str]) -> list[np.ndarray]:
        """Per expression, the cosine of each place with it minus that with the background, (height, width)."""
        encoder = self.encoder
        directions = encoder.directions(expressions)  # (E, P)
        squares = encoder.squares([picture])
        grids = (directions @ encoder.patches(squares)[0].T).unflatten(-1, (encoder.grid, encoder.grid))  # (E, G, G)
        is_image = squares.patch_mask[0].view(encoder.grid, encoder.grid)
        # A padded patch would bleed into the picture's edge when the map is enlarged.
        grids = grids.masked_fill(~is_image, 0.0) + (~is_image) * grids[:, is_image].mean(-1)[:, None, None]
        size = (picture.height, picture.width)
        return [encoder.image_processor.map_to_image(grid, size).numpy() for grid in grids]

    def proposal_fits(self, picture: PIL.Image.Image, expressions: Sequence[str], boxes: np.ndarray) -> np.ndarray:
        """(E, K): the share of each proposal, which sum to 1 over K; all 0 where a relation fits no proposal's pair.

        Where all are 0 the best by the noun phrase alone keeps a share of 1e-6, so that there is a box to return.
        """
        queries = [parse_expression(text) if self.relations else Query(text) for text in expressions]
        nouns = list(dict.fromkeys(noun for query in queries for noun in query.nouns))
        named = [noun for noun in nouns if not (self.relations and noun in ANYTHING)]
        matches = {noun: np.ones(len(boxes)) for noun in nouns}
        if named:
            logits = score_proposals(self.encoder, picture, boxes, named, self.scoring)  # (nouns, K)
            chances = np.exp((logits - logits.max(axis=1, keepdims=True)) / self.temperature)
            matches |= dict(zip(named, chances, strict=True))
        rows = []
        for query in queries:
            fits = resolve(query, matches, boxes)
            total = fits.sum()
            rows.append(fits / total if total > 1e-9 else 1e-6 * matches[query.noun] / matches[query.noun].sum())
        return np.stack(rows)


def checked_boxes(boxes: Any, size: tuple[int, int]) -> np.ndarray:
    """(K, 4) float xyxy pixels that meet a picture of `size` (width, height), each cut to it.

    Raises:
        ValueError: the shape is another one, or a box has no area in the picture.
    """
    array = np.asarray(boxes, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] != 4:
        raise ValueError(f"Expected proposals of shape (K, 4), xyxy in pixels, got shape {array.shape}.")
    cut = np.clip(array, 0, [size[0], size[1]] * 2)
    wrong = ~(np.isfinite(array).all(1) & (cut[:, 2] > cut[:, 0]) & (cut[:, 3] > cut[:, 1]))
    if wrong.any():
        raise ValueError(
            f"Expected proposals with x1 < x2 and y1 < y2 inside the picture of {size[0]} x {size[1]} pixels, "
            f"got {array[wrong][0].tolist()}."
        )
    return cut


def _readers(inputs: Any, text: Any) -> Iterator[Callable[[], Entry]]:
    """A function per entry of a dataset or stream, which reads it."""
    if hasattr(inputs, "__getitem__") and hasattr(inputs, "__len__"):
        rows = EntryDataset(inputs, text)
        yield from (partial(rows.__getitem__, index) for index in range(len(rows)))
    elif isinstance(inputs, Iterable):
        yield from (partial(Entry, value, text) for value in inputs)
    else:
        raise TypeError(f"An image must be a path, a URL, a PIL image or an array, not {type(inputs).__name__}.")
