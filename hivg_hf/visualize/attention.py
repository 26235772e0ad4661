"""What each bridge looks at: for every place of the image, the words that it reads there."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import torch

from hivg_hf.modeling.image_loading_hivg import load_grounding_image

from .drawing import draw_heatmap

PANEL_SIDE = 120
PANEL_GAP = 6
LABEL_HEIGHT = 22
ROW_LABEL_WIDTH = 84


@dataclass(frozen=True)
class BridgeAttention:
    """Attention of image places (queries) to words (keys), averaged over heads.

    Attributes:
        words: the tokens as text, the begin and end token included, T of them.
        layers: the vision layers that carry a bridge, L of them, counted from 0.
        maps: (L, T, G, G), over the padded square; the T values of one place add up to 1. Places that the model never
            computes, wholly in the padding, are 0.
    """

    words: list[str]
    layers: list[int]
    maps: np.ndarray


@torch.no_grad()
def bridge_attention(model: Any, processor: Any, image: Any, expression: str) -> BridgeAttention:
    """Run one image and expression and keep the attention of every bridge.

    Raises:
        ValueError: the model has no bridges.
    """
    if not model.config.bridge_layers:
        raise ValueError("This model has no bridges, so that there is nothing for them to look at.")
    inputs = processor(images=image, text=expression).to(model.device)
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    used = model.config._attn_implementation
    model.set_attn_implementation("eager")  # the fast kernels never hold the attention weights
    try:
        attentions = model(**inputs, output_attentions=True).cross_attentions
    finally:
        model.set_attn_implementation(used)
    ids = inputs["input_ids"][0][inputs["attention_mask"][0] > 0]
    length = len(ids)
    tokenizer = processor.tokenizer
    words = [tokenizer.decode([token]).strip() for token in ids.tolist()]
    words[0], words[-1] = "[begin]", "[end]"
    # (1, heads, 1 + P, T) -> (P, T): the first query is [CLS]
    weights = [layer[0].float().mean(0)[1:, :length].cpu() for layer in attentions]
    return BridgeAttention(words, list(model.config.bridge_layers), _on_grid(weights, inputs, model.config.grid_size))


def _on_grid(weights: list[torch.Tensor], inputs: Any, grid: int) -> np.ndarray:
    """L times (P, T) -> (L, T, G, G), computed patches in their places."""
    maps = torch.zeros(len(weights), weights[0].shape[1], grid * grid)
    index = inputs["patch_index"][0].cpu() if "patch_index" in inputs else torch.arange(grid * grid)
    maps[:, :, index] = torch.stack(weights).transpose(1, 2)  # (L, P, T) -> (L, T, P)
    return maps.reshape(len(weights), -1, grid, grid).numpy()


def draw_bridge_attention(image: Any, attention: BridgeAttention, image_processor: Any) -> PIL.Image.Image:
    """A table of small pictures: a row per bridge, a column per word, light where the bridge reads that word.

    Within a row all panels share one scale, so that words can be compared; rows cannot.
    """
    picture = load_grounding_image(image)
    size = (picture.height, picture.width)
    scale = PANEL_SIDE / max(size)
    panel_size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    step_x, step_y = panel_size[0] + PANEL_GAP, panel_size[1] + PANEL_GAP
    width = ROW_LABEL_WIDTH + step_x * len(attention.words)
    table = PIL.Image.new("RGB", (width, LABEL_HEIGHT + step_y * len(attention.layers)), "white")
    draw, font = PIL.ImageDraw.Draw(table), PIL.ImageFont.load_default(size=14)
    small = picture.resize(panel_size, PIL.Image.Resampling.BICUBIC)
    for column, word in enumerate(attention.words):
        draw.text((ROW_LABEL_WIDTH + column * step_x, 3), word, font=font, fill="black")
    for row, (layer, maps) in enumerate(zip(attention.layers, attention.maps, strict=True)):
        top = LABEL_HEIGHT + row * step_y
        draw.text((4, top + panel_size[1] // 2 - 8), f"layer {layer}", font=font, fill="black")
        for column, values in enumerate(maps / max(float(maps.max()), 1e-12)):
            heat = image_processor.map_to_image(torch.from_numpy(values), size)
            heat = PIL.Image.fromarray(heat.numpy()).resize(panel_size, PIL.Image.Resampling.BILINEAR)
            table.paste(draw_heatmap(small, np.asarray(heat)), (ROW_LABEL_WIDTH + column * step_x, top))
    return table
