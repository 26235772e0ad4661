"""What a score may read beside [REG]: whether the box holds what the expression names, and whether anything does.

[REG] has found a box; that there was nothing to find, it has to remember on the way. The patches say it more directly:
an expression that names nothing leaves none of them similar, and a wrong box lies where they are not. All of it is
read without gradient, so that a score learns from box, patches and towers, and never changes them.
"""

import torch
import torch.nn.functional as F
from torch import nn

from .box_ops_hivg import box_coverage

# By name: how many numbers each is, in widths H of the fusion encoder and beside that.
SCORE_INPUTS = {
    "reg": (1, 0),
    "expression": (1, 0),
    "box_patches": (2, 0),
    "box_similarity": (0, 4),
    "sharpness": (0, 3),
    "contrastive": (0, 1),
}
# Which of them need the patches of the last fusion layer, and which their similarity to the expression.
OF_PATCHES = ("expression", "box_patches", "box_similarity", "sharpness")
OF_SIMILARITY = ("box_similarity", "sharpness")


class ScoreOutput(nn.Linear):
    """The last layer of the evidence. It starts at 0: a model that gains evidence begins with its old score."""


class ScoreEvidence(nn.Module):
    """A small MLP on what `config.score_inputs` names; its output is added to what the score head makes of [REG].

    - `expression`: the end token after fusion, which knows what it found;
    - `box_patches`: the mean of the patches in the box, and its product with the expression, channel by channel;
    - `box_similarity`: token similarity inside and outside the box, the share of it that is inside, and the overlap
      of box and similar patches;
    - `sharpness`: the most similar patch, the most similar one outside the box, and the entropy over patches;
    - `contrastive`: CLIP's cosine of expression and image.

    Args:
        inputs: of `SCORE_INPUTS`.
        width: H, of the fusion encoder.
        grid: patches along one side.
    """

    def __init__(self, inputs: list[str], width: int, grid: int):
        super().__init__()
        self.inputs, self.grid = tuple(inputs), grid
        widths, numbers = (sum(SCORE_INPUTS[name][i] for name in self.inputs) for i in (0, 1))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(widths))
        self.fc1 = nn.Linear(widths * width + numbers, width)
        self.fc2 = ScoreOutput(width, 1)

    def forward(self, *seen: torch.Tensor | None) -> torch.Tensor:
        """Logits (B, K, 1) from what `collect` takes."""
        return self.judge(self.collect(*seen))

    def judge(self, read: dict[str, torch.Tensor]) -> torch.Tensor:
        """Logits (B, K, 1) from each input (B, K, C)."""
        vectors = torch.cat([read[name] for name in self.inputs if SCORE_INPUTS[name][0]], dim=-1)
        vectors = vectors.unflatten(-1, (len(self.norms), -1)).unbind(-2)  # each (B, K, H)
        parts = [norm(vector) for norm, vector in zip(self.norms, vectors, strict=True)]
        parts += [read[name] for name in self.inputs if SCORE_INPUTS[name][1]]
        return self.fc2(F.relu(self.fc1(torch.cat(parts, dim=-1))))

    def collect(
        self,
        reg: torch.Tensor,
        boxes: torch.Tensor,
        patches: torch.Tensor,
        end: torch.Tensor,
        similarity: torch.Tensor | None,
        cosine: torch.Tensor | None,
        patch_index: torch.Tensor | None,
        patch_mask: torch.Tensor | None,
    ) -> dict[str, torch.Tensor]:
        """Each of the inputs, (B, K, C), without gradient.

        Args:
            reg: (B, K, H).
            boxes: (B, K, 4), cxcywh in 0..1 of the padded square.
            patches: (B, P, H), after fusion.
            end: (B, H), the expression's end token after fusion.
            similarity: (B, P) token logits; None where no input reads them.
            cosine: (B,) of CLIP's embeddings of expression and image; None where no input reads it.
            patch_index: (B, P) place of each patch in the grid, -1 = none; None where all are there in order.
            patch_mask: (B, P), 0 = padding; None where every patch is image.
        """
        reg, boxes, patches, end = (x.detach() for x in (reg, boxes, patches, end))
        read = {"reg": reg}
        if "expression" in self.inputs:
            read["expression"] = end[:, None].expand_as(reg)
        if cosine is not None:
            read["contrastive"] = cosine.detach()[:, None, None].expand(*reg.shape[:2], 1)
        if not set(self.inputs) & {"box_patches", *OF_SIMILARITY}:
            return read
        inside, is_image = self._coverage(boxes, patches, patch_index, patch_mask)  # (B, K, P), (B, 1, P)
        if "box_patches" in self.inputs:
            mean = _mean(patches[:, None], inside[..., None], dim=2)  # (B, K, H)
            read["box_patches"] = torch.cat([mean, mean * F.normalize(end, dim=-1)[:, None]], dim=-1)
        if set(self.inputs) & set(OF_SIMILARITY):
            logits = similarity.detach()[:, None].masked_fill(is_image == 0, torch.finfo(similarity.dtype).min)
            read["box_similarity"] = torch.stack(self._box_similarity(logits.sigmoid(), inside, is_image), dim=-1)
            read["sharpness"] = torch.stack(self._sharpness(logits, inside, is_image), dim=-1)
        return read

    def _coverage(
        self,
        boxes: torch.Tensor,
        patches: torch.Tensor,
        patch_index: torch.Tensor | None,
        patch_mask: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The share of each patch that each box covers (B, K, P), 0 in the padding, and which are image (B, 1, P)."""
        covered = box_coverage(boxes.flatten(0, 1), self.grid, self.grid)  # (B * K, G, G)
        covered = covered.flatten(1).unflatten(0, boxes.shape[:2])  # (B, K, N)
        if patch_index is not None:
            places = patch_index.clamp(min=0)[:, None].expand(-1, boxes.shape[1], -1)
            covered = covered.gather(2, places)  # (B, K, P)
        is_image = torch.ones_like(patches[..., 0]) if patch_mask is None else patch_mask.to(patches.dtype)  # (B, P)
        return covered * is_image[:, None], is_image[:, None]

    def _box_similarity(
        self, similar: torch.Tensor, inside: torch.Tensor, is_image: torch.Tensor
    ) -> list[torch.Tensor]:
        """Four numbers (B, K): `similar` (B, 1, P) is in 0..1, and 0 in the padding."""
        shared, both = (similar * inside).sum(-1), similar.sum(-1) + inside.sum(-1)
        of_box, of_rest = _mean(similar, inside, dim=-1), _mean(similar, is_image - inside, dim=-1)
        return [of_box, of_rest, _mean(inside, similar, dim=-1), 2 * shared / both.clamp(min=1e-3)]

    def _sharpness(self, logits: torch.Tensor, inside: torch.Tensor, is_image: torch.Tensor) -> list[torch.Tensor]:
        """Three numbers (B, K) of logits (B, 1, P)."""
        similar, share = logits.sigmoid(), logits.softmax(-1)
        entropy = torch.special.entr(share).sum(-1) / is_image.sum(-1).clamp(min=2).log()  # (B, 1), in 0..1
        outside = (similar * (is_image - inside)).amax(-1)  # (B, K)
        return [similar.amax(-1).expand_as(outside), outside, entropy.expand_as(outside)]


def _mean(values: torch.Tensor, weights: torch.Tensor, dim: int) -> torch.Tensor:
    return (values * weights).sum(dim) / weights.sum(dim).clamp(min=1e-3)


__all__ = ["OF_PATCHES", "OF_SIMILARITY", "SCORE_INPUTS", "ScoreEvidence", "ScoreOutput"]
