"""Pre-training: what each patch is told, what learns, and that the result is a plain CLIP."""

import copy

import numpy as np
import pytest
import torch
import yaml

from hivg_hf import HiVGConfig, HiVGForVisualGrounding, HiVGProcessor
from hivg_hf.data.refshapes import build_tokenizer, refshapes_dataset
from hivg_hf.modeling.presets_hivg import CLIP_TINY
from hivg_hf.recipes import find_recipe
from hivg_hf.training import StagedTraining, parse_recipe
from hivg_hf.training.assisted_grounding import LOSS_WEIGHTS as ASSISTING_WEIGHTS
from hivg_hf.training.assisted_grounding import AssistedCollator, AssistedGrounding, guided_attention
from hivg_hf.training.pretraining import FUSION_INPUTS, LOSS_WEIGHTS, PretrainingModel, plain_clip
from hivg_hf.training.pretraining_rows import CLASSES, NO_CLASS, PretrainingCollator, patch_targets


def small(tower, **changes):
    narrow = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "projection_dim": 16}
    return {**CLIP_TINY[tower], **narrow, "num_hidden_layers": 2, **changes}


@pytest.fixture(scope="module")
def config():
    return HiVGConfig(
        clip_config={
            "projection_dim": 16,
            "text_config": small("text_config"),
            "vision_config": small("vision_config", image_size=64, patch_size=16),
        },
        bridge_layers=[1],
        fusion_layers=1,
        fusion_heads=2,
        fusion_ffn_dim=16,
        fusion_dropout=0.0,
        token_head_dim=16,
    )


@pytest.fixture
def model(config):
    torch.manual_seed(0)
    return HiVGForVisualGrounding(config)


@pytest.fixture(scope="module")
def processor(config):
    return HiVGProcessor.for_config(config, build_tokenizer())


@pytest.fixture(scope="module")
def rows():
    dataset = refshapes_dataset("train", seed=5, size=8, expressions_per_scene=1, objects=True, stored_side=64)
    return [{**row, "epoch": 0, "row_index": index} for index, row in enumerate(dataset)]


@pytest.fixture
def batch(processor, rows):
    return PretrainingCollator(processor)(rows)


def row_of(objects, boxes):
    """A row of 64 x 64 pixels that names nothing."""
    objects = [{**item, "box": box} for item, box in zip(objects, boxes, strict=True)]
    return {"width": 64, "height": 64, "box": None, "objects": objects}


def test_patches_are_told_the_object_that_covers_them(processor):
    objects = [
        {"size": "small", "filling": "solid", "color": "red", "shape": "star"},
        {"size": "large", "filling": "striped", "color": "blue", "shape": "ring"},
    ]
    # 4 x 4 patches of 16 pixels: the star fills patch 0 and a sliver of patch 1, the ring the last quarter
    boxes = [[0.0, 0.0, 17.0, 16.0], [32.0, 32.0, 64.0, 64.0]]
    row = row_of(objects, boxes)
    classes, offsets, region, target = patch_targets({**row, "box": boxes[1]}, processor.image_processor)
    assert np.flatnonzero(region).tolist() == [0]
    assert np.flatnonzero(target).tolist() == [10, 11, 14, 15]
    assert not patch_targets(row, processor.image_processor)[3].any()
    assert np.flatnonzero(classes[:, 0] != NO_CLASS).tolist() == [0, 10, 11, 14, 15]
    star = [CLASSES[name].index(value) for name, value in objects[0].items()]
    ring = [CLASSES[name].index(value) for name, value in objects[1].items()]
    assert classes[0].tolist() == star
    assert classes[15].tolist() == ring
    # offset of the box's center from the patch's, width, height; all in patches
    np.testing.assert_allclose(offsets[0], [1 / 32, 0, 17 / 16, 1])
    np.testing.assert_allclose(offsets[15], [-0.5, -0.5, 2, 2])


