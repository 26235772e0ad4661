"""What goes with what in HiLoRA, asked of the code; `python -m helpers.hilora_page` prints docs/hilora.md's tables.

Run from the repository: `PYTHONPATH=tests:. python -m helpers.hilora_page`.
"""

import sys
from typing import Any

from hivg_hf.hilora.options import ACCEPTED, REFUSED
from hivg_hf.training import parse_recipe

ARRANGEMENTS: dict[str, dict[str, Any]] = {
    "additive": {"hilora": {"mode": "additive"}, "stages": 2},
    "progressive": {"hilora": {"mode": "progressive"}, "stages": 2},
    "one stage": {"hilora": {}, "stages": 1},
}
# What is tried with each arrangement: keys of `hilora`, and keys of the last stage.
VALUES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "`hilora.order: deep_to_shallow`": ({"order": "deep_to_shallow"}, {}),
    "`hilora.schedule: shared`": ({"schedule": "shared"}, {}),
    "`hilora.targets: attention`, `mlp` or `all-linear`": ({"targets": "all-linear"}, {}),
    "`hilora.targets` with layers of the bridges": ({"targets": ["q_proj", "bridge.q_proj"]}, {}),
    "`coto: {}`": ({}, {"coto": {}}),
    "`loraplus_ratio: 16`": ({}, {"loraplus_ratio": 16}),
    "a `rank`, `alpha` or `dropout` of its own": ({}, {"rank": 8}),
    "a `learning_rate`, `batch_size`, `data` or loss of its own": ({}, {"learning_rate": 2e-4}),
    "`lora_options: {use_rslora: true}`": ({"lora_options": {"use_rslora": True}}, {}),
    "`lora_options: {use_dora: true}`": ({"lora_options": {"use_dora": True}}, {}),
    "`lora_options: {lora_bias: true}`": ({"lora_options": {"lora_bias": True}}, {}),
    "`lora_options: {rank_pattern: ...}`": ({"lora_options": {"rank_pattern": {"q_proj": 8}}}, {}),
    "`lora_options: {init_lora_weights: gaussian}`": ({"lora_options": {"init_lora_weights": "gaussian"}}, {}),
    "`lora_options: {init_lora_weights: pissa}`": ({"lora_options": {"init_lora_weights": "pissa"}}, {}),
    "`hilora.targets` in a later stage alone": ({}, {"targets": "mlp"}),
}


def recipe(arrangement: str, hilora: dict[str, Any], last: dict[str, Any]) -> dict[str, Any]:
    """The content of a recipe of two stages, or of one."""
    made = ARRANGEMENTS[arrangement]
    phase = {"train": "lora", "steps": 1, "learning_rate": 1e-4, "batch_size": 4, "text_layers": 12, "rank": 16}
    phases = [{**phase, "name": f"stage_{n}", "vision_layers": 6 * n} for n in range(1, 1 + made["stages"])]
    phases[-1].update(last)
    return {
        "name": "asked",
        "model": {"checkpoint": "base"},
        "data": {"train": {"source": "refshapes", "split": "train"}},
        "hilora": {**made["hilora"], **hilora},
        "phases": phases,
    }


def answer(arrangement: str, hilora: dict[str, Any], last: dict[str, Any]) -> str:
    """Yes, or no and that it is refused."""
    try:
        parse_recipe(recipe(arrangement, hilora, last))
    except ValueError:
        return "refused"
    return "yes"


def combinations() -> str:
    """The table of what goes with what."""
    lines = ["| | " + " | ".join(ARRANGEMENTS) + " |", "| --- |" + " --- |" * len(ARRANGEMENTS)]
    for name, (hilora, last) in VALUES.items():
        answers = [answer(arrangement, hilora, last) for arrangement in ARRANGEMENTS]
        lines.append(f"| {name} | {' | '.join(answers)} |")
    return "\n".join(lines)


def options() -> str:
    """The table of the fields of PEFT's `LoraConfig`."""
    lines = ["| `lora_options` | |", "| --- | --- |"]
    lines += [f"| `{name}` | {expected.partition(' (')[0]} |" for name, (_, expected) in ACCEPTED.items()]
    lines += [f"| `{name}` | refused: {why} |" for name, why in REFUSED.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(f"{combinations()}\n\n{options()}\n")
