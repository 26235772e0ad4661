"""CoTo: each layer's low-rank terms take part in a step with a probability that grows while they train.

Source: "Come Together, But Not Right Now" (ICML 2025, arXiv 2506.05713): the probability rises linearly from 0.1 to 1
over the first three quarters of the steps; a layer that is left out computes without its terms; one at least is in.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import TrainerCallback

_LAYER = re.compile(r"(vision_model|text_model)\.encoder\.layers\.\d+")


@dataclass(frozen=True)
class CoTo:
    """The schedule of the probability.

    Args:
        initial: At the first step.
        until: Share of the steps after which every layer takes part.

    Raises:
        ValueError: If they are no probability and no share.
    """

    initial: float = 0.1
    until: float = 0.75

    def __post_init__(self) -> None:
        if not 0 <= self.initial <= 1 or not 0 < self.until <= 1:
            raise ValueError(
                "CoTo needs `initial` from 0 to 1 and `until` above 0 and at most 1. Got "
                f"{self.initial} and {self.until}."
            )

    def probability(self, step: int, steps: int) -> float:
        """That a layer takes part in a step, counted from 0, of so many."""
        return min(1.0, self.initial + (1 - self.initial) * step / math.ceil(self.until * steps))

    def draw(self, step: int, steps: int, layers: int, seed: int) -> list[bool]:
        """Which of the layers take part: a function of seed and step, so that a resumed run draws the same."""
        random = np.random.default_rng([seed, step])
        drawn = random.random(layers) < self.probability(step, steps)  # (layers,)
        if not drawn.any():
            drawn[random.integers(layers)] = True
        return drawn.tolist()


class CoToCallback(TrainerCallback):
    """Leaves the trained adapter out of some layers in every step, the same ones on every process.

    Evaluations and checkpoints lie between steps, where every layer takes part.

    Args:
        coto: The schedule.
        adapter: Name of the adapter that trains; those of earlier stages stay.
    """

    def __init__(self, coto: CoTo, adapter: str) -> None:
        self.coto, self.adapter = coto, adapter
        self._left_out: list[tuple[LoraLayer, list[str]]] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        groups = list(trained_layers(model, self.adapter).values())
        drawn = self.coto.draw(state.global_step, state.max_steps, len(groups), args.seed)
        for group, takes_part in zip(groups, drawn, strict=True):
            for layer in () if takes_part else group:
                # not `set_adapter`, which would also change what trains
                self._left_out.append((layer, layer._active_adapter))
                layer._active_adapter = [name for name in layer.active_adapters if name != self.adapter]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for layer, adapters in self._left_out:
            layer._active_adapter = adapters
        self._left_out.clear()


def trained_layers(model: nn.Module, adapter: str) -> dict[str, list[LoraLayer]]:
    """Tower layer -> its linear layers whose terms of the adapter train, in the order of the model."""
    layers: dict[str, list[LoraLayer]] = defaultdict(list)
    for name, module in model.named_modules():
        place = _LAYER.search(name)
        if place and isinstance(module, LoraLayer) and adapter in module.lora_A:
            if any(parameter.requires_grad for parameter in module.lora_A[adapter].parameters()):
                layers[place[0]].append(module)
    return dict(layers)
