"""Pre-training on RefShapes, where there is no CLIP to start from: the towers learn to see and to name.

Grounding losses alone teach a new model nothing for a long time. Here CLIP's two towers, without bridges and fusion,
learn from what RefShapes knows about every object (rows with the column `objects`):

- per patch: is there an object, its color, shape, size and filling, and the box around it relative to the patch;
- regions: an object's patches match its description among all descriptions of the batch (as CLIP, but per object);
- images: CLIP's own contrastive loss between pictures and captions.

Two more terms teach the projections through which the fusion encoder reads the towers:

- match: the expression is nearest to the patches of its target among all patches of its picture;
- place: where the box around a patch's object lies in the square. The fusion encoder adds positions to queries and
  keys only, so that [REG] can read a place from nothing but the patch itself.

The heads are thrown away. What stays is a plain CLIP inside the HiVG model, under CLIP's own keys, and those
projections. Bridges begin as identities (their last layer is 0), so that grounding starts from what was learned here.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPModel
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from hivg_hf.data.refshapes.language import ATTRIBUTES
from hivg_hf.modeling.loss_hivg import contrastive_loss, hash_expressions, same_pairs
from hivg_hf.modeling.modeling_hivg import HiVGForVisualGrounding, key_padding_bias

from .pretraining_rows import CLASSES, NO_CLASS

LOSS_WEIGHTS = {
    "object": 1.0,
    "size": 0.5,
    "filling": 0.5,
    "color": 1.0,
    "shape": 1.0,
    "box": 5.0,
    "place": 5.0,
    "region": 0.5,
    "image": 0.25,
    "match": 1.0,
}
FUSION_INPUTS = tuple(f"grounding_head.{name}." for name in ("visual_levels_proj", "visual_proj", "text_proj"))


class PretrainingModel(nn.Module):
    """CLIP's towers inside a HiVG model, with heads that are used for pre-training only.

    Args:
        model: The HiVG model, kept as `.model`; its `clip` learns, without the bridges, and the projections into the
            fusion encoder.
        loss_weights: Weights that differ from `LOSS_WEIGHTS`.
    """

    def __init__(self, model: HiVGForVisualGrounding, loss_weights: Mapping[str, float] | None = None) -> None:
        super().__init__()
        self.model, self.config = model, model.config
        self.loss_weights = with_defaults(loss_weights, LOSS_WEIGHTS, "pre-training")
        for name, parameter in model.named_parameters():
            in_clip = name.startswith("clip.") and ".bridge." not in name
            parameter.requires_grad_(in_clip or name.startswith(FUSION_INPUTS))
        for layer in model.clip.vision_model.encoder.layers:
            if hasattr(layer, "bridge"):
                nn.init.zeros_(layer.bridge.mlp.fc2.weight)
                nn.init.zeros_(layer.bridge.mlp.fc2.bias)
        width = self.config.clip_config.vision_config.hidden_size
        joint = self.config.hidden_size
        self.attributes = AttributeHeads(width)
        self.heads = nn.ModuleDict(
            {"object": nn.Linear(width, 1), "box": nn.Linear(width, 4), "place": nn.Linear(joint, 4)}
        )

    def forward(
        self,
        pixel_values: torch.Tensor,
        pixel_mask: torch.Tensor,
        patch_classes: torch.Tensor,
        patch_boxes: torch.Tensor,
        region: torch.Tensor,
        phrase_ids: torch.Tensor,
        phrase_mask: torch.Tensor,
        caption_ids: torch.Tensor,
        caption_mask: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        target: torch.Tensor,
        patch_index: torch.Tensor | None = None,
    ) -> dict[str, Any]:
        """The loss of one batch.

        Args:
            pixel_values: (B, 3, S, S).
            pixel_mask: (B, S, S).
            patch_classes: (B, N, 4) class of each patch's object by `ATTRIBUTES`, `NO_CLASS` without one.
            patch_boxes: (B, N, 4) offset of its box's center from the patch's center, width and height, in patches.
            region: (B, N) bool, patches of the object that the phrase describes.
            phrase_ids, phrase_mask: (B, T) description of that object.
            caption_ids, caption_mask: (B, T') description of the picture.
            input_ids, attention_mask: (B, T'') the row's expression.
            target: (B, N) bool, patches of the object that the expression names; none where it names nothing.
            patch_index: (B, P) patches to compute, -1 = none.

        Returns:
            `loss`, and `loss_dict` with the unweighted terms.
        """
        levels, pooled, there = self._see(pixel_values, pixel_mask, patch_index)
        patches = levels[-1]
        if patch_index is not None:
            place = patch_index.clamp(min=0)
            patch_classes, patch_boxes = (
                values.gather(1, place[:, :, None].expand(-1, -1, values.shape[-1]))
                for values in (patch_classes, patch_boxes)
            )  # (B, P, 4)
            region, target = region.gather(1, place), target.gather(1, place)  # (B, P)
        head = self.model.grounding_head
        chosen = torch.cat([levels[i] for i in self.config.visual_feature_layers], dim=-1)  # (B, P, levels * V)
        visual = head.visual_proj(head.visual_levels_proj(chosen))  # (B, P, H), as the fusion encoder reads them
        centers = self._centers(patches, patch_index)
        terms = self._patch_terms(patches, visual, patch_classes, patch_boxes, there, centers)
        expressions = head.text_proj(self._read(input_ids, attention_mask))  # (B, H)
        terms["match"] = self._match_term(visual, expressions, target & there, there)
        clip, scale = self.model.clip, self.model.clip.logit_scale.exp()

        phrases = F.normalize(self._read(phrase_ids, phrase_mask), dim=-1)  # (B, H)
        inside = (region & there).to(patches.dtype)[:, :, None]  # (B, P, 1)
        mean = (clip.vision_model.post_layernorm(patches) * inside).sum(1) / inside.sum(1).clamp(min=1)  # (B, V)
        regions = F.normalize(clip.visual_projection(mean), dim=-1)  # (B, H)
        same = same_pairs(None, hash_expressions(phrase_ids, phrase_mask))
        terms["region"] = contrastive_loss(scale * phrases @ regions.t(), inside.sum((1, 2)) > 0, same)

        captions = F.normalize(self._read(caption_ids, caption_mask), dim=-1)  # (B, H)
        images = F.normalize(clip.visual_projection(pooled), dim=-1)  # (B, H)
        same = same_pairs(None, hash_expressions(caption_ids, caption_mask))
        terms["image"] = contrastive_loss(scale * captions @ images.t(), None, same)
        return {"loss": sum(self.loss_weights[name] * term for name, term in terms.items()), "loss_dict": terms}

    def _see(
        self, pixel_values: torch.Tensor, pixel_mask: torch.Tensor, patch_index: torch.Tensor | None
    ) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
        """Run the vision tower as plain CLIP, past the bridges.

        Returns:
            The patches' states (B, P, V) before the first layer and after each, pooled (B, V), there (B, P).
        """
        tower = self.model.clip.vision_model
        hidden = tower.pre_layrnorm(tower.embeddings(pixel_values, patch_index))  # (B, 1 + P, V)
        if patch_index is not None:
            there = patch_index >= 0
        else:
            size = self.config.clip_config.vision_config.patch_size
            there = F.max_pool2d(pixel_mask[:, None].float(), size).flatten(1) > 0  # (B, N)
        bias = key_padding_bias(F.pad(there, (1, 0), value=True), hidden.dtype)
        states = [hidden[:, 1:]]
        for layer in tower.encoder.layers:
            hidden = CLIPEncoderLayer.forward(layer, hidden, bias)
            states.append(hidden[:, 1:])
        return states, tower.post_layernorm(hidden[:, 0]), there

    def _read(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """(B, T) -> (B, H), the projected end token."""
        states = self.model.clip.text_model(
            input_ids
        ).last_hidden_state  # causal: padding after the end changes nothing
        end = attention_mask.sum(-1) - 1
        return self.model.clip.text_projection(states[torch.arange(len(end), device=end.device), end])

    def _match_term(
        self, visual: torch.Tensor, expressions: torch.Tensor, target: torch.Tensor, there: torch.Tensor
    ) -> torch.Tensor:
        """Cross-entropy of the target's patches among the picture's patches, by cosine; mean over rows with a target.

        Args:
            visual: (B, P, H).
            expressions: (B, H).
            target, there: (B, P) bool.
        """
        cosine = torch.einsum("bph,bh->bp", F.normalize(visual, dim=-1), F.normalize(expressions, dim=-1))
        logits = (self.model.clip.logit_scale.exp() * cosine).masked_fill(~there, float("-inf"))
        named = target.any(-1)
        log_share = logits.masked_fill(~target, float("-inf"))[named].logsumexp(-1) - logits[named].logsumexp(-1)
        return -log_share.sum() / max(len(log_share), 1)

    def _centers(self, patches: torch.Tensor, patch_index: torch.Tensor | None) -> torch.Tensor:
        """(B, P, 4): center of each patch as (x, y, 0, 0), in patches."""
        if patch_index is None:
            patch_index = torch.arange(patches.shape[1], device=patches.device).expand(patches.shape[:2])
        grid = self.config.grid_size
        x, y = patch_index % grid + 0.5, patch_index.div(grid, rounding_mode="floor") + 0.5
        return F.pad(torch.stack([x, y], dim=-1), (0, 2))  # (B, P, 2) -> (B, P, 4)

    def _patch_terms(
        self,
        patches: torch.Tensor,
        visual: torch.Tensor,
        classes: torch.Tensor,
        boxes: torch.Tensor,
        there: torch.Tensor,
        centers: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """Means over the patches that are there, and over those with an object."""
        object_there = (classes[:, :, 0] != NO_CLASS) & there  # (B, P)
        logits = self.heads["object"](patches)[:, :, 0]
        terms = {"object": F.binary_cross_entropy_with_logits(logits[there], object_there[there].to(logits.dtype))}
        found = patches[object_there]  # (patches with an object, V)
        terms |= self.attributes(found, classes[object_there])
        offsets = boxes[object_there]  # (patches with an object, 4)
        places = offsets + centers[object_there]
        for name, states, targets in (("box", found, offsets), ("place", visual[object_there], places)):
            distance = (self.heads[name](states) - targets).abs().sum(-1)
            terms[name] = distance.sum() / max(len(found), 1) / self.config.grid_size
        return terms


class AttributeHeads(nn.Module):
    """A linear head for each attribute, which keep what a patch shows readable from its state.

    Args:
        width: V, of the patches' states.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({name: nn.Linear(width, len(values)) for name, values in CLASSES.items()})

    def forward(self, found: torch.Tensor, classes: torch.Tensor) -> dict[str, torch.Tensor]:
        """Cross-entropy by attribute, mean over the patches with an object: (F, V) states and (F, 4) classes."""
        # reduction sum over a clamped count: 0, not NaN, where no patch has an object
        return {
            name: F.cross_entropy(self.heads[name](found), classes[:, number], reduction="sum") / max(len(found), 1)
            for number, name in enumerate(ATTRIBUTES)
        }


def with_defaults(
    loss_weights: Mapping[str, float] | None, defaults: Mapping[str, float], kind: str
) -> dict[str, float]:
    """Weights of all losses of a kind, from those that differ; unknown names are refused."""
    unknown = set(loss_weights or {}) - set(defaults)
    if unknown:
        raise ValueError(f"unknown {kind} losses {sorted(unknown)}; expected some of {list(defaults)}.")
    return {**defaults, **(loss_weights or {})}


def plain_clip(model: HiVGForVisualGrounding) -> CLIPModel:
    """The pre-trained CLIP inside a HiVG model as a `CLIPModel` of its own, to be saved or used anywhere."""
    clip = CLIPModel(model.config.clip_config)
    clip.load_state_dict({name: value for name, value in model.clip.state_dict().items() if ".bridge." not in name})
    return clip
