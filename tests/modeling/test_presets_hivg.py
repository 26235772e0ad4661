"""The presets against the published numbers, written here once more; and what official arguments cannot be."""

import argparse
import copy
from typing import Any

import pytest
import torch
from transformers import CLIPConfig

from hivg_hf import HiVGConfig, HiVGForVisualGrounding
from hivg_hf.modeling.presets_hivg import CLIP_BASE, CLIP_LARGE, CLIP_LARGE_336, PRESET_NAMES, preset_fields

TWELVE = list(range(1, 13))
OFFICIAL = {"model": "ViT-B/16", "dataset": "unc", "enable_adaptive_weights": True, "normalize_before": True}


def official(**args: Any) -> HiVGConfig:
    args = {**OFFICIAL, **args}
    large = args["model"].startswith("ViT-L")
    return HiVGConfig.from_official_args({"vl_hidden_dim": 768 if large else 512, **args}, clip_of(args["model"]))


def clip_of(model: str) -> dict[str, Any]:
    clip = copy.deepcopy({"ViT-L/14": CLIP_LARGE, "ViT-L/14-336": CLIP_LARGE_336}.get(model, CLIP_BASE))
    if model == "ViT-B/32":
        clip["vision_config"]["patch_size"] = 32
    return clip


@pytest.mark.parametrize("name", PRESET_NAMES)
def test_every_preset_is_a_config(name: str) -> None:
    assert HiVGConfig.preset(name).patch_size in (12, 14, 16)


def test_the_published_variants_are_there() -> None:
    datasets = ("unc", "unc+", "gref_umd", "referit", "flickr", "mixup")
    variants = {f"{size}-{dataset}" for size in ("base", "large") for dataset in datasets}
    assert {"tiny", "base", "large", "large-336"} | variants <= set(PRESET_NAMES)


@pytest.mark.parametrize("size", ["base", "large", "large-336"])
def test_a_new_model_has_as_many_bridges_as_the_official_one_and_none_in_the_lower_half(size: str) -> None:
    new = HiVGConfig.preset(size)
    depth = new.clip_config.vision_config.num_hidden_layers
    assert depth // 2 - 1 <= min(new.bridge_layers) < max(new.bridge_layers) == depth - 1
    assert len(new.bridge_layers) == 4
    if size != "large-336":
        assert new.visual_feature_layers == HiVGConfig.preset(f"{size}-unc").visual_feature_layers


@pytest.mark.parametrize("size", ["base", "large"])
@pytest.mark.parametrize(
    ("dataset", "text_layers"),
    [("unc", [12]), ("unc+", [6, 12]), ("gref_umd", TWELVE), ("referit", [6, 12]), ("flickr", [12]), ("mixup", [12])],
)
def test_layers_of_the_variants(size: str, dataset: str, text_layers: list[int]) -> None:
    config = HiVGConfig.preset(f"{size}-{dataset}")
    layers = ([0, 3, 7, 11], [1, 4, 8, 12]) if size == "base" else ([4, 10, 16, 22], [6, 12, 18, 24])
    assert (config.bridge_layers, config.visual_feature_layers) == layers
    assert config.bridge_text_layers == text_layers
    assert config.bridge_text_source == ("projection" if dataset == "mixup" else "hidden_states")
    assert config.bridge_adaptive_weights == (dataset != "mixup")


@pytest.mark.parametrize(
    ("name", "millions"),
    # Of CLIP and of the bridges with one, two and twelve text layers; a bridge's LoRA is merged and does not count.
    [
        ("base-unc", (149.6, 30.08)),
        ("base-unc+", (149.6, 31.81)),
        ("base-gref_umd", (149.6, 49.12)),
        ("large-unc", (427.6, 53.76)),
        ("large-unc+", (427.6, 57.15)),
        ("large-gref_umd", (427.6, 90.97)),
    ],
)
def test_parameter_counts(name: str, millions: tuple[float, float]) -> None:
    with torch.device("meta"):
        model = HiVGForVisualGrounding(HiVGConfig.preset(name))
    counts = {"clip": 0, "bridge": 0}
    for parameter_name, parameter in model.named_parameters():
        if not parameter_name.startswith("grounding_head"):
            counts["bridge" if ".bridge." in parameter_name else "clip"] += parameter.numel()
    assert (counts["clip"] / 1e6, counts["bridge"] / 1e6) == pytest.approx(millions, rel=2e-3)


