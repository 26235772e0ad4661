"""What a recipe hands on to others, checked before anything is loaded: its names, and whether they apply at all."""

import dataclasses
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from hivg_hf.utils.plugins import find_plugin, is_code_name, load_code, plugin_names
from hivg_hf.utils.strict_mapping import check_plain_values, nearest, refuse_unknown

LOSS_PLUGINS = "hivg_hf.losses"  # the entry points by which other packages add losses and terms
MODEL_PLUGINS = "hivg_hf.models"
_ROW_KEYS = ("source", "split")


def check_config_fields(where: str, fields: Mapping[str, Any]) -> None:
    """Names of `HiVGConfig` fields and of loss terms among them, types, and values of those that have few."""
    from hivg_hf.modeling.configuration_hivg import CHOICES, HiVGConfig, check_choice

    refuse_unknown(fields, config_names(), where)
    check_plain_values(fields, HiVGConfig, where)
    for name in fields.keys() & CHOICES.keys():
        try:
            check_choice(name, fields[name])
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    if fields.get("clip_config") is not None:
        _check_clip_fields(f"{where}.clip_config", fields["clip_config"])
    if fields.get("loss_weights") is not None:
        check_loss_weights(f"{where}.loss_weights", fields["loss_weights"])


def config_names() -> list[str]:
    """Fields of `HiVGConfig` that a recipe may set."""
    from hivg_hf.modeling.configuration_hivg import HiVGConfig

    return list(HiVGConfig.__annotations__)


def check_preset(where: str, name: str | None) -> None:
    """The name of a preset, or None."""
    from hivg_hf.modeling.presets_hivg import PRESET_NAMES

    if name is not None and name not in PRESET_NAMES:
        raise ValueError(f"Unknown preset {name!r}, which {where} names: {nearest(name, PRESET_NAMES)}")


def _check_clip_fields(where: str, content: Any) -> None:
    """Names of the fields of CLIP's config and of its towers': any other name would be kept and never read."""
    from transformers import CLIPConfig, CLIPTextConfig, CLIPVisionConfig

    kinds = {"": CLIPConfig, ".text_config": CLIPTextConfig, ".vision_config": CLIPVisionConfig}
    for tower, kind in kinds.items():
        part = content.get(tower[1:], {}) if tower else content
        if not isinstance(part, Mapping):
            raise ValueError(f"{where}{tower} must be a mapping. Got {part!r}.")
        known = [field.name for field in dataclasses.fields(kind)]
        refuse_unknown(part, [*known, "model_type"], f"{where}{tower}")


def register_named_loss(name: str) -> bool:
    """Make a loss term known by its name: one of an installed package (entry point group `hivg_hf.losses`), or
    `package.module:function` where code is allowed.

    Returns:
        Whether there is one.

    Raises:
        ValueError: It is code, and nobody allowed code.
        ImportError: It cannot be imported.
    """
    from hivg_hf.modeling.loss_hivg import EXTRA_LOSSES, register_loss

    if name not in EXTRA_LOSSES:
        term = load_code(name, "a loss term") if is_code_name(name) else find_plugin(LOSS_PLUGINS, name)
        if term is not None:
            register_loss(name, term)
    return name in EXTRA_LOSSES


def find_model_class(name: str | None) -> type[Any]:
    """The class of a recipe's model: `HiVGForVisualGrounding`, or a subclass by its name (see `ModelRecipe`).

    Raises:
        ValueError: It is unknown, it is code and code is not allowed, or it is not such a class.
        ImportError: It cannot be imported.
    """
    from hivg_hf.modeling.modeling_hivg import HiVGForVisualGrounding

    if name is None:
        return HiVGForVisualGrounding
    found = load_code(name, "the model class") if is_code_name(name) else find_plugin(MODEL_PLUGINS, name)
    if found is None:
        known = ", ".join(plugin_names(MODEL_PLUGINS)) or "none"
        raise ValueError(
            f"model.model_class must be package.module:Class or what a package offers. Got {name!r}; installed: "
            f"{known}."
        )
    if not (isinstance(found, type) and issubclass(found, HiVGForVisualGrounding)):
        raise ValueError(f"model.model_class must be a subclass of HiVGForVisualGrounding. Got {name!r}: {found!r}.")
    return found


def check_loss_weights(where: str, weights: Any, kind: str = "heads", others_too: bool = False) -> None:
    """Names and values of loss weights; `pretrain` and `assisted` phases have losses of their own in `options`.

    Args:
        where: They stand, for messages.
        weights: Term to weight.
        kind: Of the phase.
        others_too: Whether terms from outside may be among them: in a phase, but not in a config, which is saved and
            opened where nobody knows such a term.
    """
    from hivg_hf.modeling.configuration_hivg import LOSS_NAMES
    from hivg_hf.training import assisted_grounding, pretraining

    known = {"pretrain": pretraining.LOSS_WEIGHTS, "assisted": assisted_grounding.LOSS_WEIGHTS}.get(kind, LOSS_NAMES)
    if not isinstance(weights, Mapping):
        raise ValueError(f"{where} must be a mapping. Got {weights!r}.")
    others = [name for name in weights if name not in known]
    if others_too:
        others = [name for name in others if not register_named_loss(str(name))]
    refuse_unknown(others, known, where)
    for name, weight in weights.items():
        is_number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
        if not is_number or not math.isfinite(weight) or weight < 0:
            raise ValueError(f"{where}.{name} must be a finite number of at least 0. Got {weight!r}.")


