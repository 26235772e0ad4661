"""Letterbox: any image -> one normalized square, and boxes and masks there and back.

    original (h, w)  --resize, long side = S-->  (new_h, new_w)  --zero padding-->  square (S, S)

The square is what the model sees. Geometry is a pure function of (h, w) and the processor's settings, so that going
back needs nothing but the original size. Boxes are `xyxy` pixels of the original image outside, and `cxcywh` in 0..1
of the square inside; they change only here.

# Official: datasets/transforms.py `resize_according_to_long_side` and `NormalizeAndPad`: PIL bilinear on the 8-bit
image, division by 255, normalization, then zero padding. The resized image has rounded sides there too, but boxes are
scaled by the unrounded ratio; here both directions use the rounded sides, which is up to half a pixel more exact.
"""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import torch
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, PILImageResampling
from transformers.processing_utils import ImagesKwargs, Unpack

from .image_arrays_hivg import is_unit_range, to_unscaled_rgb
from .image_loading_hivg import array_to_image, image_size, load_grounding_image, open_image
from .processing_inputs_hivg import refuse_options

PAD_ALIGNMENTS = ("patch", "pixel")
FIXED_AT_CONSTRUCTION = ("size", "patch_size", "pad_align", "skip_padded_patches", "do_resize", "do_pad")
NOT_SUPPORTED = ("do_center_crop", "crop_size", "pad_size")
EIGHT_BIT_FACTOR = 1 / 255


class Letterbox(NamedTuple):
    """Where an image lies in the padded square, in pixels of the square."""

    new_height: int
    new_width: int
    top: int
    left: int


class HiVGImageProcessorKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]
    r"""
    patch_size (`int`, *optional*):
        Side of the vision tower's patches in pixels.
    pad_align (`str`, *optional*):
        `"patch"` (image starts at a patch border) or `"pixel"` (image exactly centered, as official).
    skip_padded_patches (`bool`, *optional*):
        Whether `HiVGProcessor` also returns `patch_index`, the patches that hold at least one image pixel.
    """

    patch_size: int | None
    pad_align: str | None
    skip_padded_patches: bool | None


def letterbox_geometry(height: int, width: int, size: int, patch_size: int, pad_align: str = "patch") -> Letterbox:
    """Sides of the resized image and its offset in a square of `size` pixels.

    `pad_align="pixel"` centers the image as the official code does. `"patch"` rounds that offset down to a multiple of
    `patch_size`, so that padding fills whole patches, which then need not enter the vision tower.

    Official: datasets/transforms.py:99 (`round(side * ratio)`) and `NormalizeAndPad` (`round(d / 2 - 0.1)`); there a
    4000 x 1 image gets a side of 0 and crashes, here a side is at least one pixel.

    Raises:
        ValueError: a side is below 1, or `pad_align` is unknown.
    """
    if height < 1 or width < 1:
        raise ValueError(f"An image must be at least 1 x 1 pixel, got height {height} and width {width}.")
    if pad_align not in PAD_ALIGNMENTS:
        raise ValueError(f"pad_align must be one of {', '.join(PAD_ALIGNMENTS)}, got {pad_align!r}.")
    ratio = size / max(height, width)
    new_height, new_width = max(1, round(height * ratio)), max(1, round(width * ratio))
    # -0.1 keeps Python's rounding of halves to even from moving every second odd image by a pixel.
    top, left = round((size - new_height) / 2 - 0.1), round((size - new_width) / 2 - 0.1)
    if pad_align == "patch":
        top, left = top // patch_size * patch_size, left // patch_size * patch_size
    return Letterbox(new_height, new_width, top, left)


