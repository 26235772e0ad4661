"""Official files of every kind, wrapping and fault; what they compute is tested in tests/parity."""

import argparse
import collections
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from parity.official_cases import OfficialCase, clip_shapes, made_case, recorded_case
from parity.parity_checks import assert_outputs_match, run_ours
from peft import PeftModel
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from benchmarks.speed.official_reference import OfficialLayers
from hivg_hf import HiVGConfig, HiVGForVisualGrounding, load_official_checkpoint
from hivg_hf.conversion import (
    OfficialFile,
    convert_official_checkpoint,
    load_official_clip,
    official_clip,
    official_processor,
    published_clip_config,
)
from hivg_hf.conversion.files import CLIP_ALONE, read_official_file
from hivg_hf.modeling.presets_hivg import PUBLISHED_CLIPS

LAYERS = OfficialLayers([0, 3, 7, 11], [1, 4, 8, 12], [6, 12])
Change = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def case() -> OfficialCase:
    return made_case(LAYERS, dataset="unc+", hi_lora_stage=1)


def config_of(case: OfficialCase, **overrides: Any) -> HiVGConfig:
    return HiVGConfig.from_official_args(case.args, case.clip_config, **overrides)


def save_pth(case: OfficialCase, path: Path, **entries: Any) -> Path:
    """As hivg_train.py saves: weights, arguments and the state of the optimizer."""
    optimizer = {"state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-4}]}
    content = {"model": collections.OrderedDict(case.state), "optimizer": optimizer, "epoch": 3, "val_accu": 0.5}
    torch.save({**content, "args": argparse.Namespace(**case.args, lr=1e-4, output_dir="x"), **entries}, path)
    return path


def save_state(state: dict[str, torch.Tensor], path: Path) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return path


def clip_part(case: OfficialCase, keep: Callable[[str], bool] = lambda name: True) -> dict[str, torch.Tensor]:
    """What the official code saves of CLIP alone: its names without the leading `clip.`."""
    return {
        name.removeprefix("clip."): tensor
        for name, tensor in case.state.items()
        if name.startswith("clip.") and keep(name)
    }


# -- kinds and wrappings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zip_format", [True, False])
@torch.no_grad()
def test_a_pth_file_says_itself_what_it_is(case: OfficialCase, tmp_path: Path, zip_format: bool) -> None:
    path = tmp_path / "best_checkpoint.pth"
    content = {"model": case.state, "args": argparse.Namespace(**case.args)}
    torch.save(content, path, _use_new_zipfile_serialization=zip_format)
    model = load_official_checkpoint(path, clip_config=case.clip_config)
    assert model.config.bridge_text_layers == [6, 12]
    assert not model.training
    assert_outputs_match(run_ours(model, case), case.run(mixes_batch=False))


@torch.no_grad()
def test_pth_and_safetensors_give_the_same_weights(case: OfficialCase, tmp_path: Path) -> None:
    from_pth = load_official_checkpoint(save_pth(case, tmp_path / "a.pth"), config_of(case))
    from_safetensors = load_official_checkpoint(save_state(case.state, tmp_path / "a.safetensors"), config_of(case))
    for name, tensor in from_safetensors.state_dict().items():
        assert torch.equal(from_pth.state_dict()[name], tensor), name


def to_base_layer(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names as PEFT 0.4 and later write them."""
    wrapped = {name.partition(".lora_A.")[0] for name in state if ".lora_A." in name}
    return {
        f"{name.rpartition('.')[0]}.base_layer.{name.rpartition('.')[2]}"
        if name.rpartition(".")[0] in wrapped
        else name: t
        for name, t in state.items()
    }


@pytest.mark.parametrize(
    "change",
    [
        to_base_layer,
        lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
        lambda state: {name.replace("base_model.model.", ""): tensor for name, tensor in state.items()},
        lambda state: {name.replace("base_model.model.", "base_model.model." * 3): t for name, t in state.items()},
        lambda state: {n: t for n, t in state.items() if not n.endswith("position_ids")},
    ],
    ids=["base_layer", "DataParallel", "not nested", "nested deeper", "without counters"],
)
@torch.no_grad()
def test_wrapped_names(case: OfficialCase, tmp_path: Path, change: Change) -> None:
    changed = change(case.state)
    assert changed.keys() != case.state.keys()
    model = load_official_checkpoint(save_state(changed, tmp_path / "a.safetensors"), config_of(case))
    assert_outputs_match(run_ours(model, case), case.run(mixes_batch=False))


def test_every_parameter_is_accounted_for(case: OfficialCase, tmp_path: Path) -> None:
    report = convert_official_checkpoint(save_state(case.state, tmp_path / "a.safetensors"), config_of(case)).report
    factors = [name for name in case.state if ".lora_" in name]
    assert len(report.mapped) + len(report.dropped) + len(factors) == len(case.state)
    assert 2 * len(report.merged) == len(factors)
    assert len(set(report.mapped.values())) == len(report.mapped)
    assert report.created == []
    assert "reg_pos_embed.weight" in report.dropped
    assert f"{len(report.mapped)} mapped" in str(report)


@torch.no_grad()
def test_lora_scale(case: OfficialCase, tmp_path: Path) -> None:
    """16 / r with r from the shapes; another alpha on request."""
    path = save_state(case.state, tmp_path / "a.safetensors")
    name = "text_model.encoder.layers.0.self_attn.q_proj"
    official = {n.replace("base_model.model.", ""): tensor for n, tensor in case.state.items()}
    weight, down, up = (official[f"clip.{name}.{p}weight"] for p in ("", "lora_A.default.", "lora_B.default."))
    for alpha, options in ((16, {}), (64, {"lora_alpha": 64})):
        model = load_official_checkpoint(path, config_of(case), **options)
        torch.testing.assert_close(model.clip.get_submodule(name).weight, weight + alpha / 32 * up @ down)


@torch.no_grad()
def test_the_towers_lora_can_stay_an_adapter(case: OfficialCase, tmp_path: Path) -> None:
    conversion = convert_official_checkpoint(
        save_state(case.state, tmp_path / "a.safetensors"), config_of(case), lora="adapter"
    )
    model, report = conversion.model, conversion.report
    assert isinstance(model, PeftModel)
    assert list(model.peft_config) == ["hilora"]
    assert_outputs_match(run_ours(model.get_base_model(), case), case.run(mixes_batch=False))
    assert {name.split(".")[1] for name in report.adapter} == {"text_model", "vision_model"}
    assert len(report.adapter) == 2 * 12 * 4
    assert len(report.merged) == 4 * 4
    assert all(".bridge.attention." in name for name in report.merged)
    assert "bridges' low-rank terms are merged" in str(report)
    merged = model.merge_and_unload()
    assert_outputs_match(run_ours(merged, case), case.run(mixes_batch=False))


@torch.no_grad()
def test_clip_with_bridges_gets_fresh_heads_and_says_so(
    case: OfficialCase, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "clip_lora_stage_with_bridge.pth"
    torch.save({"model": clip_part(case)}, path)
    model = load_official_checkpoint(path, config_of(case))
    whole = load_official_checkpoint(save_state(case.state, tmp_path / "a.safetensors"), config_of(case))
    for name, tensor in whole.clip.state_dict().items():
        assert torch.equal(model.clip.state_dict()[name], tensor), name
    assert "no weights for grounding_head" in caplog.text
    # Official: models/HiVG.py:751-754, four copies of CLIP's projection.
    projection = model.clip.visual_projection.weight
    assert torch.equal(model.grounding_head.visual_levels_proj.weight, torch.cat([projection] * 4, dim=1))


@torch.no_grad()
def test_a_debiased_clip_starts_a_new_model_and_is_a_plain_clip(case: OfficialCase, tmp_path: Path) -> None:
    path = tmp_path / "clip_b_ml_cascade_maskrcnn_model_224.pth"
    torch.save({"model": clip_part(case, keep=lambda name: ".cross_" not in name)}, path)
    plain, report = official_clip(path, case.clip_config)
    assert isinstance(plain, CLIPModel)
    assert len(report.merged) == 2 * 12 * 4

    started = load_official_clip(path, clip_config=case.clip_config, bridge_layers=[1, 5])
    plain.save_pretrained(tmp_path / "clip")
    from_folder = HiVGForVisualGrounding.from_clip(tmp_path / "clip", bridge_layers=[1, 5])
    for name, tensor in plain.state_dict().items():
        assert torch.equal(started.clip.state_dict()[name], tensor), name
        assert torch.equal(from_folder.clip.state_dict()[name], tensor), name
    assert started.config.bridge_mask_padding  # a new model, with the defaults of new models
    official = load_official_checkpoint(path, config_of(case))  # and an official variant, to train as the authors do
    assert torch.equal(official.clip.text_projection.weight, plain.text_projection.weight)


def test_a_clip_with_bridges_is_no_clip_to_start_from(case: OfficialCase, tmp_path: Path) -> None:
    path = save_state(clip_part(case), tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="holds CLIP with bridges, not a CLIP to start from"):
        load_official_clip(path, clip_config=case.clip_config)


@torch.no_grad()
def test_what_only_our_models_have_can_be_added(case: OfficialCase, tmp_path: Path) -> None:
    path = save_state(case.state, tmp_path / "a.safetensors")
    config = config_of(case, score="head", bridge_text_norm=True)
    report = convert_official_checkpoint(path, config).report
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in report.created} == {"score_head", "0", "1"}
    assert "the bridges' text norms, grounding_head.score_head" in str(report)


def test_a_processor_for_the_official_weights(case: OfficialCase, tmp_path: Path, tiny_tokenizer: Any) -> None:
    path = save_pth(case, tmp_path / "a.pth")
    _, processor = load_official_checkpoint(
        path, clip_config=case.clip_config, return_processor=True, tokenizer=tiny_tokenizer
    )
    assert processor.image_processor.size == {"height": 64, "width": 64}
    assert processor.image_processor.pad_align == "pixel"
    assert processor.image_processor.image_mean == pytest.approx((0.485, 0.456, 0.406))  # ImageNet's
    assert not processor.image_processor.skip_padded_patches
    with pytest.raises(OSError, match="No CLIP tokenizer found"):
        official_processor(config_of(case), tmp_path / "nothing")


def test_the_tokenizer_without_words_that_an_unreachable_hub_gives_is_refused(monkeypatch):
    """transformers makes one of its special tokens alone, and says nothing."""
    empty = CLIPTokenizer()
    monkeypatch.setattr(CLIPTokenizer, "from_pretrained", lambda place: empty)
    with pytest.raises(OSError, match=r"No words found in the CLIP tokenizer at openai/clip-vit-base-patch16, .* Hub"):
        official_processor(HiVGConfig.preset("base-unc"))


# -- faults: one clear error each -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bridge_mixes_bach", "bridge_mix_batch"])
def test_a_misspelt_field_is_refused_with_the_nearest_known_one(case: OfficialCase, tmp_path: Path, name: str) -> None:
    path = save_pth(case, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=rf"Unknown field `{name}` of HiVGConfig. Did you mean `bridge_mixes_batch`"):
        load_official_checkpoint(path, clip_config=case.clip_config, **{name: True})


def test_more_queries_than_a_file_holds_are_refused_with_what_to_do(case: OfficialCase, tmp_path: Path) -> None:
    path = save_pth(case, tmp_path / "a.pth")
    with pytest.raises(
        ValueError, match=r"one \[REG\] token, and num_queries=4 was asked for: .* `model.add_queries`"
    ):
        load_official_checkpoint(path, clip_config=case.clip_config, num_queries=4, score="head")
    model = load_official_checkpoint(path, clip_config=case.clip_config, score="head")
    model.add_queries(4)
    assert model.config.num_queries == 4


def test_wrong_presets_are_named(case: OfficialCase, tmp_path: Path) -> None:
    path = save_state(case.state, tmp_path / "a.safetensors")

    def other(**args: Any) -> HiVGConfig:
        return HiVGConfig.from_official_args({**case.args, **args}, case.clip_config)

    with pytest.raises(ValueError, match="number of bridge_text_layers is 2 in the file and 1 in the config"):
        load_official_checkpoint(path, other(dataset="unc"))
    with pytest.raises(ValueError, match="fusion_pre_norm is True in the file and False in the config"):
        load_official_checkpoint(path, other(normalize_before=False))
    with pytest.raises(ValueError, match="patches and words is 93 in the file and 113 in the config"):
        load_official_checkpoint(path, other(imsize=96))
    with pytest.raises(ValueError, match=r"bridge_layers is \[0, 3, 7, 11\] in the file and \[0, 3, 7\] in"):
        load_official_checkpoint(path, config_of(case, bridge_layers=[0, 3, 7]))
    with pytest.raises(ValueError, match="vision layers is 12 in the file and 24 in the config"):
        load_official_checkpoint(path, HiVGConfig.preset("large-unc+"))


def test_arguments_tell_apart_what_shapes_cannot(tmp_path: Path) -> None:
    mixed = made_case(
        OfficialLayers(LAYERS.bridges, LAYERS.visual_features, [12]),
        dataset="mixup",
        mixup_pretrain=True,
        enable_adaptive_weights=False,
    )
    path = save_pth(mixed, tmp_path / "a.pth")
    wrong = {"dataset": "unc", "mixup_pretrain": False, "enable_adaptive_weights": True}
    config = HiVGConfig.from_official_args({**mixed.args, **wrong}, mixed.clip_config)
    with pytest.raises(ValueError, match="bridge_text_source is projection in the file and hidden_states in the conf"):
        load_official_checkpoint(path, config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: {k: v for k, v in s.items() if k != "visu_proj.bias"},
            r"missing: grounding_head\.visual_proj\.bias",
        ),
        (lambda s: {**s, "extra.weight": torch.zeros(2)}, "no official HiVG has: extra.weight"),
        (lambda s: {**s, "bbox_embed.layers.1.weight": torch.zeros(3, 3)}, r"other|of another shape: .*box_head"),
        (
            lambda s: {
                k: v for k, v in s.items() if not k.endswith("layers.3.self_attn.q_proj.lora_B.default.weight")
            },
            "without the rest of its pair",
        ),
        (lambda s: {k.replace("default", "other"): v for k, v in s.items()}, "official files have one adapter"),
        (lambda s: {"conv1.weight": torch.zeros(2), "fc.bias": torch.zeros(2)}, "a checkpoint of another model"),
        (lambda s: {**s, "clip.logit_scale": torch.tensor(1.0)}, "holds the parameter 'clip.logit_scale' twice"),
    ],
    ids=["missing", "unknown", "shape", "half a pair", "two adapters", "another model", "twice"],
)
def test_a_file_that_does_not_fit(case: OfficialCase, tmp_path: Path, change: Change, message: str) -> None:
    path = save_state(change(case.state), tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=message):
        load_official_checkpoint(path, config_of(case))


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_truncated_files(case: OfficialCase, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    _ = save_pth(case, path) if name.endswith("pth") else save_state(case.state, path)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(ValueError, match=r"whole.*again"):
        load_official_checkpoint(path, config_of(case))


class RunsOnLoading:
    """Pickled, it is a program that makes a file."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


# pickle writes a tensor as a call that would read one more pickle, and that name comes first.
@pytest.mark.parametrize(("writer", "name"), [("torch", r"\.system"), ("pickle", r"torch\.storage\._load_from_bytes")])
def test_a_checkpoint_that_would_run_code_is_refused_by_name_and_has_not_run(
    case: OfficialCase, tmp_path: Path, writer: str, name: str
) -> None:
    proof, path = tmp_path / "it-ran", tmp_path / "best_checkpoint.pth"
    content = {"model": case.state, "args": RunsOnLoading(f"touch {proof}")}
    if writer == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=f"it asks for .*{name}"):
        load_official_checkpoint(path, config_of(case))
    assert not proof.exists()


def test_places_that_hold_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="File not found"):
        load_official_checkpoint(tmp_path / "none.pth")
    with pytest.raises(ValueError, match="is a folder"):
        load_official_checkpoint(tmp_path)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="has no state dict"):
        load_official_checkpoint(tmp_path / "list.pth")