def test_other_official_models() -> None:
    assert official(model="ViT-B/32").bridge_layers == [0, 3, 7, 11]
    at_336 = official(model="ViT-L/14-336", imsize=336)
    assert (at_336.bridge_layers, at_336.visual_feature_layers) == ([11, 15, 19, 23], [12, 16, 20, 24])
    assert official(model="ViT-L/14", warmup=True, enable_adaptive_weights=False).bridge_layers == []
    assert official(warmup=True).bridge_layers == [0, 3, 7, 11]  # base never reads the flag


def test_a_namespace_and_a_dict_say_the_same() -> None:
    from_dict = HiVGConfig.from_official_args(OFFICIAL, CLIP_BASE)
    from_namespace = HiVGConfig.from_official_args(argparse.Namespace(**OFFICIAL, lr=1e-4), CLIPConfig(**CLIP_BASE))
    assert from_dict.to_diff_dict() == from_namespace.to_diff_dict()


def test_the_fusion_encoder_is_as_the_arguments_say() -> None:
    config = official(
        vl_enc_layers=3, vl_nheads=4, vl_dim_feedforward=100, vl_dropout=0.2, normalize_before=False, imsize=320
    )
    assert (config.fusion_layers, config.fusion_heads, config.fusion_ffn_dim) == (3, 4, 100)
    assert (config.fusion_dropout, config.fusion_pre_norm, config.image_size) == (0.2, False, 320)
    assert config.clip_config.vision_config.image_size == 224  # CLIP's own; its positions are interpolated


def test_overrides() -> None:
    config = HiVGConfig.from_official_args(OFFICIAL, CLIP_BASE, bridge_mixes_batch=True, score="head")
    assert config.bridge_mixes_batch
    assert config.score == "head"


def test_configs_share_no_lists() -> None:
    first, second = preset_fields("base-unc"), preset_fields("base-unc")
    first["bridge_layers"].append(99)
    first["clip_config"]["text_config"]["vocab_size"] = 1
    assert second["bridge_layers"] == [0, 3, 7, 11]
    assert preset_fields("base")["clip_config"]["text_config"]["vocab_size"] == 49408


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            {"model": "RN50"},
            "name the model 'RN50'; the official code knows ViT-B/16, ViT-B/32, ViT-L/14, ViT-L/14-336",
        ),
        ({"dataset": "coco"}, "name the dataset 'coco'.*the official code knows unc, unc\\+"),
        ({"mixup_pretrain": True}, "contradict each other: mixup_pretrain feeds"),
        ({"enable_adaptive_weights": False}, "contradict each other: with neither"),
        ({"imsize": 230}, "imsize is 230, which is not a multiple of the patch size 16"),
        ({"max_query_len": 40}, "max_query_len is 40, but the official code always reads"),
        ({"vl_hidden_dim": 256}, "vl_hidden_dim is 256, but the fusion encoder reads CLIP's joint space of 512"),
    ],
)
def test_arguments_that_describe_no_official_model(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        official(**args)


def test_arguments_that_say_too_little() -> None:
    with pytest.raises(ValueError, match="do not say model and dataset"):
        HiVGConfig.from_official_args({}, CLIP_BASE)


def test_a_clip_that_is_not_the_arguments_own() -> None:
    with pytest.raises(ValueError, match="vl_hidden_dim is 512, but the fusion encoder reads CLIP's"):
        HiVGConfig.from_official_args(OFFICIAL, CLIP_LARGE)
    with pytest.raises(Exception, match=r"`bridge_layers` must be increasing layer numbers from 0 to 11"):
        HiVGConfig.from_official_args({**OFFICIAL, "model": "ViT-L/14"}, CLIP_BASE)
