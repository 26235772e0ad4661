"""Several queries: matched one to one with the targets, the best stands for all, and one becomes several."""

import copy

import pytest
import torch

from hivg_hf import HiVGConfig, HiVGForVisualGrounding
from hivg_hf.modeling import box_ops_hivg
from hivg_hf.modeling.box_ops_hivg import refine_boxes
from hivg_hf.modeling.loss_hivg import OPTIONAL_OUTPUTS, token_targets
from hivg_hf.modeling.queries_hivg import assign_targets, own_masks

NONE = [float("nan")] * 4
LEFT, RIGHT, TOP = [0.2, 0.5, 0.2, 0.2], [0.8, 0.5, 0.2, 0.2], [0.5, 0.1, 0.2, 0.2]
WEIGHTS = {"bbox": 2.0, "giou": 2.0, "score": 1.0}
LABELS = torch.tensor([[LEFT, RIGHT], [TOP, NONE], [NONE, NONE]])
ASKED = {"output_masks": True, "output_token_logits": True}


def boxes(*rows: list[float]) -> torch.Tensor:
    return torch.tensor([rows])  # (1, K, 4)


@pytest.fixture(scope="module")
def several(several_model) -> HiVGForVisualGrounding:
    return several_model


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    input_ids = torch.randint(1, 500, (3, 6), generator=generator)
    mask = torch.ones_like(input_ids)
    mask[1, 4:] = 0
    pixels = torch.ones(3, 64, 64, dtype=torch.long)
    pixels[0, 32:] = 0
    values = torch.randn(3, 3, 64, 64, generator=generator) * pixels[:, None]
    return {"input_ids": input_ids, "attention_mask": mask, "pixel_values": values, "pixel_mask": pixels}


@torch.no_grad()
def run(model, inputs, **options):
    return model(**inputs, **options)


# -- matching


def test_each_target_goes_to_the_nearest_query_and_no_query_gets_two():
    found = assign_targets(boxes(RIGHT, TOP, LEFT), torch.zeros(1, 3), LABELS[:1], WEIGHTS)
    assert torch.equal(found[0, 0], torch.tensor(RIGHT))
    assert torch.equal(found[0, 2], torch.tensor(LEFT))
    assert found[0, 1].isnan().all()


def test_the_sum_of_all_costs_is_least_not_that_of_the_first_target():
    # both queries are nearest to the left target; taking turns would cost the second one more
    queries = boxes([0.3, 0.5, 0.2, 0.2], [0.2, 0.5, 0.2, 0.2])
    found = assign_targets(queries, torch.zeros(1, 2), LABELS[:1], WEIGHTS)
    assert torch.equal(found[0], torch.tensor([RIGHT, LEFT]))


def test_of_equal_boxes_the_one_with_the_higher_score_is_matched():
    targets = torch.tensor([[LEFT, RIGHT]])
    found = assign_targets(boxes(LEFT, LEFT, RIGHT), torch.tensor([[-2.0, 2.0, 0.0]]), targets, WEIGHTS)
    assert found[0, 0].isnan().all()
    assert torch.equal(found[0, 1:], torch.tensor([LEFT, RIGHT]))


def test_a_single_target_is_the_first_query_s_and_no_target_is_nobody_s():
    queries = boxes(LEFT, TOP).expand(3, -1, -1)
    found = assign_targets(queries, torch.zeros(3, 2), LABELS, WEIGHTS)
    assert torch.equal(found[1, 0], torch.tensor(TOP))
    assert found[1, 1].isnan().all()
    assert found[2].isnan().all()


def test_queries_that_answer_alike_take_the_targets_from_left_to_right():
    targets = torch.tensor([[RIGHT, TOP, LEFT]])
    found = assign_targets(boxes(TOP, TOP, TOP, TOP), torch.zeros(1, 4), targets, WEIGHTS)
    assert torch.equal(found[0, :3], torch.tensor([LEFT, TOP, RIGHT]))
    assert found[0, 3].isnan().all()


def test_of_more_targets_than_queries_the_nearest_are_matched():
    targets = torch.tensor([[TOP, LEFT, RIGHT]])
    found = assign_targets(boxes(RIGHT, LEFT), torch.zeros(1, 2), targets, WEIGHTS)
    assert torch.equal(found[0], torch.tensor([RIGHT, LEFT]))


def test_boxes_of_a_model_that_diverged_are_matched_without_an_error():
    queries = boxes(NONE, LEFT)
    found = assign_targets(queries, torch.zeros(1, 2), LABELS[:1], WEIGHTS)
    assert not found.isnan().any()


