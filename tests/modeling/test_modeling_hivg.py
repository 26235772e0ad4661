"""The model as transformers expects one, and HiVG's own promises: no prediction depends on its batch.

The first half re-creates the checks of transformers' own model suite that apply (save and load, initialization,
batching, attention implementations, activation checkpointing, compilation, recorded states).
"""

import copy
import warnings

import pytest
import torch
from transformers import AutoModel, CLIPConfig, CLIPModel

from hivg_hf import HiVGConfig, HiVGForVisualGrounding
from hivg_hf.modeling.modeling_hivg import PADDING_LOGIT

ASKED = {"output_masks": True, "output_token_logits": True}
ANSWERS = ("pred_boxes", "scores", "token_logits", "mask_logits")
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture
def batch(tiny_config) -> dict[str, torch.Tensor]:
    """Three samples: other expression lengths, other image shapes; zero pixels in the padding."""
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(1, 500, (3, 9), generator=generator)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, 5:] = 0
    attention_mask[2, 7:] = 0
    pixel_mask = torch.ones(3, 64, 64, dtype=torch.long)
    pixel_mask[0, 32:] = 0  # wide
    pixel_mask[2, :, 24:] = 0  # tall
    pixel_values = torch.randn(3, 3, 64, 64, generator=generator) * pixel_mask[:, None]
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "pixel_values": pixel_values,
        "pixel_mask": pixel_mask,
    }


@pytest.fixture
def labels() -> torch.Tensor:
    return torch.tensor([[0.5, 0.25, 0.4, 0.3], [0.5, 0.5, 0.3, 0.6], [0.2, 0.5, 0.2, 0.4]])


def alone(batch: dict[str, torch.Tensor], i: int) -> dict[str, torch.Tensor]:
    """Sample i as a batch of one, its expression unpadded."""
    length = int(batch["attention_mask"][i].sum())
    one = {name: value[i : i + 1] for name, value in batch.items()}
    return {**one, "input_ids": one["input_ids"][:, :length], "attention_mask": one["attention_mask"][:, :length]}


def patch_index_of(pixel_mask: torch.Tensor, patch: int) -> torch.Tensor:
    there = torch.nn.functional.max_pool2d(pixel_mask[:, None].float(), patch).flatten(1) > 0
    rows = [row.nonzero()[:, 0] for row in there]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)


@torch.no_grad()
def run(model, inputs, **options):
    return model(**inputs, **options)


# -- what transformers' own suite asks


def test_same_input_gives_the_same_output(tiny_model, batch):
    torch.testing.assert_close(run(tiny_model, batch).pred_boxes, run(tiny_model, batch).pred_boxes, rtol=0, atol=0)


