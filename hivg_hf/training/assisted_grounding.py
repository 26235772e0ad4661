"""Grounding with help, for a new model: the layers are shown where to look while they learn to."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from hivg_hf.data.collator import GroundingCollator
from hivg_hf.modeling.box_ops_hivg import box_coverage
from hivg_hf.modeling.loss_hivg import (
    box_giou_loss,
    box_l1_loss,
    checked_labels,
    dice_loss,
    focal_loss,
    token_targets,
)
from hivg_hf.modeling.modeling_hivg import PADDING_LOGIT, HiVGForVisualGrounding
from hivg_hf.modeling.queries_hivg import assign_targets
from hivg_hf.utils.hooks import named_inputs

from .pretraining import AttributeHeads, with_defaults
from .pretraining_rows import MIN_COVERED, NO_CLASS, patch_coverage, patch_targets

LOSS_WEIGHTS = {
    "mark_focal": 20.0,
    "mark_dice": 2.0,
    "context_focal": 20.0,
    "context_dice": 2.0,
    "attributes": 0.5,
    "end_to_target": 0.5,
    "end_to_context": 0.5,
    "named": 2.0,
    "reg_to_end": 0.5,
    "reg_to_target": 0.5,
    "patch_bbox": 2.0,
    "patch_giou": 2.0,
}


class AssistedCollator(GroundingCollator):
    """A `GroundingCollator` that also tells what stands on every patch, where the rows say so.

    Adds `patch_classes` (B, N, 4), as in `PretrainingModel`, to batches of rows with the column `objects` whose images
    are not augmented, and `context` (B, N) bool, the patches of the objects that decide which one is named, where rows
    have the column `context_boxes` too.
    """

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        batch = super().__call__(rows)
        if self.augmentation is None and all(row.get("objects") for row in rows):
            classes = [patch_targets(row, self.processor.image_processor)[0] for row in rows]
            batch["patch_classes"] = torch.from_numpy(np.stack(classes))
            if all(row.get("context_boxes") is not None for row in rows):
                context = [_context_patches(row, self.processor.image_processor) for row in rows]
                batch["context"] = torch.stack(context)
        return batch


class AssistedGrounding(nn.Module):
    """Grounding with help: besides HiVG's own losses, the layers are shown where to look.

    A box can be read from [REG] only after a chain of look-ups that box losses alone take very long to find: the
    expression has to find the target's patches, and [REG], whose query is the same for every expression, has to find
    what the expression found. So half of the heads of the fusion encoder are guided:

    - in the first layer the expression's end token looks at the target's patches,
    - in the second [REG] looks at the end token,
    - in the last [REG] looks at the target's patches,

    and the box head learns to read the box from each of the target's patches as well as from [REG]. On the vision
    tower one linear head makes the bridges mark the target, and others keep what every patch shows readable.

    A relation needs a second look. Who is left of the ring is mostly who is farthest left, so boxes alone never teach
    whether there is a ring, and a score that should know cannot. Where rows tell their context, a second linear head
    marks it, and in the first layer other heads let the end token look at it. A third reads from the end token whether
    the expression names anything: the score's own evidence is read without gradient.

    All these heads are thrown away.

    Args:
        model: The HiVG model, kept as `.model`.
        loss_weights: Weights that differ from `LOSS_WEIGHTS`.
        towers: False freezes CLIP.
    """

    def __init__(
        self, model: HiVGForVisualGrounding, loss_weights: Mapping[str, float] | None = None, towers: bool = True
    ) -> None:
        super().__init__()
        if len(model.grounding_head.fusion.layers) < 3:
            raise ValueError("assisted grounding guides three layers; this fusion encoder has fewer.")
        self.model, self.config = model, model.config
        self.loss_weights = with_defaults(loss_weights, LOSS_WEIGHTS, "assisting")
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(towers or not name.startswith("clip.") or ".bridge." in name)
        width = model.config.clip_config.vision_config.hidden_size
        self.norm = nn.LayerNorm(width)
        self.mark, self.mark_context = nn.Linear(width, 1), nn.Linear(width, 1)
        self.attributes = AttributeHeads(width)
        self.named = nn.Linear(model.config.hidden_size, 1)

    def forward(
        self, patch_classes: torch.Tensor | None = None, context: torch.Tensor | None = None, **batch: torch.Tensor
    ) -> Any:
        """`loss` and unweighted `loss_dict` of a batch of `AssistedCollator`; without labels, the model's output."""
        if "labels" not in batch:
            return self.model(**batch)
        outputs, seen = self._run(batch)
        config, index = self.config, batch["patch_index"]
        labels = checked_labels(batch["labels"], index, config.num_queries)  # (B, 4), of several queries (B, M, 4)
        there = index >= 0  # (B, P)
        covered = token_targets(
            labels, batch.get("mask_labels"), config.grid_size, config.image_size, config.token_target
        )  # (B, N)
        covered = covered.gather(1, index.clamp(min=0)) * there  # (B, P)
        assigned, own = labels[:, None], covered[:, None]  # (B, K, 4), (B, K, P) what each query is to answer for
        if config.num_queries > 1:
            boxes, scores = outputs.query_boxes.float(), outputs.query_scores.float()  # bfloat16 under autocast
            assigned = assign_targets(boxes, scores.logit(), labels, self.model.config.loss_weights)
            inside = box_coverage(assigned.flatten(0, 1), config.grid_size, config.grid_size).nan_to_num(0) > 0
            inside = inside.flatten(1).unflatten(0, assigned.shape[:2])  # (B, K, N)
            own = own * inside.gather(2, index.clamp(min=0)[:, None].expand(-1, inside.shape[1], -1))
        own = _patches_of(own)

        vision = self.norm(seen[self.model.clip.vision_model.encoder.layers[-1]][:, 1:])  # (B, P, V)
        terms = _mark_terms("mark", self.mark(vision), covered, there)
        if patch_classes is not None:
            terms["attributes"] = self._attributes_term(vision, patch_classes, index)
        if context is not None:
            context = context.gather(1, index.clamp(min=0)) & there  # (B, P)
            terms |= _mark_terms("context", self.mark_context(vision), context.float(), there)
        target = _patches_of(covered)
        terms |= self._guides(seen, target, own, context, batch["attention_mask"])
        fused = seen[self.model.grounding_head.fusion].last_hidden_state  # (B, K + P + 1, H), the end token last
        named = self.named(fused[:, -1])[:, 0].float()  # (B,)
        terms["named"] = F.binary_cross_entropy_with_logits(named, target.any(-1).float())
        rows, queries, places = own.nonzero(as_tuple=True)  # (target patches,)
        found = self.model.grounding_head.boxes(fused[rows, own.shape[1] + places]).float()  # (target patches, 4)
        wanted = assigned[rows, queries]
        terms |= {"patch_bbox": box_l1_loss(found, wanted), "patch_giou": box_giou_loss(found, wanted)}
        loss = outputs.loss + sum(self.loss_weights[name] * term for name, term in terms.items())
        return {"loss": loss, "loss_dict": {**outputs.loss_dict, **terms}, "pred_boxes": outputs.pred_boxes}

    def _run(self, batch: Mapping[str, torch.Tensor]) -> tuple[Any, dict[nn.Module, Any]]:
        """The model's output; what the last vision layer and the fusion encoder gave, and each fusion layer got.

        The last by name: the layer's `hidden_states`, `positions` and `key_bias`.
        """
        seen: dict[nn.Module, Any] = {}
        fusion = self.model.grounding_head.fusion
        hooks = [
            module.register_forward_hook(lambda module, inputs, output: seen.update({module: output}))
            for module in (self.model.clip.vision_model.encoder.layers[-1], fusion)
        ]

        def note_inputs(layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            seen[layer] = named_inputs(layer, args, kwargs)

        hooks += [layer.register_forward_pre_hook(note_inputs, with_kwargs=True) for layer in fusion.layers]
        try:
            outputs = self.model(**batch)
        finally:
            for hook in hooks:
                hook.remove()
        return outputs, seen

    def _attributes_term(self, vision: torch.Tensor, classes: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Sum of the attributes' cross-entropies; `vision` (B, P, V), `classes` (B, N, 4), `index` (B, P)."""
        classes = classes.gather(1, index.clamp(min=0)[:, :, None].expand(-1, -1, classes.shape[-1]))  # (B, P, 4)
        found = (classes[:, :, 0] != NO_CLASS) & (index >= 0)
        return sum(self.attributes(vision[found], classes[found]).values())

    def _guides(
        self,
        seen: Mapping[nn.Module, Any],
        target: torch.Tensor,
        own: torch.Tensor,
        context: torch.Tensor | None,
        text_mask: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """The guides; patches of all targets `target` (B, P), of each query's own `own` (B, K, P), of the `context`
        (B, P), and `text_mask` (B, T)."""
        # tokens of the fusion encoder: K [REG], CLS, P patches, T words
        queries = own.shape[1]
        end = queries + 1 + target.shape[1] + text_mask.sum(-1) - 1  # (B,)
        wanted, owned = (F.pad(patches, (queries + 1, text_mask.shape[1])) for patches in (target, own))
        is_end = torch.arange(wanted.shape[1], device=end.device) == end[:, None]  # (B, K + 1 + P + T)
        layers, named = self.model.grounding_head.fusion.layers, target.any(-1)
        asked: dict[str, tuple[nn.Module, list[tuple[Any, ...]]]] = {
            "end_to_target": (layers[0], [(end, wanted, named)]),
            "reg_to_end": (layers[1], [(end * 0 + query, is_end, named) for query in range(queries)]),
            "reg_to_target": (
                layers[-1],
                [(end * 0 + query, owned[:, query], own[:, query].any(-1)) for query in range(queries)],
            ),
        }
        if context is not None:
            looks = [(end, F.pad(context, (queries + 1, text_mask.shape[1])), context.any(-1), 1)]
            asked["end_to_context"] = (layers[0], looks)
        terms = {}
        for name, (layer, looks) in asked.items():
            found = [guided_attention(layer, seen[layer], *look) for look in looks]
            rows = torch.stack([look[2].sum() for look in looks])  # each row of each query weighs the same
            terms[name] = (torch.stack(found) * rows).sum() / rows.sum().clamp(min=1)
        return terms


def _mark_terms(name: str, logits: torch.Tensor, wanted: torch.Tensor, there: torch.Tensor) -> dict[str, torch.Tensor]:
    """Focal and dice loss of marks `logits` (B, P, 1) on patches; `wanted` (B, P) in 0..1, `there` (B, P) bool."""
    marks = logits[:, :, 0].masked_fill(~there, PADDING_LOGIT)  # (B, P)
    return {f"{name}_focal": focal_loss(marks, wanted), f"{name}_dice": dice_loss(marks, wanted)}


def _context_patches(row: Mapping[str, Any], image_processor: Any) -> torch.Tensor:
    """Which patches (N,) show an object of the row's `context_boxes`."""
    covered = torch.from_numpy(patch_coverage(row["context_boxes"], row, image_processor))  # (C, N)
    return _patches_of(covered).any(0)


def _patches_of(covered: torch.Tensor) -> torch.Tensor:
    """Share of each patch that a target covers, (..., P) -> which patches are the target's, bool. What covers little
    of every patch has the one that it covers most."""
    least = covered.amax(-1, keepdim=True).clamp(min=1e-6, max=MIN_COVERED)
    return covered >= least


def guided_attention(
    layer: nn.Module,
    inputs: Mapping[str, torch.Tensor | None],
    query: torch.Tensor,
    target: torch.Tensor,
    named: torch.Tensor,
    part: int = 0,
) -> torch.Tensor:
    """Cross-entropy of one token's attention, in some of the heads: it should look at the target tokens.

    Args:
        layer: A fusion layer with pre-norm.
        inputs: What the layer was given by name: `hidden_states` and `positions` (B, L, H), `key_bias` (B, 1, 1, L).
        query: (B,) which token looks.
        target: (B, L) bool, where it should look.
        named: (B,) bool, rows that count.
        part: 0 for the first half of the heads, 1 for the quarter after it.
    """
    attention = layer.self_attn
    tokens = layer.norm1(inputs["hidden_states"])
    if inputs["positions"] is not None:
        tokens = tokens + inputs["positions"]
    rows = torch.arange(len(query), device=query.device)
    (q_weight, k_weight, _), (q_bias, k_bias, _) = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    half = attention.num_heads // 2
    heads = (slice(half), slice(half, half + max(1, half // 2)))[part]
    # (B, H) -> (B, guided, head_dim), (B, L, H) -> (B, L, guided, head_dim)
    queries = F.linear(tokens[rows, query], q_weight, q_bias).unflatten(-1, (-1, attention.head_dim))[:, heads]
    keys = F.linear(tokens, k_weight, k_bias).unflatten(-1, (-1, attention.head_dim))[:, :, heads]
    scores = torch.einsum("bhd,blhd->bhl", queries, keys) * attention.head_dim**-0.5
    if inputs["key_bias"] is not None:
        scores = scores + inputs["key_bias"][:, 0]
    share = scores.log_softmax(-1).masked_fill(~target[:, None], float("-inf"))[named].logsumexp(-1)
    return -share.mean(-1).sum() / max(len(share), 1)
