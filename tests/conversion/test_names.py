"""The table of names: a literal sample of each rule, both directions, and what stays out."""

import pytest

from hivg_hf.conversion import OFFICIAL_LOSS_NAMES, official_parameter_name
from hivg_hf.conversion.names import hivg_parameter_name, unused_reason

VISION = "clip.vision_model.encoder.layers.7"
PAIRS = [
    ("clip.logit_scale", "clip.logit_scale"),
    ("clip.text_projection.weight", "clip.text_projection.weight"),
    ("clip.text_model.embeddings.token_embedding.weight", "clip.text_model.embeddings.token_embedding.weight"),
    ("clip.vision_model.pre_layrnorm.bias", "clip.vision_model.pre_layrnorm.bias"),
    (f"{VISION}.self_attn.q_proj.weight", f"{VISION}.self_attn.q_proj.weight"),
    (f"{VISION}.cross_norm.bias", f"{VISION}.bridge.norm.bias"),
    (f"{VISION}.cross_attn.out_proj.weight", f"{VISION}.bridge.attention.out_proj.weight"),
    (f"{VISION}.cross_mlp.fc2.weight", f"{VISION}.bridge.mlp.fc2.weight"),
    (f"{VISION}.cross_gate.bias", f"{VISION}.bridge.text_proj.bias"),
    (f"{VISION}.cross_adaptive_weights.11.weight", f"{VISION}.bridge.adaptive_weights.11.weight"),
    ("ml_visual_projection.weight", "grounding_head.visual_levels_proj.weight"),
    ("visu_proj.weight", "grounding_head.visual_proj.weight"),
    ("text_proj.bias", "grounding_head.text_proj.bias"),
    ("condition_text_proj.weight", "grounding_head.bridge_text_proj.weight"),
    ("reg_token.weight", "grounding_head.reg_token.weight"),
    ("vl_pos_embed.weight", "grounding_head.position_embedding.weight"),
    (
        "vl_transformer.encoder.layers.5.self_attn.in_proj_weight",
        "grounding_head.fusion.layers.5.self_attn.in_proj_weight",
    ),
    ("vl_transformer.encoder.layers.10.linear1.weight", "grounding_head.fusion.layers.10.fc1.weight"),
    ("vl_transformer.encoder.layers.0.linear2.bias", "grounding_head.fusion.layers.0.fc2.bias"),
    ("vl_transformer.encoder.layers.0.norm2.weight", "grounding_head.fusion.layers.0.norm2.weight"),
    ("vl_transformer.encoder.norm.bias", "grounding_head.fusion.norm.bias"),
    ("bbox_embed.layers.2.weight", "grounding_head.box_head.layers.2.weight"),
    ("visu_token_norm.weight", "grounding_head.token_norm.weight"),
    ("visu_token_mlp.fc1.bias", "grounding_head.token_mlp.fc1.bias"),
    ("seg_conv3.weight", "grounding_head.mask_convs.2.weight"),
]


@pytest.mark.parametrize(("official", "ours"), PAIRS)
def test_names_translate_both_ways(official: str, ours: str) -> None:
    assert hivg_parameter_name(official) == ours
    assert official_parameter_name(ours) == official


def test_nesting_is_put_after_clip_only() -> None:
    assert (
        official_parameter_name("clip.logit_scale", nesting=2) == "clip.base_model.model.base_model.model.logit_scale"
    )
    assert official_parameter_name("grounding_head.reg_token.weight", nesting=2) == "reg_token.weight"


@pytest.mark.parametrize(
    "name",
    [
        f"{VISION}.cross_something.weight",
        "clip.vision_model.embeddings.position_ids",
        "reg_pos_embed.weight",
        "backbone.conv1.weight",
        "bbox_embed.layers.weight",
        "xclip.logit_scale",
        "clip.text_model_2.weight",
    ],
)
def test_unknown_official_names_have_no_translation(name: str) -> None:
    assert hivg_parameter_name(name) is None


@pytest.mark.parametrize(
    "name", ["grounding_head.score_head.weight", f"{VISION}.bridge.text_norms.0.weight", "lm_head"]
)
def test_parameters_of_ours_alone_have_no_official_name(name: str) -> None:
    with pytest.raises(ValueError, match="nothing that corresponds"):
        official_parameter_name(name)


def test_what_is_unused_depends_on_the_text_that_the_bridge_reads() -> None:
    both = {"projected_text": False, "has_bridges": True}
    mixed = {"projected_text": True, "has_bridges": True}
    warmup = {"projected_text": True, "has_bridges": False}
    assert unused_reason("condition_text_proj.weight", **both)
    assert unused_reason("condition_text_proj.weight", **mixed) is None
    assert unused_reason("condition_text_proj.weight", **warmup)
    assert unused_reason(f"{VISION}.cross_gate.bias", **mixed)
    assert unused_reason(f"{VISION}.cross_gate.bias", **both) is None
    assert unused_reason(f"{VISION}.cross_adaptive_weights.0.weight", **mixed)
    for case in (both, mixed, warmup):
        assert unused_reason("reg_pos_embed.weight", **case)
        assert unused_reason("clip.text_model.embeddings.position_ids", **case)
        assert unused_reason("reg_token.weight", **case) is None
        assert unused_reason("xreg_pos_embed.weight", **case) is None


def test_loss_names_are_those_of_the_config() -> None:
    from hivg_hf.modeling.configuration_hivg import OFFICIAL_LOSS_WEIGHTS

    assert set(OFFICIAL_LOSS_NAMES) == set(OFFICIAL_LOSS_WEIGHTS)
