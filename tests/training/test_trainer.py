"""The trainer: equal under accumulation and checkpointing, exact after a resume, honest in its log and evaluation."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from peft.optimizers import create_loraplus_optimizer
from safetensors.torch import load_file
from transformers import TrainerCallback

from helpers.training import ROWS, fresh_model, make_trainer, row_with_targets
from hivg_hf.data import GroundingCollator
from hivg_hf.hilora import HiLoraConfig, start_stage
from hivg_hf.training import HiVGTrainer, HiVGTrainingArguments
from hivg_hf.training.trainer import NonFiniteLossError


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def assert_same_weights(one, two, tolerance):
    """Equal but for the keys' biases: their true gradient is zero, and AdamW makes full steps of the rounding."""
    for (name, first), second in zip(one.state_dict().items(), two.state_dict().values(), strict=True):
        if name.endswith("in_proj_bias"):
            third = len(first) // 3
            first, second = (torch.cat([t[:third], t[2 * third :]]) for t in (first, second))
        if not name.endswith("k_proj.bias"):
            assert (first - second).abs().max() <= tolerance, name


@pytest.mark.parametrize(("batch", "per_device"), [(8, 2), (7, 3)])
def test_accumulation_changes_nothing(batch, per_device, tiny_model, tiny_processor, tmp_path):
    """4 micro-batches of 2, and 7 samples in micro-batches of 2, 2 and 3, against one batch."""
    trainers = []
    for size in (batch, per_device):
        model = fresh_model(tiny_model, contrastive=0.0)
        trainer = make_trainer(
            model, tiny_processor, tmp_path, global_batch_size=batch, per_device_train_batch_size=size
        )
        trainer.train()
        trainers.append(trainer)
    one, many = trainers
    assert many.args.gradient_accumulation_steps == math.ceil(batch / per_device)
    for first, second in zip(one.state.log_history[:-1], many.state.log_history[:-1], strict=True):
        for name in first:
            if name.startswith(("loss", "grad_norm")):
                assert first[name] == pytest.approx(second[name], abs=1e-4, rel=1e-4), name
    assert_same_weights(one.model, many.model, 1e-4)


@pytest.mark.parametrize(("num_queries", "counts"), [(1, (0, 0, 1, 1, 1, 0, 1, 1)), (3, (0, 4, 1, 0, 2, 3, 1, 1))])
def test_accumulation_changes_nothing_where_rows_name_nothing_or_several_things(
    num_queries, counts, tiny_model, tiny_processor, tmp_path
):
    """Box terms are means over targets, and micro-batches of two rows hold from none to five of them."""
    rows = [row_with_targets(row, counts[place % 8]) for place, row in enumerate(ROWS)]
    trainers = []
    for size in (8, 2):
        model = fresh_model(tiny_model, contrastive=0.0)
        if num_queries > 1:
            model.add_queries(num_queries)
        trainers.append(make_trainer(model, tiny_processor, tmp_path, rows=rows, per_device_train_batch_size=size))
        trainers[-1].train()
    one, many = trainers
    assert many.args.gradient_accumulation_steps == 4
    for first, second in zip(one.state.log_history[:-1], many.state.log_history[:-1], strict=True):
        for name in first:
            if name.startswith(("loss", "grad_norm")):
                assert first[name] == pytest.approx(second[name], abs=1e-4, rel=1e-4), name
    assert_same_weights(one.model, many.model, 2e-4)


