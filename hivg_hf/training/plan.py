"""`hivg train --dry-run`: what a recipe would do, from its configuration alone; no weights are read."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import CLIPConfig

from hivg_hf.data import Negatives
from hivg_hf.data.readers import SOURCES
from hivg_hf.data.splits import PUBLISHED
from hivg_hf.hilora import is_new_parameter
from hivg_hf.modeling.configuration_hivg import HiVGConfig
from hivg_hf.modeling.modeling_hivg import HiVGForVisualGrounding

from .arguments import accumulation_steps
from .model_start import load_tokenizer, locate, plain_checkpoint
from .phases import GroundingPhase, Phase
from .recipe import ModelRecipe, Recipe
from .recipe_checks import find_model_class
from .rows import RowCache
from .run_folder import disk_needed

# Values that a transformer layer keeps for its backward pass, per token and width, with fused attention and an MLP of
# four times the width: Korthikanti et al. 2022, "Reducing Activation Recomputation", eq. 1 without the attention maps.
VALUES_PER_TOKEN = 17
PARTS = ("CLIP vision", "CLIP text", "CLIP other", "bridge", "grounding head", "LoRA vision", "LoRA text")


@dataclass(frozen=True)
class PhasePlan:
    """One line of the plan.

    Attributes:
        name: Of the phase.
        train: What trains in it.
        rows: Training rows; None where the data is not there and nothing is published.
        rows_are_published: Whether `rows` is the published count instead of the data's own.
        steps: Optimizer steps; None where they depend on unknown rows.
        batch: How the batch is made up, for example "560 = 80 x 7 micro-batches x 1 process".
        learning_rate: Peak.
        parameters: Part of the model -> (parameters that train, parameters).
        negatives: Other expressions that an image is compared with in the contrastive loss; 0 where it is off.
        memory: Bytes that one process may need: weights, gradients, AdamW's moments and activations.
        disk: Bytes that the phase's checkpoints may need.
        kept: Which of the rows it keeps, as a phrase; "" where it takes all.
        steps_are_most: Whether it takes fewer steps where it keeps fewer rows.
        negatives_of_rows: How many of them ask, in each epoch, for what is not there; "" where none does.
    """

    name: str
    train: str
    rows: int | None
    rows_are_published: bool
    steps: int | None
    batch: str
    learning_rate: float
    parameters: dict[str, tuple[int, int]]
    negatives: int
    memory: int
    disk: int
    negatives_of_rows: str = ""
    kept: str = ""
    steps_are_most: bool = False

    @property
    def trainable(self) -> int:
        """Parameters that train in this phase."""
        return sum(train for train, _ in self.parameters.values())


def plan_training(recipe: Recipe, processes: int = 1) -> list[PhasePlan]:
    """The plan of every phase of a recipe on a number of processes."""
    rows = RowCache()
    return [_plan_phase(recipe, phase, model, rows, processes) for phase, model in phase_models(recipe)]


def phase_models(recipe: Recipe) -> Iterator[tuple[Phase, nn.Module]]:
    """Each phase with the model that it finds, without storage, what trains in it chosen; one object that changes."""
    model: Any = None
    for phase in recipe.phases:
        if model is None or phase.config:
            model = empty_model(recipe.model, **phase.config)
        if phase.merges:  # the next finds a plain model
            yield phase, phase.begin(_with_storage(model), recipe)
        else:
            model = phase.begin(model, recipe)
            yield phase, model


def _with_storage(model: nn.Module) -> nn.Module:
    """A copy with some numbers in it: tuners that decompose weights cannot be put on a model without any."""
    model = copy.deepcopy(model).to_empty(device="cpu")
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model


def empty_model(recipe: ModelRecipe, **changes: Any) -> HiVGForVisualGrounding:
    """The recipe's model without storage (on torch's meta device)."""
    fields = {**recipe.config, **changes}
    if recipe.checkpoint:
        config = HiVGConfig.from_pretrained(plain_checkpoint(recipe, weights=False), **fields)
    elif recipe.preset:
        config = HiVGConfig.preset(recipe.preset, **fields)
    else:
        config = HiVGConfig(clip_config=CLIPConfig.from_pretrained(locate(recipe.clip or "", weights=False)), **fields)
    if recipe.preset and not recipe.clip:
        config.clip_config.text_config.vocab_size = len(load_tokenizer(recipe))
    with torch.device("meta"):
        return find_model_class(recipe.model_class)(config)


def _plan_phase(recipe: Recipe, phase: Phase, model: nn.Module, cache: RowCache, processes: int) -> PhasePlan:
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    rows, published = _count_rows(recipe, phase, cache, plain.config.num_queries)
    accumulation = accumulation_steps(phase.batch_size, processes, phase.per_device_batch_size)
    micro = -(-phase.batch_size // (processes * accumulation))
    weights = phase.loss_weights_on(plain.config.loss_weights)
    gather = plain.config.contrastive_gather if recipe.contrastive_gather is None else recipe.contrastive_gather
    is_contrastive = isinstance(phase, GroundingPhase) and weights.get("contrastive", 0) > 0
    parameters = count_parameters(model)
    reliability = getattr(phase, "reliability", None)
    trainable, total = (sum(counts[index] for counts in parameters.values()) for index in (0, 1))
    return PhasePlan(
        name=phase.name,
        train=phase.train,
        rows=rows,
        rows_are_published=published,
        steps=phase.steps or (None if rows is None else phase.steps_on(range(rows))),
        batch=f"{phase.batch_size} = {micro} x {accumulation} micro-batch{'es' * (accumulation > 1)} x {processes} "
        f"process{'es' * (processes > 1)}",
        learning_rate=phase.learning_rate,
        parameters=parameters,
        negatives=(micro * (processes if gather else 1) - 1) if is_contrastive else 0,
        memory=4 * (total + 3 * trainable) + micro * activation_bytes(plain.config, phase.idle, recipe),
        disk=disk_needed(model),
        negatives_of_rows=_describe_negatives(phase.data or recipe.data.train),
        kept=str(reliability or ""),
        steps_are_most=reliability is not None and phase.steps is None,
    )


def activation_bytes(config: HiVGConfig, idle: str, recipe: Recipe) -> int:
    """Bytes of activations that one sample keeps for the backward pass: an estimate, good to about a factor of two.

    Args:
        config: Of the model.
        idle: The part that keeps nothing, as in `Phase`.
        recipe: The run.
    """
    vision, text = config.clip_config.vision_config, config.clip_config.text_config
    patches = (config.image_size // vision.patch_size) ** 2
    words = text.max_position_embeddings
    layers = {
        "vision": patches * vision.hidden_size * (vision.num_hidden_layers + 1.5 * len(config.bridge_layers)),
        "text": words * text.hidden_size * text.num_hidden_layers,
        "fusion": (patches + words + 1 + config.num_queries)
        * config.clip_config.projection_dim
        * config.fusion_layers,
    }
    layers.pop(idle, None)
    kept = 1.5 if recipe.activation_checkpointing else VALUES_PER_TOKEN
    size = 4 if recipe.precision == "fp32" else 2
    return int(kept * size * sum(layers.values()))


def count_parameters(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Part of the model -> (parameters that train, parameters), in the order of `PARTS`; empty parts are left out."""
    counts = {part: [0, 0] for part in PARTS}
    tuner, kind = "lora_", "LoRA"
    if isinstance(model, PeftModel) and model.base_model.prefix != tuner:
        tuner, kind = model.base_model.prefix, next(iter(model.peft_config.values())).peft_type.value
    for name, parameter in model.named_parameters():
        part = _part(name, tuner, kind)
        counts.setdefault(part, [0, 0])
        counts[part][0] += parameter.numel() * parameter.requires_grad
        counts[part][1] += parameter.numel()
    return {part: (train, total) for part, (train, total) in counts.items() if total}


