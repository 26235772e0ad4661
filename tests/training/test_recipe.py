"""Recipes: every published setting is there, and what is wrong in a file is said in one sentence."""

import math
from pathlib import Path

import pytest
import yaml

from hivg_hf.training import load_recipe, parse_recipe

RECIPES = Path(__file__).parents[2] / "hivg_hf" / "recipes"
GPUS = 7  # of the official training scripts


def recipe(**changes):
    content = {
        "name": "r",
        "model": {"preset": "tiny", "tokenizer": "refshapes"},
        "data": {"train": {"source": "refshapes", "split": "train"}},
        "defaults": {"learning_rate": 1e-3, "batch_size": 8, "epochs": 2},
        "phases": [
            {"name": "a", "train": "heads"},
            {"name": "b", "train": "lora", "steps": 3, "vision_layers": 2, "text_layers": 1, "rank": 4},
        ],
    }
    return {**content, **changes}


def phase(**changes):
    return [{"name": "a", "train": "heads", "epochs": 1, "learning_rate": 1e-3, "batch_size": 8, **changes}]


def config_fields(**fields):
    return {"model": {**recipe()["model"], "config": fields}}


def train_rows(**changes):
    return {"data": {"train": {"source": "refshapes", "split": "train", **changes}}}


HEADS = {"train": "heads", "epochs": 1, "learning_rate": 1e-3, "batch_size": 8}
ROWS = {"source": "refshapes", "split": "train"}


def two_phases(**second):
    return {"phases": [{"name": "a", **HEADS}, {"name": "b", **HEADS, **second}]}


def clip_fields(content):
    return {"model": {**recipe()["model"], "config": {"clip_config": content}}}


def test_defaults_reach_every_phase_and_lengths_do_not_mix():
    parsed = parse_recipe(recipe())
    assert [(p.epochs, p.steps, p.learning_rate) for p in parsed.phases] == [(2, None, 1e-3), (None, 3, 1e-3)]
    assert parsed.hilora_config().stages[0].rank == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sead": 1}, r"Unknown key `sead` in recipe: did you mean `seed`\?"),
        ({"seed": "1e-4"}, r"recipe.seed must be an integer. Got '1e-4' \(YAML reads 1e-4 as a text"),
        ({"precision": "fp8"}, r"recipe.precision must be one of 'fp32', 'bf16', 'fp16'. Got 'fp8'"),
        ({"model": {}}, r"model needs one of checkpoint, clip or preset"),
        ({"model": {"preset": "tiny"}}, r"no tokenizer: name one in model.tokenizer"),
        ({"model": {"checkpoint": "x", "clip": "y"}}, r"omit model.clip and model.preset"),
        ({"data": {"train": {"source": "x"}}}, r"data.train needs `source` and `split`. Got the keys \['source'\]"),
        ({"data": 3}, r"recipe.data must be a mapping. Got 3"),
        ({"phases": "warmup"}, r"phases must be a list of mappings"),
        ({"phases": phase(train="head")}, r"phases\[0\].train must be one of 'pretrain', .*'heads', 'all', 'lora'"),
        ({"phases": phase(steps=3, epochs=1)}, r"Phase 'a' needs exactly one of `epochs` and `steps`"),
        ({"phases": phase(batch_size=0)}, r"Phase 'a': its length, batch_size and learning_rate must be positive"),
        ({"phases": phase(train="lora")}, r"say how deep with `vision_layers` and `text_layers`"),
        ({"phases": phase() + phase()}, r"phases with different names. Got \['a', 'a'\]"),
        ({"phases": phase() + phase(name="A")}, r"phases with different names. Got \['a', 'A'\]"),  # they name folders
        ({"phases": phase(epochs=math.nan)}, r"phases\[0\].epochs must be a finite number. Got nan"),
        ({"phases": phase(learning_rate=math.inf)}, r"phases\[0\].learning_rate must be a finite number. Got inf"),
        ({"phases": phase(learning_rate=10**400)}, r"must be a finite number. Got an integer of more than 300 digits"),
        ({"phases": phase(weight_decay=-1)}, r"Phase 'a': `weight_decay` must be at least 0. Got -1"),
        ({"phases": phase(warmup=-1)}, r"Phase 'a': `warmup` must be at least 0. Got -1"),
        ({"phases": phase(max_grad_norm=-1)}, r"Phase 'a': `max_grad_norm` must be at least 0. Got -1"),
        ({"phases": phase(betas=[0.9, 1])}, r"Phase 'a': `betas` must be two numbers from 0 to below 1. Got"),
        ({"phases": phase(early_stop=0)}, r"Phase 'a': `early_stop` must be at least 1 evaluation. Got 0"),
        ({"seed": -1}, r"recipe.seed must be from 0 to 4294967295.* Got -1"),
        ({"seed": 10**5000}, r"recipe.seed must be from 0 to 4294967295.* Got far more"),
        ({"workers": -1}, r"recipe.workers must be from 0 to 1024. Got -1"),
        (clip_fields(3), r"model.config.clip_config must be a mapping. Got 3"),
        (clip_fields({"text_config": None}), r"clip_config.text_config must be a mapping. Got None"),
        ({"model": {"preset": "tinny", "tokenizer": "refshapes"}}, r"Unknown preset 'tinny', .*: did you mean `tiny`"),
        (config_fields(fusion_layers="abc"), r"model.config.fusion_layers must be an integer. Got 'abc'"),
        (config_fields(bridge_layers=[0, "1"]), r"model.config.bridge_layers\[1\] must be an integer. Got '1'"),
        (config_fields(score="foo"), r"model.config: `score` must be one of \['head', 'similarity'\]. Got 'foo'"),
        (two_phases(config={"fusion_dropout": "much"}), r"config.fusion_dropout must be a number .*Got 'much'"),
        (train_rows(size=-3), r"data.train.size is the number of rows and must be at least 1. Got -3"),
        (train_rows(size="abc"), r"data.train.size must be an integer. Got 'abc'"),
        (train_rows(seed=1.5), r"data.train.seed must be an integer. Got 1.5"),
        (train_rows(seed=-1), r"data.train: a RefShapes seed is 0 or more, got -1"),
        (train_rows(split="trian"), r"data.train: unknown RefShapes split 'trian'"),
        (train_rows(masks="yes"), r"data.train.masks must be true or false. Got 'yes'"),
        (train_rows(no_target_fraction=2), r"data.train: no_target_fraction is a share between 0 and 1, got 2"),
        (train_rows(source="rows.csv", holdout="half"), r"data.train.holdout must be a number or empty. Got 'half'"),
        (train_rows(source="refcoco", on_error="ignore"), r"data.train.on_error must be one of 'raise', 'skip'"),
        ({"phases": phase(learning_rate=None)}, r"phases\[0\].learning_rate must be a number. Got None"),
    ],
)
def test_what_is_wrong_is_said(changes, message):
    with pytest.raises(ValueError, match=message):
        parse_recipe(recipe(**changes))


