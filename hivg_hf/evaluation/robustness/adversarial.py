"""Accuracy under an attacker who sees the model: projected gradient descent on the pixels.

Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks" (ICLR 2018), with the box loss of
training as what is driven up. A small CLIP that was never trained against it is expected to fall; the curve says at
which strength.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from hivg_hf.data import GroundingCollator
from hivg_hf.metrics import score_rows
from hivg_hf.modeling.loss_hivg import box_giou_loss, box_l1_loss

from ..predict import process_state
from ..run import Evaluation, EvaluationSettings

STRENGTHS = (0.5, 1.0, 2.0, 4.0, 8.0)  # largest change of a pixel, of 255


def attack_pictures(
    model: Any,
    batch: dict[str, torch.Tensor],
    strength: float,
    std: Sequence[float],
    mean: Sequence[float],
    steps: int = 10,
) -> torch.Tensor:
    """Pixel values of a batch, changed within a strength so that the boxes go wrong.

    Args:
        model: A `HiVGForVisualGrounding` in eval mode.
        batch: Its inputs and `labels` (B, 4), none of them NaN.
        strength: Largest change of a pixel, of 255.
        std, mean: Of the image processor's normalization.
        steps: Of gradient ascent, each a quarter of the strength, after a start at random within it.

    Returns:
        (B, 3, S, S) pixel values; padding stays as it is, and every pixel stays one that a picture can have.
    """
    inputs = {name: tensor for name, tensor in batch.items() if name not in ("labels", "mask_labels", "pixel_values")}
    clean = batch["pixel_values"]
    scale = torch.tensor(std, device=clean.device)[:, None, None]  # (3, 1, 1)
    shift = torch.tensor(mean, device=clean.device)[:, None, None]
    low, high = (0 - shift) / scale, (1 - shift) / scale
    reach = strength / 255 / scale
    inside = batch["pixel_mask"][:, None].to(clean.dtype)  # (B, 1, S, S)
    generator = torch.Generator(clean.device).manual_seed(0)
    change = (2 * torch.rand(clean.shape, generator=generator, device=clean.device) - 1) * reach
    for _ in range(steps):
        pixels = torch.clamp(clean + change * inside, low, high).where(inside > 0, clean).requires_grad_(True)
        boxes = model(**inputs, pixel_values=pixels, output_scores=False).pred_boxes
        loss = box_l1_loss(boxes, batch["labels"]) + box_giou_loss(boxes, batch["labels"])
        (gradient,) = torch.autograd.grad(loss, pixels)
        change = torch.clamp(change + gradient.sign() * reach / 4, -reach, reach)
    return torch.clamp(clean + change * inside, low, high).where(inside > 0, clean).detach()


def measure_adversarial(
    model: Any,
    processor: Any,
    dataset: Any,
    evaluation: Evaluation,
    settings: EvaluationSettings,
    strengths: Sequence[float] = STRENGTHS,
    steps: int = 10,
) -> dict[str, Any]:
    """Accuracy at each strength of attack, on this process.

    Args:
        model, processor, dataset: As for `evaluate_model`.
        evaluation: What it gave, on the same rows.
        settings: How it was measured.
        strengths: Largest changes of a pixel, of 255.
        steps: Gradient steps of each attack.

    Returns:
        `{"steps", "n", "clean", "curve": {strength: accuracy}}`.
    """
    rows = [row for row in range(len(dataset)) if evaluation.rows.has_box[row]]
    collate = GroundingCollator(processor, masks=False)
    images, device = processor.image_processor, process_state().device
    curve = {}
    for strength in strengths:
        predictions = []
        for start in range(0, len(rows), settings.batch_size):
            chosen = rows[start : start + settings.batch_size]
            items = [{**dataset[row], "mask": None} for row in chosen]
            batch = {
                name: tensor.to(device)
                for name, tensor in collate(items).items()
                if name in (*processor.model_input_names, "labels")
            }
            pixels = attack_pictures(model, batch, strength, images.image_std, images.image_mean, steps)
            del batch["labels"]
            with torch.inference_mode():
                outputs = model(**{**batch, "pixel_values": pixels}, output_scores=False)
            sizes = [(row["height"], row["width"]) for row in items]
            results = processor.post_process_grounding(outputs, sizes)
            for row, result in zip(chosen, results, strict=True):
                prediction = evaluation.predictions[row]
                predictions.append({**prediction, "box_xyxy": result["box"].tolist()})
        references = [evaluation.rows.references[row] for row in rows]
        correct = score_rows(predictions, references, "pixel").correct("pixel")
        curve[f"{strength:g}"] = float(correct.mean()) if len(rows) else 0.0
    clean = evaluation.rows.correct("pixel")[np.array(rows, dtype=int)] if rows else np.zeros(0)
    return {"steps": steps, "n": len(rows), "clean": float(clean.mean()) if rows else 0.0, "curve": curve}
