"""Layouts that were not recorded, against the reference that reproduces the recorded ones.

The layer lists stand here as numbers, so that the presets are checked and not repeated. Random files, tiny widths, the
true numbers of layers.
"""

from pathlib import Path

import pytest
import torch
from parity.official_cases import OfficialCase, made_case
from parity.parity_checks import assert_losses_match, assert_outputs_match, run_ours
from safetensors.torch import save_file

from benchmarks.speed.official_reference import OfficialLayers
from hivg_hf import HiVGConfig, HiVGForVisualGrounding, load_official_checkpoint

BASE, BASE_FEATURES = [0, 3, 7, 11], [1, 4, 8, 12]
LARGE, LARGE_FEATURES = [4, 10, 16, 22], [6, 12, 18, 24]
TWELVE = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]
MIXUP = {"dataset": "mixup", "mixup_pretrain": True, "enable_adaptive_weights": False}
WARMUP = {"model": "ViT-L/14", "warmup": True, "enable_adaptive_weights": False}

LAYOUTS = {
    "twelve text layers": (OfficialLayers(BASE, BASE_FEATURES, TWELVE), {"dataset": "gref_umd", "hi_lora_stage": 2}),
    "twelve text layers, google split": (OfficialLayers(BASE, BASE_FEATURES, TWELVE), {"dataset": "gref"}),
    "referit": (OfficialLayers(BASE, BASE_FEATURES, [6, 12]), {"dataset": "referit"}),
    "flickr": (OfficialLayers(BASE, BASE_FEATURES, [12]), {"dataset": "flickr", "hi_lora_stage": 1}),
    "B/32": (OfficialLayers(BASE, BASE_FEATURES, [12]), {"model": "ViT-B/32"}),
    "large": (OfficialLayers(LARGE, LARGE_FEATURES, [6, 12]), {"model": "ViT-L/14", "dataset": "unc+"}),
    "large, gref_umd, stage 3": (
        OfficialLayers(LARGE, LARGE_FEATURES, TWELVE),
        {"model": "ViT-L/14", "dataset": "gref_umd", "hi_lora_stage": 3},
    ),
    "large, mixed": (OfficialLayers(LARGE, LARGE_FEATURES, [12]), {"model": "ViT-L/14", **MIXUP, "hi_lora_stage": 3}),
    "large, warm-up": (OfficialLayers([], LARGE_FEATURES, [12]), {**WARMUP, "dataset": "unc"}),
    "large, warm-up, twelve text layers": (OfficialLayers([], LARGE_FEATURES, TWELVE), {**WARMUP, "dataset": "gref"}),
    "large, warm-up, mixed": (OfficialLayers([], LARGE_FEATURES, [12]), {**WARMUP, **MIXUP}),
    "large, width not recorded": (
        OfficialLayers(LARGE, LARGE_FEATURES, [12]),
        {"model": "ViT-L/14", "vl_hidden_dim": 512},  # hivg_train.py:132 overrules it
    ),
    "large at 336": (
        OfficialLayers([11, 15, 19, 23], [12, 16, 20, 24], [6, 12]),
        {"model": "ViT-L/14-336", "dataset": "referit"},
    ),
    "base, warm-up flag": (OfficialLayers(BASE, BASE_FEATURES, [12]), {"warmup": True}),  # which base never reads
    "larger images than CLIP's": (OfficialLayers(BASE, BASE_FEATURES, [12]), {"imsize": 112, "clip_image_size": 64}),
    "smaller images than CLIP's": (OfficialLayers(BASE, BASE_FEATURES, [12]), {"imsize": 48, "clip_image_size": 80}),
    "post-norm": (OfficialLayers(BASE, BASE_FEATURES, [12]), {"normalize_before": False}),
    "another fusion encoder": (
        OfficialLayers(BASE, BASE_FEATURES, [6, 12]),
        {"dataset": "unc+", "vl_enc_layers": 2, "vl_nheads": 4, "vl_dim_feedforward": 24},
    ),
}


def saved(case: OfficialCase, folder: Path) -> Path:
    save_file(case.state, folder / "official.safetensors")
    return folder / "official.safetensors"


def official_config(case: OfficialCase, **overrides: bool) -> HiVGConfig:
    return HiVGConfig.from_official_args(case.args, case.clip_config, **overrides)


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_layout(layout: str, tmp_path: Path) -> None:
    layers, options = LAYOUTS[layout]
    args = dict(options)
    if args.get("model") == "ViT-L/14" and args.get("vl_hidden_dim") is None:
        args["vl_hidden_dim"] = 16
    case = made_case(layers, **args)
    path = saved(case, tmp_path)

    model = load_official_checkpoint(path, official_config(case))
    ours, reference = run_ours(model, case), case.run(mixes_batch=False)
    assert_outputs_match(ours, reference)
    assert_losses_match(model, ours, case.losses(mixes_batch=False))
    assert reference.pred_boxes.std(0).max() > 1e-3  # else a constant would pass
    if layers.bridges:
        mixing = load_official_checkpoint(path, official_config(case, bridge_mixes_batch=True))
        assert_outputs_match(run_ours(mixing, case), case.run())
        assert (case.run().pred_boxes - reference.pred_boxes).abs().max() > 1e-4


@pytest.mark.parametrize("stage", range(4))
@torch.no_grad()
def test_every_stage_computes_the_same_from_the_same_weights(stage: int, tmp_path: Path) -> None:
    layers = OfficialLayers(BASE, BASE_FEATURES, [12])
    plain, nested = made_case(layers), made_case(layers, hi_lora_stage=stage)
    assert sum(name.count("base_model.model.") for name in nested.state) == (stage + 1) * sum(
        name.startswith("clip.") for name in plain.state
    )
    model = load_official_checkpoint(saved(nested, tmp_path), official_config(nested))
    assert_outputs_match(run_ours(model, nested), plain.run(mixes_batch=False))


@torch.no_grad()
def test_lora_matters_in_these_files(tmp_path: Path) -> None:
    """Each of text tower, vision tower and bridge: without its low-rank terms the boxes are others."""
    case = made_case(OfficialLayers(BASE, BASE_FEATURES, [12]))
    for part in ("text_model", "vision_model", "cross_attn"):
        without = made_case(case.layers)
        for name in without.state:
            if part in name and "lora_B" in name:
                without.state[name] = torch.zeros_like(without.state[name])
        assert (without.run().pred_boxes - case.run().pred_boxes).abs().max() > 1e-3


@pytest.mark.parametrize("padding", ["longest", "end token", "nothing"])
@torch.no_grad()
def test_no_padding_of_the_caller_changes_an_official_prediction(padding: str, tmp_path: Path) -> None:
    case = made_case(OfficialLayers(BASE, BASE_FEATURES, [12])).rows(0, 1)
    model: HiVGForVisualGrounding = load_official_checkpoint(saved(case, tmp_path), official_config(case))
    expected = run_ours(model, case).pred_boxes
    ids = case.inputs["input_ids"]
    inputs = {"pixel_values": case.inputs["pixel_values"], "pixel_mask": 1 - case.inputs["padding_mask"]}
    mask = (ids != 0).long()
    if padding == "longest":
        longest = int(mask.sum(1).max())
        ids, mask = ids[:, :longest], mask[:, :longest]
    elif padding == "end token":  # as transformers' CLIPTokenizer pads
        ids = torch.where(mask > 0, ids, 127)
    else:
        mask = None
    torch.testing.assert_close(model(input_ids=ids, attention_mask=mask, **inputs).pred_boxes, expected)
