"""The kinds of phases, by the names that a recipe's `train` takes, and the door to those of other packages."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar

from hivg_hf.hilora import (
    CoTo,
    CoToCallback,
    HiLoraStage,
    add_tuner,
    is_new_parameter,
    named_targets,
    start_stage,
    tuner_config,
)
from hivg_hf.utils.plugins import find_plugin, plugin_names
from hivg_hf.utils.strict_mapping import build_strictly, nearest

from .phases import GroundingPhase, Phase
from .recipe_checks import check_options

if TYPE_CHECKING:
    from torch import nn

    from hivg_hf.modeling.processing_hivg import HiVGProcessor

    from .recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class PretrainPhase(Phase):
    """`pretrain`: CLIP's towers on RefShapes, per patch, for a model that has no CLIP to start from.

    Args:
        options: Of `hivg_hf.training.pretraining.PretrainingModel`.
    """

    evaluates: ClassVar[bool] = False
    idle: ClassVar[str] = "fusion"
    inner: ClassVar[str] = "model."

    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_options(f"{self}, options", self.train, self.options)

    def trained_model(self, model: Any) -> nn.Module:
        from .pretraining import PretrainingModel

        return PretrainingModel(model, **self.options)

    def collator(self, recipe: Recipe, processor: HiVGProcessor) -> Any:
        from .pretraining_rows import PretrainingCollator

        return PretrainingCollator(processor, **self.options)


@dataclass(frozen=True, kw_only=True)
class AssistedPhase(GroundingPhase):
    """`assisted`: everything learns, and the layers are shown where to look.

    Args:
        options: Of `hivg_hf.training.assisted_grounding.AssistedGrounding`.
    """

    inner: ClassVar[str] = "model."

    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss is not None:
            raise ValueError(f"{self} trains assisted, which has losses of its own: omit `loss`.")
        check_options(f"{self}, options", self.train, self.options)

    def trained_model(self, model: Any) -> nn.Module:
        from .assisted_grounding import AssistedGrounding

        return AssistedGrounding(model, **self.options)

    def may_lack_gradients(self, weights: Mapping[str, float]) -> bool:
        return True

    def collator(self, recipe: Recipe, processor: HiVGProcessor) -> Any:
        from .assisted_grounding import AssistedCollator

        return AssistedCollator(processor, **self._collating(recipe, processor))


@dataclass(frozen=True, kw_only=True)
class HeadsPhase(GroundingPhase):
    """`heads`: bridge and grounding_head; official stage 0."""

    trains_clip: ClassVar[bool] = False
    idle: ClassVar[str] = "text"

    def choose_parameters(self, model: nn.Module) -> None:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(is_new_parameter(name))


@dataclass(frozen=True, kw_only=True)
class AllPhase(GroundingPhase):
    """`all`: every parameter."""

    def may_lack_gradients(self, weights: Mapping[str, float]) -> bool:
        return True


@dataclass(frozen=True, kw_only=True)
class LoraPhase(GroundingPhase):
    """`lora`: a HiLoRA stage, that is low-rank terms, bridge and grounding_head.

    Args:
        vision_layers: The first so many layers are adapted; with `hilora.order: deep_to_shallow`, the last so many.
        text_layers: The same for the text tower.
        rank: Of the low-rank term.
        alpha: Its scale is alpha / rank.
        dropout: Before the low-rank term.
        coto: Layers take part with a growing probability: `{initial: 0.1, until: 0.75}`, see `hivg_hf.hilora.CoTo`;
            `{}` takes these values.
        loraplus_ratio: LoRA+: the rate of the terms' B is so many times `learning_rate`; the authors take 16. Source:
            Hayou et al. 2024, arXiv 2402.12354.
    """

    has_adapters: ClassVar[bool] = True
    trains_clip: ClassVar[bool] = False

    vision_layers: int = None  # type: ignore[assignment]  # both are needed; what to do says more than what is missing
    text_layers: int = None  # type: ignore[assignment]
    rank: int = 32
    alpha: float = 16
    dropout: float = 0.1
    coto: CoTo | None = None
    loraplus_ratio: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loraplus_ratio is not None and self.loraplus_ratio < 1:
            raise ValueError(f"{self}: `loraplus_ratio` must be at least 1. Got {self.loraplus_ratio:g}.")
        if self.vision_layers is None or self.text_layers is None:
            raise ValueError(f"{self} trains lora: say how deep with `vision_layers` and `text_layers`.")
        if self.config:
            raise ValueError(f"{self} trains lora: its model cannot change, so `config` must be empty.")

    def may_lack_gradients(self, weights: Mapping[str, float]) -> bool:
        return self.coto is not None or super().may_lack_gradients(weights)

    def training_arguments(self, evaluates: bool) -> dict[str, Any]:
        return {**super().training_arguments(evaluates), "loraplus_ratio": self.loraplus_ratio}

    def callbacks(self, model: Any) -> list[Any]:
        return [] if self.coto is None else [CoToCallback(self.coto, model.base_model.active_adapters[-1])]

    def begin(self, model: nn.Module, recipe: Recipe) -> nn.Module:
        hilora = recipe.hilora_config()
        assert hilora is not None  # this phase is one of its stages
        return start_stage(model, hilora, 1 + [stage.name for stage in hilora.stages].index(self.name))

    def stage(self) -> HiLoraStage:
        """As HiLoRA describes it."""
        return HiLoraStage(
            name=self.name,
            vision_layers=self.vision_layers,
            text_layers=self.text_layers,
            rank=self.rank,
            alpha=self.alpha,
            dropout=self.dropout,
            epochs=self.epochs or 0,
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
        )


@dataclass(frozen=True, kw_only=True)
class PeftPhase(GroundingPhase):
    """`peft`: an adapter of any other tuner of PEFT on the towers, bridge and grounding_head; merged when it is done.

    Args:
        tuner: `peft_type` (`IA3`, `OFT`, `VERA`, ...) and fields of its config, as in `adapter_config.json`.
        targets: Layers of the towers that it adapts, as in `hilora.targets`; `tuner.target_modules` says others.
    """

    merges: ClassVar[bool] = True

    tuner: dict[str, Any] = None  # type: ignore[assignment]  # what to do says more than what is missing
    targets: list[str] | str = "attention"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tuner is None:
            raise ValueError(f"{self} trains peft: say which tuner, as in `tuner: {{peft_type: IA3}}`.")
        self._config()

    def _config(self) -> Any:
        try:
            return tuner_config(self.tuner, named_targets(self.targets))
        except ValueError as error:
            raise ValueError(f"{self}, tuner: {error}") from error

    def begin(self, model: nn.Module, recipe: Recipe) -> nn.Module:
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        try:
            return add_tuner(model, self._config(), self.name)
        except ValueError as error:
            raise ValueError(f"{self}, tuner: {error}") from error

    def may_lack_gradients(self, weights: Mapping[str, float]) -> bool:
        return True


PHASE_KINDS: Mapping[str, type[Phase]] = {
    "pretrain": PretrainPhase,
    "assisted": AssistedPhase,
    "heads": HeadsPhase,
    "all": AllPhase,
    "lora": LoraPhase,
    "peft": PeftPhase,
}
PLUGINS = "hivg_hf.phases"  # the entry points by which other packages add them


def phase_kind(train: Any, where: str) -> type[Phase]:
    """The type of a kind of phase, one of an installed package included.

    Raises:
        ValueError: There is no such kind, or another package's is not whole.
    """
    if isinstance(train, str) and (kind := PHASE_KINDS.get(train) or find_plugin(PLUGINS, train)):
        if not (inspect.isclass(kind) and issubclass(kind, Phase)) or inspect.isabstract(kind):
            missing = ", ".join(sorted(getattr(kind, "__abstractmethods__", ()))) or "hivg_hf.training.Phase below it"
            raise ValueError(f"{where}.train: the kind {train!r} of another package lacks {missing}.")
        return kind
    known = ", ".join(map(repr, [*PHASE_KINDS, *plugin_names(PLUGINS)]))
    raise ValueError(f"{where}.train must be one of {known}. Got {train!r}.")


def keys_of(kind: type[Phase]) -> set[str]:
    """Keys that a phase of this type reads."""
    return {option.name for option in fields(kind)}


def all_keys() -> set[str]:
    """Keys that some kind of phase reads."""
    return set().union(*(keys_of(phase_kind(name, "")) for name in [*PHASE_KINDS, *plugin_names(PLUGINS)]))


def build_phase(content: Mapping[str, Any], where: str) -> Phase:
    """A phase of the type that its `train` names.

    Raises:
        ValueError: A key is unknown, is read by other kinds only, or has a value that cannot be.
    """
    if "train" not in content:
        raise ValueError(f"{where} needs the key `train`.")
    kind = phase_kind(content["train"], where)
    for key in content:
        if key in keys_of(kind):
            continue
        others = [name for name, other in PHASE_KINDS.items() if key in keys_of(other)]
        if others:
            raise ValueError(
                f"Phase {content.get('name')!r} trains {content['train']}, which does not read `{key}`: omit it, or "
                f"train {' or '.join(others)}."
            )
        raise ValueError(f"Unknown key `{key}` in {where}: {nearest(key, keys_of(kind))}")
    return build_strictly(kind, content, where)
