"""The trainer as people who know transformers' Trainer expect it: metrics, losses, callbacks, searches, streams."""

import copy
import math
import sys
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from transformers import EarlyStoppingCallback, TrainingArguments
from transformers.hyperparameter_search import ALL_HYPERPARAMETER_SEARCH_BACKENDS
from transformers.trainer_utils import BestRun, HPSearchBackend

from helpers.training import ROWS, colored_box_rows, fresh_model, make_trainer, row_with_targets
from hivg_hf import HiVGForVisualGrounding, load_grounding_dataset
from hivg_hf.data import GroundingAugmentation, GroundingCollator, KeyedDataset
from hivg_hf.evaluation.predict import predict
from hivg_hf.metrics import GroundingEvalMetrics, compute_grounding_metrics
from hivg_hf.training import HiVGTrainer, HiVGTrainingArguments

EVALUATED = colored_box_rows(11, seed=2)
EVALUATED[3] = {**EVALUATED[3], "box": None, "boxes": [], "no_target": True}


@pytest.fixture
def trainer_of(tiny_model, tiny_processor, tmp_path):
    def make(rows=EVALUATED, **settings):
        return make_trainer(fresh_model(tiny_model), tiny_processor, tmp_path, eval_rows=rows, **settings)

    return make


@pytest.fixture
def query_model(tiny_config):
    config = copy.deepcopy(tiny_config)
    config.num_queries = 2
    return HiVGForVisualGrounding(config)


@pytest.mark.parametrize("batch", [1, 4, 64])
def test_each_row_counts_once_and_as_hivg_evaluate_counts_it(batch, trainer_of, tiny_model, tiny_processor):
    metrics = trainer_of(per_device_eval_batch_size=batch).evaluate()
    assert (metrics["eval_samples"], metrics["eval_rows"]) == (10, 11)
    predictions = predict(tiny_model, tiny_processor, EVALUATED, progress=False)
    references = [{**row, "id": number} for number, row in enumerate(EVALUATED)]
    figures = compute_grounding_metrics(predictions, references, resamples=0)["figures"]
    assert metrics["eval_mean_iou"] == pytest.approx(figures["mean_iou"], abs=1e-5)
    assert metrics["eval_accuracy"] == pytest.approx(figures["acc@0.5"])
    assert math.isfinite(metrics["eval_loss"])


def test_evaluation_leaves_a_model_in_the_mode_it_was_in(trainer_of):
    trainer = trainer_of()
    for training in (True, False):
        trainer.model.train(training)
        trainer.evaluate()
        assert trainer.model.training is training


def test_evaluation_is_not_augmented(trainer_of, tiny_processor):
    trainer = trainer_of()
    expected = trainer.evaluate()
    trainer.data_collator = GroundingCollator(tiny_processor, GroundingAugmentation.for_processor(tiny_processor))
    found = trainer.evaluate()
    assert found["eval_mean_iou"] == expected["eval_mean_iou"]
    assert found["eval_loss"] == expected["eval_loss"]
    assert trainer.data_collator.augmentation is not None


def test_rows_that_name_nothing_give_no_accuracy(trainer_of):
    metrics = trainer_of([EVALUATED[3]]).evaluate()
    assert (metrics["eval_samples"], metrics["eval_rows"]) == (0, 1)
    assert "eval_accuracy" not in metrics


def test_several_evaluation_sets_are_told_apart_by_name(trainer_of):
    metrics = trainer_of({"one": EVALUATED[:2], "two": EVALUATED[2:]}).evaluate()
    assert (metrics["eval_one_rows"], metrics["eval_two_rows"]) == (2, 9)
    assert "eval_two_loss" in metrics


@pytest.mark.parametrize("batchwise", [False, True])
def test_compute_metrics_gets_boxes_labels_inputs_and_losses(batchwise, trainer_of):
    seen = []

    def mine(evaluation, compute_result=True):
        boxes, scores = evaluation.predictions
        seen.append(len(boxes))
        assert boxes.shape == evaluation.label_ids.shape == (*scores.shape, 4)
        assert evaluation.inputs is not None
        assert torch.isfinite(torch.as_tensor(evaluation.losses)).all()
        return {"mine": 0.25, "accuracy": -1.0} if compute_result else {}

    trainer = trainer_of(include_for_metrics=["inputs", "loss"], batch_eval_metrics=batchwise)
    trainer.compute_metrics = mine
    metrics = trainer.evaluate()
    assert metrics["eval_mine"] == 0.25
    assert metrics["eval_accuracy"] == -1.0  # the user's figure of that name is kept
    assert seen == ([4, 4, 3] if batchwise else [11])


