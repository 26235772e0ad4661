"""A training step's cost: what trains, what is kept for the backward pass, what never changes."""

import torch

from benchmarks.training_step import _measure_steps, frozen_parts, kept_bytes, made_batch, trained


def test_more_that_trains_keeps_more_and_bf16_keeps_less(tiny_model):
    batch = made_batch(tiny_model.config, 2)
    kept = {kind: kept_bytes(trained(tiny_model, kind), batch, "fp32") for kind in ("heads", "lora", "all")}
    assert 0 < kept["heads"] < kept["all"]
    assert kept["heads"] < kept["lora"]
    assert kept_bytes(trained(tiny_model, "all"), batch, "bf16") < kept["all"]


def test_a_step_trains_what_its_kind_says(tiny_model):
    batch = made_batch(tiny_model.config, 2)
    model = trained(tiny_model, "heads")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert _measure_steps(model, batch, rounds=1)["bf16"]["seconds"] > 0
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all("bridge" in name or name.startswith("grounding_head") for name in changed)


def test_the_frozen_parts_end_where_the_first_bridge_begins(tiny_model):
    batch, seen = made_batch(tiny_model.config, 2), []
    tower = tiny_model.clip.vision_model
    hooks = [layer.self_attn.register_forward_hook(lambda *_, i=i: seen.append(i))
             for i, layer in enumerate(tower.encoder.layers)]  # fmt: skip
    parts = frozen_parts(tiny_model, batch)
    for part in parts.values():
        part()
    for hook in hooks:
        hook.remove()
    assert seen == list(range(tower.last_shared_layer + 1))
    assert tower.last_shared_layer == min(tiny_model.config.bridge_layers)
