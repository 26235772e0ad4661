"""How much changes when a converted checkpoint no longer mixes the captions of a batch, as it must to be fine-tuned.

    python scripts/measure_batch_mixing.py                           # print the table
    python scripts/measure_batch_mixing.py --write docs/convert.md   # put it between the markers of that page

Runs on the recorded official cases of the tests (random weights in the official layout, so the figures say how the
computation reacts, not how accuracy does): the same converted weights with `bridge_mixes_batch` on and off.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from hivg_hf import HiVGConfig, HiVGForVisualGrounding, load_official_checkpoint
from hivg_hf.modeling.box_ops_hivg import box_cxcywh_to_xyxy, paired_iou_and_giou
from hivg_hf.utils.atomic import atomic_path

CASES = Path(__file__).resolve().parents[1] / "tests" / "fixtures" / "parity"
NAMES = ("base-single-layer-text", "base-two-layer-text-stage3", "base-mixup-stage1")
BATCH_SIZES = (1, 2, 8, 32)
BEGIN, END = "<!-- batch mixing: begin (written by scripts/measure_batch_mixing.py) -->", "<!-- batch mixing: end -->"


def measure(name: str, batch_size: int) -> dict[str, float]:
    """Compare the two settings on one case.

    Args:
        name: folder of the case.
        batch_size: samples in the batch.

    Returns:
        `box`: mean absolute change of a box coordinate, in percent of the square's side. `spread`: mean absolute
        deviation of a coordinate from its mean over the samples, in percent too: how much a box depends on its sample
        at all. `iou`: mean overlap of the two boxes of a sample. `token_logits`: relative change, by norm.
        `gradient`: cosine between the two gradients of the bridges' parameters.
    """
    inputs = make_batch(name, batch_size)
    mixed, own = (run(load(name, mixes), inputs) for mixes in (True, False))
    change = (mixed["boxes"] - own["boxes"]).abs().mean().item()
    corners = [box_cxcywh_to_xyxy(result["boxes"]) for result in (mixed, own)]
    tokens = (mixed["token_logits"] - own["token_logits"]).norm() / own["token_logits"].norm()
    return {
        "box": 100 * change,
        "spread": 100 * (own["boxes"] - own["boxes"].mean(0)).abs().mean().item(),
        "iou": paired_iou_and_giou(*corners)[0].mean().item(),
        "token_logits": tokens.item(),
        "gradient": torch.cosine_similarity(mixed["gradient"], own["gradient"], dim=0).item(),
    }


def load(name: str, mixes: bool) -> HiVGForVisualGrounding:
    case = json.loads((CASES / name / "case.json").read_text())
    config = HiVGConfig.from_official_args(case["args"], case["clip_config"], bridge_mixes_batch=mixes)
    return load_official_checkpoint(CASES / name / "official_state_dict.safetensors", config)


def make_batch(name: str, batch_size: int) -> dict[str, torch.Tensor]:
    """The case's pictures and targets over and over, each with an expression of its own of 3 to 12 tokens."""
    recorded = load_file(CASES / name / "tensors.safetensors")
    rows = torch.arange(batch_size) % len(recorded["pixel_values"])
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.zeros(batch_size, 77, dtype=torch.int64)
    for row, words in enumerate(torch.randint(1, 11, (batch_size,), generator=generator).tolist()):
        input_ids[row, 0], input_ids[row, words + 1] = 126, 127
        input_ids[row, 1 : words + 1] = torch.randint(1, 126, (words,), generator=generator)
    return {
        "input_ids": input_ids,
        "attention_mask": (input_ids != 0).long(),
        "pixel_values": recorded["pixel_values"][rows],
        "pixel_mask": 1 - recorded["padding_mask"][rows],
        "labels": recorded["target_boxes"][rows],
        "mask_labels": recorded["target_mask"][rows, 0],
    }


def run(model: HiVGForVisualGrounding, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Boxes, token logits, and the bridges' gradient as one vector."""
    output = model(**inputs, output_token_logits=True)
    output.loss.backward()
    gradients = [p.grad.flatten() for n, p in model.named_parameters() if ".bridge." in n and p.grad is not None]
    return {
        "boxes": output.pred_boxes.detach(),
        "token_logits": output.token_logits.detach(),
        "gradient": torch.cat(gradients),
    }


def table(rows: list[tuple[str, int, dict[str, float]]]) -> str:
    """The measurements as a Markdown table."""
    head = [
        "| case | batch | box coordinates | their spread | IoU of the boxes | token logits | cosine of gradients |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    return "\n".join(head + [_line(name, size, result) for name, size, result in rows])


def _line(name: str, size: int, result: dict[str, float]) -> str:
    cells = [
        name,
        str(size),
        f"{result['box']:.2f} %",
        f"{result['spread']:.2f} %",
        f"{result['iou']:.3f}",
        f"{100 * result['token_logits']:.1f} %",
        f"{result['gradient']:.3f}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="Markdown page with the two markers.")
    page = parser.parse_args().write
    text = table([(name, size, measure(name, size)) for name in NAMES for size in BATCH_SIZES])
    print(text)
    if page is not None:
        before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
        _, end, after = rest.partition(END)
        if not begin or not end:
            parser.error(f"{page} has no part between {BEGIN} and {END}.")
        with atomic_path(page) as path:
            path.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