def test_a_small_object_over_a_corner_still_has_a_patch(processor):
    objects = [{"size": "small", "filling": "solid", "color": "red", "shape": "star"}]
    row = row_of(objects, [[27.0, 27.0, 36.0, 36.0]])  # 9 x 9 pixels around the corner of four patches of 16
    classes, _, region, _ = patch_targets(row, processor.image_processor)
    assert np.flatnonzero(region).tolist() == [5]
    assert np.flatnonzero(classes[:, 0] != NO_CLASS).tolist() == [5]


def test_choices_depend_on_seed_epoch_and_row_alone(processor, rows):
    def phrases(seed, epoch, part=slice(None)):
        collated = PretrainingCollator(processor, seed=seed)([{**row, "epoch": epoch} for row in rows[part]])
        return [ids[mask.bool()].tolist() for ids, mask in zip(collated["phrase_ids"], collated["phrase_mask"])]

    assert phrases(0, 0) == phrases(0, 0)
    assert phrases(0, 0, slice(4, 8)) == phrases(0, 0)[4:]
    assert phrases(0, 0) != phrases(0, 1)
    assert phrases(0, 0) != phrases(1, 0)


def test_clip_and_the_inputs_of_the_fusion_encoder_learn(model, batch):
    PretrainingModel(model)(**batch)["loss"].backward()
    learned = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    clip = {name for name in model.state_dict() if name.startswith("clip.") and ".bridge." not in name}
    assert learned == clip | {name for name in model.state_dict() if name.startswith(FUSION_INPUTS)}
    assert any("text_proj" in name for name in learned - clip)


def test_bridges_begin_as_identities(model, batch):
    inputs = {
        name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values", "pixel_mask", "patch_index")
    }
    bridge = model.clip.vision_model.encoder.layers[1].bridge
    before = model.eval()(**inputs).logits_per_text
    PretrainingModel(model)
    assert not bridge.mlp.fc2.weight.any()
    after = model.eval()(**inputs).logits_per_text
    assert not torch.equal(before, after)
    bridge.attention.v_proj.weight.data.mul_(100)
    torch.testing.assert_close(model(**inputs).logits_per_text, after)


def test_the_row_s_own_object_is_the_one_to_match(batch, rows):
    for row, target, classes in zip(rows, batch["target"], batch["patch_classes"]):
        named = next(item for item in row["objects"] if item["box"] == row["box"])
        numbers = [CLASSES[name].index(named[name]) for name in ("size", "filling", "color", "shape")]
        assert (classes[target] == torch.tensor(numbers)).all()
    # an object may own no patch where another covers more of each of its patches
    assert batch["target"].any(-1).sum() >= len(rows) - 1


def test_match_is_the_share_of_the_targets_patches(model):
    visual = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]], [[1.0, 0.0]] * 4])
    expressions = torch.tensor([[3.0, 0.0], [1.0, 0.0]])
    target = torch.tensor([[True, False, False, False], [False] * 4])
    there = torch.tensor([[True, True, True, False], [True] * 4])  # the twin of the target is padding
    scale = model.clip.logit_scale.exp().item()
    loss = PretrainingModel(model)._match_term(visual, expressions, target, there)
    assert loss.item() == pytest.approx(np.log(np.exp(scale) + 2) - scale, abs=1e-5)


def test_the_loss_is_the_weighted_sum_of_its_terms(model, batch):
    trained = PretrainingModel(model, loss_weights={"image": 0.0})
    output = trained(**batch)
    assert set(output["loss_dict"]) == set(LOSS_WEIGHTS)
    total = sum(trained.loss_weights[name] * term.item() for name, term in output["loss_dict"].items())
    assert output["loss"].item() == pytest.approx(total, rel=1e-5)


def test_it_sees_what_plain_clip_sees(model, batch):
    clip = plain_clip(model)
    model.config.skip_padded_patches = True
    pixel_values = batch["pixel_values"][:2]
    states, pooled, _ = PretrainingModel(model)._see(pixel_values, torch.ones_like(batch["pixel_mask"][:2]), None)
    expected = clip.vision_model(pixel_values)
    torch.testing.assert_close(pooled, expected.pooler_output)
    torch.testing.assert_close(states[-1], expected.last_hidden_state[:, 1:])


