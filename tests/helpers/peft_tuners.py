"""What each tuner of the installed PEFT does on a HiVG model; `python -m helpers.peft_tuners` prints docs' table.

Run from the repository: `PYTHONPATH=tests:. python -m helpers.peft_tuners`.
"""

import copy
import inspect
import sys
import tempfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from peft import PeftModel, PeftType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import nn
from transformers import CLIPConfig

TARGETS = r"clip\.(vision|text)_model\.encoder\.layers\.\d+\.self_attn\.(q|v)_proj"
TOLERANCE = 1e-5
# What a tuner's config asks for beyond the modules, for layers of width 16.
OPTIONS: dict[str, dict[str, Any]] = {
    "ADALORA": {"total_step": 10, "target_r": 2, "init_r": 3},
    "ADAMSS": {"r": 4, "num_subspaces": 2},
    "BOFT": {"boft_block_size": 4},
    "C3A": {"block_size": 8},
    "FOURIERFT": {"n_frequency": 32},
    "GRALORA": {"r": 4, "gralora_k": 2},
    "IA3": {"feedforward_modules": []},
    "MISS": {"r": 4},
    "OFT": {"oft_block_size": 8, "r": 0},
    "PSOFT": {"r": 4},
    "RANDLORA": {"r": 4},
    "ROAD": {"group_size": 8},
    "SHIRA": {"r": 4},
    "VBLORA": {"vector_length": 8, "num_vectors": 16, "topk": 2},
    "WAVEFT": {"n_frequency": 32},
}
# Why a tuner cannot be put on the layers of a HiVG.
NOT_FOR_LAYERS = {
    "ADAPTION_PROMPT": "prompts for language models of some families",
    "CARTRIDGE": "a key-value cache of language models",
    "CPT": "prompts for language models",
    "LN_TUNING": "tunes layer norms, not linear layers",
    "MULTITASK_PROMPT_TUNING": "prompts for language models",
    "POLY": "needs a task id with every row",
    "PREFIX_TUNING": "prompts for language models",
    "PROMPT_TUNING": "prompts for language models",
    "P_TUNING": "prompts for language models",
    "SHADOW": "a small copy of a language model beside it",
    "TRAINABLE_TOKENS": "tunes rows of an embedding, not linear layers",
    "XLORA": "mixes LoRA adapters of language models",
}


class Outcome(NamedTuple):
    """Largest differences of boxes (0..1): what training moved, after a reload, after a merge (None: cannot merge)."""

    moved: float
    reload: float
    merge: float | None

    @property
    def works(self) -> bool:
        return self.moved > 0 and self.reload <= TOLERANCE and (self.merge or 0.0) <= TOLERANCE


def small_model() -> nn.Module:
    """Two layers a tower, width 16, weights large enough that boxes depend on them."""
    from hivg_hf import HiVGConfig, HiVGForVisualGrounding

    tower = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
    clip = CLIPConfig(
        text_config={**tower, "vocab_size": 64, "max_position_embeddings": 16, "eos_token_id": 63, "bos_token_id": 62},
        vision_config={**tower, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    config = HiVGConfig(
        clip_config=clip, image_size=32, bridge_layers=[1], bridge_text_layers=[1, 2], visual_feature_layers=[1, 2],
        fusion_layers=1, fusion_heads=2, fusion_ffn_dim=32, fusion_dropout=0.0, token_head_dim=16,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = HiVGForVisualGrounding(config).eval()
        for parameter in model.clip.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
    return model


def small_batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "pixel_values": torch.randn(2, 3, 32, 32, generator=generator),
        "input_ids": torch.tensor([[62, 3, 4, 63], [62, 5, 6, 63]]),
        "attention_mask": torch.ones(2, 4, dtype=torch.int64),
        "labels": torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.6, 0.5, 0.4, 0.3]]),
    }


def tuner_names() -> list[str]:
    """Tuners that can be put on layers, by PEFT's own names."""
    return [kind.value for kind in PEFT_TYPE_TO_CONFIG_MAPPING if kind.value not in NOT_FOR_LAYERS]


def try_tuner(name: str, base: nn.Module) -> Outcome:
    """Two steps of training, saved, reloaded on the base, and merged where PEFT can."""
    batch = small_batch()
    asked = {key: value for key, value in batch.items() if key != "labels"}

    def boxes(model: nn.Module) -> torch.Tensor:
        with torch.no_grad():
            return model.eval()(**asked).pred_boxes

    def difference(one: torch.Tensor, other: torch.Tensor) -> float:
        return (one - other).abs().max().item()

    torch.manual_seed(0)
    kind = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(name)]
    assert "target_modules" in inspect.signature(kind).parameters, name
    model = get_peft_model(copy.deepcopy(base), kind(target_modules=TARGETS, **OPTIONS.get(name, {})))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):  # the first step of some moves one factor of a product whose other is 0
        model.train()(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    trained = boxes(model)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        reloaded = boxes(PeftModel.from_pretrained(copy.deepcopy(base), folder))
    try:
        merge = difference(boxes(model.merge_and_unload()), trained)
    except NotImplementedError:
        merge = None
    return Outcome(difference(trained, boxes(base)), difference(reloaded, trained), merge)


def table(outcomes: Mapping[str, Outcome]) -> str:
    """The tables of docs/peft.md."""
    lines = ["| tuner | trains, saves, reloads | merges |", "| --- | --- | --- |"]
    for name, outcome in outcomes.items():
        merges = "cannot" if outcome.merge is None else "yes"
        lines.append(f"| {name} | {'yes' if outcome.works else 'no'} | {merges} |")
    lines += ["", "| not for these layers | why |", "| --- | --- |"]
    return "\n".join([*lines, *(f"| {name} | {why} |" for name, why in NOT_FOR_LAYERS.items())])


if __name__ == "__main__":
    small = small_model()
    sys.stdout.write(table({name: try_tuner(name, small) for name in tuner_names()}) + "\n")
