"""Random inputs of the shapes that users have: a 4:3 photograph and an expression of eight tokens."""

from collections.abc import Mapping

import numpy as np
import torch
from PIL import Image

from hivg_hf.modeling.box_ops_hivg import rasterize_boxes
from hivg_hf.modeling.configuration_hivg import HiVGConfig
from hivg_hf.modeling.image_processing_hivg import HiVGImageProcessor

PHOTOGRAPH = (480, 640)  # (height, width), 4:3
EXPRESSION_TOKENS = 8  # with begin and end: "the mug left of the laptop"

Batch = dict[str, torch.Tensor]


def random_batch(config: HiVGConfig, size: int, seed: int = 0, labels: bool = False) -> Batch:
    """What a processor and collator give for `size` samples: images letterboxed as the model wants them, expressions
    at their own length.

    Args:
        config: of the model; decides the letterbox and whether padded patches are left out.
        size: B.
        seed: of pixels, words and boxes.
        labels: also target boxes and masks.
    """
    random = np.random.default_rng(seed)
    processor = HiVGImageProcessor(
        size={"height": config.image_size, "width": config.image_size},
        patch_size=config.patch_size,
        pad_align=config.pad_align,
        skip_padded_patches=config.skip_padded_patches,
    )
    pictures = [Image.fromarray(random.integers(0, 256, (*PHOTOGRAPH, 3), dtype=np.uint8)) for _ in range(size)]
    batch = dict(processor(pictures, return_tensors="pt"))
    if config.skip_padded_patches:  # as `HiVGProcessor` does
        batch["patch_index"] = torch.from_numpy(processor.patch_index_for(batch["pixel_mask"]))
    batch["input_ids"] = torch.from_numpy(_words(config, size, random))
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    if labels:
        batch["labels"] = torch.from_numpy(random.uniform(0.4, 0.6, (size, 4)).astype(np.float32))
        batch["mask_labels"] = rasterize_boxes(batch["labels"], config.image_size, config.image_size)
    return batch


def _words(config: HiVGConfig, size: int, random: np.random.Generator) -> np.ndarray:
    """(B, 8) token ids with begin and end."""
    text = config.clip_config.text_config
    begin, end = text.vocab_size - 2, text.vocab_size - 1
    words = random.integers(1, begin, (size, EXPRESSION_TOKENS))
    words[:, 0], words[:, -1] = begin, end
    return words


def official_inputs(batch: Mapping[str, torch.Tensor], config: HiVGConfig) -> Batch:
    """The same samples as the official code takes them: padding marked with 1, all text positions, filled with 0."""
    missing = config.max_text_length - batch["input_ids"].shape[1]
    return {
        "pixel_values": batch["pixel_values"],
        "padding_mask": 1 - batch["pixel_mask"],
        "input_ids": torch.nn.functional.pad(batch["input_ids"], (0, missing), value=config.text_pad_id),
    }
