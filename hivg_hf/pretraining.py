"""Pre-training on RefShapes, where there is no CLIP to start from: the towers learn to see and to name.

Grounding losses alone teach a new model nothing for a long time. Here CLIP's two towers, without bridges and fusion,
learn from what RefShapes knows about every object (rows with the column `objects`):

- per patch: is there an object, its colour, shape, size and filling, and the box around it relative to the patch;
- regions: an object's patches match its description among all descriptions of the batch (as CLIP, but per object);
- images: CLIP's own contrastive loss between pictures and captions.

Two more terms teach the projections through which the fusion encoder reads the towers:

- match: the expression is nearest to the patches of its target among all patches of its picture;
- place: where the box around a patch's object lies in the square. The fusion encoder adds positions to queries and
  keys only, so that [REG] can read a place from nothing but the patch itself.

The heads are thrown away. What stays is a plain CLIP inside the HiVG model, under CLIP's own keys, and those
projections. Bridges begin as identities (their last layer is 0), so that grounding starts from what was learned here.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPModel
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from hivg_hf.data.collator import open_row_image
from hivg_hf.data.refshapes_language import ATTRIBUTES
from hivg_hf.data.refshapes_scenes import COLORS, FILLINGS, SHAPES, SHIFTED_COLORS, SIZES
from hivg_hf.modeling.loss_hivg import (
    contrastive_loss,
    dice_loss,
    focal_loss,
    hash_expressions,
    same_pairs,
    token_targets,
)
from hivg_hf.modeling.modeling_hivg import PADDING_LOGIT, HiVGForVisualGrounding, key_padding_bias

CLASSES = {"size": SIZES, "filling": FILLINGS, "color": (*COLORS, *SHIFTED_COLORS), "shape": SHAPES}
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
NO_CLASS = -100  # what cross-entropy leaves out
MIN_COVERED = 0.25  # share of a patch that a box must cover to be its object
PATCH_TARGETS = ("patch_classes", "patch_boxes", "region", "target")
FUSION_INPUTS = tuple(f"grounding_head.{name}." for name in ("visual_levels_proj", "visual_proj", "text_proj"))
CAPTION_STREAM = 3  # keeps the captions' random numbers apart from every other stream with the same seed


class PretrainingModel(nn.Module):
    """CLIP's towers inside a HiVG model, with heads that are used for pre-training only.

    Args:
        model: The HiVG model, kept as `.model`; its `clip` learns, without the bridges, and the projections into the
            fusion encoder.
        loss_weights: Weights that differ from `LOSS_WEIGHTS`.
    """

    def __init__(self, model: HiVGForVisualGrounding, loss_weights: Mapping[str, float] | None = None) -> None:
        super().__init__()
        unknown = set(loss_weights or {}) - set(LOSS_WEIGHTS)
        if unknown:
            raise ValueError(f"unknown pre-training losses {sorted(unknown)}; expected some of {list(LOSS_WEIGHTS)}.")
        self.model, self.config = model, model.config
        self.loss_weights = {**LOSS_WEIGHTS, **(loss_weights or {})}
        for name, parameter in model.named_parameters():
            in_clip = name.startswith("clip.") and ".bridge." not in name
            parameter.requires_grad_(in_clip or name.startswith(FUSION_INPUTS))
        for layer in model.clip.vision_model.encoder.layers:
            if hasattr(layer, "bridge"):
                nn.init.zeros_(layer.bridge.mlp.fc2.weight)
                nn.init.zeros_(layer.bridge.mlp.fc2.bias)
        width = self.config.clip_config.vision_config.hidden_size
        joint = self.config.hidden_size
        self.heads = nn.ModuleDict({name: nn.Linear(width, len(values)) for name, values in CLASSES.items()})
        self.heads["object"] = nn.Linear(width, 1)
        self.heads["box"] = nn.Linear(width, 4)
        self.heads["place"] = nn.Linear(joint, 4)

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
            patch_boxes: (B, N, 4) offset of its box's centre from the patch's centre, width and height, in patches.
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
        """(B, P, 4): centre of each patch as (x, y, 0, 0), in patches."""
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
        for number, name in enumerate(ATTRIBUTES):
            # reduction sum over a clamped count: 0, not NaN, where no patch has an object
            loss = F.cross_entropy(self.heads[name](found), classes[object_there][:, number], reduction="sum")
            terms[name] = loss / max(len(found), 1)
        offsets = boxes[object_there]  # (patches with an object, 4)
        places = offsets + centers[object_there]
        for name, states, targets in (("box", found, offsets), ("place", visual[object_there], places)):
            distance = (self.heads[name](states) - targets).abs().sum(-1)
            terms[name] = distance.sum() / max(len(found), 1) / self.config.grid_size
        return terms


class PretrainingCollator:
    """Rows with the column `objects` -> a batch for `PretrainingModel`.

    Which object is described and the order of the caption depend on (seed, epoch, row index) alone.

    Args:
        processor: The `HiVGProcessor` of the model.
        seed: Seed of those choices.
        options: Of `PretrainingModel`; not read here.

    Raises:
        ValueError: A row has no objects.
    """

    def __init__(self, processor: Any, seed: int = 0, **options: Any) -> None:
        self.processor, self.seed = processor, seed

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        image_processor = self.processor.image_processor
        squares, targets, phrases, captions = [], [], [], []
        for row in rows:
            if not row.get("objects"):
                raise ValueError("pre-training needs rows with objects: load refshapes with objects=True.")
            image = open_row_image(row)
            height, width, top, left = image_processor.geometry(image.height, image.width)
            squares.append(image_processor.place(image_processor.resize_image(image), top, left))
            ratio = (width / image.width, height / image.height)
            rng = np.random.default_rng([self.seed, row.get("epoch", 0), row.get("row_index", 0), CAPTION_STREAM])
            order = rng.permutation(len(row["objects"]))
            objects = [row["objects"][index] for index in order]
            boxes = np.array([item["box"] for item in objects]) * (ratio * 2) + (left, top, left, top)
            named = next((i for i, item in enumerate(objects) if item["box"] == row["box"]), None)
            targets.append(self._targets(objects, boxes, named))
            phrases.append(_describe(objects[0]))
            captions.append(" and ".join(f"a {item['color']} {item['shape']}" for item in objects))
        batch = {name: torch.as_tensor(np.stack([square[name] for square in squares])) for name in squares[0]}
        if image_processor.skip_padded_patches:
            batch["patch_index"] = torch.as_tensor(image_processor.patch_index_for(batch["pixel_mask"]))
        for name, values in zip(PATCH_TARGETS, zip(*targets, strict=True), strict=True):
            batch[name] = torch.from_numpy(np.stack(values))
        for name, texts in (("phrase", phrases), ("caption", captions)):
            tokens = self.processor(text=texts, return_tensors="pt")
            batch |= {f"{name}_ids": tokens["input_ids"], f"{name}_mask": tokens["attention_mask"]}
        batch.update(self.processor(text=[row["expression"] for row in rows], return_tensors="pt"))
        return batch

    def _targets(
        self, objects: Sequence[Mapping[str, Any]], boxes: np.ndarray, named: int | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """`PATCH_TARGETS`, by the object whose box covers most of each patch.

        Args:
            objects: Attributes of the O objects; the first is the one described.
            boxes: (O, 4) xyxy pixels of the square.
            named: Which one the expression names.

        Returns:
            classes (N, 4), offsets (N, 4), patches of the described object (N,) and of the named one (N,).
        """
        patch = self.processor.image_processor.patch_size
        grid = self.processor.image_processor.size["height"] // patch
        edges = np.arange(grid)
        boxes = boxes / patch  # in patches
        along_x, along_y = (
            np.clip(np.minimum(edges + 1, boxes[:, hi, None]) - np.maximum(edges, boxes[:, lo, None]), 0, 1)
            for lo, hi in ((0, 2), (1, 3))
        )  # (O, G) each
        covered = (along_y[:, :, None] * along_x[:, None, :]).reshape(len(boxes), -1)  # (O, N)
        owner = covered.argmax(axis=0)  # (N,)
        has_object = covered.max(axis=0) >= MIN_COVERED
        # A small object over the corner of four patches covers little of each; the one it covers most is its own.
        best = covered.argmax(axis=1)  # (O,)
        has_object[best[owner[best] == np.arange(len(boxes))]] = True
        numbers = np.array([[CLASSES[name].index(item[name]) for name in ATTRIBUTES] for item in objects])
        classes = np.where(has_object[:, None], numbers[owner], NO_CLASS)
        centers = np.stack([np.tile(edges + 0.5, grid), np.repeat(edges + 0.5, grid)], axis=1)  # (N, 2) x, y
        middle, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
        offsets = np.concatenate([middle[owner] - centers, size[owner]], axis=1).astype(np.float32)
        return classes, offsets, has_object & (owner == 0), has_object & (owner == (-1 if named is None else named))


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


def plain_clip(model: HiVGForVisualGrounding) -> CLIPModel:
    """The pre-trained CLIP inside a HiVG model as a `CLIPModel` of its own, to be saved or used anywhere."""
    clip = CLIPModel(model.config.clip_config)
    clip.load_state_dict({name: value for name, value in model.clip.state_dict().items() if ".bridge." not in name})
    return clip


def _describe(item: Mapping[str, Any]) -> str:
    return " ".join(item[name] for name in ATTRIBUTES)