# Everything here was accepted, ignored, or found after the first phase had trained.
MISSPELT = [
    ({"model": {**recipe()["model"], "config": {"fusion_layer": 2}}}, "fusion_layer", "fusion_layers"),
    ({"model": {"checkpoint": "x", "config": {"fusion_dropuot": 0.3}}}, "fusion_dropuot", "fusion_dropout"),
    ({"model": {"checkpoint": "x", "config": {"loss_weights": {"giuo": 1}}}}, "giuo", "giou"),
    (two_phases(config={"bridge_layer": [0]}), "bridge_layer", "bridge_layers"),
    (two_phases(loss_weights={"giuo": 2.0}), "giuo", "giou"),
    (two_phases(augmentation={"jiter": 0.1}), "jiter", "jitter"),
    (two_phases(data={**ROWS, "sise": 16}), "sise", "size"),
    (two_phases(train="assisted", options={"tower": False}), "tower", "towers"),
    (two_phases(train="assisted", options={"loss_weights": {"attribute": 1}}), "attribute", "attributes"),
    (two_phases(train="pretrain", options={"loss_weight": {}}), "loss_weight", "loss_weights"),
    (two_phases(weight_dekay=0.1), "weight_dekay", "weight_decay"),
    ({"defaults": {"weight_dekay": 0.1}, **two_phases()}, "weight_dekay", "weight_decay"),
    ({"data": {"train": ROWS, "augmentation": {"jiter": 0.1}}}, "jiter", "jitter"),
    ({"data": {"train": {**ROWS, "sise": 16}}}, "sise", "size"),
    ({"data": {"train": ROWS, "validation": {**ROWS, "seeed": 1}}}, "seeed", "seed"),
    ({"data": {"train": ROWS, "tests": {"x": {**ROWS, "style_": 1}}}}, "style_", "style"),
    ({"data": {"defaults": {"sise": 16}, "train": ROWS}}, "sise", "size"),
    ({"data": {"train": {"source": "refcoco", "split": "val", "roott": "/x"}}}, "roott", "root"),
    ({"data": {"train": {"source": "rows.csv", "split": "val", "box_fromat": "xyxy"}}}, "box_fromat", "box_format"),
    ({"data": {"train": {"source": "unc", "split": "val", "multi_targets": 1}}}, "multi_targets", "multi_target"),
    ({"data": {"train": {"source": "mixture", "split": "val", "parts": [], "sized": 3}}}, "sized", "size"),
    ({"data": {"train": {"source": "mixture", "split": "train", "parts": [{**ROWS, "sise": 3}]}}}, "sise", "size"),
    (clip_fields({"vision_confg": {}}), "vision_confg", "vision_config"),
    (clip_fields({"vision_config": {"hidden_siz": 3}}), "hidden_siz", "hidden_size"),
    (clip_fields({"text_config": {"num_hiden_layers": 3}}), "num_hiden_layers", "num_hidden_layers"),
    ({"hilora": {"mod": "additive"}}, "mod", "mode"),
    ({"hilora": {"lora_options": {"use_rslra": True}}}, "use_rslra", "use_rslora"),
]  # fmt: skip


