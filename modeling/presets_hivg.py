"""Values of every shape and published variant of HiVG: plain dicts of `HiVGConfig` fields, each with its source.

`preset_fields(name)` answers `HiVGConfig.preset`, `official_fields(args, clip_config)` answers
`HiVGConfig.from_official_args`. The official variants have one path: a named one is what the official arguments of its
training script describe.

Sources: "HiVG.py", "hivg_train.py" and "vl_transformer.py" are files of github.com/linhuixiao/HiVG (commit 51f9233);
"OpenAI CLIP" is the published configuration of that checkpoint.
"""

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from transformers import CLIPConfig

# OpenAI CLIP ViT-B/16: 12 layers of 768 (vision) and of 512 (text), joint space of 512.
CLIP_BASE: dict[str, Any] = {
    "projection_dim": 512,
    "text_config": {
        "vocab_size": 49408,
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "max_position_embeddings": 77,
        "projection_dim": 512,
        "bos_token_id": 49406,
        "eos_token_id": 49407,
    },
    "vision_config": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 224,
        "patch_size": 16,
        "projection_dim": 512,
    },
}

# OpenAI CLIP ViT-L/14: 24 layers of 1024 (vision), 12 layers of 768 (text), joint space of 768.
CLIP_LARGE: dict[str, Any] = {
    "projection_dim": 768,
    "text_config": {
        **CLIP_BASE["text_config"],
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "projection_dim": 768,
    },
    "vision_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 14,
        "projection_dim": 768,
    },
}

# OpenAI CLIP ViT-L/14@336px differs from ViT-L/14 in its image size alone.
CLIP_LARGE_336 = {**CLIP_LARGE, "vision_config": {**CLIP_LARGE["vision_config"], "image_size": 336}}

# OpenAI CLIP ViT-B/32 differs from ViT-B/16 in its patch size alone.
CLIP_BASE_32 = {**CLIP_BASE, "vision_config": {**CLIP_BASE["vision_config"], "patch_size": 32}}

# By the names of the official `model` argument.
PUBLISHED_CLIPS = {
    "ViT-B/16": CLIP_BASE,
    "ViT-B/32": CLIP_BASE_32,
    "ViT-L/14": CLIP_LARGE,
    "ViT-L/14-336": CLIP_LARGE_336,
}

# A CLIP small enough to train from nothing on two CPU cores; its text part is sized for the RefShapes vocabulary.
CLIP_TINY: dict[str, Any] = {
    "projection_dim": 128,
    "text_config": {
        "vocab_size": 691,  # hivg_hf.data.refshapes.tokenizer
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 77,
        "projection_dim": 128,
        "bos_token_id": 689,
        "eos_token_id": 690,
    },
    "vision_config": {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "image_size": 112,
        "patch_size": 14,
        "projection_dim": 128,
    },
}

# Fusion encoder, hivg_train.py:64-73: six layers of eight heads, FFN 2048, dropout 0.1; ReLU, vl_transformer.py:93.
# The activation is not an argument of the official code; TOKEN_MLP's width of 3072 neither (HiVG.py:757).
OFFICIAL_FUSION = {
    "fusion_layers": 6,
    "fusion_heads": 8,
    "fusion_ffn_dim": 2048,
    "fusion_dropout": 0.1,
    "fusion_activation": "relu",
    "fusion_pre_norm": True,
    "token_head_dim": 3072,
}

# Layers by the official `model` argument. Bridges (`adapt_layer`) count vision layers from 0; features
# (`extract_vision_layer`) count hidden states, where 0 is the embedding. HiVG.py:655-683.
OFFICIAL_LAYERS = {
    "ViT-B/16": {"bridge_layers": [0, 3, 7, 11], "visual_feature_layers": [1, 4, 8, 12]},
    "ViT-B/32": {"bridge_layers": [0, 3, 7, 11], "visual_feature_layers": [1, 4, 8, 12]},
    "ViT-L/14": {"bridge_layers": [4, 10, 16, 22], "visual_feature_layers": [6, 12, 18, 24]},
    "ViT-L/14-336": {"bridge_layers": [11, 15, 19, 23], "visual_feature_layers": [12, 16, 20, 24]},
}

# Text hidden states that feed the bridges, by the official `dataset` argument; HiVG.py:686-699.
OFFICIAL_TEXT_LAYERS = {
    "unc": [12],
    "unc+": [6, 12],
    "gref": list(range(1, 13)),
    "gref_umd": list(range(1, 13)),
    "referit": [6, 12],
    "flickr": [12],
    "mixup": [12],
}

OFFICIAL_LOSS_WEIGHTS = {  # utils/loss_utils.py:188-235
    "bbox": 2.0,
    "giou": 2.0,
    "contrastive": 1.0,
    "token_focal": 20.0,
    "token_dice": 2.0,
    "mask_focal": 20.0,
    "mask_dice": 2.0,
}

# The official terms, and the score of ours: official weights hold none.
LOSS_NAMES = (*OFFICIAL_LOSS_WEIGHTS, "score")

