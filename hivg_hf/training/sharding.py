"""What torch's `fully_shard` (FSDP2) asks of a model, and the way back to the shapes on disk."""

from __future__ import annotations

import torch
from torch import nn


def widen_scalars(model: nn.Module) -> None:
    """Give parameters without a dimension one of size 1, in place: `fully_shard` takes no scalars.

    CLIP's `logit_scale` is one. It multiplies logits, which broadcasting leaves as they were.
    """
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.ndim == 0:
                wide = nn.Parameter(parameter.detach().reshape(1), requires_grad=parameter.requires_grad)
                setattr(module, name, wide)


def restore_shapes(state: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """A gathered state dict with the shapes that the unsharded `model` has, which is how weights are saved."""
    own = model.state_dict()
    return {name: tensor.reshape(own[name].shape) if name in own else tensor for name, tensor in state.items()}
