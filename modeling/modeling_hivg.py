"""HiVG: grounding a referring expression with CLIP, a cross-modal bridge and a small fusion encoder.

Paper: "HiVG: Hierarchical Multimodal Fine-grained Modulation for Visual Grounding", ACM MM 2024, arXiv 2404.13400.

    expression --> CLIP text tower -----------------+------------------------------+
                     | text states (K layers)       | words                        |
                     v                              |                              v
    image --> CLIP vision tower, in layer l:        |      [REG, CLS, patches, words] --> fusion encoder
                h += SelfAttn(LN1 h)                |              |                    |
                h += MLP_x(CrossAttn(LN_x h, text)) |<- bridge     |                    +--> [REG]: box, score
                h += MLP(LN2 h)                     |              |                    +--> patches x expression:
                     | vision states (4 layers) ----+--------------+                         token and mask logits

What differs from the official code by default, each with a config field that restores it: text padding is masked in
the bridge, each text state is normalized before they are mixed, a sample never sees its neighbors' words, and
patches wholly in the letterbox padding are not computed. Identities that give the same numbers for less work: the
mask head is folded (see `HiVGGroundingHead.mask_similarity`), the last fusion layer is run for the tokens that are
read, and nothing is computed that was not asked for.

Shapes in comments: B samples, U expressions (U = B unless `text_index` is given), I images (I = B unless
`image_index` is given), T text tokens, S pixels along one side, G patches along one side, N = G * G patches, P patches
that are computed, V vision width, D text width, H width of the fusion encoder; K text states in the bridge, and from
the fusion encoder on K queries: [REG] tokens, one unless `config.num_queries` says otherwise.
"""

import copy
import difflib
import math
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPConfig, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.auto.modeling_auto import MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING_NAMES
from transformers.models.clip.modeling_clip import (
    CLIPMLP,
    CLIPAttention,
    CLIPEncoderLayer,
    CLIPModel,
    CLIPPreTrainedModel,
    CLIPTextModel,
    CLIPVisionEmbeddings,
    CLIPVisionModel,
    eager_attention_forward,
)
from transformers.utils import ModelOutput, can_return_tuple, logging
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import (
    _CAN_RECORD_REGISTRY,
    capture_outputs,
    install_output_capuring_hook,
)

from .box_ops_hivg import box_coverage, refine_boxes
from .configuration_hivg import HiVGConfig
from .loss_hivg import (
    EXTRA_LOSSES,
    box_giou_loss,
    box_l1_loss,
    checked_labels,
    checked_masks,
    contrastive_loss,
    dice_loss,
    focal_loss,
    gather_with_grad,
    has_target,
    hash_expressions,
    mask_targets,
    same_pairs,
    score_loss,
    token_targets,
)
from .queries_hivg import assign_targets, of_best_query, own_masks
from .score_head_hivg import OF_PATCHES, OF_SIMILARITY, ScoreEvidence, ScoreOutput

if TYPE_CHECKING:
    from .processing_hivg import HiVGProcessor

logger = logging.get_logger(__name__)

# Logit of patches that were never computed: surely no part of the target, finite in half precision.
PADDING_LOGIT = -10.0
# Arguments of `forward` that are looked for behind a name that is none.
ARGUMENTS = (
    "input_ids attention_mask pixel_values pixel_mask labels mask_labels output_masks output_token_logits "
    "output_scores output_hidden_states output_attentions patch_index text_index image_index"
).split()
ARGUMENTS_OF_TEXT = ("input_ids", "attention_mask", "image_index")
# Deviation of a new query from the one that it copies, in standard deviations of the latter's values. A trained model
# reads little from its one [REG]: with a tenth of this, four copies still answered alike after 200 steps.
QUERY_NOISE = 1.0


@dataclass
class HiVGOutput(ModelOutput):
    r"""Output of [`HiVGForVisualGrounding`]. What was not asked for is None.

    Args:
        loss (`torch.Tensor` of shape `(1,)`, *optional*, given with `labels`):
            Weighted sum of `loss_dict`.
        loss_dict (`dict[str, torch.Tensor]`, *optional*, given with `labels`):
            The unweighted terms: `bbox`, `giou`, `contrastive`, `token_focal`, `token_dice`, `mask_focal`,
            `mask_dice`, `score`, each where its weight is not 0.
        pred_boxes (`torch.Tensor` of shape `(batch_size, 4)`):
            Boxes as (cx, cy, w, h) in 0..1 of the padded square.
        scores (`torch.Tensor` of shape `(batch_size,)`, *optional*):
            Confidence in 0..1 that the box is right.
        token_logits (`torch.Tensor` of shape `(batch_size, num_patches)`, *optional*):
            Similarity of each patch of the full grid to the expression.
        mask_logits (`torch.Tensor` of shape `(batch_size, 8 * grid, 8 * grid)`, *optional*):
            Mask over the padded square.
        query_boxes (`torch.Tensor` of shape `(batch_size, num_queries, 4)`, *optional*):
            With `config.num_queries` > 1, the box of each query; `pred_boxes`, `scores` and `mask_logits` are those of
            the query that scores highest.
        query_scores (`torch.Tensor` of shape `(batch_size, num_queries)`, *optional*):
            Confidence of each query that its box is right and no other query's.
        query_mask_logits (`torch.Tensor` of shape `(batch_size, num_queries, 8 * grid, 8 * grid)`, *optional*):
            Mask of each query.
        logits_per_text (`torch.Tensor` of shape `(batch_size, batch_size)`, *optional*, without an index):
            Contrastive logits of expressions (rows) and images (columns). They train the model and do not rank labels
            as CLIP's do: the bridges have shown image i expression i, so that the diagonal stands out whatever the
            image shows. `scores` says how well an expression fits its image. None with `image_index` or `text_index`:
            an image then has several embeddings, one for each of its expressions, and CLIP's matrix one.
        logits_per_image (`torch.Tensor` of shape `(batch_size, batch_size)`, *optional*, without an index):
            The transpose.
        vision_hidden_states, text_hidden_states, hidden_states (`tuple[torch.Tensor]`, *optional*):
            States of the two towers and of the fusion encoder, the input first, with `output_hidden_states=True`.
        vision_attentions, cross_attentions, attentions (`tuple[torch.Tensor]`, *optional*):
            Attentions of the vision tower, the bridges and the fusion encoder, with `output_attentions=True` and
            eager attention.
    """

    loss: torch.Tensor | None = None
    loss_dict: dict[str, torch.Tensor] | None = None
    pred_boxes: torch.Tensor | None = None
    scores: torch.Tensor | None = None
    token_logits: torch.Tensor | None = None
    mask_logits: torch.Tensor | None = None
    query_boxes: torch.Tensor | None = None
    query_scores: torch.Tensor | None = None
    query_mask_logits: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    logits_per_image: torch.Tensor | None = None
    vision_hidden_states: tuple[torch.Tensor, ...] | None = None
    text_hidden_states: tuple[torch.Tensor, ...] | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    vision_attentions: tuple[torch.Tensor, ...] | None = None
    cross_attentions: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class Wanted:
    """What a call computes beside boxes, because it was asked for or because a loss term reads it.

    Args:
        tokens, masks, scores: token logits, mask logits, score logits.
        evidence: what the score head reads of `config.score_inputs`.
    """

    tokens: bool
    masks: bool
    scores: bool
    evidence: set[str]

    @property
    def patches(self) -> bool:
        """Whether patches and expression are read after fusion."""
        return self.tokens or self.masks or bool(self.evidence & set(OF_PATCHES))


@dataclass
class BatchLayout:
    """Which words and patches of a batch are there, and which the heads read.

    Args:
        text_mask: (B, T), 0 = padding.
        end_index: (B,) place of the end token among the words.
        patch_index: (B, P) place of each patch in the grid, -1 = none; None where all are there in order.
        patch_mask: (B, P), 0 = padding; None where every patch is image.
        reads_patches: whether patches and expression are read beside [REG].
    """

    text_mask: torch.Tensor
    end_index: torch.Tensor
    patch_index: torch.Tensor | None
    patch_mask: torch.Tensor | None
    reads_patches: bool


# --------------------------------------------------------------------------------------------------------------------
# Small parts
# --------------------------------------------------------------------------------------------------------------------


class XavierLinear(nn.Linear):
    """A Linear that starts from Xavier-uniform weights, as the official fusion encoder (vl_transformer.py)."""


class HeadLinear(XavierLinear):
    """A Linear outside the fusion encoder: with `initialization="official"` it starts as torch's own does."""


class ScoreLinear(HeadLinear):
    """Confidence from [REG] alone."""

    def forward(self, reg: torch.Tensor, *seen: torch.Tensor | None) -> torch.Tensor:
        """[REG] (B, K, H) -> logits (B, K, 1), to which an adapter can add its own; what others see is not read."""
        return super().forward(reg)


class ScoreHead(nn.Module):
    """Confidence from [REG] and what `evidence` makes of the other `config.score_inputs`, by sum.

    No Linear itself, though it has the tensors of one: what replaces every Linear (PEFT's `all-linear`, quantization)
    would lose the evidence with it.
    """

    def __init__(self, config: HiVGConfig):
        super().__init__()
        linear = nn.Linear(config.hidden_size, 1)
        self.weight, self.bias = linear.weight, linear.bias
        self.evidence = ScoreEvidence(config.score_inputs, config.hidden_size, config.grid_size)

    def forward(self, reg: torch.Tensor, *seen: torch.Tensor | None) -> torch.Tensor:
        """[REG] (B, K, H), and what `ScoreEvidence` sees -> logits (B, K, 1)."""
        return F.linear(reg, self.weight, self.bias) + self.evidence(reg, *seen)


class QueryMaskLinear(XavierLinear):
    """What a query adds to the expression when masks are made: nothing at the start, so that all begin as one."""


class FeedForwardLinear(XavierLinear):
    """A Linear of the fusion encoder whose bias the authors leave as torch's constructor draws it."""


class UnitEmbedding(nn.Embedding):
    """An Embedding that starts from N(0, 1): [REG] and the fusion positions. Official: models/HiVG.py:748"""


class AdaptiveTextWeight(nn.Embedding):
    """One weight per text position and channel, "sample-agnostic" in the paper's words; called with positions."""

    def __init__(self, positions: int, width: int, init_std: float):
        super().__init__(positions, width)
        self.init_std = init_std


