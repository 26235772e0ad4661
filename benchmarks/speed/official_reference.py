"""The official HiVG forward and losses, written out plainly over an official state dict.

Independent of `hivg_hf`: plain functions on a dict of tensors, eager attention, LoRA unmerged, all 77 text positions,
the mask head by its three convolutions, every output computed. Two uses: it checks layouts for which no recorded
figures exist (after it has reproduced those that do), and it is the straightforward version that benchmarks compare
with.

Sources: models/HiVG.py, models/vl_transformer.py, utils/loss_utils.py of github.com/linhuixiao/HiVG (commit 51f9233).
Shapes: B batch, S image side, N patches, T = 77 text positions, D_v and D_t tower widths, H joint width.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

State = Mapping[str, Tensor]


class OfficialLayers(NamedTuple):
    """Layer lists that the official constructor derives from its arguments."""

    bridges: list[int]  # adapt_layer: vision layers from 0
    visual_features: list[int]  # extract_vision_layer: hidden states, 0 = embedding
    text: list[int]  # extract_text_layer: hidden states, 0 = embedding


class OfficialOutput(NamedTuple):
    """The five tensors that the official forward returns."""

    pred_boxes: Tensor  # (B, 4) cxcywh in 0..1 of the padded square
    logits_per_text: Tensor  # (B, B)
    logits_per_image: Tensor  # (B, B)
    token_similarity: Tensor  # (B, N)
    mask_logits: Tensor  # (B, 1, 8 sqrt(N), 8 sqrt(N))


def plain_names(state: State) -> dict[str, Tensor]:
    """Official names with the nesting of PEFT wrappers and the `base_layer` of newer PEFT removed."""
    return {re.sub(r"(base_model\.model\.)+", "", name).replace(".base_layer.", "."): t for name, t in state.items()}


def official_forward(
    state: State,
    args: Mapping[str, Any],
    clip_config: Mapping[str, Any],
    layers: OfficialLayers,
    pixel_values: Tensor,
    padding_mask: Tensor,
    input_ids: Tensor,
    mixes_batch: bool = True,
) -> OfficialOutput:
    """Run the official model.

    Args:
        state: `plain_names` of an official state dict.
        args: the official arguments.
        clip_config: dict of a CLIP configuration.
        layers: the layers in use.
        pixel_values: (B, 3, S, S).
        padding_mask: (B, S, S), 1 = padding.
        input_ids: (B, 77), filled with 0.
        mixes_batch: the bridge reads a (T, B, D) tensor as (B, T, D), as the official code does; False reads it right.
    """
    batch = pixel_values.shape[0]
    text_states, text_last = text_tower(state, clip_config["text_config"], input_ids)
    end = input_ids.argmax(dim=-1)
    rows = torch.arange(batch, device=input_ids.device)
    text_features = F.linear(text_last, state["clip.text_projection.weight"])  # (B, T, H)
    text_eos = text_features[rows, end]
    if args["mixup_pretrain"]:
        bridge_text = [linear(state, "condition_text_proj", text_features)]
    else:
        bridge_text = [text_states[i] for i in layers.text]

    vision_states = vision_tower(
        state, clip_config["vision_config"], layers.bridges, bridge_text, args, pixel_values, mixes_batch
    )
    pooled = layer_norm(state, "clip.vision_model.post_layernorm", vision_states[-1][:, 0])
    image_cls = F.linear(pooled, state["clip.visual_projection.weight"])
    levels = torch.cat([vision_states[i] for i in layers.visual_features], dim=2)  # (B, 1 + N, K * D_v)
    visual = linear(state, "visu_proj", linear(state, "ml_visual_projection", levels))
    text = linear(state, "text_proj", text_features)

    reg = state["reg_token.weight"].unsqueeze(0).repeat(batch, 1, 1)
    patches = int((args["imsize"] / clip_config["vision_config"]["patch_size"]) ** 2)
    never = torch.zeros(batch, 2, dtype=torch.bool, device=input_ids.device)  # [REG] and [CLS]
    mask = torch.cat([never, patch_padding(padding_mask, patches), input_ids == 0], dim=1)
    fused = fusion_encoder(state, args, torch.cat([reg, visual, text], dim=1), mask)  # (B, 2 + N + T, H)

    expression = unit(fused[rows, 2 + patches + end])
    patch_tokens = fused[:, 2 : 2 + patches]
    logits_per_text = unit(text_eos) @ unit(image_cls).T * state["clip.logit_scale"].exp()
    return OfficialOutput(
        pred_boxes=box_head(state, fused[:, 0]),
        logits_per_text=logits_per_text,
        logits_per_image=logits_per_text.T,
        token_similarity=token_similarity(state, patch_tokens, expression),
        mask_logits=mask_head(state, patch_tokens, expression),
    )


def text_tower(state: State, config: Mapping[str, Any], input_ids: Tensor) -> tuple[list[Tensor], Tensor]:
    """CLIP's text tower: all hidden states (B, T, D_t), the embedding first, and the last one after the final norm."""
    prefix = "clip.text_model"
    length = input_ids.shape[1]
    hidden = state[f"{prefix}.embeddings.token_embedding.weight"][input_ids]
    hidden = hidden + state[f"{prefix}.embeddings.position_embedding.weight"][:length]
    causal = torch.full((length, length), float("-inf"), device=input_ids.device).triu(1)
    states = [hidden]
    for i in range(config["num_hidden_layers"]):
        layer = f"{prefix}.encoder.layers.{i}"
        normed = layer_norm(state, f"{layer}.layer_norm1", hidden)
        hidden = hidden + attention(
            state, f"{layer}.self_attn", normed, normed, config["num_attention_heads"], bias=causal
        )
        hidden = hidden + mlp(state, f"{layer}.mlp", layer_norm(state, f"{layer}.layer_norm2", hidden))
        states.append(hidden)
    return states, layer_norm(state, f"{prefix}.final_layer_norm", hidden)