def test_without_config_and_arguments_it_asks(case: OfficialCase, tmp_path: Path) -> None:
    path = save_state(case.state, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="no arguments that say which variant"):
        load_official_checkpoint(path)
    with pytest.raises(ValueError, match=r"not the published CLIP of ViT-B/16 .*give its configuration"):
        load_official_checkpoint(path, args=case.args)
    with pytest.raises(ValueError, match="Give either a config or args, bridge_mixes_batch"):
        load_official_checkpoint(path, config_of(case), args=case.args, bridge_mixes_batch=True)
    with pytest.raises(ValueError, match='lora must be "merge" or "adapter"'):
        load_official_checkpoint(path, config_of(case), lora="keep")
    with pytest.raises(ValueError, match="must be a multiple of `fusion_heads`"):  # the config's own check
        load_official_checkpoint(path, args={**case.args, "vl_nheads": 7}, clip_config=case.clip_config)
    model = load_official_checkpoint(path, args=case.args, clip_config=CLIPConfig(**case.clip_config))
    assert model.config.bridge_text_layers == [6, 12]


@pytest.mark.parametrize("model", ["ViT-B/16", "ViT-B/32", "ViT-L/14", "ViT-L/14-336"])
def test_published_clips_are_known_by_their_shapes(model: str) -> None:
    layers = OfficialLayers([], [1], [12])
    with torch.device("meta"):
        shapes = clip_shapes(PUBLISHED_CLIPS[model], layers)
        weights = {f"clip.{name}": torch.empty(shape) for name, shape in shapes.items()}
    file = OfficialFile("debiased.pth", CLIP_ALONE, weights, {}, None)
    assert published_clip_config(file) == PUBLISHED_CLIPS[model]
    other = "ViT-L/14" if model != "ViT-L/14" else "ViT-B/16"
    with pytest.raises(ValueError, match=f"not the published CLIP of {other}"):
        published_clip_config(file, other)