# What the official code computes where a new model does better; the reasons stand at the fields of HiVGConfig.
OFFICIAL_BEHAVIOR = {
    "bridge_mask_padding": False,  # no text mask reaches the bridge, HiVG.py:430-456
    "bridge_text_norm": False,  # hidden states are concatenated as they are, HiVG.py:437-443
    "bridge_mixes_batch": False,  # the official code mixes (HiVG.py:444 with :162), predictions should not
    "initialization": "official",  # torch's defaults outside the fusion encoder, HiVG.py:731-767
    "adaptive_weight_init": 1.0,  # nn.Embedding's N(0, 1), HiVG.py:393
    "pad_align": "pixel",  # centered padding, datasets/transforms.py
    "skip_padded_patches": False,  # CLIP sees the padding, HiVG.py:930
    "image_normalization": "imagenet",  # datasets/transforms.py:262
    "score": "similarity",  # official weights have no score head
    "token_target": "nearest",  # one pixel per patch, utils/loss_utils.py:219
    "text_pad_id": 0,  # clip.tokenize fills with zeros, HiVG.py:906
    "contrastive_ignore_duplicates": False,  # plain cross-entropy over the batch, utils/loss_utils.py:135-141
    "contrastive_gather": False,  # the batch of one process, utils/loss_utils.py:135-141
    "loss_weights": OFFICIAL_LOSS_WEIGHTS,
}

# Shapes for new models: bridges in the upper half of the vision tower, whose lower half then runs once for all
# expressions of an image (four cost 0.74 of four answers in base, 0.70 in large), and which ground as well as bridges
# from the first layer on (docs/refshapes-study.md, part 3); two text states (the middle one and the last; with a norm
# per state, more states help and twelve make each bridge 1.6 times as large); and the correct behavior, HiVGConfig's
# own defaults. The bridges of "tiny" are those of the shipped checkpoint, trained before that was measured.
NEW_MODELS: dict[str, dict[str, Any]] = {
    "tiny": {
        "clip_config": CLIP_TINY,
        "image_size": 112,
        "bridge_layers": [0, 2, 4, 5],
        "visual_feature_layers": [1, 3, 5, 6],
        "bridge_text_layers": [3],
        "fusion_layers": 3,
        "fusion_heads": 4,
        "fusion_ffn_dim": 512,
        "fusion_dropout": 0.0,
        "fusion_positions": "tokens",  # no pre-trained tower puts places into its patches
        "token_head_dim": 256,
    },
    "base": {
        "clip_config": CLIP_BASE,
        "image_size": 224,
        "bridge_text_layers": [6, 12],
        **OFFICIAL_LAYERS["ViT-B/16"],
        "bridge_layers": [6, 8, 10, 11],
        **OFFICIAL_FUSION,
    },
    "large": {
        "clip_config": CLIP_LARGE,
        "image_size": 224,
        "bridge_text_layers": [6, 12],
        **OFFICIAL_LAYERS["ViT-L/14"],
        "bridge_layers": [12, 16, 20, 23],
        **OFFICIAL_FUSION,
    },
    "large-336": {
        "clip_config": CLIP_LARGE_336,
        "image_size": 336,
        "bridge_text_layers": [6, 12],
        **OFFICIAL_LAYERS["ViT-L/14-336"],
        **OFFICIAL_FUSION,
    },
}

# Published variants, as arguments of the official training scripts (train_and_eval_script/*.sh). `--normalize_before`
# is in all of them; `--enable_adaptive_weights` in those of a single dataset, `--mixup_pretrain` in the mixed ones.
OFFICIAL_VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    f"{size}-{dataset}": (
        {
            "model": model,
            "dataset": dataset,
            "mixup_pretrain": dataset == "mixup",
            "enable_adaptive_weights": dataset != "mixup",
            "normalize_before": True,
            "vl_hidden_dim": clip_config["projection_dim"],
        },
        clip_config,
    )
    for size, model, clip_config in (("base", "ViT-B/16", CLIP_BASE), ("large", "ViT-L/14", CLIP_LARGE))
    for dataset in OFFICIAL_TEXT_LAYERS
}

PRESET_NAMES = (*NEW_MODELS, *OFFICIAL_VARIANTS)


def preset_fields(name: str, **overrides: Any) -> dict[str, Any]:
    """Fields of `HiVGConfig` for a shape by name.

    Args:
        name: `"tiny"`, `"base"`, `"large"`, `"large-336"` for new models, or an official variant such as `"base-unc"`,
            `"base-unc+"`, `"base-gref_umd"`, `"base-referit"`, `"base-flickr"`, `"base-mixup"`, the same for large.
        overrides: fields to set otherwise.

    Raises:
        ValueError: no preset of that name.
    """
    if name in NEW_MODELS:
        return {**_copy(NEW_MODELS[name]), **overrides}
    if name in OFFICIAL_VARIANTS:
        args, clip_config = OFFICIAL_VARIANTS[name]
        return {**official_fields(args, _copy(clip_config)), **overrides}
    raise ValueError(f"Unknown preset {name!r}; choose one of {', '.join(PRESET_NAMES)}.")


