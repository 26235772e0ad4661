"""HiLoRA stages: what trains, how much of it, and that it is the same model in every form on disk."""

import copy
import functools
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import peft
import pytest
import torch
from packaging.version import Version
from peft import LoraConfig, LoraRuntimeConfig, PeftModel
from safetensors.torch import load_file, save_file

from helpers.training import colored_box_rows
from hivg_hf import HiVGConfig, HiVGForVisualGrounding
from hivg_hf.data.collator import GroundingCollator
from hivg_hf.hilora import (
    HiLoraConfig,
    HiLoraStage,
    load_adapter_state,
    load_stages,
    merge_stages,
    publish_stages,
    save_adapter_state,
    start_stage,
    target_pattern,
)
from hivg_hf.hilora.options import ACCEPTED, OWN_FIELDS, REFUSED, check_patterns
from hivg_hf.training import HiVGTrainer, HiVGTrainingArguments

OFFICIAL_STAGES = tuple(
    HiLoraStage(f"stage_{number}", vision_layers=layers, text_layers=12)
    for number, layers in ((1, 5), (2, 8), (3, 12))
)


def trainable(model, part):
    return sum(p.numel() for name, p in model.named_parameters() if p.requires_grad and part in name)


def test_official_counts_of_trainable_parameters():
    """Figures from the official layer lists at rank 32: reference of the published code, LoRA per layer 196,608."""
    with torch.device("meta"):
        model = HiVGForVisualGrounding(HiVGConfig.preset("base-unc"))
    config = HiLoraConfig(OFFICIAL_STAGES, mode="progressive")
    for stage, expected in ((1, 983_040), (2, 1_572_864), (3, 2_359_296)):
        model = start_stage(model, config, stage)
        lora = {name: p for name, p in model.named_parameters() if p.requires_grad and "lora_" in name}
        assert sum(p.numel() for name, p in lora.items() if "vision_model" in name) == expected
        assert sum(p.numel() for name, p in lora.items() if "text_model" in name) == 1_572_864
        assert all(".self_attn." in name and ".bridge." not in name for name in lora)
        others = [name for name, p in model.named_parameters() if p.requires_grad and name not in lora]
        assert others
        assert all(".bridge." in name or "grounding_head." in name for name in others)


def test_groups_follow_the_depth_of_the_tower():
    for name, layers in (("base", [4, 8, 12]), ("large", [8, 16, 24])):
        config = HiLoraConfig.for_model(HiVGConfig.preset(name))
        assert [stage.vision_layers for stage in config.stages] == layers
        assert {stage.text_layers for stage in config.stages} == {12}
        assert config.mode == "additive"