def test_save_and_load_gives_identical_outputs(tiny_model, batch, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    assert type(loaded) is HiVGForVisualGrounding
    before, after = run(tiny_model, batch, **ASKED), run(loaded, batch, **ASKED)
    for name, value in tiny_model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    for name in ANSWERS:  # the last bit may differ: matrix kernels choose by where in memory the weights lie
        torch.testing.assert_close(before[name], after[name], rtol=1e-6, atol=1e-6)


def test_weights_are_safetensors_and_load_in_another_precision(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    assert not list(tmp_path.glob("*.bin"))
    loaded = HiVGForVisualGrounding.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}


def test_sharded_weights_load(tiny_model, batch, tmp_path):
    tiny_model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    loaded = HiVGForVisualGrounding.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(run(tiny_model, batch).pred_boxes, run(loaded, batch).pred_boxes)


def test_missing_weights_are_initialized_and_present_ones_are_kept(tiny_model, tmp_path):
    state = {k: v for k, v in tiny_model.state_dict().items() if "bridge" not in k and "fusion.layers.0" not in k}
    tiny_model.save_pretrained(tmp_path, state_dict=state)
    loaded, report = HiVGForVisualGrounding.from_pretrained(tmp_path, output_loading_info=True)
    assert report["missing_keys"]
    for name, parameter in loaded.named_parameters():
        assert torch.isfinite(parameter).all(), name
        assert parameter.abs().max() < 20, name
        if name in state:
            assert torch.equal(parameter, tiny_model.state_dict()[name]), name


def test_building_on_the_meta_device_gives_the_same_state_dict(tiny_model, tiny_config):
    with torch.device("meta"):
        empty = HiVGForVisualGrounding(tiny_config)
    assert set(empty.state_dict()) == set(tiny_model.state_dict())


def test_state_dict_contains_clips_own_keys(tiny_model, tiny_config):
    clip = CLIPModel(tiny_config.clip_config)
    ours = {name.removeprefix("clip.") for name in tiny_model.state_dict() if name.startswith("clip.")}
    assert set(clip.state_dict()) <= ours
    assert all(".bridge." in name for name in ours - set(clip.state_dict()))


def test_everything_hivg_adds_lives_in_bridges_or_the_grounding_head(tiny_model, tiny_config):
    clip = {f"clip.{name}" for name in CLIPModel(tiny_config.clip_config).state_dict()}
    added = set(tiny_model.state_dict()) - clip
    assert all(".bridge." in name or name.startswith("grounding_head.") for name in added)


def test_from_clip_loads_any_clip_whole(tiny_config, tmp_path):
    clip = CLIPModel(tiny_config.clip_config)
    clip.save_pretrained(tmp_path)
    model = HiVGForVisualGrounding.from_clip(tmp_path, fusion_heads=2, bridge_layers=[0, 2])
    ours = model.clip.state_dict()
    for name, value in clip.state_dict().items():
        assert torch.equal(ours[name], value), name
    assert model.config.bridge_layers == [0, 2]
    levels = model.grounding_head.visual_levels_proj.weight
    copies = levels.chunk(len(model.config.visual_feature_layers), dim=1)
    assert all(torch.equal(copy_, clip.visual_projection.weight) for copy_ in copies)


def test_from_clip_refuses_a_folder_that_holds_no_clip(tmp_path, tiny_model):
    tiny_model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="needs a CLIP"):
        HiVGForVisualGrounding.from_clip(tmp_path)


def test_from_clip_says_what_opens_an_official_file():
    with pytest.raises(ValueError, match=r"`a\.pth` is a file.*hivg_hf\.conversion\.load_official_clip"):
        HiVGForVisualGrounding.from_clip("a.pth")


def test_tuple_and_dict_outputs_are_the_same(tiny_model, batch):
    as_dict = run(tiny_model, batch, **ASKED)
    as_tuple = run(tiny_model, batch, return_dict=False, **ASKED)
    assert isinstance(as_tuple, tuple)
    for a, b in zip(as_dict.to_tuple(), as_tuple, strict=True):
        torch.testing.assert_close(a, b)


def test_eager_and_sdpa_agree(tiny_model, batch):
    model = copy.deepcopy(tiny_model)
    fast = run(model, batch, **ASKED)
    model.set_attn_implementation("eager")
    slow = run(model, batch, **ASKED)
    for name in ANSWERS:
        torch.testing.assert_close(fast[name], slow[name], **TOLERANCE)


def test_hidden_states_and_attentions_come_back_when_asked(tiny_model, tiny_config, batch):
    model = copy.deepcopy(tiny_model)
    model.set_attn_implementation("eager")
    plain = run(model, batch)
    assert plain.vision_hidden_states is None
    assert plain.attentions is None
    full = run(model, batch, output_hidden_states=True, output_attentions=True)
    assert [len(full[k]) for k in ("vision_hidden_states", "text_hidden_states", "hidden_states")] == [5, 4, 3]
    assert [len(full[k]) for k in ("vision_attentions", "cross_attentions", "attentions")] == [4, 2, 2]
    assert full.cross_attentions[0].shape == (3, 2, 1 + 64, 9)  # heads, CLS and patches, words
    assert full.hidden_states[-1].shape == (3, 2 + 64 + 9, 16)
    torch.testing.assert_close(plain.pred_boxes, full.pred_boxes, **TOLERANCE)


