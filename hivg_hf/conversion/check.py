"""Does a configuration fit an official file? What the file's shapes and its own arguments say, against the config.

The official code loads with `strict=False`, so that a wrong variant runs on random weights. Here every
disagreement is found before anything is loaded, and named.
"""

import re
from argparse import Namespace
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from .files import OfficialFile

if TYPE_CHECKING:
    from transformers import CLIPConfig

    from hivg_hf.modeling.configuration_hivg import HiVGConfig

# Fields that decide which numbers come out of the same weights, or which weights there are.
FIELDS_IN_ARGS = (
    "image_size",
    "bridge_layers",
    "bridge_text_source",
    "bridge_text_layers",
    "bridge_adaptive_weights",
    "visual_feature_layers",
    "fusion_layers",
    "fusion_heads",
    "fusion_ffn_dim",
    "fusion_pre_norm",
)
# Of no consequence without bridges.
BRIDGE_FIELDS = ("bridge_text_source", "bridge_text_layers", "bridge_adaptive_weights")


def config_for_file(
    file: OfficialFile,
    args: Namespace | Mapping[str, Any] | None,
    clip_config: "CLIPConfig | Mapping[str, Any] | None",
    overrides: Mapping[str, Any],
) -> "HiVGConfig":
    """The config that arguments describe, the file's own unless others are given.

    Raises:
        ValueError: there are no arguments, or they describe no official model.
    """
    from hivg_hf.modeling.configuration_hivg import HiVGConfig
    from hivg_hf.modeling.presets_hivg import OFFICIAL_LAYERS

    args = file.args if args is None else args
    if args is None:
        raise ValueError(
            f"{file.path} has no arguments that say which variant it is; give a config, for example "
            'HiVGConfig.preset("base-unc"), or the official arguments.'
        )
    if clip_config is None:
        model = (args if isinstance(args, Mapping) else vars(args)).get("model")
        if model not in OFFICIAL_LAYERS:
            raise ValueError(
                f"The arguments of {file.path} name the model {model!r}; the official code knows "
                f"{', '.join(OFFICIAL_LAYERS)}."
            )
        clip_config = published_clip_config(file, model)
    try:
        return HiVGConfig.from_official_args(args, clip_config, **overrides)
    except StrictDataclassError as error:  # the config's own checks, whose sentence stands in the cause
        raise ValueError(str(error.__cause__ or error)) from error


def published_clip_config(file: OfficialFile, model: str | None = None) -> dict[str, Any]:
    """The published CLIP whose shapes the file has.

    Args:
        file: the official file.
        model: the official name of it; None looks for the one that fits.

    Raises:
        ValueError: the file's CLIP has other shapes.
    """
    from hivg_hf.modeling.presets_hivg import PUBLISHED_CLIPS

    found = _clip_facts(file.weights)
    for name, config in PUBLISHED_CLIPS.items():
        if model in (None, name) and found == _clip_config_facts(config):
            return config
    wanted = "none of the published CLIPs" if model is None else f"not the published CLIP of {model}"
    raise ValueError(f"The CLIP in {file.path} is {wanted} ({_listed(found)}); give its configuration as clip_config.")


def check_fit(file: OfficialFile, config: "HiVGConfig", has_heads: bool, with_args: bool = True) -> None:
    """Compare a config with the file's own arguments and with its shapes.

    Args:
        file: the official file.
        config: what it is to be loaded as.
        has_heads: the file holds the heads too; without them only CLIP and bridges are compared.
        with_args: False where the caller gave other arguments on purpose.

    Raises:
        ValueError: they disagree; the message names each field with both values.
    """
    differences = [
        *(_args_differences(file, config) if with_args else ()),
        *_shape_differences(file, config, has_heads),
    ]
    if differences:
        raise ValueError(
            f"The configuration does not fit {file.path}: {'; '.join(dict.fromkeys(differences))}. Omit the config "
            "to load what the file describes itself, or choose the preset of its dataset and model."
        )


def _args_differences(file: OfficialFile, config: "HiVGConfig") -> list[str]:
    """Variants can share all shapes (one text layer, or projected text); the file's arguments tell them apart."""
    if file.args is None:
        return []
    from hivg_hf.modeling.presets_hivg import official_fields

    try:
        wanted = official_fields(file.args, config.clip_config)
    except ValueError:  # such as a data set of the user's own: then the config that was given decides
        return []
    ignored = BRIDGE_FIELDS if not wanted["bridge_layers"] and not config.bridge_layers else ()
    return [
        _difference(field, wanted[field], getattr(config, field))
        for field in FIELDS_IN_ARGS
        if field not in ignored and wanted[field] != getattr(config, field)
    ]


