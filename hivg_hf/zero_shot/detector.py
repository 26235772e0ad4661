"""Any zero-shot object detector of transformers behind one call: picture and labels in, boxes out.

Grounding DINO, MM Grounding DINO, OWL-ViT, OWLv2, OmDet-Turbo, and whatever else is registered for
`AutoModelForZeroShotObjectDetection` and has `post_process_grounded_object_detection`.
"""

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import torch
from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor


@dataclass(frozen=True)
class Detection:
    """A found object: the label it was found for, xyxy pixels of the picture, the detector's score in 0..1."""

    label: str
    box: tuple[float, float, float, float]
    score: float


class TextDetector:
    """A detector that is given labels.

    Args:
        model: a zero-shot object detection model; put into eval mode.
        processor: its processor.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model.eval(), processor

    @classmethod
    def from_pretrained(cls, model: str, device: str | None = None) -> "TextDetector":
        """Open a detector by folder or Hub id, on the first accelerator by default."""
        detector = AutoModelForZeroShotObjectDetection.from_pretrained(model).to(device or best_device())
        return cls(detector, AutoProcessor.from_pretrained(model))

    @torch.no_grad()
    def __call__(self, picture: PIL.Image.Image, labels: Sequence[str], threshold: float = 0.1) -> list[Detection]:
        """Find objects.

        Args:
            picture: RGB.
            labels: what to look for, for example `["cat", "red car"]`.
            threshold: lowest score.

        Returns:
            Detections with a positive area inside the picture, best first.

        Raises:
            ValueError: no label was given, or one is blank or has a full stop (Grounding DINO ends labels with it).
        """
        labels = list(labels)
        wrong = [label for label in labels if not label.strip() or "." in label]
        if wrong or not labels:
            raise ValueError(f"Expected labels such as 'red car', without full stops, got {wrong or labels}.")
        inputs = self.processor(images=[picture], text=[labels], return_tensors="pt").to(self.model.device)
        outputs = self.model(**inputs)
        process = self.processor.post_process_grounded_object_detection
        options = {
            "input_ids": inputs.get("input_ids"),
            "threshold": threshold,
            "text_threshold": threshold,  # words of a label count as soon as the box does
            "target_sizes": [(picture.height, picture.width)],
            "text_labels": [labels],
        }
        known = inspect.signature(process).parameters  # each model's own takes some of them
        found = process(outputs, **{name: value for name, value in options.items() if name in known})[0]
        detections = []
        # Not strict: without a detection, Grounding DINO's processor decodes no tokens to one empty label.
        for score, box, text in zip(found["scores"], found["boxes"], found["text_labels"], strict=False):
            label = nearest_label(text, labels)
            inside = clip_box(box.tolist(), picture.size)
            if label is not None and inside is not None:
                detections.append(Detection(label, inside, float(score)))
        return sorted(detections, key=lambda detection: -detection.score)


def best_device() -> torch.device:
    """The first accelerator, or the CPU."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")


def nearest_label(text: str, labels: Sequence[str]) -> str | None:
    """The label that a detector's words mean: Grounding DINO answers with the tokens that it found fitting.

    The label that shares the largest part of its words with the answer; None where none shares any.
    """
    if text in labels:
        return text
    words = set(text.lower().replace(".", " ").replace("##", "").split())
    shares = [len(words & (own := set(label.lower().split()))) / len(words | own) for label in labels]
    best = int(np.argmax(shares))
    return labels[best] if shares[best] > 0 else None


def clip_box(box: Sequence[float], size: tuple[int, int]) -> tuple[float, float, float, float] | None:
    """xyxy pixels cut to a picture of `size` (width, height); None where nothing is left or a number is not finite."""
    if not np.isfinite(box).all():
        return None
    x1, x2 = (min(max(float(edge), 0.0), float(size[0])) for edge in (box[0], box[2]))
    y1, y2 = (min(max(float(edge), 0.0), float(size[1])) for edge in (box[1], box[3]))
    return (x1, y1, x2, y2) if x2 > x1 and y2 > y1 else None


def whole_pixels(box: Sequence[float], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The pixels (x1, y1, x2, y2) that a box touches in a picture of `size` (width, height), at least one."""
    x1, y1 = (min(max(math.floor(edge), 0), side - 1) for edge, side in zip(box[:2], size, strict=True))
    x2, y2 = (
        min(max(math.ceil(edge), low + 1), side) for edge, low, side in zip(box[2:], (x1, y1), size, strict=True)
    )
    return x1, y1, x2, y2
