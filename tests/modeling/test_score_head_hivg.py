"""A score that reads more than [REG]: what it sees, that it moves nothing else, and that it begins as the old one."""

import copy

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from hivg_hf import HiVGConfig, HiVGForVisualGrounding
from hivg_hf.modeling.score_head_hivg import SCORE_INPUTS, ScoreEvidence

ALL = list(SCORE_INPUTS)
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    pixel_mask = torch.ones(3, 64, 64, dtype=torch.long)
    pixel_mask[0, 32:] = 0  # wide
    pixel_mask[2, :, 24:] = 0  # tall
    return {
        "input_ids": torch.randint(1, 500, (3, 9), generator=generator),
        "attention_mask": torch.ones(3, 9, dtype=torch.long),
        "pixel_values": torch.randn(3, 3, 64, 64, generator=generator) * pixel_mask[:, None],
        "pixel_mask": pixel_mask,
    }


@pytest.fixture
def labels() -> torch.Tensor:
    return torch.tensor([[0.5, 0.3, 0.2, 0.2], [float("nan")] * 4, [0.2, 0.5, 0.2, 0.3]])


def with_inputs(tiny_model, inputs: list[str], **changes) -> HiVGForVisualGrounding:
    """The model with a score that reads more; the new weights are drawn by a seed."""
    config = copy.deepcopy(tiny_model.config)
    config.score_inputs = inputs
    for name, value in changes.items():
        setattr(config, name, value)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = HiVGForVisualGrounding(config).eval()
        model.load_state_dict(tiny_model.state_dict(), strict=False)
    return model