@pytest.mark.parametrize("parts", [3.5, [["refshapes"]], [{**ROWS}, 2.0], {"source": "refshapes"}])
def test_parts_of_a_mixture_that_are_no_descriptions_of_rows_are_refused(parts, tmp_path):
    content = {"data": {"train": {"source": "mixture", "split": "train", "parts": parts}}}
    with pytest.raises(ValueError, match=r"parts must be a list of descriptions of rows, each with a `source`\. Got"):
        parse_recipe(recipe(**content))


@pytest.mark.parametrize(
    ("changes", "key", "nearest"), MISSPELT, ids=[f"{key}-{n}" for n, (_, key, _) in enumerate(MISSPELT)]
)
def test_a_misspelt_key_is_refused_at_any_depth_with_the_nearest_known_one(changes, key, nearest, tmp_path):
    message = rf"Unknown key `{key}` in .*: did you mean `{nearest}`\?"
    with pytest.raises(ValueError, match=message):
        parse_recipe(recipe(**changes))
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(**changes)))
    with pytest.raises(ValueError, match=message):
        load_recipe(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (two_phases(rank=99, alpha=3), r"Phase 'b' trains heads, which does not read `rank`: omit it, or train lora"),
        (two_phases(alpha=3), r"does not read `alpha`"),
        (two_phases(vision_layers=2), r"does not read `vision_layers`"),
        (two_phases(options={"foo": 1}), r"does not read `options`: omit it, or train pretrain or assisted"),
        (two_phases(train="pretrain", augmentation={"jitter": 0.1}), r"trains pretrain, .* read `augmentation`"),
        (two_phases(train="pretrain", loss_weights={"giou": 1}), r"trains pretrain, .* read `loss_weights`"),
        ({**two_phases(), "hilora": {"mode": "progressive"}}, r"No phase trains lora, so `hilora` is not read"),
        (two_phases(early_stop=3), r"`early_stop` of phase 'b' needs `data.validation`, which is missing"),
        (two_phases(loss_weights={"giou": -1}), r"loss_weights.giou must be a finite number of at least 0. Got -1"),
        (two_phases(loss_weights={"giou": "2"}), r"loss_weights.giou must be a finite number of at least 0. Got '2'"),
        (two_phases(augmentation={"crop_sides": [700, 800]}), r"augmentation: crop_sides=\(700, 800\) begins above"),
        (two_phases(betas=[0.9]), r"`betas` must be two numbers from 0 to below 1. Got \[0.9\]"),
        (two_phases(data={"split": "train"}), r"Phase 'b', data needs `source` and `split`"),
    ],
)
def test_what_does_not_apply_or_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        parse_recipe(recipe(**changes))


def test_shared_keys_reach_the_phases_that_read_them():
    content = recipe()
    content["defaults"] = {**content["defaults"], "rank": 4, "loss_weights": {"giou": 1.0}}
    heads, lora = parse_recipe(content).phases
    assert lora.rank == 4
    assert not hasattr(heads, "rank")
    assert heads.loss_weights == lora.loss_weights == {"giou": 1.0}


def test_a_recipe_written_out_in_full_is_read_again():
    parsed = parse_recipe(recipe())
    assert parse_recipe(parsed.to_dict()) == parsed


def test_nothing_trains_after_adapters():
    phases = [
        *phase(name="s", train="lora", vision_layers=1, text_layers=1),
        *phase(name="h"),
    ]
    with pytest.raises(ValueError, match=r"`lora` phases come last.* Got \['lora', 'heads'\]"):
        parse_recipe(recipe(phases=phases))


