"""What a training loop measures equals the protocol "pixel" of the same boxes."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hivg_hf.metrics import GroundingEvalMetrics, batch_box_iou, compute_grounding_metrics
from hivg_hf.modeling.image_processing_hivg import letterbox_geometry

SIZE = 96


def test_iou_in_the_square_is_iou_in_pixels_of_the_original():
    generator = np.random.default_rng(0)
    references, predictions, canvas, masks = [], [], [], []
    for index in range(60):
        height, width = (int(side) for side in generator.integers(20, 700, 2))
        box, predicted = (random_box(generator, width, height) for _ in range(2))
        predicted[2:] += 0.3 * np.array([width, height])  # some reach over the border
        references.append({"id": index, "box": box, "width": width, "height": height})
        predictions.append({"id": index, "box_xyxy": predicted})
        letterbox = letterbox_geometry(height, width, SIZE, patch_size=8)
        canvas.append([to_canvas(one, letterbox, width, height) for one in (predicted, box)])
        mask = torch.zeros(SIZE, SIZE)
        mask[letterbox.top :, letterbox.left :][: letterbox.new_height, : letterbox.new_width] = 1
        masks.append(mask)
    pairs = torch.tensor(np.array(canvas), dtype=torch.float32)  # (B, 2, 4)
    ious = batch_box_iou(pairs[:, 0], pairs[:, 1], torch.stack(masks))
    expected = compute_grounding_metrics(predictions, references, resamples=0)["figures"]
    assert ious.mean().item() == pytest.approx(expected["mean_iou"], abs=1e-5)
    assert (ious >= 0.5).float().mean().item() == pytest.approx(expected["acc@0.5"])


def test_a_row_of_nan_is_no_target_and_counts_nowhere():
    labels = torch.tensor([[0.5, 0.5, 0.2, 0.4], [torch.nan] * 4, [0.5, 0.5, 0.2, 0.2]])
    pred_boxes = torch.tensor([[0.5, 0.4, 0.2, 0.2], [0.5, 0.5, 1.0, 1.0], [0.5, 0.5, 0.2, 0.2]])
    ious = batch_box_iou(pred_boxes, labels)
    assert ious[1].isnan()
    assert ious[0].item() == pytest.approx(0.5)
    figures = GroundingEvalMetrics()(SimpleNamespace(predictions=(pred_boxes.numpy(),), label_ids=labels.numpy()))
    assert figures["acc@0.9"] == 0.5
    assert figures["mean_iou"] == pytest.approx(0.75)
    assert (figures["n"], figures["n_no_target"]) == (2, 1)


def test_batches_give_the_same_figures_as_everything_at_once():
    generator = torch.Generator().manual_seed(0)
    pred_boxes, labels = (torch.rand(50, 4, generator=generator) for _ in range(2))
    at_once = GroundingEvalMetrics()(SimpleNamespace(predictions=(pred_boxes, None), label_ids=labels))
    metrics = GroundingEvalMetrics()
    for _ in range(2):  # a second evaluation starts anew
        for start in range(0, 50, 7):
            part = slice(start, start + 7)
            last = start + 7 >= 50
            result = metrics(
                SimpleNamespace(predictions=pred_boxes[part], label_ids=(labels[part],)), compute_result=last
            )
        assert result == at_once


def test_without_a_target_there_is_no_accuracy():
    figures = GroundingEvalMetrics()(
        SimpleNamespace(predictions=torch.rand(2, 4), label_ids=torch.full((2, 4), torch.nan))
    )
    assert figures == {"n": 0.0, "n_no_target": 2.0}


def random_box(generator, width, height):
    x, y = np.sort(generator.random((2, 2)), axis=1) * [[width], [height]]
    return np.array([x[0], y[0], x[1], y[1]])


def to_canvas(box, letterbox, width, height):
    scale = np.array([letterbox.new_width / width, letterbox.new_height / height] * 2)
    x1, y1, x2, y2 = (box * scale + np.array([letterbox.left, letterbox.top] * 2)) / SIZE
    return [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]