def vision_tower(
    state: State,
    config: Mapping[str, Any],
    bridges: list[int],
    bridge_text: list[Tensor],
    args: Mapping[str, Any],
    pixel_values: Tensor,
    mixes_batch: bool,
) -> list[Tensor]:
    """CLIP's vision tower with bridges: all hidden states (B, 1 + N, D_v), the embedding first."""
    prefix, heads = "clip.vision_model", config["num_attention_heads"]
    hidden = layer_norm(state, f"{prefix}.pre_layrnorm", vision_embeddings(state, pixel_values))
    states = [hidden]
    for i in range(config["num_hidden_layers"]):
        layer = f"{prefix}.encoder.layers.{i}"
        normed = layer_norm(state, f"{layer}.layer_norm1", hidden)
        hidden = hidden + attention(state, f"{layer}.self_attn", normed, normed, heads)
        if i in bridges:
            text = bridge_input(state, layer, bridge_text) if args["enable_adaptive_weights"] else bridge_text[-1]
            query = layer_norm(state, f"{layer}.cross_norm", hidden)
            crossed = attention(state, f"{layer}.cross_attn", query, text, heads, mixes_batch=mixes_batch)
            hidden = hidden + mlp(state, f"{layer}.cross_mlp", crossed)
        hidden = hidden + mlp(state, f"{layer}.mlp", layer_norm(state, f"{layer}.layer_norm2", hidden))
        states.append(hidden)
    return states


