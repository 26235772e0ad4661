"""Pictures of results: boxes, masks and expressions, heat maps, and what the bridge looks at."""

from typing import TYPE_CHECKING

from hivg_hf.utils.lazy import lazy_names

if TYPE_CHECKING:
    from .attention import BridgeAttention, bridge_attention, draw_bridge_attention
    from .drawing import draw_grounding, draw_heatmap

__all__ = [
    "BridgeAttention",
    "bridge_attention",
    "draw_bridge_attention",
    "draw_grounding",
    "draw_heatmap",
]

__getattr__ = lazy_names(
    __name__,
    {
        "BridgeAttention": "attention",
        "bridge_attention": "attention",
        "draw_bridge_attention": "attention",
        "draw_grounding": "drawing",
        "draw_heatmap": "drawing",
    },
)