def official_fields(
    args: Namespace | Mapping[str, Any], clip_config: CLIPConfig | Mapping[str, Any], **overrides: Any
) -> dict[str, Any]:
    """Fields of `HiVGConfig` for the model that the official code builds from its command line.

    An argument that is absent has the default of the official parser (hivg_train.py:21-125), except `model` and
    `dataset`, which decide the architecture. Arguments that do not shape the computation are ignored.

    Args:
        args: the namespace that an official checkpoint holds under `args`, or a dict of the same names.
        clip_config: the CLIP that the official code loads for `args.model`, as a `CLIPConfig` or a dict of one.
        overrides: fields to set otherwise, such as `bridge_mixes_batch=True` for the official batched figures.

    Raises:
        ValueError: an argument has a value that no official model has, or arguments contradict each other, or the
            CLIP configuration contradicts them.
    """
    values = dict(args) if isinstance(args, Mapping) else vars(args)
    clip = clip_config if isinstance(clip_config, CLIPConfig) else CLIPConfig(**clip_config)
    _check_official_args(values, clip)
    model, mixup = values["model"], bool(values.get("mixup_pretrain", False))
    layers = _copy(OFFICIAL_LAYERS[model])
    if model == "ViT-L/14" and values.get("warmup", False):  # only this model reads the flag, HiVG.py:665
        layers["bridge_layers"] = []
    return {
        "clip_config": clip_config if isinstance(clip_config, CLIPConfig) else dict(clip_config),
        "image_size": values.get("imsize", 224),
        **layers,
        "bridge_text_layers": [12] if mixup else list(OFFICIAL_TEXT_LAYERS[values["dataset"]]),
        # Mixed pre-training feeds the bridges the projected final states instead, HiVG.py:920-921 and :445.
        "bridge_text_source": "projection" if mixup else "hidden_states",
        "bridge_adaptive_weights": not mixup,
        **OFFICIAL_FUSION,
        "fusion_layers": values.get("vl_enc_layers", 6),
        "fusion_heads": values.get("vl_nheads", 8),
        "fusion_ffn_dim": values.get("vl_dim_feedforward", 2048),
        "fusion_dropout": values.get("vl_dropout", 0.1),
        "fusion_pre_norm": bool(values.get("normalize_before", False)),
        **_copy(OFFICIAL_BEHAVIOR),
        **overrides,
    }


def _check_official_args(values: Mapping[str, Any], clip: CLIPConfig) -> None:
    """Refuse, with one sentence, what the official code could not have built or run."""
    absent = [name for name in ("model", "dataset") if name not in values]
    if absent:
        raise ValueError(
            f"The official arguments do not say {' and '.join(absent)}, which decide the architecture; "
            'give them, for example {"model": "ViT-B/16", "dataset": "unc"}.'
        )
    model, dataset, image_size = values["model"], values["dataset"], values.get("imsize", 224)
    if model not in OFFICIAL_LAYERS:
        raise ValueError(
            f"The official arguments name the model {model!r}; the official code knows {', '.join(OFFICIAL_LAYERS)}."
        )
    if dataset not in OFFICIAL_TEXT_LAYERS:
        raise ValueError(
            f"The official arguments name the dataset {dataset!r}, which decides the text layers of the bridge; "
            f"the official code knows {', '.join(OFFICIAL_TEXT_LAYERS)}."
        )
    mixup, adaptive = values.get("mixup_pretrain", False), values.get("enable_adaptive_weights", False)
    has_bridges = not (model == "ViT-L/14" and values.get("warmup", False))
    if mixup and adaptive:
        raise ValueError(
            "The official arguments contradict each other: mixup_pretrain feeds the bridges projected text, "
            "enable_adaptive_weights feeds them weighted text states; set one of the two to False."
        )
    if has_bridges and not mixup and not adaptive:
        raise ValueError(
            "The official arguments contradict each other: with neither enable_adaptive_weights nor mixup_pretrain "
            "(False is the official default of both) the official bridge has no projection for its text; set one."
        )
    _check_official_shapes(values, clip, model, image_size)


def _check_official_shapes(values: Mapping[str, Any], clip: CLIPConfig, model: str, image_size: int) -> None:
    """Refuse a CLIP configuration that is not the one the official arguments were used with."""
    patch, text = clip.vision_config.patch_size, clip.text_config
    if image_size % patch:
        raise ValueError(f"imsize is {image_size}, which is not a multiple of the patch size {patch}.")
    length = values.get("max_query_len", 77)
    if length != text.max_position_embeddings:
        raise ValueError(
            f"max_query_len is {length}, but the official code always reads as many tokens as CLIP has text "
            f"positions, {text.max_position_embeddings}."
        )
    # hivg_train.py:132-133 sets the width of ViT-L/14 whatever the command line said; for the others it must fit.
    width = values.get("vl_hidden_dim", 512)
    if model != "ViT-L/14" and width != clip.projection_dim:
        raise ValueError(
            f"vl_hidden_dim is {width}, but the fusion encoder reads CLIP's joint space of {clip.projection_dim}."
        )


def _copy(value: Any) -> Any:
    """Deep copy of nested dicts and lists, so that no configuration shares the tables of this file."""
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return list(value) if isinstance(value, list) else value