def test_hidden_states_keep_their_gradient(tiny_model, batch):
    outputs = tiny_model(**batch, output_hidden_states=True)
    for states in (outputs.vision_hidden_states, outputs.text_hidden_states, outputs.hidden_states):
        states[0].retain_grad()
    outputs.pred_boxes.sum().backward()
    assert outputs.hidden_states[0].grad.abs().sum() > 0
    assert outputs.vision_hidden_states[0].grad.abs().sum() > 0
    assert outputs.text_hidden_states[0].grad.abs().sum() > 0
    tiny_model.zero_grad()


def test_every_parameter_gets_a_gradient(tiny_model, batch, labels):
    model = copy.deepcopy(tiny_model).train()
    model(**batch, labels=labels).loss.backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without == []


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_activation_checkpointing_gives_the_same_gradients(tiny_model, tiny_config, batch, labels, dropout):
    config = copy.deepcopy(tiny_config)
    config.fusion_dropout = dropout
    model = HiVGForVisualGrounding(config)
    model.load_state_dict(tiny_model.state_dict())
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.activation_checkpointing_enable()
        model.train()
        model.zero_grad()
        torch.manual_seed(0)
        model(**batch, labels=labels).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_the_first_compiled_call_has_no_graph_break(tiny_config, tiny_model, batch):
    model = HiVGForVisualGrounding(tiny_config).eval()  # fresh: nothing was ever run before
    model.load_state_dict(tiny_model.state_dict())
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    found, expected = run(compiled, batch, **ASKED), run(tiny_model, batch, **ASKED)
    for name in ANSWERS:
        torch.testing.assert_close(found[name], expected[name], **TOLERANCE)


def test_bfloat16_runs_and_stays_close(tiny_model, batch, labels):
    model = copy.deepcopy(tiny_model).to(torch.bfloat16)
    inputs = {**batch, "pixel_values": batch["pixel_values"].to(torch.bfloat16)}
    outputs = run(model, inputs, labels=labels, **ASKED)
    assert outputs.pred_boxes.dtype == torch.bfloat16
    assert torch.isfinite(outputs.loss)
    torch.testing.assert_close(outputs.pred_boxes.float(), run(tiny_model, batch).pred_boxes, rtol=0.05, atol=0.05)


# -- a prediction depends on nothing but its own image and expression


@pytest.mark.parametrize("with_patch_index", [False, True])
def test_a_prediction_does_not_depend_on_its_batch(tiny_model, batch, with_patch_index):
    inputs = dict(batch)
    if with_patch_index:
        inputs["patch_index"] = patch_index_of(batch["pixel_mask"], 8)
    together = run(tiny_model, inputs, output_hidden_states=True, **ASKED)
    for i in range(3):
        one = alone(batch, i)
        if with_patch_index:
            one["patch_index"] = patch_index_of(one["pixel_mask"], 8)
        single = run(tiny_model, one, output_hidden_states=True, **ASKED)
        for name in ANSWERS:
            torch.testing.assert_close(together[name][i], single[name][0], **TOLERANCE)
        torch.testing.assert_close(together.logits_per_text[i, i], single.logits_per_text[0, 0], **TOLERANCE)
        words = one["input_ids"].shape[1]
        torch.testing.assert_close(
            together.text_hidden_states[-1][i, :words], single.text_hidden_states[-1][0], **TOLERANCE
        )
        tokens = single.vision_hidden_states[-1].shape[1]
        real = patch_index_of(one["pixel_mask"], 8)[0] + 1
        real = torch.arange(tokens) if with_patch_index else torch.cat([torch.zeros(1, dtype=torch.long), real])
        torch.testing.assert_close(
            together.vision_hidden_states[-1][i, real], single.vision_hidden_states[-1][0, real], **TOLERANCE
        )


def test_skipping_padded_patches_changes_no_answer(tiny_model, batch):
    dense = run(tiny_model, batch, **ASKED)
    index = patch_index_of(batch["pixel_mask"][:1], 8)
    sparse = run(tiny_model, {**alone(batch, 0), "patch_index": index}, **ASKED)
    assert index.shape[1] == 32
    for name in ANSWERS:
        torch.testing.assert_close(sparse[name][0], dense[name][0], **TOLERANCE)
    assert (sparse.token_logits[0, 32:] == PADDING_LOGIT).all()


