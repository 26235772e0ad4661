"""The controls do what they say, and leave no trace."""

import copy

import pytest
import torch
from PIL import Image

from hivg_hf import HiVGConfig, HiVGForVisualGrounding
from hivg_hf.evaluation import (
    EvaluationSettings,
    apply_control,
    bridges_off,
    constant_bridge_text,
    evaluate_model,
    other_expressions,
)
from hivg_hf.evaluation.controls import find_bridges


@pytest.fixture(scope="module")
def loud_model(tiny_model):
    """A model whose bridges matter: at random weights the words are a whisper beside the picture."""
    model = copy.deepcopy(tiny_model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".bridge." in name and parameter.ndim > 1:
                parameter.mul_(4)
    return model


@pytest.fixture
def inputs(tiny_processor, scenes):
    rows = [scenes[index] for index in range(3)]
    return tiny_processor(images=[row["image"] for row in rows], text=[row["expression"] for row in rows])


def states(model, inputs):
    """What the image tower hands on: where a bridge acts."""
    with torch.inference_mode():
        return model(**inputs, output_hidden_states=True).vision_hidden_states[-1]


def test_a_bridge_that_is_off_adds_nothing(loud_model, inputs):
    silent = copy.deepcopy(loud_model)
    for name, parameter in silent.named_parameters():
        if ".bridge.mlp.fc2." in name:
            torch.nn.init.zeros_(parameter)
    expected = states(silent, inputs)
    with bridges_off(loud_model):
        torch.testing.assert_close(states(loud_model, inputs), expected)
    assert not torch.allclose(states(loud_model, inputs), expected, atol=1e-3)


def test_controls_act_however_the_bridges_are_called(loud_model, tiny_processor, inputs, monkeypatch):
    """By position, as the tower calls them, or by name, in any order."""
    with bridges_off(loud_model):
        silent = states(loud_model, inputs)
    with constant_bridge_text(loud_model, tiny_processor, "the red star"):
        constant = states(loud_model, inputs)
    kind = type(find_bridges(loud_model)[0])
    call = kind.__call__

    def by_name(bridge, hidden_states, text_states, text_bias):
        return call(bridge, text_bias=text_bias, text_states=text_states, hidden_states=hidden_states)

    monkeypatch.setattr(kind, "__call__", by_name)
    with bridges_off(loud_model):
        torch.testing.assert_close(states(loud_model, inputs), silent)
    with constant_bridge_text(loud_model, tiny_processor, "the red star"):
        torch.testing.assert_close(states(loud_model, inputs), constant)


def test_with_constant_text_the_image_tower_no_longer_hears_the_expression(loud_model, tiny_processor, scenes):
    picture = scenes[0]["image"]
    asked = [tiny_processor(images=[picture], text=[text]) for text in ("the red star", "blue ring of the left")]
    usual = [states(loud_model, one) for one in asked]
    assert not torch.allclose(*usual, atol=1e-3)
    with constant_bridge_text(loud_model, tiny_processor, "the red star"):
        constant = [states(loud_model, one) for one in asked]
    torch.testing.assert_close(constant[0], constant[1])
    torch.testing.assert_close(constant[0], usual[0])  # the constant is what was asked: nothing changes


@pytest.mark.parametrize("learning", [True, False])
def test_constant_text_follows_a_text_tower_that_learns(loud_model, tiny_processor, inputs, learning):
    model = copy.deepcopy(loud_model)
    with constant_bridge_text(model, tiny_processor, "star", learning=learning):
        before = states(model, inputs)
        with torch.no_grad():
            for parameter in model.clip.text_model.encoder.layers.parameters():
                parameter.mul_(0.5)
        model.train()
        under_training = states(model, inputs)
        assert model.training
    with constant_bridge_text(model, tiny_processor, "star"):
        fresh = states(model, inputs)
    assert not torch.allclose(before, fresh, atol=1e-3)
    torch.testing.assert_close(under_training, fresh if learning else before)


def test_constant_text_serves_batches_with_padded_expressions(loud_model, tiny_processor, inputs):
    with constant_bridge_text(loud_model, tiny_processor, "star"):
        together = states(loud_model, inputs)
        mask = inputs["patch_index"][1] >= 0
        first = {name: tensor[1:2] for name, tensor in inputs.items()}
        alone = states(loud_model, first)
    keep = torch.cat([torch.ones(1, dtype=torch.bool), mask])
    torch.testing.assert_close(together[1][keep], alone[0][keep], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("control", ["bridge-off", "constant-text"])
def test_a_control_ends_with_its_block_even_after_an_error(loud_model, tiny_processor, inputs, control):
    before = states(loud_model, inputs)
    seen = []

    def interrupted():
        with apply_control(control, loud_model, tiny_processor):
            seen.append(states(loud_model, inputs))
            loud_model(input_ids=None)

    with pytest.raises(ValueError, match="needs both"):
        interrupted()
    assert not torch.allclose(seen[0], before, atol=1e-3)
    assert torch.equal(states(loud_model, inputs), before)


def test_a_model_without_bridges_has_no_bridge_to_control(tiny_config):
    fields = {**tiny_config.to_dict(), "bridge_layers": []}
    fields.pop("custom_pipelines")
    model = HiVGForVisualGrounding(HiVGConfig(**fields))
    with pytest.raises(ValueError, match="has no bridge"), bridges_off(model):
        pass


def test_an_unknown_control_is_named(tiny_model, tiny_processor):
    with (
        pytest.raises(ValueError, match="Unknown control 'shuffle': choose among bridge-off"),
        apply_control("shuffle", tiny_model, tiny_processor),
    ):
        pass


def test_other_expressions_come_from_another_object_of_the_same_image(make_rows):
    dataset = make_rows(
        {"image_id": "a", "ref_id": "1", "expression": "left"},
        {"image_id": "a", "ref_id": "1", "expression": "the left one"},
        {"image_id": "a", "ref_id": "2", "expression": "right"},
        {"image_id": "b", "ref_id": "3", "expression": "alone"},
        {"image_id": "a", "ref_id": "9", "expression": "absent", "box": None},
    )
    other = other_expressions(dataset)
    assert (len(other), other.kept) == (3, [0, 1, 2])
    assert [other[place]["expression"] for place in range(3)] == ["right", "right", "left"]
    assert [other[place]["box"] for place in range(3)] == dataset["box"][:3]


def test_every_control_stands_beside_the_model_on_the_same_rows(tiny_model, tiny_processor, make_rows):
    picture = {"image": Image.new("RGB", (40, 30), "teal"), "image_id": "a"}
    dataset = make_rows(picture, {**picture, "box": [30.0, 2.0, 38.0, 28.0]}, {"image_id": "b"})
    settings = EvaluationSettings(
        controls=("bridge-off", "constant-text", "other-expression"), resamples=20, progress=False
    )
    evaluation = evaluate_model(tiny_model, tiny_processor, dataset, settings)
    controls = evaluation.results["controls"]
    assert {name: entry["n"] for name, entry in controls.items()} == {
        "bridge-off": 3, "constant-text": 3, "other-expression": 2}  # fmt: skip
    both = controls["other-expression"]["figures"]["mean_iou"]
    assert both["first"] == pytest.approx(float(evaluation.rows.ious[:2].mean()))
    # Asked for the other object, but measured against its own box: the two expressions swap their boxes.
    swapped = [evaluation.predictions[1]["box_xyxy"], evaluation.predictions[0]["box_xyxy"]]
    assert both["second"] == pytest.approx(
        sum(iou(a, b) for a, b in zip(swapped, dataset["box"], strict=False)) / 2, abs=1e-4
    )


def test_data_without_a_second_object_says_why_there_is_no_control(tiny_model, tiny_processor, make_rows):
    settings = EvaluationSettings(controls=("other-expression",), resamples=0, progress=False)
    controls = evaluate_model(tiny_model, tiny_processor, make_rows({}), settings).results["controls"]
    assert controls["other-expression"]["n"] == 0
    assert "two different objects" in controls["other-expression"]["reason"]


def iou(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)
