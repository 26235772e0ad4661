"""What a training step costs: heads, LoRA or everything, in fp32 and bf16, and how much of it never changes.

python -m benchmarks.training_step base --batch 2    # writes benchmarks/results/training-step/base.json

One process, one thread, CPU time of the process, the precisions in turn, the median of the rounds after the first.
`kept_mib` is what autograd keeps of a step for its backward pass, in bf16 the weights' copies in bf16 among it: with a
sample or two they outweigh what the activations save. `text` and `shared_vision` are the forward passes of
the text tower and of the vision layers before the first bridge, which give the same in every epoch while only bridges
and heads train: a cache of them could save that share of a step and no more.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hivg_hf import HiVGConfig, HiVGForVisualGrounding
from hivg_hf.evaluation.records import describe_versions
from hivg_hf.hilora import HiLoraConfig, is_new_parameter, start_stage
from hivg_hf.utils.atomic import write_json

WORDS = 12
PRECISIONS = ("fp32", "bf16")


def measure(preset: str, batch_size: int, rounds: int) -> dict[str, Any]:
    """The results of a preset, by what trains and precision."""
    torch.manual_seed(0)
    base = HiVGForVisualGrounding(HiVGConfig.preset(preset))
    batch = made_batch(base.config, batch_size)
    results: dict[str, Any] = {"preset": preset, "batch_size": batch_size, "words": WORDS, "rounds": rounds}
    results["steps"] = {kind: _measure_steps(trained(base, kind), batch, rounds) for kind in ("heads", "lora", "all")}
    whole = results["steps"]["heads"]["fp32"]["seconds"]
    for name, forward in frozen_parts(base, batch).items():
        seconds = statistics.median(_seconds(forward) for _ in range(rounds))
        results[name] = {"seconds": round(seconds, 4), "share_of_a_heads_step": round(seconds / whole, 4)}
    return results | {"threads": torch.get_num_threads(), "versions": describe_versions()}


def made_batch(config: HiVGConfig, batch_size: int) -> dict[str, torch.Tensor]:
    """Random pictures that fill the square, and expressions of `WORDS` tokens."""
    text, generator = config.clip_config.text_config, torch.Generator().manual_seed(0)
    patches = (config.image_size // config.clip_config.vision_config.patch_size) ** 2
    ids = torch.randint(5, text.vocab_size - 5, (batch_size, WORDS), generator=generator)
    return {
        "pixel_values": torch.randn(batch_size, 3, config.image_size, config.image_size, generator=generator),
        "patch_index": torch.arange(patches).repeat(batch_size, 1),
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": torch.tensor([0.5, 0.5, 0.3, 0.2]).repeat(batch_size, 1),
    }


def trained(base: HiVGForVisualGrounding, kind: str) -> nn.Module:
    """A copy of which heads, low-rank terms (attention, rank 16) with heads, or everything trains."""
    model: Any = copy.deepcopy(base)
    if kind == "lora":
        model = start_stage(model, HiLoraConfig.for_model(model.config, 1, rank=16, dropout=0.0), 1)
    for name, parameter in model.named_parameters() if kind == "heads" else ():
        parameter.requires_grad_(is_new_parameter(name))
    return model.train()


def _measure_steps(model: nn.Module, batch: dict[str, torch.Tensor], rounds: int) -> dict[str, dict[str, float]]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6)
    seconds: dict[str, list[float]] = {precision: [] for precision in PRECISIONS}
    for _ in range(rounds + 1):
        for precision, taken in seconds.items():
            taken.append(_seconds(lambda: _step(model, batch, optimizer, precision)))  # noqa: B023
    return {
        precision: {
            "seconds": round(statistics.median(taken[1:]), 4),
            "kept_mib": round(kept_bytes(model, batch, precision) / 2**20, 1),
        }
        for precision, taken in seconds.items()
    }


def _step(model: nn.Module, batch: dict[str, torch.Tensor], optimizer: torch.optim.Optimizer, precision: str) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        loss = model(**batch).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def kept_bytes(model: nn.Module, batch: dict[str, torch.Tensor], precision: str) -> int:
    """Bytes that autograd keeps of a forward pass, weights left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
    ):
        loss = model(**batch).loss  # keeps the tensors, so that no address is used twice
    del loss
    return sum(kept.values())


def frozen_parts(model: HiVGForVisualGrounding, batch: dict[str, torch.Tensor]) -> dict[str, Callable[[], Any]]:
    """What computes the same in every epoch while only bridges and heads train."""
    clip = model.clip

    @torch.no_grad()
    def text() -> None:
        clip.text_model(batch["input_ids"])

    @torch.no_grad()
    def shared_vision() -> None:
        tower = clip.vision_model
        states = tower.pre_layrnorm(tower.embeddings(batch["pixel_values"], batch["patch_index"]))  # (B, 1 + P, V)
        for layer in tower.encoder.layers[: tower.last_shared_layer]:
            states = layer(states)
        last = tower.encoder.layers[tower.last_shared_layer]
        last.self_attn(last.layer_norm1(states))

    return {"text": text, "shared_vision": shared_vision}


def _seconds(call: Callable[[], Any]) -> float:
    began = time.process_time()
    call()
    return time.process_time() - began


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", help="of HiVGConfig")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/training-step"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.results.mkdir(parents=True, exist_ok=True)
    write_json(
        arguments.results / f"{arguments.preset}.json", measure(arguments.preset, arguments.batch, arguments.rounds)
    )


if __name__ == "__main__":
    main()
