"""Floating point operations of the presets: what they are, and that they never grow unnoticed.

Counted on the meta device, where nothing is computed, with eager attention (the counter does not see sdpa on a CPU).
"""

import copy

import pytest
import torch
from torch import nn
from transformers.initialization import no_init_weights

from benchmarks.speed import count_operations
from benchmarks.speed.inputs import random_batch
from benchmarks.speed.straightforward import merge_random_adapters
from hivg_hf import HiVGConfig, HiVGForVisualGrounding

# The official base forward for one image and 77 tokens, adapters unmerged, all outputs.
OFFICIAL_GFLOP = 74.9

OFFICIAL_336 = {"skip_padded_patches": False, "bridge_mask_padding": False, "pad_align": "pixel"}
OFFICIAL_336 |= {"bridge_layers": [11, 15, 19, 23], "visual_feature_layers": [12, 16, 20, 24]}

# The official weights have no score, and the similarity score reads every patch.
BOX = {"output_scores": False}
MASK = {"output_masks": True, "output_scores": False}
ALL = {"output_masks": True, "output_token_logits": True}


def meta_model(name: str, **changes: object) -> HiVGForVisualGrounding:
    with torch.device("meta"):
        return HiVGForVisualGrounding(HiVGConfig.preset(name, **changes)).eval()


def meta_batch(config: HiVGConfig, tokens: int) -> dict[str, torch.Tensor]:
    words = torch.ones(1, tokens, dtype=torch.long, device="meta")
    pixels = torch.empty(1, 3, config.image_size, config.image_size, device="meta")
    return {"input_ids": words, "attention_mask": words, "pixel_values": pixels}


def gflop(model: nn.Module, batch: dict[str, torch.Tensor], outputs: dict[str, bool]) -> float:
    with torch.no_grad():
        return count_operations(lambda: model(**batch, **outputs), [model]) / 1e9


@pytest.mark.parametrize(("outputs", "share"), [(BOX, 0.83), (MASK, 0.855), (ALL, 0.87)])
def test_official_base_does_at_most_this_share_of_the_official_operations(outputs, share):
    model = meta_model("base-unc")
    count = gflop(model, meta_batch(model.config, 77), outputs)
    assert 0.5 * OFFICIAL_GFLOP < count <= share * OFFICIAL_GFLOP


def test_the_straightforward_version_does_the_official_operations():
    model = meta_model("base-unc")
    plain = merge_random_adapters(model)
    batch = {**meta_batch(model.config, 77), "pixel_mask": torch.ones(1, 224, 224, dtype=torch.long, device="meta")}
    assert count_operations(lambda: plain(batch)) / 1e9 == pytest.approx(OFFICIAL_GFLOP, rel=2e-3)


def test_a_new_base_model_does_at_most_this_share_for_a_photograph_and_eight_tokens():
    """On the CPU, because a patch index is read; weights are never written, so their memory is never touched."""
    with no_init_weights():
        model = HiVGForVisualGrounding(HiVGConfig.preset("base")).eval()
    batch = random_batch(model.config, 1)
    assert batch["input_ids"].shape == (1, 8)
    assert batch["patch_index"].shape == (1, 11 * 14)
    count = gflop(model, batch, BOX)
    assert 0.4 * OFFICIAL_GFLOP < count <= 0.57 * OFFICIAL_GFLOP


@pytest.mark.parametrize(
    ("name", "changes", "share"),
    [
        ("large-336", OFFICIAL_336, 0.725),
        ("base", {"bridge_layers": [0, 3, 7, 11]}, 0.985),
        ("base", {}, 0.74),
        ("large", {}, 0.70),
    ],
)
def test_four_expressions_of_one_image_cost_at_most_this_share_of_four_answers(name, changes, share):
    """11 of 24 vision layers precede the first bridge of the official ViT-L/14-336, half of a new model's, and of
    official base one self-attention."""
    model = meta_model(name, **changes)
    four = meta_batch(model.config, 10)
    four = {key: value.expand(4, *value.shape[1:]) for key, value in four.items()}
    one_image = {**four, "pixel_values": four["pixel_values"][:1]}
    one_image["image_index"] = torch.zeros(4, dtype=torch.long, device="meta")
    shared, apart = gflop(model, one_image, BOX), gflop(model, four, BOX)
    assert 0.5 * apart < shared <= share * apart


# GFLOP for box; box and mask; box, mask and token logits. One full square of patches, all text positions.
COUNTS = {
    "base-unc": (62.061, 63.262, 64.495),
    "base-gref_umd": (64.725, 65.926, 67.159),
    "base-mixup": (61.879, 63.080, 64.313),
    "base": (62.303, 63.504, 64.737),
    "large-unc": (222.053, 224.665, 227.081),
    "large": (222.537, 225.149, 227.566),
    "large-336": (495.308, 501.616, 507.053),
}


@pytest.mark.parametrize("name", COUNTS)
def test_each_preset_does_the_operations_that_it_did(name):
    """A change that saves operations writes its number here; one that adds some has to say why."""
    model = meta_model(name)
    batch = meta_batch(model.config, model.config.max_text_length)
    counts = [gflop(model, batch, outputs) for outputs in (BOX, MASK, ALL)]
    assert counts == pytest.approx(COUNTS[name], rel=1e-3)


def test_terms_without_weight_cost_nothing(tiny_config):
    def step_operations(**weights: float) -> int:
        config = copy.deepcopy(tiny_config)
        config.loss_weights = {**config.loss_weights, **weights}
        model = HiVGForVisualGrounding(config)
        batch = random_batch(config, 2, labels=True)
        return count_operations(lambda: model(**batch).loss.backward(), [model])

    everything = step_operations()
    without_masks = step_operations(mask_focal=0, mask_dice=0)
    boxes_only = step_operations(mask_focal=0, mask_dice=0, token_focal=0, token_dice=0)
    assert boxes_only < without_masks < everything


def test_frozen_layers_below_the_first_trained_one_store_nothing_for_the_backward_pass(tiny_model):
    model = copy.deepcopy(tiny_model).train().requires_grad_(False)
    layers = model.clip.vision_model.encoder.layers
    first_trained = layers[-1].requires_grad_(True)
    model.grounding_head.requires_grad_(True)
    stored: list[int] = []
    stored_before: list[int] = []
    first_trained.register_forward_pre_hook(lambda *_: stored_before.append(len(stored)))

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        stored.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(**random_batch(model.config, 2, labels=True)).loss.backward()
    assert stored_before == [0]
    assert stored
