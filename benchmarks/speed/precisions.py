"""What int8 costs in accuracy: one model in torch, in onnxruntime and in onnxruntime's int8, on the same fresh rows.

    python -m benchmarks.speed.precisions --model tiny --out benchmarks/results/precisions/NAME.json

Rows of RefShapes that no training and no other measurement has used; boxes at IoU 0.5 and 0.75, differences with 95 %
intervals over pictures, and by how much boxes move. Exit status 1 where int8 loses more than the project allows itself
(0.3 points at 0.5, 1.5 at 0.75), or where onnxruntime's float32 is further from torch than 1e-5 of the picture's side.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hivg_hf.data import load_grounding_dataset
from hivg_hf.evaluation import EvaluationSettings, evaluate_model
from hivg_hf.evaluation.compare import compare_rows
from hivg_hf.evaluation.records import describe_data, describe_model
from hivg_hf.evaluation.sources import open_model
from hivg_hf.utils.atomic import write_json

from .run import describe_machine

ENGINES: dict[str, dict[str, Any]] = {
    "torch fp32": {"backend": "torch", "precision": "fp32"},
    "onnxruntime fp32": {"backend": "onnx", "precision": "fp32"},
    "onnxruntime int8": {"backend": "onnx", "precision": "int8"},
}
PROTOCOL = "ref-l4"  # pixel boxes, and the one with an accuracy at 0.75
FIGURES = ("acc@0.5", "acc@0.75", "mean_iou")
ALLOWED_LOSS = {"acc@0.5": 0.003, "acc@0.75": 0.015}
LARGEST_MOVE = 1e-5


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate, compare, print, write; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="results file")
    parser.add_argument("--model", default="tiny", help="tiny, a model folder or a Hub id")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=7519, help="of the rows: take one that nothing else has used")
    parser.add_argument("--batch-size", type=int, default=32)
    options = parser.parse_args(arguments)
    drawn = {"seed": options.seed, "size": options.rows, "masks": False}
    rows = load_grounding_dataset("refshapes", "val", **drawn)
    settings = EvaluationSettings(protocol=PROTOCOL, batch_size=options.batch_size, masks=False, resamples=0)
    models, evaluations = {}, {}
    for name, engine in ENGINES.items():
        model, processor, _ = open_model(options.model, **engine)
        models[name] = describe_model(model, Path(options.model).name)
        evaluations[name] = evaluate_model(model, processor, rows, settings)
    hashes = {described["weights_sha256"] for described in models.values()}
    if len(hashes) != 1:
        raise ValueError(f"The engines answered with different weights: {', '.join(sorted(hashes))}.")
    torch_one, fp32, int8 = (evaluations[name] for name in ENGINES)
    found: dict[str, Any] = {
        "models": models,
        "data": describe_data(torch_one.rows.references, "refshapes", "val", drawn),
        "machine": describe_machine(),
        "onnxruntime fp32 against torch fp32": compare(torch_one, fp32),
        "onnxruntime int8 against fp32": compare(fp32, int8),
    }
    found["missed"] = missed(found)
    write_json(options.out, found)
    for title in ("onnxruntime fp32 against torch fp32", "onnxruntime int8 against fp32"):
        print(title, found[title])
    print(*(found["missed"] or ["every limit holds"]), sep="\n")
    return 1 if found["missed"] else 0


def compare(first: Any, second: Any) -> dict[str, Any]:
    """Figures of two evaluations of the same rows, and how far boxes lie apart as a share of the picture's side."""
    compared = compare_rows(first.rows, second.rows, PROTOCOL)
    boxes = [np.array([row["box_xyxy"] for row in evaluation.predictions]) for evaluation in (first, second)]
    sides = np.array([[row["width"], row["height"]] for row in first.rows.references])  # (N, 2)
    moves = np.abs(boxes[0] - boxes[1]) / np.tile(sides, 2)  # (N, 4)
    return {
        **{name: compared["figures"][name] for name in FIGURES},
        **{
            "rows": compared["n"],
            "largest_move": float(moves.max()),
            "median_move": float(np.median(moves.max(axis=1))),
        },
    }


def missed(found: dict[str, Any]) -> list[str]:
    """A sentence for each limit that does not hold."""
    sentences = []
    for name, allowed in ALLOWED_LOSS.items():
        loss = -found["onnxruntime int8 against fp32"][name]["difference"]
        if loss > allowed:
            sentences.append(f"int8 loses {100 * loss:.2f} points of {name}; at most {100 * allowed:.1f} are allowed.")
    move = found["onnxruntime fp32 against torch fp32"]["largest_move"]
    if move > LARGEST_MOVE:
        sentences.append(
            f"A box of onnxruntime fp32 is {move:.1e} from torch's; at most {LARGEST_MOVE:.0e} is allowed."
        )
    return sentences


if __name__ == "__main__":
    sys.exit(main())
