"""How well proposals fit texts, by four ways to point CLIP at a box.

- "map": mean of the dense map inside the box minus outside. One pass per picture, the cheapest.
- "crop": the box cut out, read as a picture of its own. A pass per box.
- "blur": the whole picture with everything outside the box blurred, which keeps the place visible; "crop+blur" is the
  sum of both (ReCLIP, Subramanian et al., ACL 2022).
- "fovea": the picture stays as it is; a copy of [CLS] per box attends to the patches with a Gaussian over the box
  added to its logits (FALIP, Zhuang et al., ECCV 2024). Here all copies ride in one pass: the patches never read them.
"""

from collections.abc import Callable, Sequence

import numpy as np
import PIL.Image
import PIL.ImageFilter
import torch

from .clip_towers import ZeroShotClip, square_boxes
from .detector import whole_pixels

SCORINGS = ("crop+blur", "crop", "blur", "fovea", "map")
CROPS_PER_PASS = 32
BLUR_SHARE = 0.08  # radius of the blur, relative to the longer side
FOVEA_STRENGTH = 4.0  # added to the logits at the middle of a box
FOVEA_SHARE = 0.5  # of the layers, the last ones, look through the fovea


def score_proposals(
    encoder: ZeroShotClip, picture: PIL.Image.Image, boxes_xyxy: np.ndarray, texts: Sequence[str], scoring: str
) -> np.ndarray:
    """Score every proposal against every text.

    Args:
        encoder: the CLIP.
        picture: RGB.
        boxes_xyxy: (K, 4) pixels of the picture.
        texts: E noun phrases or expressions.
        scoring: one of `SCORINGS`.

    Returns:
        (E, K): CLIP's logits, cosine (minus the background's) times CLIP's scale.

    Raises:
        ValueError: `scoring` is unknown.
    """
    if scoring not in SCORINGS:
        raise ValueError(f"Expected scoring to be one of {', '.join(SCORINGS)}, got {scoring!r}.")
    directions = encoder.directions(texts)  # (E, P)
    if scoring == "map":
        cosines = _map_contrasts(encoder, picture, boxes_xyxy, directions)
    elif scoring == "fovea":
        cosines = directions @ foveal_features(encoder, picture, boxes_xyxy).T
    else:
        ways = [{"crop": crop_box, "blur": blur_around}[way] for way in scoring.split("+")]
        cosines = sum(directions @ _features(encoder, picture, boxes_xyxy, way).T for way in ways)
    return (cosines * encoder.logit_scale).double().cpu().numpy()


def crop_box(picture: PIL.Image.Image, box: Sequence[float]) -> PIL.Image.Image:
    """The pixels that a box touches, at least one."""
    x1, y1, x2, y2 = whole_pixels(box, picture.size)
    return picture.crop((x1, y1, x2, y2))


def blur_around(picture: PIL.Image.Image, box: Sequence[float]) -> PIL.Image.Image:
    """The picture with everything outside the box blurred."""
    blurred = picture.filter(PIL.ImageFilter.GaussianBlur(BLUR_SHARE * max(picture.size)))
    corner = whole_pixels(box, picture.size)
    blurred.paste(picture.crop(corner), corner[:2])
    return blurred


@torch.no_grad()
def foveal_features(
    encoder: ZeroShotClip,
    picture: PIL.Image.Image,
    boxes_xyxy: np.ndarray,
    strength: float = FOVEA_STRENGTH,
    layer_share: float = FOVEA_SHARE,
) -> torch.Tensor:
    """(K, P): [CLS] as it looks at each box, all in one pass.

    Tokens are [CLS], the patches, and K copies of [CLS]. Patches and [CLS] attend to each other as always; copy k
    attends to itself and to the patches, in the last layers with `strength` times the Gaussian of box k added. With
    strength 0 every copy is [CLS] itself.
    """
    squares = encoder.squares([picture])
    hidden = encoder.embed(squares)  # (1, 1 + N, V)
    boxes = square_boxes(boxes_xyxy, encoder.image_processor, (picture.height, picture.width))
    gaze = torch.from_numpy(box_gaussians(boxes, encoder.grid)).to(hidden)  # (K, N)
    count, patches = gaze.shape
    closed = torch.finfo(hidden.dtype).min
    plain = torch.full((1 + patches + count, 1 + patches + count), closed, dtype=hidden.dtype, device=hidden.device)
    plain[:, 1 : 1 + patches] = 0.0
    plain[: 1 + patches, 0] = 0.0
    plain.diagonal().fill_(0.0)  # each copy reads itself where [CLS] reads [CLS]
    plain[:, 1 : 1 + patches].masked_fill_(~squares.patch_mask, closed)
    focused = plain.clone()
    focused[1 + patches :, 1 : 1 + patches] += strength * gaze  # closed patches stay closed
    hidden = torch.cat([hidden, hidden[:, :1].expand(-1, count, -1)], dim=1)  # (1, 1 + N + K, V)
    blocks = encoder.clip.vision_model.encoder.layers
    for number, block in enumerate(blocks):
        looks = number >= len(blocks) - round(layer_share * len(blocks))
        hidden = block(hidden, (focused if looks else plain)[None, None])
    return encoder.project(hidden[0, 1 + patches :])


