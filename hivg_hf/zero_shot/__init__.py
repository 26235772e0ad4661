"""Grounding with a plain CLIP, without training: a starting point and a label maker, see docs/zero-shot.md."""

from .clip_towers import ZeroShotClip
from .detector import Detection, TextDetector
from .grounder import ZeroShotGrounder
from .map_boxes import best_rectangle, box_from_map
from .proposals import DetectorProposals, component_proposals
from .relation_parser import Query, Rank, Relation, parse_expression
from .relations import resolve

__all__ = [
    "Detection",
    "DetectorProposals",
    "Query",
    "Rank",
    "Relation",
    "TextDetector",
    "ZeroShotClip",
    "ZeroShotGrounder",
    "best_rectangle",
    "box_from_map",
    "component_proposals",
    "parse_expression",
    "resolve",
]
