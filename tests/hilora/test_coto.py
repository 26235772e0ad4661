"""CoTo: layers left out by chance, fewer and fewer, the same ones after a resume, none at the end."""

import copy

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from helpers.training import make_trainer
from hivg_hf.hilora import CoTo, CoToCallback, HiLoraConfig, merge_stages, start_stage
from hivg_hf.hilora.coto import trained_layers


def test_the_probability_rises_to_one_and_stays():
    coto = CoTo(initial=0.2, until=0.5)
    assert [coto.probability(step, 8) for step in range(8)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1])


def test_layers_take_part_as_often_as_the_probability_says():
    drawn = np.array([CoTo(0.3, 1.0).draw(0, 10**9, 40, seed) for seed in range(500)])
    assert drawn.mean() == pytest.approx(0.3, abs=0.02)
    assert all(any(CoTo(0.0).draw(0, 100, 7, seed)) for seed in range(50))  # one at least
    assert all(CoTo().draw(75, 100, 50, 1))


@pytest.mark.parametrize("values", [{"initial": -0.1}, {"initial": 1.5}, {"until": 0}, {"until": 1.5}])
def test_impossible_schedules_are_refused(values):
    with pytest.raises(ValueError, match=r"CoTo needs `initial` from 0 to 1 and `until` above 0"):
        CoTo(**values)


class Watch(TrainerCallback):
    """Which layers took part in each step, and what got a gradient."""

    def __init__(self, adapter):
        self.adapter, self.seen = adapter, []

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        for layers in trained_layers(model, self.adapter).values():
            parts = {self.adapter in layer.active_adapters for layer in layers}
            graded = {layer.lora_B[self.adapter].weight.grad is not None for layer in layers}
            assert parts == graded
            assert len(parts) == 1  # a layer is in or out as a whole
        self.seen.append(
            [self.adapter in layers[0].active_adapters for layers in trained_layers(model, self.adapter).values()]
        )


def train(tiny_model, processor, folder, mode="additive", resume=None, **changes):
    config = HiLoraConfig.for_model(tiny_model.config, 2, rank=2, dropout=0.1, mode=mode)
    torch.manual_seed(3)
    model = start_stage(start_stage(copy.deepcopy(tiny_model), config, 1), config, 2)
    watch = Watch(config.adapter_name(2))
    trainer = make_trainer(
        model, processor, folder, max_steps=8, save_strategy="steps", save_steps=4, **changes,
        callbacks=[CoToCallback(CoTo(initial=0.3), config.adapter_name(2)), watch],
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume)
    return trainer, watch


@pytest.mark.parametrize("mode", ["additive", "progressive"])
def test_every_layer_takes_part_in_the_end_and_merging_keeps_what_was_trained(
    mode, tiny_model, tiny_processor, tmp_path
):
    trainer, watch = train(tiny_model, tiny_processor, tmp_path, mode)
    assert not all(map(all, watch.seen[:6]))
    assert all(map(all, watch.seen[6:]))
    model = trainer.model.eval()
    for layers in trained_layers(model, watch.adapter).values():
        assert all(watch.adapter in layer.active_adapters for layer in layers)
    batch = {name: value for name, value in next(iter(trainer.get_eval_dataloader(trainer.train_dataset))).items()
             if name not in ("labels", "image_ids")}  # fmt: skip
    with torch.no_grad():
        before = model(**batch).pred_boxes
        assert (merge_stages(copy.deepcopy(model))(**batch).pred_boxes - before).abs().max() <= 1e-6


def test_a_resumed_training_leaves_out_the_same_layers(tiny_model, tiny_processor, tmp_path):
    whole, seen = train(tiny_model, tiny_processor, tmp_path)
    again, rest = train(tiny_model, tiny_processor, tmp_path, resume=str(tmp_path / "checkpoint-4"))
    assert rest.seen == seen.seen[4:]
    for (name, one), two in zip(whole.model.state_dict().items(), again.model.state_dict().values(), strict=True):
        assert torch.equal(one, two), name


def test_earlier_stages_stay_in(tiny_model, tiny_config):
    config = HiLoraConfig.for_model(tiny_config, 2, rank=2)
    model = start_stage(start_stage(copy.deepcopy(tiny_model), config, 1), config, 2)
    callback = CoToCallback(CoTo(initial=0.0), "stage_2")
    state = type("State", (), {"global_step": 0, "max_steps": 100})
    callback.on_step_begin(type("Args", (), {"seed": 0}), state, None, model=model)
    layer = model.get_base_model().clip.vision_model.encoder.layers
    found = [tuple(one.self_attn.q_proj.active_adapters) for one in layer]
    assert ("stage_1",) in found or () in found
    assert all("stage_1" in active for active, one in zip(found, layer) if "stage_1" in one.self_attn.q_proj.lora_A)
    callback.on_step_end(None, None, None)
    assert all("stage_2" in one.self_attn.q_proj.active_adapters for one in layer)
