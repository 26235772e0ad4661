"""What transformers and torch do with any model, they do with this one: embeddings, pickles, features, indexes."""

import copy
import pickle
from pathlib import Path

import PIL.Image
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import CLIPModel
from transformers.integrations.neftune import neftune_post_forward_hook
from transformers.utils import logging

from helpers.interpreter import Interpreter
from hivg_hf import HiVGForVisualGrounding

RECORDED = {"output_hidden_states": True}


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    """Two images and two expressions, the first image with padding below."""
    generator = torch.Generator().manual_seed(3)
    input_ids = torch.randint(1, 500, (2, 6), generator=generator)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, 4:] = 0
    pixel_mask = torch.ones(2, 64, 64, dtype=torch.long)
    pixel_mask[0, 32:] = 0
    pixel_values = torch.randn(2, 3, 64, 64, generator=generator) * pixel_mask[:, None]
    patch_index = torch.stack([torch.arange(64).where(torch.arange(64) < 32, -1), torch.arange(64)])
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "pixel_values": pixel_values,
        "pixel_mask": pixel_mask,
        "patch_index": patch_index,
    }


@torch.no_grad()
def boxes(model: torch.nn.Module, inputs: dict[str, torch.Tensor], **options: object) -> torch.Tensor:
    return model(**inputs, **options).pred_boxes


# -- embeddings


def test_the_input_embedding_is_the_text_towers(tiny_model) -> None:
    embedding = tiny_model.clip.text_model.embeddings.token_embedding
    assert tiny_model.get_input_embeddings() is embedding
    assert tiny_model.clip.get_input_embeddings() is embedding
    model = copy.deepcopy(tiny_model)
    model.set_input_embeddings(torch.nn.Embedding(7, 16))
    assert model.clip.text_model.embeddings.token_embedding.num_embeddings == 7


def test_resized_embeddings_are_saved_and_change_no_prediction(tiny_model, inputs, tmp_path: Path) -> None:
    model = copy.deepcopy(tiny_model)
    before = boxes(model, inputs)
    size = model.config.clip_config.text_config.vocab_size + 5
    model.resize_token_embeddings(size)
    assert model.config.clip_config.text_config.vocab_size == size
    assert torch.equal(boxes(model, inputs), before)
    model.save_pretrained(tmp_path)
    assert torch.equal(boxes(HiVGForVisualGrounding.from_pretrained(tmp_path), inputs), before)
    inputs["input_ids"][0, 1] = size - 1  # a new token, beyond the end token's id
    assert not torch.equal(boxes(model, inputs), before)


# -- pickles


@pytest.mark.parametrize("copied", [lambda model: pickle.loads(pickle.dumps(model)), copy.deepcopy])
def test_a_copy_records_states_and_compiles_without_graph_break(tiny_model, inputs, copied) -> None:
    model = copied(tiny_model)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(boxes(compiled, inputs), boxes(tiny_model, inputs))
    states = model(**inputs, **RECORDED)
    for name in ("vision_hidden_states", "text_hidden_states", "hidden_states"):
        assert len(getattr(states, name)) == len(getattr(tiny_model(**inputs, **RECORDED), name))


def test_another_process_reads_a_saved_model_without_building_one_first(tiny_checkpoint, inputs, tmp_path) -> None:
    model = HiVGForVisualGrounding.from_pretrained(tiny_checkpoint)
    torch.save(model, tmp_path / "model.pt")
    torch.save(inputs, tmp_path / "inputs.pt")
    process = Interpreter(tmp_path, with_package=True, environment={})
    try:
        found = process.run(
            "import torch\n"
            "model = torch.load('model.pt', weights_only=False)\n"
            "result = model(**torch.load('inputs.pt')).pred_boxes.tolist()"
        )
    finally:
        process.close()
    torch.testing.assert_close(torch.tensor(found), boxes(model, inputs))


# -- outputs that the config asks for


def test_the_config_can_ask_for_states_and_attentions(tiny_model, inputs) -> None:
    model = copy.deepcopy(tiny_model)
    model.set_attn_implementation("eager")
    model.config.output_hidden_states = model.config.output_attentions = True
    outputs = model(**inputs)
    assert len(outputs.hidden_states) == model.config.fusion_layers + 1
    assert len(outputs.cross_attentions) == len(model.config.bridge_layers)
    assert model(**inputs, output_hidden_states=False).hidden_states is None


