"""HiVGProcessor: images, expressions, boxes and masks in; model outputs back to pixels of the original images."""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.processing_utils import ProcessorMixin

from .box_ops_hivg import rasterize_boxes
from .image_loading_hivg import image_size, open_image
from .image_processing_hivg import HiVGImageProcessor, image_list
from .text_cleaning_hivg import checked_expressions, clean_expression, cleaning_tokenizer

NORMALIZATION_CONSTANTS = {
    "clip": (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD),
    "imagenet": (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
}
LONG_TEXT_CHOICES = ("warn", "error")


class ExpressionCutWarning(UserWarning):
    """An expression was longer than the model can read; the message names the words that were cut."""


class HiVGProcessor(ProcessorMixin):
    """Image processor and CLIP tokenizer as one.

    `processor(images, text, boxes=None, masks=None)` returns `pixel_values (B, 3, S, S)`, `pixel_mask (B, S, S)`,
    `patch_index (B, P)` (see `HiVGImageProcessor`), `input_ids` and `attention_mask (B, T)` with T the longest
    expression of the call, and, when asked for, `labels (B, 4)` and `mask_labels (B, S, S)`.
    """

    def __init__(self, image_processor: HiVGImageProcessor, tokenizer: Any):
        super().__init__(image_processor, cleaning_tokenizer(tokenizer))

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
        text: str | Sequence[str] | None = None,
        boxes: Any = None,
        masks: Any = None,
        return_tensors: str | None = "pt",
        long_text: str = "warn",
    ) -> BatchFeature:
        """Model inputs for one image and one expression, or for lists of equal length.

        Args:
            images: anything `load_grounding_image` opens, or a list of it. Files, URLs and bytes are turned upright by
                their EXIF orientation; PIL images and arrays are taken as they are held, so that boxes, masks and
                `target_sizes=[image.size[::-1]]` mean the object that was passed.
            text: an expression per image.
            boxes: per image a box as `xyxy` pixels of the original image, or None where the expression names nothing
                (its row of `labels` is NaN). For one image the box itself will do.
            masks: per image a mask of the original image (height, width), or None, for which the box as a mask is
                taken. When every mask is None there is no `mask_labels`. For one image the mask itself will do.
            return_tensors: `"pt"` or `"np"`.
            long_text: what to do with an expression that the text tower cannot read to its end: `"warn"` cuts it,
                keeps the end token and names the words that were cut; `"error"` raises.

        Raises:
            ValueError: lengths differ, an expression is blank or too long, a box or mask does not fit its image.
        """
        if images is None and text is None:
            raise ValueError("HiVGProcessor needs images, text, or both.")
        if images is None and (boxes is not None or masks is not None):
            raise ValueError("Boxes and masks can only be given together with their images.")
        features: dict[str, Any] = {}
        if text is not None:
            features.update(self._text_features(text, long_text))
        if images is not None:
            pictures = [open_image(image) for image in image_list(images)]
            boxes, masks = _box_list(boxes), _mask_list(masks)
            if text is not None and len(pictures) != len(features["input_ids"]):
                raise ValueError(
                    f"Got {len(pictures)} images and {len(features['input_ids'])} expressions: "
                    "give one expression per image, repeating an image that has several."
                )
            opened = self.image_processor(pictures, input_data_format="channels_last", return_tensors="pt")
            features.update(opened)
            features.update(self._target_features([image_size(picture) for picture in pictures], boxes, masks))
        if return_tensors == "np":
            features = {name: value.numpy() for name, value in features.items()}
        return BatchFeature(features)

    def _text_features(self, text: str | Sequence[str], long_text: str) -> dict[str, torch.Tensor]:
        expressions = checked_expressions(text)
        if long_text not in LONG_TEXT_CHOICES:
            raise ValueError(f"long_text must be one of {', '.join(LONG_TEXT_CHOICES)}, got {long_text!r}.")
        limit = self.tokenizer.model_max_length
        full = self.tokenizer(expressions, return_offsets_mapping=True)
        for expression, ids, offsets in zip(expressions, full["input_ids"], full["offset_mapping"]):
            if len(ids) > limit:
                # limit - 1 tokens stay in front of the end token.
                self._report_long_text(expression, expression[offsets[limit - 1][0] :], len(ids), long_text)
        # A tokenizer cuts before it adds the end token, which therefore stays last.
        options = {"padding": "longest", "padding_side": "right", "return_tensors": "pt"}
        cut = self.tokenizer(expressions, truncation=True, max_length=limit, **options)
        return {"input_ids": cut["input_ids"], "attention_mask": cut["attention_mask"]}

    def _report_long_text(self, expression: str, lost: str, length: int, long_text: str) -> None:
        message = (
            f"The expression '{_shortened(expression)}' has {length} tokens, and the model reads "
            f"{self.tokenizer.model_max_length}"
        )
        if long_text == "error":
            raise ValueError(f"{message}: shorten it, or pass long_text='warn' to cut '{_shortened(lost, 400)}'.")
        warnings.warn(f"{message}: cut '{_shortened(lost, 400)}'.", ExpressionCutWarning, stacklevel=4)

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
        return rasterize_boxes(box_cxcywh[None], side, side)[0].bool()  # (S, S)

    def post_process_grounding(
        self,
        outputs: Any,
        target_sizes: Sequence[tuple[int, int]] | torch.Tensor,
        map_sizes: Sequence[tuple[int, int]] | None = None,
    ) -> list[dict[str, Any]]:
        """Model outputs -> per sample `{"box": (4,), "score": () or None, "mask": (height, width) bool or None}`.

        Args:
            outputs: a `HiVGOutput` or dict with `pred_boxes (B, 4)` and, where computed, `scores (B,)` and
                `mask_logits (B, h, w)`.
            target_sizes: (height, width) of each original image.
            map_sizes: (height, width) of each mask, where it is not that of the image.

        Returns:
            Boxes are float32 `xyxy` pixels of the original image, clipped to it.
        """
        sizes = [(int(height), int(width)) for height, width in target_sizes]
        pred_boxes, scores, mask_logits = (_output(outputs, name) for name in ("pred_boxes", "scores", "mask_logits"))
        if len(sizes) != len(pred_boxes):
            raise ValueError(f"Got {len(pred_boxes)} predictions and {len(sizes)} target_sizes.")
        boxes = self.image_processor.boxes_to_image(pred_boxes, sizes)
        results = []
        for row, (height, width) in enumerate(sizes):
            limit = torch.tensor([width, height, width, height], dtype=boxes.dtype)
            mask = None
            if mask_logits is not None:
                map_size = sizes[row] if map_sizes is None else map_sizes[row]
                mask = self.image_processor.map_to_image(mask_logits[row], sizes[row], map_size) > 0
            score = None if scores is None else scores[row].detach().cpu().float()
            results.append({"box": boxes[row].clamp(min=torch.zeros(4), max=limit), "score": score, "mask": mask})
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
        token_logits = _output(outputs, "token_logits")
        if token_logits is None:
            raise ValueError("There are no token_logits: call the model with output_token_logits=True.")
        grid = math.isqrt(token_logits.shape[-1])
        maps = token_logits.float().sigmoid().reshape(-1, grid, grid)  # (B, N) -> (B, G, G)
        map_sizes = target_sizes if map_sizes is None else map_sizes
        triples = zip(maps, target_sizes, map_sizes)
        return [self.image_processor.map_to_image(values, size, map_size) for values, size, map_size in triples]


