"""What the bridges look at is the attention the model really uses, laid over the place it came from."""

import copy

import numpy as np
import PIL.Image
import pytest
import torch

from hivg_hf import HiVGForVisualGrounding, HiVGProcessor
from hivg_hf.visualize import bridge_attention, draw_bridge_attention


@pytest.fixture
def picture() -> PIL.Image.Image:
    return PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 60, 3), dtype=np.uint8))


def test_attention_of_each_computed_place_adds_up_to_one(
    tiny_model: HiVGForVisualGrounding, tiny_processor: HiVGProcessor, picture: PIL.Image.Image
) -> None:
    attention = bridge_attention(tiny_model, tiny_processor, picture, "The red")
    assert attention.words == ["[begin]", "the", "red", "[end]"]
    assert attention.layers == [1, 3]
    assert attention.maps.shape == (2, 4, 8, 8)
    total = attention.maps.sum(1)  # (L, G, G)
    computed = np.zeros((8, 8), dtype=bool)
    computed.reshape(-1)[tiny_processor(images=picture)["patch_index"][0]] = True
    assert 0 < computed.sum() < 64
    assert total[:, computed] == pytest.approx(1, abs=1e-5)
    assert not total[:, ~computed].any()


def test_maps_are_the_weights_that_the_model_records(
    tiny_model: HiVGForVisualGrounding, tiny_processor: HiVGProcessor, picture: PIL.Image.Image
) -> None:
    attention = bridge_attention(tiny_model, tiny_processor, picture, "the red")
    assert tiny_model.config._attn_implementation == "sdpa"
    eager = copy.deepcopy(tiny_model)
    eager.set_attn_implementation("eager")
    inputs = tiny_processor(images=picture, text="the red")
    weights = eager(**inputs, output_attentions=True).cross_attentions[1][0].mean(0)[1:]  # (P, T)
    found = attention.maps[1].reshape(4, 64)[:, inputs["patch_index"][0]].T
    assert np.allclose(found, weights.detach().numpy(), atol=1e-6)


def test_the_table_has_a_row_per_bridge_and_a_column_per_word(
    tiny_model: HiVGForVisualGrounding, tiny_processor: HiVGProcessor, picture: PIL.Image.Image
) -> None:
    attention = bridge_attention(tiny_model, tiny_processor, picture, "the red")
    table = draw_bridge_attention(picture, attention, tiny_processor.image_processor)
    assert table.width > 4 * 120
    assert table.height > 2 * 60
    longer = bridge_attention(tiny_model, tiny_processor, picture, "the red blue star")
    assert draw_bridge_attention(picture, longer, tiny_processor.image_processor).width > table.width


def test_a_model_without_bridges_says_so(
    tiny_model: HiVGForVisualGrounding, tiny_processor: HiVGProcessor, picture: PIL.Image.Image
) -> None:
    config = copy.deepcopy(tiny_model.config)
    config.bridge_layers = []
    with torch.device("meta"):
        model = HiVGForVisualGrounding(config)
    with pytest.raises(ValueError, match="has no bridges"):
        bridge_attention(model, tiny_processor, picture, "the red")