def test_every_term_is_logged_unweighted_and_averaged_over_the_window(tiny_model, tiny_processor, tmp_path):
    trainer = make_trainer(fresh_model(tiny_model), tiny_processor, tmp_path, logging_steps=2)
    trainer.train()
    each = make_trainer(fresh_model(tiny_model), tiny_processor, tmp_path, logging_steps=1)
    each.train()
    weights = tiny_model.config.loss_weights
    windows = [entry for entry in trainer.state.log_history if "loss" in entry]
    steps = [entry for entry in each.state.log_history if "loss" in entry]
    assert [entry["step"] for entry in windows] == [2, 4]
    terms = {name.removeprefix("loss_") for name in windows[0] if name.startswith("loss_")}
    assert terms >= {"bbox", "giou", "contrastive", "token_focal", "token_dice", "mask_focal", "mask_dice", "score"}
    for number, window in enumerate(windows):
        assert window["loss"] == pytest.approx(sum(weights[name] * window[f"loss_{name}"] for name in terms), rel=1e-5)
        for name in terms:
            pair = [entry[f"loss_{name}"] for entry in steps[2 * number : 2 * number + 2]]
            assert window[f"loss_{name}"] == pytest.approx(sum(pair) / 2, rel=1e-5)


@pytest.mark.parametrize("way", ["function", "method"])
def test_a_loss_of_ones_own_is_logged_without_terms(way, tiny_model, tiny_processor, tmp_path):
    class Mine(HiVGTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            outputs = model(**inputs)
            return (outputs.loss, outputs) if return_outputs else outputs.loss

    def distance(outputs, labels, num_items_in_batch=None):
        return (outputs.pred_boxes - labels).abs().mean()

    arguments = HiVGTrainingArguments(str(tmp_path), max_steps=3, logging_steps=1, report_to="none", use_cpu=True)
    kind, options = (HiVGTrainer, {"compute_loss_func": distance}) if way == "function" else (Mine, {})
    trainer = kind(fresh_model(tiny_model), arguments, None, ROWS, processing_class=tiny_processor, **options)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["step"] for entry in logged] == [1, 2, 3]
    assert not any(name.startswith("loss_") for entry in logged for name in entry)


def test_activation_checkpointing_changes_nothing(tiny_model, tiny_processor, tmp_path):
    results = []
    for checkpointing in (False, True):
        model = fresh_model(tiny_model, dropout=0.2)
        trainer = make_trainer(model, tiny_processor, tmp_path, activation_checkpointing=checkpointing)
        trainer.train()
        results.append(trainer)
    assert losses(results[0]) == pytest.approx(losses(results[1]), rel=1e-5)
    assert_same_weights(results[0].model, results[1].model, 1e-5)


def test_bf16_trains(tiny_model, tiny_processor, tmp_path):
    trainer = make_trainer(
        fresh_model(tiny_model), tiny_processor, tmp_path, bf16=True, max_steps=12, learning_rate=5e-3
    )
    trainer.train()
    assert all(math.isfinite(loss) for loss in losses(trainer))
    assert np.mean(losses(trainer)[-3:]) < losses(trainer)[0]
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("adapters", [0, 2])
def test_a_resumed_training_equals_an_unbroken_one_bit_for_bit(adapters, tiny_model, tiny_processor, tmp_path):
    """Dropout on, several adapters: 2 + 2 steps against 4, in a trainer and model of their own."""

    def build(folder, steps):
        torch.manual_seed(1)
        model = fresh_model(tiny_model, dropout=0.1)
        config = HiLoraConfig.for_model(model.config, 2, rank=2)
        for stage in range(1, adapters + 1):
            model = start_stage(model, config, stage)
        return make_trainer(model, tiny_processor, folder, save_strategy="steps", save_steps=steps)

    whole = build(tmp_path / "whole", 4)
    whole.train()
    first = build(tmp_path / "broken", 2)
    first.train()
    torch.manual_seed(99)  # another process knows nothing of the first one's random numbers
    second = build(tmp_path / "broken", 2)
    if adapters:
        # an untrained first adapter must not survive the load
        with torch.no_grad():
            next(p for n, p in second.model.named_parameters() if "lora_A.stage_1" in n).add_(1)
    trains_before = {name: p.requires_grad for name, p in second.model.named_parameters()}
    second.train(resume_from_checkpoint=str(tmp_path / "broken" / "checkpoint-2"))
    assert {name: p.requires_grad for name, p in second.model.named_parameters()} == trains_before
    assert losses(second)[-2:] == losses(whole)[-2:]
    for (name, one), two in zip(whole.model.state_dict().items(), second.model.state_dict().values(), strict=True):
        assert torch.equal(one, two), name


