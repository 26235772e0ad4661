"""Names of parameters and losses: the official code's and ours, as tables read in both directions.

`hivg_parameter_name` and `official_parameter_name` are each other's inverse on every name that both sides have.
Official names here are plain: without the `base_model.model.` that each PEFT wrapper puts after `clip.` and without
the `base_layer` of newer PEFT (`files.plain_name` removes both).
"""

import re

# Our names of the loss terms to the official ones; one is misspelt there. Official: utils/loss_utils.py:188-235
OFFICIAL_LOSS_NAMES = {
    "bbox": "loss_bbox",
    "giou": "loss_giou",
    "contrastive": "loss_contrastive",
    "token_focal": "loss_algin_focal",
    "token_dice": "loss_align_dice",
    "mask_focal": "loss_seg_focal",
    "mask_dice": "loss_seg_dice",
}

# Official module to ours, outside CLIP. `{}` is a layer number. Official: models/HiVG.py:731-767, vl_transformer.py
HEAD_MODULES = {
    "ml_visual_projection": "grounding_head.visual_levels_proj",
    "visu_proj": "grounding_head.visual_proj",
    "text_proj": "grounding_head.text_proj",
    "condition_text_proj": "grounding_head.bridge_text_proj",
    "reg_token": "grounding_head.reg_token",
    "vl_pos_embed": "grounding_head.position_embedding",
    "vl_transformer.encoder.layers.{}.self_attn": "grounding_head.fusion.layers.{}.self_attn",
    "vl_transformer.encoder.layers.{}.linear1": "grounding_head.fusion.layers.{}.fc1",
    "vl_transformer.encoder.layers.{}.linear2": "grounding_head.fusion.layers.{}.fc2",
    "vl_transformer.encoder.layers.{}.norm1": "grounding_head.fusion.layers.{}.norm1",
    "vl_transformer.encoder.layers.{}.norm2": "grounding_head.fusion.layers.{}.norm2",
    "vl_transformer.encoder.norm": "grounding_head.fusion.norm",
    "bbox_embed.layers.{}": "grounding_head.box_head.layers.{}",
    "visu_token_norm": "grounding_head.token_norm",
    "visu_token_mlp": "grounding_head.token_mlp",
    "seg_conv1": "grounding_head.mask_convs.0",
    "seg_conv2": "grounding_head.mask_convs.1",
    "seg_conv3": "grounding_head.mask_convs.2",
}

# The same inside a vision layer. Official: models/HiVG.py:384-393
BRIDGE_MODULES = {
    "cross_norm": "bridge.norm",
    "cross_attn": "bridge.attention",
    "cross_mlp": "bridge.mlp",
    "cross_gate": "bridge.text_proj",
    "cross_adaptive_weights": "bridge.adaptive_weights",
}
_BRIDGE_LAYER = "clip.vision_model.encoder.layers.{}."

MODULES = {
    **HEAD_MODULES,
    **{_BRIDGE_LAYER + official: _BRIDGE_LAYER + ours for official, ours in BRIDGE_MODULES.items()},
}

# CLIP's own parameters keep their names; these are its parts. Everything else that starts with `clip.` is unknown.
CLIP_PARTS = ("clip.text_model.", "clip.vision_model.", "clip.text_projection.", "clip.visual_projection.")

# Official parameters that no official forward reads, with the reason. Official: models/HiVG.py:735-750
NEVER_USED = {
    r"ml_text_feat_perceiver\.(weight|bias)": "declared, never called",
    r"reg_pos_embed\.weight": "declared, never called",
    r"condition_text_pos_embed\.weight": "declared, never called",
    r"clip\.(text|vision)_model\.embeddings\.position_ids": "a counter that newer transformers do not store",
}
# Read only by the variants with mixed pre-training. Official: models/HiVG.py:920-921
ONLY_PROJECTED_TEXT = {r"condition_text_proj\.(weight|bias)": "read only with mixup_pretrain and with bridges"}
# Not read by them. Official: models/HiVG.py:434-446
ONLY_TEXT_STATES = {
    r"clip\.vision_model\.encoder\.layers\.\d+\.cross_gate\.(weight|bias)": "not read with mixup_pretrain",
    r"clip\.vision_model\.encoder\.layers\.\d+\.cross_adaptive_weights\.\d+\.weight": "not read with mixup_pretrain",
}


def hivg_parameter_name(name: str) -> str | None:
    """Our name of an official parameter, or None where we have none.

    Args:
        name: plain official name, such as `clip.vision_model.encoder.layers.3.cross_gate.weight`.
    """
    renamed = _rename(name, MODULES)
    if renamed is not None:
        return renamed
    is_clip = name == "clip.logit_scale" or name.startswith(CLIP_PARTS)
    is_added = ".cross_" in name or ".bridge." in name or name.endswith(".position_ids")
    return name if is_clip and not is_added else None


def official_parameter_name(name: str, nesting: int = 0) -> str:
    """The official name of one of our parameters.

    Args:
        name: as in `HiVGForVisualGrounding.state_dict()`.
        nesting: how often `base_model.model.` stands after `clip.`: 0 gives the plain name, an official file of
            HiLoRA stage k has k + 1.

    Raises:
        ValueError: the official model has no such parameter.
    """
    official = _rename(name, {ours: theirs for theirs, ours in MODULES.items()}) or name
    if hivg_parameter_name(official) != name:
        raise ValueError(f"The official model has nothing that corresponds to the parameter {name!r}.")
    return official.replace("clip.", "clip." + "base_model.model." * nesting, 1) if nesting else official


def unused_reason(name: str, projected_text: bool, has_bridges: bool) -> str | None:
    """Why the official forward never reads a parameter; None where it does, or where the name is unknown.

    Args:
        name: plain official name.
        projected_text: the bridges read the projected text (mixed pre-training).
        has_bridges: the vision tower has bridges (the large warm-up has none).
    """
    patterns = {
        **NEVER_USED,
        **({} if projected_text and has_bridges else ONLY_PROJECTED_TEXT),
        **(ONLY_TEXT_STATES if projected_text else {}),
    }
    return next((reason for pattern, reason in patterns.items() if re.fullmatch(pattern, name)), None)


def _rename(name: str, modules: dict[str, str]) -> str | None:
    """Replace the module part of a name by the table's, keeping the layer number and what follows the module."""
    for old, new in modules.items():
        match = re.fullmatch(re.escape(old).replace(r"\{\}", r"(\d+)") + r"(\..+)", name)
        if match:
            *numbers, rest = match.groups()
            return new.format(*numbers) + rest
    return None
