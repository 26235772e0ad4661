"""Training targets as the authors round them, for `target_rounding="official"`.

The box that the box terms see is cut to whole pixels; the mask that the token and mask terms see is the *uncut* box,
drawn at the picture's full resolution and brought to the square by nearest neighbor. Official:
datasets/data_loader.py:277-315, datasets/transforms.py:187-190
"""

from collections.abc import Sequence

import numpy as np

from hivg_hf.utils.imports import require_package

# Sources whose official split files hold corner boxes; all others hold (x, y, width, height).
# Official: datasets/data_loader.py:276
_CORNER_BOX_SOURCES = ("referit", "refclef", "flickr")


def truncate_ground_truth(boxes_xyxy: np.ndarray, sources: Sequence[str | None]) -> np.ndarray:
    """Ground truth boxes cut to whole pixels, as the official data loader reads them.

    COCO boxes lose the fractions of x, y, *width and height*, corner boxes those of their corners.
    Official: `np.array(bbox, dtype=int)`, datasets/data_loader.py:277

    Args:
        boxes_xyxy: (N, 4) pixels of the original image.
        sources: N names of the annotation source; "referit" and "flickr" hold corners.

    Returns:
        (N, 4) xyxy, float64 holding whole numbers.
    """
    # Boxes reach us as float32 corners; a width of 120 may come back as 119.99999. Annotations have at most
    # two decimals, so three restore the number that the official loader saw.
    exact = np.round(np.asarray(boxes_xyxy, dtype=np.float64), 3)
    corners = np.trunc(exact)
    sizes = np.trunc(np.round(exact[:, 2:] - exact[:, :2], 3))
    from_sizes = np.concatenate([corners[:, :2], corners[:, :2] + sizes], axis=1)  # (N, 4)
    holds_corners = np.array([str(source or "").lower().startswith(_CORNER_BOX_SOURCES) for source in sources])
    return np.where(holds_corners.reshape(-1, 1), corners, from_sizes)


def box_as_mask(box_xyxy: Sequence[float], width: int, height: int) -> np.ndarray:
    """A box drawn on its picture by pycocotools, bool (height, width). Official: datasets/data_loader.py:31-46"""
    coco = require_package("pycocotools.mask", extra="data")
    x1, y1, x2, y2 = np.round(np.asarray(box_xyxy, dtype=np.float64), 3)
    encoded = coco.frPyObjects(np.array([[x1, y1, x2 - x1, y2 - y1]]), height, width)
    return coco.decode(encoded)[:, :, 0].astype(bool)


def resize_by_corner(
    mask: np.ndarray, width: int, height: int, region: tuple[float, float, float, float] | None = None
) -> np.ndarray:
    """Resize a bool mask (H, W), or a region of it in xyxy pixels, to (height, width): each pixel takes the value at
    its upper left corner, as torch's `nearest` does, where PIL's takes that at its center."""
    left, top, right, bottom = region or (0.0, 0.0, float(mask.shape[1]), float(mask.shape[0]))
    rows = _corners(top, bottom, height, mask.shape[0])
    columns = _corners(left, right, width, mask.shape[1])
    return mask[rows[:, None], columns]


def _corners(start: float, end: float, count: int, limit: int) -> np.ndarray:
    # float32, as torch counts: 20.0000005 and 19.9999995 are different pixels
    steps = np.arange(count, dtype=np.float32) * np.float32((end - start) / count)
    return np.minimum(np.floor(np.float32(start) + steps).astype(np.int64), limit - 1)