def vision_embeddings(state: State, pixel_values: Tensor) -> Tensor:
    """(B, 1 + N, D_v): [CLS] and patches with positions, interpolated where the image is not of CLIP's own size."""
    prefix = "clip.vision_model.embeddings"
    kernel = state[f"{prefix}.patch_embedding.weight"]
    grid = F.conv2d(pixel_values, kernel, stride=kernel.shape[-1])  # (B, D_v, G, G)
    patches = grid.flatten(2).transpose(1, 2)
    tokens = torch.cat([state[f"{prefix}.class_embedding"].expand(len(patches), 1, -1), patches], dim=1)
    positions = state[f"{prefix}.position_embedding.weight"]  # (1 + n, D_v)
    side = round((positions.shape[0] - 1) ** 0.5)
    if (side, side) != tuple(grid.shape[-2:]):
        square = positions[1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
        square = F.interpolate(square, grid.shape[-2:], mode="bicubic", antialias=True, align_corners=False)
        positions = torch.cat([positions[:1], square.flatten(2)[0].T])
    return tokens + positions


def bridge_input(state: State, layer: str, bridge_text: list[Tensor]) -> Tensor:
    """(B, T, D_v): text states times (1 + their adaptive weights), concatenated, through the gate projection."""
    weighted = [
        text * state[f"{layer}.cross_adaptive_weights.{k}.weight"] + text for k, text in enumerate(bridge_text)
    ]
    return linear(state, f"{layer}.cross_gate", torch.cat(weighted, dim=-1))


def fusion_encoder(state: State, args: Mapping[str, Any], tokens: Tensor, mask: Tensor) -> Tensor:
    """Transformer encoder over (B, L, H); positions are added to queries and keys only; mask (B, L), True = ignore."""
    position = state["vl_pos_embed.weight"]
    bias = torch.zeros_like(mask, dtype=tokens.dtype).masked_fill(mask, float("-inf"))[:, None, None]
    for i in range(args["vl_enc_layers"]):
        layer = f"vl_transformer.encoder.layers.{i}"
        if args["normalize_before"]:
            normed = layer_norm(state, f"{layer}.norm1", tokens)
            tokens = tokens + packed_attention(state, layer, normed, normed + position, args["vl_nheads"], bias)
            tokens = tokens + relu_mlp(state, layer, layer_norm(state, f"{layer}.norm2", tokens))
        else:
            attended = packed_attention(state, layer, tokens, tokens + position, args["vl_nheads"], bias)
            tokens = layer_norm(state, f"{layer}.norm1", tokens + attended)
            tokens = layer_norm(state, f"{layer}.norm2", tokens + relu_mlp(state, layer, tokens))
    return layer_norm(state, "vl_transformer.encoder.norm", tokens) if args["normalize_before"] else tokens


def packed_attention(state: State, layer: str, value: Tensor, query_key: Tensor, heads: int, bias: Tensor) -> Tensor:
    """Self-attention with the three input projections in one matrix, as nn.MultiheadAttention holds them."""
    weights = state[f"{layer}.self_attn.in_proj_weight"].chunk(3)
    biases = state[f"{layer}.self_attn.in_proj_bias"].chunk(3)
    q, k, v = (F.linear(x, w, b) for x, w, b in zip((query_key, query_key, value), weights, biases, strict=True))
    return linear(state, f"{layer}.self_attn.out_proj", scaled_dot_product(q, k, v, heads, bias))


def box_head(state: State, reg: Tensor) -> Tensor:
    """(B, H) to boxes (B, 4) cxcywh in 0..1."""
    hidden = F.relu(linear(state, "bbox_embed.layers.0", reg))
    hidden = F.relu(linear(state, "bbox_embed.layers.1", hidden))
    return linear(state, "bbox_embed.layers.2", hidden).sigmoid()


def token_similarity(state: State, patch_tokens: Tensor, expression: Tensor) -> Tensor:
    """(B, N): product of the unit expression vector (B, H) with each patch (B, N, H) after norm and MLP."""
    tokens = mlp(state, "visu_token_mlp", layer_norm(state, "visu_token_norm", patch_tokens))
    return (expression.unsqueeze(1) * tokens).sum(-1)


def mask_head(state: State, patch_tokens: Tensor, expression: Tensor) -> Tensor:
    """(B, 1, 8G, 8G): three transposed convolutions of the patches (B, N, H), then the expression vector (B, H)."""
    batch, patches, width = patch_tokens.shape
    side = round(patches**0.5)
    features = patch_tokens.transpose(1, 2).reshape(batch, width, side, side)
    for k in (1, 2, 3):
        features = F.conv_transpose2d(features, state[f"seg_conv{k}.weight"], stride=2)
    return (features * expression[:, :, None, None]).sum(1, keepdim=True)


def patch_padding(padding_mask: Tensor, patches: int) -> Tensor:
    """(B, S, S) pixels to (B, N) patches: bilinear with antialias and rounding, as torchvision resizes integers."""
    side = round(patches**0.5)
    reduced = F.interpolate(padding_mask[:, None].float(), (side, side), mode="bilinear", antialias=True)
    return reduced.round().bool().flatten(1)


def attention(
    state: State,
    name: str,
    query: Tensor,
    key_value: Tensor,
    heads: int,
    bias: Tensor | None = None,
    mixes_batch: bool = False,
) -> Tensor:
    """Attention with CLIP's four projections; (B, L, D) queries, (B, T, D) keys and values."""
    q = linear(state, f"{name}.q_proj", query)
    k, v = linear(state, f"{name}.k_proj", key_value), linear(state, f"{name}.v_proj", key_value)
    if mixes_batch:  # HiVG.py:444 permutes to (T, B, D), :162 reads the memory as (B, T, D)
        k, v = (x.transpose(0, 1).contiguous().view(x.shape) for x in (k, v))
    return linear(state, f"{name}.out_proj", scaled_dot_product(q, k, v, heads, bias))


def scaled_dot_product(q: Tensor, k: Tensor, v: Tensor, heads: int, bias: Tensor | None) -> Tensor:
    """Softmax attention; (B, L, D), (B, T, D), (B, T, D) to (B, L, D); bias broadcasts to (B, heads, L, T)."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))  # (B, heads, L, D / heads)
    scores = q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)
    weights = (scores if bias is None else scores + bias).softmax(dim=-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def linear(state: State, name: str, x: Tensor) -> Tensor:
    """Linear layer with its LoRA term, where it has one: scale 16 / r, HiVG.py:776-778."""
    y = F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))
    a = state.get(f"{name}.lora_A.default.weight")
    if a is None:
        return y
    return y + F.linear(F.linear(x, a), state[f"{name}.lora_B.default.weight"]) * (16 / a.shape[0])


def mlp(state: State, name: str, x: Tensor) -> Tensor:
    """Two layers with QuickGELU between."""
    hidden = linear(state, f"{name}.fc1", x)
    return linear(state, f"{name}.fc2", hidden * torch.sigmoid(1.702 * hidden))


def relu_mlp(state: State, layer: str, x: Tensor) -> Tensor:
    """The feed-forward part of a fusion layer."""
    return linear(state, f"{layer}.linear2", F.relu(linear(state, f"{layer}.linear1", x)))


def layer_norm(state: State, name: str, x: Tensor) -> Tensor:
    """LayerNorm with the official epsilon of 1e-5."""
    weight = state[f"{name}.weight"]
    return F.layer_norm(x, weight.shape, weight, state[f"{name}.bias"], 1e-5)


def unit(x: Tensor) -> Tensor:
    """Vectors of length one."""
    return x / x.norm(dim=-1, keepdim=True)


def official_losses(output: OfficialOutput, target_boxes: Tensor, target_mask: Tensor) -> dict[str, Tensor]:
    """The official loss terms under their official names (one is misspelt there), official coefficients applied.

    Args:
        output: of `official_forward`.
        target_boxes: (B, 4) cxcywh in 0..1 of the padded square.
        target_mask: (B, 1, S, S), 1 = object.
    """
    batch = len(target_boxes)
    side = round(output.token_similarity.shape[1] ** 0.5)
    patch_target = (F.interpolate(target_mask.float(), (side, side), mode="nearest") > 0.5).float().flatten(1)
    masks = F.interpolate(output.mask_logits, target_mask.shape[-2:], mode="bilinear", align_corners=False).flatten(1)
    labels = torch.arange(batch, device=target_boxes.device)
    contrastive = F.cross_entropy(output.logits_per_text, labels) + F.cross_entropy(output.logits_per_image, labels)
    return {
        "loss_bbox": 2 * (output.pred_boxes - target_boxes).abs().sum() / batch,
        "loss_giou": 2 * (1 - giou_cxcywh(output.pred_boxes, target_boxes)).sum() / batch,
        "loss_contrastive": contrastive / 2,
        "loss_algin_focal": 20 * focal(output.token_similarity, patch_target),
        "loss_align_dice": 2 * dice(output.token_similarity, patch_target),
        "loss_seg_focal": 20 * focal(masks, target_mask.flatten(1).float()),
        "loss_seg_dice": 2 * dice(masks, target_mask.flatten(1).float()),
    }


def giou_cxcywh(a: Tensor, b: Tensor) -> Tensor:
    """Generalized IoU of (B, 4) boxes, pair by pair."""
    a_low, a_high, b_low, b_high = (x[:, :2] + sign * x[:, 2:] / 2 for x in (a, b) for sign in (-1, 1))
    inter = (torch.minimum(a_high, b_high) - torch.maximum(a_low, b_low)).clamp(min=0).prod(1)
    union = a[:, 2:].prod(1) + b[:, 2:].prod(1) - inter
    hull = (torch.maximum(a_high, b_high) - torch.minimum(a_low, b_low)).clamp(min=0).prod(1)
    return inter / union - (hull - union) / hull


def focal(logits: Tensor, target: Tensor) -> Tensor:
    """Sigmoid focal loss (alpha 0.25, gamma 2) of (B, M), mean over M and B."""
    p = logits.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    wrong = 1 - (p * target + (1 - p) * (1 - target))
    return ((0.25 * target + 0.75 * (1 - target)) * cross_entropy * wrong**2).mean()


def dice(logits: Tensor, target: Tensor) -> Tensor:
    """Dice loss of (B, M) with one added above and below, mean over B."""
    p = logits.sigmoid()
    return (1 - (2 * (p * target).sum(1) + 1) / (p.sum(1) + target.sum(1) + 1)).mean()
