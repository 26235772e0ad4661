"""What the parity tests share: running our model on an official case, and comparing as the tolerances say."""

from typing import Any

import torch
from parity.official_cases import OfficialCase
from torch import Tensor

from hivg_hf import HiVGForVisualGrounding
from hivg_hf.conversion import OFFICIAL_LOSS_NAMES


def run_ours(model: HiVGForVisualGrounding, case: OfficialCase, **options: Any) -> Any:
    """Our outputs for an official case: all of them, and the losses."""
    inputs = case.inputs
    return model(
        input_ids=inputs["input_ids"],
        attention_mask=(inputs["input_ids"] != 0).long(),
        pixel_values=inputs["pixel_values"].to(model.dtype),
        pixel_mask=1 - inputs["padding_mask"],
        labels=inputs["target_boxes"],
        mask_labels=inputs["target_mask"][:, 0],
        output_masks=True,
        output_token_logits=True,
        **options,
    )


def assert_close(ours: Tensor, official: Tensor, tolerance: float = 1e-5) -> None:
    """|a - b| <= tolerance (1 + |b|), element by element."""
    torch.testing.assert_close(ours, official, rtol=tolerance, atol=tolerance)


def assert_masks_close(ours: Tensor, official: Tensor) -> None:
    """|a - b| <= 1e-5 (1 + max |b|).

    Not element by element: on one recorded sample the official float32 forward is 3e-5 away from its own float64 run,
    where mask logits are near 0; ours, with merged weights, rounds otherwise, and so does a processor of another kind.
    `test_in_float64` compares elements.
    """
    assert ours.shape == official.shape
    assert (ours - official).abs().max() <= 1e-5 * (1 + official.abs().max())


def assert_outputs_match(ours: Any, official: Any) -> None:
    """Our output against an `OfficialOutput`."""
    assert_close(ours.pred_boxes, official.pred_boxes)
    assert_close(ours.logits_per_text, official.logits_per_text)
    assert_close(ours.logits_per_image, official.logits_per_image)
    assert_close(ours.token_logits, official.token_similarity)
    assert_masks_close(ours.mask_logits, official.mask_logits[:, 0])


def assert_losses_match(model: HiVGForVisualGrounding, ours: Any, official: dict[str, Any]) -> None:
    """Each term, weighted, to 1e-5 relative, under its official name; and nothing but these terms."""
    weights = model.config.loss_weights
    weighted = {OFFICIAL_LOSS_NAMES[name]: weights[name] * term.item() for name, term in ours.loss_dict.items()}
    assert weighted.keys() == official.keys()
    for name, value in official.items():
        assert abs(weighted[name] - float(value)) <= 1e-5 * max(abs(float(value)), 1e-3), name
    assert abs(ours.loss.item() - sum(weighted.values())) <= 1e-4