def test_pixels_in_the_padding_change_nothing(tiny_model, batch):
    noisy = {**batch, "pixel_values": torch.where(batch["pixel_mask"][:, None] > 0, batch["pixel_values"], 5.0)}
    for name in ANSWERS:
        torch.testing.assert_close(run(tiny_model, noisy, **ASKED)[name], run(tiny_model, batch, **ASKED)[name])


def test_text_padding_changes_nothing(tiny_model, batch):
    longer = dict(batch)
    longer["input_ids"] = torch.nn.functional.pad(batch["input_ids"], (0, 20), value=3)
    longer["attention_mask"] = torch.nn.functional.pad(batch["attention_mask"], (0, 20))
    for name in ANSWERS:
        torch.testing.assert_close(
            run(tiny_model, longer, **ASKED)[name], run(tiny_model, batch, **ASKED)[name], **TOLERANCE
        )


def padded(batch, side: str, token: int, length: int) -> dict[str, torch.Tensor]:
    """The batch's expressions with padding of `token` on one side, up to `length`."""
    ids = torch.full((3, length), token)
    mask = torch.zeros(3, length, dtype=torch.long)
    for row, count in enumerate(batch["attention_mask"].sum(-1).tolist()):
        place = slice(0, count) if side == "right" else slice(length - count, length)
        ids[row, place], mask[row, place] = batch["input_ids"][row, :count], 1
    return {**batch, "input_ids": ids, "attention_mask": mask}


@pytest.fixture(params=["new", "official"])
def either_model(request, tiny_model, tiny_config) -> HiVGForVisualGrounding:
    """A model of each kind, and with an end token that no other token is."""
    config = copy.deepcopy(tiny_config)
    config.clip_config.text_config.eos_token_id = 499
    config.clip_config.text_config.pad_token_id = 498
    if request.param == "official":
        config.bridge_mask_padding = False
    model = HiVGForVisualGrounding(config).eval()
    model.load_state_dict(tiny_model.state_dict())
    return model


@pytest.fixture
def sentences(batch) -> dict[str, torch.Tensor]:
    """The batch with a begin token in front of each expression and an end token (499) after it."""
    ids = batch["input_ids"].clamp(max=490)
    ids[:, 0] = 497
    ids[range(3), batch["attention_mask"].sum(-1) - 1] = 499
    return {**batch, "input_ids": ids}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("token", "length"), [(499, 9), (0, 9), (3, 20), (499, 77)])
def test_no_padding_changes_a_prediction(either_model, sentences, side, token, length):
    inputs = padded(sentences, side, token, length)
    expected = run(either_model, sentences, **ASKED)
    for mask in (inputs["attention_mask"], inputs["attention_mask"].bool(), inputs["attention_mask"].float()):
        found = run(either_model, {**inputs, "attention_mask": mask}, **ASKED)
        for name in (*ANSWERS, "logits_per_text"):
            torch.testing.assert_close(found[name], expected[name], **TOLERANCE, msg=name)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("token", [499, 498, 0], ids=["end token", "pad token", "official"])
def test_padding_without_a_mask_is_understood_and_said_once(either_model, sentences, side, token):
    inputs = padded(sentences, side, token, 12)
    del inputs["attention_mask"]
    with pytest.warns(UserWarning, match="padded and without their `attention_mask`") as caught:
        first, second = (run(either_model, inputs, **ASKED) for _ in range(2))
    assert len(caught) == 1
    expected = run(either_model, sentences, **ASKED)
    for name in ANSWERS:
        torch.testing.assert_close(first[name], expected[name], **TOLERANCE, msg=name)
        torch.testing.assert_close(second[name], expected[name], **TOLERANCE, msg=name)


