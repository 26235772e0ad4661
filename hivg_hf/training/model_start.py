"""Where a run's models come from: the recipe's start, then what the phases before left on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from peft import PeftModel
from transformers import AutoTokenizer

from hivg_hf.conversion import load_official_clip
from hivg_hf.hilora import PROGRESSIVE_ADAPTER, is_new_parameter, load_adapter_state, start_stage
from hivg_hf.hilora.loading import add_trained_adapter
from hivg_hf.hub import download_checked, resolve_model
from hivg_hf.modeling.configuration_hivg import HiVGConfig
from hivg_hf.modeling.modeling_hivg import HiVGForVisualGrounding
from hivg_hf.modeling.presets_hivg import preset_fields
from hivg_hf.modeling.processing_hivg import HiVGProcessor
from hivg_hf.utils.whole_weights import load_whole

from .recipe import ModelRecipe, Recipe
from .recipe_checks import find_model_class
from .run_folder import PhaseFolder
from .trainer import forget_thresholds

OFFICIAL_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")


def load_after(
    recipe: Recipe, done: Sequence[PhaseFolder], changes: Mapping[str, Any] | None = None
) -> tuple[Any, HiVGProcessor]:
    """Model and processor as finished phases leave them, with the adapters of those that are stages.

    Args:
        recipe: The run.
        done: Its first phases, all finished; none gives what the run starts from.
        changes: Config fields that the next phase changes.

    Raises:
        ValueError: A result is damaged, or the phases cannot train on the adapter that the recipe's model has.
    """
    # new weights (heads, bridges, adapters) are the same on every process and at every start
    set_seed(recipe.seed + 1000 * len(done))
    plain = [place for place in done if not place.phase.has_adapters]
    continued = continued_adapter(recipe.model)  # then every phase trains on it, and results hold it
    if plain and not continued:
        source = plain[-1].whole_result
        model: Any = load_growing(source, changes or {}, find_model_class(recipe.model.model_class))
        processor = HiVGProcessor.from_pretrained(source, trust_remote_code=False)
    else:
        model = build_model(recipe.model, **(changes or {}))
        processor = build_processor(recipe.model, model.config)
    if continued:
        _check_continued(recipe, model)
    if done and (continued or done[-1].phase.has_adapters):
        model = _with_adapters(recipe, model, done)
    return model, processor


def _with_adapters(recipe: Recipe, model: Any, done: Sequence[PhaseFolder]) -> Any:
    """The model with the adapters, bridge and head of the last result; a rejected stage left no adapter."""
    result, hilora = done[-1].whole_result, recipe.hilora_config()
    if hilora is not None:
        for stage in range(1, sum(place.phase.has_adapters for place in done) + 1):
            if (result / hilora.adapter_name(stage)).is_dir():
                model = start_stage(model, hilora, stage)
    if isinstance(model, PeftModel):
        load_adapter_state(model, result)
    return model


def _check_continued(recipe: Recipe, model: PeftModel) -> None:
    """Refuse phases that cannot train on the adapter that the model comes with.

    Raises:
        ValueError: Stages would add adapters of their own or want another shape, or a phase trains CLIP itself or
            changes the model.
    """
    hilora, adapter = recipe.hilora_config(), model.peft_config[PROGRESSIVE_ADAPTER]
    where = f"The model {recipe.model.checkpoint} comes with the adapter {PROGRESSIVE_ADAPTER!r}"
    if hilora is not None and hilora.mode != "progressive":
        raise ValueError(f"{where}, which stages train further with hilora.mode: progressive only. Got {hilora.mode}.")
    for phase in recipe.phases:
        if phase.trains_clip or phase.config:
            raise ValueError(
                f"{where}; phase {phase.name!r} must train heads or lora, without `config`. To train everything, "
                "take its merged form (hivg convert --lora merge)."
            )
    for stage in hilora.stages if hilora is not None else ():
        found = (adapter.r, float(adapter.lora_alpha), float(adapter.lora_dropout))
        if found != (stage.rank, float(stage.alpha), float(stage.dropout)):
            raise ValueError(
                f"{where} of rank, alpha and dropout {found}, and stage {stage.name!r} asks for "
                f"{(stage.rank, float(stage.alpha), float(stage.dropout))}: give the same."
            )


def build_model(recipe: ModelRecipe, **changes: Any) -> Any:
    """The model that the first phase starts from, in float32; new weights come from torch's random state.

    Where its folder holds an adapter to train further, a `PeftModel` around it.

    Args:
        recipe: Where it comes from.
        changes: Config fields that the first phase changes.
    """
    fields, kind = {**recipe.config, **changes}, find_model_class(recipe.model_class)
    if recipe.checkpoint:
        model = load_growing(plain_checkpoint(recipe), fields, kind)
        forget_thresholds(model.config, kept=fields)
        _check_places(model)
        if adapter := continued_adapter(recipe):
            return add_trained_adapter(model, adapter, PROGRESSIVE_ADAPTER)
    elif recipe.clip:
        shape = preset_fields(recipe.preset) if recipe.preset else {}
        shape.pop("clip_config", None)
        model = _around_clip(locate(recipe.clip), {**shape, **fields}, kind)
    else:
        config = HiVGConfig.preset(recipe.preset or "", **fields)
        tokenizer = load_tokenizer(recipe)
        text = config.clip_config.text_config
        text.vocab_size, text.bos_token_id, text.eos_token_id = (
            len(tokenizer),
            tokenizer.bos_token_id,
            tokenizer.eos_token_id,
        )
        model = kind(config)
    _check_places(model)
    return model


def _check_places(model: HiVGForVisualGrounding) -> None:
    """Refuse parameters of a subclass that no phase would train and no adapter's folder hold."""
    lost = [name for name, _ in model.named_parameters() if not name.startswith(("clip.", "grounding_head."))]
    if lost:
        raise ValueError(
            f"{type(model).__name__} has parameters outside CLIP, its bridges and `grounding_head` ({lost[0]}, "
            f"{len(lost)} in all), which phases do not train: put them into `grounding_head`."
        )