# -- one image, several expressions


def test_image_index_gives_what_repeated_images_give(tiny_model, inputs) -> None:
    index = torch.tensor([1, 0, 1])
    words = {name: inputs[name][[0, 1, 1]] for name in ("input_ids", "attention_mask")}
    images = {name: inputs[name] for name in ("pixel_values", "pixel_mask", "patch_index")}
    repeated = {name: value[index] for name, value in images.items()}
    shared = tiny_model(**words, **images, image_index=index, output_masks=True)
    expected = tiny_model(**words, **repeated, output_masks=True)
    torch.testing.assert_close(shared.pred_boxes, expected.pred_boxes)
    torch.testing.assert_close(shared.mask_logits, expected.mask_logits)
    one = {"text_index": torch.tensor([0, 1, 1]), "input_ids": inputs["input_ids"]}
    both = tiny_model(**images, **one, attention_mask=inputs["attention_mask"], image_index=index)
    torch.testing.assert_close(both.pred_boxes, expected.pred_boxes)


@pytest.mark.parametrize(
    "index",
    [{"image_index": torch.tensor([0, 1])}, {"text_index": torch.tensor([0, 1])}],
    ids=lambda index: next(iter(index)),
)
def test_no_matrix_of_images_and_texts_where_one_image_has_several_embeddings(tiny_model, inputs, index) -> None:
    """`logits_per_image.softmax(1)`, as with CLIP, would give each label of an image the probability 1."""
    outputs = tiny_model(**inputs, **index)
    assert outputs.logits_per_image is None
    assert outputs.logits_per_text is None
    pairs = tiny_model(**inputs)
    assert torch.equal(pairs.logits_per_image, pairs.logits_per_text.t())


def test_labels_of_one_image_are_ranked_by_scores_alone(tiny_model, tiny_processor) -> None:
    inputs = tiny_processor(images=PIL.Image.new("RGB", (64, 48)), text=["a star", "a ring", "a cat"])
    outputs = tiny_model(**inputs)
    assert outputs.logits_per_image is None
    assert outputs.scores.shape == (3,)


ADAPTED = {"target_modules": r"clip\.(vision|text)_model\..*self_attn\.(q|v)_proj", "init_lora_weights": False}