def test_whole_rows_without_a_mask_are_read_whole_and_in_silence(either_model, sentences):
    whole = alone(sentences, 1)
    whole["input_ids"][0, 1:3] = 0  # a word of the expression, though padding elsewhere
    expected = run(either_model, whole)
    del whole["attention_mask"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(run(either_model, whole).pred_boxes, expected.pred_boxes, **TOLERANCE)
        run(either_model, {**whole, "input_ids": torch.full((1, 4), 499)})  # nothing but padding: read as it is


def test_a_compiled_model_understands_left_padding_with_and_without_a_mask(either_model, sentences):
    inputs = padded(sentences, "left", 499, 12)
    torch._dynamo.reset()
    compiled = torch.compile(either_model, fullgraph=True, backend="aot_eager")
    expected = run(either_model, sentences).pred_boxes
    torch.testing.assert_close(run(compiled, inputs).pred_boxes, expected, **TOLERANCE)
    del inputs["attention_mask"]
    torch.testing.assert_close(run(compiled, inputs).pred_boxes, expected, **TOLERANCE)


def test_an_official_variant_restores_its_own_padding(batch, tiny_config):
    config = copy.deepcopy(tiny_config)
    config.bridge_mask_padding = config.bridge_text_norm = config.skip_padded_patches = False
    torch.manual_seed(0)
    model = HiVGForVisualGrounding(config).eval()
    padded = {
        **batch,
        "input_ids": torch.nn.functional.pad(batch["input_ids"], (0, 68), value=7),
        "attention_mask": torch.nn.functional.pad(batch["attention_mask"], (0, 68)),
    }
    torch.testing.assert_close(run(model, padded).pred_boxes, run(model, batch).pred_boxes, **TOLERANCE)
    torch.testing.assert_close(run(model, alone(batch, 1)).pred_boxes, run(model, batch).pred_boxes[1:2], **TOLERANCE)


def test_batch_mixing_is_a_switch_and_the_identity_for_one_sample(batch, tiny_config, tiny_model):
    config = copy.deepcopy(tiny_config)
    config.bridge_mixes_batch = True
    config.bridge_mask_padding = False
    mixing = HiVGForVisualGrounding(config).eval()
    mixing.load_state_dict(tiny_model.state_dict())
    config = copy.deepcopy(config)
    config.bridge_mixes_batch = False
    correct = HiVGForVisualGrounding(config).eval()
    correct.load_state_dict(tiny_model.state_dict())
    one = alone(batch, 0)
    torch.testing.assert_close(run(mixing, one).pred_boxes, run(correct, one).pred_boxes)
    mixed = run(mixing, batch, output_hidden_states=True).vision_hidden_states[-1]
    assert (mixed - run(correct, batch, output_hidden_states=True).vision_hidden_states[-1]).abs().max() > 1e-3


def test_a_repeated_expression_is_read_once(tiny_model, batch):
    shared = {
        **batch,
        "input_ids": batch["input_ids"][:1],
        "attention_mask": batch["attention_mask"][:1],
        "text_index": torch.zeros(3, dtype=torch.long),
    }
    repeated = {
        **batch,
        "input_ids": batch["input_ids"][:1].expand(3, -1),
        "attention_mask": batch["attention_mask"][:1].expand(3, -1),
    }
    for name in ANSWERS:
        torch.testing.assert_close(
            run(tiny_model, shared, **ASKED)[name], run(tiny_model, repeated, **ASKED)[name], **TOLERANCE
        )


@pytest.fixture
def without_bridges(tiny_config) -> HiVGForVisualGrounding:
    return HiVGForVisualGrounding(HiVGConfig.from_dict({**tiny_config.to_dict(), "bridge_layers": []})).eval()


def two_images(batch: dict[str, torch.Tensor], with_patch_index: bool) -> dict[str, torch.Tensor]:
    """Three expressions, two images, in another order than they stand."""
    shared = dict(batch)
    if with_patch_index:
        shared["patch_index"] = patch_index_of(batch["pixel_mask"], 8)
    images = {name: shared[name][:2] for name in ("pixel_values", "pixel_mask", "patch_index") if name in shared}
    return {**shared, **images, "image_index": torch.tensor([1, 0, 1])}


def repeated(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same questions with a row of pixels for each."""
    index = inputs["image_index"]
    rows = {name: inputs[name][index] for name in ("pixel_values", "pixel_mask", "patch_index") if name in inputs}
    return {**{name: value for name, value in inputs.items() if name != "image_index"}, **rows, "image_ids": index}


@pytest.mark.parametrize("with_patch_index", [False, True])
@pytest.mark.parametrize("model", ["tiny_model", "without_bridges"])
def test_an_image_asked_several_things_gives_the_answers_of_its_repetitions(model, batch, with_patch_index, request):
    model, inputs = request.getfixturevalue(model), two_images(batch, with_patch_index)
    asked = {**ASKED, "labels": torch.full((3, 4), 0.5), "output_scores": True}
    found, expected = run(model, inputs, **asked), run(model, repeated(inputs), **asked)
    for name in ANSWERS:
        torch.testing.assert_close(found[name], expected[name], **TOLERANCE)
    for name, term in expected.loss_dict.items():  # the contrastive one, too
        torch.testing.assert_close(found.loss_dict[name], term, **TOLERANCE)


def test_an_image_and_an_expression_can_both_repeat(tiny_model, batch):
    inputs = two_images(batch, True)
    text = {name: inputs[name][:2] for name in ("input_ids", "attention_mask")}
    several = {**inputs, **text, "text_index": torch.tensor([0, 0, 1])}
    plain = {**repeated(inputs), **{name: value[several["text_index"]] for name, value in text.items()}}
    for name in ANSWERS:
        found, expected = run(tiny_model, several, **ASKED)[name], run(tiny_model, plain, **ASKED)[name]
        torch.testing.assert_close(found, expected, **TOLERANCE)


def test_layers_before_the_first_bridge_run_once_for_each_image(tiny_model, batch):
    rows = []
    hooks = [
        part.register_forward_hook(lambda module, inputs, output: rows.append(len(output[0])))
        for part in (layer.self_attn for layer in tiny_model.clip.vision_model.encoder.layers)
    ]
    run(tiny_model, two_images(batch, True))
    for hook in hooks:
        hook.remove()
    assert rows == [2, 2, 3, 3]  # the first bridge is in layer 1, behind its self-attention


def test_states_and_attentions_come_back_for_each_sample_of_a_shared_image(tiny_model, batch):
    model = copy.deepcopy(tiny_model)
    model.set_attn_implementation("eager")
    inputs, asked = two_images(batch, True), {"output_hidden_states": True, "output_attentions": True}
    found, expected = run(model, inputs, **asked), run(model, repeated(inputs), **asked)
    for name in ("vision_hidden_states", "vision_attentions", "cross_attentions", "hidden_states"):
        for ours, theirs in zip(found[name], expected[name], strict=True):
            torch.testing.assert_close(ours, theirs, **TOLERANCE)


def test_shared_images_train_as_repeated_ones(tiny_model, batch, labels):
    gradients = []
    for inputs in (two_images(batch, True), repeated(two_images(batch, True))):
        model = copy.deepcopy(tiny_model)
        model(**inputs, labels=labels).loss.backward()
        gradients.append(model.clip.vision_model.embeddings.patch_embedding.weight.grad)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_the_words_change_the_answer_through_the_bridge(tiny_model, batch):
    other = {**batch, "input_ids": batch["input_ids"].flip(1)}
    before = run(tiny_model, batch, output_hidden_states=True).vision_hidden_states
    after = run(tiny_model, other, output_hidden_states=True).vision_hidden_states
    assert torch.equal(before[1], after[1])  # below the first bridge, in layer 1
    assert not torch.allclose(before[2], after[2])


# -- identities: the same numbers for less work


def test_the_folded_mask_head_equals_the_three_convolutions(tiny_model):
    head = tiny_model.grounding_head
    generator = torch.Generator().manual_seed(2)
    patches, expression = torch.randn(2, 64, 16, generator=generator), torch.randn(2, 16, generator=generator)
    with torch.no_grad():
        image = patches.transpose(1, 2).unflatten(2, (8, 8))  # (B, H, G, G)
        for convolution in head.mask_convs:
            image = convolution(image)
        expected = torch.einsum("bhyx,bh->byx", image, expression)
        cells = head.mask_similarity(patches, expression)  # (B, N, 8, 8)
    found = cells.unflatten(1, (8, 8)).permute(0, 1, 3, 2, 4).flatten(3).flatten(1, 2)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


def test_reading_only_what_is_asked_changes_no_box(tiny_model, batch):
    torch.testing.assert_close(run(tiny_model, batch).pred_boxes, run(tiny_model, batch, **ASKED).pred_boxes)


def test_what_was_not_asked_for_is_none(tiny_model, batch):
    outputs = run(tiny_model, batch)
    assert outputs.token_logits is None
    assert outputs.mask_logits is None
    assert outputs.loss is None


# -- losses and options


def test_the_loss_is_the_weighted_sum_of_its_terms(tiny_model, batch, labels):
    outputs = run(tiny_model, batch, labels=labels)
    weights = tiny_model.config.loss_weights
    assert set(outputs.loss_dict) == set(weights)
    torch.testing.assert_close(outputs.loss, sum(weights[k] * v for k, v in outputs.loss_dict.items()))
    assert outputs.mask_logits is None


def test_a_term_without_weight_is_not_computed(tiny_config, tiny_model, batch, labels):
    config = copy.deepcopy(tiny_config)
    config.loss_weights = {"bbox": 1.0, "mask_dice": 0.0}
    model = HiVGForVisualGrounding(config).eval()
    assert set(run(model, batch, labels=labels).loss_dict) == {"bbox"}


def test_no_target_rows_keep_the_loss_finite(tiny_model, batch, labels):
    labels[1] = float("nan")
    outputs = tiny_model(**batch, labels=labels)
    outputs.loss.backward()
    assert torch.isfinite(outputs.loss)
    assert all(torch.isfinite(p.grad).all() for p in tiny_model.parameters() if p.grad is not None)
    tiny_model.zero_grad()


def test_equal_images_are_no_negatives(tiny_model, batch, labels):
    apart = run(tiny_model, batch, labels=labels, image_ids=torch.tensor([1, 2, 3]))
    shared = run(tiny_model, batch, labels=labels, image_ids=torch.tensor([1, 1, 1]))
    assert apart.loss_dict["contrastive"] > 0
    assert shared.loss_dict["contrastive"].item() == pytest.approx(0, abs=1e-6)


def test_similarity_scores_come_in_every_call_without_labels(tiny_config, tiny_model, batch):
    config = copy.deepcopy(tiny_config)
    config.score = "similarity"
    config.loss_weights = {"bbox": 1.0}
    model = HiVGForVisualGrounding(config).eval()
    model.load_state_dict({k: v for k, v in tiny_model.state_dict().items() if "score_head" not in k})
    assert run(model, batch, output_scores=False).scores is None
    assert run(model, batch, labels=torch.full((3, 4), 0.5)).scores is None
    scores = run(model, batch).scores
    torch.testing.assert_close(run(model, batch, output_token_logits=True).scores, scores)
    assert scores.shape == (3,)
    assert ((scores > 0) & (scores < 1)).all()
    sparse = {**batch, "patch_index": patch_index_of(batch["pixel_mask"], 8)}
    torch.testing.assert_close(run(model, sparse, output_token_logits=True).scores, scores, **TOLERANCE)


def test_positions_are_interpolated_for_a_larger_image(tiny_config):
    config = HiVGConfig(
        clip_config=CLIPConfig.from_dict(tiny_config.clip_config.to_dict()), image_size=96, fusion_heads=2
    )
    model = HiVGForVisualGrounding(config).eval()
    inputs = {"input_ids": torch.ones(1, 4, dtype=torch.long), "pixel_values": torch.randn(1, 3, 96, 96)}
    assert run(model, inputs, output_token_logits=True).token_logits.shape == (1, 144)


def test_another_image_size_interpolates_the_positions_of_patches_alone(tiny_model, batch, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    larger = HiVGForVisualGrounding.from_pretrained(tmp_path, image_size=96).eval()
    assert larger.config.image_size == larger.grounding_head.config.image_size == 96
    trained = tiny_model.grounding_head.position_embedding.weight
    rows = larger.grounding_head.position_embedding.weight
    assert len(rows) == 2 + 144 + 77
    assert torch.equal(rows[:2], trained[:2])
    assert torch.equal(rows[-77:], trained[-77:])
    square = trained[2:-77].T.reshape(1, -1, 8, 8)
    square = torch.nn.functional.interpolate(square, size=(12, 12), mode="bicubic", antialias=True)
    torch.testing.assert_close(rows[2:-77], square[0].flatten(1).T)
    words = {name: batch[name] for name in ("input_ids", "attention_mask")}
    output = run(larger, {**words, "pixel_values": torch.randn(3, 3, 96, 96)}, output_masks=True)
    assert output.mask_logits.shape == (3, 96, 96)

    larger.save_pretrained(tmp_path / "larger")
    again = HiVGForVisualGrounding.from_pretrained(tmp_path / "larger")
    assert again.config.image_size == 96
    assert torch.equal(again.grounding_head.position_embedding.weight, rows)


def test_auto_classes_and_configs_ask_for_another_image_size_too(tiny_model, batch, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    smaller = AutoModel.from_pretrained(tmp_path, image_size=32)
    assert smaller.grounding_head.position_embedding.weight.shape[0] == 2 + 16 + 77
    config = HiVGConfig.from_pretrained(tmp_path, image_size=96)
    model, report = HiVGForVisualGrounding.from_pretrained(tmp_path, config=config, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["mismatched_keys"]
    assert (model.config.image_size, config.image_size) == (96, 96)
    same = HiVGForVisualGrounding.from_pretrained(tmp_path, image_size=64).eval()
    assert torch.equal(run(same, batch).pred_boxes, run(tiny_model, batch).pred_boxes)
    with pytest.raises(ValueError, match=r"`image_size` must be a multiple of CLIP's patch size\. Got 100 and 8"):
        HiVGForVisualGrounding.from_pretrained(tmp_path, image_size=100)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixel_values": torch.zeros(3, 3, 32, 32)}, "`pixel_values` must be 64 x 64 pixels.*Got \\(32, 32\\)"),
        ({"pixel_values": None}, "needs both `pixel_values` and `input_ids`"),
        ({"input_ids": torch.ones(3, 78, dtype=torch.long)}, "at most 77 tokens.*Got 78"),
        ({"pixel_values": torch.zeros(1, 3, 64, 64)}, "Got 3 expressions for 1 images"),
        ({"text_index": torch.zeros(2, dtype=torch.long)}, "Got 2 expressions for 3 images.*`image_index`"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(tiny_model, batch, change, message):
    with pytest.raises(ValueError, match=message):
        run(tiny_model, {**batch, **change})


def test_patch_index_is_refused_where_every_patch_is_computed(tiny_config, batch):
    config = copy.deepcopy(tiny_config)
    config.skip_padded_patches = False
    with pytest.raises(ValueError, match="computes every patch"):
        run(HiVGForVisualGrounding(config), {**batch, "patch_index": torch.zeros(3, 1, dtype=torch.long)})


def test_ground_answers_in_pixels_of_the_image(tiny_model, tiny_processor):
    from PIL import Image

    image = Image.new("RGB", (40, 20), "red")
    one = tiny_model.ground(image, "the red star", tiny_processor)
    many = tiny_model.ground(image, ["the red star", "blue"], tiny_processor, output_masks=True)
    assert one["expression"] == "the red star"
    assert one["box"] == pytest.approx(many[0]["box"], abs=1e-3)
    assert 0 <= one["box"]["xmin"] <= one["box"]["xmax"] <= 40
    assert 0 <= one["box"]["ymin"] <= one["box"]["ymax"] <= 20
    assert many[1]["mask"].shape == (20, 40)
