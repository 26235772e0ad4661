"""CLIP's vision tower, run so that its patches say what they show.

A patch's state after ordinary attention has gathered what the picture is about; text compares badly with it. Three
ways to attend in the last blocks, all with CLIP's own weights:

- "ordinary": CLIP as it is. Its patch features are exactly CLIP's; the baseline, and what the tests hold on to.
- "value": a patch attends to itself alone, so that only values pass (MaskCLIP, Zhou et al., ECCV 2022), in the last
  block by default; the block's MLP stays.
- "self-self": beside the ordinary stream, a second one gathers attention of queries to queries, keys to keys and
  values to values (GEM, Bousselham et al., CVPR 2024): alike patches pull together. Vectors are normalized, the
  softmax is as sharp as the tokens are long, attention is repeated, the three are averaged and added to the second
  stream without MLP. In the last seven twelfths of the blocks by default, as in the paper (7 of ViT-B's 12).

Shapes: B pictures, L = 1 + N tokens ([CLS] first), V width, h heads.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPModel

ATTENTIONS = ("ordinary", "value", "self-self")
GEM_SHARE = 7 / 12


def changed_blocks(blocks: int, attention: str = "self-self", layers: int | None = None) -> int:
    """How many of a tower's last blocks attend in another way than CLIP.

    Args:
        blocks: of the tower.
        attention: one of `ATTENTIONS`.
        layers: the wish; by default 1 for "value", and `GEM_SHARE` of the blocks for "self-self".

    Raises:
        ValueError: the attention is unknown, or there are not so many blocks.
    """
    if attention not in ATTENTIONS:
        raise ValueError(f"Expected attention to be one of {', '.join(ATTENTIONS)}, got {attention!r}.")
    if layers is not None and not 1 <= layers <= blocks:
        raise ValueError(f"Expected layers in 1..{blocks}, the blocks of this CLIP, got {layers}.")
    default = {"value": 1, "self-self": max(1, round(GEM_SHARE * blocks))}
    return 0 if attention == "ordinary" else layers or default[attention]


def dense_states(
    clip: CLIPModel,
    hidden: torch.Tensor,
    bias: torch.Tensor | None,
    attention: str = "self-self",
    layers: int | None = None,
    iterations: int = 1,
) -> torch.Tensor:
    """Run the tower's layers with one of `ATTENTIONS` in the last ones.

    Args:
        clip: the model.
        hidden: (B, L, V), before the first layer.
        bias: (B, 1, 1, L) added to attention logits, None where nothing is padded.
        attention, layers: see `changed_blocks`.
        iterations: of self-self attention, before the values are gathered.

    Returns:
        (B, L, V), before the last normalization.
    """
    blocks = clip.vision_model.encoder.layers
    first = len(blocks) - changed_blocks(len(blocks), attention, layers)
    hidden = image_states(clip, hidden, bias, stop=first)
    dense = hidden
    for block in blocks[first:]:
        normal = block.layer_norm1(hidden)
        if attention == "value":
            dense = dense + block.self_attn.out_proj(block.self_attn.v_proj(normal))
            dense = dense + block.mlp(block.layer_norm2(dense))
        else:
            dense = dense + self_self_attention(block.self_attn, normal, bias, iterations)
        hidden = block(hidden, bias)
    return dense


def image_states(
    clip: CLIPModel, hidden: torch.Tensor, bias: torch.Tensor | None, stop: int | None = None
) -> torch.Tensor:
    """(B, L, V) before the first layer -> after layer `stop` (default: the last), as CLIP computes them."""
    for block in clip.vision_model.encoder.layers[:stop]:
        hidden = block(hidden, bias)
    return hidden


def self_self_attention(
    attention: nn.Module, hidden: torch.Tensor, bias: torch.Tensor | None, iterations: int = 1
) -> torch.Tensor:
    """Mean over q, k, v of attention of the vectors to themselves, gathering values; (B, L, V) -> (B, L, V).

    Source: GEM, section 3. The inverse temperature is the mean length of a picture's tokens over sqrt(head width).
    """
    heads, width = attention.num_heads, attention.head_dim
    real = torch.ones_like(hidden[..., 0]) if bias is None else (bias[:, 0, 0] == 0).to(hidden.dtype)  # (B, L)
    length = (hidden.norm(dim=-1) * real).sum(-1) / real.sum(-1)  # (B,)
    sharpness = (length / math.sqrt(width))[:, None, None, None]  # (B, 1, 1, 1)

    def split(states: torch.Tensor) -> torch.Tensor:
        return states.unflatten(-1, (heads, width)).transpose(1, 2)  # (B, L, V) -> (B, h, L, V / h)

    def gather(vectors: torch.Tensor, what: torch.Tensor) -> torch.Tensor:
        logits = vectors @ vectors.transpose(-1, -2) * sharpness  # (B, h, L, L)
        return torch.softmax(logits if bias is None else logits + bias, dim=-1) @ what

    values = split(attention.v_proj(hidden))
    gathered = torch.zeros_like(values)
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
        vectors = F.normalize(split(projection(hidden)), dim=-1)
        for _ in range(iterations):
            vectors = F.normalize(gather(vectors, vectors), dim=-1)
        gathered = gathered + gather(vectors, values) / 3
    return attention.out_proj(gathered.transpose(1, 2).flatten(2))  # (B, h, L, V / h) -> (B, L, V)


def padding_bias(patch_mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor | None:
    """(B, N) True = picture -> (B, 1, 1, 1 + N) with the lowest number at padded patches; None without any."""
    if bool(patch_mask.all()):
        return None
    bias = torch.zeros(patch_mask.shape, dtype=dtype, device=patch_mask.device)
    bias = bias.masked_fill(~patch_mask, torch.finfo(dtype).min)
    return F.pad(bias, (1, 0))[:, None, None]