def test_the_mask_of_a_query_is_the_part_in_its_box_where_there_are_several():
    masks = torch.zeros(2, 8, 8)
    masks[0, 2:6] = 1  # a bar across the whole picture
    masks[1, 0:8] = 1
    assigned = torch.tensor([[[0.25, 0.5, 0.5, 1.0], [0.75, 0.5, 0.5, 1.0]], [[0.5, 0.5, 0.2, 0.2], NONE]])
    own = own_masks(masks, assigned, torch.tensor([2, 1]))
    assert own.shape == (3, 8, 8)
    assert torch.equal(own[0, 2:6, :4], torch.ones(4, 4))
    assert own[0].sum() == own[1].sum() == 16
    assert torch.equal(own[2], masks[1])


def test_patches_of_several_targets_are_those_of_all_of_them():
    targets = token_targets(torch.tensor([[LEFT, RIGHT, NONE]]), None, 8, 64, "coverage")
    alone = [token_targets(torch.tensor([box]), None, 8, 64, "coverage") for box in (LEFT, RIGHT)]
    torch.testing.assert_close(targets, alone[0] + alone[1])
    assert token_targets(torch.tensor([[LEFT, LEFT]]), None, 8, 64, "coverage").max() == 1


# -- answers


def test_the_best_query_stands_for_all(several, inputs):
    outputs = run(several, inputs, **ASKED)
    assert outputs.query_boxes.shape == (3, 3, 4)
    assert outputs.query_mask_logits.shape == (3, 3, 64, 64)
    best = outputs.query_scores.argmax(1)
    assert best.any()  # else the first would do
    rows = torch.arange(3)
    assert torch.equal(outputs.scores, outputs.query_scores[rows, best])
    assert torch.equal(outputs.pred_boxes, outputs.query_boxes[rows, best])
    assert torch.equal(outputs.mask_logits, outputs.query_mask_logits[rows, best])
    assert not torch.allclose(outputs.query_mask_logits[:, 0], outputs.query_mask_logits[:, 1])


def test_one_query_answers_without_query_outputs(tiny_model, inputs):
    outputs = run(tiny_model, inputs, **ASKED)
    assert {outputs.query_boxes, outputs.query_scores, outputs.query_mask_logits} == {None}


def test_recorded_states_change_no_answer(several, inputs):
    plain, recorded = (run(several, inputs, **ASKED, output_hidden_states=states) for states in (False, True))
    assert recorded.hidden_states[-1].shape[1] == 3 + 1 + 64 + 6
    for name in ("query_boxes", "query_scores", "query_mask_logits", "token_logits"):
        torch.testing.assert_close(plain[name], recorded[name], rtol=1e-5, atol=1e-5)


def test_an_answer_does_not_depend_on_its_batch(several, inputs):
    together = run(several, inputs, output_masks=True)
    for row in range(3):
        length = int(inputs["attention_mask"][row].sum())
        alone = {name: value[row : row + 1] for name, value in inputs.items()}
        alone |= {name: alone[name][:, :length] for name in ("input_ids", "attention_mask")}
        one = run(several, alone, output_masks=True)
        for name in ("query_boxes", "query_scores", "query_mask_logits"):
            torch.testing.assert_close(one[name], together[name][row : row + 1], rtol=1e-5, atol=1e-5)


def test_an_image_asked_several_things_gives_every_query_s_answers(several, inputs):
    one_image = {name: value[:1] if "pixel" in name else value for name, value in inputs.items()}
    repeated = {
        name: value[:1].expand(3, *value.shape[1:]) if "pixel" in name else value for name, value in inputs.items()
    }
    shared = run(several, {**one_image, "image_index": torch.zeros(3, dtype=torch.long)}, output_masks=True)
    for name in ("query_boxes", "query_scores", "query_mask_logits"):
        torch.testing.assert_close(shared[name], run(several, repeated, output_masks=True)[name], rtol=1e-5, atol=1e-5)


def test_the_first_compiled_call_has_no_graph_break(several, inputs):
    torch.compiler.reset()
    compiled = torch.compile(several, fullgraph=True, backend="eager")
    found = run(compiled, inputs, output_masks=True)
    torch.testing.assert_close(found.query_boxes, run(several, inputs).query_boxes, rtol=1e-5, atol=1e-5)


# -- training