def box_gaussians(boxes: np.ndarray, grid: int) -> np.ndarray:
    """(K, 4) xyxy in 0..1 of the square -> (K, N): 1 at the middle of a box, exp(-1/2) at its edges' middles."""
    centers = (np.arange(grid) + 0.5) / grid
    middle, half = (boxes[:, :2] + boxes[:, 2:]) / 2, np.maximum((boxes[:, 2:] - boxes[:, :2]) / 2, 0.5 / grid)
    across = np.exp(-(((centers[None] - middle[:, :1]) / half[:, :1]) ** 2) / 2)  # (K, grid)
    down = np.exp(-(((centers[None] - middle[:, 1:]) / half[:, 1:]) ** 2) / 2)
    return (down[:, :, None] * across[:, None, :]).reshape(len(boxes), grid * grid)


def _features(
    encoder: ZeroShotClip,
    picture: PIL.Image.Image,
    boxes_xyxy: np.ndarray,
    view: Callable[[PIL.Image.Image, Sequence[float]], PIL.Image.Image],
) -> torch.Tensor:
    """(K, P) features of a view of each box."""
    parts = []
    for start in range(0, len(boxes_xyxy), CROPS_PER_PASS):
        views = [view(picture, box) for box in boxes_xyxy[start : start + CROPS_PER_PASS]]
        parts.append(encoder.pooled(encoder.squares(views)))
    return torch.cat(parts)


def _map_contrasts(
    encoder: ZeroShotClip, picture: PIL.Image.Image, boxes_xyxy: np.ndarray, directions: torch.Tensor
) -> torch.Tensor:
    """(E, K): mean of each map over a box's patches, by how much of a patch it covers, minus the mean of the rest."""
    squares = encoder.squares([picture])
    maps = directions @ encoder.patches(squares)[0].T  # (E, N)
    whole = [[0.0, 0.0, picture.width, picture.height]]
    boxes = square_boxes([*whole, *boxes_xyxy], encoder.image_processor, (picture.height, picture.width))
    covered = torch.from_numpy(patch_coverage(boxes, encoder.grid)).to(maps)  # (1 + K, N)
    total, inside = covered[:1], covered[1:]
    outside = total - inside
    # A box around everything has no outside: it stands out from nothing.
    outside = torch.where(outside.sum(-1, keepdim=True) > 1e-3, outside, total)
    means = [maps @ (part / part.sum(-1, keepdim=True)).T for part in (inside, outside)]  # (E, K) each
    return means[0] - means[1]


def patch_coverage(boxes: np.ndarray, grid: int) -> np.ndarray:
    """(K, 4) xyxy in 0..1 of the square -> (K, N): the share of each patch that a box covers."""
    edges = np.arange(grid)

    def along(low: np.ndarray, high: np.ndarray) -> np.ndarray:
        covered = np.minimum(high[:, None] * grid, edges + 1) - np.maximum(low[:, None] * grid, edges)
        return np.clip(covered, 0, None)  # (K, grid)

    rows, columns = along(boxes[:, 1], boxes[:, 3]), along(boxes[:, 0], boxes[:, 2])
    return (rows[:, :, None] * columns[:, None, :]).reshape(len(boxes), grid * grid)
