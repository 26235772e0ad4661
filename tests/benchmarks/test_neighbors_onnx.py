"""Neighbors in onnxruntime: small models of the same architectures export and answer as torch does."""

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    Owlv2Config,
    Owlv2ForObjectDetection,
    SwinConfig,
)

from benchmarks.speed.neighbors_onnx import OUTPUTS, onnx_cases

pytest.importorskip("onnxruntime")


def small_grounding_dino():
    swin = SwinConfig(image_size=64, patch_size=4, embed_dim=12, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1])
    swin.window_size, swin.out_features = 4, ["stage2", "stage3", "stage4"]
    bert = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    config = GroundingDinoConfig(
        backbone_config=swin, text_config=bert, d_model=32, encoder_layers=1, decoder_layers=2, num_queries=340
    )
    config.encoder_ffn_dim = config.decoder_ffn_dim = 16
    ids = torch.tensor([[101, 2000, 2001, 1012, 102]])
    model = GroundingDinoForObjectDetection(config)
    # All 340 places become queries, alike but for where they begin: only their order depends on how sums are rounded.
    torch.nn.init.zeros_(model.model.query_position_embeddings.weight)
    return model, torch.randn(1, 3, 128, 128), ids  # a coarsest map of one row would divide by 0


def small_owlv2():
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**text, "image_size": 64, "patch_size": 16}
    config = Owlv2Config(projection_dim=16, text_config=text, vision_config=vision)
    return Owlv2ForObjectDetection(config), torch.randn(1, 3, 64, 64), torch.randint(1, 40000, (1, 16))


@pytest.mark.parametrize("build", [small_grounding_dino, small_owlv2])
def test_the_graph_answers_as_torch_does(build, tmp_path):
    torch.manual_seed(0)
    model, pixels, ids = build()
    model.eval()
    inputs = {"pixel_values": pixels, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    plain, small = onnx_cases("other", model, inputs, tmp_path)
    assert [plain.name, small.name] == ["other, onnxruntime fp32", "other, onnxruntime int8"]
    with torch.no_grad():
        expected = model(**inputs)
    for name, found, quantized in zip(OUTPUTS, plain.run(), small.run(), strict=True):
        wanted = expected[name].numpy()
        seen = np.isfinite(wanted)  # logits of positions without a word are -inf
        assert np.abs(np.sort(found, axis=1) - np.sort(wanted, axis=1))[seen].max() < 1e-4
        assert quantized.shape == wanted.shape