@pytest.mark.parametrize("with_masks", [False, True])
def test_every_parameter_learns_from_rows_of_none_one_and_many(several, inputs, with_masks):
    model = copy.deepcopy(several).train()
    masks = {"mask_labels": (torch.rand(3, 64, 64) > 0.5).float()} if with_masks else {}
    outputs = model(**inputs, labels=LABELS, **masks)
    outputs.loss.backward()
    assert outputs.loss.isfinite()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    weights = model.config.loss_weights
    torch.testing.assert_close(outputs.loss, sum(weights[name] * term for name, term in outputs.loss_dict.items()))


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_gives_the_same_gradients(several, inputs, reentrant):
    gradients = []
    for checkpoints in (False, True):
        model = copy.deepcopy(several).train()
        if checkpoints:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model(**inputs, labels=LABELS).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, rtol=1e-4, atol=1e-6)


def test_a_batch_that_names_nothing_trains_the_score_alone(several, inputs):
    model = copy.deepcopy(several).train()
    outputs = model(**inputs, labels=torch.full((3, 4), float("nan")))
    assert outputs.loss_dict["bbox"] == outputs.loss_dict["giou"] == outputs.loss_dict["mask_dice"] == 0
    assert outputs.loss_dict["score"] > 0
    outputs.loss.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_lists_of_boxes_and_padded_labels_give_the_same_loss(several, inputs):
    as_lists = [{"boxes": [LEFT, RIGHT]}, {"boxes": [TOP]}, {"boxes": []}]
    losses = [run(several, inputs, labels=labels).loss for labels in (LABELS, as_lists)]
    torch.testing.assert_close(*losses)
    shuffled = run(several, inputs, labels=LABELS.flip(1)).loss
    torch.testing.assert_close(losses[0], shuffled)


def test_single_targets_train_the_first_query_as_a_model_with_one(tiny_model, inputs):
    """Copies of one query are one query: boxes, patches and masks of rows with one target learn the same."""
    model = copy.deepcopy(tiny_model)
    model.add_queries(4)
    with torch.no_grad():
        model.grounding_head.reg_token.weight.copy_(tiny_model.grounding_head.reg_token.weight.expand(4, -1))
    labels = torch.tensor([LEFT, RIGHT, TOP])
    one, many = (run(each, inputs, labels=labels).loss_dict for each in (tiny_model, model))
    for name in set(one) - {"score"}:
        torch.testing.assert_close(one[name], many[name], rtol=1e-5, atol=1e-6)


def test_a_model_with_one_query_takes_rows_of_one_target_and_refuses_several(tiny_model, inputs):
    single = torch.tensor([[NONE, LEFT], [TOP, NONE], [NONE, NONE]])
    flat = torch.tensor([LEFT, TOP, NONE])
    torch.testing.assert_close(run(tiny_model, inputs, labels=single).loss, run(tiny_model, inputs, labels=flat).loss)
    with pytest.raises(ValueError, match=r"Row 0 of `labels` has 2 boxes, and an expression has one .*num_queries=4"):
        run(tiny_model, inputs, labels=LABELS)


def test_labels_of_any_target_outside_the_square_are_refused(several, inputs):
    labels = LABELS.clone()
    labels[0, 1, 0] = 30
    with pytest.raises(ValueError, match=r"Row 0 is \[30.0, 0.5, 0.2, 0.2\]"):
        run(several, inputs, labels=labels)


def test_a_loss_of_ones_own_sees_what_each_query_was_assigned(several, inputs, monkeypatch):
    from hivg_hf.modeling import loss_hivg, modeling_hivg

    seen = {}
    term = loss_hivg.LossTerm(lambda outputs, targets, config: seen.update(targets) or outputs["query_boxes"].sum())
    monkeypatch.setattr(loss_hivg, "EXTRA_LOSSES", {"mine": term})
    monkeypatch.setattr(modeling_hivg, "EXTRA_LOSSES", {"mine": term})
    model = copy.deepcopy(several)
    model.config.loss_weights = {**model.config.loss_weights, "mine": 0.5}
    assert "mine" in run(model, inputs, labels=LABELS).loss_dict
    assert seen["labels"].shape == (3, 2, 4)
    assert (~seen["assigned"].isnan().any(-1)).sum(1).tolist() == [2, 1, 0]
    assert OPTIONAL_OUTPUTS == ("token_logits", "mask_logits")


# -- one query becomes several


