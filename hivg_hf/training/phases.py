"""What every phase of a recipe reads and does; the kinds are in `phase_kinds.py`.

A kind from outside is a subclass of `Phase`, `GroundingPhase` or one of the kinds, all in `hivg_hf.training`, under
the entry point group `hivg_hf.phases`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sized
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from hivg_hf.utils.atomic import check_name
from hivg_hf.utils.plugins import find_plugin, is_code_name, load_code, plugin_names

from .recipe_checks import LOSS_PLUGINS, check_augmentation, check_config_fields, check_loss_weights, check_rows
from .reliability import Reliability

if TYPE_CHECKING:
    from torch import nn

    from hivg_hf.modeling.processing_hivg import HiVGProcessor

    from .recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Phase(ABC):
    """What every phase says: for how long it trains, how fast, and on what.

    Args:
        name: Of the phase and its folder.
        train: Its kind.
        epochs: Passes over the training rows; give this or `steps`.
        steps: Optimizer steps.
        learning_rate: Peak learning rate.
        batch_size: Samples per optimizer step over all processes; gradient accumulation makes up what the processes
            do not hold.
        per_device_batch_size: Most samples that one process holds at a time.
        eval_batch_size: The same for evaluation.
        weight_decay: Of AdamW.
        decay_all: Decay biases and norms too. Official: one parameter group, hivg_train.py:164-171.
        betas: Of AdamW.
        warmup: Steps of linear warm-up; below 1 a share of all steps.
        max_grad_norm: Clip the gradient's norm to this; 0 never clips.
        schedule: `cosine` to zero per step, `cosine_by_epoch` (official: constant within an epoch), `linear`,
            `constant`.
        evaluate_every: Optimizer steps between evaluations; None evaluates after every epoch.
        save_every: Optimizer steps between checkpoints; None saves where it evaluates.
        log_every: Optimizer steps between log entries.
        keep: `best` by validation accuracy (never worse than the phase began), `last`, or `best_but_last_heads`: CLIP,
            its adapters and bridges of the best evaluation (or of the beginning), `grounding_head` of the last epoch.
            Official: mixed base stages continue from these two files, hivg_eval.py:193, hivg_train.py:236-246.
        data: Training rows of this phase, in place of `data.train`.
        config: `HiVGConfig` fields that change as this phase begins; modules that they add start new, modules that
            they drop are lost. Official: ViT-L warms up without bridges, HiVG.py:665.
    """

    evaluates: ClassVar[bool] = True  # on the validation rows, while it trains
    has_adapters: ClassVar[bool] = False
    trains_clip: ClassVar[bool] = True  # its own weights, which an adapter of the model's would not survive
    merges: ClassVar[bool] = False  # its adapter into the model when it is done
    idle: ClassVar[str] = ""  # the part, `text` or `fusion`, that keeps nothing for the backward pass
    inner: ClassVar[str] = ""  # what the names of the model's weights begin with inside what is trained

    name: str
    train: str
    learning_rate: float
    batch_size: int
    epochs: float | None = None
    steps: int | None = None
    per_device_batch_size: int = 64
    eval_batch_size: int = 64
    weight_decay: float = 1e-4
    decay_all: bool = False
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    warmup: float = 0
    max_grad_norm: float = 0
    schedule: Literal["cosine", "cosine_by_epoch", "linear", "constant"] = "cosine"
    evaluate_every: int | None = None
    save_every: int | None = None
    log_every: int = 50
    keep: Literal["best", "last", "best_but_last_heads"] = "best"
    data: dict[str, Any] | None = None
    config: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_name(self.name, "Phase")
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(f"{self} needs exactly one of `epochs` and `steps`.")
        if (self.epochs or self.steps or 0) <= 0 or self.batch_size < 1 or self.learning_rate <= 0:
            raise ValueError(f"{self}: its length, batch_size and learning_rate must be positive.")
        for name in ("per_device_batch_size", "eval_batch_size", "evaluate_every", "save_every", "log_every"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{self}: `{name}` must be at least 1. Got {value}.")
        for name in ("weight_decay", "warmup", "max_grad_norm"):
            if getattr(self, name) < 0:
                raise ValueError(f"{self}: `{name}` must be at least 0. Got {getattr(self, name)}.")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"{self}: `betas` must be two numbers from 0 to below 1. Got {self.betas}.")
        check_config_fields(f"{self}, config", self.config)
        if self.data is not None:
            check_rows(f"{self}, data", self.data)

    def __str__(self) -> str:
        return f"Phase {self.name!r}"

    def steps_on(self, rows: Sized) -> int:
        """Optimizer steps."""
        return self.steps or math.ceil((self.epochs or 0) * (len(rows) // self.batch_size))

    def begin(self, model: nn.Module, recipe: Recipe) -> nn.Module:
        """The model as this phase trains it, from the one that the phase before left; changed in place.

        Args:
            model: Plain, or with the adapters of earlier phases.
            recipe: The run.
        """
        self.choose_parameters(model)
        return model

    def choose_parameters(self, model: nn.Module) -> None:
        """Let train what trains in this phase; here everything."""
        for parameter in model.parameters():
            parameter.requires_grad_(True)

    def trained_model(self, model: nn.Module) -> nn.Module:
        """What the trainer trains: the model, or something around it that gives another loss."""
        return model

    def loss_weights_on(self, weights: Mapping[str, float]) -> dict[str, float]:
        """The model's loss weights while this phase trains."""
        return dict(weights)

    def may_lack_gradients(self, weights: Mapping[str, float]) -> bool:
        """Whether parameters that train may get no gradient, which DDP has to look for in every step."""
        return True

    def loss_function(self) -> Any:
        """What computes the loss from outputs and labels; None where the trained model does."""
        return None

    def training_arguments(self, evaluates: bool) -> dict[str, Any]:
        """Arguments of the trainer that phases of this kind alone have; `evaluates`, whether there are rows for it."""
        return {}

    def callbacks(self, model: Any) -> list[Any]:
        """Callbacks of the trainer that phases of this kind alone have; `model` as it is trained."""
        return []

    @abstractmethod
    def collator(self, recipe: Recipe, processor: HiVGProcessor) -> Any:
        """Rows to a training batch."""