class Poison(TrainerCallback):
    """Make the model's next loss infinite."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.step:
            with torch.no_grad():
                model.grounding_head.box_head.layers[0].weight.fill_(float("nan"))


def test_a_loss_that_is_not_finite_stops_and_names_the_last_good_checkpoint(tiny_model, tiny_processor, tmp_path):
    trainer = make_trainer(
        fresh_model(tiny_model), tiny_processor, tmp_path, save_strategy="steps", save_steps=2, callbacks=[Poison(3)]
    )
    with pytest.raises(NonFiniteLossError, match=r"stopped at step 4: the loss is not finite .*bbox.*checkpoint-2"):
        trainer.train()
    kept = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in kept.values())
    assert not (tmp_path / "checkpoint-4").exists()


class InfiniteGradient(HiVGTrainer):
    def compute_loss(self, model, inputs, **kwargs):
        loss, outputs = super().compute_loss(model, inputs, **{**kwargs, "return_outputs": True})
        poisoned = loss + (model.grounding_head.reg_token.weight.sum() * 0).sqrt()  # value 0, gradient 0 / 0
        return (poisoned, outputs) if kwargs.get("return_outputs") else poisoned


def test_a_gradient_that_is_not_finite_stops_before_it_reaches_the_weights(tiny_model, tiny_processor, tmp_path):
    model = fresh_model(tiny_model)
    before = copy.deepcopy(model.state_dict())
    trainer = make_trainer(model, tiny_processor, tmp_path, kind=InfiniteGradient)
    with pytest.raises(
        NonFiniteLossError, match=r"step 1: the gradient is not finite. No checkpoint had been written"
    ):
        trainer.train()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class FailsWhileSaving(HiVGTrainer):
    def _save_rng_state(self, output_dir):
        if self.state.global_step == 4:
            raise OSError("No space left on device")
        super()._save_rng_state(output_dir)


def test_a_checkpoint_is_whole_or_not_there(tiny_model, tiny_processor, tmp_path):
    trainer = make_trainer(
        fresh_model(tiny_model), tiny_processor, tmp_path, kind=FailsWhileSaving, save_strategy="steps", save_steps=2
    )
    with pytest.raises(OSError, match=r"The disk is full: .*checkpoint-4 could not be written"):
        trainer.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]


class Scripted(HiVGTrainer):
    """Evaluations that answer what they are told."""

    accuracies = (0.3, 0.6, 0.6, 0.1, 0.2, 0.5)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        metrics = {"eval_accuracy": self.accuracies[self.state.global_step - 1]}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def scripted(tiny_model, tiny_processor, folder, **changes):
    settings = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 4, "max_steps": 6}
    return make_trainer(
        fresh_model(tiny_model), tiny_processor, folder, kind=Scripted, eval_rows=ROWS[:2], **{**settings, **changes}
    )


def test_the_best_checkpoint_by_accuracy_and_the_newest_are_kept(tiny_model, tiny_processor, tmp_path):
    trainer = scripted(tiny_model, tiny_processor, tmp_path)
    trainer.train()
    assert trainer.state.best_global_step == 2  # a tie does not replace it
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-6"]
    trainer.load_best_weights()
    best = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    assert all(torch.equal(tensor, best[name]) for name, tensor in trainer.model.state_dict().items())
    state = json.loads((tmp_path / "checkpoint-6" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(tmp_path / "checkpoint-2")


def test_nothing_counts_as_best_that_does_not_beat_the_start(tiny_model, tiny_processor, tmp_path):
    trainer = scripted(tiny_model, tiny_processor, tmp_path, initial=0.6)
    trainer.train()
    assert trainer.state.best_global_step is None or trainer.state.best_global_step == 0


def test_early_stop_counts_evaluations_without_gain(tiny_model, tiny_processor, tmp_path):
    trainer = scripted(tiny_model, tiny_processor, tmp_path, early_stop=2)
    trainer.train()
    assert trainer.state.global_step == 4  # 0.6 at step 2, then two without gain
    again = scripted(tiny_model, tiny_processor, tmp_path, early_stop=2)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert again.state.global_step == 5  # transformers makes one step before it looks; there is no evaluation more
    assert again.state.best_global_step == 2


def test_the_rate_is_constant_within_an_epoch_when_the_schedule_goes_by_epochs(tiny_model, tiny_processor, tmp_path):
    trainer = make_trainer(
        fresh_model(tiny_model), tiny_processor, tmp_path, max_steps=-1, num_train_epochs=3,
        lr_scheduler_type="cosine", schedule_by_epoch=True,
    )  # fmt: skip
    trainer.train()
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    expected = [1e-3 * 0.5 * (1 + math.cos(math.pi * epoch / 3)) for epoch in (0, 0, 0, 1, 1, 1, 2, 2, 2)]
    assert rates == pytest.approx(expected)


def test_trainings_that_share_a_schedule_go_through_it_one_after_the_other(tiny_model, tiny_processor, tmp_path):
    """Three trainings of four steps have the rates of one of twelve; a resumed one those of an unbroken one."""

    def rates(folder, **changes):
        trainer = make_trainer(
            fresh_model(tiny_model), tiny_processor, folder, lr_scheduler_type="cosine", warmup_steps=0.25,
            save_strategy="steps", save_steps=2, **changes,
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=changes.pop("resume", None))
        return [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]

    whole = rates(tmp_path / "whole", max_steps=12)
    assert whole[:4] == pytest.approx([0, 1e-3 / 3, 2e-3 / 3, 1e-3])
    parts = [rates(tmp_path / str(start), schedule_start=start, schedule_steps=12) for start in (0, 4, 8)]
    assert parts[0] + parts[1] + parts[2] == pytest.approx(whole)
    trainer = make_trainer(
        fresh_model(tiny_model), tiny_processor, tmp_path / "8", lr_scheduler_type="cosine", warmup_steps=0.25,
        schedule_start=8, schedule_steps=12,
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=str(tmp_path / "8" / "checkpoint-2"))
    again = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert again == pytest.approx(whole[8:])


def test_lora_plus_raises_the_rate_of_b_alone(tiny_model, tiny_processor, tmp_path):
    """As PEFT's own optimizer on the terms; bridge and head, whose vectors that one would raise too, keep theirs."""
    model = start_stage(fresh_model(tiny_model), HiLoraConfig.for_model(tiny_model.config, 1, rank=2), 1)
    trainer = make_trainer(model, tiny_processor, tmp_path, loraplus_ratio=16.0, weight_decay=0.01)
    trainer.create_optimizer()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {names[id(p)]: group["lr"] for group in trainer.optimizer.param_groups for p in group["params"]}
    assert found.keys() == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(rate == pytest.approx(16e-3 if "lora_B" in name else 1e-3) for name, rate in found.items())
    theirs = create_loraplus_optimizer(model, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16)
    for group in theirs.param_groups:
        for parameter in group["params"]:
            if "lora_" in names[id(parameter)]:
                assert found[names[id(parameter)]] == pytest.approx(group["lr"])
    decays = {names[id(p)]: g["weight_decay"] for g in trainer.optimizer.param_groups for p in g["params"]}
    assert {rate for name, rate in decays.items() if "lora_B" in name} == {0.01}
    assert decays["base_model.model.grounding_head.token_norm.bias"] == 0