def test_recorded_files_load_by_their_arguments_in_a_pth(tmp_path: Path) -> None:
    recorded = recorded_case("base-mixup-stage1")
    model = load_official_checkpoint(save_pth(recorded, tmp_path / "a.pth"), clip_config=recorded.clip_config)
    assert model.config.bridge_text_source == "projection"


def test_other_weights_in_a_file_are_reported(case: OfficialCase, tmp_path: Path) -> None:
    path = save_pth(case, tmp_path / "best.pth", model_ema={"reg_token.weight": torch.zeros(1, 16)})
    report = convert_official_checkpoint(path, clip_config=case.clip_config).report
    assert report.unread == ("model_ema",)
    assert "The file also holds weights under model_ema, which were not read." in str(report)


def test_paths_among_the_arguments_are_read_as_strings(case: OfficialCase, tmp_path: Path) -> None:
    args = argparse.Namespace(**case.args, output_dir=tmp_path / "runs", split_root=Path("a/b"))
    conversion = convert_official_checkpoint(
        save_pth(case, tmp_path / "best.pth", args=args), clip_config=case.clip_config
    )
    assert conversion.model.config.bridge_text_layers == [6, 12]
    from hivg_hf.utils.safe_pickle import load_torch_file

    read = load_torch_file(tmp_path / "best.pth")["args"]
    assert (read.output_dir, read.split_root) == (str(tmp_path / "runs"), "a/b")