def test_samples_of_a_batch_read_different_adapters(tiny_model, inputs) -> None:
    model = get_peft_model(copy.deepcopy(tiny_model), LoraConfig(r=2, **ADAPTED), adapter_name="one")
    model.add_adapter("two", LoraConfig(r=2, **ADAPTED))
    model.eval()
    alone = {"__base__": boxes(tiny_model, inputs)}
    for name in ("one", "two"):
        model.set_adapter(name)
        alone[name] = boxes(model, inputs)
    for names in (["one", "two"], ["two", "__base__"]):
        wanted = torch.stack([alone[name][row] for row, name in enumerate(names)])
        torch.testing.assert_close(boxes(model, inputs, adapter_names=names), wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("index", ["text_index", "image_index"])
def test_different_adapters_and_shared_rows_are_refused(index, tiny_model, inputs) -> None:
    """Where rows are as many as samples, only in another order, PEFT itself would answer with the wrong adapter."""
    model = get_peft_model(copy.deepcopy(tiny_model), LoraConfig(r=2, **ADAPTED), adapter_name="one").eval()
    swapped = {index: torch.tensor([1, 0])}
    assert boxes(model, inputs, **swapped).shape == (2, 4)
    with pytest.raises(ValueError, match=r"with `text_index` or `image_index` samples share rows of the towers"):
        boxes(model, inputs, **swapped, adapter_names=["one", "__base__"])


def test_noise_in_embeddings_is_for_training_alone(tiny_model, inputs) -> None:
    """NEFTune, as `TrainingArguments(neftune_noise_alpha=...)` puts it on the input embedding."""
    model, labels = copy.deepcopy(tiny_model), torch.full((2, 4), 0.5)
    model.get_input_embeddings().neftune_noise_alpha = 5.0
    handle = model.get_input_embeddings().register_forward_hook(neftune_post_forward_hook)
    assert torch.equal(boxes(model.eval(), inputs), boxes(tiny_model, inputs))
    for module in model.modules():
        module.training = False  # dropout off, so that noise alone can change a loss
    model.get_input_embeddings().training = True
    assert not torch.equal(boxes(model, inputs), boxes(tiny_model, inputs))
    assert torch.isfinite(model(**inputs, labels=labels).loss)
    handle.remove()
    assert torch.equal(boxes(model, inputs), boxes(tiny_model, inputs))


def test_expressions_of_one_image_are_not_negatives_of_each_other(tiny_model, inputs) -> None:
    words = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    images = {name: inputs[name][:1] for name in ("pixel_values", "pixel_mask")}
    labels = torch.tensor([[0.5, 0.25, 0.4, 0.3], [0.5, 0.2, 0.3, 0.2]])
    index = torch.zeros(2, dtype=torch.long)
    shared = tiny_model(**words, **images, image_index=index, labels=labels).loss_dict["contrastive"]
    repeated = {name: value.expand(2, *value.shape[1:]) for name, value in images.items()}
    known = tiny_model(**words, **repeated, image_ids=index, labels=labels).loss_dict["contrastive"]
    unknown = tiny_model(**words, **repeated, labels=labels).loss_dict["contrastive"]
    torch.testing.assert_close(shared, known)
    assert not torch.isclose(shared, unknown)


def test_more_expressions_than_images_need_an_index(tiny_model, inputs) -> None:
    inputs["pixel_values"] = inputs["pixel_values"][:1]
    with pytest.raises(ValueError, match=r"Got 2 expressions for 1 images\. Pass .*`image_index`"):
        tiny_model(**inputs)


# -- features


def test_features_are_clips_own(tiny_model, tiny_config, inputs) -> None:
    clip = CLIPModel(tiny_config.clip_config).eval()
    clip.load_state_dict({k: v for k, v in tiny_model.clip.state_dict().items() if ".bridge." not in k})
    pixel_values = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        image = tiny_model.get_image_features(pixel_values).pooler_output
        torch.testing.assert_close(image, clip.get_image_features(pixel_values).pooler_output, rtol=1e-4, atol=1e-5)
        ids = inputs["input_ids"][:1]
        states = clip.text_model(ids).last_hidden_state[:, -1]  # CLIP looks for an end token, which is not there
        text = tiny_model.get_text_features(ids).pooler_output
        torch.testing.assert_close(text, clip.text_projection(states), rtol=1e-4, atol=1e-5)
        padded = tiny_model.get_text_features(inputs["input_ids"], inputs["attention_mask"]).pooler_output
        alone = tiny_model.get_text_features(inputs["input_ids"][1:, :4]).pooler_output
        torch.testing.assert_close(padded[1:], alone, rtol=1e-4, atol=1e-5)


def test_image_features_leave_the_padding_out(tiny_model, inputs) -> None:
    with torch.no_grad():
        masked = tiny_model.get_image_features(inputs["pixel_values"], inputs["pixel_mask"])
        skipped = tiny_model.get_image_features(inputs["pixel_values"], patch_index=inputs["patch_index"])
    torch.testing.assert_close(masked.pooler_output, skipped.pooler_output, rtol=1e-4, atol=1e-5)


# -- a new model around a CLIP


def test_from_clip_says_in_one_line_what_is_new(tiny_config, tmp_path, caplog) -> None:
    CLIPModel(tiny_config.clip_config).save_pretrained(tmp_path)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_warning()
    logging.enable_propagation()
    try:
        HiVGForVisualGrounding.from_clip(tmp_path, fusion_heads=2, bridge_layers=[0, 2])
    finally:
        logging.set_verbosity(verbosity)
        logging.disable_propagation()
    (record,) = caplog.records
    assert "2 bridges and its grounding head" in record.message
    assert "untrained" in record.message
    assert "\n" not in record.message


# -- what people pass


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"output_mask": True}, "forward has no argument `output_mask`; did you mean `output_masks`"),
        ({"label": torch.rand(2, 4)}, "no argument `label`; did you mean `labels`"),
        ({"pixel_masks": None}, "did you mean `pixel_mask`"),
        ({"boxes": torch.rand(2, 4)}, "no argument `boxes`; did you mean `labels`"),
        ({"return_loss": True}, "no argument `return_loss`; did you mean `labels`"),
    ],
)
def test_what_is_nearly_an_argument_is_refused_by_its_name(given, message, tiny_model, inputs) -> None:
    with pytest.raises(TypeError, match=message):
        tiny_model(**inputs, **given)