class MaskUpsample(nn.ConvTranspose2d):
    """One doubling of the mask head. It starts so that it preserves variance."""

    def __init__(self, width: int):
        super().__init__(width, width, kernel_size=2, stride=2, bias=False)

    def forward(self, x: torch.Tensor, fold: bool = False) -> torch.Tensor:
        """Features (B, H, h, w) -> (B, H, 2 h, 2 w).

        With `fold`, from the other side: what the h x w pixels that one patch becomes are multiplied with -> what the
        patch itself is multiplied with, for one doubling more; (B, H, h, w) -> (B, H, 2 h, 2 w), too.
        """
        if not fold:
            return super().forward(x)
        return torch.einsum("ioyx,bohw->biyhxw", self.weight, x).flatten(4).flatten(2, 3)


class MLP(nn.Module):
    """Linear layers with ReLU between. Official: bbox_embed, models/HiVG.py:994-1005"""

    def __init__(self, widths: list[int]):
        super().__init__()
        self.layers = nn.ModuleList(HeadLinear(a, b) for a, b in pairwise(widths))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), CLIP's activation, written so that it costs less memory than transformers' three steps.

    With gradients it is SiLU(1.702 x) / 1.702, which keeps one tensor for the backward pass where the product keeps
    two; without, the intermediate result is overwritten. In the MLPs of a batch these are the largest tensors.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            return F.silu(1.702 * x).mul_(1 / 1.702)
        return torch.mul(x, 1.702).sigmoid_().mul_(x)


class TokenMLP(nn.Module):
    """Two Linear layers with QuickGELU between. Official: visu_token_mlp, models/HiVG.py:756-767"""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = HeadLinear(width, hidden)
        self.fc2 = HeadLinear(hidden, width)
        self.activation = QuickGELU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation(self.fc1(x)))


def init_as_torch(module: nn.Module, tensors: tuple[str, ...] = ("weight", "bias")) -> None:
    """Draw from U(-b, b) with b = 1 / sqrt(fan-in), as torch's constructors do."""
    bound = module.weight[0].numel() ** -0.5  # of a transposed convolution, too, torch takes the second dimension
    for tensor in (getattr(module, name) for name in tensors):
        if tensor is not None:
            init.uniform_(tensor, -bound, bound)


def key_padding_bias(mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    """(B, K) 1 = attend -> (B, 1, 1, K) bias for attention scores, the lowest number where a key is masked."""
    if mask is None:
        return None
    bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return bias.masked_fill(mask == 0, torch.finfo(dtype).min)[:, None, None, :]


def split_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """(B, L, heads * head_dim) -> (B, heads, L, head_dim)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def attend(module, queries, keys, values, bias, scale, dropout=0.0):
    """Attention between two token sets through transformers' attention interface.

    Flash kernels take padding as a suffix that queries and keys share. Here queries are image or fusion tokens and
    keys are padded on their own, so these attentions fall back to sdpa; the towers' self-attention does not. So does
    flex attention, which would want a compiled mask for every pair of lengths.
    """
    implementation = module.config._attn_implementation
    if "flash" in (implementation or "") or implementation == "flex_attention":
        implementation = "sdpa"
    interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
    return interface(module, queries, keys, values, bias, scaling=scale, dropout=dropout if module.training else 0.0)


class RecordingHook:
    """transformers' hook that records what a layer returns, in a form that can be pickled and copied."""

    def __init__(self, key: str):
        self.key = key
        bare = nn.Module()
        install_output_capuring_hook(bare, key, index=0 if "hidden_states" in key else 1)
        (self.record,) = bare._forward_hooks.values()

    def __call__(self, module, args, output):
        return self.record(module, args, output)

    def __reduce__(self):
        return RecordingHook, (self.key,)


def install_recording_hooks(part: PreTrainedModel) -> None:
    """Install now what transformers would install on first use.

    Dynamo cannot trace the lock that it takes, so the first call of a compiled model would break its graph; and its
    hooks are local functions, which cannot be pickled.
    """
    for key, recorded in part._can_record_outputs.items():
        for module in part.modules():
            if isinstance(module, recorded):
                module.register_forward_hook(RecordingHook(key))
    part._output_capturing_hooks_installed = True


# --------------------------------------------------------------------------------------------------------------------
# Bridge
# --------------------------------------------------------------------------------------------------------------------


class LowRankLinear(nn.Linear):
    """W x + b + up(down(dropout(x))) / 2: a projection whose own weight trains beside a low-rank term.

    The authors' PEFT call names layers without their place, so that it wraps the bridge's cross-attention as well,
    whose weights train anyway. It is the same function as a plain Linear (see `fold`), trained along another path.
    Official: models/HiVG.py:776-778 (r=32, lora_alpha=16, lora_dropout=0.1)
    """

    rank, scale, dropout = 32, 0.5, 0.1

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs)
        self.down = nn.Parameter(torch.empty(self.rank, inputs))
        self.up = nn.Parameter(torch.zeros(outputs, self.rank))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low = F.linear(F.dropout(x, self.dropout, self.training), self.down)  # (..., inputs) -> (..., rank)
        return super().forward(x) + self.scale * F.linear(low, self.up)

    def reset_low_rank(self) -> None:
        """Start the term at 0, its first factor as PEFT does."""
        bound = self.in_features**-0.5
        init.uniform_(self.down, -bound, bound)
        init.zeros_(self.up)

    def fold(self) -> nn.Linear:
        """A plain Linear that computes the same."""
        plain = nn.Linear(self.in_features, self.out_features, device=self.weight.device, dtype=self.weight.dtype)
        term = self.scale * self.up.double() @ self.down.double()
        plain.weight.copy_(self.weight.double() + term)
        plain.bias.copy_(self.bias)
        return plain.requires_grad_(self.weight.requires_grad).train(self.training)


