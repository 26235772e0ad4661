"""Cases for the parity tests: the three recorded ones, and random official files of layouts that were not recorded."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.speed.official_reference import (
    OfficialLayers,
    OfficialOutput,
    official_forward,
    official_losses,
    plain_names,
)

RECORDED_FOLDER = Path(__file__).parents[1] / "fixtures" / "parity"
RECORDED = ("base-single-layer-text", "base-two-layer-text-stage3", "base-mixup-stage1")
LORA_RANK = 32
BEGIN, END = 126, 127


@dataclass
class OfficialCase:
    """An official state dict (its own names) with arguments, inputs and targets."""

    state: dict[str, Tensor]
    args: dict[str, Any]
    clip_config: dict[str, Any]
    layers: OfficialLayers
    inputs: dict[str, Tensor]  # pixel_values, padding_mask (1 = padding), input_ids, target_boxes, target_mask
    expected: dict[str, Any]  # of a recorded case: its tensors and losses; {} for a made one

    def rows(self, *rows: int) -> "OfficialCase":
        """The case with some of its samples."""
        return replace(self, inputs={name: tensor[list(rows)] for name, tensor in self.inputs.items()})

    def run(self, mixes_batch: bool = True) -> OfficialOutput:
        """The reference's outputs."""
        inputs = {name: self.inputs[name] for name in ("pixel_values", "padding_mask", "input_ids")}
        return official_forward(
            plain_names(self.state), self.args, self.clip_config, self.layers, **inputs, mixes_batch=mixes_batch
        )

    def save(self, folder: Path) -> None:
        """Write `official.safetensors` and the two files that describe it, `args.json` and `clip.json`."""
        save_file(self.state, folder / "official.safetensors")
        (folder / "args.json").write_text(json.dumps(self.args))
        (folder / "clip.json").write_text(json.dumps(self.clip_config))

    def losses(self, mixes_batch: bool = True) -> dict[str, Tensor]:
        """The reference's losses, official names and coefficients."""
        return official_losses(self.run(mixes_batch), self.inputs["target_boxes"], self.inputs["target_mask"])


def recorded_case(name: str) -> OfficialCase:
    """A case with the figures that the official code gave."""
    case = json.loads((RECORDED_FOLDER / name / "case.json").read_text())
    tensors = load_file(RECORDED_FOLDER / name / "tensors.safetensors")
    inputs = ("pixel_values", "padding_mask", "input_ids", "target_boxes", "target_mask")
    return OfficialCase(
        state=load_file(RECORDED_FOLDER / name / "official_state_dict.safetensors"),
        args=case["args"],
        clip_config=case["clip_config"],
        layers=OfficialLayers(case["adapt_layer"], case["extract_vision_layer"], case["extract_text_layer"]),
        inputs={key: tensors.pop(key) for key in inputs},
        expected={**tensors, "per_sample": case["losses_per_sample"], "batched": case["losses_batched"]},
    )


def made_case(
    layers: OfficialLayers, seed: int = 0, clip_image_size: int | None = None, vocab_size: int = 128, **args: Any
) -> OfficialCase:
    """A random official file with inputs, for arguments whose layers the caller states (they are what is tested).

    Args:
        layers: what the official constructor would derive from `args`.
        seed: of weights and inputs.
        clip_image_size: the size of CLIP's own positions, where `imsize` differs from it.
        vocab_size: of the text tower.
        args: official arguments beside the tiny widths.
    """
    large = args.get("model", "ViT-B/16").startswith("ViT-L")
    patch = {"ViT-B/16": 16, "ViT-B/32": 32}.get(args.get("model", "ViT-B/16"), 14)
    args = {
        "model": "ViT-B/16",
        "warmup": False,
        "mixup_pretrain": False,
        "dataset": "unc",
        "imsize": 4 * patch,
        "max_query_len": 77,
        "enable_adaptive_weights": True,
        "hi_lora_stage": 0,
        "vl_hidden_dim": 16,
        "vl_dropout": 0.1,
        "vl_nheads": 2,
        "vl_dim_feedforward": 64,
        "vl_enc_layers": 6,
        "normalize_before": True,
        **args,
    }
    text = {"vocab_size": vocab_size, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 12}
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 24 if large else 12}
    clip_config = {
        "projection_dim": 16,
        "text_config": {**text, "num_attention_heads": 2, "max_position_embeddings": 77},
        "vision_config": {
            **vision,
            "num_attention_heads": 2,
            "image_size": clip_image_size or args["imsize"],
            "patch_size": patch,
        },
    }
    generator = torch.Generator().manual_seed(seed)
    state = _random_state(args, clip_config, layers, generator)
    return OfficialCase(state, args, clip_config, layers, _random_inputs(args["imsize"], generator), expected={})