@torch.no_grad()
def test_terms_of_the_bridges_go_on_with_the_adapter(case: OfficialCase, tmp_path: Path) -> None:
    """With `bridge_lora` the authors' pairs stay apart, whole, and the model is the same."""
    config = config_of(case, bridge_lora=True)
    path = save_pth(case, tmp_path / "best.pth")
    kept = convert_official_checkpoint(path, config, lora="adapter")
    assert not kept.report.merged
    plain = kept.model.get_base_model()
    pair = plain.clip.vision_model.encoder.layers[3].bridge.attention.v_proj
    official = "clip.base_model.model.base_model.model.vision_model.encoder.layers.3.cross_attn.v_proj.lora_A.default"
    assert torch.equal(pair.down, case.state[f"{official}.weight"])
    assert_outputs_match(run_ours(plain.eval(), case), case.run(mixes_batch=False))
    merged = convert_official_checkpoint(path, config)  # --lora merge: fresh terms of 0
    assert_outputs_match(run_ours(merged.model, case), case.run(mixes_batch=False))
    with pytest.raises(ValueError, match=r"bridge terms of rank 32 and scale 0.25; `bridge_lora` is of rank 32 and"):
        convert_official_checkpoint(path, config_of(case, bridge_lora=True), lora="adapter", lora_alpha=8)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ([torch.zeros(1)], "a list"),
        ([], "a list"),
        ({}, "an empty dict"),
        ({"model": {}}, "an empty dict"),
        (torch.zeros(2), "a Tensor"),
        (None, "a NoneType"),
        ({"a": 1.0}, "a dict with 'a': float"),
        ({1: torch.zeros(1)}, "a dict with 1: Tensor"),
        ({"model": {("a", "b"): torch.zeros(1)}}, r"a dict with \('a', 'b'\): Tensor"),
        ({"model": [torch.zeros(1)]}, "a dict with 'model': list"),
    ],
)
def test_what_is_not_a_state_dict_is_named(content: Any, found: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "best.pth")
    with pytest.raises(ValueError, match=rf"best\.pth has no state dict but {found}; an official checkpoint has one"):
        read_official_file(tmp_path / "best.pth")


@pytest.mark.parametrize(("content", "kind"), [(b"", "empty"), (b"\x89PNG\r\n\x1a\n", "a PNG picture")])
def test_another_file_under_the_name_of_safetensors_is_named(content: bytes, kind: str, tmp_path: Path) -> None:
    (tmp_path / "best.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=rf"best\.safetensors is {kind}; expected a safetensors file"):
        read_official_file(tmp_path / "best.safetensors")