def _part(name: str, tuner: str, kind: str) -> str:
    tower = "vision" if "vision_model." in name else "text" if "text_model." in name else "other"
    if tuner in name:
        return f"{kind} {tower}"
    if is_new_parameter(name):
        return "bridge" if ".bridge." in name else "grounding head"
    return f"CLIP {tower}" if "clip." in name else "pre-training heads"


def _count_rows(recipe: Recipe, phase: Phase, cache: RowCache, num_queries: int) -> tuple[int | None, bool]:
    """Training rows of a phase, and whether that is only the published count."""
    spec = phase.data or recipe.data.train
    if (rendered := _count_rendered(spec)) is not None:
        return rendered, False
    try:
        return len(cache.training_rows(recipe, phase, num_queries)), False
    except FileNotFoundError:
        source = SOURCES.get(spec["source"])
        totals = PUBLISHED.get(source.published_as, {}).get(spec["split"]) if source else None
        return (totals.expressions if totals else None), True


def _count_rendered(spec: Mapping[str, Any]) -> int | None:
    """Rows of RefShapes and of mixtures of it without rendering one; None where rows must be read to count them."""
    if spec["source"] == "mixture":
        counts = [_count_rendered(part) for part in spec.get("parts") or ()]
        if not counts or None in counts:
            return None
        return spec.get("size") or sum(count for count in counts if count is not None)
    return spec.get("size") if spec["source"] == "refshapes" and not spec.get("foils") else None


def _describe_negatives(spec: Mapping[str, Any]) -> str:
    parts = [spec, *(spec.get("parts") or ())]
    described = [str(Negatives.read(part["negatives"])) for part in parts if part.get("negatives") is not None]
    return "; ".join(dict.fromkeys(described))


def describe_plan(plans: list[PhasePlan]) -> str:
    """The plan as text, one block per phase."""
    blocks = []
    for plan in plans:
        rows = "unknown (no data there)" if plan.rows is None else f"{plan.rows:,}"
        rows += " (published count: the data is not there)" if plan.rows_are_published and plan.rows else ""
        rows += f", {plan.negatives_of_rows}" if plan.negatives_of_rows else ""
        kept = f"  keeps rows             {plan.kept.removeprefix('kept ')}\n" if plan.kept else ""
        most = "up to " if plan.steps_are_most else ""
        parts = ", ".join(f"{part} {train:,}" for part, (train, _) in plan.parameters.items() if train)
        frozen = ", ".join(part for part, (train, _) in plan.parameters.items() if not train)
        blocks.append(
            f"{plan.name}: trains {plan.train}\n"
            f"  rows                   {rows}\n{kept}"
            f"  optimizer steps        {'unknown' if plan.steps is None else f'{most}{plan.steps:,}'}\n"
            f"  batch                  {plan.batch}\n"
            f"  learning rate          {plan.learning_rate:g}\n"
            f"  trainable parameters   {plan.trainable:,} ({parts})\n"
            f"  frozen                 {frozen or 'nothing'}\n"
            f"  contrastive negatives  {plan.negatives} per image and step\n"
            f"  memory per process     about {plan.memory / 2**30:.2f} GiB\n"
            f"  disk                   up to {plan.disk / 2**30:.2f} GiB"
        )
    return "\n\n".join(blocks)
