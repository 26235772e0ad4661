"""What should a score read beside [REG]? Score heads alone, trained on frozen features of a checkpoint.

    python -m benchmarks.score_inputs CACHE --out benchmarks/results/score-inputs/hivg-tiny-refshapes.json \
        --document docs/scores.md

Every head is trained for the same steps on the same rows of RefShapes' `train` split, of which a part names nothing,
with seeds of its own for start and order. The threshold is chosen on `val+none` rows of one seed, where the smaller of
N-acc and T-acc is largest, and quoted on those of another; so is the calibration error after `hivg calibrate
--base-rate` for two shares of expressions that name nothing. Boxes are the checkpoint's in every row of the table: no
input can cost accuracy. CACHE keeps the features, which are what takes time.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.data import DataLoader

from hivg_hf.checkpoints import TINY_CHECKPOINT
from hivg_hf.data import GroundingCollator, load_grounding_dataset
from hivg_hf.evaluation.card_tables import markdown_table
from hivg_hf.inference.calibration import ScoredRows, fit_score
from hivg_hf.metrics import balanced_threshold, batch_box_iou, score_auc, score_report
from hivg_hf.modeling.modeling_hivg import HiVGForVisualGrounding
from hivg_hf.modeling.processing_hivg import HiVGProcessor
from hivg_hf.modeling.score_head_hivg import SCORE_INPUTS, ScoreEvidence
from hivg_hf.utils.atomic import write_json

from .marked_tables import with_marked

ALL = list(SCORE_INPUTS)
NUMBERS = ["box_similarity", "sharpness", "contrastive"]
READ = {
    "reg": ["reg"],
    "reg, MLP": ["reg"],  # the control: as many layers as the others, and nothing more to read
    **{f"reg + {name}": ["reg", name] for name in ALL[1:]},
    "reg + numbers": ["reg", *NUMBERS],
    "reg + expression + box_patches": ["reg", "expression", "box_patches"],
    "all": ALL,
}
SEEDS = (1, 2, 3)
TRAIN = {"split": "train", "seed": 77, "no_target_fraction": 0.3, "stored_side": 112, "masks": False}
CHOOSE, QUOTE = ({"split": "val+none", "seed": seed, "size": 1000, "masks": False} for seed in (8100, 8200))
BATCH, RATE = 256, 1e-3
BASE_RATES = (0.1, 0.5)

Features = dict[str, torch.Tensor]


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Cache the features, train, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path, help="folder of the features")
    parser.add_argument("--model", default=TINY_CHECKPOINT)
    parser.add_argument("--rows", type=int, default=10_000, help="rows that train")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    parser.add_argument("--document", type=Path, help="Markdown file whose tables are written anew")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    model = HiVGForVisualGrounding.from_pretrained(options.model, score_inputs=ALL).eval()
    processor = HiVGProcessor.from_pretrained(options.model)
    rows = {"train": {**TRAIN, "size": options.rows}, "choose": CHOOSE, "quote": QUOTE}
    options.cache.mkdir(parents=True, exist_ok=True)
    features = {
        name: cached(options.cache / f"{name}.pt", lambda spec=spec: look(model, processor, spec))
        for name, spec in rows.items()
    }
    shipped = model.grounding_head.score_head
    found = {"as it is": [measure(lambda read: linear(shipped, read), features)]}
    for name, inputs in READ.items():
        found[name] = [
            measure(train(shipped, inputs, features["train"], seed, options.epochs, name != "reg"), features)
            for seed in SEEDS
        ]
    result = {
        **{"model": Path(options.model).name, "rows": rows, "seeds": SEEDS, "epochs": options.epochs},
        **{"batch_size": BATCH, "learning_rate": RATE, "box_accuracy": accuracy(features["quote"])},
        "figures": found,
    }
    print_table(found)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.out, result)
    if options.document:
        text = with_tables(options.document.read_text(encoding="utf-8"), result)
        options.document.write_text(text, encoding="utf-8")
    return result


def cached(path: Path, make: Any) -> Features:
    if not path.is_file():
        torch.save(make(), path)
    return torch.load(path, weights_only=True)


@torch.inference_mode()
def look(model: HiVGForVisualGrounding, processor: HiVGProcessor, spec: dict[str, Any]) -> Features:
    """Every input (N, C) of every row, whether its box is right, and whether it names nothing."""
    dataset = load_grounding_dataset("refshapes", **spec)
    loader: Any = DataLoader(dataset, batch_size=64, collate_fn=GroundingCollator(processor, masks=False))
    seen: list[Features] = []
    evidence = model.grounding_head.score_head.evidence
    hook = evidence.register_forward_hook(lambda module, args, output: seen.append(module.collect(*args)))
    right, nothing, began = [], [], time.perf_counter()
    for batch in loader:
        inputs = {name: batch[name] for name in processor.model_input_names if name in batch}
        boxes = model(**inputs).pred_boxes
        iou = batch_box_iou(boxes, batch["labels"], batch["pixel_mask"])
        right.append(iou >= 0.5)  # NaN compares as False
        nothing.append(iou.isnan())
    hook.remove()
    print(f"{spec['split']}: {len(dataset)} rows in {time.perf_counter() - began:.0f} s", flush=True)
    features = {name: torch.cat([read[name][:, 0] for read in seen]).clone() for name in seen[0]}
    return {**features, "right": torch.cat(right), "nothing": torch.cat(nothing)}


def linear(head: nn.Linear, read: Features) -> torch.Tensor:
    return F.linear(read["reg"], head.weight, head.bias)[:, 0]


def train(head: nn.Linear, inputs: list[str], features: Features, seed: int, epochs: int, more: bool) -> Any:
    """A score head that begins as the checkpoint's; with `more`, with an MLP on the inputs beside it."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    own = nn.Linear(head.in_features, 1)
    own.load_state_dict({name: value for name, value in head.state_dict().items() if "evidence" not in name})
    evidence = ScoreEvidence(inputs, head.in_features, grid=1)
    nn.init.zeros_(evidence.fc2.weight)
    nn.init.zeros_(evidence.fc2.bias)

    def logits(read: Features) -> torch.Tensor:
        return linear(own, read) + (evidence.judge(read)[:, 0] if more else 0)

    parameters = [*own.parameters(), *(evidence.parameters() if more else ())]
    rows = len(features["right"])
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=epochs * (rows // BATCH))
    for _ in range(epochs):
        order = torch.randperm(rows, generator=generator)
        for start in range(0, rows - BATCH + 1, BATCH):
            chosen = order[start : start + BATCH]
            read = {name: values[chosen] for name, values in features.items()}
            loss = F.binary_cross_entropy_with_logits(logits(read), read["right"].float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return logits


@torch.no_grad()
def measure(logits: Any, features: dict[str, Features]) -> dict[str, float]:
    """AUROC of right against wrong boxes and of something against nothing; N-acc and T-acc; calibration errors."""
    choose, quote = (scored(logits, features[name]) for name in ("choose", "quote"))
    threshold = balanced_threshold(choose.values, choose.nothing)
    answered = quote.values >= threshold
    found = {
        "auroc": score_auc(quote.values, quote.right),
        "auroc_something": score_auc(quote.values, ~quote.nothing),
        "n_acc": float(1 - answered[quote.nothing].mean()),
        "t_acc": float(answered[~quote.nothing].mean()),
        "threshold": float(1 / (1 + np.exp(-threshold))),
    }
    for rate in BASE_RATES:
        fields = fit_score(choose, "head", base_rate=rate).fields
        calibrated = quote.values / fields["score_temperature"] + fields["score_bias"]
        for name, values in (("before", quote.values), ("after", calibrated)):
            report = score_report(1 / (1 + np.exp(-values)), quote.right, quote.nothing, rate)
            found[f"ece_{name}_{rate}"] = report["calibration_error"]
            found[f"aurc_{rate}"] = report["aurc"]
    return found


def scored(logits: Any, features: Features) -> ScoredRows:
    values = logits(features).numpy().astype(float)
    return ScoredRows(values, features["right"].numpy(), features["nothing"].numpy())


def accuracy(features: Features) -> float:
    return float(features["right"][~features["nothing"]].float().mean())


def with_tables(text: str, result: dict[str, Any]) -> str:
    """A document with its tables of inputs and of base rates as the results say, each between its two comments."""
    figures = result["figures"]
    return with_marked(text, {"inputs": inputs_table(figures), "base rates": rates_table(figures)})


def inputs_table(figures: dict[str, list[dict[str, float]]]) -> str:
    header = ["reads", "AUROC, right", "AUROC, something", "N-acc", "T-acc"]
    lines = []
    for read, runs in figures.items():
        cells = []
        for name in ("auroc", "auroc_something", "n_acc", "t_acc"):
            values = [100 * run[name] for run in runs]
            spread = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.1f}{spread}")
        lines.append([read, *cells])
    return markdown_table(header, lines)


def rates_table(figures: dict[str, list[dict[str, float]]]) -> str:
    """ECE of the checkpoint as it is."""
    (run,) = figures["as it is"]
    lines = [
        [
            f"{rate:.0%}",
            f"{run[f'ece_before_{rate}']:.3f}",
            f"{run[f'ece_after_{rate}']:.3f}",
            f"{run[f'aurc_{rate}']:.3f}",
        ]
        for rate in BASE_RATES
    ]
    return markdown_table(["name nothing", "ECE as it is", "ECE after `--base-rate`", "AURC"], lines)


def print_table(found: dict[str, list[dict[str, float]]]) -> None:
    names = ["auroc", "auroc_something", "n_acc", "t_acc", "ece_after_0.1", "ece_after_0.5"]
    table = Table("reads", *names, title="mean over seeds, and its deviation")
    for read, runs in found.items():
        cells = []
        for name in names:
            values = [run[name] for run in runs]
            cells.append(f"{np.mean(values):.4f}" + (f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""))
        table.add_row(read, *cells)
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
