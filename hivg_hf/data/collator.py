"""Rows of the schema -> one batch of tensors that the model's forward takes as it stands.

    row --open image--> [augment] --> placed on the square --> pixel_values, pixel_mask, patch_index
                                  box, mask with it        --> labels (cxcywh of the square), mask_labels
        --expression--> the processor's tokenizer          --> input_ids, attention_mask

Nothing here draws from global random state. The augmentation of a row that carries its key is a function of (seed,
epoch, row index). Rows of any other Trainer or DataLoader carry none: there it is a function of the seed, of the batch
that the sampler dealt (which a shuffled order changes every epoch) and of how often that batch came before.
"""

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from os import PathLike, fspath
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import get_worker_info

from hivg_hf.modeling.image_loading_hivg import array_to_image, image_size, is_reduced, open_image
from hivg_hf.modeling.loss_hivg import mask_targets, pad_targets
from hivg_hf.modeling.processing_inputs_hivg import SMALLEST_DOUBTFUL_SIDE

from .augmentation import PlacedImage, every_box, for_each_box, resize_mask
from .official_targets import box_as_mask, truncate_ground_truth
from .rows import OUTSIDE_TOLERANCE_PIXELS
from .schema import decode_mask, shown

TARGET_ROUNDINGS = ("exact", "official")
# Keeps the augmentation's random numbers apart from every other stream with the same seed.
AUGMENTATION_STREAM = 2

Row = Mapping[str, Any]
Augmentation = Callable[[Image.Image, Any, Any, str, np.random.Generator], PlacedImage]