def continued_adapter(recipe: ModelRecipe) -> Path | None:
    """The adapter that a run trains further: that of `hivg convert --lora adapter`, or of progressive HiLoRA."""
    folder = Path(recipe.checkpoint or "") / "adapters" / PROGRESSIVE_ADAPTER
    return folder if recipe.checkpoint and folder.is_dir() else None


def plain_checkpoint(recipe: ModelRecipe, weights: bool = True) -> str:
    """Where the model itself lies that a recipe names as its checkpoint; `weights` as in `locate`."""
    return locate(start_name(recipe) or "", weights)


def start_name(recipe: ModelRecipe) -> str | None:
    """A recipe's checkpoint, as an adapter names its base: a folder, or a repository with its revision.

    Of a run it is the finished model, since `base/` lacks what additive stages learned; under an adapter that training
    continues, it is `base/`.
    """
    if adapter := continued_adapter(recipe):
        return str(adapter.parents[1] / "base")
    return resolve_model(recipe.checkpoint) if recipe.checkpoint else None


def locate(name: str, weights: bool = True) -> str:
    """Where a model or a tokenizer lies: folder, file or repository on the Hub; a revision of one is downloaded.

    Args:
        name: What `hivg_hf.hub.resolve_model` knows, or a file.
        weights: Whether more than configurations will be read.
    """
    place = name if Path(name).is_file() else resolve_model(name)
    if "@" in place and not Path(place).exists():
        return str(download_checked(place) if weights else download_checked(place, patterns=["*.json"]))
    return place


def load_growing(
    source: str | Path, changes: Mapping[str, Any], kind: type[HiVGForVisualGrounding] = HiVGForVisualGrounding
) -> HiVGForVisualGrounding:
    """A model in float32 whose weights are whole; with changed config fields, bridge and head may have new ones.

    Args:
        source: Folder or Hub id.
        changes: Config fields that differ from the stored ones.
        kind: The class, whose own new parts a checkpoint of the plain class does not have.
    """
    grows = bool(changes) or kind is not HiVGForVisualGrounding
    return load_whole(
        kind,
        source,
        may_be_new=lambda name: grows and is_new_parameter(name),
        dtype=torch.float32,
        **changes,
    )


def _around_clip(clip: str, fields: Mapping[str, Any], kind: type[HiVGForVisualGrounding]) -> HiVGForVisualGrounding:
    """A new model around a CLIP folder or Hub id, or around an official CLIP file, from which the authors start."""
    if clip.endswith(OFFICIAL_SUFFIXES):
        if kind is not HiVGForVisualGrounding:
            raise ValueError(
                f"model.model_class needs a CLIP folder or Hub id, not the official file {clip}: make a folder of it "
                "with hivg convert."
            )
        return load_official_clip(clip, **fields)
    return kind.from_clip(clip, **{**fields, "dtype": torch.float32})


def build_processor(recipe: ModelRecipe, config: HiVGConfig) -> HiVGProcessor:
    """The checkpoint's own processor, or one that fits the config with the recipe's (or CLIP's) tokenizer."""
    if recipe.checkpoint and not recipe.tokenizer:
        return HiVGProcessor.from_pretrained(plain_checkpoint(recipe), trust_remote_code=False)
    return HiVGProcessor.for_config(config, load_tokenizer(recipe))


def load_tokenizer(recipe: ModelRecipe) -> Any:
    """The tokenizer that the recipe names, or CLIP's own."""
    if recipe.tokenizer == "refshapes":
        from hivg_hf.data.refshapes import build_tokenizer

        return build_tokenizer()
    source = recipe.tokenizer or recipe.clip
    if source is None or Path(source).is_file():
        raise ValueError("The file in model.clip has no tokenizer: name CLIP's folder or Hub id in model.tokenizer.")
    return AutoTokenizer.from_pretrained(source if Path(source).is_dir() else locate(source))