@dataclass(frozen=True, kw_only=True)
class GroundingPhase(Phase):
    """A phase on pictures, expressions and boxes.

    Args:
        masks: As in `data`, for this phase alone.
        augmentation: `false` switches it off in this phase, a mapping replaces `data.augmentation`.
        loss_weights: In place of the model's, while this phase trains; terms that are not named keep theirs. A term of
            an installed package (entry point group `hivg_hf.losses`), or `package.module:function` where code is
            allowed, may be among them.
        early_stop: Stop after so many evaluations without gain; None never stops early.
        loss: In place of HiVG's own: `(outputs, labels, num_items_in_batch) -> the batch's mean` as in
            `transformers.Trainer(compute_loss_func=...)`, by the name under which a package offers it
            (`hivg_hf.losses`), or `package.module:function`.
        reliability: Train only on rows whose labels the model agrees with, as the phase before left it; `{}` decides
            by all rows' losses, see `hivg_hf.training.reliability.Reliability`.
    """

    masks: bool | None = None
    augmentation: dict[str, Any] | bool | None = None
    loss_weights: dict[str, float] | None = None
    early_stop: int | None = None
    loss: str | None = None
    reliability: Reliability | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.early_stop is not None and self.early_stop < 1:
            raise ValueError(f"{self}: `early_stop` must be at least 1 evaluation. Got {self.early_stop}.")
        if self.loss is not None and self.loss_weights is not None:
            raise ValueError(f"{self} has a loss of its own, {self.loss!r}, which reads no `loss_weights`: omit one.")
        self.loss_function()
        if self.loss_weights is not None:
            check_loss_weights(f"{self}, loss_weights", self.loss_weights, others_too=True)
        check_augmentation(f"{self}, augmentation", self.augmentation)

    def loss_weights_on(self, weights: Mapping[str, float]) -> dict[str, float]:
        return {**weights, **(self.loss_weights or {})}

    def may_lack_gradients(self, weights: Mapping[str, float]) -> bool:
        return self.loss is not None or not all(weights.values())

    def loss_function(self) -> Any:
        if self.loss is None:
            return None
        if found := find_plugin(LOSS_PLUGINS, self.loss):
            return found
        if is_code_name(self.loss):
            return load_code(self.loss, "the loss")
        known = ", ".join(plugin_names(LOSS_PLUGINS)) or "none"
        raise ValueError(f"{self}: nobody offers the loss {self.loss!r}; installed are: {known}.")

    def training_arguments(self, evaluates: bool) -> dict[str, Any]:
        return {"early_stop": self.early_stop if evaluates else None}

    def collator(self, recipe: Recipe, processor: HiVGProcessor) -> Any:
        from hivg_hf.data import GroundingCollator

        return GroundingCollator(processor, **self._collating(recipe, processor))

    def _collating(self, recipe: Recipe, processor: HiVGProcessor) -> dict[str, Any]:
        from hivg_hf.data import GroundingAugmentation

        options = recipe.data.augmentation if self.augmentation is None else self.augmentation
        options = {} if options is True else options
        if isinstance(options, dict) and recipe.data.target_rounding == "official":
            options = {"mask_sampling": "corner", **options}
        made = GroundingAugmentation.for_processor(processor, **options) if isinstance(options, dict) else None
        masks = recipe.data.masks if self.masks is None else self.masks
        rounding = recipe.data.target_rounding
        return {
            "augmentation": made,
            "seed": recipe.seed,
            "masks": masks,
            "target_rounding": rounding,
            "reduce_jpeg": recipe.data.reduce_jpeg,
        }