def _shape_differences(file: OfficialFile, config: "HiVGConfig", has_heads: bool) -> list[str]:
    found = _clip_facts(file.weights) | _bridge_facts(file.weights)
    wanted = _clip_config_facts(config.clip_config.to_dict()) | {
        "bridge_layers": config.bridge_layers,
        "number of bridge_text_layers": len(config.bridge_text_layers) if config.bridge_layers else None,
    }
    if config.bridge_text_source == "projection":  # then the file's gate is not read
        found.pop("number of bridge_text_layers"), wanted.pop("number of bridge_text_layers")
    if has_heads:
        found |= _head_facts(file.weights, found)
        wanted |= {
            "number of visual_feature_layers": len(config.visual_feature_layers),
            "patches and words": config.grid_size**2 + config.max_text_length,
            "fusion_layers": config.fusion_layers,
            "fusion_ffn_dim": config.fusion_ffn_dim,
            "fusion_pre_norm": config.fusion_pre_norm,
            "token_head_dim": config.token_head_dim,
        }
    elif not found["bridge_layers"]:  # a CLIP without bridges starts any model
        found.pop("bridge_layers"), wanted.pop("bridge_layers")
        found.pop("number of bridge_text_layers", None), wanted.pop("number of bridge_text_layers", None)
    # A fact that is None stands for a parameter that is not there, which the strict loading reports by its name.
    return [_difference(k, found[k], wanted[k]) for k in found if found[k] is not None and found[k] != wanted[k]]


def _clip_facts(weights: Mapping[str, Tensor]) -> dict[str, int | None]:
    """Widths, depths and sizes of the two towers, as the shapes show them."""
    patches = _size(weights, "clip.vision_model.embeddings.position_embedding.weight", 0)
    patch_size = _size(weights, "clip.vision_model.embeddings.patch_embedding.weight", 3)
    side = None if patches is None or patch_size is None else round((patches - 1) ** 0.5) * patch_size
    return {
        "text vocabulary": _size(weights, "clip.text_model.embeddings.token_embedding.weight", 0),
        "text width": _size(weights, "clip.text_model.embeddings.token_embedding.weight", 1),
        "text positions": _size(weights, "clip.text_model.embeddings.position_embedding.weight", 0),
        "text layers": len(_numbers(weights, r"clip\.text_model\.encoder\.layers\.(\d+)\.")),
        "vision width": _size(weights, "clip.vision_model.embeddings.patch_embedding.weight", 0),
        "vision layers": len(_numbers(weights, r"clip\.vision_model\.encoder\.layers\.(\d+)\.")),
        "patch size": patch_size,
        "CLIP image size": side,
        "projection_dim": _size(weights, "clip.text_projection.weight", 0),
    }


def _clip_config_facts(config: Mapping[str, Any]) -> dict[str, int | None]:
    """The same of a CLIP configuration."""
    text, vision = config["text_config"], config["vision_config"]
    return {
        "text vocabulary": text["vocab_size"],
        "text width": text["hidden_size"],
        "text positions": text["max_position_embeddings"],
        "text layers": text["num_hidden_layers"],
        "vision width": vision["hidden_size"],
        "vision layers": vision["num_hidden_layers"],
        "patch size": vision["patch_size"],
        "CLIP image size": vision["image_size"],
        "projection_dim": config["projection_dim"],
    }


def _bridge_facts(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    layers = _numbers(weights, r"clip\.vision_model\.encoder\.layers\.(\d+)\.cross_attn\.")
    states = _numbers(weights, r"clip\.vision_model\.encoder\.layers\.\d+\.cross_adaptive_weights\.(\d+)\.")
    return {"bridge_layers": layers, "number of bridge_text_layers": len(states) or None}


def _head_facts(weights: Mapping[str, Tensor], clip: Mapping[str, Any]) -> dict[str, Any]:
    levels, positions = _size(weights, "ml_visual_projection.weight", 1), _size(weights, "vl_pos_embed.weight", 0)
    width = clip["vision width"]
    return {
        "number of visual_feature_layers": None if levels is None or width is None else levels // width,
        "patches and words": None if positions is None else positions - 2,
        "fusion_layers": len(_numbers(weights, r"vl_transformer\.encoder\.layers\.(\d+)\.")),
        "fusion_ffn_dim": _size(weights, "vl_transformer.encoder.layers.0.linear1.weight", 0),
        "fusion_pre_norm": any(name.startswith("vl_transformer.encoder.norm.") for name in weights),
        "token_head_dim": _size(weights, "visu_token_mlp.fc1.weight", 0),
    }


def _size(weights: Mapping[str, Tensor], name: str, dim: int) -> int | None:
    tensor = weights.get(name)
    return tensor.shape[dim] if tensor is not None and tensor.ndim > dim else None


def _numbers(weights: Mapping[str, Tensor], pattern: str) -> list[int]:
    return sorted({int(match[1]) for match in (re.match(pattern, name) for name in weights) if match})


def _difference(field: str, found: Any, wanted: Any) -> str:
    return f"{field} is {found} in the file and {wanted} in the config"


def _listed(facts: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items())