class GroundingCollator:
    """Stack rows of the schema into a batch.

    Args:
        processor: the `HiVGProcessor` of the model.
        augmentation: for training, a `GroundingAugmentation` (or any callable like it); None letterboxes the image in
            the middle, as evaluation does.
        seed: seed of the augmentation.
        masks: whether to make `mask_labels` of the rows' own masks; False saves the work where no loss term reads
            them, or where boxes are to be the targets.
        target_rounding: `"exact"`, targets are the annotation's own; `"official"`, as the authors' (see
            `official_targets`): boxes cut to whole pixels, and `mask_labels` of the uncut box in any case. Give a
            `GroundingAugmentation` `mask_sampling="corner"` with it.
        several_targets: for a model with `num_queries` > 1: `labels` hold all `boxes` of a row whose `box` is None
            (read with `multi_target="keep"`). `HiVGTrainer` sets it as its model needs it.
        reduce_jpeg: whether large JPEG files of rows without a mask are decoded at a reduced scale, which is several
            times faster and gives slightly other pixels; never for evaluation, and not for official models.

    Under any Trainer or DataLoader the augmentation differs by row and by epoch. With a shuffled order it is the same
    for any number of workers and after a resume; with rows in their own order, or batches of one row, call
    `set_epoch` before each epoch to have it so there too.

    A call takes a list of rows with at least `image`, `expression` and `box` (xyxy pixels of the image) or `boxes` (a
    list of them, empty where nothing is named), optionally the schema's other columns, and `epoch` and `row_index`
    (see `KeyedDataset`). It returns

    - `pixel_values` (B, 3, S, S) float32, `pixel_mask` (B, S, S) int64 with 1 = image;
    - `patch_index` (B, P) int64, where the processor skips padded patches;
    - `input_ids`, `attention_mask` (B, T) int64;
    - `labels` (B, 4) float32, cxcywh in 0..1 of the square, NaN for a row without target; where a row of the batch has
      several, (B, M, 4), NaN where another has fewer than M;
    - `mask_labels` (B, S, S) float32 in {0, 1}: the row's mask, or its rasterized box where it has none;
    - `image_ids` (B,) int64, equal exactly for rows of the same image.

    Example:
        >>> import hivg_hf
        >>> from hivg_hf.data import GroundingCollator
        >>> from transformers import AutoProcessor
        >>> rows = hivg_hf.load_grounding_dataset("refshapes", "val", seed=1, size=2)
        >>> collate = GroundingCollator(AutoProcessor.from_pretrained(hivg_hf.TINY_CHECKPOINT))
        >>> collate([*rows])["labels"].shape
        torch.Size([2, 4])

    Raises:
        ValueError: a row lacks a column, its image cannot be read or has another size than the annotation says, its
            box is not a box inside the image, or it has several targets and no policy was chosen; the message names
            the row.
    """

    def __init__(
        self,
        processor: Any,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        masks: bool = True,
        target_rounding: str = "exact",
        several_targets: bool = False,
        reduce_jpeg: bool = False,
    ) -> None:
        if target_rounding not in TARGET_ROUNDINGS:
            raise ValueError(f"target_rounding must be one of {', '.join(TARGET_ROUNDINGS)}. Got {target_rounding!r}.")
        self.processor = processor
        self.augmentation = augmentation
        self.seed = seed
        self.masks = masks
        self.rounds_as_official = target_rounding == "official"
        self.several_targets = several_targets
        if reduce_jpeg and (self.rounds_as_official or not processor.image_processor.skip_padded_patches):
            raise ValueError(
                "reduce_jpeg changes pixels a little, and this model or its targets follow the official code: omit it."
            )
        # As many pixels as a crop of the augmentation still fills the square with.
        self.reduce_to = (2 if augmentation is None else 4) * processor.image_processor.side if reduce_jpeg else None
        self._seen = SeenBatches() if augmentation is not None else None

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of rows that carry none; workers that outlive an epoch see it too."""
        if self._seen is not None:
            self._seen.set_epoch(epoch)

    def for_evaluation(self, target_rounding: str = "exact") -> "GroundingCollator":
        """The same collation without augmentation, with targets as the evaluation's protocol wants them."""
        plain = copy.copy(self)
        plain.rounds_as_official = target_rounding == "official"
        plain.augmentation, plain._seen, plain.reduce_to = None, None, None
        return plain

    def for_queries(self, num_queries: int) -> "GroundingCollator":
        """The same collation with targets as a model with so many queries takes them."""
        changed = copy.copy(self)
        changed.several_targets = num_queries > 1
        return changed

    def __call__(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        rows = [complete_row(row) for row in rows]
        place_in_order = () if self._seen is None or _are_keyed(rows) else self._seen.number(rows)
        placed = [self._place_row(row, (*place_in_order, position)) for position, row in enumerate(rows)]
        image_processor = self.processor.image_processor
        squares = [image_processor.place(sample.pixels, sample.top, sample.left) for sample in placed]
        batch = {
            "pixel_values": torch.stack([torch.as_tensor(square["pixel_values"]) for square in squares]),
            "pixel_mask": torch.stack([torch.as_tensor(square["pixel_mask"]) for square in squares]),
        }  # (B, 3, S, S), (B, S, S)
        if image_processor.skip_padded_patches:
            batch["patch_index"] = torch.as_tensor(image_processor.patch_index_for(batch["pixel_mask"]))  # (B, P)
        batch.update(self.processor(text=[row["expression"] for row in rows], return_tensors="pt"))
        side = image_processor.size["height"]
        labels = pad_targets([box_labels(sample, side) for sample in placed])  # (B, M, 4)
        batch["labels"] = labels if labels.shape[1] > 1 else labels[:, 0]
        if self.masks or self.rounds_as_official:
            batch["mask_labels"] = mask_labels(placed, batch["labels"], side, may_vanish=self.rounds_as_official)
        batch["image_ids"] = torch.tensor([image_id_hash(row_image_id(row)) for row in rows])
        return batch

    def _place_row(self, row: Row, place_in_order: Sequence[int]) -> PlacedImage:
        box = targets_of(row) if self.several_targets else target_box(row)
        mask = row_mask(row) if self.masks and box is not None else None
        cached = row.get("letterboxed")
        if cached is not None:
            return self._place_cached(row, cached, box, mask)
        image = open_row_image(row, self.reduce_to if mask is None else None)
        if is_reduced(image):
            height, width = image_size(image)
            check_box(box, row, width, height)
            shares = image.width / width, image.height / height
            box = for_each_box(box, lambda one: scale_box(one, *shares))
        else:
            check_box(box, row, image.width, image.height)
        if mask is not None and mask.shape != (image.height, image.width):
            raise ValueError(
                f"{row_name(row)}: the mask has size {mask.shape[1]} x {mask.shape[0]}, the image {image.width} x "
                f"{image.height}; both must be of the same picture."
            )
        box, mask = self._rounded(row, box, mask)
        if self.augmentation is None:
            return letterbox(image, box, mask, self.processor.image_processor, self._mask_sampling)
        key = [row["epoch"], row.get("row_index", 0)] if "epoch" in row else place_in_order
        rng = np.random.default_rng([self.seed, *key, AUGMENTATION_STREAM])
        return self.augmentation(image, box, mask, row["expression"], rng)

    def _place_cached(self, row: Row, cached: Mapping[str, Any], box: Any, mask: np.ndarray | None) -> PlacedImage:
        """Take an image that `hivg survey --for eval` has letterboxed already."""
        if self.augmentation is not None:
            raise ValueError("a cache made --for eval holds letterboxed images; train from one made --for train.")
        wanted = letterbox_settings(self.processor.image_processor)
        if cached["settings"] != wanted:
            raise ValueError(
                f"the cache was letterboxed with {cached['settings']}, this processor needs {wanted}; "
                "prepare the cache again for this model."
            )
        check_box(box, row, row["width"], row["height"])
        box, mask = self._rounded(row, box, mask)
        height, width = cached["pixels"].shape[:2]
        return PlacedImage(
            pixels=cached["pixels"],
            top=cached["top"],
            left=cached["left"],
            box=for_each_box(box, lambda one: scale_box(one, width / row["width"], height / row["height"])),
            mask=None if mask is None else resize_mask(mask, width, height, sampling=self._mask_sampling),
        )

    @property
    def _mask_sampling(self) -> str:
        return "corner" if self.rounds_as_official else "center"

    def _rounded(self, row: Row, box: Any, mask: np.ndarray | None) -> tuple[Any, np.ndarray | None]:
        """Box (or boxes) and mask as the targets are to be rounded."""
        if box is None or not self.rounds_as_official:
            return box, mask
        if mask is None:
            mask = np.any([box_as_mask(one, row["width"], row["height"]) for one in every_box(box)], axis=0)
        rounded = for_each_box(
            box, lambda one: truncate_ground_truth(np.array([one]), [row.get("source")])[0].tolist()
        )
        return rounded, mask


class SeenBatches:
    """Number batches of rows without keys, so that no two draw the same random numbers.

    The numbers live in shared memory: workers are copies of the collator, and most are made anew every epoch. Batches
    with the same rows in the same order are told apart by a count of how often they came.

    Args:
        places: batches that are remembered; beyond that, old ones are forgotten.
    """

    def __init__(self, places: int = 1 << 16) -> None:
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()
        self._counts = torch.zeros(places, 2, dtype=torch.int64).share_memory_()  # (batch, times it came)

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch: what came in earlier ones is forgotten."""
        self._epoch[0] = epoch
        self._counts.zero_()

    def __setstate__(self, state: dict[str, torch.Tensor]) -> None:
        self.__dict__.update({name: tensor.share_memory_() for name, tensor in state.items()})

    def number(self, rows: Sequence[Row]) -> tuple[int, int, int, int]:
        """Epoch, batch, how often it came before, and, for a batch with a row twice, the worker that makes it."""
        names = [_row_identity(row) for row in rows]
        batch = _short_hash("\n".join(names))
        place = self._counts[batch % len(self._counts)]
        times = int(place[1]) if int(place[0]) == batch else 0
        place[0], place[1] = batch, times + 1
        # Workers that get the same batch at the same moment read the same count.
        worker = get_worker_info() if len(set(names)) < len(names) else None
        return int(self._epoch[0]), batch, times, 0 if worker is None else worker.id + 1


def complete_row(row: Row) -> Row:
    """A row that may have `image`, `expression` and `box` alone, with what the schema's other columns say of it.

    Raises:
        ValueError: one of the three is missing.
    """
    if row.get("boxes") is not None and "box" not in row:  # what several boxes are one by one, `multi_target` decides
        several = len(row["boxes"]) > 1
        row = {"no_target": not len(row["boxes"]), **row, "box": None if several else next(iter(row["boxes"]), None)}
    missing = [name for name in ("image", "expression", "box") if name not in row]
    if "letterboxed" in row and "image" in missing:
        missing.remove("image")
    if missing:
        raise ValueError(
            f"a row lacks {', '.join(missing)}; it has {', '.join(map(str, row)) or 'nothing'}. Rows need image, "
            "expression and box (x1, y1, x2, y2 in pixels of the image); rows that a processor has turned into "
            "tensors go with transformers' default_data_collator."
        )
    return {"boxes": [], "no_target": False, "mask": None, **row}


def row_image_id(row: Row) -> str:
    """The row's `image_id`; without one, what tells its picture from others: its path, or a hash of its content."""
    if row.get("image_id") is not None:
        return str(row["image_id"])
    image = row["image"]
    if isinstance(image, Mapping):
        image = image.get("path") if image.get("bytes") is None else image["bytes"]
    if isinstance(image, (str, PathLike)):
        return fspath(image)
    if isinstance(image, Image.Image):
        return f"{image.size} {hashlib.blake2b(image.tobytes(), digest_size=8).hexdigest()}"
    content = image if isinstance(image, (bytes, bytearray, memoryview)) else np.asarray(image).tobytes()
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def _are_keyed(rows: Sequence[Row]) -> bool:
    return all("epoch" in row for row in rows)


def _row_identity(row: Row) -> str:
    """What tells a row from the others of its dataset, whatever columns it has."""
    return repr([row.get(name) for name in ("source", "split", "row_index", "image_id", "ref_id", "sent_id")]) + repr(
        [row.get("expression"), row.get("box")]
    )


def letterbox(
    image: Image.Image,
    box: Sequence[float] | Sequence[Sequence[float]] | None,
    mask: np.ndarray | None,
    image_processor: Any,
    mask_sampling: str = "center",
) -> PlacedImage:
    """Place an image as the image processor places it: its long side fills the square, padding on both sides."""
    height, width, top, left = image_processor.geometry(image.height, image.width)
    return PlacedImage(
        pixels=image_processor.resize_image(image),  # (h, w, 3) uint8
        top=top,
        left=left,
        box=for_each_box(box, lambda one: scale_box(one, width / image.width, height / image.height)),
        mask=None if mask is None else resize_mask(mask, width, height, sampling=mask_sampling),
    )


def letterbox_settings(image_processor: Any) -> dict[str, Any]:
    """What decides the letterboxed bytes: a cache made with other settings cannot serve this processor."""
    return {
        "size": image_processor.size["height"],
        "patch_size": image_processor.patch_size,
        "pad_align": image_processor.pad_align,
        "resample": int(image_processor.resample),
    }


def scale_box(box: Sequence[float], x_scale: float, y_scale: float) -> tuple[float, float, float, float]:
    """Scale a box (xyxy pixels)."""
    return (box[0] * x_scale, box[1] * y_scale, box[2] * x_scale, box[3] * y_scale)


def box_labels(sample: PlacedImage, side: int) -> torch.Tensor:
    """The boxes as (cx, cy, w, h) in 0..1 of the square, float32 (N, 4); N = 0 without a target."""
    rows = [
        [
            ((x1 + x2) / 2 + sample.left) / side,
            ((y1 + y2) / 2 + sample.top) / side,
            (x2 - x1) / side,
            (y2 - y1) / side,
        ]
        for x1, y1, x2, y2 in sample.boxes
    ]
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


def mask_labels(
    placed: Sequence[PlacedImage], labels: torch.Tensor, side: int, may_vanish: bool = False
) -> torch.Tensor:
    """Masks on the square, float32 (B, S, S): the rasterized boxes where there is none, zeros without target."""
    squares = mask_targets(labels, None, side)  # (B, S, S)
    for square, sample in zip(squares, placed, strict=True):
        # Scaling down can lose a thin mask altogether; its box still says where it was.
        if sample.box is not None and sample.mask is not None and (may_vanish or sample.mask.any()):
            height, width = sample.pixels.shape[:2]
            square.zero_()
            region = square[sample.top : sample.top + height, sample.left : sample.left + width]
            region.copy_(torch.from_numpy(sample.mask))
    return squares


def row_name(row: Row) -> str:
    """How messages name a row: its source, split and ids; without ids, its number or its expression."""
    if row.get("ref_id") is None and row.get("sent_id") is None:
        where = f"row {row['row_index']}" if "row_index" in row else "a row"
        return f"{where} ({shown(row.get('expression'))})"
    return f"row (ref_id {row.get('ref_id')}, sent_id {row.get('sent_id')}) of {row.get('source')} {row.get('split')}"


def target_box(row: Row) -> list[float] | None:
    """The one target of a row (xyxy pixels), None where the row says that there is none.

    Raises:
        ValueError: the row has several targets and no single box, or no box and does not say `no_target`.
    """
    if row["no_target"]:
        return None
    if row["box"] is not None:
        return [float(edge) for edge in row["box"]]
    if len(row["boxes"] or []) > 1:
        raise ValueError(
            f"{row_name(row)} has {len(row['boxes'])} targets, where training needs one box; load the data with "
            "multi_target='union' or multi_target='drop', or train a model with num_queries > 1 "
            "(GroundingCollator(..., several_targets=True))."
        )
    raise ValueError(f"{row_name(row)} has neither a box nor no_target=True; give it one of the two.")


def targets_of(row: Row) -> Any:
    """The target of a row, or the list of several (xyxy pixels), None where the row says that there is none.

    Raises:
        ValueError: it has no box and does not say `no_target`.
    """
    if row["no_target"] or row["box"] is not None or len(row["boxes"] or []) < 2:
        return target_box(row)
    return [[float(edge) for edge in box] for box in row["boxes"]]


def check_box(box: Any, row: Row, width: int, height: int) -> None:
    """Refuse a box, of one or several, that is not finite, has no area, reaches out of the image by more than rounding
    does, or is a share of the image.

    Raises:
        ValueError: so it is; the message names the row.
    """
    for one in every_box(box):
        x1, y1, x2, y2 = one
        if not np.isfinite(one).all() or x2 <= x1 or y2 <= y1:
            raise ValueError(f"{row_name(row)}: box {list(one)} is not x1 < x2, y1 < y2 in finite pixels (xyxy).")
        outside = max(-x1, -y1, x2 - width, y2 - height)
        if outside > OUTSIDE_TOLERANCE_PIXELS or x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0:
            raise ValueError(
                f"{row_name(row)}: box {list(one)} lies outside its image of {width} x {height} pixels by "
                f"{outside:g}; boxes are x1, y1, x2, y2 in pixels of the image."
            )
        if max(x2, y2) <= 1 and min(width, height) > SMALLEST_DOUBTFUL_SIDE:
            raise ValueError(
                f"{row_name(row)}: box {list(one)} lies within the first pixel of its image of {width} x {height}; "
                "boxes are x1, y1, x2, y2 in pixels: multiply shares of the image by its width and height."
            )


def row_mask(row: Row) -> np.ndarray | None:
    """Decode a row's mask to bool (height, width), None where it has none.

    Raises:
        ValueError: the run lengths are damaged; the message names the row.
    """
    if row["mask"] is None:
        return None
    try:
        return decode_mask(row["mask"])
    except (ValueError, TypeError) as error:
        raise ValueError(f"{row_name(row)}: its mask cannot be decoded ({error}).") from error


def open_row_image(row: Row, reduce_to: int | None = None) -> Image.Image:
    """Open a row's image as upright RGB and check it against the annotated size.

    Args:
        row: With `image`, and `width` and `height` where they are annotated.
        reduce_to: As of `open_image`: a JPEG may come smaller, with `image_size` of the whole.

    Raises:
        ValueError: the image is missing, damaged, or of another size than the row says; the message names the row.
    """
    try:
        opened = open_image(row["image"], reduce_to=reduce_to)
        image = array_to_image(opened) if isinstance(opened, np.ndarray) else opened
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{row_name(row)}: {error}") from error
    annotated = (row.get("width"), row.get("height"))
    height, width = image_size(image)
    if None not in annotated and (width, height) != annotated:
        raise ValueError(
            f"{row_name(row)}: the image is {width} x {height}, its annotation says {row['width']} x "
            f"{row['height']}; the boxes belong to another picture (or to an unrotated one)."
        )
    return image


def image_id_hash(image_id: str) -> int:
    """A stable non-negative int64 for an image; rows of one image share it on every machine and in every run.

    The source is left out on purpose: RefCOCO, RefCOCO+ and RefCOCOg ask about the same COCO photographs.
    """
    return _short_hash(image_id)


def _short_hash(text: str) -> int:
    """A stable non-negative int64 of a text."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
