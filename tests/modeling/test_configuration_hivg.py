"""The config checks itself, survives JSON, and names its presets."""

import json
import logging

import pytest
from transformers import AutoConfig, CLIPConfig

from hivg_hf import HiVGConfig, HiVGForVisualGrounding
from hivg_hf.modeling import configuration_hivg


def test_defaults_are_those_of_a_new_model():
    config = HiVGConfig()
    assert (config.bridge_mask_padding, config.bridge_text_norm, config.bridge_mixes_batch) == (True, True, False)
    assert (config.skip_padded_patches, config.pad_align, config.score) == (True, "patch", "head")
    assert config.bridge_layers == [6, 8, 10, 11]
    assert config.visual_feature_layers == [1, 4, 8, 12]
    assert config.bridge_text_layers == [12]
    assert config.loss_weights["score"] == 1


@pytest.mark.parametrize(
    ("depth", "bridges", "features"),
    [
        (1, [0], [1]),
        (2, [1], [1, 2]),
        (3, [1, 2], [1, 2, 3]),
        (6, [3, 4, 5], [1, 2, 4, 6]),
        (24, [12, 16, 20, 23], [1, 8, 16, 24]),
    ],
)
def test_default_layers_follow_the_depth_of_the_tower(depth, bridges, features):
    clip_config = {"vision_config": {"num_hidden_layers": depth}}
    config = HiVGConfig(clip_config=clip_config)
    assert (config.bridge_layers, config.visual_feature_layers) == (bridges, features)
    without = HiVGConfig(clip_config=clip_config, bridge_layers=[])
    assert (without.bridge_layers, without.visual_feature_layers) == ([], features)
    given = HiVGConfig(clip_config=clip_config, bridge_layers=[0])
    assert (given.bridge_layers, given.visual_feature_layers) == ([0], [1])


