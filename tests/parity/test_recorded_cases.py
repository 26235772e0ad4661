"""Number for number: the three cases recorded from the official code, and the reference on them."""

from functools import cache

import pytest
import torch
from parity.official_cases import RECORDED, RECORDED_FOLDER, OfficialCase, recorded_case
from parity.parity_checks import assert_close, assert_losses_match, assert_masks_close, assert_outputs_match, run_ours

from benchmarks.speed.official_reference import OfficialOutput, plain_names
from hivg_hf import HiVGConfig, HiVGForVisualGrounding, load_official_checkpoint
from hivg_hf.conversion import OFFICIAL_LOSS_NAMES, official_parameter_name

recorded_cases = pytest.mark.parametrize("name", RECORDED)
samples = pytest.mark.parametrize("sample", range(3))


@cache
def converted(name: str, mixes_batch: bool = False) -> HiVGForVisualGrounding:
    case = recorded_case(name)
    config = HiVGConfig.from_official_args(case.args, case.clip_config, bridge_mixes_batch=mixes_batch)
    return load_official_checkpoint(RECORDED_FOLDER / name / "official_state_dict.safetensors", config)


def expected_alone(case: OfficialCase, sample: int) -> OfficialOutput:
    """The recorded figures of one sample run alone."""
    row = slice(sample, sample + 1)
    tensors = case.expected
    logits = tensors["logits_per_text"][row]
    return OfficialOutput(
        tensors["pred_boxes"][row], logits, logits.T, tensors["token_similarity"][row], tensors["mask_logits"][row]
    )


@recorded_cases
def test_the_arguments_give_the_recorded_layers(name: str) -> None:
    case = recorded_case(name)
    config = HiVGConfig.from_official_args(case.args, case.clip_config)
    assert config.bridge_layers == case.layers.bridges
    assert config.visual_feature_layers == case.layers.visual_features
    assert config.bridge_text_layers == case.layers.text
    assert config.image_size == case.args["imsize"]


@recorded_cases
@samples
@torch.no_grad()
def test_one_sample_alone(name: str, sample: int) -> None:
    case, model = recorded_case(name), converted(name)
    ours = run_ours(model, case.rows(sample))
    assert_outputs_match(ours, expected_alone(case, sample))
    assert_losses_match(model, ours, case.expected["per_sample"][sample])


@recorded_cases
@torch.no_grad()
def test_the_official_batched_figures_on_request(name: str) -> None:
    case, model = recorded_case(name), converted(name, mixes_batch=True)
    ours = run_ours(model, case)
    assert_close(ours.pred_boxes, case.expected["batched_pred_boxes"])
    assert_close(ours.logits_per_text, case.expected["batched_logits_per_text"])
    assert_losses_match(model, ours, case.expected["batched"])


@recorded_cases
@torch.no_grad()
def test_a_batch_gives_each_sample_what_it_gets_alone(name: str) -> None:
    case, model = recorded_case(name), converted(name)
    ours = run_ours(model, case)
    assert_close(ours.pred_boxes, case.expected["pred_boxes"])
    assert_close(ours.token_logits, case.expected["token_similarity"])
    assert_masks_close(ours.mask_logits, case.expected["mask_logits"][:, 0])
    assert_close(ours.logits_per_text.diagonal(), case.expected["logits_per_text"][:, 0])


@recorded_cases
def test_gradients_of_one_sample(name: str) -> None:
    case, model = recorded_case(name), converted(name)
    model.zero_grad()
    run_ours(model, case.rows(0)).loss.backward()
    gradients = {official_parameter_name(n): p.grad for n, p in model.named_parameters()}
    recorded = {n.removeprefix("grad/"): g for n, g in case.expected.items() if n.startswith("grad/")}
    assert len(recorded) >= 8
    for official, gradient in plain_names(recorded).items():
        if gradients.get(official) is None:
            # Adaptive weights and gates that the mixed variant does not read have no gradient there either.
            assert not gradient.any(), official
        else:
            assert (gradients[official] - gradient).norm() <= 1e-4 * gradient.norm(), official
    model.zero_grad()


@recorded_cases
@torch.no_grad()
def test_in_float64(name: str) -> None:
    """Without rounding, element by element, against the reference: what float32 figures cannot show."""
    case = recorded_case(name)
    case.state = {key: tensor.double() if tensor.is_floating_point() else tensor for key, tensor in case.state.items()}
    case.inputs["pixel_values"] = case.inputs["pixel_values"].double()
    config = HiVGConfig.from_official_args(case.args, case.clip_config)
    model = load_official_checkpoint(RECORDED_FOLDER / name / "official_state_dict.safetensors", config).double()
    ours, official = run_ours(model, case), case.run(mixes_batch=False)
    assert_outputs_match(ours, official)
    assert_close(ours.mask_logits, official.mask_logits[:, 0])


@recorded_cases
@torch.no_grad()
def test_the_reference_reproduces_what_was_recorded(name: str) -> None:
    """Else it would prove nothing about the layouts that were not recorded."""
    case = recorded_case(name)
    for sample in range(3):
        alone, expected = case.rows(sample), expected_alone(case, sample)
        given = alone.run()
        for ours, theirs in zip(given[:-1], expected[:-1], strict=True):
            assert_close(ours, theirs)
        assert_masks_close(given.mask_logits, expected.mask_logits)
        for key, value in alone.losses().items():
            assert abs(value.item() - case.expected["per_sample"][sample][key]) <= 1e-5 * max(1.0, value.item())
    batched = case.run()
    assert_close(batched.pred_boxes, case.expected["batched_pred_boxes"])
    assert_close(batched.logits_per_text, case.expected["batched_logits_per_text"])


@torch.no_grad()
def test_mixing_is_visible_where_it_is_not_wanted() -> None:
    """The batched and the single figures differ, so that the tests above tell the two apart."""
    case = recorded_case("base-single-layer-text")
    batched, alone = case.expected["batched_pred_boxes"], case.expected["pred_boxes"]
    assert (batched - alone).abs().max() > 1e-3
    assert set(case.expected["batched"]) == set(OFFICIAL_LOSS_NAMES.values())