class HiVGBridgeAttention(nn.Module):
    """Image tokens (queries) attend to words (keys, values)."""

    def __init__(self, vision_config, mixes_batch: bool, low_rank: bool = False):
        super().__init__()
        self.config = vision_config
        self.mixes_batch = mixes_batch
        self.is_causal = False
        width = vision_config.hidden_size
        self.num_heads = vision_config.num_attention_heads
        self.head_dim = width // self.num_heads
        linear = LowRankLinear if low_rank else nn.Linear
        self.q_proj = linear(width, width)
        self.k_proj = linear(width, width)
        self.v_proj = linear(width, width)
        self.out_proj = linear(width, width)

    def forward(
        self, hidden_states: torch.Tensor, text: torch.Tensor, text_bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """hidden_states (B, 1 + P, V), text (B, T, V), text_bias (B, 1, 1, T) -> (B, 1 + P, V)."""
        queries = split_heads(self.q_proj(hidden_states), self.num_heads)
        keys = split_heads(self._mix(self.k_proj(text)), self.num_heads)
        values = split_heads(self._mix(self.v_proj(text)), self.num_heads)
        output, weights = attend(self, queries, keys, values, text_bias, self.head_dim**-0.5)
        return self.out_proj(output.flatten(2)), weights  # (B, 1 + P, heads, head_dim) -> (B, 1 + P, V)

    def _mix(self, x: torch.Tensor) -> torch.Tensor:
        """Official: models/HiVG.py:444 permutes the text to (T, B, V), and line 162 reads it as (B, T, V): key s of
        sample b is word `divmod(b * T + s, B)`. At B = 1 it is the identity."""
        if not self.mixes_batch:
            return x
        return x.transpose(0, 1).reshape(x.shape)


class HiVGBridge(nn.Module):
    """The multi-layer adaptive cross-modal bridge of one vision layer (paper: MACA, on the poster MACB).

    `f*_i = w_i * f_i + f_i` for each selected text state, joined on the channel and projected to the vision width;
    then `h + MLP(CrossAttn(LN(h), text))`. Official: models/HiVG.py:384-393, 430-456
    """

    def __init__(self, config: HiVGConfig):
        super().__init__()
        vision, text = config.clip_config.vision_config, config.clip_config.text_config
        self.from_layers = config.bridge_text_source == "hidden_states"
        if self.from_layers:
            states = range(len(config.bridge_text_layers))
            width, positions = text.hidden_size, text.max_position_embeddings
            if config.bridge_text_norm:
                self.text_norms = nn.ModuleList(nn.LayerNorm(width, eps=text.layer_norm_eps) for _ in states)
            if config.bridge_adaptive_weights:
                self.adaptive_weights = nn.ModuleList(
                    AdaptiveTextWeight(positions, width, config.adaptive_weight_init) for _ in states
                )
            self.text_proj = nn.Linear(len(states) * width, vision.hidden_size)
        self.norm = nn.LayerNorm(vision.hidden_size, eps=vision.layer_norm_eps)
        self.attention = HiVGBridgeAttention(vision, config.bridge_mixes_batch, config.bridge_lora)
        self.mlp = CLIPMLP(vision)
        if config.initialization == "official":
            for module in self.modules():
                module.starts_as_torch = isinstance(module, nn.Linear | CLIPMLP)

    def forward(
        self, hidden_states: torch.Tensor, text_states: tuple[torch.Tensor, ...], text_bias: torch.Tensor | None
    ) -> torch.Tensor:
        """hidden_states (B, 1 + P, V), K text states (B, T, D), text_bias (B, 1, 1, T) -> (B, 1 + P, V)."""
        text = self.mix_text(text_states)
        attended, _ = self.attention(self.norm(hidden_states), text, text_bias)
        return hidden_states + self.mlp(attended)

    def mix_text(self, text_states: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """K text states (B, T, D) -> (B, T, V). One state that is projected already passes as it is."""
        if not self.from_layers:
            return text_states[0]
        places = torch.arange(text_states[0].shape[1], device=text_states[0].device)  # (T,)
        mixed = []
        for i, state in enumerate(text_states):
            if hasattr(self, "text_norms"):
                state = self.text_norms[i](state)
            if hasattr(self, "adaptive_weights"):
                state = state + self.adaptive_weights[i](places) * state  # (T, D) for every sample
            mixed.append(state)
        return self.text_proj(torch.cat(mixed, dim=-1))  # (B, T, K * D) -> (B, T, V)


# --------------------------------------------------------------------------------------------------------------------
# Vision tower
# --------------------------------------------------------------------------------------------------------------------


class HiVGVisionEmbeddings(CLIPVisionEmbeddings):
    """CLIP's patch embedding at any image size, of which only the patches that are asked for go on."""

    def forward(self, pixel_values: torch.Tensor, patch_index: torch.Tensor | None = None) -> torch.Tensor:
        """pixel_values (B, 3, S, S), patch_index (B, P) or None for all -> (B, 1 + P, V)."""
        # CLIP's own convolution over the whole picture, a two hundredth of the tower: its hooks and adapters apply.
        patches = self.patch_embedding(pixel_values.to(self.class_embedding.dtype)).flatten(2).transpose(1, 2)
        places = torch.arange(self.num_positions, device=pixel_values.device)
        cls_position, table = self.position_embedding(places).split([1, self.num_positions - 1])
        embeddings = patches + resize_positions(table, pixel_values.shape[-1] // self.patch_size)  # (B, N, V)
        if patch_index is not None:
            embeddings = take_tokens(embeddings, patch_index.clamp(min=0))  # (B, P, V)
        cls = (self.class_embedding + cls_position).expand(embeddings.shape[0], 1, -1)
        return torch.cat([cls, embeddings], dim=1)  # (B, 1 + P, V)


def resize_positions(table: torch.Tensor, grid: int) -> torch.Tensor:
    """Positions of a square grid of patches (n, V) -> those of a grid x grid image (N, V).

    Official: models/HiVG.py interpolates bicubic with antialias; CLIPVisionEmbeddings leaves antialias out.
    """
    own = math.isqrt(len(table))
    if grid == own:
        return table
    square = table.unflatten(0, (own, own)).permute(2, 0, 1)[None]  # (1, V, own, own)
    square = F.interpolate(square.float(), size=(grid, grid), mode="bicubic", antialias=True, align_corners=False)
    return square[0].flatten(1).t().to(table.dtype)  # (1, V, G, G) -> (N, V)


class HiVGVisionEncoderLayer(CLIPEncoderLayer):
    """CLIP's layer with a bridge between self-attention and MLP. Child names are CLIP's, so its weights fit."""

    def __init__(self, config, bridge: HiVGBridge | None = None):
        super().__init__(config)
        if bridge is not None:
            self.bridge = bridge

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        text_bias: torch.Tensor | None = None,
        *text_states: torch.Tensor,
        image_index: torch.Tensor | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """(B, 1 + P, V) -> the same; with `image_index` (B,), (I, 1 + P, V) -> (B, 1 + P, V). The text states come one
        by one, each as an argument without a name: reentrant checkpointing hands gradients to no other."""
        residual = hidden_states
        hidden_states, _ = self.self_attn(self.layer_norm1(hidden_states), attention_mask=attention_mask, **kwargs)
        hidden_states = residual + hidden_states
        if image_index is not None:  # up to here an image knows nothing of what is asked of it
            hidden_states = hidden_states[image_index]
        if hasattr(self, "bridge") and text_states:  # without an expression the tower is CLIP's own
            hidden_states = self.bridge(hidden_states, text_states, text_bias)
        return hidden_states + self.mlp(self.layer_norm2(hidden_states))


class HiVGVisionModel(CLIPVisionModel):
    """CLIP's vision tower with bridges in `config.bridge_layers`."""

    _no_split_modules = ["HiVGVisionEncoderLayer", "HiVGVisionEmbeddings"]
    _can_record_outputs = {
        "hidden_states": CLIPEncoderLayer,
        "attentions": CLIPAttention,
        "cross_attentions": HiVGBridgeAttention,
    }

    def __init__(self, config, hivg_config: HiVGConfig):
        super().__init__(config)
        self.embeddings = HiVGVisionEmbeddings(config)
        # The last layer whose self-attention reads nothing of the expression: all before it is the image's alone.
        self.last_shared_layer = min(hivg_config.bridge_layers, default=config.num_hidden_layers - 1)
        for i in range(config.num_hidden_layers):
            bridge = HiVGBridge(hivg_config) if i in hivg_config.bridge_layers else None
            self.encoder.layers[i] = HiVGVisionEncoderLayer(config, bridge)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, LowRankLinear):
            module.reset_low_rank()
        if getattr(module, "starts_as_torch", False):
            if isinstance(module, nn.Linear):  # the MLP around two of them leaves them so
                init_as_torch(module)
            return
        super()._init_weights(module)
        if isinstance(module, AdaptiveTextWeight):
            init.normal_(module.weight, std=module.init_std)

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor,
        patch_index: torch.Tensor | None = None,
        patch_mask: torch.Tensor | None = None,
        text_states: tuple[torch.Tensor, ...] = (),
        text_bias: torch.Tensor | None = None,
        image_index: torch.Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """The image's tokens, steered by the expression.

        Args:
            pixel_values: (I, 3, S, S).
            patch_index: (I, P) patches to compute, -1 = none; None computes all.
            patch_mask: (I, P), 0 = a patch that no token may look at; None where there is none.
            text_states: K tensors (B, T, D) for the bridges.
            text_bias: (B, 1, 1, T) attention bias over the words.
            image_index: (B,) row of `pixel_values` for each expression; None where I = B, in order. States and
                attentions of layers up to `last_shared_layer` are then recorded once for each image.
        """
        hidden_states = self.pre_layrnorm(self.embeddings(pixel_values, patch_index))  # (I, 1 + P, V)
        attention_mask = None
        if patch_mask is not None:
            attention_mask = create_bidirectional_mask(
                self.config,
                hidden_states,
                F.pad(patch_mask, (1, 0), value=1),  # CLS is always there
            )
        for i, layer in enumerate(self.encoder.layers):
            options = {"image_index": image_index} if i == self.last_shared_layer and image_index is not None else {}
            hidden_states = layer(hidden_states, attention_mask, text_bias, *text_states, **options, **kwargs)
            if options and attention_mask is not None:
                attention_mask = attention_mask[image_index]
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden_states, pooler_output=self.post_layernorm(hidden_states[:, 0])
        )


class HiVGCLIPModel(CLIPModel):
    """`CLIPModel` whose vision tower carries bridges. Every other state-dict key is CLIP's own."""

    def __init__(self, config: CLIPConfig, hivg_config: HiVGConfig):
        # CLIPModel.__init__ would build a plain vision tower first; what follows are its own lines with ours.
        CLIPPreTrainedModel.__init__(self, config)
        text_config, vision_config = config.text_config, config.vision_config
        self.projection_dim = config.projection_dim
        self.text_embed_dim = text_config.hidden_size
        self.vision_embed_dim = vision_config.hidden_size
        self.text_model = CLIPTextModel._from_config(text_config)
        self.vision_model = HiVGVisionModel._from_config(vision_config, hivg_config=hivg_config)
        self.visual_projection = nn.Linear(self.vision_embed_dim, self.projection_dim, bias=False)
        self.text_projection = nn.Linear(self.text_embed_dim, self.projection_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(config.logit_scale_init_value))
        for module in self.modules():  # both towers and the bridges
            if isinstance(module, CLIPMLP) and module.config.hidden_act == "quick_gelu":
                module.activation_fn = QuickGELU()
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_model.set_input_embeddings(value)

    def forward(self, text_embeds: torch.Tensor, image_embeds: torch.Tensor) -> torch.Tensor:
        """CLIP's logits of E expressions and B images: normalized (E, H) and (B, H) -> (E, B).

        Towers and projections are called one by one; this call is what reads `logit_scale`.
        """
        return self.logit_scale.exp() * text_embeds @ image_embeds.t()


# --------------------------------------------------------------------------------------------------------------------
# Fusion encoder and heads
# --------------------------------------------------------------------------------------------------------------------


class HiVGFusionAttention(nn.Module):
    """Multi-head attention whose values may lack the positions of its keys. Official: models/vl_transformer.py"""

    def __init__(self, config: HiVGConfig):
        super().__init__()
        self.config = config
        self.is_causal = False
        self.num_heads = config.fusion_heads
        self.head_dim = config.hidden_size // config.fusion_heads
        self.dropout = config.fusion_dropout
        # One matrix for q, k and v, in this order, as torch.nn.MultiheadAttention keeps it.
        self.in_proj_weight = nn.Parameter(torch.empty(3 * config.hidden_size, config.hidden_size))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * config.hidden_size))
        self.out_proj = XavierLinear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        key_bias: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """queries (B, Q, H), keys and values (B, L, H), key_bias (B, 1, 1, L) -> (B, Q, H)."""
        q_weight, k_weight, v_weight = self.in_proj_weight.chunk(3)
        q_bias, k_bias, v_bias = self.in_proj_bias.chunk(3)
        output, weights = attend(
            self,
            split_heads(F.linear(queries, q_weight, q_bias), self.num_heads),
            split_heads(F.linear(keys, k_weight, k_bias), self.num_heads),
            split_heads(F.linear(values, v_weight, v_bias), self.num_heads),
            key_bias,
            self.head_dim**-0.5,
            self.dropout,
        )
        return self.out_proj(output.flatten(2)), weights  # (B, Q, heads, head_dim) -> (B, Q, H)


class HiVGFusionLayer(GradientCheckpointingLayer):
    """One layer of the fusion encoder, pre-norm or post-norm."""

    def __init__(self, config: HiVGConfig):
        super().__init__()
        self.pre_norm = config.fusion_pre_norm
        self.self_attn = HiVGFusionAttention(config)
        self.fc1 = FeedForwardLinear(config.hidden_size, config.fusion_ffn_dim)
        self.fc2 = FeedForwardLinear(config.fusion_ffn_dim, config.hidden_size)
        self.norm1 = nn.LayerNorm(config.hidden_size)
        self.norm2 = nn.LayerNorm(config.hidden_size)
        self.activation = ACT2FN[config.fusion_activation]
        self.dropout = nn.Dropout(config.fusion_dropout)

    def forward(
        self,
        hidden_states: torch.Tensor,
        positions: torch.Tensor | None,
        key_bias: torch.Tensor | None,
        read: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """One layer; with `read`, only for the tokens that are read afterwards.

        Args:
            hidden_states: (B, L, H).
            positions: (B, L, H) for queries and keys; None where the tokens hold them already.
            key_bias: (B, 1, 1, L).
            read: (B, Q) indices of tokens, or None for all. Every token stays a key and a value.

        Returns:
            (B, Q, H), or (B, L, H).
        """
        states = self.norm1(hidden_states) if self.pre_norm else hidden_states
        keys = states if positions is None else states + positions
        queries = keys if read is None else take_tokens(keys, read)
        residual = hidden_states if read is None else take_tokens(hidden_states, read)
        attended, _ = self.self_attn(queries, keys, states, key_bias)
        residual = residual + self.dropout(attended)
        if self.pre_norm:
            return residual + self._feed_forward(self.norm2(residual))
        residual = self.norm1(residual)
        return self.norm2(residual + self._feed_forward(residual))

    def _feed_forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.fc2(self.dropout(self.activation(self.fc1(x)))))


