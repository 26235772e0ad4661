"""HiVGProcessor: images, expressions, boxes and masks in; model outputs back to pixels of the original images."""

import difflib
import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin, Unpack

from .box_ops_hivg import rasterize_boxes, suppress_overlaps
from .image_loading_hivg import image_size, open_image
from .image_processing_hivg import (
    HiVGImageProcessor,
    HiVGImageProcessorKwargs,
    checked_sizes,
    image_list,
    output_value,
)
from .processing_inputs_hivg import (
    box_rows,
    check_threshold,
    checked_boxes,
    expression_rows,
    mask_rows,
    refuse_options,
)
from .text_cleaning_hivg import checked_expressions, clean_expression, cleaning_tokenizer, listed_phrases

NORMALIZATION_CONSTANTS = {
    "clip": (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD),
    "imagenet": (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
}
LONG_TEXT_CHOICES = ("warn", "error")
# From which score on a box is one of several answers, where nobody has chosen: more likely right than not.
DEFAULT_THRESHOLD = 0.5
DUPLICATE_IOU = 0.5  # of two boxes that overlap so much, the lower one is taken for the same object
# Tokens that a model may have beyond its tokenizer's: embeddings are often enlarged to a multiple of up to 128.
SPARE_TOKENS = 128
# CLIP configs of before transformers 4.31 hold ids up to this in place of CLIP's own.
LEGACY_IDS = 2
# Options of a tokenizer that would make something else of an expression than one row.
NOT_FOR_EXPRESSIONS = (
    *("text_pair", "text_target", "text_pair_target", "is_split_into_words"),
    *("return_overflowing_tokens", "stride"),
)


def check_long_text(value: Any) -> None:
    """Refuse a way of treating long texts that there is not."""
    if value not in LONG_TEXT_CHOICES:
        raise ValueError(f"long_text must be one of {', '.join(LONG_TEXT_CHOICES)}, got {value!r:.80}.")


def check_belongs(processor: Any, config: Any, name: str) -> None:
    """Refuse a processor that makes squares, patches or tokens which a model has not: its answers would mean nothing.

    Args:
        processor: A `HiVGProcessor`.
        config: The model's `HiVGConfig`.
        name: Of the model, for messages.

    Raises:
        ValueError: With the first value that differs.
    """
    pixels, text, tokenizer = processor.image_processor, config.text_config, processor.tokenizer
    for what, has, needs in (
        ("squares of side", pixels.side, config.image_size),
        ("patches of side", pixels.patch_size, config.patch_size),
    ):
        if has != needs:
            raise ValueError(
                f"The processor of {name} makes {what} {has}, and its model reads {needs}: save the processor that "
                "the model was trained with beside it (HiVGProcessor.for_config makes one)."
            )
    tokens, known = len(tokenizer), text.vocab_size
    if not known - SPARE_TOKENS <= tokens <= known:
        raise ValueError(
            f"The tokenizer of {name} has {tokens} tokens, and its model knows {known}: save the tokenizer that the "
            "model was trained with beside it."
        )
    for what in ("bos_token_id", "eos_token_id"):
        has, needs = getattr(tokenizer, what), getattr(text, what)
        if isinstance(has, int) and isinstance(needs, int) and has != needs and LEGACY_IDS < needs < known:
            raise ValueError(
                f"The tokenizer of {name} has the {what} {has}, and its model {needs}: save the tokenizer that the "
                "model was trained with beside it."
            )


class ExpressionCutWarning(UserWarning):
    """An expression was longer than the model can read; the message names the words that were cut."""


class SeveralPhrasesWarning(UserWarning):
    """An expression looks like a list of phrases in one string, and is read as one expression; said once."""

    was_given = False


class HiVGProcessorKwargs(ProcessingKwargs, total=False):  # type: ignore[call-arg]
    r"""
    long_text (`str`, *optional*):
        What to do with an expression that the model cannot read to its end: `"warn"` cuts it, keeps the end token and
        names the words that were cut; `"error"` raises.
    """

    images_kwargs: HiVGImageProcessorKwargs
    long_text: str | None


class HiVGProcessor(ProcessorMixin):
    """Image processor and CLIP tokenizer as one.

    `processor(images, text, boxes=None, masks=None)` returns `pixel_values (B, 3, S, S)`, `pixel_mask (B, S, S)`,
    `patch_index (B, P)`, `input_ids` and `attention_mask (N, T)`, and, when asked for, `labels (N, 4)` (`(N, M, 4)`
    where an expression names several things) and `mask_labels (N, S, S)`. Where images and expressions are not one to
    one, `image_index (N,)` says which image each expression belongs to. Options are those of CLIP's processor, flat or
    as `text_kwargs` and `images_kwargs`; by default rows are padded to the longest and cut to what the model reads,
    and tensors are torch's.

    Example:

    ```python
    >>> import hivg_hf
    >>> from PIL import Image
    >>> processor = hivg_hf.HiVGProcessor.from_pretrained(hivg_hf.TINY_CHECKPOINT)
    >>> image = Image.new("RGB", (640, 480))
    >>> inputs = processor(images=image, text=["the red star", "the ring"], boxes=[(64, 48, 128, 96), None])
    >>> inputs["pixel_values"].shape, inputs["image_index"]
    (torch.Size([1, 3, 112, 112]), tensor([0, 0]))
    >>> inputs["labels"].shape
    torch.Size([2, 4])
    ```"""

    valid_processor_kwargs = HiVGProcessorKwargs
    text_kwargs = {"padding": True, "truncation": True, "return_tensors": "pt"}
    images_kwargs = {"return_tensors": "pt"}
    long_text = "warn"

    def __init__(self, image_processor: HiVGImageProcessor, tokenizer: Any):
        super().__init__(image_processor, cleaning_tokenizer(tokenizer))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """As of every processor; what is another part's option is refused, where transformers would ignore it.

        Raises:
            TypeError: For `image_size` or `long_text`, with what to pass instead.
        """
        if "image_size" in kwargs:
            side = kwargs["image_size"]
            raise TypeError(
                f'image_size is an option of the model; the processor has size={{"height": {side}, "width": {side}}}.'
            )
        if "long_text" in kwargs:
            raise TypeError("long_text is an option of each call: processor(images, text, long_text=...).")
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def for_config(cls, config: Any, tokenizer: Any) -> "HiVGProcessor":
        """The processor that a `HiVGConfig` needs; expressions are limited to what its text tower can read."""
        mean, std = NORMALIZATION_CONSTANTS[config.image_normalization]
        image_processor = HiVGImageProcessor(
            size={"height": config.image_size, "width": config.image_size},
            patch_size=config.clip_config.vision_config.patch_size,
            pad_align=config.pad_align,
            skip_padded_patches=config.skip_padded_patches,
            image_mean=mean,
            image_std=std,
        )
        positions = config.clip_config.text_config.max_position_embeddings
        processor = cls(image_processor, tokenizer)
        processor.tokenizer.model_max_length = min(processor.tokenizer.model_max_length, positions)
        return processor

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "pixel_values", "pixel_mask", "patch_index"]

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | Sequence[Sequence[str]] | None = None,
        boxes: Any = None,
        masks: Any = None,
        **kwargs: Unpack[HiVGProcessorKwargs],
    ) -> BatchFeature:
        """Model inputs for images, expressions, or both.

        Args:
            images: Anything `load_grounding_image` opens, or a list of it. Files, URLs and bytes are turned upright by
                their EXIF orientation; PIL images and arrays are taken as they are held, so that boxes, masks and
                `target_sizes=[image.size[::-1]]` mean the object that was passed.
            text: An expression per image; several expressions of one image; or a list of expressions for each image.
            boxes: Per expression a box as `xyxy` pixels of the original image, a list of boxes where it names several
                things, or None where it names nothing (its row of `labels` is NaN). Lists, arrays or tensors; for one
                expression the box itself.
            masks: Per expression a mask of the original image (height, width), nonzero = target (all of them
                together), as PIL image, array or tensor; or None, for which the boxes as a mask are taken. When every
                mask is None there is no `mask_labels`. For one expression the mask itself.
            kwargs: [`HiVGProcessorKwargs`]. With `padding="max_length"` every row of `patch_index` has room for all
                patches, too, so that rows of different calls can be stacked. `device` moves all tensors.

        Raises:
            TypeError: If an option is unknown, or images and texts are swapped.
            ValueError: If lengths differ, an expression is blank or too long, a box or mask does not fit its image.
        """
        if images is None and text is None:
            raise ValueError("HiVGProcessor needs images, text, or both.")
        if images is None and (boxes is not None or masks is not None):
            raise ValueError("Boxes and masks can only be given together with their images.")
        self._refuse_unknown(kwargs)
        options = self._merge_kwargs(tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)
        image_options, text_options = dict(options["images_kwargs"]), dict(options["text_kwargs"])
        device = image_options.pop("device", None)
        sources = None if images is None else _unnested(image_list(images))
        index, features = None, {}
        if text is not None:
            expressions, index = expression_rows(text, None if sources is None else len(sources))
            features.update(self._text_features(expressions, options["long_text"], text_options))
        if sources is not None:
            channels = image_options.get("input_data_format")
            pictures = [open_image(image, input_data_format=channels) for image in sources]
            fixed = getattr(text_options.get("padding"), "value", text_options.get("padding")) == "max_length"
            rows = self._image_features(pictures, index, boxes, masks, fixed, image_options)
            features.update(BatchFeature(rows, tensor_type=image_options.get("return_tensors")))
        batch = BatchFeature(features)
        return batch if device is None else batch.to(device)

    def __getattr__(self, name: str) -> Any:
        message = f"'{type(self).__name__}' object has no attribute '{name}'."
        if name.startswith("post_process"):
            message = (
                f"HiVGProcessor has no {name}: use post_process_grounded_object_detection, which gives detections for "
                "each image, or post_process_grounding, which gives a box, a score and a mask for each expression."
            )
        raise AttributeError(message, name=name, obj=self)

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> Any:
        """As `ProcessorMixin.save_pretrained`; what it notes on the object for the file is not part of the object."""
        saved = super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)
        self.__dict__.pop("auto_map", None)
        return saved

    def _refuse_unknown(self, options: dict[str, Any]) -> None:
        text, images = (HiVGProcessorKwargs.__annotations__[kind].__annotations__ for kind in _MODALITIES)
        known = {*HiVGProcessorKwargs.__annotations__, "common_kwargs", *text, *images}
        nested = {"text_kwargs": text, "images_kwargs": images}
        for where, kind in {"": known, **nested}.items():
            for name in (options.get(where) or {}) if where else options:
                if name not in kind:
                    close = difflib.get_close_matches(name, kind, n=1)
                    hint = f"Did you mean {close[0]!r}?" if close else "See HiVGProcessorKwargs."
                    raise TypeError(f"HiVGProcessor has no option {name!r}{where and f' in {where}'}. {hint}")
        given = {**options, **(options.get("text_kwargs") or {})}
        for name in NOT_FOR_EXPRESSIONS:
            if given.get(name):
                raise ValueError(f"HiVGProcessor makes one row of each expression: omit {name}.")

    def _text_features(self, text: list[Any], long_text: str, options: dict[str, Any]) -> dict[str, Any]:
        expressions = checked_expressions(text)
        warn_of_phrases(expressions)
        check_long_text(long_text)
        if options.get("max_length") is not None and options["max_length"] < 1:
            raise ValueError(f"max_length must be a positive number of tokens, got {options['max_length']}.")
        cuts = options.get("truncation") not in (None, False, "do_not_truncate")
        limit = min(options.get("max_length") or math.inf, self.tokenizer.model_max_length)
        if cuts:
            self._report_long_texts(expressions, limit, long_text, options.get("add_special_tokens"))
        if cuts or options.get("max_length") is None:
            options = {**options, "max_length": limit}
        # A tokenizer cuts before it adds the end token, which therefore stays last.
        return dict(self._tokens(expressions, **options))

    def _tokens(self, expressions: list[str], **options: Any) -> Any:
        try:
            return self.tokenizer(expressions, **options)
        except BaseException as error:
            # A panic of the tokenizers library, whose class cannot be imported and is not an Exception.
            if type(error).__name__ != "PanicException":
                raise
            raise ValueError(
                f"The tokenizer gave up on the expression '{_shortened(expressions[0])}' or one with it "
                f"({str(error)[:200]}); take the tokenizer that the model was trained with."
            ) from None

    def _report_long_texts(self, expressions: list[str], limit: int, long_text: str, special: bool | None) -> None:
        full = self._tokens(expressions, return_offsets_mapping=True, add_special_tokens=special is not False)
        for expression, ids, offsets in zip(expressions, full["input_ids"], full["offset_mapping"]):
            if len(ids) <= limit:
                continue
            # limit - 1 tokens stay in front of the end token.
            lost = expression[offsets[limit - 1][0] :]
            if self.tokenizer.truncation_side == "left":
                lost = expression[: offsets[len(ids) - limit][1]]
            message = f"The expression '{_shortened(expression)}' has {len(ids)} tokens, and the model reads {limit}"
            if long_text == "error":
                raise ValueError(f"{message}: shorten it, or pass long_text='warn' to cut '{_shortened(lost, 400)}'.")
            warnings.warn(f"{message}: cut '{_shortened(lost, 400)}'.", ExpressionCutWarning, stacklevel=4)

    def _image_features(
        self,
        pictures: list[Any],
        index: list[int] | None,
        boxes: Any,
        masks: Any,
        fixed: bool,
        options: dict[str, Any],
    ) -> dict[str, np.ndarray]:
        """Arrays of the images, one row each, and of their targets, one row per expression (see `__call__`)."""
        options = {**options, "return_tensors": None, "input_data_format": "channels_last"}
        rows = dict(self.image_processor(pictures, **options))
        if self.image_processor.skip_padded_patches:
            rows["patch_index"] = self.image_processor.patch_index_for(rows["pixel_mask"])  # (B, P)
            if fixed:
                missing = (self.image_processor.side // self.image_processor.patch_size) ** 2
                missing -= rows["patch_index"].shape[1]
                rows["patch_index"] = np.pad(rows["patch_index"], ((0, 0), (0, missing)), constant_values=-1)  # (B, N)
        sizes = [image_size(picture) for picture in pictures]
        if index is not None:
            rows["image_index"] = np.array(index, dtype=np.int64)
            sizes = [sizes[image] for image in index]
        targets = self._target_features(sizes, box_rows(boxes, len(sizes)), mask_rows(masks, len(sizes)))
        return {**rows, **{name: value.numpy() for name, value in targets.items()}}

    def _target_features(self, sizes: list[tuple[int, int]], boxes: Any, masks: Any) -> dict[str, torch.Tensor]:
        features: dict[str, torch.Tensor] = {}
        if boxes is not None:
            rows = checked_boxes(boxes, sizes)
            features["labels"] = self.image_processor.boxes_to_square(rows, sizes)
        if masks is not None:
            if len(masks) != len(sizes):
                raise ValueError(
                    f"Got {len(sizes)} images and {len(masks)} masks, where one mask per image is needed."
                )
            if any(mask is not None for mask in masks):
                features["mask_labels"] = torch.stack(
                    [self._mask_label(row, mask, size, features) for row, (mask, size) in enumerate(zip(masks, sizes))]
                )
        return features

    def _mask_label(
        self, row: int, mask: Any, size: tuple[int, int], features: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """bool (S, S): the mask itself, or the box as a mask where there is none or scaling down lost all of it."""
        if mask is None:
            if "labels" not in features:
                raise ValueError(f"Image {row} has neither a mask nor a box, while other images have masks.")
            return self._box_as_mask(features["labels"][row])
        if tuple(mask.shape) != size:
            raise ValueError(f"Mask {row} is {tuple(mask.shape)} and its image {size} (height, width).")
        square = self.image_processor.mask_to_square(mask)
        return square if square.any() or "labels" not in features else self._box_as_mask(features["labels"][row])

    def _box_as_mask(self, box_cxcywh: torch.Tensor) -> torch.Tensor:
        side = self.image_processor.side
        return rasterize_boxes(box_cxcywh.reshape(-1, 4), side, side).bool().any(0)  # (S, S)

    def post_process_grounding(
        self,
        outputs: Any,
        target_sizes: Sequence[tuple[int, int]] | torch.Tensor | None = None,
        threshold: float | None = None,
        map_sizes: Sequence[tuple[int, int]] | None = None,
        multiple: bool = False,
        multiple_threshold: float | None = None,
        **unknown: Any,
    ) -> list[dict[str, Any]]:
        """Model outputs -> per row `{"box": (4,), "score": () or None, "mask": (height, width) bool or None}`.

        With `multiple`, a row also has every box that reaches the threshold, the highest score first: `boxes (n, 4)`,
        `scores (n,)` and, where there are masks, `masks (n, height, width)`. Of boxes that overlap by an IoU of
        `DUPLICATE_IOU` or more only the best is given: two queries then answer with one object.

        Args:
            outputs: A `HiVGOutput` or dict with `pred_boxes (B, 4)` and, where computed, `scores (B,)` and
                `mask_logits (B, h, w)`; for `multiple` with `query_boxes`, `query_scores` and `query_mask_logits` of a
                model with several queries. Of one with one query, its box is all there is.
            target_sizes: (height, width) of each row's original image. Without them, boxes are `xyxy` in 0..1 of the
                padded square, and masks the model's own (h, w).
            threshold: Add `"found"`, whether the score reaches this value. With `multiple`, 0.5 unless it is given.
            map_sizes: (height, width) of each mask, where it is not that of the image.
            multiple: Give every box that reaches the threshold.
            multiple_threshold: With `multiple`, where a row's best box reaches `threshold`, give every other one that
                reaches this value: `threshold` decides whether anything is there, this how much. Default: `threshold`.

        Returns:
            Boxes are float32 `xyxy` pixels of the original image, clipped to it.
        """
        refuse_options("post_process_grounding", unknown)
        if multiple and threshold is None:
            threshold = DEFAULT_THRESHOLD
        pred_boxes, scores, mask_logits = (
            output_value(outputs, name) for name in ("pred_boxes", "scores", "mask_logits")
        )
        check_threshold(threshold)
        check_threshold(multiple_threshold, "multiple_threshold")
        if multiple_threshold is not None and not multiple:
            raise ValueError("multiple_threshold chooses among the boxes of multiple=True: pass that, or omit it.")
        if threshold is not None and scores is None:
            raise ValueError("These outputs have no scores, so that no threshold can be applied: omit threshold.")
        boxes = self.image_processor.boxes_in_images(pred_boxes, target_sizes)
        sizes = None if target_sizes is None else checked_sizes(target_sizes)

        def mask_of(logits: torch.Tensor, row: int) -> torch.Tensor:
            if sizes is None:
                return logits.detach().cpu() > 0
            map_size = sizes[row] if map_sizes is None else map_sizes[row]
            return self.image_processor.map_to_image(logits, sizes[row], map_size) > 0

        results = []
        for row, box in enumerate(boxes):
            mask = None if mask_logits is None else mask_of(mask_logits[row], row)
            score = None if scores is None else scores[row].detach().cpu().float()
            results.append({"box": box, "score": score, "mask": mask})
            if threshold is not None:
                results[-1]["found"] = bool(score >= threshold)
        if multiple:
            lowest = threshold if multiple_threshold is None else multiple_threshold
            query_boxes, query_scores = self.image_processor.query_answers(outputs, sizes)
            query_masks = output_value(outputs, "query_mask_logits")
            query_masks = mask_logits[:, None] if query_masks is None and mask_logits is not None else query_masks
            for row, order in enumerate(query_scores.argsort(1, descending=True)):
                reached = query_scores[row][order] >= lowest
                reached[0] = True  # the best one need only reach `threshold`
                kept = order[reached] if results[row]["found"] else order[:0]
                kept = kept[suppress_overlaps(query_boxes[row][kept], query_scores[row][kept], DUPLICATE_IOU)]
                results[row].update(boxes=query_boxes[row][kept], scores=query_scores[row][kept])
                if query_masks is not None:
                    masks = [mask_of(query_masks[row, place], row) for place in kept.tolist()]
                    results[row]["masks"] = torch.stack(masks) if masks else results[row]["mask"][None][:0]
        return results

    def post_process_grounded_object_detection(
        self,
        outputs: Any,
        input_ids: torch.Tensor | None = None,
        threshold: float = 0.0,
        text_threshold: float | None = None,
        target_sizes: Sequence[tuple[int, int]] | torch.Tensor | None = None,
        text_labels: Sequence[str] | Sequence[Sequence[str]] | None = None,
        **unknown: Any,
    ) -> list[dict[str, Any]]:
        """Model outputs -> per image its detections, as Grounding DINO's and OWLv2's processors give them.

        Args:
            outputs: A `HiVGOutput` or dict with `pred_boxes` and `scores`, a row per expression.
            input_ids: Not read: an expression names what its row finds.
            threshold: Detections with a higher score are kept.
            text_threshold: Not read, for the same reason.
            target_sizes: (height, width) of each image; see `post_process_grounding`.
            text_labels: The expressions of each image, or of the only image. Without them, every image has the same
                number of rows.

        Returns:
            Per image `scores (K,)`, `boxes (K, 4)`, `labels (K,)`, the place of the expression among those of its
            image, and `text_labels`, the expressions, or None.

        Raises:
            ValueError: If rows, images and labels do not fit each other, or there are no scores.
        """
        refuse_options("post_process_grounded_object_detection", unknown)
        target_sizes = None if target_sizes is None else checked_sizes(target_sizes)
        rows, images = len(output_value(outputs, "pred_boxes")), None if target_sizes is None else len(target_sizes)
        groups = _label_groups(text_labels, rows, images)
        sizes = None
        if target_sizes is not None:
            sizes = [size for size, group in zip(target_sizes, groups) for _ in group]
        found = self.image_processor.post_process_object_detection(outputs, threshold=threshold, target_sizes=sizes)
        results, start = [], 0
        for group in groups:
            own = found[start : start + len(group)]
            start += len(group)
            labels = [place for place, row in enumerate(own) for _ in row["scores"]]
            results.append(
                {
                    "scores": torch.cat([row["scores"] for row in own]),
                    "boxes": torch.cat([row["boxes"] for row in own]),
                    "labels": torch.tensor(labels, dtype=torch.long),
                    "text_labels": None if text_labels is None else [group[place] for place in labels],
                }
            )
        return results

    def post_process_heatmaps(
        self,
        outputs: Any,
        target_sizes: Sequence[tuple[int, int]] | torch.Tensor,
        map_sizes: Sequence[tuple[int, int]] | None = None,
    ) -> list[torch.Tensor]:
        """Similarity of each patch to the expression, 0..1, over the original images: float32 (height, width) each.

        Needs `token_logits (B, N)`, which the model returns with `output_token_logits=True`.
        """
        token_logits = output_value(outputs, "token_logits")
        if token_logits is None:
            raise ValueError("There are no token_logits: call the model with output_token_logits=True.")
        grid = math.isqrt(token_logits.shape[-1])
        maps = token_logits.float().sigmoid().reshape(-1, grid, grid)  # (B, N) -> (B, G, G)
        map_sizes = target_sizes if map_sizes is None else map_sizes
        triples = zip(maps, target_sizes, map_sizes)
        return [self.image_processor.map_to_image(values, size, map_size) for values, size, map_size in triples]


_MODALITIES = ("text_kwargs", "images_kwargs")


def warn_of_phrases(expressions: Sequence[str]) -> None:
    """Warn, once per process, of the first expression that looks like several (`listed_phrases`)."""
    for expression in () if SeveralPhrasesWarning.was_given else expressions:
        if phrases := listed_phrases(expression):
            SeveralPhrasesWarning.was_given = True
            message = (
                f"'{_shortened(expression)}' is read as one expression and gets one answer. For an answer to each "
                f"phrase, pass separate expressions: {_shortened(str(phrases), 200)}."
            )
            warnings.warn(message, SeveralPhrasesWarning, stacklevel=4)
            return


def _unnested(images: list[Any]) -> list[Any]:
    """`[[image], [image]]`, as processors with several images per text take them -> `[image, image]`."""
    if images and all(isinstance(entry, (list, tuple)) and len(entry) == 1 for entry in images):
        return [entry[0] for entry in images]
    return images


def _label_groups(text_labels: Any, rows: int, images: int | None) -> list[list[Any]]:
    """The labels of each image's rows; None for each row where there are no labels."""
    if text_labels is None:
        images = rows if images is None else images
        if not images or rows % images:
            raise ValueError(
                f"Got {rows} predictions for {images} images, which is not the same number for each: pass "
                "text_labels, the list of expressions of each image."
            )
        return [[None] * (rows // images)] * images
    labels = list(text_labels)
    if all(isinstance(label, str) for label in labels):
        labels = [[label] for label in labels] if images == rows and rows != 1 else [labels]
    groups = [[label] if isinstance(label, str) else list(label) for label in labels]
    if sum(map(len, groups)) != rows or (images is not None and len(groups) != images) or not all(groups):
        raise ValueError(
            f"Got {rows} predictions, {images} target_sizes and labels for {[len(group) for group in groups]}: pass "
            "one size per image, and for each image the expressions that it was asked for."
        )
    return groups


def _shortened(text: str, limit: int = 80) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."


__all__ = [
    "ExpressionCutWarning",
    "HiVGProcessor",
    "SeveralPhrasesWarning",
    "check_belongs",
    "clean_expression",
    "warn_of_phrases",
]