def test_targets_are_anchored_on_the_towers(tiny_model):
    import re

    pattern = re.compile(target_pattern(2, 1, ["q_proj", "fc1"]))
    hit = [name for name, _ in tiny_model.named_modules() if pattern.fullmatch(name)]
    assert hit == [
        f"clip.{tower}.encoder.layers.{layer}.{leaf}"
        for tower, layers in (("text_model", 1), ("vision_model", 2))
        for layer in range(layers)
        for leaf in ("self_attn.q_proj", "mlp.fc1")
    ]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: HiLoraConfig(()), r"needs at least one stage"),
        (lambda: HiLoraConfig(OFFICIAL_STAGES, mode="nested"), r"must be 'additive' or 'progressive'. Got 'nested'"),
        (lambda: HiLoraConfig(OFFICIAL_STAGES[::-1]), r"'stage_2' adapts fewer layers than 'stage_3'"),
        (lambda: HiLoraConfig(OFFICIAL_STAGES, order="deep"), r"must be 'shallow_to_deep' or 'deep_to_.*. Got 'deep'"),
        (lambda: HiLoraConfig(OFFICIAL_STAGES, targets="linear"), r"one of attention, mlp, all-linear.* Got 'linear'"),
        (lambda: HiLoraConfig((OFFICIAL_STAGES[0],) * 2), r"different names. Got \['stage_1', 'stage_1'\]"),
        (lambda: HiLoraConfig(OFFICIAL_STAGES, targets=("wte",)), r"must be some of .* Got \('wte',\)"),
        (
            lambda: HiLoraConfig(OFFICIAL_STAGES, lora_options={"r": 3}),
            r"lora_options holds `r`, which is set by a stage's `rank`: omit it",
        ),
        (lambda: HiLoraConfig(OFFICIAL_STAGES, lora_options={"use_dora": True}), r"DoRA .* its stages do not add up"),
        (
            lambda: HiLoraConfig((HiLoraStage("a", 1, 1), HiLoraStage("b", 2, 1, rank=8)), mode="progressive"),
            r"progressive mode .* rank, alpha and dropout must be equal",
        ),
        (lambda: HiLoraStage("a/b", 1, 1), r"Stage name 'a/b' cannot name a file or folder"),
        (lambda: HiLoraStage("../..", 1, 1), r"Stage name '../..' cannot name a file or folder"),
        (lambda: HiLoraStage("a.b", 1, 1), r"Stage name 'a.b' may hold letters, digits, '_' and '-' only"),
        (lambda: HiLoraStage("3", 1, 1), r"Stage name '3' stands for something else .* for example 'stage_3'"),
        (lambda: HiLoraStage("a", 1, 1, alpha=float("nan")), r"needs a finite alpha and a dropout .* Got alpha=nan"),
        (lambda: HiLoraStage("a", 1, 1, dropout=1), r"needs a finite alpha and a dropout .* dropout=1"),
        (lambda: HiLoraConfig((HiLoraStage("A", 1, 1), HiLoraStage("a", 2, 1))), r"different names. Got \['A', 'a'\]"),
        (lambda: HiLoraStage("a", 1, 1, rank=0), r"rank must be at least 1. Got 0"),
        (lambda: HiLoraStage("a", 1, 1, rank=10**400), r"rank may be at most 65,536"),
        (lambda: HiLoraStage("a", 1, 1, alpha=10**400), r"needs a finite alpha and a dropout"),
        (lambda: HiLoraStage("a", 10**9, 1), r"may adapt at most 200 layers of a tower.*vision_layers=1000000000"),
        (lambda: HiLoraStage("a", 0, 0), r"must adapt at least one layer"),
        (lambda: HiLoraConfig.for_model(HiVGConfig.preset("base"), stages=13), r"between 1 and .* depth 12. Got 13"),
    ],
)
def test_impossible_stages_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exclude_modules": "(.*)*x"}, r"regular expressions \(\(\.\*\)\*x\) take more than"),
        ({"rank_pattern": {"(.*)*(.*)*x": 2}}, r"regular expressions .* take more than"),
        ({"rank_pattern": {"q_proj": 10**9}}, r"ranks of at least 1 and at most 65,536"),
        ({"alpha_pattern": {"q_proj": 10**400}}, r"must be a mapping of regular expressions to numbers"),
    ],
)
def test_options_of_a_recipe_that_never_end_or_fit_nowhere_are_refused(options, message, monkeypatch):
    monkeypatch.setattr("hivg_hf.hilora.config.check_patterns", functools.partial(check_patterns, seconds=1))
    with pytest.raises(ValueError, match=message):
        HiLoraConfig((HiLoraStage("a", 1, 1),), lora_options=options)


def test_a_stage_deeper_than_the_model_is_refused(tiny_model):
    with pytest.raises(ValueError, match=r"adapts 5 vision and 12 text layers, but the model has 4 and 3"):
        start_stage(copy.deepcopy(tiny_model), HiLoraConfig(OFFICIAL_STAGES), 1)
    with pytest.raises(ValueError, match=r"stage must be between 1 and 3. Got 4"):
        start_stage(copy.deepcopy(tiny_model), HiLoraConfig(OFFICIAL_STAGES), 4)


def test_from_deep_to_shallow_the_last_stage_reaches_all_layers(tiny_model):
    stages = (HiLoraStage("a", 1, 1), HiLoraStage("b", 3, 3))
    config = HiLoraConfig(stages, order="deep_to_shallow")
    with pytest.raises(ValueError, match=r"'b' adapts 3 vision and 3 text layers, but the model has 4 and 3"):
        start_stage(copy.deepcopy(tiny_model), config, 1)


@pytest.mark.parametrize("mode", ["additive", "progressive"])
@pytest.mark.parametrize(("order", "first"), [("shallow_to_deep", {0, 1}), ("deep_to_shallow", {2, 3})])
def test_stages_begin_at_the_end_of_the_towers_that_their_order_says(mode, order, first, tiny_model, tiny_config):
    config = HiLoraConfig.for_model(tiny_config, 2, rank=2, mode=mode, order=order)
    model = copy.deepcopy(tiny_model)
    for stage, layers in ((1, first), (2, {0, 1, 2, 3})):
        model = start_stage(model, config, stage)
        trained = [n for n, p in model.named_parameters() if p.requires_grad and "lora_" in n and "vision_model" in n]
        assert {int(name.split("layers.")[1].split(".")[0]) for name in trained} == layers