class HiVGPreTrainedModel(PreTrainedModel):
    """Weight initialization and what transformers asks about the model."""

    config: HiVGConfig
    base_model_prefix = "clip"
    # As CLIP: with this name, activation checkpointing lets frozen embeddings pass gradients on, without which
    # reentrant checkpointing trains no adapter.
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    _no_split_modules = ["HiVGVisionEncoderLayer", "HiVGVisionEmbeddings", "CLIPEncoderLayer", "HiVGFusionLayer"]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Each case is a module that owns its parameters itself, so that loaded ones are never touched.

        With `initialization="official"`, new weights start as the authors' constructor leaves them: torch's defaults
        outside the fusion encoder, inside it Xavier for matrices alone. Official: models/HiVG.py:731-767,
        models/vl_transformer.py:39-43
        """
        official = self.config.initialization == "official"
        if isinstance(module, QueryMaskLinear | ScoreOutput):
            init.zeros_(module.weight)
            init.zeros_(module.bias)
        elif official and (isinstance(module, HeadLinear | ScoreHead | MaskUpsample) or type(module) is nn.Linear):
            init_as_torch(module)
        elif official and isinstance(module, FeedForwardLinear):
            init.xavier_uniform_(module.weight)
            init_as_torch(module, ("bias",))
        elif isinstance(module, XavierLinear | ScoreHead):
            init.xavier_uniform_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, HiVGFusionAttention):
            init.xavier_uniform_(module.in_proj_weight)
            init.zeros_(module.in_proj_bias)
        elif isinstance(module, UnitEmbedding):
            init.normal_(module.weight)
        elif isinstance(module, MaskUpsample):
            init.normal_(module.weight, std=module.in_channels**-0.5)
        else:
            super()._init_weights(module)


class HiVGFusionEncoder(HiVGPreTrainedModel):
    """The layers, and after pre-norm layers a last LayerNorm. Official: models/vl_transformer.py:18-147

    A `PreTrainedModel`, like the two towers, so that its states and attentions are recorded in the same way.
    """

    base_model_prefix = "fusion"
    _can_record_outputs = {"hidden_states": HiVGFusionLayer, "attentions": HiVGFusionAttention}

    def __init__(self, config: HiVGConfig):
        super().__init__(config)
        self.layers = nn.ModuleList(HiVGFusionLayer(config) for _ in range(config.fusion_layers))
        self.norm = nn.LayerNorm(config.hidden_size) if config.fusion_pre_norm else nn.Identity()
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        hidden_states: torch.Tensor,
        positions: torch.Tensor | None,
        key_bias: torch.Tensor | None,
        read: torch.Tensor | None,
        **kwargs,
    ) -> BaseModelOutput:
        """(B, L, H) -> (B, Q, H), the tokens named by `read` (B, Q); all where it is None."""
        for layer in self.layers[:-1]:
            hidden_states = layer(hidden_states, positions, key_bias)
        hidden_states = self.layers[-1](hidden_states, positions, key_bias, read)
        return BaseModelOutput(last_hidden_state=self.norm(hidden_states))


class HiVGGroundingHead(nn.Module):
    """Everything HiVG adds after CLIP: projections, [REG], fusion encoder, box, token, mask and score heads.

    One module, so that PEFT can name it in `modules_to_save` beside `bridge`.
    """

    def __init__(self, config: HiVGConfig):
        super().__init__()
        self.config = config
        width, vision_width = config.hidden_size, config.clip_config.vision_config.hidden_size
        tokens = 2 + config.grid_size**2 + config.max_text_length  # REG, CLS, patches, words
        self.visual_levels_proj = HeadLinear(len(config.visual_feature_layers) * vision_width, width)
        self.visual_proj = HeadLinear(width, width)
        self.text_proj = HeadLinear(width, width)
        if config.bridge_text_source == "projection" and config.bridge_layers:
            self.bridge_text_proj = nn.Linear(width, vision_width)
        self.reg_token = UnitEmbedding(config.num_queries, width)
        self.position_embedding = UnitEmbedding(tokens, width)
        self.fusion = HiVGFusionEncoder(config)
        self.box_head = MLP([width, width, width, 4])
        self.token_norm = nn.LayerNorm(width)
        self.token_mlp = TokenMLP(width, config.token_head_dim)
        self.mask_convs = nn.ModuleList(MaskUpsample(width) for _ in range(3))
        if config.score == "head":
            reads_reg_alone = config.score_inputs == ["reg"]
            self.score_head = ScoreLinear(config.hidden_size, 1) if reads_reg_alone else ScoreHead(config)
        if config.num_queries > 1:
            self.query_mask_proj = QueryMaskLinear(width, width)

    def fuse(
        self, vision_levels: torch.Tensor, text: torch.Tensor, layout: BatchLayout, **recorded: bool | None
    ) -> BaseModelOutput:
        """Join image and words.

        Args:
            vision_levels: (B, 1 + P, levels * V), CLS first.
            text: (B, T, H), CLIP's projected words.
            layout: what of them is there.
            recorded: `output_hidden_states`, `output_attentions`: with either, every token is read.

        Returns:
            `last_hidden_state` (B, Q, H): [REG]; where the layout reads patches, [REG, patches, end]; where states or
            attentions are recorded, [REG, CLS, patches, words].
        """
        visual = self.visual_proj(self.visual_levels_proj(vision_levels))  # (B, 1 + P, H)
        words = self.text_proj(text)  # (B, T, H)
        batch, patches, queries = visual.shape[0], visual.shape[1] - 1, self.config.num_queries
        numbers = torch.arange(queries, device=visual.device).expand(batch, -1)  # (B, K)
        tokens = torch.cat([self.reg_token(numbers), visual, words], dim=1)  # (B, K + 1 + P + T, H)

        patch_mask, text_mask = layout.patch_mask, layout.text_mask
        if patch_mask is None:
            patch_mask = torch.ones(batch, patches, dtype=text_mask.dtype, device=text_mask.device)
        always = torch.ones(batch, queries + 1, dtype=text_mask.dtype, device=text_mask.device)
        key_mask = torch.cat([always, patch_mask.to(text_mask.dtype), text_mask], dim=1)  # (B, K + 1 + P + T)

        key_bias = key_padding_bias(key_mask, tokens.dtype)
        if queries > 1:  # together they weigh as much as one: copies of one [REG] change nothing
            key_bias = key_bias - F.pad(
                key_bias.new_full((queries,), math.log(queries)), (0, tokens.shape[1] - queries)
            )

        read = None if any(recorded.values()) else numbers
        if read is not None and layout.reads_patches:
            first = queries + 1
            places = torch.arange(first, first + patches, device=tokens.device).expand(batch, -1)
            read = torch.cat([read, places, first + patches + layout.end_index[:, None]], dim=1)  # (B, K + P + 1)
        positions = self._positions(layout.patch_index, batch, words.shape[1], tokens.device)
        if self.config.fusion_positions == "tokens":
            tokens, positions = tokens + positions, None
        return self.fusion(tokens, positions, key_bias, read, **recorded)

    def split(self, fused: torch.Tensor, layout: BatchLayout) -> tuple[torch.Tensor, ...]:
        """What `fuse` read (B, Q, H) -> [REG] (B, K, H), patches (B, P, H) and end (B, H); the last two are empty
        where the layout does not read them."""
        queries = self.config.num_queries
        patches = self.config.grid_size**2 if layout.patch_index is None else layout.patch_index.shape[1]
        rest = fused[:, queries:]
        if rest.shape[1] <= patches + 1:  # not recorded
            return fused[:, :queries], rest[:, :-1], rest[:, -1:].flatten(1)
        end = take_tokens(rest[:, 1 + patches :], layout.end_index[:, None])[:, 0]
        return fused[:, :queries], rest[:, 1 : 1 + patches], end

    def _positions(
        self, patch_index: torch.Tensor | None, batch: int, words: int, device: torch.device
    ) -> torch.Tensor:
        """(B, K + 1 + P + T, H): the positions of [REG], which all queries share, of CLS, of the patches that are
        there, and of the first words."""
        first_word = 2 + self.config.grid_size**2
        reg_cls = torch.tensor([0] * self.config.num_queries + [1], device=device).expand(batch, -1)
        patches = torch.arange(2, first_word, device=device).expand(batch, -1)
        if patch_index is not None:
            patches = 2 + patch_index.clamp(min=0)
        words_there = torch.arange(first_word, first_word + words, device=device).expand(batch, -1)
        return self.position_embedding(torch.cat([reg_cls, patches, words_there], dim=1))

    def boxes(self, reg: torch.Tensor) -> torch.Tensor:
        """(..., H) -> (..., 4), cxcywh in 0..1 of the padded square."""
        return self.box_head(reg).sigmoid()

    def token_similarity(self, patches: torch.Tensor, expression: torch.Tensor) -> torch.Tensor:
        """(B, P, H) and the normalized (B, H) -> (B, P). Not a cosine: the patch side is not normalized.
        Official: models/HiVG.py:970-989"""
        return torch.einsum("bph,bh->bp", self.token_mlp(self.token_norm(patches)), expression)

    def mask_similarity(self, patches: torch.Tensor, expression: torch.Tensor) -> torch.Tensor:
        """Mask logits of every patch: (B, P, H) and the normalized (B, H) -> (B, P, 8, 8); with an expression for each
        query, (B, K, H) -> (B, P, K, 8, 8).

        The official head runs three bias-free transposed convolutions (kernel 2, stride 2) with nothing between, and
        takes the dot product with the expression: a linear map of each patch. So the expression is folded through the
        kernels, last to first (1 vector becomes 4, 16, 64), and one product with the patches remains. It is the same
        mask at under a hundredth of the operations. Official: models/HiVG.py:970-989
        """
        folded = expression.reshape(-1, expression.shape[-1], 1, 1)  # (B * K, H, 1, 1)
        for upsample in reversed(self.mask_convs):
            folded = upsample(folded, fold=True)  # (B * K, H, 2, 2), (B * K, H, 4, 4), (B * K, H, 8, 8)
        return torch.einsum("bph,b...hyx->bp...yx", patches, folded.unflatten(0, expression.shape[:-1]))


def take_tokens(tokens: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """(B, L, H) tokens at (B, Q) places -> (B, Q, H)."""
    return tokens.gather(1, index[:, :, None].expand(-1, -1, tokens.shape[-1]))


def unpadded(input_ids: torch.Tensor, pad_ids: list[int]) -> torch.Tensor:
    """(U, T) ids that came without a mask -> their mask (U, T): 0 in the runs of padding before and after the tokens.

    Padding is a token of `pad_ids`; or the end token repeated after the first one or put before the begin token, as
    CLIP's tokenizer pads. A row of nothing else is left as it is.
    """
    first, last = input_ids[:, :1], input_ids[:, -1:]
    pads = torch.tensor(pad_ids, dtype=input_ids.dtype, device=input_ids.device)
    head = (input_ids == first).cumprod(1) > 0  # (U, T) the run of equal tokens that begins the row
    tail = (input_ids == last).flip(1).cumprod(1).flip(1) > 0  # and the one that ends it
    repeated = F.pad(tail[:, :-1], (1, 0))
    padding = (head & (torch.isin(first, pads) | (first == last))) | (tail & (torch.isin(last, pads) | repeated))
    return (~padding | padding.all(1, keepdim=True)).to(input_ids.dtype)


def padding_last(input_ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask (U, T), rolled so that each row begins with its first token that is there."""
    length = mask.shape[1]
    places = torch.arange(length, device=mask.device)  # (T,)
    start = length - (mask * (length - places)).amax(1, keepdim=True)  # (U, 1)
    places = places + start  # (U, T)
    places = torch.where(places < length, places, places - length)  # the padding in front comes last
    return input_ids.gather(1, places), mask.gather(1, places)