def test_saved_layers_outlive_a_change_of_their_default(tmp_path):
    """Also where they are the default: a later version may have another."""
    HiVGConfig().save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["bridge_layers"] == [6, 8, 10, 11]
    assert saved["visual_feature_layers"] == [1, 4, 8, 12]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"loss_weights": {"mask_dise": 0.0}}, r"Unknown terms in `loss_weights`: \['mask_dise'\]"),
        ({"token_target": "near"}, "`token_target` must be one of"),
        ({"score_threshold": 50}, "`score_threshold` must be a score, 0 to 1"),
        ({"bridge_layers": [99]}, "`bridge_layers` must be increasing layer numbers"),
        ({"score": "nonsense"}, "`score` must be one of"),
    ],
)
def test_fields_given_while_loading_are_checked_as_others_are(fields, message, tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    for kind in (AutoConfig, HiVGForVisualGrounding):
        with pytest.raises(Exception, match=message):
            kind.from_pretrained(tmp_path, **fields)


def test_saving_and_loading_keeps_every_field(tmp_path, tiny_config):
    tiny_config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is HiVGConfig
    assert loaded.to_diff_dict() == tiny_config.to_diff_dict()


def test_custom_pipelines_are_written_but_not_shown(tmp_path, tiny_config):
    tiny_config.save_pretrained(tmp_path)
    assert '"custom_pipelines"' in (tmp_path / "config.json").read_text()
    assert not hasattr(HiVGConfig.from_pretrained(tmp_path), "custom_pipelines")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bridge_layers": [12]}, "`bridge_layers` must be increasing layer numbers from 0 to 11. Got \\[12\\]"),
        ({"bridge_layers": [3, 0]}, "`bridge_layers` must be increasing"),
        ({"bridge_text_layers": [13]}, "`bridge_text_layers` must be increasing layer numbers from 0 to 12"),
        ({"visual_feature_layers": []}, "`visual_feature_layers` must name at least one layer"),
        ({"image_size": 225}, "`image_size` must be a multiple of CLIP's patch size. Got 225 and 32"),
        ({"fusion_heads": 7}, "multiple of `fusion_heads` \\(7\\)"),
        ({"fusion_dropout": 1.0}, "`fusion_dropout` must be in \\[0, 1\\)"),
        ({"score": "none"}, "`score` must be one of \\['head', 'similarity'\\]. Got 'none'"),
        ({"pad_align": "centre"}, "`pad_align` must be one of"),
        ({"loss_weights": {"l1": 1.0}}, "Unknown terms in `loss_weights`: \\['l1'\\]"),
        ({"loss_weights": {"bbox": -1.0}}, "finite number of at least 0. Got {'bbox': -1.0}"),
        ({"loss_weights": {"bbox": "1"}}, "finite number of at least 0. Got {'bbox': '1'}"),
        ({"loss_weights": {"bbox": 10**400}}, "finite number of at least 0. Got {'bbox': 10+}"),
        ({"score_temperature": float("nan")}, "`score_temperature` must be a finite number above 0. Got nan"),
        (
            {"score_temperature": 1e-300},
            "`score_temperature` must be a finite number above 0. Got 1e-300",
        ),  # 0 to torch
        ({"score_temperature": 10**400}, "`score_temperature` must be a finite number above 0. Got 10+"),
        ({"score_bias": float("-inf")}, "`score_bias` must be a finite number. Got -inf"),
        ({"score_bias": 1e300}, "`score_bias` must be a finite number. Got 1e\\+300"),
        ({"score_similarity_scale": float("nan")}, "`score_similarity_scale` must be a finite number. Got nan"),
        ({"score_similarity_bias": 10**400}, "`score_similarity_bias` must be a finite number. Got 10+"),
        ({"score_threshold": float("nan")}, "`score_threshold` must be a score, 0 to 1, or None. Got nan"),
        ({"adaptive_weight_init": float("inf")}, "`adaptive_weight_init` must be a finite number. Got inf"),
        ({"score": "similarity", "loss_weights": {"score": 1.0}}, 'which needs `score="head"`'),
        (
            {"text_pad_id": 10**9, "bridge_mask_padding": False},
            "`text_pad_id` must be a token id, 0 to .* Got 1000000000",
        ),
        ({"text_pad_id": -5, "bridge_mask_padding": False}, "`text_pad_id` must be a token id, 0 to .* Got -5"),
        ({"format_version": 99}, "saved in format 99.*Install a newer hivg_hf"),
    ],
)
def test_wrong_fields_are_refused_by_name(fields, message):
    with pytest.raises(Exception, match=message):
        HiVGConfig(**fields)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("bridge_mixes_bach", r"Did you mean `bridge_mixes_batch`\?"),
        ("fusion_layer", r"Did you mean `fusion_layers`\?"),
        ("imagesize", r"Did you mean `image_size`\?"),
        ("archtectures", r"Did you mean `architectures`\?"),
        ("zzz", r"Its fields are listed in the docstring"),
    ],
)
def test_unknown_fields_are_refused_with_the_nearest_known_one(name, hint, tmp_path, tiny_config):
    message = rf"Unknown field `{name}` of HiVGConfig. {hint}"
    content = HiVGConfig.preset("base-unc").clip_config
    tiny_config.save_pretrained(tmp_path)
    official = {"model": "ViT-B/16", "dataset": "unc", "enable_adaptive_weights": True}
    for make in (
        lambda: HiVGConfig(**{name: True}),
        lambda: HiVGConfig.preset("tiny", **{name: True}),
        lambda: HiVGConfig.preset("base-unc", **{name: True}),
        lambda: HiVGConfig.from_official_args(official, content, **{name: True}),
        lambda: HiVGConfig.from_dict({**tiny_config.to_dict(), name: True}),
        lambda: HiVGConfig.from_pretrained(tmp_path, **{name: True}),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    if name != "zzz":  # what resembles no field may be meant for the model
        with pytest.raises(ValueError, match=message):
            HiVGConfig.from_dict(tiny_config.to_dict(), **{name: True})


def test_what_transformers_writes_into_a_config_is_accepted(tmp_path, tiny_config):
    tiny_config.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    written = {
        "_name_or_path": "somebody/model", "_commit_hash": "0", "transformers_version": "4.57.0",
        "torch_dtype": "float32", "architectures": ["HiVGForVisualGrounding"],
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
        "use_cache": True, "tie_word_embeddings": False, "transformers.js_config": {}, "problem_type": None,
    }  # fmt: skip
    path.write_text(json.dumps({**json.loads(path.read_text()), **written}))
    assert AutoConfig.from_pretrained(path).fusion_layers == tiny_config.fusion_layers
    config, unused = HiVGConfig.from_pretrained(
        tmp_path, return_unused_kwargs=True, fusion_dropout=0.3, device_map="cpu"
    )
    assert config.fusion_dropout == 0.3
    assert unused == {"device_map": "cpu"}


def test_what_pipelines_and_auto_classes_hand_over_for_the_model_is_no_field(tmp_path, tiny_config):
    tiny_config.save_pretrained(tmp_path)
    options = {"low_cpu_mem_usage": True, "device_map": "cpu", "max_memory": None}
    AutoConfig.from_pretrained(tmp_path, _from_pipeline="visual-grounding", **options)
    with pytest.raises(ValueError, match=r"Unknown field `\w+` of HiVGConfig. Its fields are listed"):
        HiVGConfig.from_pretrained(tmp_path, **options)
    with pytest.raises(ValueError, match=r"Unknown field `fusion_dropuot` .* Did you mean `fusion_dropout`"):
        AutoConfig.from_pretrained(tmp_path, _from_pipeline="visual-grounding", fusion_dropuot=0.3)


def test_a_file_of_a_newer_format_loses_what_it_added_with_one_warning(tmp_path, tiny_config, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)  # transformers logs through its own root
    monkeypatch.setattr(configuration_hivg.logger, "propagate", True)
    tiny_config.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "format_version": 2, "bridge_gate": True, "zoom": 3}))
    with caplog.at_level("WARNING"):
        config = HiVGConfig.from_pretrained(tmp_path)
    assert [record.getMessage() for record in caplog.records if "format" in record.getMessage()] == [
        "This model was saved in format 2, newer than format 1 of this version of hivg_hf, which leaves out "
        "['bridge_gate', 'zoom']. Install a newer hivg_hf."
    ]
    assert config.to_dict() == tiny_config.to_dict()
    path.write_text(json.dumps({**content, "format_version": 1, "bridge_gate": True}))
    with pytest.raises(ValueError, match=r"Unknown field `bridge_gate`"):
        HiVGConfig.from_pretrained(tmp_path)


