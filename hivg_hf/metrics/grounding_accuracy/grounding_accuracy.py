"""Grounding accuracy as an `evaluate` metric: a thin wrapper of `hivg_hf.metrics.compute_grounding_metrics`.

import evaluate
from hivg_hf.metrics import GROUNDING_ACCURACY

metric = evaluate.load(GROUNDING_ACCURACY)
metric.compute(predictions=[[0, 0, 10, 10]], references=[[0, 0, 10, 20]], protocol="pixel")
"""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate

from hivg_hf.metrics import PROTOCOLS, compute_grounding_metrics

_DESCRIPTION = """
Accuracy of visual grounding (referring expression comprehension): one predicted box against one target box per
expression, under a named protocol, with bootstrap intervals.
"""

_CITATION = """
@inproceedings{xiao2024hivg,
  title = {HiVG: Hierarchical Multimodal Fine-grained Modulation for Visual Grounding},
  booktitle = {ACM Multimedia},
  year = {2024}
}
"""

_INPUTS_DESCRIPTION = f"""
Args:
    predictions: boxes as (x1, y1, x2, y2) in pixels of the original image.
    references: target boxes, the same way.
    protocol: one of {", ".join(PROTOCOLS)}.
    image_sizes: (height, width) of each image; needed by "official", and by "pixel" to clip predictions.
    image_ids: expressions of one image are drawn together by the bootstrap.
    resamples: of the bootstrap; 0 gives no intervals.
Returns:
    figures by name (fractions of 1), "n", and "intervals": name to (low, high), 95 percent.
"""


class GroundingAccuracy(evaluate.Metric):
    """Boxes in, figures by name out."""

    def _info(self) -> evaluate.MetricInfo:
        box = datasets.Sequence(datasets.Value("float64"), length=4)
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS_DESCRIPTION,
            features=datasets.Features({"predictions": box, "references": box}),
        )

    def _compute(
        self,
        predictions: list[list[float]],
        references: list[list[float]],
        protocol: str = "pixel",
        image_sizes: Sequence[tuple[int, int]] | None = None,
        image_ids: Sequence[Any] | None = None,
        resamples: int = 2000,
    ) -> dict[str, Any]:
        for name, values in (("image_sizes", image_sizes), ("image_ids", image_ids)):
            if values is not None and len(values) != len(references):
                raise ValueError(f"{name} must have one entry per reference: got {len(values)} for {len(references)}.")
        rows = [{"id": index, "box": box} for index, box in enumerate(references)]
        for index, row in enumerate(rows):
            if image_sizes is not None:
                row["height"], row["width"] = image_sizes[index]
            if image_ids is not None:
                row["image_id"] = image_ids[index]
        boxes = [{"id": index, "box_xyxy": box} for index, box in enumerate(predictions)]
        result = compute_grounding_metrics(boxes, rows, protocol, resamples=resamples)
        return {
            **result["figures"],
            "n": result["counts"]["one_target"],
            **({"intervals": result["intervals"]} if result["intervals"] else {}),
        }