def wake(model: HiVGForVisualGrounding) -> HiVGForVisualGrounding:
    """Let the evidence count, as after training."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(4)
        model.grounding_head.score_head.evidence.fc2.weight.normal_()
    return model


def test_without_more_inputs_nothing_is_added(tiny_model):
    names = [name for name in tiny_model.state_dict() if "score_head" in name]
    assert names == ["grounding_head.score_head.weight", "grounding_head.score_head.bias"]


@pytest.mark.parametrize("initialization", ["xavier", "official"])
def test_a_model_that_gains_inputs_begins_with_its_old_score(tiny_model, batch, initialization):
    model = with_inputs(tiny_model, ALL, initialization=initialization)
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).scores, tiny_model(**batch).scores)
        assert not torch.allclose(wake(model)(**batch).scores, tiny_model(**batch).scores)


@pytest.mark.parametrize("name", ALL[1:])
def test_each_input_alone_changes_the_score_and_no_box(tiny_model, batch, name):
    model = wake(with_inputs(tiny_model, ["reg", name]))
    with torch.no_grad():
        found, before = model(**batch), tiny_model(**batch)
        assert not torch.allclose(found.scores, before.scores)
        torch.testing.assert_close(found.pred_boxes, before.pred_boxes)
        # whatever else is asked for, the score is the same
        torch.testing.assert_close(model(**batch, output_masks=True).scores, found.scores)
        torch.testing.assert_close(model(**batch, output_hidden_states=True).scores, found.scores)


def test_scores_are_left_out_where_they_are_not_asked_for(tiny_model, batch):
    model = with_inputs(tiny_model, ALL)
    assert model(**batch, output_scores=False).scores is None
    assert model(**batch).token_logits is None


def test_the_score_sends_no_gradient_through_what_it_reads_beside_reg(tiny_model, batch, labels):
    def gradients(model) -> dict[str, torch.Tensor]:
        model(**batch, labels=labels).loss_dict["score"].backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None and "score" not in name}

    plain, model = copy.deepcopy(tiny_model), wake(with_inputs(tiny_model, ALL))
    with torch.no_grad():  # the loss's own slope aside, its way back is that of [REG] alone
        model.grounding_head.score_head.evidence.fc2.weight.zero_()
    first, second = gradients(plain), gradients(model)
    assert first.keys() == second.keys()
    for name, gradient in first.items():
        torch.testing.assert_close(second[name], gradient, **TOLERANCE)
    assert model.grounding_head.score_head.evidence.fc2.weight.grad.abs().sum() > 0
    wake(model).zero_grad()
    model.grounding_head.score_head.weight.data.zero_()
    awake = gradients(model)
    assert all(gradient.abs().max() < 1e-12 for gradient in awake.values())


def test_padding_and_skipped_patches_change_no_score(tiny_model, batch):
    model = wake(with_inputs(tiny_model, ALL))
    patches = torch.nn.functional.max_pool2d(batch["pixel_mask"][:, None].float(), 8).flatten(1)
    length = int(patches.sum(1).max())
    order = patches.argsort(dim=1, descending=True, stable=True)[:, :length]
    index = torch.where(patches.gather(1, order) > 0, order, -1)
    with torch.no_grad():
        whole = model(**batch).scores
        torch.testing.assert_close(model(**batch, patch_index=index).scores, whole, **TOLERANCE)
        one = {name: value[:1] for name, value in batch.items()}
        torch.testing.assert_close(model(**one).scores, whole[:1], **TOLERANCE)


def test_every_query_is_judged_by_its_own_box(tiny_model):
    evidence = ScoreEvidence(ALL, width=16, grid=4)
    torch.nn.init.normal_(evidence.fc2.weight)
    generator = torch.Generator().manual_seed(0)
    reg, end = torch.randn(2, 1, 16, generator=generator), torch.randn(2, 16, generator=generator)
    patches, similarity = torch.randn(2, 16, 16, generator=generator), torch.randn(2, 16, generator=generator)
    boxes = torch.tensor([[[0.25, 0.25, 0.5, 0.5], [0.75, 0.75, 0.3, 0.3]]] * 2)  # (2, 2, 4)
    rest = (patches, end, similarity, torch.zeros(2), None, None)
    both = evidence(reg.expand(-1, 2, -1), boxes, *rest)
    apart = [evidence(reg, boxes[:, i : i + 1], *rest) for i in range(2)]
    torch.testing.assert_close(both, torch.cat(apart, dim=1))
    assert not torch.allclose(both[:, 0], both[:, 1])


def test_a_model_of_several_queries_trains_and_answers_with_more_inputs(tiny_model, batch, labels):
    config = copy.deepcopy(tiny_model.config)
    config.score_inputs, config.num_queries = ALL, 3
    model = wake(HiVGForVisualGrounding(config).eval())
    found = model(**batch)
    assert found.query_scores.shape == (3, 3)
    torch.testing.assert_close(found.scores, found.query_scores.amax(1))
    assert model(**batch, output_scores=False).pred_boxes.allclose(found.pred_boxes)  # the best is still chosen
    loss = model(**batch, labels=torch.stack([labels, labels.flip(0)], dim=1)).loss
    loss.backward()
    assert model.grounding_head.score_head.evidence.fc1.weight.grad.abs().sum() > 0


def test_numbers_of_a_scene_by_hand():
    """A box over the left half of a 2 x 2 grid, of which the upper patch is surely part, and no other."""
    evidence = ScoreEvidence(["reg", "box_patches", "box_similarity", "sharpness"], width=4, grid=2)
    logits = torch.tensor([[50.0, -50.0, -50.0, -50.0]])
    patches, end = torch.arange(16.0).reshape(1, 4, 4), torch.tensor([[2.0, 0.0, 0.0, 0.0]])
    box = torch.tensor([[[0.25, 0.5, 0.5, 1.0]]])
    read = evidence.collect(torch.zeros(1, 1, 4), box, patches, end, logits, None, None, None)
    mean = patches[0, [0, 2]].mean(0)
    torch.testing.assert_close(read["box_patches"][0, 0], torch.cat([mean, mean * torch.tensor([1.0, 0, 0, 0])]))
    # half of the box is similar, nothing outside, all that is similar is inside, overlap 2 * 1 / (1 + 2)
    torch.testing.assert_close(read["box_similarity"][0, 0], torch.tensor([0.5, 0.0, 1.0, 2 / 3]))
    torch.testing.assert_close(read["sharpness"][0, 0], torch.tensor([1.0, 0.0, 0.0]))


def test_a_patch_in_the_padding_is_neither_inside_nor_outside():
    evidence = ScoreEvidence(["reg", "box_similarity", "sharpness"], width=4, grid=2)
    logits, there = torch.tensor([[0.0, 50.0, 0.0, 50.0]]), torch.tensor([[1, 0, 1, 0]])
    box = torch.tensor([[[0.5, 0.25, 1.0, 0.5]]])  # the upper half, of which only the left patch is there
    seen = torch.zeros(1, 1, 4), box, torch.zeros(1, 4, 4), torch.zeros(1, 4), logits, None, None, there
    read = evidence.collect(*seen)
    torch.testing.assert_close(read["box_similarity"][0, 0], torch.tensor([0.5, 0.5, 0.5, 0.5]))
    torch.testing.assert_close(read["sharpness"][0, 0], torch.tensor([0.5, 0.5, 1.0]))  # two patches, equal: entropy 1


def test_it_learns_together_with_the_rest_and_is_saved_with_it(tiny_model, batch, labels, tmp_path):
    model = with_inputs(tiny_model, ALL).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
    model.eval().save_pretrained(tmp_path)
    again = HiVGForVisualGrounding.from_pretrained(tmp_path).eval()
    assert again.config.score_inputs == ALL
    with torch.no_grad():
        torch.testing.assert_close(again(**batch).scores, model(**batch).scores)


def test_temperature_and_bias_move_the_score_and_keep_its_order(tiny_model, batch):
    model = with_inputs(tiny_model, ["reg"], score_temperature=2.0, score_bias=-1.0)
    with torch.no_grad():
        before, after = tiny_model(**batch).scores, model(**batch).scores
    torch.testing.assert_close(after, (before.logit() / 2 - 1).sigmoid())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"score_inputs": ["reg", "attention"]}, r'"reg" and any of .* Got \[\'reg\', \'attention\'\]'),
        ({"score_inputs": ["sharpness"]}, '"reg" and any of'),
        ({"score_inputs": ["reg", "reg"]}, "once"),
        ({"score_inputs": ["reg", "sharpness"], "score": "similarity"}, "read by a score head"),
        ({"score_temperature": 0.0}, "above 0. Got 0.0"),
        ({"score_bias": float("nan")}, "`score_bias` must be a finite number"),
        ({"score_threshold": 1.5}, "0 to 1, or None. Got 1.5"),
    ],
)
def test_impossible_settings_are_refused(fields, message):
    with pytest.raises(StrictDataclassError, match=message):
        HiVGConfig.preset("tiny", **fields)
