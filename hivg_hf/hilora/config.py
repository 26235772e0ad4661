"""What a HiLoRA training is: its stages, which layers they reach, and what each adapter looks like to PEFT.

Two modes:

- ``additive`` (the paper): stage j adds a new term to layer groups 1..j, so that a layer's weight becomes
  ``W0 + sum_k B_k A_k``. One adapter per stage, earlier ones active and frozen.
- ``progressive`` (the official code): one adapter over all layers of the last stage, whose trainable layers grow.
  Official: models/HiVG.py:776-883, where nested ``get_peft_model`` calls end in the same slot.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

from peft import LoraConfig
from peft.utils.other import get_pattern_key
from torch import nn

from hivg_hf.utils.atomic import check_name

from .options import MOST_RANK, check_lora_options, check_patterns, is_finite

if TYPE_CHECKING:
    from hivg_hf.modeling.configuration_hivg import HiVGConfig

PROGRESSIVE_ADAPTER = "hilora"
MOST_LAYERS = 200  # as in configuration_hivg.MOST
ATTENTION_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")
MLP_TARGETS = ("fc1", "fc2")
TARGET_SETS = {"attention": ATTENTION_TARGETS, "mlp": MLP_TARGETS, "all-linear": ATTENTION_TARGETS + MLP_TARGETS}
BRIDGE_TARGETS = tuple(f"bridge.{name}" for name in ATTENTION_TARGETS + MLP_TARGETS)
_TAKEN = nn.ModuleDict()
# Parts of parameter names: PEFT tells adapters apart by finding ".NAME." in them, and would drop other parts' tensors.
_PARTS_OF_NAMES = frozenset(
    "base_model model clip vision_model text_model encoder embeddings layers self_attn mlp activation_fn q_proj "
    "k_proj v_proj out_proj fc1 fc2 layer_norm1 layer_norm2 pre_layrnorm post_layernorm final_layer_norm "
    "visual_projection text_projection patch_embedding position_embedding token_embedding class_embedding "
    "logit_scale bridge attention dropout activation norm norm1 norm2 adaptive_weights text_norms text_proj "
    "grounding_head fusion visual_proj visual_levels_proj reg_token token_mlp token_norm mask_convs box_head "
    "score_head evidence norms in_proj_weight in_proj_bias up down base_layer weight bias default original_module "
    "modules_to_save".split()
)


@dataclass(frozen=True)
class HiLoraStage:
    """One stage: which layers it adapts and how it is trained.

    Args:
        name: Adapter name in additive mode, and the name of its folder; letters, digits, ``_`` and ``-``.
        vision_layers: The first so many layers of the vision tower are adapted; the last so many from deep to shallow.
        text_layers: The same for the text tower. The paper uses one layer group for text, that is all layers in every
            stage.
        rank: Rank of the low-rank term; twice the rank is twice the adapter parameters.
        alpha: Scale of the term is ``alpha / rank``. Official: 16 / 32, models/HiVG.py:776.
        dropout: Dropout before the low-rank term while training.
        epochs: Passes over the training data.
        learning_rate: Peak learning rate of the stage.
        batch_size: Samples per optimizer step over all processes.
    """

    name: str
    vision_layers: int
    text_layers: int
    rank: int = 32
    alpha: float = 16
    dropout: float = 0.1
    epochs: float = 20
    learning_rate: float = 1e-4
    batch_size: int = 420

    def __post_init__(self) -> None:
        check_adapter_name(self.name)
        if self.rank < 1:
            raise ValueError(f"HiLoraStage.rank must be at least 1. Got {self.rank} in stage {self.name!r}.")
        if self.rank > MOST_RANK:
            raise ValueError(f"HiLoraStage.rank may be at most {MOST_RANK:,}. Got more in stage {self.name!r}.")
        if not is_finite(self.alpha) or not 0 <= self.dropout < 1:
            raise ValueError(
                f"Stage {self.name!r} needs a finite alpha and a dropout from 0 to below 1. Got alpha={self.alpha} "
                f"and dropout={self.dropout}."
            )
        if self.vision_layers < 0 or self.text_layers < 0 or self.vision_layers + self.text_layers == 0:
            raise ValueError(
                f"Stage {self.name!r} must adapt at least one layer. Got vision_layers={self.vision_layers} and "
                f"text_layers={self.text_layers}."
            )
        if max(self.vision_layers, self.text_layers) > MOST_LAYERS:
            raise ValueError(
                f"Stage {self.name!r} may adapt at most {MOST_LAYERS} layers of a tower, far more than any has. Got "
                f"vision_layers={self.vision_layers} and text_layers={self.text_layers}."
            )


@dataclass(frozen=True)
class HiLoraConfig:
    """The stages of one HiLoRA training.

    Args:
        stages: In the order of training; a later stage adapts no fewer layers than an earlier one.
        mode: ``"additive"`` as in the paper, ``"progressive"`` as in the official code.
        targets: Linear layers of a tower's layer that get a low-rank term, among q_proj, k_proj, v_proj, out_proj,
            fc1, fc2; and of the bridges in the adapted layers, whose own weights train as well, as bridge.q_proj and
            so on. ``"attention"``, ``"mlp"`` and ``"all-linear"`` stand for those of a tower's layer. The authors'
            terms inside the bridges, trained in every stage, are ``HiVGConfig.bridge_lora``.
        lora_options: Further ``peft.LoraConfig`` fields, such as ``{"use_rslora": True}``; `options.py` says which.
        order: ``"shallow_to_deep"`` as in the paper; ``"deep_to_shallow"`` begins at the towers' last layers, and its
            last stage reaches all of them.

    Raises:
        ValueError: If the stages shrink, repeat a name, or (progressive mode) differ in rank, alpha or dropout; or an
            option could not be published exactly.
    """

    stages: tuple[HiLoraStage, ...]
    mode: Literal["additive", "progressive"] = "additive"
    targets: tuple[str, ...] | str = ATTENTION_TARGETS
    lora_options: dict[str, Any] = field(default_factory=dict)
    order: Literal["shallow_to_deep", "deep_to_shallow"] = "shallow_to_deep"

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))
        object.__setattr__(self, "targets", named_targets(self.targets))
        if not self.stages:
            raise ValueError("HiLoraConfig needs at least one stage. Got none.")
        if self.mode not in ("additive", "progressive"):
            raise ValueError(f"HiLoraConfig.mode must be 'additive' or 'progressive'. Got {self.mode!r}.")
        if self.order not in ("shallow_to_deep", "deep_to_shallow"):
            raise ValueError(f"HiLoraConfig.order must be 'shallow_to_deep' or 'deep_to_shallow'. Got {self.order!r}.")
        self._check_targets()
        self._check_stages()
        self._check_combinations()

    def _check_targets(self) -> None:
        known = ATTENTION_TARGETS + MLP_TARGETS + BRIDGE_TARGETS
        unknown = [name for name in self.targets if name not in known]
        if unknown or set(self.targets) <= set(BRIDGE_TARGETS):
            raise ValueError(
                f"HiLoraConfig.targets must be some of {known}, and one of a tower's own among them. Got "
                f"{self.targets}."
            )
        check_lora_options(self.lora_options, "HiLoraConfig.lora_options")

    def _check_stages(self) -> None:
        names = [stage.name for stage in self.stages]
        if len({name.casefold() for name in names}) != len(names):  # some file systems do not tell A from a
            raise ValueError(f"HiLoRA stages need different names. Got {names}.")
        for before, after in zip(self.stages, self.stages[1:], strict=False):
            if after.vision_layers < before.vision_layers or after.text_layers < before.text_layers:
                raise ValueError(
                    f"HiLoRA stages grow, but {after.name!r} adapts fewer layers than "
                    f"{before.name!r} ({after.vision_layers} vision and {after.text_layers} text layers after "
                    f"{before.vision_layers} and {before.text_layers})."
                )
        shapes = {(stage.rank, stage.alpha, stage.dropout) for stage in self.stages}
        if self.mode == "progressive" and len(shapes) > 1:
            raise ValueError(
                "In progressive mode all stages share one adapter, so rank, alpha and dropout must be equal in all of "
                f"them. Got {sorted(shapes)}; use mode='additive' for stages of different size."
            )

    def _check_combinations(self) -> None:
        if self.mode == "additive" and len(self.stages) > 1 and self.lora_options.get("use_dora"):
            raise ValueError(
                "DoRA rescales the whole weight, so its stages do not add up: use mode='progressive', or one stage."
            )
        ranks = [*(stage.rank for stage in self.stages), *self.lora_options.get("rank_pattern", {}).values()]
        if self.lora_options.get("init_lora_weights") == "orthogonal" and any(rank % 2 for rank in ranks):
            raise ValueError(f"The start 'orthogonal' needs even ranks, in rank_pattern too. Got {ranks}.")
        self._check_patterns()
        for stage in range(1, len(self.stages) + 1):
            try:
                self.lora_config(stage)
            except (ValueError, TypeError, ImportError) as error:
                raise ValueError(f"HiLoraConfig.lora_options do not go together: {error}") from error

    def _check_patterns(self) -> None:
        """Refuse a pattern that never ends, or that hits no layer, which PEFT would pass over in silence; and a stage
        without layers."""
        try:
            check_patterns(
                SimpleNamespace(**self.lora_options), self._adapted_layers(self.stages[-1], excluding=False)
            )
        except ValueError as error:
            raise ValueError(f"HiLoraConfig.lora_options: {error}.") from None
        for stage in self.stages:
            if not (names := self._adapted_layers(stage)):
                raise ValueError(f"HiLoraConfig.lora_options exclude_modules leaves stage {stage.name!r} no layer.")
        excluded = self.lora_options.get("exclude_modules")
        if excluded and len(names) == len(self._adapted_layers(stage, excluding=False)):
            raise ValueError(
                f"HiLoraConfig.lora_options exclude_modules={excluded!r} excludes no layer: the layers' names end "
                f"as in {names[0]}."
            )
        for option in ("rank_pattern", "alpha_pattern"):
            patterns = self.lora_options.get(option, {})
            idle = sorted(set(patterns) - {get_pattern_key(patterns, name) for name in names})
            if idle:
                raise ValueError(
                    f"HiLoraConfig.lora_options {option} holds {idle}, which no adapted layer takes (the first "
                    f"pattern that fits counts): the layers' names end as in {names[0]}."
                )

    def _adapted_layers(self, stage: HiLoraStage, excluding: bool = True) -> list[str]:
        """Module names that get a low-rank term in a stage, where every vision layer has a bridge."""
        excluded = (self.lora_options.get("exclude_modules") or []) if excluding else []
        names = [
            f"clip.{tower}.encoder.layers.{layer}.{_place_in_layer(target)}"
            for tower, layers in self.layers_of(stage).items()
            for layer in layers
            for target in self.targets
            if tower == "vision_model" or target not in BRIDGE_TARGETS
        ]
        if isinstance(excluded, str):
            return [name for name in names if not re.fullmatch(excluded, name)]
        return [name for name in names if not any(f".{name}".endswith(f".{end}") for end in excluded)]

    @classmethod
    def for_model(
        cls,
        config: HiVGConfig,
        stages: int = 3,
        *,
        mode: Literal["additive", "progressive"] = "additive",
        rank: int = 32,
        alpha: float = 16,
        dropout: float = 0.1,
        **options: Any,
    ) -> HiLoraConfig:
        """Groups derived from the towers' depth: 4/8/12 layers for ViT-B, 8/16/24 for ViT-L.

        Source: the paper's G = 3 groups (stage j reaches layer j * L / G). Official: lists 0-4, 0-7, 0-11 for every
        model, models/HiVG.py:787-869, which leave the upper half of ViT-L untrained.

        Args:
            config: Of the model to adapt.
            stages: Number of stages G.
            options: Further fields of ``HiLoraConfig``.
        """
        depth = config.clip_config.vision_config.num_hidden_layers
        text_depth = config.clip_config.text_config.num_hidden_layers
        if not 1 <= stages <= depth:
            raise ValueError(f"stages must be between 1 and the vision tower's depth {depth}. Got {stages}.")
        return cls(
            stages=tuple(
                HiLoraStage(
                    name=f"stage_{number}",
                    vision_layers=round(number * depth / stages),
                    text_layers=text_depth,
                    rank=rank,
                    alpha=alpha,
                    dropout=dropout,
                    learning_rate=1e-4 / 2 ** (number - 1),
                )
                for number in range(1, stages + 1)
            ),
            mode=mode,
            **options,
        )

    def adapter_name(self, stage: int) -> str:
        """Name of the adapter that stage ``stage`` (counted from 1) trains."""
        return PROGRESSIVE_ADAPTER if self.mode == "progressive" else self.stages[stage - 1].name

    def layers_of(self, stage: HiLoraStage) -> dict[str, range]:
        """Tower -> the layers of it that a stage adapts."""
        last = self.stages[-1]
        layers = {}
        for tower, count, depth in (
            ("vision_model", stage.vision_layers, last.vision_layers),
            ("text_model", stage.text_layers, last.text_layers),
        ):
            # the last stage reaches all layers there are, which start_stage checks
            layers[tower] = range(count) if self.order == "shallow_to_deep" else range(depth - count, depth)
        return layers

    def lora_config(self, stage: int) -> LoraConfig:
        """The PEFT configuration of the adapter that stage ``stage`` (counted from 1) trains."""
        shape = self.stages[stage - 1]
        layers = self.layers_of(self.stages[-1] if self.mode == "progressive" else shape)
        return LoraConfig(
            r=shape.rank,
            lora_alpha=shape.alpha,
            lora_dropout=shape.dropout,
            bias="none",
            target_modules=target_pattern(layers["vision_model"], layers["text_model"], self.targets),
            **self.lora_options,
        )


def check_adapter_name(name: str) -> str:
    """Refuse a name that cannot be both a folder and the name of a PEFT adapter.

    Returns:
        The name.

    Raises:
        ValueError: It holds other characters than letters, digits, `_` and `-`, or PEFT or torch would take it for
            something else.
    """
    check_name(name, "Stage")
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ValueError(f"Stage name {name!r} may hold letters, digits, '_' and '-' only.")
    if name in _PARTS_OF_NAMES or name.startswith("lora_") or name.isdigit() or hasattr(_TAKEN, name):
        raise ValueError(
            f"Stage name {name!r} stands for something else in the model, in torch or in PEFT: add to it, for example "
            f"'stage_{name}'."
        )
    return name


def _place_in_layer(target: str) -> str:
    """Where a target stands below its layer: `bridge.q_proj` -> `bridge.attention.q_proj`."""
    leaf = target.removeprefix("bridge.")
    if leaf != target:
        return f"bridge.{'attention' if leaf in ATTENTION_TARGETS else 'mlp'}.{leaf}"
    return f"{'self_attn' if leaf in ATTENTION_TARGETS else 'mlp'}.{leaf}"


def named_targets(targets: Iterable[str] | str) -> tuple[str, ...]:
    """Targets, with the name of a set written out."""
    if isinstance(targets, str):
        if targets not in TARGET_SETS:
            raise ValueError(
                f"HiLoraConfig.targets must be one of {', '.join(TARGET_SETS)}, or a list of layers. Got {targets!r}."
            )
        return TARGET_SETS[targets]
    return tuple(targets)


def target_pattern(
    vision_layers: int | Iterable[int] | None,
    text_layers: int | Iterable[int] | None,
    targets: Iterable[str] = ATTENTION_TARGETS,
) -> str:
    """A regular expression, anchored on the towers, for the linear layers that get a low-rank term.

    Layers are given by their numbers, or by how many of the first ones; None stands for all there are.

    A plain list such as ``["q_proj"]`` would also hit the bridge's cross-attention.
    Official: models/HiVG.py:776 does, so its bridge carries LoRA terms beside its trained weights.
    """
    places = [_place_in_layer(name).rpartition(".") for name in targets]
    leaves = [
        rf"{re.escape(parent)}\.({'|'.join(leaf for other, _, leaf in places if other == parent)})"
        for parent in dict.fromkeys(parent for parent, *_ in places)
    ]
    numbers = {
        tower: [r"\d+"] if layers is None else [str(n) for n in (range(layers) if isinstance(layers, int) else layers)]
        for tower, layers in (("vision_model", vision_layers), ("text_model", text_layers))
    }
    towers = [rf"{tower}\.encoder\.layers\.({'|'.join(layers)})" for tower, layers in numbers.items() if layers]
    return rf"clip\.({'|'.join(towers)})\.({'|'.join(leaves)})"