def test_skipped_patches_change_nothing(model, batch):
    trained = PretrainingModel(model).eval()
    with_index = trained(**batch)["loss_dict"]
    without = trained(**{name: value for name, value in batch.items() if name != "patch_index"})["loss_dict"]
    assert (batch["patch_index"] == -1).any()
    for name, term in with_index.items():
        torch.testing.assert_close(term, without[name], rtol=1e-4, atol=1e-5)


def test_it_learns(model, batch):
    trained = PretrainingModel(model)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        output = trained(**batch)
        output["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(output["loss_dict"]["color"].item())
    assert losses[-1] < 0.7 * losses[0]


def test_a_batch_without_any_object_gives_no_nan(model, batch):
    batch["patch_classes"] = torch.full_like(batch["patch_classes"], NO_CLASS)
    batch["region"], batch["target"] = torch.zeros_like(batch["region"]), torch.zeros_like(batch["target"])
    trained = PretrainingModel(model)
    output = trained(**batch)
    output["loss"].backward()
    assert torch.isfinite(output["loss"])
    assert all(torch.isfinite(p.grad).all() for p in trained.parameters() if p.grad is not None)


def test_bad_input_is_refused_in_a_sentence(model, processor, rows):
    with pytest.raises(ValueError, match="load refshapes with objects=True"):
        PretrainingCollator(processor)([{**rows[0], "objects": []}])
    with pytest.raises(ValueError, match=r"unknown pre-training losses \['colour'\]; expected some of"):
        PretrainingModel(model, loss_weights={"colour": 1.0})


# -- assisted grounding --------------------------------------------------------------------------------------------


@pytest.fixture
def deep(config):
    torch.manual_seed(0)
    return HiVGForVisualGrounding(HiVGConfig(**{**config.to_dict(), "fusion_layers": 3}))


@pytest.fixture
def grounding_batch(processor, rows):
    return AssistedCollator(processor)(rows)


def test_help_adds_to_the_model_s_own_loss(deep, grounding_batch):
    assisted = AssistedGrounding(deep, loss_weights={"attributes": 3.0})
    own = deep(**{name: value for name, value in grounding_batch.items() if name not in ("patch_classes", "context")})
    output = assisted(**grounding_batch)
    terms = output["loss_dict"]
    added = sum(weight * terms[name] for name, weight in {**ASSISTING_WEIGHTS, "attributes": 3.0}.items())
    torch.testing.assert_close(output["loss"], own.loss + added)
    assert set(own.loss_dict) < set(terms)


def test_what_patches_show_is_told_where_rows_tell_it(processor, rows, deep):
    told = AssistedCollator(processor)(rows)["patch_classes"]
    torch.testing.assert_close(told, PretrainingCollator(processor)(rows)["patch_classes"])
    untold = AssistedCollator(processor)([{**row, "objects": None} for row in rows])
    assert "patch_classes" not in untold
    assert "attributes" not in AssistedGrounding(deep)(**untold)["loss_dict"]


def test_without_labels_it_is_the_model(deep, grounding_batch):
    taught = ("labels", "mask_labels", "patch_classes", "context")
    inputs = {name: value for name, value in grounding_batch.items() if name not in taught}
    torch.testing.assert_close(AssistedGrounding(deep)(**inputs).pred_boxes, deep(**inputs).pred_boxes)


def test_the_guided_attention_is_the_layer_s_own(deep, grounding_batch):
    """With one target token in every row it is minus the mean log of the weight that eager attention shows."""
    deep.set_attn_implementation("eager")
    del grounding_batch["patch_classes"], grounding_batch["context"]
    _, inputs = AssistedGrounding(deep)._run(grounding_batch)
    weights = deep.eval()(**grounding_batch, output_attentions=True).attentions[1]  # (B, heads, L, L)
    layer = deep.grounding_head.fusion.layers[1]
    target = torch.zeros(weights.shape[0], weights.shape[-1], dtype=torch.bool)
    target[:, 3] = True
    query = torch.full((len(target),), 5)
    loss = guided_attention(layer, inputs[layer], query, target, torch.ones(len(target), dtype=torch.bool))
    torch.testing.assert_close(loss, -weights[:, :1, 5, 3].log().mean())
    loss = guided_attention(layer, inputs[layer], query, target, torch.ones(len(target), dtype=torch.bool), part=1)
    torch.testing.assert_close(loss, -weights[:, 1, 5, 3].log().mean())


def test_towers_can_be_frozen(deep, grounding_batch):
    assisted = AssistedGrounding(deep, towers=False)
    assisted(**grounding_batch)["loss"].backward()
    learned = {name for name, parameter in deep.named_parameters() if parameter.grad is not None}
    assert not any(name.startswith("clip.") and ".bridge." not in name for name in learned)
    assert any(".bridge." in name for name in learned)
    assert any(name.startswith("grounding_head.box_head") for name in learned)


def test_help_leaves_rows_without_target_out(deep, processor, rows):
    nothing = [{**row, "box": None, "boxes": [], "no_target": True, "mask": None} for row in rows]
    assisted = AssistedGrounding(deep)
    terms = assisted(**AssistedCollator(processor)(nothing))["loss_dict"]
    assert [terms[name].item() for name in ("end_to_target", "reg_to_end", "patch_bbox", "patch_giou")] == [0] * 4


def test_each_query_is_shown_where_its_own_target_is(deep, processor, rows):
    """Of a copy of each query's target nothing changes; of two targets, each query gets its own patches and box."""

    def terms(model, **options):
        torch.manual_seed(0)  # the heads that are thrown away start at random
        return AssistedGrounding(model).eval()(**AssistedCollator(processor, **options)(rows))["loss_dict"]

    one = terms(copy.deepcopy(deep))
    deep.add_queries(3)
    with torch.no_grad():
        deep.grounding_head.reg_token.weight.copy_(deep.grounding_head.reg_token.weight[:1].expand(3, -1))
    many = terms(deep, several_targets=True)
    for name in ASSISTING_WEIGHTS:  # rows of one target: they are the first query's
        torch.testing.assert_close(many[name], one[name], rtol=1e-3, atol=1e-4)

    width, height = rows[0]["width"], rows[0]["height"]
    both = [[1.0, 1.0, width / 3, height / 3], [width / 2, height / 2, width - 1.0, height - 1.0]]
    plural = [{**row, "box": None, "boxes": both, "mask": None} for row in rows[:1]]
    output = AssistedGrounding(deep)(**AssistedCollator(processor, several_targets=True)(plural))
    assert all(output["loss_dict"][name] > 0 for name in ("reg_to_target", "reg_to_end", "patch_bbox"))
    output["loss"].backward()
    assert deep.grounding_head.reg_token.weight.grad.abs().sum(1).min() > 0


@pytest.mark.parametrize("queries", [1, 3])
def test_help_in_bfloat16_is_near_that_of_float32(deep, processor, rows, queries):
    if queries > 1:
        deep.add_queries(queries)
    helped, batch = AssistedGrounding(deep).eval(), AssistedCollator(processor, several_targets=queries > 1)(rows)
    whole = helped(**batch)
    with torch.autocast("cpu", torch.bfloat16):
        half = helped(**batch)
    half["loss"].backward()
    for name, term in half["loss_dict"].items():
        assert term.dtype == torch.float32, name
        torch.testing.assert_close(term, whole["loss_dict"][name], rtol=0.05, atol=0.05)


def test_context_is_where_the_anchor_of_a_relation_stands(processor):
    (row,) = refshapes_dataset("testB", seed=3, size=1, objects=True)
    context = AssistedCollator(processor)([row])["context"][0]
    height, width, top, left = processor.image_processor.geometry(row["height"], row["width"])
    ((x0, y0, x1, y1),) = row["context_boxes"]
    patch, side = processor.image_processor.patch_size, processor.image_processor.size["height"]
    x, y = (x0 + x1) / 2 * width / row["width"] + left, (y0 + y1) / 2 * height / row["height"] + top
    assert context[int(y // patch) * (side // patch) + int(x // patch)]
    assert 0 < context.sum() < context.numel() / 2


def test_context_is_learned_where_rows_tell_it(processor, deep):
    rows = list(refshapes_dataset("testB", seed=3, size=4, objects=True))
    batch = AssistedCollator(processor)(rows)
    assisted = AssistedGrounding(deep)
    terms = assisted(**batch)["loss_dict"]
    (terms["context_focal"] + terms["end_to_context"]).backward()
    assert assisted.mark_context.weight.grad.abs().sum() > 0
    assert deep.grounding_head.fusion.layers[0].self_attn.in_proj_weight.grad.abs().sum() > 0
    unknown = AssistedCollator(processor)([{**row, "context_boxes": None} for row in rows])
    assert not {"context_focal", "context_dice", "end_to_context"} & set(assisted(**unknown)["loss_dict"])


def test_the_end_token_learns_whether_anything_is_named(processor, deep):
    rows = list(refshapes_dataset("testB", seed=3, size=2, objects=True))
    rows += list(refshapes_dataset("none", seed=3, size=2, objects=True))
    assisted, batch = AssistedGrounding(deep).eval(), AssistedCollator(processor)(rows)
    with torch.no_grad():
        assisted.named.weight.zero_()
        assisted.named.bias.fill_(2.0)
    told = torch.nn.functional.binary_cross_entropy_with_logits(torch.full((4,), 2.0), torch.tensor([1.0, 1, 0, 0]))
    torch.testing.assert_close(assisted(**batch)["loss_dict"]["named"], told)
    with torch.no_grad():
        assisted.named.weight.normal_()
    assisted(**batch)["loss_dict"]["named"].backward()
    assert deep.grounding_head.fusion.layers[0].self_attn.in_proj_weight.grad.abs().sum() > 0


def test_rows_without_context_guide_no_head(processor, deep):
    rows = list(refshapes_dataset("testA", seed=3, size=4, objects=True))
    assert all(row["context_boxes"] == [] for row in rows)
    terms = AssistedGrounding(deep)(**AssistedCollator(processor)(rows))["loss_dict"]
    assert terms["end_to_context"] == 0
    assert torch.isfinite(terms["context_dice"])


def test_an_unknown_assisting_loss_is_refused(deep):
    with pytest.raises(ValueError, match=r"unknown assisting losses \['place'\]; expected some of"):
        AssistedGrounding(deep, loss_weights={"place": 1.0})


def test_a_shallow_fusion_encoder_cannot_be_guided(model):
    with pytest.raises(ValueError, match="guides three layers; this fusion encoder has fewer"):
        AssistedGrounding(model)


@pytest.mark.slow
def test_every_phase_of_the_tiny_recipe_runs(tmp_path):
    content = yaml.safe_load(find_recipe("hivg-tiny-refshapes").read_text())
    small = {"size": 32, "workers": 1, "cache_dir": str(tmp_path / "cache")}
    content["data"] = {"train": {**content["data"]["train"], **small}, "validation": {**content["data"]["validation"]}}
    content["data"]["validation"]["size"] = 8
    content["defaults"] = {**content["defaults"], "batch_size": 8, "warmup": 0, "save_every": 2}
    content["workers"] = 0
    for phase in content["phases"]:
        phase["steps"] = 2
        phase.pop("evaluate_every", None)
        if "data" in phase:
            phase["data"] = {**phase["data"], **small}
    results = StagedTraining(parse_recipe({"name": "smoke", **content}), tmp_path / "run").run()
    model = HiVGForVisualGrounding.from_pretrained(tmp_path / "run" / results["model"])
    assert model.config.image_size == 112
    assert [phase["name"] for phase in results["phases"]] == [phase["name"] for phase in content["phases"]]