def padded_patches(padding: torch.Tensor, grid: int) -> torch.Tensor:
    """Whether each patch is mostly padding, (B, 1, S, S) of 0 and 1 -> (B, 1, G, G) of 0 and 1, for exported graphs.

    The official resizing gives exactly 0.5 where an image ends in the middle of a patch, and torch rounds that to 0.
    Other runtimes resize with a last bit of their own and round it to 1. So here are its weights as matrices, and 0.5
    is 0. For patch sizes that are powers of two this is torch's result to the bit; for 14, where torch's own last bit
    falls either way, it differs in a sixteenth of those images, in the patches on that edge.
    """
    size = padding.shape[-1]
    scale = size // grid
    centers, places = torch.arange(grid) * scale + scale / 2, torch.arange(size) + 0.5
    triangles = (1 - (places - centers[:, None]).abs() / scale).clamp(min=0)  # (G, S)
    weights = (triangles / triangles.sum(1, keepdim=True)).to(padding)
    return (weights @ padding @ weights.t() > 0.5 + 1e-5).to(padding.dtype)


def scatter_patches(values: torch.Tensor, patch_index: torch.Tensor, patches: int) -> torch.Tensor:
    """Values of computed patches back on the full grid: (B, P, C) -> (B, N, C), `PADDING_LOGIT` elsewhere."""
    batch, _, channels = values.shape
    full = values.new_full((batch, patches + 1, channels), PADDING_LOGIT)  # the last place takes what is not a patch
    place = torch.where(patch_index < 0, patches, patch_index)[:, :, None].expand(-1, -1, channels)
    return full.scatter(1, place, values)[:, :patches]


def check_inputs(config: HiVGConfig, input_ids, pixel_values, patch_index, text_index, image_index) -> None:
    """Refuse inputs that do not fit the config or each other, whatever engine computes the answers.

    Raises:
        ValueError: with what was given and what was expected.
    """
    size, length = config.image_size, config.max_text_length
    if pixel_values is None or input_ids is None:
        raise ValueError("HiVG needs both `pixel_values` and `input_ids`: an image and an expression.")
    # `len` of a tensor would fix the size in an exported graph.
    texts = (input_ids if text_index is None else text_index).shape[0]
    images = (pixel_values if image_index is None else image_index).shape[0]
    if texts != images and not torch.compiler.is_compiling():
        raise ValueError(
            f"Got {texts} expressions for {images} images. Pass one expression per image, or `image_index`, the "
            "row of `pixel_values` that each expression reads; the processor gives it."
        )
    if tuple(pixel_values.shape[-2:]) != (size, size):
        raise ValueError(
            f"`pixel_values` must be {size} x {size} pixels for this model. Got {tuple(pixel_values.shape[-2:])}; "
            "use the processor saved with the model."
        )
    if input_ids.shape[1] > length:
        raise ValueError(
            f"An expression may have at most {length} tokens with begin and end. Got {input_ids.shape[1]}; use "
            "the processor saved with the model, which cuts and says what was cut."
        )
    if patch_index is not None and not config.skip_padded_patches:
        raise ValueError(
            "`patch_index` was given, but this model computes every patch (`skip_padded_patches=False`); use the "
            "processor saved with the model."
        )


def refuse_misspelled(unknown: dict[str, Any], labels: Any) -> None:
    """Refuse what nearly is an argument of `forward`: unread, what was asked for would be missing in silence.

    Raises:
        TypeError: with the name that was meant.
    """
    if torch.compiler.is_compiling():
        return
    for name in unknown:
        close = difflib.get_close_matches(name, ARGUMENTS, n=1, cutoff=0.85)
        if name in ("boxes", "return_loss") and labels is None and unknown[name] is not None:
            close = ["labels"]
        if close:
            raise TypeError(f"HiVG's forward has no argument `{name}`; did you mean `{close[0]}`?")


# --------------------------------------------------------------------------------------------------------------------
# The model
# --------------------------------------------------------------------------------------------------------------------


