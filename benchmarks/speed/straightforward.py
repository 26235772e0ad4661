"""The official computation, written as the official code does it, with the weights of one of our models.

Adapters stay beside the weights as the official code evaluates, attention is eager, every output is computed, the mask
head runs its three convolutions, the last layers run in full, and all 77 text positions are read. Batches are not
mixed (`bridge_mixes_batch`), so that both sides compute the same thing.
"""

from collections.abc import Mapping

import torch
from torch import nn

from hivg_hf.conversion import official_parameter_name
from hivg_hf.modeling.configuration_hivg import HiVGConfig
from hivg_hf.modeling.modeling_hivg import HiVGForVisualGrounding

from .inputs import Batch, official_inputs
from .official_reference import OfficialLayers, OfficialOutput, official_forward, official_losses

ADAPTER_RANK = 32  # Official: models/HiVG.py:776-778, alpha 16


class Straightforward:
    """The straightforward version of one model.

    Args:
        config: of the model.
        state: tensors under plain official names.
    """

    def __init__(self, config: HiVGConfig, state: Mapping[str, torch.Tensor]):
        self.config = config
        self.state = dict(state)
        self.layers = OfficialLayers(config.bridge_layers, config.visual_feature_layers, config.bridge_text_layers)
        self.args = {
            "mixup_pretrain": config.bridge_text_source == "projection",
            "enable_adaptive_weights": config.bridge_adaptive_weights,
            "imsize": config.image_size,
            "vl_enc_layers": config.fusion_layers,
            "vl_nheads": config.fusion_heads,
            "normalize_before": config.fusion_pre_norm,
        }
        self.clip = {
            "text_config": config.clip_config.text_config.to_dict(),
            "vision_config": config.clip_config.vision_config.to_dict(),
        }

    @property
    def parameters(self) -> int:
        """Number of parameters, adapters included."""
        return sum(tensor.numel() for tensor in self.state.values())

    def __call__(self, batch: Batch) -> OfficialOutput:
        """Every output of the official forward; `batch` is as our model takes it."""
        inputs = official_inputs(batch, self.config)
        return official_forward(self.state, self.args, self.clip, self.layers, **inputs, mixes_batch=False)

    def loss(self, batch: Batch) -> torch.Tensor:
        """The sum of the official loss terms with the official weights."""
        return sum(official_losses(self(batch), batch["labels"], batch["mask_labels"][:, None]).values())


@torch.no_grad()
def merge_random_adapters(model: HiVGForVisualGrounding, rank: int = ADAPTER_RANK, seed: int = 0) -> Straightforward:
    """Give every attention projection of the towers and bridges a random adapter, as official checkpoints have them:
    merged into the weights of `model` (changed in place), beside the weights in the returned version of it."""
    generator = torch.Generator().manual_seed(seed)
    state = {official_parameter_name(name): p.detach() for name, p in model.named_parameters()}
    for name, weight in list(state.items()):
        if ".encoder.layers." not in name or not name.startswith("clip.") or not name.endswith("_proj.weight"):
            continue
        down = 0.02 * torch.randn(rank, weight.shape[1], generator=generator).to(weight)
        up = 0.02 * torch.randn(weight.shape[0], rank, generator=generator).to(weight)
        module = name.removesuffix(".weight")
        state[name] = weight.clone()
        state[f"{module}.lora_A.default.weight"], state[f"{module}.lora_B.default.weight"] = down, up
        weight.add_(16 / rank * up @ down)
    return Straightforward(model.config, state)


def from_adapted(adapted: nn.Module, config: HiVGConfig) -> tuple[Straightforward, dict[str, str]]:
    """The straightforward version of a model in training, with a PEFT adapter, on copies of its parameters.

    Returns:
        It, and the official name of each parameter of `adapted`.
    """
    state, names = {}, {}
    for name, parameter in adapted.named_parameters():
        plain = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
        module, _, adapter = plain.partition(".lora_")
        if adapter:
            official = official_parameter_name(f"{module}.weight").removesuffix(".weight")
            official = f"{official}.lora_{adapter[0]}.default.weight"
        else:
            official = official_parameter_name(plain)
        names[name] = official
        state[official] = parameter.detach().clone().requires_grad_(parameter.requires_grad)
    return Straightforward(config, state), names


def largest_difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """max |a - b| / (1 + |b|)."""
    return float(((ours - theirs).abs() / (1 + theirs.abs())).max())