@pytest.mark.parametrize("most", [1, 3])
@pytest.mark.parametrize("batchwise", [False, True])
def test_labels_of_a_model_with_several_queries_have_places_only_where_rows_have_several_targets(
    most, batchwise, tiny_processor, query_model, tmp_path
):
    rows = [row_with_targets(row, min(1 + index // 4, most)) for index, row in enumerate(colored_box_rows(8, seed=2))]
    rows = [{**row, "box": row["box"] if len(row["boxes"]) == 1 else None} for row in rows]
    seen = []

    def mine(evaluation, compute_result=True):
        boxes, scores = evaluation.predictions
        seen.append(evaluation.label_ids.shape[1:])
        assert boxes.shape == (*scores.shape, 4)
        return {}

    settings = {"batch_eval_metrics": batchwise, "per_device_eval_batch_size": 4}
    trainer = make_trainer(query_model, tiny_processor, tmp_path, eval_rows=rows, **settings)
    trainer.compute_metrics = mine
    metrics = trainer.evaluate()
    assert metrics["eval_rows"] == 8
    assert metrics["eval_samples"] == (8 if most == 1 else 4)  # a row of several targets has no single box to compare
    assert set(seen) == {(4,)} if most == 1 else seen[-1] == (2, 4)
    assert trainer.predict(rows).label_ids.shape == ((8, 4) if most == 1 else (8, 2, 4))


def test_accuracy_is_measured_whoever_wrote_the_loss(trainer_of, tiny_model, tiny_processor, tmp_path):
    class Mine(HiVGTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            outputs = model(**inputs)
            return (outputs.loss, outputs) if return_outputs else outputs.loss

    expected = trainer_of().evaluate()
    arguments = trainer_of().args
    trainer = Mine(fresh_model(tiny_model), arguments, eval_dataset=EVALUATED, processing_class=tiny_processor)
    for trainer.compute_loss_func in (
        None,
        lambda outputs, labels, num_items_in_batch=None: outputs.pred_boxes.mean(),
    ):
        found = trainer.evaluate()
        assert found["eval_accuracy"] == expected["eval_accuracy"]
        assert (found["eval_samples"], found["eval_rows"]) == (10, 11)


def test_a_step_outside_of_an_evaluation_and_outputs_without_boxes_measure_nothing(trainer_of):
    trainer = trainer_of()
    batch = next(iter(trainer.get_eval_dataloader()))
    loss, _, labels = trainer.prediction_step(trainer.model.eval(), batch, prediction_loss_only=False)
    assert torch.isfinite(loss)
    assert labels.shape == batch["labels"].shape
    trainer.compute_loss = lambda model, inputs, **_: (torch.zeros(()), {"mine": inputs["labels"]})
    assert "eval_accuracy" not in trainer.evaluate()


def test_our_own_metrics_serve_as_compute_metrics(trainer_of):
    trainer = trainer_of()
    trainer.compute_metrics = GroundingEvalMetrics()
    metrics = trainer.evaluate()
    assert metrics["eval_acc@0.5"] == metrics["eval_accuracy"]
    assert metrics["eval_n"] == 10


def test_predict_gives_boxes_in_the_order_of_the_rows(trainer_of, tiny_model, tiny_processor):
    found = trainer_of().predict(EVALUATED)
    boxes, scores = found.predictions
    expected = predict(tiny_model, tiny_processor, EVALUATED, progress=False)
    assert np.allclose(boxes, [row["canvas_box"] for row in expected], atol=1e-5)
    assert scores.shape == (11,)
    assert found.metrics["test_rows"] == 11


def test_the_best_checkpoint_by_loss_is_that_of_the_lowest_loss(tiny_model, tiny_processor, tmp_path):
    class Scripted(HiVGTrainer):
        losses = (3.0, 1.0, 2.0, 2.5)

        def evaluate(self, *args, **kwargs):
            metrics = {"eval_loss": self.losses[self.state.global_step - 1], "eval_accuracy": self.state.global_step}
            self.log(dict(metrics))
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
            return metrics

    settings = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    for changes, callbacks, last in (
        ({"load_best_model_at_end": True}, [EarlyStoppingCallback(2)], 4),
        ({"early_stop": 1}, None, 3),
    ):
        trainer = make_trainer(
            fresh_model(tiny_model), tiny_processor, tmp_path / str(last), kind=Scripted, eval_rows=EVALUATED,
            callbacks=callbacks, metric_for_best_model="eval_loss", **settings, **changes,
        )  # fmt: skip
        trainer.train()
        assert trainer.args.greater_is_better is False
        assert (trainer.state.best_global_step, trainer.state.best_metric) == (2, 1.0)
        assert trainer.state.global_step == last


def test_a_run_that_saves_nothing_writes_no_best_checkpoint(trainer_of, tmp_path):
    trainer_of(eval_strategy="steps", eval_steps=1, max_steps=1).train()
    assert list(tmp_path.glob("checkpoint-*")) == []


def test_a_search_starts_each_trial_from_a_new_model_in_a_folder_of_its_own(
    tiny_model, tiny_processor, tmp_path, monkeypatch
):
    class Search:
        def ensure_available(self):
            pass

        def run(self, trainer, n_trials, direction, **kwargs):
            results = []
            for number in range(n_trials):
                values = {"learning_rate": 1e-3 * number, "per_device_train_batch_size": 4 + 4 * number}
                trainer.train(trial=SimpleNamespace(number=number, params=values))
                results.append((trainer.objective, number, trainer.args.gradient_accumulation_steps))
            assert [steps for *_, steps in results] == [2, 1]
            return BestRun(str(max(results)[1]), max(results)[0], {})

    monkeypatch.setitem(ALL_HYPERPARAMETER_SEARCH_BACKENDS, HPSearchBackend.OPTUNA, Search)
    optuna = module_from_spec(ModuleSpec("optuna", None))  # what transformers asks of it
    optuna.trial = SimpleNamespace(BaseTrial=SimpleNamespace)
    monkeypatch.setitem(sys.modules, "optuna", optuna)
    args = HiVGTrainingArguments(
        str(tmp_path), max_steps=1, use_cpu=True, eval_strategy="steps", eval_steps=1, save_strategy="steps",
        global_batch_size=8, save_steps=1, disable_tqdm=True,
    )  # fmt: skip
    trainer = HiVGTrainer(
        args=args, train_dataset=ROWS, eval_dataset=EVALUATED, processing_class=tiny_processor,
        model_init=lambda: fresh_model(tiny_model),
    )  # fmt: skip
    best = trainer.hyperparameter_search(
        hp_space=lambda trial: trial.params,
        compute_objective=lambda metrics: metrics["eval_mean_iou"],
        n_trials=2,
        backend="optuna",
    )
    assert best.objective > 0
    assert sorted(path.parent.name for path in tmp_path.glob("*/checkpoint-1")) == ["run-0", "run-1"]
    first = trainer.model_init().state_dict()["grounding_head.reg_token.weight"]
    assert torch.equal(first, tiny_model.state_dict()["grounding_head.reg_token.weight"])


def test_plain_arguments_are_refused_in_one_sentence(tiny_model, tiny_processor, tmp_path):
    args = TrainingArguments(str(tmp_path), use_cpu=True)
    with pytest.raises(TypeError, match=r"takes HiVGTrainingArguments, got TrainingArguments: write"):
        HiVGTrainer(fresh_model(tiny_model), args, train_dataset=ROWS, processing_class=tiny_processor)


# ---- rows and streams ----


def bare(rows):
    return [{name: row[name] for name in ("image", "expression", "box")} for row in rows]


def first_losses(trainer):
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("kind", ["list", "table"])
def test_rows_of_image_expression_and_box_train_as_whole_rows_do(kind, trainer_of):
    expected = trainer_of(EVALUATED[:3], max_steps=2)
    found = trainer_of(bare(EVALUATED[:3]), max_steps=2)
    found.train_dataset = bare(ROWS) if kind == "list" else datasets.Dataset.from_list(bare(ROWS))
    assert first_losses(found) == pytest.approx(first_losses(expected), rel=1e-6)
    assert found.evaluate()["eval_mean_iou"] == pytest.approx(expected.evaluate()["eval_mean_iou"], rel=1e-6)


@pytest.fixture
def own_table(tmp_path):
    rows = datasets.Dataset.from_list(bare(ROWS)).cast_column("image", datasets.Image())
    rows.to_parquet(tmp_path / "own.parquet")
    return {"source": str(tmp_path / "own.parquet"), "split": "all", "box_format": "xyxy"}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_of_ours_trains_as_its_table_does(workers, own_table, trainer_of, tiny_processor):
    losses = []
    for streaming in (False, True):
        trainer = trainer_of(max_steps=4, dataloader_num_workers=workers)
        trainer.data_collator = GroundingCollator(
            tiny_processor, GroundingAugmentation.for_processor(tiny_processor), seed=3
        )
        trainer.train_dataset = load_grounding_dataset(**own_table, streaming=streaming)
        losses.append(first_losses(trainer))
    assert losses[0] == losses[1]


def test_any_other_stream_trains_and_is_evaluated(trainer_of):
    trainer = trainer_of(max_steps=4)
    table = datasets.Dataset.from_list(bare(ROWS))
    trainer.train_dataset = table.to_iterable_dataset(num_shards=2)
    assert len(first_losses(trainer)) == 4
    trainer.eval_dataset = datasets.Dataset.from_list(bare(EVALUATED[:3])).to_iterable_dataset()
    assert trainer.evaluate()["eval_rows"] == 3


class Plain(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(bare(ROWS))


def test_a_stream_of_torch_resumes_within_its_first_pass_and_is_refused_after_it(trainer_of, tmp_path):
    def trained(steps, folder, **changes):
        trainer = trainer_of(max_steps=steps, save_strategy="steps", save_steps=1, save_total_limit=None)
        trainer.args.output_dir = str(tmp_path / folder)
        trainer.train_dataset = Plain()
        trainer.train(**changes)
        return trainer

    whole = trained(5, "whole")
    resumed = trained(3, "again", resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    whole_step_3 = torch.load(tmp_path / "whole" / "checkpoint-3" / "optimizer.pt")["state"][0]["exp_avg"]
    assert torch.equal(resumed.optimizer.state_dict()["state"][0]["exp_avg"], whole_step_3)
    assert whole.state.epoch > 1  # 24 rows are 3 steps
    with pytest.raises(ValueError, match=r"checkpoint of step 4 was made after the first pass of a stream"):
        trained(6, "late", resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"unique_images": True}, "unique_images"), ({"schedule_by_epoch": True}, "schedule_by_epoch"),
     ({"global_batch_size": 7, "per_device_train_batch_size": 4}, r"global_batch_size=7 \(the processes take 8")],
)  # fmt: skip
def test_what_only_rows_by_number_allow_is_refused_for_a_stream(settings, named, trainer_of):
    trainer = trainer_of(**settings)
    trainer.train_dataset = Plain()
    with pytest.raises(ValueError, match=rf"{named}.* needs rows that can be asked for by number"):
        trainer.train()


def test_a_keyed_dataset_may_be_given_as_it_is(trainer_of):
    trainer = trainer_of(KeyedDataset(EVALUATED))
    assert trainer.evaluate()["eval_rows"] == 11


def test_rows_of_none_one_and_many_train_and_evaluate_a_model_with_several_queries(
    tiny_model, tiny_processor, tmp_path
):
    rows = colored_box_rows(9, seed=3)
    for place in (0, 4):
        first, second = rows[place]["boxes"][0], [0.0, 0.0, 10.0, 12.0]
        rows[place] = {**rows[place], "box": None, "boxes": [first, second]}
    rows[2] = {**rows[2], "box": None, "boxes": [], "no_target": True}
    model = fresh_model(tiny_model)
    model.add_queries(3)
    trainer = make_trainer(
        model,
        tiny_processor,
        tmp_path,
        eval_rows=rows,
        max_steps=2,
        per_device_eval_batch_size=2,
    )
    trainer.train_dataset, trainer.compute_metrics = rows, GroundingEvalMetrics()
    before = trainer.evaluate()
    # accuracy is about rows with one target, whatever batch they are in
    assert (before["eval_samples"], before["eval_rows"]) == (6, 9)
    assert before["eval_n"] == 6
    assert before["eval_mean_iou"] == pytest.approx(trainer.evaluate()["eval_mean_iou"])
    trainer.train()
    assert not torch.equal(model.grounding_head.reg_token.weight[1], model.grounding_head.reg_token.weight[2])
    one = make_trainer(fresh_model(tiny_model), tiny_processor, tmp_path, max_steps=2)
    one.train_dataset = rows
    with pytest.raises(ValueError, match=r"has 2 targets, where training needs one box.*num_queries > 1"):
        one.train()