def _random_inputs(size: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Three letterboxed samples: padding above and below, left and right, none."""
    pixels = torch.randn(3, 3, size, size, generator=generator)
    padding = torch.zeros(3, size, size, dtype=torch.int32)
    padding[0, : size // 5], padding[0, -(size // 5) :] = 1, 1
    padding[1, :, : size // 3 + 1], padding[1, :, -(size // 3) :] = 1, 1
    input_ids = torch.zeros(3, 77, dtype=torch.int64)
    for row, words in enumerate((3, 12, 75)):  # the last one fills the context
        input_ids[row, : words + 2] = torch.randint(1, BEGIN, (words + 2,), generator=generator)
        input_ids[row, 0], input_ids[row, words + 1] = BEGIN, END
    target_boxes = torch.tensor([[0.5, 0.5, 0.5, 0.4], [0.5, 0.3, 0.2, 0.3], [0.7, 0.6, 0.3, 0.7]])
    target_mask = torch.zeros(3, 1, size, size, dtype=torch.int32)
    for row, (x, y, w, h) in enumerate((target_boxes * size).round().int().tolist()):
        target_mask[row, 0, y - h // 2 : y + h // 2, x - w // 2 : x + w // 2] = 1
    return {
        "pixel_values": pixels * (padding == 0)[:, None],
        "padding_mask": padding,
        "input_ids": input_ids,
        "target_boxes": target_boxes,
        "target_mask": target_mask,
    }


def _random_state(
    args: dict[str, Any], clip_config: dict[str, Any], layers: OfficialLayers, generator: torch.Generator
) -> dict[str, Tensor]:
    """Random tensors under every official name of a model, one nesting per stage and one more."""
    nesting = "base_model.model." * (args["hi_lora_stage"] + 1)
    shapes = {f"clip.{nesting}{name}": shape for name, shape in clip_shapes(clip_config, layers).items()}
    shapes |= _head_shapes(args, clip_config, layers)
    state = {name: _random_tensor(name, shape, generator) for name, shape in shapes.items()}
    for tower, count in (("text_model", 77), ("vision_model", _positions(clip_config))):
        state[f"clip.{nesting}{tower}.embeddings.position_ids"] = torch.arange(count)[None]
    return state


def _random_tensor(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Sizes at which every path has an effect and no softmax saturates."""
    noise = torch.randn(shape, generator=generator)
    if name.endswith("logit_scale"):
        return torch.tensor(2.0)
    if "norm" in name:
        return 1 + 0.2 * noise if name.endswith("weight") else 0.1 * noise
    if "lora_" in name:
        return 0.15 * noise
    if name.endswith("bias") or "embed" in name or "reg_token" in name or "adaptive" in name:
        return 0.3 * noise
    return noise / shape[-1] ** 0.5 if len(shape) == 2 else 0.3 * noise


def clip_shapes(clip_config: dict[str, Any], layers: OfficialLayers) -> dict[str, tuple[int, ...]]:
    """Names and shapes of CLIP's parameters, bridges and low-rank factors included, without wrappers."""
    text, vision, joint = clip_config["text_config"], clip_config["vision_config"], clip_config["projection_dim"]
    d_text, d_vision, patch = text["hidden_size"], vision["hidden_size"], vision["patch_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "logit_scale": (),
        "text_projection.weight": (joint, d_text),
        "visual_projection.weight": (joint, d_vision),
        "text_model.embeddings.token_embedding.weight": (text["vocab_size"], d_text),
        "text_model.embeddings.position_embedding.weight": (77, d_text),
        "vision_model.embeddings.class_embedding": (d_vision,),
        "vision_model.embeddings.patch_embedding.weight": (d_vision, 3, patch, patch),
        "vision_model.embeddings.position_embedding.weight": (_positions(clip_config), d_vision),
        **_norm("text_model.final_layer_norm", d_text),
        **_norm("vision_model.pre_layrnorm", d_vision),
        **_norm("vision_model.post_layernorm", d_vision),
    }
    for tower, config in (("text_model", text), ("vision_model", vision)):
        width, hidden = config["hidden_size"], config["intermediate_size"]
        for i in range(config["num_hidden_layers"]):
            layer = f"{tower}.encoder.layers.{i}"
            shapes |= _norm(f"{layer}.layer_norm1", width) | _norm(f"{layer}.layer_norm2", width)
            shapes |= _attention(f"{layer}.self_attn", width) | _mlp(f"{layer}.mlp", width, hidden)
            if tower == "vision_model" and i in layers.bridges:
                shapes |= _norm(f"{layer}.cross_norm", width) | _attention(f"{layer}.cross_attn", width)
                shapes |= _mlp(f"{layer}.cross_mlp", width, hidden)
                shapes |= _linear(f"{layer}.cross_gate", d_text * len(layers.text), width)
                shapes |= {f"{layer}.cross_adaptive_weights.{k}.weight": (77, d_text) for k in range(len(layers.text))}
    return shapes


def _head_shapes(
    args: dict[str, Any], clip_config: dict[str, Any], layers: OfficialLayers
) -> dict[str, tuple[int, ...]]:
    joint, d_vision = clip_config["projection_dim"], clip_config["vision_config"]["hidden_size"]
    d_text, patch = clip_config["text_config"]["hidden_size"], clip_config["vision_config"]["patch_size"]
    shapes = {
        "reg_token.weight": (1, joint),
        "reg_pos_embed.weight": (1, joint),
        "condition_text_pos_embed.weight": (77, d_vision),
        "vl_pos_embed.weight": ((args["imsize"] // patch) ** 2 + 77 + 2, joint),
        **_linear("visu_proj", joint, joint),
        **_linear("text_proj", joint, joint),
        **_linear("condition_text_proj", joint, d_vision),
        **_linear("ml_text_feat_perceiver", d_text * len(layers.text), d_vision),
        **_linear("ml_visual_projection", d_vision * len(layers.visual_features), joint),
        **_norm("visu_token_norm", joint),
        **_mlp("visu_token_mlp", joint, 3072),
        **{f"seg_conv{k}.weight": (joint, joint, 2, 2) for k in (1, 2, 3)},
        **_linear("bbox_embed.layers.0", joint, joint),
        **_linear("bbox_embed.layers.1", joint, joint),
        **_linear("bbox_embed.layers.2", joint, 4),
    }
    for i in range(args["vl_enc_layers"]):
        layer = f"vl_transformer.encoder.layers.{i}"
        shapes |= {f"{layer}.self_attn.in_proj_weight": (3 * joint, joint)}
        shapes |= {f"{layer}.self_attn.in_proj_bias": (3 * joint,)}
        shapes |= _linear(f"{layer}.self_attn.out_proj", joint, joint)
        shapes |= _linear(f"{layer}.linear1", joint, args["vl_dim_feedforward"])
        shapes |= _linear(f"{layer}.linear2", args["vl_dim_feedforward"], joint)
        shapes |= _norm(f"{layer}.norm1", joint) | _norm(f"{layer}.norm2", joint)
    return shapes | (_norm("vl_transformer.encoder.norm", joint) if args["normalize_before"] else {})


def _positions(clip_config: dict[str, Any]) -> int:
    vision = clip_config["vision_config"]
    return (vision["image_size"] // vision["patch_size"]) ** 2 + 1


def _linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _mlp(name: str, width: int, hidden: int) -> dict[str, tuple[int, ...]]:
    return _linear(f"{name}.fc1", width, hidden) | _linear(f"{name}.fc2", hidden, width)


def _attention(name: str, width: int) -> dict[str, tuple[int, ...]]:
    """Four projections, each with its LoRA pair."""
    shapes: dict[str, tuple[int, ...]] = {}
    for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
        shapes |= _linear(f"{name}.{projection}", width, width)
        shapes[f"{name}.{projection}.lora_A.default.weight"] = (LORA_RANK, width)
        shapes[f"{name}.{projection}.lora_B.default.weight"] = (width, LORA_RANK)
    return shapes