def test_what_other_code_passes_along_is_not_read(tiny_model, inputs) -> None:
    labels = torch.full((2, 4), 0.5)
    expected = tiny_model(**inputs, labels=labels).loss
    extra = {"num_items_in_batch": 2, "use_cache": False, "boxes": [1, 2], "image_id": torch.tensor([1, 2])}
    assert tiny_model(**inputs, labels=labels, **extra).loss == expected


@pytest.mark.parametrize("kind", ["tensor", "array", "list", "tensors", "detr", "several"])
def test_labels_are_taken_in_every_usual_form(kind, tiny_model, inputs) -> None:
    labels = torch.tensor([[0.5, 0.5, 0.25, 0.25], [0.25, 0.5, 0.5, 0.5]])
    form = {
        "tensor": labels,
        "array": labels.numpy(),
        "list": labels.tolist(),
        "tensors": [*labels],
        "detr": [{"boxes": row[None]} for row in labels],
        "several": labels[:, None],
    }[kind]
    assert tiny_model(**inputs, labels=form).loss == tiny_model(**inputs, labels=labels).loss


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.rand(4), r"`labels` must be boxes \(cx, cy, w, h\), one for each of the 2 rows. Got shape \(4,\)"),
        (torch.rand(1, 4), r"one for each of the 2 rows. Got shape \(1, 4\)"),
        (torch.rand(3, 4), r"Got shape \(3, 4\)"),
        (torch.rand(2, 5), r"Got shape \(2, 5\)"),
        ([[0.5, 0.5], [0.5]], r"`labels` must be a tensor \(B, 4\).*Got list of list"),
        ([{"box": [0.5] * 4}] * 2, r"for each row .*boxes.*Got list of dict"),
    ],
)
def test_labels_of_another_form_are_refused_in_a_sentence(labels, message, tiny_model, inputs) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_model(**inputs, labels=labels)


def test_masks_are_shares_of_the_square_and_nothing_else(tiny_model, inputs) -> None:
    labels = torch.full((2, 4), 0.5)
    masks = torch.zeros(2, 64, 64)
    masks[:, 16:48, 16:48] = 1
    expected = tiny_model(**inputs, labels=labels, mask_labels=masks).loss
    for same in (masks.bool(), masks[:, None], masks.to(torch.uint8)):
        assert tiny_model(**inputs, labels=labels, mask_labels=same).loss == expected
    for wrong in (255 * masks, (255 * masks).to(torch.uint8), -masks):
        with pytest.raises(ValueError, match=r"`mask_labels` must be in 0..1. Got .*divide 8-bit masks by 255"):
            tiny_model(**inputs, labels=labels, mask_labels=wrong)
    with pytest.raises(ValueError, match=r"must be \(2, 64, 64\), a mask of the padded square.* Got \(2, 32, 32\)"):
        tiny_model(**inputs, labels=labels, mask_labels=masks[:, ::2, ::2])


def test_features_of_one_tower_take_the_inputs_of_both(tiny_model, inputs) -> None:
    pixels = {name: value for name, value in inputs.items() if name.startswith("p")}
    expected = tiny_model.get_image_features(**pixels).pooler_output
    torch.testing.assert_close(tiny_model.get_image_features(**inputs).pooler_output, expected, atol=0, rtol=0)


@pytest.mark.parametrize("score_inputs", [["reg"], ["reg", "expression", "sharpness"]])
def test_adapters_on_all_linear_layers_start_as_nothing_and_merge(score_inputs, tiny_config, inputs) -> None:
    config = copy.deepcopy(tiny_config)
    config.score_inputs = score_inputs
    torch.manual_seed(0)
    plain = HiVGForVisualGrounding(config).eval()
    expected = plain(**inputs).scores
    model = get_peft_model(copy.deepcopy(plain), LoraConfig(r=2, target_modules="all-linear")).eval()
    torch.testing.assert_close(model(**inputs).scores, expected, atol=1e-6, rtol=0)
    adapted = {name for name, _ in model.named_modules() if name.endswith("lora_A")}
    assert any("score_head" in name for name in adapted)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    changed = model(**inputs).scores
    assert (changed - expected).abs().max() > 1e-4
    torch.testing.assert_close(model.merge_and_unload()(**inputs).scores, changed, atol=1e-5, rtol=0)