@pytest.mark.parametrize(
    ("targets", "leaves"),
    [
        ("attention", {"q_proj", "k_proj", "v_proj", "out_proj"}),
        ("mlp", {"fc1", "fc2"}),
        ("all-linear", {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"}),
    ],
)
def test_a_name_stands_for_the_linear_layers_of_the_towers(targets, leaves, tiny_model, tiny_config):
    config = HiLoraConfig.for_model(tiny_config, 1, rank=2, targets=targets)
    model = start_stage(copy.deepcopy(tiny_model), config, 1)
    adapted = [name.split(".lora_A")[0] for name, _ in model.named_parameters() if "lora_A" in name]
    assert {name.rsplit(".", 1)[1] for name in adapted} == leaves
    assert not any(".bridge." in name for name in adapted)
    assert len(adapted) == len(leaves) * (4 + 3)


def test_merging_does_not_lose_an_inactive_adapter(tiny_model, tiny_config):
    config = HiLoraConfig.for_model(tiny_config, 2, rank=2)
    model = start_stage(start_stage(copy.deepcopy(tiny_model), config, 1), config, 2)
    model.base_model.set_adapter(["stage_1"])
    with pytest.raises(ValueError, match=r"lose the inactive adapters \['stage_2'\]"):
        merge_stages(model)


@pytest.fixture(scope="module")
def question(tiny_processor):
    """Inputs without targets: a batch of pictures of several shapes and expressions of several lengths."""
    batch = GroundingCollator(tiny_processor, masks=False)(colored_box_rows(4, seed=9))
    return {name: value for name, value in batch.items() if name not in ("labels", "image_ids")}


@torch.no_grad()
def answer(model, question):
    return model.eval()(**question, output_masks=True, output_token_logits=True)


def train_a_little(model, processor, folder, steps=3):
    args = HiVGTrainingArguments(
        str(folder), global_batch_size=8, max_steps=steps, learning_rate=5e-3, use_cpu=True, disable_tqdm=True,
        save_strategy="no", seed=4,
    )  # fmt: skip
    HiVGTrainer(model, args, train_dataset=colored_box_rows(16), processing_class=processor).train()


@pytest.fixture(scope="module")
def trained_stages(tiny_model, tiny_config, tiny_processor, question, tmp_path_factory):
    """Three trained additive stages: the folder, what the model answered after each, its tensors after each."""
    folder = tmp_path_factory.mktemp("stages")
    config = HiLoraConfig.for_model(tiny_config, 3, rank=2)
    torch.manual_seed(0)
    model, answers, states = copy.deepcopy(tiny_model), [], []
    states.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
    for stage in (1, 2, 3):
        model = start_stage(model, config, stage)
        train_a_little(model, tiny_processor, folder / "trainer")
        answers.append(answer(model, question))
        states.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        publish_stages(model, folder, f"stage_{stage}", tiny_processor)
    return folder, answers, states


def test_stages_train_their_own_terms_and_never_clip(trained_stages):
    _, answers, states = trained_stages
    assert (answers[0].pred_boxes - answers[2].pred_boxes).abs().max() > 1e-3  # there is something to compare
    plain = states[0]
    for stage, state in enumerate(states[1:], start=1):
        for name, tensor in state.items():
            own = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
            if "lora_" not in name and ".bridge." not in name and "grounding_head." not in name:
                assert torch.equal(tensor, plain[own]), f"{name} of CLIP changed in stage {stage}"
            if "lora_" in name and name in states[stage - 1]:
                assert torch.equal(tensor, states[stage - 1][name]), f"{name} of an earlier stage changed"
        newest = [name for name in state if f"lora_B.stage_{stage}." in name]
        assert newest
        assert all(state[name].abs().max() > 0 for name in newest)
        # heads trained too
        assert any(
            not torch.equal(tensor, states[stage - 1].get(name, plain.get(name.removeprefix("base_model.model."))))
            for name, tensor in state.items()
            if "box_head" in name
        )


FRESH_PROCESS = """
import sys, torch
from peft import LoraConfig, LoraRuntimeConfig, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModel
import hivg_hf
folder, out = sys.argv[1:]
question = load_file(f"{folder}/question.safetensors")
def answer(model):
    with torch.no_grad():
        found = model.eval()(**question, output_masks=True, output_token_logits=True)
    return {"boxes": found.pred_boxes, "tokens": found.token_logits, "masks": found.mask_logits, "score": found.scores}
answers = {"merged": answer(AutoModel.from_pretrained(f"{folder}/merged"))}
model = PeftModel.from_pretrained(AutoModel.from_pretrained(f"{folder}/base"), f"{folder}/adapters/stage_1", "stage_1")
model.load_adapter(f"{folder}/adapters/stage_2", "stage_2")
model.load_adapter(f"{folder}/adapters/stage_3", "stage_3")
model.base_model.set_adapter(["stage_1", "stage_2", "stage_3"])
answers["adapters"] = answer(model)
for stage in (1, 2, 3):
    export = f"{folder}/exports/stage_{stage}"
    answers[f"export_{stage}"] = answer(PeftModel.from_pretrained(AutoModel.from_pretrained(f"{folder}/base"), export))
answers["export_3_auto"] = answer(AutoModel.from_pretrained(f"{folder}/exports/stage_3"))
save_file({f"{k}.{n}": t.contiguous() for k, found in answers.items() for n, t in found.items()}, out)
"""


@pytest.mark.timeout(900)  # processes of its own, whose imports take minutes on a busy machine
def test_every_folder_is_the_model_of_its_moment_in_a_fresh_process(trained_stages, question, tmp_path):
    folder, answers, _ = trained_stages
    save_file({name: value.contiguous() for name, value in question.items()}, folder / "question.safetensors")
    out = tmp_path / "answers.safetensors"
    repository = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", FRESH_PROCESS, str(folder), str(out)], cwd=repository, check=True)
    found = load_file(out)
    moments = {"merged": 3, "adapters": 3, "export_1": 1, "export_2": 2, "export_3": 3, "export_3_auto": 3}
    assert {name.split(".")[0] for name in found} == set(moments)
    for form, stage in moments.items():
        expected = answers[stage - 1]
        for name, tensor in (
            ("boxes", expected.pred_boxes),
            ("tokens", expected.token_logits),
            ("masks", expected.mask_logits),
            ("score", expected.scores),
        ):
            difference = (found[f"{form}.{name}"] - tensor).abs() / (1 + tensor.abs())
            assert difference.max() <= 1e-5, f"{form}: {name}"


def test_adapters_on_another_base_are_refused(trained_stages, tmp_path, question):
    import shutil

    folder, answers, _ = trained_stages
    assert torch.allclose(answer(load_stages(folder), question).pred_boxes, answers[2].pred_boxes, atol=1e-5)
    shutil.copytree(folder / "base", tmp_path / "base")
    shutil.copytree(folder / "adapters", tmp_path / "adapters")
    weights = load_file(tmp_path / "base" / "model.safetensors")
    weights["grounding_head.reg_token.weight"] += 1e-3
    save_file(weights, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"adapters/stage_1 was trained with another bridge and head than those in"):
        load_stages(tmp_path)
    shutil.rmtree(tmp_path / "adapters")
    with pytest.raises(FileNotFoundError, match=r"has no folder adapters/"):
        load_stages(tmp_path)


# Values of each accepted option, beside PEFT's default; a new entry of ACCEPTED fails the test until it has some.
ACCEPTED_VALUES = {
    "use_rslora": [True],
    "use_dora": [True],
    "lora_bias": [True],
    "init_lora_weights": [True, False, "gaussian", "orthogonal"],
    "exclude_modules": [["v_proj"], r".*layers\.0\..*k_proj", None],
    "rank_pattern": [{"q_proj": 14, "layers.0.*k_proj": 1}, {}],
    "alpha_pattern": [{"q_proj": 11, "layers.1.*v_proj": 2.5}],
}
TOGETHER = [
    {},
    {
        "use_rslora": True,
        "rank_pattern": {"q_proj": 13},
        "alpha_pattern": {"q_proj": 9},
        "exclude_modules": ["k_proj"],
    },
    {"use_dora": True, "use_rslora": True, "rank_pattern": {"v_proj": 9}},
    {"lora_bias": True, "use_rslora": True, "alpha_pattern": {"out_proj": 3}},
]


def moved_stages(model, config):
    """A model whose stages have all moved from where they began, with bridge and head."""
    for stage in range(1, len(config.stages) + 1):
        model = start_stage(model, config, stage)
        with torch.no_grad():
            torch.manual_seed(stage)
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("stages", [1, 3])
@pytest.mark.parametrize("mode", ["additive", "progressive"])
@pytest.mark.parametrize(
    "options",
    [{name: value} for name, values in ACCEPTED_VALUES.items() for value in values] + TOGETHER,
    ids=str,
)
def test_every_published_form_computes_what_was_trained(
    options, mode, stages, tiny_model, tiny_config, question, tmp_path
):
    if options.get("use_dora") and mode == "additive" and stages > 1:
        with pytest.raises(ValueError, match=r"DoRA .* its stages do not add up"):
            HiLoraConfig.for_model(tiny_config, stages, mode=mode, rank=4, lora_options=options)
        return
    config = HiLoraConfig.for_model(tiny_config, stages, mode=mode, rank=4, alpha=5, lora_options=options)
    check_published_forms(config, tiny_model, question, tmp_path)


@pytest.mark.parametrize("order", ["shallow_to_deep", "deep_to_shallow"])
@pytest.mark.parametrize("mode", ["additive", "progressive"])
@pytest.mark.parametrize("targets", ["attention", "mlp", "all-linear"])
@pytest.mark.parametrize("use_rslora", [False, True])
def test_every_method_is_published_as_it_was_trained(
    order, mode, targets, use_rslora, tiny_model, tiny_config, question, tmp_path
):
    config = HiLoraConfig.for_model(
        tiny_config, 3, mode=mode, rank=4, alpha=5, targets=targets, order=order,
        lora_options={"use_rslora": use_rslora},
    )  # fmt: skip
    check_published_forms(config, tiny_model, question, tmp_path)


def check_published_forms(config, tiny_model, question, folder):
    """All stages, moved and published: adapters, merged model and export compute what the model in memory does."""
    model = moved_stages(copy.deepcopy(tiny_model), config)
    expected = answer(model, question).pred_boxes
    assert (expected - answer(tiny_model, question).pred_boxes).abs().max() > 1e-3  # there is something to compare
    publish_stages(model, folder, "last")
    forms = {
        "adapters on base": load_stages(folder),
        "merged": HiVGForVisualGrounding.from_pretrained(folder / "merged"),
        "export on the original base": PeftModel.from_pretrained(
            copy.deepcopy(tiny_model), folder / "exports" / "last"
        ),
    }
    for form, other in forms.items():
        assert (answer(other, question).pred_boxes - expected).abs().max() <= 1e-6, form


def test_every_field_of_peft_s_lora_config_is_classified():
    """A field that a new PEFT adds is refused until somebody decides; this test says that it is time to."""
    tables = [OWN_FIELDS.keys(), ACCEPTED.keys(), REFUSED.keys()]
    classified = [name for table in tables for name in table]
    known = {field.name for field in fields(LoraConfig)}
    assert len(classified) == len(set(classified))
    assert known <= set(classified)
    # the tables are written for the pinned PEFT; an older one knows fewer
    assert set(classified) <= known or Version(peft.__version__) < Version("0.21")
    assert ACCEPTED_VALUES.keys() == ACCEPTED.keys()


# Values that PEFT takes, or took in some version, for what HiLoRA refuses.
REFUSED_VALUES = {
    "fan_in_fan_out": True,
    "megatron_config": {"a": 1},
    "megatron_core": "os",
    "trainable_token_indices": [1],
    "alora_invocation_tokens": [1],
    "use_qalora": True,
    "qalora_group_size": 8,
    "layer_replication": [(0, 2)],
    "runtime_config": LoraRuntimeConfig(ephemeral_gpu_offload=True),
    "target_parameters": ["q_proj.weight"],
    "ensure_weight_tying": True,
}


@pytest.mark.parametrize("name", [field.name for field in fields(LoraConfig) if field.name not in ACCEPTED])
def test_other_fields_are_refused_when_the_config_is_made(name, tiny_config):
    value = REFUSED_VALUES.get(name, {"a": 1})
    message = "which is set by" if name in OWN_FIELDS else "which HiLoRA refuses: "
    with pytest.raises(ValueError, match=rf"lora_options holds `?{name}.*{message}"):
        HiLoraConfig.for_model(tiny_config, 1, lora_options={name: value})


@pytest.mark.parametrize(
    "options",
    [
        {"init_lora_weights": start}
        for start in ("pissa", "pissa_niter_4", "olora", "OLoRA", "corda", "eva", "loftq", "lora_ga", "mica", 1, None)
    ]
    + [
        {"use_rslora": "yes"},
        {"use_dora": 1},
        {"lora_bias": None},
        {"rank_pattern": {"q_proj": 0}},
        {"rank_pattern": {"q_proj": 2.5}},
        {"rank_pattern": {"(": 2}},
        {"rank_pattern": ["q_proj"]},
        {"alpha_pattern": {"q_proj": float("nan")}},
        {"alpha_pattern": {"q_proj": "2"}},
        {"exclude_modules": "("},
        {"exclude_modules": [1]},
        {"use_flora": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("mode", ["additive", "progressive"])
def test_options_that_cannot_be_published_exactly_are_refused(options, mode, tiny_config):
    with pytest.raises(ValueError, match=f"lora_options holds `?{next(iter(options))}") as caught:
        HiLoraConfig.for_model(tiny_config, 1, mode=mode, rank=4, lora_options=options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora_bias": True, "use_dora": True}, "do not go together: .*lora_bias=True is not supported for DoRA"),
        ({"lora_bias": True, "init_lora_weights": "gaussian"}, "do not go together: .*only supported with"),
        ({"rank_pattern": {"query": 3}}, r"rank_pattern holds \['query'\], which no adapted layer takes"),
        ({"alpha_pattern": {"q_proj": 3, "layers.0.*q_proj": 3}}, r"alpha_pattern holds \['layers.0.*q_proj'\]"),
        ({"rank_pattern": {"fc1": 3}}, r"rank_pattern holds \['fc1'\]"),
        ({"rank_pattern": {"q_proj": 3}, "exclude_modules": ["q_proj"]}, r"rank_pattern holds \['q_proj'\]"),
        ({"exclude_modules": ["proj"]}, r"exclude_modules=\['proj'\] excludes no layer"),
        ({"exclude_modules": r"clip\..*"}, r"exclude_modules leaves stage 'stage_1' no layer"),
        ({"init_lora_weights": "orthogonal", "rank_pattern": {"q_proj": 3}}, r"needs even ranks.*Got \[4, 3\]"),
    ],
)
def test_options_that_exclude_each_other_are_refused(options, message, tiny_config):
    with pytest.raises(ValueError, match=message):
        HiLoraConfig.for_model(tiny_config, 1, rank=4, lora_options=options)


@pytest.mark.parametrize("excluded", [None, ["v_proj"], ["layers.0.self_attn.k_proj"], r".*layers\.0\..*"])
def test_the_layers_that_patterns_are_checked_against_are_those_peft_adapts(excluded, tiny_model, tiny_config):
    targets = ("q_proj", "v_proj", "k_proj", "fc1")
    options = {"exclude_modules": excluded}
    config = HiLoraConfig.for_model(tiny_config, 2, rank=2, targets=targets, lora_options=options)
    model = start_stage(copy.deepcopy(tiny_model), config, 1)
    adapted = {name for name, module in model.named_modules() if "stage_1" in getattr(module, "lora_A", {})}
    assert adapted == {f"base_model.model.{name}" for name in config._adapted_layers(config.stages[0])}


def test_no_stage_takes_the_name_of_a_part_of_the_model(tiny_model, tiny_config):
    """PEFT looks for ".NAME." in parameter names: a stage named "clip" would own every tensor, and publish none."""
    model = start_stage(copy.deepcopy(tiny_model), HiLoraConfig.for_model(tiny_config, 1), 1)
    names = [name for name, _ in (*model.named_parameters(), *model.named_modules())]
    parts = {part for name in names for part in name.split(".")} - {"", "stage_1"}
    for name in [*sorted(parts), "keys", "pop", "lora_A", "lora_magnitude_vector", "default"]:
        with pytest.raises(ValueError, match=f"Stage name '{name}' stands for something else"):
            HiLoraStage(name, 1, 1)


@pytest.mark.parametrize("names", [("a", "b"), ("l", "lora"), ("_", "stage"), ("B", "A-1"), ("stage_1", "stage_10")])
def test_unusual_names_of_stages_publish_what_was_trained(names, tiny_model, tiny_config, question, tmp_path):
    config = HiLoraConfig(tuple(HiLoraStage(name, 1 + number, 1, rank=2) for number, name in enumerate(names)))
    model = moved_stages(copy.deepcopy(tiny_model), config)
    expected = answer(model, question).pred_boxes
    publish_stages(model, tmp_path, names[-1])
    exported = PeftModel.from_pretrained(copy.deepcopy(tiny_model), tmp_path / "exports" / names[-1])
    for other in (load_stages(tmp_path), exported):
        assert (answer(other, question).pred_boxes - expected).abs().max() <= 1e-6


def test_progressive_stages_grow_one_adapter(tiny_model, tiny_config):
    config = HiLoraConfig.for_model(tiny_config, 2, mode="progressive", rank=2)
    model = start_stage(copy.deepcopy(tiny_model), config, 1)
    assert list(model.peft_config) == ["hilora"]
    first = trainable(model, "vision_model.encoder.layers.0.self_attn.q_proj.lora_A.hilora")
    assert first == 2 * tiny_config.clip_config.vision_config.hidden_size
    assert trainable(model, "vision_model.encoder.layers.3.self_attn.q_proj.lora_A") == 0
    model = start_stage(model, config, 2)
    assert list(model.peft_config) == ["hilora"]
    assert trainable(model, "vision_model.encoder.layers.3.self_attn.q_proj.lora_A") == first


def test_terms_inside_the_bridges_are_folded_in_everything_published(tiny_model, tiny_config, question, tmp_path):
    config = copy.deepcopy(tiny_config)
    config.bridge_lora = True
    plain = HiVGForVisualGrounding(config).eval()
    plain.load_state_dict(tiny_model.state_dict(), strict=False)
    model = start_stage(plain, HiLoraConfig.for_model(config, 2, rank=2), 1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape))
    assert [name for name, p in model.named_parameters() if p.requires_grad and name.endswith("q_proj.up")]
    publish_stages(model, tmp_path, "stage_1")
    wanted = answer(model, question)
    for form in (load_stages(tmp_path), HiVGForVisualGrounding.from_pretrained(tmp_path / "merged")):
        torch.testing.assert_close(answer(form.eval(), question), wanted, atol=1e-5, rtol=1e-5)
        assert not form.config.bridge_lora
    export = PeftModel.from_pretrained(copy.deepcopy(tiny_model), tmp_path / "exports" / "stage_1")
    torch.testing.assert_close(answer(export.eval(), question), wanted, atol=1e-5, rtol=1e-5)
    assert plain.config.bridge_lora  # and trains on


@pytest.mark.parametrize("mode", ["additive", "progressive"])
def test_targets_inside_the_bridges_train_and_are_published(mode, tiny_model, tiny_config, question, tmp_path):
    targets = ("q_proj", "bridge.q_proj", "bridge.v_proj", "bridge.fc2")
    config = HiLoraConfig.for_model(tiny_config, 2, rank=2, mode=mode, targets=targets)
    model = copy.deepcopy(tiny_model)
    for stage in (1, 2):
        model = start_stage(model, config, stage)
        trains = [name for name, p in model.named_parameters() if p.requires_grad and "lora_" in name]
        layers = {name.split("layers.")[1].split(".")[0] for name in trains if ".bridge." in name}
        assert layers == {"1"} if stage == 1 else {"1", "3"}
        assert all(f".{config.adapter_name(stage)}." in name for name in trains)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.05 * torch.randn(parameter.shape))
    publish_stages(model, tmp_path, "stage_2")
    wanted = answer(model, question)
    for form in (load_stages(tmp_path), HiVGForVisualGrounding.from_pretrained(tmp_path / "merged")):
        torch.testing.assert_close(answer(form, question), wanted, atol=1e-5, rtol=1e-5)
    export = PeftModel.from_pretrained(copy.deepcopy(tiny_model), tmp_path / "exports" / "stage_2")
    torch.testing.assert_close(answer(export, question), wanted, atol=1e-5, rtol=1e-5)
    save_adapter_state(model, tmp_path / "state")
    again = start_stage(start_stage(copy.deepcopy(tiny_model), config, 1), config, 2)
    load_adapter_state(again, tmp_path / "state")
    torch.testing.assert_close(answer(again, question), wanted, atol=1e-6, rtol=1e-6)
    with pytest.raises(ValueError, match="and one of a tower's own among them"):
        HiLoraConfig.for_model(tiny_config, 2, targets=("bridge.q_proj",))
