"""Where boxes to choose from come from: a detector of transformers, or the picture's own connected components.

A source of proposals is any callable, picture (RGB) and expressions -> (K, 4) xyxy pixels.
"""

from collections.abc import Callable, Sequence

import numpy as np
import PIL.Image

from .detector import TextDetector

ProposalSource = Callable[[PIL.Image.Image, Sequence[str]], np.ndarray]
GENERAL_LABELS = ("object", "person", "animal", "vehicle", "furniture", "food")
MOST_PROPOSALS = 50
PLAIN_DISTANCE = 48.0  # of a color to that of the border, in 8-bit RGB
SMALLEST_SHARE = 0.001  # of the picture, for a component


class DetectorProposals:
    """Boxes that a zero-shot detector finds for general labels, or for the expressions themselves.

    Args:
        detector: the detector.
        labels: what to look for; None: the expressions.
        threshold: lowest score.
        most: the best so many are kept.
    """

    def __init__(
        self,
        detector: TextDetector,
        labels: Sequence[str] | None = GENERAL_LABELS,
        threshold: float = 0.1,
        most: int = MOST_PROPOSALS,
    ) -> None:
        self.detector, self.labels, self.threshold, self.most = detector, labels, threshold, most

    def __call__(self, picture: PIL.Image.Image, expressions: Sequence[str]) -> np.ndarray:
        found = self.detector(picture, list(self.labels or dict.fromkeys(expressions)), self.threshold)
        boxes = [detection.box for detection in found[: self.most]]  # best first
        return np.array(boxes, dtype=np.float64).reshape(-1, 4)


def component_proposals(picture: PIL.Image.Image, expressions: Sequence[str] = ()) -> np.ndarray:
    """Boxes of what stands out from the color of the picture's border: for drawings and products on plain ground.

    The ground's color may run evenly over the picture: at each pixel it is a plane fitted to the border.
    """
    from scipy import ndimage

    pixels = np.asarray(picture.convert("RGB"), dtype=np.float64)
    pixels = ndimage.median_filter(pixels, size=(3, 3, 1))  # single pixels of noise
    height, width = pixels.shape[:2]
    y, x = np.mgrid[0:height, 0:width].reshape(2, -1) / max(height, width)
    plane = np.stack([np.ones_like(x), x, y], axis=1)  # (H * W, 3)
    border = np.zeros((height, width), dtype=bool)
    border[[0, -1], :] = border[:, [0, -1]] = True
    colors = pixels.reshape(-1, 3)
    fit = np.linalg.lstsq(plane[border.ravel()], colors[border.ravel()], rcond=None)[0]
    distance = np.linalg.norm(colors - plane @ fit, axis=1).reshape(height, width)
    labels, _ = ndimage.label(ndimage.binary_closing(distance > PLAIN_DISTANCE, np.ones((3, 3))))
    boxes = [
        (part[1].start, part[0].start, part[1].stop, part[0].stop)
        for number, part in enumerate(ndimage.find_objects(labels), start=1)
        if (labels[part] == number).sum() >= SMALLEST_SHARE * height * width
    ]
    return np.array(boxes, dtype=np.float64).reshape(-1, 4)
