"""`pipeline("visual-grounding", model)`: images and expressions in, one box each out, in pixels of the original image.

One unit of work is a pair of an image and an expression: the bridges show the expression to the image tower, whose
later layers a second expression runs anew. Pairs are batched whatever image they belong to, those with alike numbers
of patches together, and their answers put back in order; nothing is read further ahead than `LOOKAHEAD` batches and
the workers' queue, so that a stream of any length needs the same memory. An image is opened once for all its
expressions; within a batch, its layers before the first bridge run once, and an expression that repeats is encoded
once.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from numbers import Real
from types import NoneType
from typing import Any, ClassVar

import numpy as np
import PIL.Image
import torch
from transformers import AutoTokenizer, Pipeline

from .image_loading_hivg import image_size, is_reduced, open_image
from .image_processing_hivg import HiVGImageProcessor
from .pipeline_streams_hivg import (
    Entry,
    EntryDataset,
    GroundingResults,
    PendingItem,
    ResultStream,
    as_rows,
    is_one_image,
    is_text_list,
    mask_in_form,
    pair_up,
    preparing_loader,
    take_batch,
)
from .processing_hivg import DEFAULT_THRESHOLD, HiVGProcessor, check_belongs, check_long_text
from .processing_inputs_hivg import check_threshold, refuse_options
from .video_hivg import ground_frames, read_frames

ERROR_CHOICES = ("raise", "return")
MASK_FORMS = ("array", "pil", "rle")
# What `text` is called elsewhere, for the message that refuses it.
NAMES_OF_TEXT = frozenset(("expression", "expressions", "question", "prompt", "query", "caption", "texts"))
# Batches' worth of pairs among which those of similar shape are chosen, so that little padding is computed.
LOOKAHEAD = 4
# Expressions of one image that share a pass where nobody named a batch size.
EXPRESSIONS_PER_PASS = 16


class VisualGroundingPipeline(Pipeline):
    """Find what expressions name.

    ```python
    >>> import hivg_hf
    >>> from transformers import pipeline
    >>> pipe = pipeline("visual-grounding", hivg_hf.TINY_CHECKPOINT)
    >>> row = hivg_hf.load_grounding_dataset("refshapes", "val", seed=1, size=1)[0]
    >>> pipe(row["image"], row["expression"])
    {'expression': '...', 'box': {'xmin': ..., 'ymin': ..., 'xmax': ..., 'ymax': ...}, 'score': ...}
    ```

    See `__call__` for lists and streams. Options, at construction or per call: `batch_size` (pairs of an image and an
    expression per pass; defaults to 1, and for one image up to 16 expressions), `num_workers` (processes that open
    images), and those of `_sanitize_parameters`.

    `mode="zero-shot"` with a plain CLIP gives what `hivg_hf` has put into `modes` under that name, not this class.
    """

    modes: ClassVar[dict[str, Callable[..., Any]]] = {}

    _load_processor = None  # where it can be found; `__init__` sees to the rest
    _load_tokenizer = _load_image_processor = _load_feature_extractor = False
    _load_video_processor = False  # None would probe for one, and ask for trust

    def __new__(cls, *args: Any, mode: str | None = None, **kwargs: Any) -> Any:
        if mode is None:
            return super().__new__(cls)
        if mode not in cls.modes:
            known = ", ".join(map(repr, cls.modes)) or "none: import hivg_hf first"
            raise ValueError(f"Expected a mode of the visual-grounding pipeline ({known}), got {mode!r}.")
        return cls.modes[mode](*args, **kwargs)

    def __init__(
        self, model: Any, tokenizer: Any = None, image_processor: Any = None, processor: Any = None, **kwargs
    ):
        processor = _whole_processor(model, processor, tokenizer, image_processor)
        check_belongs(processor, model.config, f"'{model.config.name_or_path}'")
        super().__init__(model=model, processor=processor, **kwargs)
        # `pipeline(..., dtype=...)` hands the dtype to the tokenizer too, which could then not be saved as JSON.
        getattr(self.tokenizer, "init_kwargs", {}).pop("dtype", None)

    def _sanitize_parameters(
        self,
        mask: bool | str | None = None,
        heatmap: bool | None = None,
        threshold: float | None = None,
        timeout: float | None = None,
        long_text: str | None = None,
        on_error: str | None = None,
        map_side: int | None = None,
        reduce_jpeg: bool | None = None,
        multiple: bool | None = None,
        **unknown: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Sort the options by the step that reads them.

        Args:
            mask: add `"mask"` over the original image: `True` or `"array"`, bool (height, width); `"pil"`, a picture;
                `"rle"`, COCO's run lengths.
            heatmap: add `"heatmap"`, the similarity of each place to the expression, float32 (height, width) in 0..1.
            threshold: add `"found"`, whether the score reaches this value. Default: that of the model's config, which
                `hivg calibrate` sets; without one, nothing is said.
            timeout: seconds to wait for an image at a URL.
            long_text: `"warn"` or `"error"`, for an expression the model cannot read to its end.
            on_error: `"raise"`, or `"return"`: an image or expression that cannot be used gives `{"error": sentence}`
                in its place, and the rest continue.
            map_side: longest side of masks and heat maps, which are then smaller than a larger image (of its shape):
                at full size, those of 16 expressions in 40 megapixels take gigabytes. Boxes do not change.
            multiple: give every box that reaches the threshold (the model's own, or 0.5, unless it is given), the
                highest score first: a list for each expression, empty where it names nothing. Of a calibrated model,
                where the best box reaches its threshold, the others need only its `multiple_threshold`. A model with
                one query (`num_queries=1`) has one box to give.
            reduce_jpeg: decode large JPEG files at a reduced scale, of at least twice the model's side: several times
                faster, with slightly other pixels. Boxes and masks stay in pixels of the whole picture. Never for
                official models.
        """
        if reduce_jpeg and not self.model.config.skip_padded_patches:
            raise ValueError(
                "reduce_jpeg changes pixels a little, and this model computes as the official code does: omit it."
            )
        if "candidate_labels" in unknown:
            raise TypeError(
                "The visual-grounding pipeline takes expressions as text=...; candidate_labels is what "
                'pipeline("zero-shot-object-detection") takes, with the same model.'
            )
        hint = "Expressions are text=..." if NAMES_OF_TEXT.intersection(unknown) else ""
        refuse_options("The visual-grounding pipeline", unknown, hint)
        if on_error not in (None, *ERROR_CHOICES):
            raise ValueError(f"on_error must be one of {', '.join(ERROR_CHOICES)}, got {on_error!r}.")
        if mask not in (None, True, False, *MASK_FORMS):
            raise ValueError(f"mask must be True, False or one of {', '.join(MASK_FORMS)}, got {mask!r}.")
        if map_side is not None and not (hasattr(map_side, "__index__") and map_side >= 1):
            raise ValueError(f"map_side must be a whole number of pixels, at least 1, got {map_side!r}.")
        for name, value in {"heatmap": heatmap, "reduce_jpeg": reduce_jpeg, "multiple": multiple}.items():
            if not isinstance(value, (bool, np.bool_, NoneType)):  # a text such as "no" would count as yes
                raise ValueError(f"{name} must be True or False, got {value!r:.80}.")
        if timeout is not None and not (isinstance(timeout, Real) and timeout > 0):
            raise ValueError(f"timeout must be a number of seconds above 0, got {timeout!r:.80}.")
        if long_text is not None:
            check_long_text(long_text)
        check_threshold(threshold)
        preprocess = {"timeout": timeout, "long_text": long_text, "reduce_jpeg": reduce_jpeg}
        forward = {"mask": None if mask is None else bool(mask), "heatmap": heatmap}
        postprocess = {"threshold": threshold, "on_error": on_error, "map_side": map_side, "mask": mask}
        postprocess["multiple"] = multiple
        given = ({k: v for k, v in step.items() if v is not None} for step in (preprocess, forward, postprocess))
        return next(given), next(given), next(given)

    def __call__(
        self, inputs: Any = None, text: Any = None, *, image: Any = None, images: Any = None, **kwargs: Any
    ) -> Any:
        """Ground expressions.

        Args:
            inputs: an image (path, URL, PIL image, bytes, open file, array) or a list of them; or, without `text`, one
                or a list of `{"image": ..., "text": expression or list}`; or a `datasets` dataset, a torch dataset, a
                generator or another iterable of images (with `text`) or of such dicts (`"expression"` is read where
                there is no `"text"`).
            text: for one image, an expression or a list of them; for a list of images, one expression for all, an
                expression per image, or a list of expressions per image; for a stream, what to ask of every image.
            image, images: other names for `inputs`.

        Returns:
            `{"expression", "box": {"xmin", "ymin", "xmax", "ymax"}, "score"}` and what the options add: boxes are
            floats in pixels of the image, which for a file, URL or bytes is the upright one that a viewer shows, and
            for a PIL image or array the object that was passed; `score` is in 0..1 or None where the model has none. A
            string gives one dict, a list of expressions a list. A list of images gives a list, a stream an iterator.
            With `multiple=True` there is a list of such dicts in the place of each.

        Raises:
            ValueError: an input cannot be used; the message names it.
        """
        given = [value for value in (inputs, image, images) if value is not None]
        if not given:
            raise ValueError("Give an image and an expression, as in pipe('street.jpg', 'the man in blue').")
        if len(given) > 1:
            raise TypeError("Give the image once: as the first argument, or as image= or images=.")
        inputs = as_rows(given[0])
        text = list(text) if isinstance(text, Iterator) and is_text_list(text) else text
        is_sequence = hasattr(inputs, "__getitem__") and hasattr(inputs, "__len__")
        if is_one_image(inputs) or isinstance(inputs, Mapping) or not (is_sequence or isinstance(inputs, Iterable)):
            expressions = inputs.get("text") if isinstance(inputs, Mapping) and text is None else text
            if isinstance(expressions, (list, tuple)) and self._batch_size is None:
                kwargs.setdefault("batch_size", max(1, min(len(expressions), EXPRESSIONS_PER_PASS)))
            return super().__call__([Entry(inputs, text)], **kwargs)[0]
        if isinstance(inputs, (list, tuple)) or (hasattr(inputs, "ndim") and hasattr(inputs, "shape")):
            entries = pair_up(list(inputs), text)
            return super().__call__(entries, **kwargs) if entries else []
        if is_sequence:
            return super().__call__(EntryDataset(inputs, text), **kwargs)
        return super().__call__((Entry(row, text) for row in inputs), **kwargs)

    def video(
        self, path: Any, text: Any, *, smooth: bool = True, batch_size: int = 8, **options: Any
    ) -> Iterator[Any]:
        """Ground expressions in every frame of a video file; any length needs the same memory.

        Args:
            path: a video file (needs the extra `video`).
            text: an expression or a list of them.
            smooth: steady the boxes over time; `"raw_box"` is then the frame's own.
            batch_size: pairs of a frame and an expression per pass.
            options: as in `__call__`.

        Yields:
            Per frame `{"frame", "time", "image", "expression", "box", "score"}`: its number, its time in seconds, and
            the upright picture; for a list of expressions `"results"` in place of the last three. With
            `multiple=True` and `smooth=False`, `"results"` holds every box of each expression, and of one that names
            nothing its best with `"found": False`.

        Raises:
            FileNotFoundError: the file is missing.
            ValueError: it is not a video, or damaged.
        """
        return ground_frames(self, read_frames(path), text, smooth, batch_size=batch_size, **options)

    def get_iterator(
        self,
        inputs: Any,
        num_workers: int,
        batch_size: int,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> "ResultStream":
        """What the base class calls for lists, datasets and generators of items."""
        if not hasattr(batch_size, "__index__"):
            raise TypeError(f"batch_size must be a whole number of at least 1, got {batch_size!r}.")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        if not hasattr(num_workers, "__index__") or num_workers < 0:
            raise ValueError(f"num_workers must be a whole number, 0 or more processes, got {num_workers!r:.80}.")
        # Not `self.preprocess`, with which worker processes would be sent the model, too.
        loader = preparing_loader(inputs, partial(prepare_item, self.processor), preprocess_params, num_workers)
        results = self._results(loader, batch_size, forward_params, postprocess_params)
        return ResultStream(results, len(inputs) if hasattr(inputs, "__len__") else None)

    def _results(
        self,
        loader: Iterable[Any],
        batch_size: int,
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> Iterator[Any]:
        """Pairs of several items share a pass; items come out whole and in order."""
        postprocess_params = dict(postprocess_params)
        on_error = postprocess_params.pop("on_error", "raise")
        waiting: deque[PendingItem] = deque()
        pairs: list[tuple[PendingItem, int]] = []

        def run(batch: list[tuple[PendingItem, int]]) -> None:
            outputs = self.forward(self._collate(batch), **forward_params)
            for (pending, place), result in zip(batch, self.postprocess(outputs, **postprocess_params)):
                expression = pending.features["expressions"][place]
                pending.results[place] = _with_expression(expression, result)
                pending.left -= 1

        for features in loader:
            if "error" in features and on_error == "raise":
                raise features["error"]
            waiting.append(PendingItem(features))
            pairs.extend((waiting[-1], place) for place in range(waiting[-1].left))
            while batch := take_batch(pairs, batch_size, batch_size * LOOKAHEAD):
                run(batch)
            while waiting and not waiting[0].left:
                yield waiting.popleft().answer()
        while pairs:
            run(take_batch(pairs, batch_size, 0))
        yield from (pending.answer() for pending in waiting)

    def preprocess(self, inputs: dict[str, Any], **options: Any) -> dict[str, Any]:
        """See `prepare_item`."""
        return prepare_item(self.processor, inputs, **options)

    def _collate(self, batch: "list[tuple[PendingItem, int]]") -> dict[str, Any]:
        """Pairs -> model inputs; images and rows of token ids are unique, `image_index` and `text_index` say which of
        them a pair reads."""
        images = list(dict.fromkeys(pending for pending, _ in batch))
        features = [pending.features for pending in images]
        token_ids = [pending.features["token_ids"][place] for pending, place in batch]
        unique = list(dict.fromkeys(token_ids))
        rows = {ids: row for row, ids in enumerate(unique)}
        lengths = torch.tensor([len(ids) for ids in unique])
        model_inputs = {
            "input_ids": _pad_rows([torch.tensor(ids) for ids in unique], self.processor.tokenizer.pad_token_id or 0),
            "attention_mask": (torch.arange(int(lengths.max())) < lengths[:, None]).long(),  # (U, T)
            "pixel_values": torch.stack([item["pixel_values"] for item in features]),
            "pixel_mask": torch.stack([item["pixel_mask"] for item in features]),
            "target_sizes": [pending.features["target_size"] for pending, _ in batch],
        }
        if "patch_index" in features[0]:
            model_inputs["patch_index"] = _pad_rows([item["patch_index"] for item in features], -1)
        if len(unique) < len(batch):
            model_inputs["text_index"] = torch.tensor([rows[ids] for ids in token_ids])
        if len(images) < len(batch):
            places = {pending: place for place, pending in enumerate(images)}
            model_inputs["image_index"] = torch.tensor([places[pending] for pending, _ in batch])
        return model_inputs

    def _forward(self, model_inputs: dict[str, Any], mask: bool = False, heatmap: bool = False) -> dict[str, Any]:
        target_sizes = model_inputs.pop("target_sizes")
        model_inputs["pixel_values"] = model_inputs["pixel_values"].to(self.model.dtype)
        outputs = self.model(**model_inputs, output_masks=mask, output_token_logits=heatmap)
        wanted = {
            "pred_boxes": outputs.pred_boxes,
            "scores": outputs.scores,
            "query_boxes": outputs.query_boxes,
            "query_scores": outputs.query_scores,
            "query_mask_logits": outputs.query_mask_logits if mask else None,
            "mask_logits": outputs.mask_logits if mask else None,
            "token_logits": outputs.token_logits if heatmap else None,
        }
        return {**{name: value for name, value in wanted.items() if value is not None}, "target_sizes": target_sizes}

    def postprocess(
        self,
        outputs: dict[str, Any],
        threshold: float | None = None,
        map_side: int | None = None,
        mask: bool | str = True,
        multiple: bool = False,
    ) -> list[Any]:
        """Model outputs of a batch -> one plain dict per pair; with `multiple`, a list of them."""
        multiple_threshold = threshold
        if threshold is None:  # a calibrated model's own
            threshold, multiple_threshold = (
                getattr(self.model.config, name, None) for name in ("score_threshold", "multiple_threshold")
            )
        if multiple and threshold is None:
            threshold = DEFAULT_THRESHOLD
        sizes = outputs["target_sizes"]
        map_sizes = sizes if map_side is None else [_within(size, map_side) for size in sizes]
        options = {}
        if multiple:
            options = {"threshold": threshold, "multiple": True, "multiple_threshold": multiple_threshold}
        found = self.processor.post_process_grounding(outputs, sizes, map_sizes=map_sizes, **options)
        heatmaps = None
        if "token_logits" in outputs:
            heatmaps = self.processor.post_process_heatmaps(outputs, sizes, map_sizes)
        results: list[Any] = []
        for row, entry in enumerate(found):
            heatmap = None if heatmaps is None else heatmaps[row].numpy()
            best = _answer(entry["box"], entry["score"], entry["mask"], threshold, mask, heatmap)
            if not multiple:
                results.append(best)
                continue
            masks = entry.get("masks", [None] * len(entry["boxes"]))
            every = zip(entry["boxes"], entry["scores"], masks)
            # What is given is found: the model's second threshold has decided that.
            each = [_answer(box, score, own, 0.0, mask, heatmap) for box, score, own in every]
            results.append(GroundingResults(each, best))
        return results

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Save model, code and processor; the base class would leave `processor_config.json` out."""
        remote = type(self.model.config).__module__.startswith("transformers_modules")
        super().save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)
        if not remote:  # the base class set it; on a live config it would make transformers ask for trust
            vars(self.model.config).pop("custom_pipelines", None)


def prepare_item(
    processor: HiVGProcessor,
    inputs: dict[str, Any],
    timeout: float | None = None,
    long_text: str = "warn",
    reduce_jpeg: bool = False,
) -> dict[str, Any]:
    """One item `{"image", "text"}` -> tensors of one image (3, S, S) and the token ids of its E expressions."""
    reduce_to = 2 * processor.image_processor.side if reduce_jpeg else None
    image = open_image(inputs["image"], timeout=timeout, reduce_to=reduce_to)
    target_size = image_size(image)
    if is_reduced(image):  # where the whole picture would lie in the square, to the pixel
        place = processor.image_processor.geometry(*target_size)
        image = image.resize((place.new_width, place.new_height), PIL.Image.Resampling.BILINEAR)
    several = not isinstance(inputs["text"], str)
    expressions = list(inputs["text"]) if several else [inputs["text"]]
    opened = processor.image_processor([image], input_data_format="channels_last", return_tensors="pt")
    features = {name: value[0] for name, value in opened.items()}
    if processor.image_processor.skip_padded_patches:
        index = processor.image_processor.patch_index_for(opened["pixel_mask"])
        features["patch_index"] = torch.from_numpy(index[0])
    tokens = processor(text=expressions, long_text=long_text, padding=True, return_tensors="pt")
    rows = zip(tokens["input_ids"], tokens["attention_mask"].bool())
    return {
        **features,
        "token_ids": [tuple(ids[mask].tolist()) for ids, mask in rows],
        "expressions": expressions,
        "several": several,
        "target_size": target_size,
    }


def _whole_processor(model: Any, processor: Any, tokenizer: Any, image_processor: Any) -> HiVGProcessor:
    """The processor that was given, with the parts that were given beside it; or the one saved with the model."""
    if processor is None and (tokenizer is None or image_processor is None):
        saved = model.config.name_or_path
        if not saved:
            raise ValueError(
                "This model was not loaded from a folder or the Hub, so its processor is not known: pass "
                "processor=..., or tokenizer=... and image_processor=...."
            )
        processor = HiVGProcessor.from_pretrained(saved)
    if processor is not None and tokenizer is None and image_processor is None:
        return processor
    if isinstance(tokenizer, str):
        tokenizer = AutoTokenizer.from_pretrained(tokenizer)
    if isinstance(image_processor, str):
        image_processor = HiVGImageProcessor.from_pretrained(image_processor)
    return HiVGProcessor(image_processor or processor.image_processor, tokenizer or processor.tokenizer)


def _pad_rows(rows: Sequence[torch.Tensor], value: int) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value)


def _within(size: tuple[int, int], side: int) -> tuple[int, int]:
    """(height, width) shrunk to a longest side, in proportion."""
    scale = min(1.0, side / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _answer(
    box: torch.Tensor,
    score: torch.Tensor | None,
    mask: torch.Tensor | None,
    threshold: float | None,
    form: bool | str,
    heatmap: Any,
) -> dict[str, Any]:
    """One box (4,) with its score () and mask (H, W) as a plain dict."""
    number = None if score is None else float(score)
    result: dict[str, Any] = {
        "box": dict(zip(("xmin", "ymin", "xmax", "ymax"), box.tolist(), strict=True)),
        "score": number,
    }
    if threshold is not None:
        result["found"] = _required_score(number) >= threshold
    if mask is not None:
        result["mask"] = mask_in_form(mask.numpy(), form)
    if heatmap is not None:
        result["heatmap"] = heatmap
    return result


def _with_expression(expression: str, result: Any) -> Any:
    if isinstance(result, GroundingResults):
        each = [{"expression": expression, **one} for one in result]
        return GroundingResults(each, {"expression": expression, **result.best})
    return {"expression": expression, **result}


def _required_score(score: float | None) -> float:
    if score is None:
        raise ValueError("This model gives no score, so that no threshold can be applied: omit threshold.")
    return score


__all__ = ["GroundingResults", "VisualGroundingPipeline"]
