"""Grounding with help, for a new model: the layers are shown where to look while they learn to."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from hivg_hf.modeling.loss_hivg import dice_loss, focal_loss, token_targets
from hivg_hf.modeling.modeling_hivg import PADDING_LOGIT, HiVGForVisualGrounding
from hivg_hf.pretraining_rows import MIN_COVERED


class AssistedGrounding(nn.Module):
    """Grounding with help: besides HiVG's own losses, the layers are shown where to look.

    A box can be read from [REG] only after a chain of look-ups that box losses alone take very long to find: the
    expression has to find the target's patches, and [REG], whose query is the same for every expression, has to find
    what the expression found. So half of the heads of the fusion encoder are guided:

    - in the first layer the expression's end token looks at the target's patches,
    - in the second [REG] looks at the end token,
    - in the last [REG] looks at the target's patches.

    A linear head on the vision tower makes the bridges mark the target's patches, and two more keep the target's box
    readable from its patches, where the fusion encoder begins and before its last layer. They are thrown away.

    Args:
        model: The HiVG model, kept as `.model`.
        mark: Weight of the linear head's focal (20) and dice (2) losses.
        guide: Weight of each of the three guides, a cross-entropy of the attention.
        place: Weight of each of the two box heads' L1 losses.
        towers: False freezes CLIP, which would forget what it was taught before anything reads it.
    """

    def __init__(
        self,
        model: HiVGForVisualGrounding,
        mark: float = 1.0,
        guide: float = 0.5,
        place: float = 5.0,
        towers: bool = True,
    ) -> None:
        super().__init__()
        if len(model.grounding_head.fusion.layers) < 3:
            raise ValueError("assisted grounding guides three layers; this fusion encoder has fewer.")
        self.model, self.config = model, model.config
        self.weights = {"mark": mark, "end_to_target": guide, "reg_to_end": guide, "reg_to_target": guide}
        self.weights |= {"place_first": place, "place_last": place}
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(towers or not name.startswith("clip.") or ".bridge." in name)
        width, joint = model.config.clip_config.vision_config.hidden_size, model.config.hidden_size
        self.mark = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 1))
        self.places = nn.ModuleDict({"place_first": nn.Linear(joint, 4), "place_last": nn.Linear(joint, 4)})

    def forward(self, **batch: torch.Tensor) -> Any:
        """`loss` and unweighted `loss_dict` of a batch of `GroundingCollator`; without labels, the model's output."""
        if "labels" not in batch:
            return self.model(**batch)
        outputs, vision, fusion_inputs = self._run(batch)
        config, index = self.config, batch["patch_index"]
        covered = token_targets(
            batch["labels"], batch.get("mask_labels"), config.grid_size, config.image_size, config.token_target
        )  # (B, N)
        there = index >= 0
        covered = covered.gather(1, index.clamp(min=0)) * there  # (B, P)
        logits = self.mark(vision[:, 1:])[:, :, 0].masked_fill(~there, PADDING_LOGIT)  # (B, P)
        terms = {"mark": 20 * focal_loss(logits, covered) + 2 * dice_loss(logits, covered)}

        # tokens of the fusion encoder: [REG], CLS, P patches, T words
        length = 2 + index.shape[1] + batch["attention_mask"].shape[1]
        target = torch.zeros(len(index), length, dtype=torch.bool, device=index.device)
        # what covers little of every patch has the one that it covers most
        least = covered.amax(1, keepdim=True).clamp(min=1e-6, max=MIN_COVERED)  # (B, 1)
        target[:, 2 : 2 + index.shape[1]] = covered >= least
        end = 2 + index.shape[1] + batch["attention_mask"].sum(-1) - 1  # (B,)
        is_end = torch.arange(length, device=index.device) == end[:, None]  # (B, length)
        first, second, last = (self.model.grounding_head.fusion.layers[i] for i in (0, 1, -1))
        named = target.any(-1)
        asked = {
            "end_to_target": (first, end, target),
            "reg_to_end": (second, end * 0, is_end),
            "reg_to_target": (last, end * 0, target),
        }
        for name, (layer, query, wanted) in asked.items():
            states, positions, key_bias = fusion_inputs[layer]
            terms[name] = guided_attention(layer, states, positions, key_bias, query, wanted, named)
        for name, layer in (("place_first", first), ("place_last", last)):
            states = layer.norm1(fusion_inputs[layer][0])[target]  # (target patches, H)
            boxes = batch["labels"][:, None].expand(-1, length, -1)[target]  # (target patches, 4)
            terms[name] = (self.places[name](states) - boxes).abs().sum() / max(len(boxes), 1)
        loss = outputs.loss + sum(self.weights[name] * term for name, term in terms.items())
        return {"loss": loss, "loss_dict": {**outputs.loss_dict, **terms}}

    def _run(self, batch: Mapping[str, torch.Tensor]) -> tuple[Any, torch.Tensor, dict[nn.Module, Any]]:
        """The model's output, the vision tower's last states (B, 1 + P, V), and what each fusion layer was given."""
        seen: dict[nn.Module, Any] = {}
        tower = self.model.clip.vision_model.encoder.layers[-1]
        hooks = [tower.register_forward_hook(lambda module, inputs, output: seen.update({module: output}))]
        hooks += [
            layer.register_forward_pre_hook(lambda module, inputs: seen.update({module: inputs[:3]}))
            for layer in self.model.grounding_head.fusion.layers
        ]
        try:
            outputs = self.model(**batch)
        finally:
            for hook in hooks:
                hook.remove()
        return outputs, seen.pop(tower), seen


def guided_attention(
    layer: nn.Module,
    hidden_states: torch.Tensor,
    positions: torch.Tensor,
    key_bias: torch.Tensor | None,
    query: torch.Tensor,
    target: torch.Tensor,
    named: torch.Tensor,
) -> torch.Tensor:
    """Cross-entropy of one token's attention, in the first half of the heads: it should look at the target tokens.

    Args:
        layer: A fusion layer with pre-norm.
        hidden_states, positions: (B, L, H), what the layer was given.
        key_bias: (B, 1, 1, L).
        query: (B,) which token looks.
        target: (B, L) bool, where it should look.
        named: (B,) bool, rows that count.
    """
    attention = layer.self_attn
    tokens = layer.norm1(hidden_states) + positions
    rows = torch.arange(len(query), device=query.device)
    (q_weight, k_weight, _), (q_bias, k_bias, _) = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    half = attention.num_heads // 2
    # (B, H) -> (B, half, head_dim), (B, L, H) -> (B, L, half, head_dim)
    queries = F.linear(tokens[rows, query], q_weight, q_bias).unflatten(-1, (-1, attention.head_dim))[:, :half]
    keys = F.linear(tokens, k_weight, k_bias).unflatten(-1, (-1, attention.head_dim))[:, :, :half]
    scores = torch.einsum("bhd,blhd->bhl", queries, keys) * attention.head_dim**-0.5
    if key_bias is not None:
        scores = scores + key_bias[:, 0]
    share = scores.log_softmax(-1).masked_fill(~target[:, None], float("-inf"))[named].logsumexp(-1)
    return -share.mean(-1).sum() / max(len(share), 1)