def test_a_clip_config_is_refused_with_the_way_to_use_it(tmp_path):
    CLIPConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"plain CLIP.*from_clip"):
        HiVGConfig.from_pretrained(tmp_path)


def test_an_unknown_preset_lists_the_known_ones():
    with pytest.raises(ValueError, match="base-unc"):
        HiVGConfig.preset("huge")


@pytest.mark.parametrize("name", ["tiny", "base", "large", "large-336"])
def test_presets_of_new_models_are_correct_by_default(name):
    config = HiVGConfig.preset(name)
    assert config.bridge_mask_padding
    assert config.bridge_text_norm
    assert config.skip_padded_patches
    assert not config.bridge_mixes_batch


@pytest.mark.parametrize("name", ["base-unc", "base-mixup", "large-gref_umd"])
def test_official_presets_do_what_official_weights_need(name):
    config = HiVGConfig.preset(name)
    assert not config.bridge_mask_padding
    assert not config.bridge_text_norm
    assert not config.skip_padded_patches
    assert (config.pad_align, config.image_normalization) == ("pixel", "imagenet")
    assert (config.score, config.token_target) == ("similarity", "nearest")
    assert "score" not in config.loss_weights


def test_preset_fields_can_be_overridden():
    assert HiVGConfig.preset("base", fusion_layers=2).fusion_layers == 2


def test_the_text_config_is_clips_own():
    config = HiVGConfig()
    assert config.get_text_config() is config.clip_config.text_config


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 100_000])
def test_a_file_that_never_ends_is_refused_in_a_sentence(content, tmp_path):
    (tmp_path / "config.json").write_text(content)
    for opener in (HiVGConfig.from_pretrained, HiVGForVisualGrounding.from_pretrained):
        with pytest.raises(ValueError, match=r"config\.json is nested too deeply; save or download it again"):
            opener(tmp_path)
