"""Training recipes: a YAML file that says what is trained, on what, in which phases.

A recipe is read into frozen dataclasses and checked before anything is loaded, so that a misspelt key or a phase
without a length is one sentence and not an afternoon. The shape, with every key that a phase may leave out:

```yaml
name: my-run
seed: 13
model: {checkpoint: FOLDER_OR_HUB_ID}     # or {clip: ..., preset: base-unc}, or {preset: tiny, tokenizer: ...}
data:
  train: {source: refcoco, split: train, root: /data}     # further keys go to load_grounding_dataset
  validation: {source: refcoco, split: val, root: /data}
  tests: {testA: {source: refcoco, split: testA, root: /data}}
defaults: {weight_decay: 1.0e-4, schedule: cosine}         # for every phase that does not say otherwise
phases:
  - {name: warmup, train: heads, epochs: 60, learning_rate: 2.5e-4, batch_size: 560}
  - {name: stage_1, train: lora, epochs: 20, learning_rate: 1.0e-4, batch_size: 420, vision_layers: 4, text_layers: 12}
```
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from peft import LoraConfig

from hivg_hf.data.schema import shown_text
from hivg_hf.hilora import HiLoraConfig
from hivg_hf.recipes import read_recipe
from hivg_hf.utils.atomic import check_name
from hivg_hf.utils.plugins import allowing_code
from hivg_hf.utils.strict_mapping import build_strictly, expand_variables, refuse_unknown

from .phase_kinds import LoraPhase, all_keys, build_phase, keys_of, phase_kind
from .phases import GroundingPhase, Phase
from .recipe_checks import check_augmentation, check_config_fields, check_preset, check_rows, find_model_class

MAX_WORKERS = 1024


@dataclass(frozen=True)
class ModelRecipe:
    """Where the model comes from: exactly one of `checkpoint`, `clip`, or `preset` alone (random weights).

    Args:
        checkpoint: HiVG model with its processor, by any name that `hivg_hf.hub.resolve_model` knows: folder of a
            model or of a run, Hub id, `tiny`, `official:base-mixup`.
        clip: Plain CLIP folder or Hub id; bridge and heads are new. `preset` and `config` shape them.
        preset: A name for `HiVGConfig.preset`.
        tokenizer: Folder or Hub id of the tokenizer, or `refshapes` for the one made for RefShapes; needed for a
            model from `preset` alone, otherwise the checkpoint's or CLIP's own is taken.
        config: `HiVGConfig` fields that differ from the preset.
        model_class: A subclass of `HiVGForVisualGrounding` in place of it: a name that an installed package offers as
            an entry point of the group `hivg_hf.models`, or `package.module:Class` where code is allowed.
    """

    checkpoint: str | None = None
    clip: str | None = None
    preset: str | None = None
    tokenizer: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    model_class: str | None = None

    def __post_init__(self) -> None:
        if self.model_class is not None:
            find_model_class(self.model_class)
        if self.checkpoint and (self.clip or self.preset):
            raise ValueError("model.checkpoint already fixes the model: omit model.clip and model.preset.")
        if not (self.checkpoint or self.clip or self.preset):
            raise ValueError("model needs one of checkpoint, clip or preset.")
        if self.preset and not self.clip and not self.tokenizer:
            raise ValueError("A model from model.preset alone has no tokenizer: name one in model.tokenizer.")
        check_preset("model.preset", self.preset)
        check_config_fields("model.config", self.config)


@dataclass(frozen=True)
class DataRecipe:
    """Sources by name; each mapping has `source` and `split`, and its other keys go to `load_grounding_dataset`.

    A mapping `defaults` beside them in the file holds the keys that they share.

    Args:
        train: Rows to train on.
        validation: Rows that choose the best checkpoint; without them the last one is kept.
        tests: Measured once, at the end, into the results file.
        augmentation: None, or options of `hivg_hf.data.GroundingAugmentation`.
        masks: Whether masks of the rows become targets; otherwise the rasterized box is the target.
        target_rounding: `exact`, or `official`: boxes cut to whole pixels, masks drawn of the uncut box at full
            resolution; see `hivg_hf.data.official_targets`.
        protocol: How validation judges a box, `pixel` or `official`; that accuracy chooses the best checkpoint.
        reduce_jpeg: Decode large JPEG files at a reduced scale while training; see `GroundingCollator`.
        unique_images: Keep two rows of one image out of one batch (they are false negatives of the contrastive loss).
    """

    train: dict[str, Any]
    validation: dict[str, Any] | None = None
    tests: dict[str, dict[str, Any]] = field(default_factory=dict)
    augmentation: dict[str, Any] | None = None
    masks: bool = True
    target_rounding: Literal["exact", "official"] = "exact"
    protocol: Literal["pixel", "official"] = "pixel"
    reduce_jpeg: bool = False
    unique_images: bool = False

    def __post_init__(self) -> None:
        for name in self.tests:
            check_name(name, "Test")
        if "validation" in self.tests:
            raise ValueError("data.tests may not be named `validation`: data.validation is reported by that name.")
        named = {"train": self.train, "validation": self.validation}
        named.update({f"tests.{name}": spec for name, spec in self.tests.items()})
        for name, spec in named.items():
            if spec is not None:
                check_rows(f"data.{name}", spec)
        check_augmentation("data.augmentation", self.augmentation)


@dataclass(frozen=True)
class HiLoraRecipe:
    """How the `lora` phases share adapters: see `HiLoraConfig`.

    Args:
        mode: Of `HiLoraConfig`.
        targets: The same: names of layers, or `attention`, `mlp`, `all-linear`.
        lora_options: The same.
        order: The same.
        schedule: `restart` gives every stage a schedule of the learning rate of its own, with its warm-up; `shared`
            lays one over the steps of all stages, where `warmup` below 1 is a share of all of them.
    """

    mode: Literal["additive", "progressive"] = "additive"
    targets: list[str] | str = field(default_factory=lambda: ["q_proj", "k_proj", "v_proj", "out_proj"])
    lora_options: dict[str, Any] = field(default_factory=dict)
    order: Literal["shallow_to_deep", "deep_to_shallow"] = "shallow_to_deep"
    schedule: Literal["restart", "shared"] = "restart"

    def __post_init__(self) -> None:
        refuse_unknown(self.lora_options, LoraConfig.__dataclass_fields__, "hilora.lora_options")


@dataclass(frozen=True)
class Recipe:
    """A whole training run.

    Args:
        workers: Data loading processes of each training process.
        precision: `fp32`, `bf16` or `fp16` (the last on CUDA only).
        activation_checkpointing: Recompute activations in the backward pass: less memory, about a third more time.
        contrastive_gather: Take contrastive negatives from all processes, with gradient; None leaves the model's
            own setting.
    """

    name: str
    model: ModelRecipe
    data: DataRecipe
    phases: list[Phase]
    seed: int = 13
    hilora: HiLoraRecipe = field(default_factory=HiLoraRecipe)
    workers: int = 0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    activation_checkpointing: bool = False
    contrastive_gather: bool | None = None

    def __post_init__(self) -> None:
        check_name(self.name, "Recipe")
        if not 0 <= self.seed < 2**32:
            seed = self.seed if abs(self.seed) < 2**64 else "far more"
            raise ValueError(f"recipe.seed must be from 0 to 4294967295, which numpy takes. Got {seed}.")
        if not 0 <= self.workers <= MAX_WORKERS:
            workers = self.workers if abs(self.workers) < 2**64 else "far more"
            raise ValueError(f"recipe.workers must be from 0 to {MAX_WORKERS}. Got {workers}.")
        names = [phase.name for phase in self.phases]
        if not names or len({name.casefold() for name in names}) != len(names):  # they name folders
            raise ValueError(f"phases must be a list of phases with different names. Got {names}.")
        adapted = [phase.has_adapters for phase in self.phases]
        if adapted != sorted(adapted):
            kinds = [phase.train for phase in self.phases]
            raise ValueError(f"`lora` phases come last, since nothing else can train on adapters. Got {kinds}.")
        if not any(adapted) and _changed(self.hilora):
            raise ValueError(f"No phase trains lora, so `hilora` is not read: omit it. Got {_changed(self.hilora)}.")
        grounding = [phase for phase in self.phases if isinstance(phase, GroundingPhase)]
        stopping = [phase.name for phase in grounding if phase.early_stop is not None]
        if stopping and self.data.validation is None:
            raise ValueError(f"`early_stop` of phase {stopping[0]!r} needs `data.validation`, which is missing.")
        self.hilora_config()
        self._check_reliability()
        self._check_shared_schedule()

    def _check_reliability(self) -> None:
        """Labels are judged by a model that has learned to ground, on rows that can be chosen by number."""
        knows = self.model.checkpoint is not None
        for phase in self.phases:
            reliability = getattr(phase, "reliability", None)
            if reliability is not None:
                if not knows:
                    raise ValueError(
                        f"{phase} keeps rows by `reliability`, and its model has not learned to ground yet: let a "
                        "phase on all rows come before it."
                    )
                for spec in (phase.data or self.data.train, reliability.trusted or {}):
                    if spec.get("streaming") or spec.get("source") == "mixture":
                        kind = "a stream" if spec.get("streaming") else "a mixture"
                        raise ValueError(f"{phase} keeps rows by `reliability`, which needs one table. Got {kind}.")
                if self.hilora.schedule == "shared" and phase.steps is None:
                    raise ValueError(
                        f"{phase} keeps rows by `reliability`, so nobody knows its steps when the schedule that "
                        "hilora.schedule shares begins: give `steps`, not `epochs`."
                    )
            knows = knows or isinstance(phase, GroundingPhase)

    def _check_shared_schedule(self) -> None:
        """One schedule over all stages has one form and one warm-up."""
        stages = [phase for phase in self.phases if isinstance(phase, LoraPhase)]
        forms = {(phase.schedule, phase.warmup) for phase in stages}
        if self.hilora.schedule == "shared" and len(forms) > 1:
            raise ValueError(
                "hilora.schedule is `shared`, so all `lora` phases need the same `schedule` and `warmup`. Got "
                f"{', '.join(f'{form} with {warmup:g}' for form, warmup in sorted(forms))}."
            )

    def hilora_config(self) -> HiLoraConfig | None:
        """The HiLoRA stages of the `lora` phases, or None where there are none."""
        stages = [phase.stage() for phase in self.phases if isinstance(phase, LoraPhase)]
        if not stages:
            return None
        own = self.hilora
        targets = own.targets if isinstance(own.targets, str) else tuple(own.targets)
        return HiLoraConfig(tuple(stages), own.mode, targets, own.lora_options, own.order)

    def to_dict(self) -> dict[str, Any]:
        """A plain, JSON-ready copy with every default written out."""
        return asdict(self)


def _changed(recipe: Any) -> list[str]:
    """Names of the keys whose values are not the defaults."""
    return [
        option.name
        for option in fields(recipe)
        if getattr(recipe, option.name)
        != (option.default if option.default_factory is MISSING else option.default_factory())
    ]


def load_recipe(name: str | Path, overrides: Iterable[str] = (), allow_code: bool = False) -> Recipe:
    """Read and check a recipe: a file, or the name of one that ships, with what it extends.

    Args:
        name: The file or name.
        overrides: `key.sub=value` pairs that take the place of what it says, as in `phases.stage_1.epochs=5`.
        allow_code: As for `parse_recipe`.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If it is not YAML, or holds unknown keys, wrong types or impossible settings.
    """
    return parse_recipe(read_recipe(name, overrides), allow_code)


def parse_recipe(content: Mapping[str, Any], allow_code: bool = False) -> Recipe:
    """A recipe from a mapping as in the YAML file; `defaults` are merged into every phase.

    Args:
        content: The mapping.
        allow_code: Let a data source be `package.module:function`, which is imported to see what it reads. The recipe
            does not remember the permission: `StagedTraining` asks for it again.
    """
    try:
        with allowing_code(allow_code):
            return _parse(content)
    except ValueError as error:  # of any length: it shows the value that was wrong
        raise ValueError(shown_text(str(error), 1000)) from error


def _parse(content: Mapping[str, Any]) -> Recipe:
    content = dict(content)
    defaults = _mapping(content.pop("defaults", None), "recipe.defaults")
    phases = content.get("phases")
    if not isinstance(phases, list) or not all(isinstance(phase, Mapping) for phase in phases):
        raise ValueError("phases must be a list of mappings, one for each phase.")
    content["data"] = _data_with_defaults(content.get("data"))
    refuse_unknown(defaults, all_keys(), "recipe.defaults")
    content["phases"] = [_phase_with_defaults(phase, defaults, number) for number, phase in enumerate(phases)]
    content = expand_variables(content, "recipe")
    phases = [build_phase(phase, f"recipe.phases[{number}]") for number, phase in enumerate(content["phases"])]
    return build_strictly(Recipe, {**content, "phases": phases}, "recipe")


def _data_with_defaults(data: Any) -> Any:
    if not isinstance(data, Mapping):
        return data
    data = dict(data)
    shared = _mapping(data.pop("defaults", None), "recipe.data.defaults")
    for name in ("train", "validation"):
        if isinstance(data.get(name), Mapping):
            data[name] = {**shared, **data[name]}
    if isinstance(data.get("tests"), Mapping):
        data["tests"] = {
            name: {**shared, **_mapping(spec, f"recipe.data.tests.{name}")} for name, spec in data["tests"].items()
        }
    return data


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    """Keys and values of a place in the file; nothing stands for none."""
    if value is not None and not isinstance(value, Mapping):
        raise ValueError(f"{where} must be a mapping. Got {value!r}.")
    return value or {}


def _phase_with_defaults(phase: Mapping[str, Any], defaults: Mapping[str, Any], number: int) -> dict[str, Any]:
    """A phase with the shared keys that its kind reads; the others are meant for other phases."""
    kind = phase_kind(phase.get("train", defaults.get("train")), f"recipe.phases[{number}]")
    merged = {**{key: value for key, value in defaults.items() if key in keys_of(kind)}, **phase}
    if "steps" in phase and "epochs" not in phase:
        merged.pop("epochs", None)
    if "epochs" in phase and "steps" not in phase:
        merged.pop("steps", None)
    return merged
