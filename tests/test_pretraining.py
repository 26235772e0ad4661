"""Pre-training: what each patch is told, what learns, and that the result is a plain CLIP."""

import numpy as np
import pytest
import torch

from hivg_hf import HiVGConfig, HiVGForVisualGrounding, HiVGProcessor
from hivg_hf.data.refshapes import refshapes_dataset
from hivg_hf.data.refshapes_tokenizer import build_tokenizer
from hivg_hf.modeling.presets_hivg import CLIP_TINY
from hivg_hf.pretraining import CLASSES, NO_CLASS, PretrainingCollator, PretrainingModel, plain_clip


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


def test_patches_are_told_the_object_that_covers_them(processor):
    objects = [
        {"size": "small", "filling": "solid", "color": "red", "shape": "star"},
        {"size": "large", "filling": "striped", "color": "blue", "shape": "ring"},
    ]
    # 4 x 4 patches of 16 pixels: the star fills patch 0 and a sliver of patch 1, the ring the last quarter
    boxes = np.array([[0.0, 0.0, 17.0, 16.0], [32.0, 32.0, 64.0, 64.0]])
    classes, offsets, region = PretrainingCollator(processor)._targets(objects, boxes)
    assert np.flatnonzero(region).tolist() == [0]
    assert np.flatnonzero(classes[:, 0] != NO_CLASS).tolist() == [0, 10, 11, 14, 15]
    star = [CLASSES[name].index(value) for name, value in objects[0].items()]
    ring = [CLASSES[name].index(value) for name, value in objects[1].items()]
    assert classes[0].tolist() == star
    assert classes[15].tolist() == ring
    # offset of the box's centre from the patch's, width, height; all in patches
    np.testing.assert_allclose(offsets[0], [1 / 32, 0, 17 / 16, 1])
    np.testing.assert_allclose(offsets[15], [-0.5, -0.5, 2, 2])


def test_choices_depend_on_seed_epoch_and_row_alone(processor, rows):
    def phrases(seed, epoch, part=slice(None)):
        collated = PretrainingCollator(processor, seed=seed)([{**row, "epoch": epoch} for row in rows[part]])
        return [ids[mask.bool()].tolist() for ids, mask in zip(collated["phrase_ids"], collated["phrase_mask"])]

    assert phrases(0, 0) == phrases(0, 0)
    assert phrases(0, 0, slice(4, 8)) == phrases(0, 0)[4:]
    assert phrases(0, 0) != phrases(0, 1)
    assert phrases(0, 0) != phrases(1, 0)


def test_only_clip_without_bridges_learns(model, batch):
    trained = PretrainingModel(model)
    trained(**batch)["loss"].backward()
    learned = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    # the last layer's states are read as they are; no term reads more than that
    assert learned == {
        name for name, _ in model.named_parameters() if name.startswith("clip.") and ".bridge." not in name
    }


def test_the_loss_is_the_weighted_sum_of_its_terms(model, batch):
    trained = PretrainingModel(model, loss_weights={"image": 0.0})
    output = trained(**batch)
    assert set(output["loss_dict"]) == {
        "object",
        "size",
        "filling",
        "color",
        "shape",
        "box",
        "place",
        "region",
        "image",
    }
    total = sum(trained.loss_weights[name] * term.item() for name, term in output["loss_dict"].items())
    assert output["loss"].item() == pytest.approx(total, rel=1e-5)


def test_it_sees_what_plain_clip_sees(model, batch):
    clip = plain_clip(model)
    model.config.skip_padded_patches = True
    pixel_values = batch["pixel_values"][:2]
    patches, pooled, _ = PretrainingModel(model)._see(pixel_values, torch.ones_like(batch["pixel_mask"][:2]), None)
    expected = clip.vision_model(pixel_values)
    torch.testing.assert_close(pooled, expected.pooler_output)
    torch.testing.assert_close(patches, expected.last_hidden_state[:, 1:])


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
    for _ in range(12):
        output = trained(**batch)
        output["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(output["loss_dict"]["color"].item())
    assert losses[-1] < 0.7 * losses[0]


def test_a_batch_without_any_object_gives_no_nan(model, batch):
    batch["patch_classes"] = torch.full_like(batch["patch_classes"], NO_CLASS)
    batch["region"] = torch.zeros_like(batch["region"])
    output = PretrainingModel(model)(**batch)
    assert torch.isfinite(output["loss"])


def test_bad_input_is_refused_in_a_sentence(model, processor, rows):
    with pytest.raises(ValueError, match="load refshapes with objects=True"):
        PretrainingCollator(processor)([{**rows[0], "objects": []}])
    with pytest.raises(ValueError, match=r"unknown pre-training losses \['colour'\]; expected some of"):
        PretrainingModel(model, loss_weights={"colour": 1.0})