def test_copies_of_one_query_answer_as_it_does(tiny_model, inputs):
    model = copy.deepcopy(tiny_model)
    model.add_queries(4)
    with torch.no_grad():
        model.grounding_head.reg_token.weight.copy_(tiny_model.grounding_head.reg_token.weight.expand(4, -1))
    before, after = run(tiny_model, inputs, **ASKED), run(model, inputs, **ASKED)
    for name in ("pred_boxes", "scores", "mask_logits", "token_logits"):
        torch.testing.assert_close(after[name], before[name], rtol=1e-4, atol=1e-5)


def test_a_one_query_checkpoint_opens_with_several_and_says_so(tiny_model, inputs, tmp_path, caplog):
    from transformers.utils import logging

    tiny_model.save_pretrained(tmp_path / "one")
    logging.get_logger("hivg_hf").propagate = True
    with caplog.at_level("WARNING"):
        model, report = HiVGForVisualGrounding.from_pretrained(
            tmp_path / "one", num_queries=4, output_loading_info=True
        )
    assert not report["missing_keys"]
    assert model.config.num_queries == model.grounding_head.config.num_queries == 4
    rows = model.grounding_head.reg_token.weight
    assert torch.equal(rows[:1], tiny_model.grounding_head.reg_token.weight)
    assert float((rows[1:] - rows[:1]).std()) == pytest.approx(float(rows[0].std()), rel=0.5)
    assert torch.equal(model.grounding_head.query_mask_proj.weight, torch.zeros(16, 16))
    again = HiVGForVisualGrounding.from_pretrained(tmp_path / "one", num_queries=4)
    assert torch.equal(rows, again.grounding_head.reg_token.weight)  # every process starts alike

    model.save_pretrained(tmp_path / "four")
    loaded = HiVGForVisualGrounding.from_pretrained(tmp_path / "four")
    assert loaded.config.num_queries == 4
    torch.testing.assert_close(run(loaded.eval(), inputs).query_boxes, run(model.eval(), inputs).query_boxes)
    config = HiVGConfig.from_pretrained(tmp_path / "one", num_queries=2)
    assert HiVGForVisualGrounding.from_pretrained(tmp_path / "one", config=config).config.num_queries == 2
    larger = HiVGForVisualGrounding.from_pretrained(tmp_path / "one", num_queries=2, image_size=96)
    assert (larger.config.image_size, larger.config.num_queries) == (96, 2)
    with pytest.raises(ValueError, match=r"This model has 4 queries, of which none can be taken away\. Got 2"):
        HiVGForVisualGrounding.from_pretrained(tmp_path / "four", num_queries=2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"score": "similarity"}, r'`num_queries=4` the score .* must be trained: set `score="head"`'),
        ({"loss_weights": {"score": 0}}, r"`num_queries=4` the score"),
        ({"num_queries": 0}, "num_queries must be between 1 and 1,000"),
    ],
)
def test_queries_that_no_score_could_choose_from_are_refused(tiny_config, fields, message):
    values = {"clip_config": tiny_config.clip_config.to_dict(), "fusion_heads": 2, "num_queries": 4}
    with pytest.raises(Exception, match=message):
        HiVGConfig(**{**values, **fields})


def test_official_presets_have_one_query_and_refuse_more():
    assert HiVGConfig.preset("base-unc").num_queries == 1
    with pytest.raises(Exception, match=r"`num_queries=4` the score"):
        HiVGConfig.preset("base-unc", num_queries=4)


def test_answers_are_refined_by_masks_and_losses_are_not(several, inputs, monkeypatch):
    monkeypatch.setattr(box_ops_hivg, "REFINE_FROM_IOU", 0.0)  # masks without training agree with no box
    model = copy.deepcopy(several)
    raw, plain = run(model, inputs, **ASKED), run(model, inputs, labels=LABELS)
    model.config.refine_boxes = True
    refined = run(model, inputs)
    assert refined.mask_logits is None  # computed, not asked for
    expected = refine_boxes(raw.query_boxes, raw.query_mask_logits)
    assert not torch.allclose(expected, raw.query_boxes, atol=1e-2)
    torch.testing.assert_close(refined.query_boxes, expected)
    torch.testing.assert_close(refined.pred_boxes, refine_boxes(raw.pred_boxes, raw.mask_logits))
    torch.testing.assert_close(run(model, inputs, labels=LABELS).loss, plain.loss)
    model.train()
    torch.testing.assert_close(run(model, inputs).query_boxes, raw.query_boxes)  # no dropout in this model