class HiVGImageProcessor(PilBackend):
    """Images -> `pixel_values (B, 3, S, S)` and `pixel_mask (B, S, S)` with 1 = image.

    `HiVGProcessor` and the collator add `patch_index (B, P)` (see `patch_index_for`) with `skip_padded_patches`.

    Args:
        size: side S of the square, `{"height": S, "width": S}` or S. A multiple of `patch_size`.
        patch_size: side of the vision tower's patches.
        pad_align: see `letterbox_geometry`.
        skip_padded_patches: whether `HiVGProcessor` returns `patch_index`.
        image_mean, image_std: CLIP's for new models, ImageNet's for the official weights.
    """

    valid_kwargs = HiVGImageProcessorKwargs
    model_input_names = ["pixel_values", "pixel_mask"]
    resample = PILImageResampling.BILINEAR
    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD
    size: Any = {"height": 224, "width": 224}
    default_to_square = True
    do_convert_rgb = True
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_pad = True
    patch_size = 16
    pad_align = "patch"
    skip_padded_patches = True

    def __init__(self, **kwargs: Unpack[HiVGImageProcessorKwargs]):
        super().__init__(**kwargs)
        height, width = self.size["height"], self.size["width"]
        if height is None or height != width or height % self.patch_size:
            raise ValueError(
                "size must be a square whose side is a multiple of patch_size "
                f"{self.patch_size}, got height {height} and width {width}."
            )
        if self.pad_align not in PAD_ALIGNMENTS:
            raise ValueError(f"pad_align must be one of {', '.join(PAD_ALIGNMENTS)}, got {self.pad_align!r}.")
        if not (self.do_resize and self.do_pad):
            raise ValueError("HiVGImageProcessor always resizes and pads: do_resize and do_pad cannot be False.")
        self._refuse_crops({key: getattr(self, key) for key in NOT_SUPPORTED})
        self._check_constants({})

    def _check_constants(self, given: Any) -> None:
        """Refuse constants, of one call or held, that would turn every pixel into NaN, and every box with it."""
        names = ("rescale_factor", "image_mean", "image_std")
        factor, mean, std = (given[name] if given.get(name) is not None else getattr(self, name) for name in names)
        mean, std = ([value] if isinstance(value, (int, float)) else list(value or []) for value in (mean, std))
        numbers = [factor, *std, *mean]
        are_numbers = all(isinstance(number, (int, float)) and abs(number) < 1e6 for number in numbers)
        if not (are_numbers and factor != 0 and all(number > 0 for number in std)):
            raise ValueError(
                "rescale_factor, image_mean and image_std must be numbers below a million, the first not 0 and "
                f"the last above 0, got {factor!r}, {mean!r} and {std!r}."
            )
        if not {len(mean), len(std)} <= {0, 1, 3}:
            raise ValueError(
                f"image_mean and image_std need a number for each of R, G and B, got {mean!r} and {std!r}."
            )

    def preprocess(self, images: Any, **kwargs: Unpack[HiVGImageProcessorKwargs]) -> BatchFeature:
        """One image or a list of them, of any kind that `load_grounding_image` opens.

        8-bit pixels are rescaled by `rescale_factor`, floats in 0..1 are pixels that were rescaled already, floats in
        0..255 are taken for 8-bit pixels. With `do_rescale=False` the numbers are taken as they are, whatever they
        are; pixels that are also normalized need `do_normalize=False` beside it.

        Raises:
            ValueError: an image cannot be opened, or a setting that decides the geometry is given for one call only
                (going back to the original pixels would then use the wrong one).
        """
        self._refuse_crops(kwargs)
        self._check_constants(kwargs)
        data_format = kwargs.get("data_format") or "channels_first"
        if getattr(data_format, "value", data_format) != "channels_first":
            raise ValueError(f"HiVGImageProcessor gives channels first, as the model reads them, not {data_format!r}.")
        changed = [key for key in FIXED_AT_CONSTRUCTION if kwargs.get(key) not in (None, getattr(self, key))]
        if changed:
            raise ValueError(f"Set {', '.join(changed)} when the image processor is made, not for one call.")
        return super().preprocess(images, **kwargs)

    def _refuse_crops(self, settings: Any) -> None:
        ignored = [key for key in NOT_SUPPORTED if settings.get(key)]
        if ignored:
            raise ValueError(f"HiVGImageProcessor letterboxes and does not crop: omit {', '.join(ignored)}.")

    def _preprocess_image_like_inputs(self, images: Any, return_tensors: Any = None, **kwargs: Any) -> BatchFeature:
        pictures = [open_image(image, input_data_format=kwargs["input_data_format"]) for image in image_list(images)]
        if not pictures:
            raise ValueError("The list of images is empty: give at least one.")
        squares = [self._to_square(picture, **kwargs) for picture in pictures]
        masks = [self._image_mask(self.geometry(*image_size(picture))) for picture in pictures]
        # No patch_index: transformers' pipelines stack what this returns and would pad rows of it with 0, a patch.
        features = {"pixel_values": np.stack(squares), "pixel_mask": np.stack(masks)}
        batch = BatchFeature(features, tensor_type=return_tensors)
        is_torch = isinstance(batch["pixel_values"], torch.Tensor)
        return batch.to(kwargs["device"]) if is_torch and kwargs.get("device") is not None else batch

    @property
    def side(self) -> int:
        """S, the side of the padded square in pixels."""
        return self.size["height"]  # a dict where somebody set one

    def geometry(self, height: int, width: int) -> Letterbox:
        """Letterbox of an image of this size under this processor's settings."""
        return letterbox_geometry(int(height), int(width), self.side, self.patch_size, self.pad_align)

    def boxes_to_square(self, boxes_xyxy: Any, image_sizes: Sequence[tuple[int, int]]) -> torch.Tensor:
        """`xyxy` pixels of the original images (B, 4) -> `cxcywh` in 0..1 of the square, float32 (B, 4).

        Args:
            boxes_xyxy: a box per image, or (B, M, 4) for M of each; a NaN row stays NaN.
            image_sizes: (height, width) of each original image.
        """
        boxes = torch.as_tensor(boxes_xyxy, dtype=torch.float64)
        if boxes.ndim == 3:
            sizes = [size for size in image_sizes for _ in range(boxes.shape[1])]
            return self.boxes_to_square(boxes.flatten(0, 1), sizes).unflatten(0, boxes.shape[:2])
        boxes = boxes.reshape(-1, 4)
        scale, offset = self._scale_and_offset(image_sizes)
        corners = boxes * scale + offset  # (B, 4)
        low, high = corners[:, :2], corners[:, 2:]
        return (torch.cat([(low + high) / 2, high - low], dim=1) / self.side).float()

    def boxes_to_image(self, boxes_cxcywh: torch.Tensor, image_sizes: Sequence[tuple[int, int]]) -> torch.Tensor:
        """The inverse of `boxes_to_square`: `cxcywh` of the square (B, 4) -> `xyxy` pixels of the originals (B, 4).

        Boxes may reach outside the image; `HiVGProcessor.post_process_grounding` clips them.
        """
        boxes = boxes_cxcywh.detach().cpu().double().reshape(-1, 4) * self.side
        center, half = boxes[:, :2], boxes[:, 2:] / 2
        scale, offset = self._scale_and_offset(image_sizes)
        return ((torch.cat([center - half, center + half], dim=1) - offset) / scale).float()

    def boxes_in_images(
        self, boxes_cxcywh: torch.Tensor, target_sizes: Sequence[tuple[int, int]] | torch.Tensor | None
    ) -> torch.Tensor:
        """The model's boxes (B, 4) -> float32 `xyxy` pixels of the originals, clipped to them (B, 4).

        Without `target_sizes`, `xyxy` in 0..1 of the padded square.
        """
        if target_sizes is None:
            center, half = boxes_cxcywh.detach().cpu().float().reshape(-1, 4).chunk(2, dim=1)
            return torch.cat([center - half / 2, center + half / 2], dim=1).clamp(0, 1)
        sizes = checked_sizes(target_sizes)
        if len(sizes) != len(boxes_cxcywh):
            raise ValueError(f"Got {len(boxes_cxcywh)} predictions and {len(sizes)} target_sizes.")
        limits = torch.tensor([[width, height, width, height] for height, width in sizes], dtype=torch.float32)
        return self.boxes_to_image(boxes_cxcywh, sizes).clamp(min=torch.zeros(4), max=limits)

    def post_process_object_detection(
        self,
        outputs: Any,
        threshold: float = 0.1,
        target_sizes: Sequence[tuple[int, int]] | torch.Tensor | None = None,
        **unknown: Any,
    ) -> list[dict[str, torch.Tensor]]:
        """Model outputs -> per row `{"scores": (K,), "labels": (K,), "boxes": (K, 4)}`, what scores above `threshold`.

        What `pipeline("zero-shot-object-detection")` calls, with one candidate label per row: `labels` are 0.

        Args:
            outputs: A `HiVGOutput` or dict with `pred_boxes (B, 4)` and `scores (B,)`; where a model answers with
                several boxes, `query_boxes (B, K, 4)` and `query_scores (B, K)`.
            threshold: Detections with a higher score are kept.
            target_sizes: (height, width) of each row's original image; see `boxes_in_images`.

        Raises:
            ValueError: If there are no scores, or the number of sizes differs.
        """
        refuse_options("post_process_object_detection", unknown)
        boxes, scores = self.query_answers(outputs, target_sizes)
        kept = [order[scores[row][order] > threshold] for row, order in enumerate(scores.argsort(1, descending=True))]
        return [
            {
                "scores": scores[row][places],
                "labels": torch.zeros(len(places), dtype=torch.long),
                "boxes": boxes[row][places],
            }
            for row, places in enumerate(kept)
        ]

    def query_answers(
        self, outputs: Any, target_sizes: Sequence[tuple[int, int]] | torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The boxes (B, K, 4), as `boxes_in_images` gives them, and scores (B, K) of all queries; K = 1 where a model
        answers with one box.

        Raises:
            ValueError: If there are no scores, or the number of sizes differs.
        """
        boxes, scores = (output_value(outputs, name) for name in ("query_boxes", "query_scores"))
        if boxes is None or scores is None:
            boxes, scores = output_value(outputs, "pred_boxes"), output_value(outputs, "scores")
            if scores is None:
                raise ValueError("These outputs have no scores: call the model without output_scores=False.")
            boxes, scores = boxes[:, None], scores[:, None]
        count, queries = scores.shape
        sizes = None if target_sizes is None else [size for size in target_sizes for _ in range(queries)]
        if sizes is not None and len(sizes) != count * queries:
            raise ValueError(f"Got {count} predictions and {len(target_sizes)} target_sizes.")
        boxes = self.boxes_in_images(boxes.flatten(0, 1), sizes).unflatten(0, (count, queries))
        return boxes, scores.detach().cpu().float()

    def mask_to_square(self, mask: Any) -> torch.Tensor:
        """Mask of the original image (h, w) -> bool (S, S), nearest neighbor, False in the padding."""
        picture = PIL.Image.fromarray(np.asarray(mask, dtype=bool).astype(np.uint8))
        box = self.geometry(picture.height, picture.width)
        resized = picture.resize((box.new_width, box.new_height), PILImageResampling.NEAREST)
        square = torch.zeros(self.side, self.side, dtype=torch.bool)
        square[box.top : box.top + box.new_height, box.left : box.left + box.new_width] = torch.from_numpy(
            np.array(resized, dtype=bool)
        )
        return square

    def map_to_image(
        self, values: torch.Tensor, image_size: tuple[int, int], map_size: tuple[int, int] | None = None
    ) -> torch.Tensor:
        """Map over the square (any resolution, (a, b)) -> the original image's pixels, float32 (h, w), bilinear.

        With `map_size` (height, width), the map of the whole image at that size instead of its own.
        """
        height, width = int(image_size[0]), int(image_size[1])
        box = self.geometry(height, width)
        square = _resize_map(values.detach().cpu().float(), (self.side, self.side))
        crop = square[box.top : box.top + box.new_height, box.left : box.left + box.new_width]
        height, width = (height, width) if map_size is None else map_size
        return _resize_map(crop, (int(height), int(width)))

    def _scale_and_offset(self, image_sizes: Sequence[tuple[int, int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Per image, (x, y, x, y) factors and shifts from original pixels to pixels of the square, each (B, 4)."""
        scales, offsets = [], []
        for height, width in image_sizes:
            box = self.geometry(height, width)
            scales.append([box.new_width / int(width), box.new_height / int(height)] * 2)
            offsets.append([box.left, box.top] * 2)
        return torch.tensor(scales, dtype=torch.float64), torch.tensor(offsets, dtype=torch.float64)

    def resize_image(self, picture: PIL.Image.Image) -> np.ndarray:
        """RGB picture -> uint8 (new_height, new_width, 3): its long side fills the square."""
        return self._resize(picture, self.resample)

    def place(self, resized: np.ndarray, top: int, left: int) -> dict[str, np.ndarray]:
        """Normalize an image that has its final scale and put it on the zero square.

        `place(resize_image(picture), top, left)` with the letterbox's offset equals what calling the processor gives,
        bit for bit; caches and training augmentation enter here.

        Args:
            resized: uint8 (h, w, 3), not larger than the square.
            top, left: its offset in pixels of the square.

        Returns:
            `pixel_values` (3, S, S) float32 and `pixel_mask` (S, S) int64 with 1 = image.
        """
        settings = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
        height, width = resized.shape[:2]
        return {
            "pixel_values": self._on_square(resized, top, left, **{key: getattr(self, key) for key in settings}),
            "pixel_mask": self._image_mask(Letterbox(height, width, top, left)),
        }

    def patch_index_for(self, pixel_mask: Any) -> np.ndarray:
        """`pixel_mask` (B, S, S) -> `patch_index` (B, P) int64: patches with an image pixel, -1 fills short rows."""
        return self._patch_index(np.asarray(pixel_mask))

    def _to_square(self, picture: PIL.Image.Image | np.ndarray, resample: Any, **settings: Any) -> np.ndarray:
        """What `open_image` gives -> float32 (3, S, S)."""
        box = self.geometry(*image_size(picture))
        if isinstance(picture, np.ndarray):
            if settings["do_rescale"] or picture.dtype == np.uint8:
                if is_unit_range(picture):
                    settings["rescale_factor"] = EIGHT_BIT_FACTOR  # the way back from the 8 bits they are resized in
                picture = array_to_image(picture)
            else:
                picture = to_unscaled_rgb(picture)
        return self._on_square(self._resize(picture, resample), box.top, box.left, **settings)

    def _resize(self, picture: PIL.Image.Image | np.ndarray, resample: Any) -> np.ndarray:
        """RGB picture -> uint8 (h, w, 3), or float32 (H, W, 3) -> float32 (h, w, 3)."""
        box = self.geometry(*image_size(picture))
        size = (box.new_width, box.new_height)
        if isinstance(picture, np.ndarray):
            channels = [PIL.Image.fromarray(np.ascontiguousarray(picture[..., c])) for c in range(3)]
            return np.stack([np.asarray(channel.resize(size, resample)) for channel in channels], axis=-1)
        return np.asarray(picture.resize(size, resample))  # (h, w, 3)

    def _on_square(
        self,
        resized: np.ndarray,
        top: int,
        left: int,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: Any,
        image_std: Any,
        **_: Any,
    ) -> np.ndarray:
        """uint8 or float32 (h, w, 3) -> float32 (3, S, S)."""
        if do_normalize and not do_rescale and resized.dtype == np.uint8:
            warnings.warn(
                "8-bit pixels are normalized without being rescaled, as do_rescale=False says: values reach 255 where "
                "the model was trained on about 2. Pass floats in 0..1, or omit do_rescale=False.",
                stacklevel=2,
            )
        pixels = resized.astype(np.float32).transpose(2, 0, 1)  # (h, w, 3) -> (3, h, w)
        if do_rescale:
            # Official: torchvision's ToTensor divides by 255; multiplying by 1 / 255 differs in the last bit.
            pixels = pixels / np.float32(1.0 / rescale_factor)
        if do_normalize:
            mean, std = np.asarray(image_mean, dtype=np.float32), np.asarray(image_std, dtype=np.float32)
            pixels = (pixels - mean.reshape(-1, 1, 1)) / std.reshape(-1, 1, 1)
        square = np.zeros((3, self.side, self.side), dtype=np.float32)
        square[:, top : top + resized.shape[0], left : left + resized.shape[1]] = pixels
        return square

    def _image_mask(self, box: Letterbox) -> np.ndarray:
        mask = np.zeros((self.side, self.side), dtype=np.int64)
        mask[box.top : box.top + box.new_height, box.left : box.left + box.new_width] = 1
        return mask

    def _patch_index(self, pixel_mask: np.ndarray) -> np.ndarray:
        """(B, S, S) -> (B, P): indices of the patches that hold an image pixel, -1 where a row has fewer than P."""
        batch, grid = len(pixel_mask), self.side // self.patch_size
        patches = pixel_mask.reshape(batch, grid, self.patch_size, grid, self.patch_size)
        kept = patches.any(axis=(2, 4)).reshape(batch, grid * grid)  # (B, N)
        index = np.full((batch, int(kept.sum(axis=1).max(initial=0))), -1, dtype=np.int64)
        for row, keep in enumerate(kept):
            found = np.flatnonzero(keep)
            index[row, : len(found)] = found
        return index


def image_list(images: Any) -> list[Any]:
    """One image -> a list of it; a list, tuple or stack (B, H, W, C) or (B, C, H, W) of images -> a list of them."""
    if isinstance(images, Sequence) and not isinstance(images, (str, bytes, bytearray, memoryview)):
        return list(images)  # also a column of a dataset
    if isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 4:
        return list(images)
    return [images]


def checked_sizes(target_sizes: Any) -> list[tuple[int, int]]:
    """(height, width) of each row's image, as plain numbers.

    Raises:
        ValueError: If it is not two numbers for each row.
    """
    try:
        return [(int(height), int(width)) for height, width in target_sizes]
    except (TypeError, ValueError):
        raise ValueError(
            f"target_sizes must be one (height, width) per row, as in [(480, 640)], got {str(target_sizes)[:80]}."
        ) from None


def output_value(outputs: Any, name: str) -> Any:
    """One of the model's outputs, from a `HiVGOutput` or a dict; None where it was not computed.

    Raises:
        TypeError: If they are a plain tuple, which does not say what is what.
    """
    if isinstance(outputs, (tuple, list)):
        raise TypeError("Outputs without names cannot be read: call the model without return_dict=False.")
    return outputs.get(name) if isinstance(outputs, dict) else getattr(outputs, name, None)


def _resize_map(values: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return torch.nn.functional.interpolate(values[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]


__all__ = ["HiVGImageProcessor", "HiVGImageProcessorKwargs", "Letterbox", "letterbox_geometry", "load_grounding_image"]