def checked_boxes(boxes: Any, sizes: Sequence[tuple[int, int]]) -> torch.Tensor:
    """Boxes (or None) per image -> float64 (B, 4), NaN where there is none.

    Raises:
        ValueError: the number differs, or a box is not finite, has no area, or lies outside its image.
    """
    if len(boxes) != len(sizes):
        raise ValueError(f"Got {len(sizes)} images and {len(boxes)} boxes: give one box (or None) per image.")
    rows = torch.full((len(sizes), 4), math.nan, dtype=torch.float64)
    for row, (box, (height, width)) in enumerate(zip(boxes, sizes)):
        if box is None:
            continue
        values = torch.as_tensor(box, dtype=torch.float64)
        if values.shape != (4,):
            raise ValueError(f"Box {row} must be four numbers (x1, y1, x2, y2), got shape {tuple(values.shape)}.")
        if values.isnan().all():
            continue
        x1, y1, x2, y2 = values.tolist()
        if not (math.isfinite(x1 + y1 + x2 + y2) and x1 < x2 and y1 < y2):
            raise ValueError(
                f"Box {row} must be finite with x1 < x2 and y1 < y2 (xyxy pixels), got {values.tolist()}."
            )
        if x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0:
            raise ValueError(f"Box {row} {values.tolist()} lies outside its image of {width} x {height} pixels.")
        rows[row] = values
    return rows


def _box_list(boxes: Any) -> Any:
    """A single box, four numbers -> a list of it; a list of boxes as it is."""
    is_single = boxes is not None and len(boxes) == 4 and all(isinstance(value, (int, float)) for value in boxes)
    return [boxes] if is_single else boxes


def _mask_list(masks: Any) -> Any:
    """A single mask, an array (height, width) -> a list of it; a list of masks as it is."""
    return [masks] if getattr(masks, "ndim", 0) == 2 else masks


def _output(outputs: Any, name: str) -> Any:
    return outputs.get(name) if isinstance(outputs, dict) else getattr(outputs, name, None)


def _shortened(text: str, limit: int = 80) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."


__all__ = ["ExpressionCutWarning", "HiVGProcessor", "clean_expression"]
