"""Operations of one box from a chat model, counted on the meta device: nothing is computed, nothing is downloaded.

    python -m benchmarks.speed.chat_models --out benchmarks/results/chat-models/counted.json

Qwen3-VL in 2B and 4B, built by configuration with the sizes of the released checkpoints (config.json of
Qwen/Qwen3-VL-2B-Instruct and Qwen/Qwen3-VL-4B-Instruct; those of 2B also in pytorch/torchtitan,
experiments/qwen3_vl/__init__.py, 0375bb6). Asked is for one box in a picture of 640 x 480 pixels: 1,200 patches, which
become 300 tokens, 30 tokens around them, and an answer of 32 tokens, as in [{"bbox_2d": [123, 45, 678, 910], "label":
"..."}], in which every digit is a token. Keys and values are kept, and logits are computed where a token is chosen.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache, Qwen3VLConfig, Qwen3VLForConditionalGeneration

from hivg_hf.utils.atomic import write_json

from .measure import count_operations

GRID, PATCH_VALUES = (30, 40), 3 * 2 * 16 * 16  # 480 x 640 pixels in patches of 16, each of two (equal) frames
WORDS, ANSWER = 30, 32  # tokens
SIZES: dict[str, dict[str, int]] = {
    "Qwen3-VL-2B": {
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
    },
    "Qwen3-VL-4B": {
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
    },
}
VISION = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16}


def main(arguments: Sequence[str] | None = None) -> None:
    """Count, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="results file")
    options = parser.parse_args(arguments)
    counted = {name: count(name) for name in SIZES}
    for name, figures in counted.items():
        print(name, *(f"{what} {value / 1e9:,.1f} G" for what, value in figures.items()), sep=", ")
    write_json(options.out, {"image_tokens": GRID[0] * GRID[1] // 4, "words": WORDS, "answer": ANSWER, **counted})


def build(name: str) -> Qwen3VLForConditionalGeneration:
    """The model on the meta device."""
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20], "mrope_interleaved": True}
    text = {**SIZES[name], "num_key_value_heads": 8, "head_dim": 128, "rope_parameters": rope}
    vision = {**VISION, "out_hidden_size": text["hidden_size"], "deepstack_visual_indexes": [5, 11, 17]}
    with torch.device("meta"):
        config = Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True)
        return Qwen3VLForConditionalGeneration(config).eval()


@torch.no_grad()
def count(name: str) -> dict[str, Any]:
    """Parameters of a model, and operations of its parts for one box."""
    model = build(name)
    tokens = GRID[0] * GRID[1] // 4 + WORDS
    image = count_operations(lambda: _look(model), [model])
    prompt = count_operations(lambda: _read(model, tokens, DynamicCache()), [model])
    # Operations of a token grow linearly with what was read before it: the one in the middle stands for all.
    middle = DynamicCache()
    _read(model, tokens + ANSWER // 2 - 1, middle)
    answer = (ANSWER - 1) * count_operations(lambda: _read(model, 1, middle), [model])  # the prompt gave the first
    total = image + prompt + answer
    return {"parameters": model.num_parameters(), "image": image, "prompt": prompt, "answer": answer, "total": total}


def _look(model: Any) -> None:
    """The vision tower, part by part: its positions are computed from values, which meta tensors have not."""
    tower, patches = model.model.visual, GRID[0] * GRID[1]
    ends = torch.tensor([0, patches])
    angles = torch.empty(patches, VISION["hidden_size"] // VISION["num_heads"], device="meta")
    hidden = tower.patch_embed(torch.empty(patches, PATCH_VALUES, device="meta"))  # (patches, C)
    for number, block in enumerate(tower.blocks):
        hidden = block(hidden, cu_seqlens=ends, position_embeddings=(angles, angles))
        if number in tower.deepstack_visual_indexes:
            tower.deepstack_merger_list[tower.deepstack_visual_indexes.index(number)](hidden)
    tower.merger(hidden)


def _read(model: Any, tokens: int, cache: DynamicCache) -> None:
    """Tokens through the language model after those of a cache, and the logits of the last one."""
    inputs = torch.empty(1, tokens, model.config.text_config.hidden_size, device="meta")
    places = torch.empty(3, 1, tokens, dtype=torch.long, device="meta")
    hidden = model.model.language_model(inputs_embeds=inputs, position_ids=places, past_key_values=cache)
    model.lm_head(hidden.last_hidden_state[:, -1:])


if __name__ == "__main__":
    main()