class HiVGForVisualGrounding(HiVGPreTrainedModel):
    """One image and one referring expression in, one box (and a mask) out.

    `self.clip` is a `CLIPModel` with bridges in its vision tower; `self.grounding_head` is everything else.

    Args:
        config ([`HiVGConfig`]): the model's shape.

    Example:

    ```python
    >>> import hivg_hf
    >>> from transformers import AutoModel, AutoProcessor
    >>> model = AutoModel.from_pretrained(hivg_hf.TINY_CHECKPOINT)
    >>> processor = AutoProcessor.from_pretrained(hivg_hf.TINY_CHECKPOINT)
    >>> row = hivg_hf.load_grounding_dataset("refshapes", "val", seed=1, size=1)[0]
    >>> outputs = model(**processor(images=row["image"], text=row["expression"]))
    >>> outputs.pred_boxes.shape, outputs.scores.shape
    (torch.Size([1, 4]), torch.Size([1]))
    >>> found = processor.post_process_grounding(outputs, target_sizes=[row["image"].size[::-1]])
    >>> found[0]["box"].shape
    torch.Size([4])
    ```"""

    # Without this, Trainer would pass the number of label elements and expect a summed loss.
    accepts_loss_kwargs = False
    _warned_of_padding = False

    def __init__(self, config: HiVGConfig):
        super().__init__(config)
        self.clip = HiVGCLIPModel._from_config(config.clip_config, hivg_config=config)
        self.grounding_head = HiVGGroundingHead(config)
        self.post_init()
        if config.initialization == "official" and self.device.type != "meta":  # there, weights are still to be loaded
            self.copy_visual_projection()
        for part in self._recorded_parts():
            install_recording_hooks(part)

    def _recorded_parts(self) -> tuple[PreTrainedModel, ...]:
        return self.clip.text_model, self.clip.vision_model, self.grounding_head.fusion

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        for part in self._recorded_parts():  # a new process knows only the classes whose constructor it has run
            _CAN_RECORD_REGISTRY[part] = part._can_record_outputs

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding of the text tower."""
        return self.clip.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embedding of the text tower."""
        self.clip.set_input_embeddings(value)

    # -- loading ------------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path, *args, config=None, image_size=None, num_queries=None, **kwargs
    ):
        """As `PreTrainedModel.from_pretrained`. With another `image_size` or `num_queries` (an argument, or that of
        `config`) than the weights were trained at, the model is loaded as it is stored and then changed, see
        `resize_image` and `add_queries`."""
        given = {"image_size": image_size, "num_queries": num_queries}
        wanted = {name: getattr(config, name, None) if value is None else value for name, value in given.items()}
        may_differ = any(value is not None for value in wanted.values())
        trained = cls._trained_shape(pretrained_model_name_or_path, kwargs) if may_differ else None
        if trained is None:  # a plain CLIP, which has no positions and queries of ours
            kwargs.update({name: value for name, value in given.items() if value is not None})
        elif isinstance(config, HiVGConfig):
            config = copy.deepcopy(config)
            vars(config).update(trained)
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, config=config, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        changed = {name for name in trained or {} if wanted[name] not in (None, trained[name])}
        if "image_size" in changed:
            model.resize_image(wanted["image_size"])
        if "num_queries" in changed:
            model.add_queries(wanted["num_queries"])
        return loaded

    @classmethod
    def _trained_shape(cls, path, kwargs: dict) -> dict[str, int] | None:
        """`image_size` and `num_queries` of the model at `path`; None where there is no HiVG."""
        if path is None:
            return None
        hub = ("revision", "token", "cache_dir", "local_files_only", "subfolder", "force_download")
        stored, _ = cls.config_class.get_config_dict(path, **{name: kwargs[name] for name in hub if name in kwargs})
        if stored.get("model_type") != cls.config_class.model_type or "image_size" not in stored:
            return None
        return {"image_size": stored["image_size"], "num_queries": stored.get("num_queries", 1)}

    @torch.no_grad()
    def add_queries(self, num_queries: int) -> None:
        """Let the model answer with more boxes, in place: new [REG] tokens start as copies of those that are there,
        with noise, without which all would learn the same; the first stays as it is.

        All of them then answer nearly alike, and none is silent yet: train the model with rows that name several
        things and rows that name nothing.

        Args:
            num_queries: how many it is to have.

        Raises:
            ValueError: it has more, or no trained score.
        """
        head, old = self.grounding_head, self.config.num_queries
        if num_queries < old:
            raise ValueError(f"This model has {old} queries, of which none can be taken away. Got {num_queries}.")
        changed = copy.deepcopy(self.config)
        changed.num_queries = num_queries
        changed.validate()
        rows = head.reg_token(torch.arange(num_queries, device=head.reg_token.weight.device) % old)  # (K, H)
        noise = torch.randn(rows.shape, generator=torch.Generator().manual_seed(num_queries))  # equal in every process
        noise[:old] = 0
        new = UnitEmbedding(*rows.shape, device=rows.device, dtype=rows.dtype)
        new.weight.copy_(rows + QUERY_NOISE * rows.std() * noise.to(rows)).requires_grad_(
            head.reg_token.weight.requires_grad
        )
        head.reg_token = new.train(head.training)
        if old == 1:
            head.query_mask_proj = QueryMaskLinear(*[rows.shape[1]] * 2, device=rows.device, dtype=rows.dtype)
            self._init_weights(head.query_mask_proj)
            head.query_mask_proj.requires_grad_(new.weight.requires_grad).train(head.training)
        self.config.num_queries = num_queries
        logger.warning(
            f"{num_queries - old} of the {num_queries} queries are copies of the {old} that were trained, with "
            "noise, and have to be trained before they answer for things of their own."
        )

    @torch.no_grad()
    def resize_image(self, size: int) -> None:
        """Let the model see another padded square, in place; the processor must make it so too.

        CLIP's positions are interpolated in every forward. Those of the fusion encoder are here, once: the rows of
        [REG], CLS and words stay as they are. An accuracy at the new size is only known after it was measured there.

        Args:
            size: side in pixels, a multiple of the patch size.

        Raises:
            ValueError: it is not a multiple.
        """
        if size < self.config.patch_size or size % self.config.patch_size:
            raise ValueError(
                f"`image_size` must be a multiple of CLIP's patch size. Got {size} and {self.config.patch_size}."
            )
        old = self.grounding_head.position_embedding
        rows = old(torch.arange(old.num_embeddings, device=old.weight.device))  # (2 + N + T, H)
        first, patches, words = rows.split([2, self.config.grid_size**2, self.config.max_text_length])
        self.config.image_size = size
        rows = torch.cat([first, resize_positions(patches, self.config.grid_size), words])
        new = UnitEmbedding(*rows.shape, device=rows.device, dtype=rows.dtype)
        new.weight.copy_(rows).requires_grad_(old.weight.requires_grad)
        self.grounding_head.position_embedding = new.train(old.training)

    @classmethod
    def from_clip(
        cls, pretrained_model_name_or_path: str | os.PathLike, **config_overrides
    ) -> "HiVGForVisualGrounding":
        """A new model around a pre-trained CLIP, with fresh bridges and heads.

        Args:
            pretrained_model_name_or_path: a folder or Hub id of a transformers CLIP.
            config_overrides: fields of [`HiVGConfig`]; and `revision`, `token`, `cache_dir`, `local_files_only`,
                `dtype`, `attn_implementation`, which go to `from_pretrained`.

        Raises:
            ValueError: where the checkpoint is not a CLIP, or lacks CLIP weights.
        """
        loading = ("revision", "token", "cache_dir", "local_files_only", "dtype", "attn_implementation")
        kwargs = {name: config_overrides.pop(name) for name in loading if name in config_overrides}
        path = str(pretrained_model_name_or_path)
        if path.endswith((".pth", ".pt", ".bin", ".safetensors")):
            raise ValueError(
                f"`{path}` is a file, and `from_clip` takes a folder or Hub id of a CLIP; an official file becomes "
                "a model by `hivg_hf.conversion.load_official_clip`, or a folder by `hivg convert`."
            )
        hub = {name: kwargs[name] for name in loading[:4] if name in kwargs}
        stored, _ = CLIPConfig.get_config_dict(path, **hub)
        if stored.get("model_type") != "clip":
            raise ValueError(
                f"`{path}` holds a `{stored.get('model_type')}` model; `from_clip` needs a CLIP (`clip`)."
            )
        config = HiVGConfig(clip_config=CLIPConfig.from_dict(stored), **config_overrides)
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # a table of every new tensor, which are new on purpose
        try:
            model, report = cls.from_pretrained(path, config=config, output_loading_info=True, **kwargs)
        finally:
            logging.set_verbosity(verbosity)
        model._check_clip_loaded(path, report)
        model.copy_visual_projection()
        parameters = model.state_dict()
        new = sum(parameters[key].numel() for key in report["missing_keys"])
        logger.warning(
            f"New model around the CLIP in `{path}`: its {len(config.bridge_layers)} bridges and its grounding head "
            f"({new / 1e6:.1f} of {model.num_parameters() / 1e6:.1f} million parameters) are untrained."
        )
        return model

    def _check_clip_loaded(self, path: str, report: dict) -> None:
        missing = [key for key in report["missing_keys"] if key.startswith("clip.") and ".bridge." not in key]
        unexpected = [key for key in report["unexpected_keys"] if not key.endswith("position_ids")]
        if missing or unexpected or report["mismatched_keys"]:
            raise ValueError(
                f"The CLIP in `{path}` does not fit its own config: missing {missing[:5]}, "
                f"unexpected {unexpected[:5]}, other shapes {list(report['mismatched_keys'])[:5]}."
            )

    @torch.no_grad()
    def fold_bridge_lora(self) -> "HiVGForVisualGrounding":
        """Add the low-rank terms of the bridges to their weights, in place: the same model without `bridge_lora`."""
        for module in list(self.modules()):
            for name, part in list(module.named_children()):
                if isinstance(part, LowRankLinear):
                    setattr(module, name, part.fold())
        self.config.bridge_lora = False
        return self

    @torch.no_grad()
    def copy_visual_projection(self) -> None:
        """Start the multi-level projection as one copy of CLIP's visual projection for each level, not divided by
        their number. Official: models/HiVG.py:751-754"""
        weight = self.clip.visual_projection.weight
        levels = len(self.config.visual_feature_layers)
        self.grounding_head.visual_levels_proj.weight.copy_(weight.repeat(1, levels))

    # -- forward ------------------------------------------------------------------------------------------------------

    @can_return_tuple
    @merge_with_config_defaults
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        pixel_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        mask_labels: torch.Tensor | None = None,
        output_masks: bool = False,
        output_token_logits: bool = False,
        patch_index: torch.Tensor | None = None,
        text_index: torch.Tensor | None = None,
        image_index: torch.Tensor | None = None,
        image_ids: torch.Tensor | None = None,
        output_scores: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs,
    ) -> HiVGOutput:
        r"""Ground each expression in its image.

        Args:
            input_ids (`torch.LongTensor` of shape `(expressions, T)`): tokens of the expressions.
            attention_mask (`torch.Tensor` of shape `(expressions, T)`):
                1 = token, 0 = padding, on either side: rows are rolled so that their first token comes first. Without
                it, padding is recognized, with one warning.
            pixel_values (`torch.FloatTensor` of shape `(images, 3, S, S)`): normalized letterboxed images.
            pixel_mask (`torch.Tensor` of shape `(images, S, S)`): 1 = image, 0 = padding. Default: all image.
            labels (`torch.FloatTensor` of shape `(batch_size, 4)`, *optional*):
                Target boxes as (cx, cy, w, h) in 0..1 of the padded square. A row of NaN: nothing is named. Several
                for a row, with `config.num_queries` > 1: `(batch_size, M, 4)`, NaN where a row has fewer than M. A
                list as DETR takes it, `{"boxes": (N, 4)}` for each row, is understood too.
            mask_labels (`torch.Tensor` of shape `(batch_size, S, S)`, *optional*):
                Target masks, of a row's targets together. Without them the rasterized boxes are the target.
            output_masks (`bool`): give `mask_logits`.
            output_token_logits (`bool`): give `token_logits`.
            patch_index (`torch.LongTensor` of shape `(images, P)`, *optional*):
                Patches to compute, -1 = none; only with `config.skip_padded_patches`. Without it all are computed and
                those in the padding are masked: the same result for more work.
            text_index (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
                Row of `input_ids` for each sample, where an expression repeats. Default: row i for sample i.
            image_index (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
                Row of `pixel_values`, `pixel_mask` and `patch_index` for each sample, where an image has several
                expressions. The layers before the first bridge, and its self-attention, then run once for each image:
                the same result for less work. Default: row i for sample i.
            image_ids (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
                Equal for equal images: such pairs are no negatives with `config.contrastive_ignore_duplicates`.
                Default: `image_index`.
            output_scores (`bool`):
                Give `scores`. Default: in every call without labels, and with labels where they cost nothing; a
                similarity score (`config.score`) needs the patches of the last fusion layer.
            output_hidden_states, output_attentions (`bool`):
                Record the states and attentions. Default: what the config says.

        Returns:
            [`HiVGOutput`].

        Raises:
            ValueError: where shapes do not fit the config.
        """
        config = self.config
        output_hidden_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        output_attentions = config.output_attentions if output_attentions is None else output_attentions
        asked_scores = labels is None if output_scores is None else output_scores
        wanted = self._wanted(labels is not None, output_token_logits, output_masks, asked_scores)
        check_inputs(config, input_ids, pixel_values, patch_index, text_index, image_index)
        if text_index is not None or image_index is not None:
            self._refuse_adapter_names()
        if kwargs:
            refuse_misspelled(kwargs, labels)
        if labels is not None:
            rows = (pixel_values if image_index is None else image_index).shape[0]
            labels = checked_labels(labels, pixel_values, config.num_queries, rows)
            mask_labels = None if mask_labels is None else checked_masks(mask_labels, rows, config.image_size)

        # 1. Words.
        ids, mask = self._prepare_text(input_ids, attention_mask)
        text = self.clip.text_model(
            ids, output_hidden_states=True if output_hidden_states else list(config.bridge_text_layers)
        )
        words = self.clip.text_projection(text.last_hidden_state)  # (U, T, H)
        bridge_states, bridge_mask = self._bridge_text(text.hidden_states, words, mask)
        if text_index is not None:
            words, mask, ids = words[text_index], mask[text_index], ids[text_index]
            bridge_states = tuple(state[text_index] for state in bridge_states)
            bridge_mask = bridge_mask[text_index] if bridge_mask is not None else None
        end_index = (mask * torch.arange(mask.shape[1], device=mask.device)).amax(-1)  # (B,) last token that is there

        # 2. Image, steered by the words.
        patch_mask = self._patch_mask(pixel_values, pixel_mask, patch_index)
        vision = self.clip.vision_model(
            pixel_values,
            patch_index=patch_index,
            patch_mask=patch_mask if config.skip_padded_patches else None,
            text_states=bridge_states,
            text_bias=key_padding_bias(bridge_mask, words.dtype),
            image_index=image_index,
            output_hidden_states=True if output_hidden_states else list(config.visual_feature_layers),
            output_attentions=output_attentions,
        )
        vision_states = self._per_sample(vision.hidden_states, image_index)
        levels = torch.cat([vision_states[i] for i in config.visual_feature_layers], dim=-1)  # (B, 1 + P, levels * V)
        if image_index is not None:
            patch_index, patch_mask = (x if x is None else x[image_index] for x in (patch_index, patch_mask))
            image_ids = image_index if image_ids is None else image_ids

        # 3. Both together. Padding that every row shares is cut: masked keys change nothing.
        length = input_ids.shape[1]
        fusion_mask = mask if config.bridge_mask_padding else (ids != config.text_pad_id).to(mask.dtype)
        layout = BatchLayout(fusion_mask[:, :length], end_index, patch_index, patch_mask, wanted.patches)
        recorded = {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}
        fused = self.grounding_head.fuse(levels, words[:, :length], layout, **recorded)

        # 4. Answers.
        outputs = self._contrastive_logits(vision.pooler_output, words, end_index)
        outputs.update(self._read_heads(fused.last_hidden_state, layout, wanted, outputs))
        loss, loss_dict = None, None
        if labels is not None:
            expressions = hash_expressions(ids, mask)
            loss, loss_dict = self._losses(outputs, labels, mask_labels, image_ids, expressions)
        if config.refine_boxes and not self.training:
            for boxes, masks in (("pred_boxes", "mask_logits"), ("query_boxes", "query_mask_logits")):
                outputs[boxes] = refine_boxes(outputs[boxes], outputs[masks])
        # CLIP's matrix has a row for each image, and here an image looks different to each of its expressions.
        contrastive = outputs["logits_per_text"] if text_index is None and image_index is None else None  # (B, B)
        several = config.num_queries > 1
        given_scores = self._scores(outputs, layout) if output_scores is not False else None  # (B, K)
        return HiVGOutput(
            loss=loss,
            loss_dict=loss_dict,
            pred_boxes=outputs["pred_boxes"],
            scores=None if given_scores is None else given_scores.amax(1),
            token_logits=outputs["token_logits"] if output_token_logits else None,
            mask_logits=outputs["mask_logits"] if output_masks else None,
            query_boxes=outputs["query_boxes"] if several else None,
            query_scores=given_scores if several else None,
            query_mask_logits=outputs["query_mask_logits"] if several and output_masks else None,
            logits_per_text=contrastive,
            logits_per_image=None if contrastive is None else contrastive.t(),
            vision_hidden_states=vision_states if output_hidden_states else None,
            text_hidden_states=text.hidden_states if output_hidden_states else None,
            hidden_states=fused.hidden_states if output_hidden_states else None,
            vision_attentions=self._per_sample(vision.attentions, image_index) if output_attentions else None,
            cross_attentions=vision.get("cross_attentions") if output_attentions else None,
            attentions=fused.attentions if output_attentions else None,
        )

    def _refuse_adapter_names(self) -> None:
        """PEFT's `adapter_names` name an adapter for each row that a layer sees, in its hooks; with an index, rows of
        the towers are not samples, and a sample would get another one's adapter."""
        if torch.compiler.is_compiling():
            return
        hooks = (hook for module in self.modules() for hook in module._forward_pre_hooks.values())
        if any("adapter_names" in getattr(hook, "keywords", {}) for hook in hooks):
            raise ValueError(
                "`adapter_names` names an adapter for each sample, and with `text_index` or `image_index` samples "
                "share rows of the towers: pass one image and one expression per sample, without an index."
            )

    def _wanted(self, trains: bool, tokens: bool, masks: bool, scores: bool) -> Wanted:
        """What is computed, from what was asked for; while the model trains, with what the loss terms read."""
        config = self.config
        weights = config.loss_weights if trains else {}
        needs = {need for name, term in EXTRA_LOSSES.items() if weights.get(name) for need in term.needs}
        scores = bool(scores or weights.get("score") or config.num_queries > 1)  # the best of several scores highest
        evidence = set(config.score_inputs) if scores and config.score == "head" else set()
        tokens = tokens or weights.get("token_focal") or weights.get("token_dice") or "token_logits" in needs
        tokens = tokens or bool(evidence & set(OF_SIMILARITY)) or (scores and config.score == "similarity")
        masks = masks or weights.get("mask_focal") or weights.get("mask_dice") or "mask_logits" in needs
        masks = masks or (config.refine_boxes and not self.training)
        return Wanted(bool(tokens), bool(masks), scores, evidence)

    def _per_sample(
        self, recorded: tuple[torch.Tensor, ...], image_index: torch.Tensor | None
    ) -> tuple[torch.Tensor, ...]:
        """What each vision layer left, (I, ...) in the layers that images share -> (B, ...) in all of them."""
        if image_index is None:
            return recorded
        shared = 1 + self.clip.vision_model.last_shared_layer
        return tuple(x[image_index] if i < shared and x is not None else x for i, x in enumerate(recorded))

    def _prepare_text(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(U, T) -> ids and mask (U, T), padding last; for a bridge that looks at padding (U, all positions), restored
        as the official tokenizer pads. So no padding choice of the caller changes a prediction."""
        if attention_mask is None:
            mask = unpadded(input_ids, self._pad_ids())
            self._warn_of_padding(mask)
        else:
            mask = attention_mask.to(input_ids.dtype)
        ids, mask = padding_last(input_ids, mask)
        if self.config.bridge_mask_padding:
            return ids, mask
        pad_id = self.config.text_pad_id
        missing = self.config.max_text_length - ids.shape[1]
        ids = F.pad(torch.where(mask > 0, ids, pad_id), (0, missing), value=pad_id)
        return ids, F.pad(mask, (0, missing), value=0)

    def _pad_ids(self) -> list[int]:
        """Token ids that are padding and nothing else. Not the end token, which CLIP's tokenizer pads with."""
        text = self.config.clip_config.text_config
        ends = text.eos_token_id if isinstance(text.eos_token_id, list) else [text.eos_token_id]
        return sorted({self.config.text_pad_id, text.pad_token_id} - {None, *ends})

    def _warn_of_padding(self, mask: torch.Tensor) -> None:
        if self._warned_of_padding or mask.is_meta or torch.compiler.is_compiling():
            return
        if not mask.all():
            self._warned_of_padding = True
            warnings.warn(
                "`input_ids` came padded and without their `attention_mask`; the padding was recognized and left out. "
                "Pass the mask that the processor gives.",
                stacklevel=2,
            )

    def _bridge_text(
        self, hidden_states: tuple[torch.Tensor, ...], words: torch.Tensor, mask: torch.Tensor
    ) -> tuple[tuple[torch.Tensor, ...], torch.Tensor | None]:
        """K text states (U, T, D) for the bridges, and their mask (U, T) or None where padding is looked at."""
        if not self.config.bridge_layers:
            return (), None
        if self.config.bridge_text_source == "projection":
            states = (self.grounding_head.bridge_text_proj(words),)  # (U, T, H) -> (U, T, V)
        else:
            states = tuple(hidden_states[i] for i in self.config.bridge_text_layers)
        return states, mask if self.config.bridge_mask_padding else None

    def _patch_mask(
        self, pixel_values: torch.Tensor, pixel_mask: torch.Tensor | None, patch_index: torch.Tensor | None
    ) -> torch.Tensor | None:
        """(B, P) or (B, N) int64, 0 = padding; None where every patch is image."""
        if patch_index is not None:
            return (patch_index >= 0).long()
        if pixel_mask is None:
            return None
        grid = self.config.grid_size
        if self.config.skip_padded_patches:  # a patch with any image in it counts
            return F.max_pool2d(pixel_mask[:, None].float(), self.config.patch_size).flatten(1).long()
        # Official: models/HiVG.py:891-903 resizes the integer padding mask (bilinear, antialias) and rounds.
        padding = 1 - pixel_mask[:, None].float()
        if torch.compiler.is_exporting():
            return 1 - padded_patches(padding, grid).flatten(1).long()
        padding = F.interpolate(padding, size=(grid, grid), mode="bilinear", antialias=True, align_corners=False)
        return 1 - padding.round().flatten(1).long()

    def _read_heads(
        self, fused: torch.Tensor, layout: BatchLayout, wanted: Wanted, embeds: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor | None]:
        """(B, Q, H) fused tokens, and CLIP's `text_embeds` and `image_embeds` -> boxes and score logits of each query
        and of the best, and what is wanted of token and mask logits."""
        head, grid = self.grounding_head, self.config.grid_size
        reg, patches, end = head.split(fused, layout)
        outputs = {"query_boxes": head.boxes(reg), "token_logits": None, "query_mask_logits": None}  # (B, K, 4)
        similarity = None
        if wanted.tokens:
            similarity = head.token_similarity(patches, F.normalize(end, dim=-1))  # (B, P)
            outputs["token_logits"] = self._on_grid(similarity[:, :, None], layout)[:, :, 0]
        outputs["score_logits"] = None
        if self.config.score == "head" and (
            wanted.scores or self.config.score_inputs == ["reg"]
        ):  # that costs nothing
            cosine = None
            if "contrastive" in wanted.evidence:
                cosine = (embeds["text_embeds"] * embeds["image_embeds"]).sum(-1)  # (B,)
            seen = outputs["query_boxes"], patches, end, similarity, cosine, layout.patch_index, layout.patch_mask
            outputs["score_logits"] = head.score_head(reg, *seen)[:, :, 0]  # (B, K)
        if wanted.masks:
            directions = end[:, None]  # (B, 1, H)
            if self.config.num_queries > 1:
                directions = directions + head.query_mask_proj(reg)  # (B, K, H)
            cells = head.mask_similarity(patches, F.normalize(directions, dim=-1))  # (B, P, K, 8, 8)
            cells = self._on_grid(cells.flatten(2), layout)  # (B, N, K * 64)
            cells = cells.unflatten(2, (-1, 8, 8)).unflatten(1, (grid, grid))  # (B, G, G, K, 8, 8)
            cells = cells.permute(0, 3, 1, 4, 2, 5)  # (B, K, G, 8, G, 8)
            outputs["query_mask_logits"] = cells.flatten(4).flatten(2, 3)  # (B, K, 8 G, 8 G)
        for name, of_queries in (("pred_boxes", "query_boxes"), ("mask_logits", "query_mask_logits")):
            outputs[name] = self._best(outputs[of_queries], outputs["score_logits"])
        return outputs

    def _best(self, values: torch.Tensor | None, score_logits: torch.Tensor | None) -> torch.Tensor | None:
        """(B, K, ...) -> (B, ...), of the query that scores highest."""
        if values is None or self.config.num_queries == 1:
            return None if values is None else values[:, 0]
        return of_best_query(values, score_logits)

    def _on_grid(self, values: torch.Tensor, layout: BatchLayout) -> torch.Tensor:
        """(B, P, C) -> (B, N, C), a constant in the padding where padded patches are skipped, computed or not."""
        if not self.config.skip_padded_patches:
            return values
        if layout.patch_index is not None:
            return scatter_patches(values, layout.patch_index, self.config.grid_size**2)
        if layout.patch_mask is None:
            return values
        return torch.where(layout.patch_mask[:, :, None] > 0, values, PADDING_LOGIT)

    def _contrastive_logits(
        self, pooled: torch.Tensor, words: torch.Tensor, end_index: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """CLIP's logits of the batch. Official: models/HiVG.py:961-967

        Args:
            pooled: (B, V), CLS after CLIP's last LayerNorm.
            words: (B, T, H), CLIP's projected words; the one at `end_index` (B,) stands for the expression.
        """
        image = F.normalize(self.clip.visual_projection(pooled), dim=-1)  # (B, H)
        text = F.normalize(take_tokens(words, end_index[:, None])[:, 0], dim=-1)  # (B, H)
        return {"logits_per_text": self.clip(text, image), "text_embeds": text, "image_embeds": image}

    def _scores(self, outputs: dict[str, torch.Tensor | None], layout: BatchLayout) -> torch.Tensor | None:
        """(B, K) confidence in 0..1, or None where what it needs was not computed."""
        if self.config.score == "head" and outputs["score_logits"] is not None:
            return self.config.calibrated(outputs["score_logits"]).sigmoid()
        if outputs["token_logits"] is None or self.config.score == "head":
            return None
        grid, patch_index = self.config.grid_size, layout.patch_index
        similarity = outputs["token_logits"]  # (B, N)
        inside = box_coverage(outputs["pred_boxes"], grid, grid).flatten(1)  # (B, N)
        is_image = torch.ones_like(inside)
        if layout.patch_mask is not None and patch_index is None:
            is_image = layout.patch_mask.to(inside.dtype)
        elif patch_index is not None:
            computed = torch.ones_like(patch_index, dtype=inside.dtype)[:, :, None]  # (B, P, 1)
            is_image = (scatter_patches(computed, patch_index, grid**2)[:, :, 0] > 0).to(inside.dtype)
        inside, outside = inside * is_image, (1 - inside) * is_image
        difference = _weighted_mean(similarity, inside) - _weighted_mean(similarity, outside)
        return (self.config.score_similarity_scale * difference + self.config.score_similarity_bias).sigmoid()[:, None]

    # -- features -----------------------------------------------------------------------------------------------------

    @can_return_tuple
    def get_text_features(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs
    ) -> BaseModelOutputWithPooling:
        """CLIP's text tower: `pooler_output` (U, H) is CLIP's embedding of each expression, before normalization.

        Args:
            input_ids: (U, T).
            attention_mask: (U, T), 1 = token.
            kwargs: `output_hidden_states`, `output_attentions`.
        """
        ids, mask = self._prepare_text(input_ids, attention_mask)
        text = self.clip.text_model(ids, **self._recording_options(kwargs))
        end_index = (mask * torch.arange(mask.shape[1], device=mask.device)).amax(-1)  # (U,)
        end = take_tokens(text.last_hidden_state, end_index[:, None])[:, 0]
        text.pooler_output = self.clip.text_projection(end)  # (U, D) -> (U, H)
        return text

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        pixel_mask: torch.Tensor | None = None,
        patch_index: torch.Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """CLIP's vision tower without an expression: its bridges are left out. `pooler_output` (B, H) is CLIP's
        embedding of each image, before normalization; what an expression makes of it is in `forward`'s outputs.

        Args:
            pixel_values: (B, 3, S, S).
            pixel_mask: (B, S, S), 1 = image. Default: all image.
            patch_index: (B, P), see `forward`.
            kwargs: `output_hidden_states`, `output_attentions`; what the processor returns for a text is not read.
        """
        patch_mask = self._patch_mask(pixel_values, pixel_mask, patch_index)
        options = {name: value for name, value in kwargs.items() if name not in ARGUMENTS_OF_TEXT}
        vision = self.clip.vision_model(
            pixel_values,
            patch_index=patch_index,
            patch_mask=patch_mask if self.config.skip_padded_patches else None,
            **self._recording_options(options),
        )
        vision.pooler_output = self.clip.visual_projection(vision.pooler_output)  # (B, V) -> (B, H)
        return vision

    def _recording_options(self, options: dict) -> dict:
        """`output_hidden_states` and `output_attentions`, where they are not given as the config says."""
        names = ("output_hidden_states", "output_attentions")
        return {**{name: getattr(self.config, name) for name in names}, **options}

    # -- losses -------------------------------------------------------------------------------------------------------

    def _losses(
        self,
        outputs: dict[str, torch.Tensor | None],
        labels: torch.Tensor,
        mask_labels: torch.Tensor | None,
        image_ids: torch.Tensor | None,
        expression_ids: torch.Tensor,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The weighted sum and the unweighted terms, in float32; a term whose weight is 0 is not computed."""
        config, weights = self.config, self.config.loss_weights
        grid, size, several = config.grid_size, config.image_size, config.num_queries > 1
        boxes, assigned = outputs["pred_boxes"].float(), labels  # (B, 4)
        if several:  # every query becomes a row of its own, with the target that it was assigned or none
            boxes = outputs["query_boxes"].float()  # (B, K, 4)
            assigned = assign_targets(boxes, outputs["score_logits"].float(), labels, weights)
            boxes, assigned = boxes.flatten(0, 1), assigned.flatten(0, 1)  # (B * K, 4)
        terms = {
            "bbox": lambda: box_l1_loss(boxes, assigned),
            "giou": lambda: box_giou_loss(boxes, assigned),
            "contrastive": lambda: self._contrastive_term(outputs, labels, image_ids, expression_ids),
            "score": lambda: (
                config.num_queries * score_loss(outputs["score_logits"].float().flatten(), boxes, assigned)
            ),
        }
        if outputs["token_logits"] is not None:
            tokens = outputs["token_logits"].float()
            targets = token_targets(labels, mask_labels, grid, size, config.token_target)
            terms["token_focal"] = lambda: focal_loss(tokens, targets)
            terms["token_dice"] = lambda: dice_loss(tokens, targets)
        if outputs["mask_logits"] is not None:
            masks, pixels = outputs["mask_logits"], mask_targets(labels, mask_labels, size)
            if several:
                masks = outputs["query_mask_logits"].flatten(0, 1)[has_target(assigned)]
                pixels = own_masks(pixels, assigned.unflatten(0, (-1, config.num_queries)), has_target(labels).sum(1))
            masks = masks.float()[:, None]  # (B, 1, 8 G, 8 G)
            masks = F.interpolate(masks, size=(size, size), mode="bilinear", align_corners=False).flatten(1)
            pixels = pixels.flatten(1)  # (B, S * S)
            terms["mask_focal"] = lambda: focal_loss(masks, pixels)
            terms["mask_dice"] = lambda: dice_loss(masks, pixels)
        given = {"labels": labels, "mask_labels": mask_labels}
        if several:
            given["assigned"] = assigned.unflatten(0, (-1, config.num_queries))
        for name, term in EXTRA_LOSSES.items():
            terms[name] = partial(term.function, outputs, given, config)
        loss_dict = {name: terms[name]() for name, weight in weights.items() if weight}
        loss = sum((weights[name] * term for name, term in loss_dict.items()), start=boxes.new_zeros(()))
        return loss, loss_dict

    def _contrastive_term(
        self,
        outputs: dict[str, torch.Tensor | None],
        labels: torch.Tensor,
        image_ids: torch.Tensor | None,
        expression_ids: torch.Tensor,
    ) -> torch.Tensor:
        valid, logits = has_target(labels), outputs["logits_per_text"]
        valid = valid.any(-1) if valid.ndim > 1 else valid  # (B,)
        if self.config.contrastive_gather:
            # Each process computes the loss of the whole batch. The gathering hands every process the gradients of
            # all, and DDP takes their mean, so each weight gets the gradient of one process with the whole batch.
            text, image = gather_with_grad(outputs["text_embeds"]), gather_with_grad(outputs["image_embeds"])
            logits = self.clip(text, image)
            valid, expression_ids = gather_with_grad(valid), gather_with_grad(expression_ids)
            image_ids = gather_with_grad(image_ids) if image_ids is not None else None
        duplicates = same_pairs(image_ids, expression_ids) if self.config.contrastive_ignore_duplicates else None
        return contrastive_loss(logits.float(), valid, duplicates)

    # -- convenience --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def ground(
        self,
        image: Any,
        text: Any,
        processor: "HiVGProcessor | None" = None,
        output_masks: bool = False,
        **options: Any,
    ) -> Any:
        """Ground expressions in one image: a call of the pipeline, without making one.

        Args:
            image: path or URL (opened upright), or PIL image or array (taken as it is held).
            text: one expression, or a list.
            processor: the [`HiVGProcessor`] saved with the model. Default: it is read from where the model was.
            output_masks: also give masks.
            options: those of a call of [`VisualGroundingPipeline`], such as `threshold` and `multiple`.

        Returns:
            As the pipeline: for one expression `{"expression", "box": {"xmin", "ymin", "xmax", "ymax"}, "score",
            "found"?, "mask"?}`, boxes in pixels of the original image; for a list, a list of them.

        Raises:
            TypeError: an argument is of another kind, as where image and text are swapped, or an option is unknown.
            ValueError: the image or the text cannot be used.
        """
        from .pipeline_hivg import VisualGroundingPipeline

        if processor is not None and not hasattr(processor, "post_process_grounding"):
            raise TypeError(
                f"The third argument of ground must be a HiVGProcessor, got {type(processor).__name__}: pass "
                "AutoProcessor.from_pretrained of the model's folder, as in ground(image, 'the red mug', processor)."
            )
        device = None if getattr(self, "hf_device_map", None) else self.device
        was_training = self.training
        self.eval()
        try:
            pipe = VisualGroundingPipeline(self, processor=processor, device=device)
            return pipe(image, text, **({"mask": True} if output_masks else {}), **options)
        finally:
            self.train(was_training)


def _weighted_mean(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """(B, N) -> (B,)"""
    return (values * weights).sum(-1) / weights.sum(-1).clamp(min=1e-6)


# The pipeline of that task reads this table alone, and calls every model that is not in it unsupported.
MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING_NAMES[HiVGConfig.model_type] = HiVGForVisualGrounding.__name__

__all__ = ["HiVGForVisualGrounding", "HiVGOutput", "HiVGPreTrainedModel"]
