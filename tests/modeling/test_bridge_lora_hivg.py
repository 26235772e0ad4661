"""`bridge_lora`: the authors' low-rank terms inside the bridges, which fold away."""

import copy

import pytest
import torch

from hivg_hf import HiVGConfig, HiVGForVisualGrounding
from hivg_hf.modeling.modeling_hivg import LowRankLinear


@pytest.fixture
def with_terms(tiny_model):
    config = copy.deepcopy(tiny_model.config)
    config.bridge_lora = True
    torch.manual_seed(0)
    model = HiVGForVisualGrounding(config).eval()
    assert not model.load_state_dict(tiny_model.state_dict(), strict=False).unexpected_keys
    return model


def answer(model):
    torch.manual_seed(1)
    inputs = {"input_ids": torch.arange(1, 10)[None], "pixel_values": torch.randn(1, 3, 64, 64)}
    return model(**inputs, labels=torch.tensor([[0.5, 0.5, 0.2, 0.2]]))


def move(model):
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, LowRankLinear):
                module.up.normal_(std=0.2)
    return model


def test_base_has_the_official_count_and_new_models_none():
    """786,432: 4 bridges x 4 projections x 2 x 32 x 768."""
    counts = {}
    for switched in (True, False):
        with torch.device("meta"):
            model = HiVGForVisualGrounding(HiVGConfig.preset("base-unc", bridge_lora=switched))
        counts[switched] = sum(p.numel() for p in model.parameters())
    assert counts[True] - counts[False] == 786_432
    assert not HiVGConfig.preset("base").bridge_lora


def test_a_fresh_term_changes_nothing_and_learns(with_terms, tiny_model):
    assert torch.equal(answer(with_terms).pred_boxes, answer(tiny_model).pred_boxes)
    terms = [module for module in with_terms.modules() if isinstance(module, LowRankLinear)]
    assert len(terms) == 2 * 4
    assert all(module.down.std() > 0 for module in terms)
    answer(with_terms).loss.backward()
    assert all(module.up.grad.abs().max() > 0 for module in terms)


def test_dropout_stands_before_the_term_while_training_alone(with_terms):
    move(with_terms)
    layer = next(module for module in with_terms.modules() if isinstance(module, LowRankLinear))
    x = torch.randn(2, 5, layer.in_features)
    assert torch.equal(layer(x), layer(x))
    layer.train()
    assert not torch.equal(layer(x), layer(x))


def test_folded_is_the_same_model_without_the_field(with_terms, tmp_path):
    moved = answer(move(with_terms)).pred_boxes
    assert not torch.allclose(moved, answer(move(copy.deepcopy(with_terms))).pred_boxes, atol=1e-5)
    with_terms.save_pretrained(tmp_path / "unfolded")
    torch.testing.assert_close(
        answer(HiVGForVisualGrounding.from_pretrained(tmp_path / "unfolded").eval()).pred_boxes, moved
    )
    with_terms.fold_bridge_lora().save_pretrained(tmp_path / "folded")
    again = HiVGForVisualGrounding.from_pretrained(tmp_path / "folded").eval()
    assert not again.config.bridge_lora
    assert not [name for name in again.state_dict() if name.endswith((".up", ".down"))]
    torch.testing.assert_close(answer(again).pred_boxes, moved, atol=1e-6, rtol=1e-6)