def test_a_file_that_is_not_there_or_not_yaml(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No recipe at .*nowhere.yaml"):
        load_recipe(tmp_path / "nowhere.yaml")
    path = tmp_path / "broken.yaml"
    path.write_text("name: [")
    with pytest.raises(ValueError, match=r"broken.yaml is not valid YAML"):
        load_recipe(path)
    path.write_text("- 1")
    with pytest.raises(ValueError, match=r"must hold a mapping with the keys of a recipe. Got list"):
        load_recipe(path)


def test_environment_variables_are_filled_in_or_asked_for(monkeypatch):
    content = recipe(model={"checkpoint": "${HIVG_TEST_FOLDER}/model"})
    monkeypatch.setenv("HIVG_TEST_FOLDER", "/somewhere")
    assert parse_recipe(content).model.checkpoint == "/somewhere/model"
    monkeypatch.delenv("HIVG_TEST_FOLDER")
    with pytest.raises(ValueError, match=r"recipe.model.checkpoint uses the environment variable HIVG_TEST_FOLDER"):
        parse_recipe(content)


# (per-GPU batch, epochs, learning rate) of stage 0 and stages 1 to 3, from the official training scripts
SINGLE_BASE = [(80, 60, 2.5e-4), (60, 20, 1e-4), (60, 20, 5e-5), (40, 20, 2.5e-5)]
SINGLE_LARGE = [(32, 10, 2.5e-4), (32, 60, 2.5e-4), (32, 10, 1e-4), (32, 10, 5e-5), (32, 10, 2.5e-5)]
PUBLISHED = {
    **{f"{name}-base": SINGLE_BASE for name in ("refcoco", "refcoco-plus", "refcocog-umd", "referit")},
    **{f"{name}-large": SINGLE_LARGE for name in ("refcoco", "refcoco-plus", "refcocog-umd")},
    "referit-large": [(32, 5, 2.5e-4), *SINGLE_LARGE[1:]],
    "flickr30k-base": [(80, 30, 2.5e-4), (60, 5, 1e-4), (60, 5, 5e-5), (60, 5, 2.5e-5)],
    "flickr30k-large": [(32, 10, 2.5e-4), (32, 30, 2.5e-4), (32, 5, 1e-4), (32, 5, 5e-5), (32, 5, 2.5e-5)],
    "mixed-base": [(64, 60, 2.5e-4), (64, 20, 1e-4), (64, 20, 5e-5), (64, 20, 2e-5)],
    "mixed-large": [(32, 10, 2.5e-4), (32, 30, 2.5e-4), (32, 10, 1e-4), (32, 10, 5e-5), (32, 10, 2e-5)],
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_setting_has_its_recipe(name, monkeypatch):
    monkeypatch.setenv("HIVG_DATA", "/data")
    monkeypatch.setenv("HIVG_CLIP", "/weights")
    parsed = load_recipe(RECIPES / f"{name}.yaml")
    found = [(p.batch_size, p.per_device_batch_size, p.epochs, p.learning_rate) for p in parsed.phases]
    assert found == [(batch * GPUS, batch, epochs, rate) for batch, epochs, rate in PUBLISHED[name]]
    assert [p.vision_layers for p in parsed.phases if p.train == "lora"] == [5, 8, 12]
    assert parsed.hilora_config().mode == "progressive"
    assert all(p.schedule == "cosine_by_epoch" and p.decay_all and p.weight_decay == 1e-4 for p in parsed.phases)


def test_accelerate_configurations_start_what_they_say():
    files = {path.stem: yaml.safe_load(path.read_text()) for path in (RECIPES / "accelerate").glob("*.yaml")}
    assert sorted(files) == ["deepspeed_zero2", "fsdp2", "multi_cpu", "multi_gpu", "multi_machine", "one_process"]
    assert files["multi_cpu"]["use_cpu"] is True
    assert files["multi_cpu"]["distributed_type"] == "MULTI_GPU"  # MULTI_CPU would start one process in silence
    assert files["fsdp2"]["fsdp_config"]["fsdp_version"] == 2
    assert files["deepspeed_zero2"]["deepspeed_config"]["zero_stage"] == 2
    assert files["multi_machine"]["num_machines"] == 2


@pytest.mark.parametrize("name", ["../../..", "/tmp", "a/b", "a\\b", "a\0", "..", "", "nul"])
def test_names_that_leave_the_run_folder_are_refused(name):
    rows = {"source": "refshapes", "split": "val"}
    train = {"source": "refshapes", "split": "train"}
    for changes, what in (
        ({"phases": phase(name=name)}, "Phase"),
        ({"name": name}, "Recipe"),
        ({"data": {"train": train, "tests": {name: rows}}}, "Test"),
        ({"phases": phase(name=name, train="lora", vision_layers=1, text_layers=1)}, "Phase"),
    ):
        with pytest.raises(ValueError, match=f"{what} name .* cannot name a file or folder"):
            parse_recipe(recipe(**changes))


def test_a_test_does_not_take_the_place_of_the_validation_rows():
    rows = {"source": "refshapes", "split": "val"}
    with pytest.raises(ValueError, match=r"data\.tests may not be named `validation`"):
        parse_recipe(recipe(data={"train": rows, "validation": rows, "tests": {"validation": rows}}))


def test_a_loss_term_from_outside_needs_a_name_that_somebody_offers(monkeypatch, tmp_path):
    from hivg_hf.modeling import loss_hivg
    from hivg_hf.utils.plugins import allowing_code

    monkeypatch.setattr(loss_hivg, "EXTRA_LOSSES", {})
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "my_losses.py").write_text(
        "def distance(outputs, targets, config):\n    return outputs['pred_boxes'].sum()\n"
    )
    asked = recipe(**two_phases(loss_weights={"my_losses:distance": 0.5}))
    with pytest.raises(ValueError, match="as a loss term would import and run code of that module"):
        parse_recipe(asked)
    with allowing_code():
        assert parse_recipe(asked).phases[1].loss_weights == {"my_losses:distance": 0.5}
    assert "my_losses:distance" in loss_hivg.EXTRA_LOSSES
    in_config = {
        **recipe(**two_phases()),
        "model": {"checkpoint": "x", "config": {"loss_weights": {"my_losses:distance": 1.0}}},
    }
    with pytest.raises(ValueError, match=r"Unknown key `my_losses:distance` in model.config.loss_weights"):
        parse_recipe(in_config)


def stages(**changes):
    """A recipe's content with two stages; `changes` go to `hilora`, or to the second stage."""
    stage = {"train": "lora", "steps": 1, "learning_rate": 1e-3, "batch_size": 4, "text_layers": 1}
    own = changes.pop("hilora", {})
    return {
        "name": "r",
        "model": {"checkpoint": "x"},
        "data": {"train": {"source": "refshapes", "split": "train"}},
        "hilora": own,
        "phases": [
            {**stage, "name": "one", "vision_layers": 1},
            {**stage, "name": "two", "vision_layers": 2, **changes},
        ],
    }


def test_methods_are_values_of_a_recipe():
    recipe = parse_recipe(
        stages(
            hilora={"order": "deep_to_shallow", "targets": "all-linear", "schedule": "shared"},
            coto={},
            loraplus_ratio=16,
        )
    )
    config = recipe.hilora_config()
    assert (config.order, len(config.targets)) == ("deep_to_shallow", 6)
    assert (recipe.phases[1].coto.initial, recipe.phases[1].coto.until) == (0.1, 0.75)
    assert recipe.phases[1].loraplus_ratio == 16
    assert recipe.to_dict()["phases"][1]["coto"] == {"initial": 0.1, "until": 0.75}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"hilora": {"order": "deep"}},
            r"hilora.order must be one of 'shallow_to_deep', 'deep_to_shallow'. Got 'deep'",
        ),
        ({"hilora": {"schedule": "one"}}, r"hilora.schedule must be one of 'restart', 'shared'. Got 'one'"),
        ({"hilora": {"targets": "linear"}}, r"targets must be one of attention, mlp, all-linear.* Got 'linear'"),
        ({"hilora": {"schedule": "shared"}, "warmup": 3}, r"`shared`, so .* same `schedule` and `warmup`. Got cosine"),
        ({"loraplus_ratio": 0.5}, r"Phase 'two': `loraplus_ratio` must be at least 1. Got 0.5"),
        ({"coto": {"until": 2}}, r"CoTo needs `initial` from 0 to 1 and `until` above 0 and at most 1. Got 0.1 and 2"),
        ({"coto": {"untill": 1}}, r"Unknown key `untill` in .*coto: did you mean `until`\?"),
        ({"coto": True}, r"coto must be a mapping or empty. Got True"),
    ],
)
def test_methods_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        parse_recipe(stages(**changes))


@pytest.mark.parametrize("key", ["coto", "loraplus_ratio"])
def test_what_needs_low_rank_terms_is_refused_elsewhere(key):
    content = stages()
    content["phases"][0] = {
        "name": "one",
        "train": "heads",
        "steps": 1,
        "learning_rate": 1e-3,
        "batch_size": 4,
        key: {},
    }
    with pytest.raises(ValueError, match=rf"trains heads, which does not read `{key}`: omit it, or train lora"):
        parse_recipe(content)