def check_options(where: str, kind: str, options: Mapping[str, Any]) -> None:
    """Options of a `pretrain` or `assisted` phase."""
    from hivg_hf.training.assisted_grounding import AssistedGrounding
    from hivg_hf.training.pretraining import PretrainingModel

    reader = PretrainingModel if kind == "pretrain" else AssistedGrounding
    refuse_unknown(options, _keywords(reader, "model"), where)
    if options.get("loss_weights") is not None:
        check_loss_weights(f"{where}.loss_weights", options["loss_weights"], kind)


def check_augmentation(where: str, options: Any) -> None:
    """Options of `GroundingAugmentation` beside what it takes from the processor."""
    from hivg_hf.data import GroundingAugmentation

    if not isinstance(options, Mapping):
        return
    refuse_unknown(options, augmentation_names(), where)
    try:
        GroundingAugmentation(size=224, **options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error


def augmentation_names() -> set[str]:
    """Options of `GroundingAugmentation` that a recipe may set; the others come from the processor."""
    from hivg_hf.data import GroundingAugmentation

    return _keywords(GroundingAugmentation, "size", "patch_size", "pad_align")


def check_rows(where: str, spec: Mapping[str, Any]) -> None:
    """A description of rows: source, split, and options that the source's reader takes."""
    from hivg_hf.data import Negatives
    from hivg_hf.data.loading import SHARD_OPTIONS, STREAM_OPTIONS, load_grounding_dataset
    from hivg_hf.data.readers import FORMATS, find_source
    from hivg_hf.data.readers.recognition import is_cache

    if not ("source" in spec and "split" in spec):
        raise ValueError(f"{where} needs `source` and `split`. Got the keys {sorted(spec)}.")
    source = str(spec["source"])
    shared = _keywords(load_grounding_dataset, "options", "allow_code")
    if source == "refshapes":
        from hivg_hf.data.refshapes import refshapes_dataset

        reader: Callable[..., Any] = refshapes_dataset
        known: Iterable[str] = {"source", "negatives", *_keywords(reader)}
    elif source == "mixture":
        from hivg_hf.data.loading import _load_mixture

        reader = _load_mixture
        known = {*shared, *_keywords(reader, "shared")}
        parts = spec.get("parts") or []
        if not isinstance(parts, list) or not all(isinstance(part, Mapping) for part in parts):
            raise ValueError(
                f"{where}.parts must be a list of descriptions of rows, each with a `source`. Got {parts!r}."
            )
        for number, part in enumerate(parts):
            content = {name: value for name, value in part.items() if name != "weight"}
            inherited = {name: spec[name] for name in ("split", "streaming") if name in spec}
            check_rows(f"{where}.parts[{number}]", {**inherited, **content})
    elif is_cache(Path(source)):
        reader, known = load_grounding_dataset, (*_ROW_KEYS, "negatives")
    else:
        is_streamed = bool(spec.get("streaming"))
        found = find_source(source, spec.get("format"), is_streamed)
        order = (SHARD_OPTIONS if found == FORMATS["shards"] else STREAM_OPTIONS) if is_streamed else ()
        reader = found.load()
        known = {"format", *shared, *order, *_keywords(reader)}
    refuse_unknown(spec, known, where)
    if spec.get("negatives") is not None:
        Negatives.read(spec["negatives"], f"{where}.negatives")
    check_plain_values(spec, load_grounding_dataset, where)
    check_plain_values(spec, reader, where)
    if spec.get("size") is not None and spec["size"] < 1:
        raise ValueError(f"{where}.size is the number of rows and must be at least 1. Got {spec['size']}.")
    if source == "refshapes":
        _check_refshapes(where, spec)


def _check_refshapes(where: str, spec: Mapping[str, Any]) -> None:
    """Values of the generator's options; `val+none` is two splits."""
    from hivg_hf.data.refshapes import refshapes_dataset
    from hivg_hf.data.refshapes.samples import SampleOptions
    from hivg_hf.data.splits import split_names

    defaults = {name: option.default for name, option in inspect.signature(refshapes_dataset).parameters.items()}
    options = {name: spec.get(name, defaults[name]) for name in _keywords(SampleOptions, "split")}
    for split in split_names(spec["split"]):
        try:
            SampleOptions(split, **options)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: {error}") from error


def _keywords(function: Callable[..., Any], *excluded: str) -> set[str]:
    return {name for name in inspect.signature(function).parameters if name not in excluded}
