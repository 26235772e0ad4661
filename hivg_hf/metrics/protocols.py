"""The ways in which grounding accuracy is published, by name, and the geometry that one of them needs.

Two papers that both print "Acc@0.5" may mean different things. A protocol fixes every choice:

| name     | overlap | correct when | boxes compared in                                   | numbers |
| -------- | ------- | ------------ | --------------------------------------------------- | ------- |
| pixel    | IoU     | >= threshold | pixels of the original image, clipped to it         | float64 |
| official | IoU     | >= threshold | the padded square, clipped to it; whole-pixel truth | float32 |
| mdetr    | GIoU    | >= threshold | pixels of the original image                        | float32 |
| ref-l4   | IoU     | >  threshold | pixels of the original image                        | float32 |

Sources: HiVG utils/eval_utils.py and datasets/data_loader.py; MDETR datasets/refexp.py (gRefCOCO copies it);
Ref-L4 ref_l4/evaluation.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from hivg_hf.modeling.image_processing_hivg import letterbox_geometry
from hivg_hf.utils.plugins import find_plugin, plugin_names


@dataclass(frozen=True)
class MetricProtocol:
    """What a protocol counts as correct.

    Args:
        name: how a result names it.
        summary: what counts as right, in a phrase.
        overlap: the quantity held against the threshold.
        strict: True: overlap > threshold; False: overlap >= threshold.
        canvas: True: boxes are compared in the padded square that the model sees.
        clip_to_image: True: a predicted box is first cut at the border of the image.
        dtype: precision of the comparison. It decides cases that lie exactly on a threshold.
        thresholds: the accuracies that are reported one by one (the mean, mAcc, is over 0.5, 0.55, ... 0.95).
        size_edges: square roots of the areas at which an object becomes "medium" and "large", in pixels.
        class_average: True: accuracy is also averaged over Ref-L4's classes, and categories are reported as those.
    """

    name: str
    summary: str
    overlap: Literal["iou", "giou"] = "iou"
    strict: bool = False
    canvas: bool = False
    clip_to_image: bool = False
    dtype: Literal["float32", "float64"] = "float32"
    thresholds: tuple[float, ...] = (0.5, 0.7, 0.9)
    size_edges: tuple[float, float] = (32.0, 96.0)  # COCO's small, medium and large
    class_average: bool = False


PLUGINS = "hivg_hf.metrics"  # the entry points by which other packages add protocols
PROTOCOLS: dict[str, MetricProtocol] = {
    protocol.name: protocol
    for protocol in (
        MetricProtocol(
            "pixel",
            "a box is right when its IoU with the target, in pixels of the original image, reaches the threshold",
            clip_to_image=True,
            dtype="float64",
        ),
        MetricProtocol(
            "official",
            "as HiVG's authors evaluate: IoU in the model's padded square, with the target cut to whole pixels, "
            "reaches the threshold",
            canvas=True,
        ),
        MetricProtocol(
            "mdetr", "as MDETR evaluates: generalized IoU with the target reaches the threshold", overlap="giou"
        ),
        # Ref-L4 reports 0.5, 0.75 and 0.9; 0.7 stands beside them so that every protocol has the same rows.
        MetricProtocol(
            "ref-l4",
            "as Ref-L4 evaluates: IoU with the target exceeds the threshold",
            strict=True,
            thresholds=(0.5, 0.7, 0.75, 0.9),
            size_edges=(128.0, 256.0),
            class_average=True,
        ),
    )
}

MACC_THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))

# Ref-L4 counts a COCO class (a number of `refcoco_N`) under its Objects365 twin (`o365_M`) before it averages over
# classes. Bus and bird, vase and potted plant, cake and dining table share a twin there; 37 (sports ball) has a
# placeholder, which makes it a class by itself. Official: github.com/JierunChen/Ref-L4 bae942c,
# ref_l4/evaluation.py, `mapping_dict`
# fmt: off
REF_L4_TWINS = {
    1: 1, 2: 47, 3: 6, 4: 59, 5: 115, 6: 56, 7: 117, 8: 66, 9: 22, 10: 41, 11: 177, 13: 128, 14: 250, 15: 25, 16: 56,
    17: 140, 18: 93, 19: 79, 20: 100, 21: 97, 22: 145, 23: 296, 24: 179, 25: 181, 27: 39, 28: 40, 31: 13, 32: 44,
    33: 194, 34: 220, 35: 119, 36: 174, 37: 100000, 38: 155, 39: 138, 40: 114, 41: 146, 42: 147, 43: 205, 44: 9,
    46: 36, 47: 11, 48: 89, 49: 85, 50: 94, 51: 26, 52: 113, 53: 83, 54: 266, 55: 104, 56: 142, 57: 153, 58: 235,
    59: 144, 60: 151, 61: 98, 62: 3, 63: 51, 64: 26, 65: 76, 67: 98, 70: 154, 72: 37, 73: 74, 74: 116, 75: 133,
    76: 107, 77: 62, 78: 164, 79: 135, 80: 278, 81: 82, 82: 134, 84: 19, 85: 95, 86: 31, 87: 170, 88: 70, 89: 328,
    90: 227,
}
# fmt: on


def ref_l4_class(category: str) -> str:
    """The class under which Ref-L4 averages a category, itself where it has no twin: `refcoco_3` -> `o365_6`."""
    prefix, _, number = category.partition("_")
    if prefix != "refcoco" or not number.isdecimal() or int(number) not in REF_L4_TWINS:
        return category
    return f"o365_{REF_L4_TWINS[int(number)]}"


def get_protocol(protocol: str | MetricProtocol) -> MetricProtocol:
    """The protocol of this name.

    Raises:
        ValueError: no protocol has this name.
    """
    if isinstance(protocol, MetricProtocol):
        return protocol
    known = PROTOCOLS.get(protocol) or find_plugin(PLUGINS, protocol)
    if known is None:
        names = ", ".join([*PROTOCOLS, *plugin_names(PLUGINS)])
        raise ValueError(f"Unknown protocol {protocol!r}: choose one of {names}.")
    return known


def pixel_boxes_to_canvas(
    boxes_xyxy: np.ndarray, widths: np.ndarray, heights: np.ndarray, size: np.ndarray, offsets: np.ndarray
) -> np.ndarray:
    """Boxes in image pixels to cxcywh, 0..1 of the padded square, in float32 and in the official order of steps.

    Official: datasets/transforms.py resize_according_to_long_side, NormalizeAndPad.

    Args:
        boxes_xyxy: (N, 4) pixels of the original image.
        widths, heights: (N,) of the original image.
        size: (N,) side of the square in pixels.
        offsets: (N, 2) left and top padding in pixels of the square.

    Returns:
        (N, 4) float32.
    """
    ratios = (size / np.maximum(widths, heights)).astype(np.float32)
    scaled = boxes_xyxy.astype(np.float32) * ratios[:, None] + np.tile(offsets, 2).astype(np.float32)  # (N, 4)
    centers = (scaled[:, :2] + scaled[:, 2:]) / np.float32(2)
    lengths = scaled[:, 2:] - scaled[:, :2]
    return np.concatenate([centers, lengths], axis=1) / size.astype(np.float32)[:, None]


def centered_offsets(widths: np.ndarray, heights: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Left and top padding of the official letterbox in pixels of the square, (N, 2)."""
    boxes = [
        letterbox_geometry(int(height), int(width), int(side), patch_size=1, pad_align="pixel")
        for width, height, side in zip(widths, heights, size, strict=True)
    ]
    return np.array([[box.left, box.top] for box in boxes], dtype=np.float64).reshape(-1, 2)