def test_a_resumed_lora_plus_training_equals_an_unbroken_one(tiny_model, tiny_processor, tmp_path):
    def build():
        torch.manual_seed(1)
        model = start_stage(fresh_model(tiny_model), HiLoraConfig.for_model(tiny_model.config, 1, rank=2), 1)
        settings = {"loraplus_ratio": 4.0, "save_strategy": "steps", "save_steps": 2}
        return make_trainer(model, tiny_processor, tmp_path, **settings)

    whole, again = build(), build()
    whole.train()
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for (name, one), two in zip(whole.model.state_dict().items(), again.model.state_dict().values(), strict=True):
        assert torch.equal(one, two), name


def test_weight_decay_reaches_everything_only_where_asked(tiny_model, tiny_processor, tmp_path):
    for decay_all in (False, True):
        trainer = make_trainer(fresh_model(tiny_model), tiny_processor, tmp_path, decay_all=decay_all)
        names = set(trainer.get_decay_parameter_names(trainer.model))
        assert ("grounding_head.token_norm.bias" in names) is decay_all
        assert "grounding_head.token_mlp.fc1.weight" in names


def test_gathered_negatives_ask_for_equal_shares(tiny_model, tiny_processor, tmp_path, monkeypatch):
    model = fresh_model(tiny_model)
    model.config.contrastive_gather = True
    trainer = make_trainer(model, tiny_processor, tmp_path, global_batch_size=7)
    assert len(trainer.get_train_dataloader()) == 3  # one process gathers nothing
    monkeypatch.setattr(HiVGTrainingArguments, "world_size", 2)
    with pytest.raises(ValueError, match=r"a batch of 7 does not divide into 2 pieces \(2 processes x 1"):
        trainer.get_train_dataloader()


