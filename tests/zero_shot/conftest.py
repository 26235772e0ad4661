"""The random CLIP and the random detectors of these tests."""

from helpers.zero_shot_models import clip, encoder, grounding_dino, owlv2

__all__ = ["clip", "encoder", "grounding_dino", "owlv2"]