def test_parts_that_are_not_what_they_should_be_are_refused_at_once(tiny_model, tiny_processor, tmp_path):
    arguments = HiVGTrainingArguments(str(tmp_path))
    with pytest.raises(TypeError, match=r"needs the model's HiVGProcessor as processing_class.*pass the whole proc"):
        HiVGTrainer(tiny_model, arguments, processing_class=tiny_processor.tokenizer)
    with pytest.raises(TypeError, match=r"is the class GroundingCollator.*GroundingCollator\(processor\)"):
        HiVGTrainer(tiny_model, arguments, GroundingCollator, processing_class=tiny_processor)


def test_a_trainer_without_a_processor_is_refused(tiny_model, tmp_path):
    with pytest.raises(ValueError, match=r"needs the model's HiVGProcessor: pass it as processing_class"):
        make_trainer(fresh_model(tiny_model), None, tmp_path)


@pytest.mark.parametrize("with_adapters", [False, True])
def test_thresholds_of_the_start_are_cleared_aloud(with_adapters, tiny_model, tiny_processor, tmp_path, caplog):
    model = fresh_model(tiny_model)
    model.config.score_threshold, model.config.multiple_threshold = 0.625, 0.25
    trained = start_stage(model, HiLoraConfig.for_model(model.config, stages=1), 1) if with_adapters else model
    trainer = make_trainer(trained, tiny_processor, tmp_path, max_steps=1)
    assert model.config.score_threshold == 0.625  # evaluating before training is the calibrated model's
    trainer.train()
    assert (model.config.score_threshold, model.config.multiple_threshold) == (None, None)
    [said] = [record.getMessage() for record in caplog.records if "score:" in record.getMessage()]
    assert said.startswith("score: score_threshold 0.625 and multiple_threshold 0.25 cleared")
    assert "`hivg calibrate`" in said


def test_thresholds_chosen_for_the_scores_to_come_are_kept(tiny_model, tiny_processor, tmp_path, caplog):
    model = fresh_model(tiny_model)
    model.config.score_threshold = 0.5
    trainer = HiVGTrainer(
        model,
        HiVGTrainingArguments(tmp_path, max_steps=1, save_strategy="no", report_to=[], use_cpu=True),
        train_dataset=ROWS,
        processing_class=tiny_processor,
        keeps_thresholds=True,
    )
    trainer.train()
    assert model.config.score_threshold == 0.5
    assert "score:" not in caplog.text
