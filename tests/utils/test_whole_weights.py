"""A model or adapter that is not whole is refused by name, wherever it is opened."""

import copy
import json
import math
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModel, CLIPModel, pipeline
from typer.testing import CliRunner

from hivg_hf import TINY_CHECKPOINT, HiVGForVisualGrounding
from hivg_hf.cli import app
from hivg_hf.evaluation.sources import open_model
from hivg_hf.hilora import HiLoraConfig, load_stages, publish_stages, start_stage
from hivg_hf.hilora.options import check_patterns
from hivg_hf.hub import load_with_stages
from hivg_hf.inference import answer_as_json, load_pipeline
from hivg_hf.training.model_start import load_growing
from hivg_hf.utils.whole_weights import load_whole


def change_weights(folder, change, file="model.safetensors"):
    state = load_file(folder / file)
    change(state)
    save_file(state, folder / file, metadata={"format": "pt"})


def drop_a_third(state):
    for name in sorted(state)[::3]:
        del state[name]


def rename_one(state):
    state["clip.vision_model.strange.weight"] = state.pop("clip.visual_projection.weight")


def cut_one(state):
    state["clip.visual_projection.weight"] = state["clip.visual_projection.weight"][:, :-1].contiguous()


def one_nan(state):
    state["clip.visual_projection.weight"][0, 0] = float("nan")


def all_nan(state):
    for tensor in state.values():
        tensor.fill_(float("nan"))


def one_infinite(state):
    state["grounding_head.reg_token.weight"].view(-1)[0] = float("-inf")


BROKEN = [
    (drop_a_third, r"\d+ missing \(.*, .*, .*, \.\.\.\)"),
    (rename_one, r"1 missing \(clip\.visual_projection\.weight\), 1 not expected \(clip\.vision_model\.strange"),
    (cut_one, r"1 of another shape \(clip\.visual_projection\.weight \(16, 15\) for \(16, 16\)\)"),
    (one_nan, r"1 of \d+ hold NaN or infinite values in float32 \(clip\.visual_projection\.weight\)"),
    (all_nan, r"hold NaN or infinite values in float32 \(.*, .*, .*, \.\.\.\)"),
    (one_infinite, r"1 of \d+ hold NaN or infinite values in float32 \(grounding_head\.reg_token\.weight\)"),
]
OPENERS = {
    "load_pipeline": lambda folder: load_pipeline(folder, "cpu"),
    "load_pipeline with trust": lambda folder: load_pipeline(folder, "cpu", trust_remote_code=True),
    "load_with_stages": lambda folder: load_with_stages(str(folder)),
    "evaluate": lambda folder: open_model(str(folder)),
    "training": lambda folder: load_growing(folder, {}),
}


@pytest.fixture
def copied(tiny_checkpoint, tmp_path):
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))


@pytest.mark.parametrize(("change", "message"), BROKEN, ids=lambda value: getattr(value, "__name__", ""))
def test_every_way_of_opening_refuses_a_model_that_is_not_whole(change, message, copied):
    for opener in OPENERS.values():
        opener(copied)
    change_weights(copied, change)
    for name, opener in OPENERS.items():
        with pytest.raises(ValueError, match=message) as caught:
            opener(copied)
        assert "\n" not in str(caught.value), name


def test_ground_answers_nothing_with_such_a_model(copied, tmp_path):
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.png")
    arguments = ["ground", str(tmp_path / "a.png"), "the red star", "--json", "--no-pictures", "--device", "cpu"]
    assert CliRunner().invoke(app, [*arguments, "--model", str(copied)]).exit_code == 0
    for change in (drop_a_third, all_nan):
        broken = Path(shutil.copytree(copied, tmp_path / change.__name__))
        change_weights(broken, change)
        done = CliRunner().invoke(app, [*arguments, "--model", str(broken)])
        assert done.exit_code == 2
        assert done.output.splitlines()[-1].startswith(f"hivg: The weights of {broken}")
        assert '"box"' not in done.output


def test_pickled_weights_alone_are_named_and_never_opened(copied):
    torch.save(load_file(copied / "model.safetensors"), copied / "pytorch_model.bin")
    (copied / "model.safetensors").unlink()
    for opener in OPENERS.values():
        with pytest.raises(FileNotFoundError, match=r"no model\.safetensors, and pickled .* \(pytorch_model\.bin\)"):
            opener(copied)
    (copied / "pytorch_model.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors\.$"):
        load_pipeline(copied)


@pytest.mark.parametrize("damage", [lambda data: data[:-7], lambda data: b"\xff" * 8 + data[8:], lambda data: b""])
def test_damaged_files_are_named(damage, copied):
    (copied / "model.safetensors").write_bytes(damage((copied / "model.safetensors").read_bytes()))
    for opener in OPENERS.values():
        with pytest.raises(ValueError, match=r"The weights of .*model are damaged"):
            opener(copied)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("num_queries", 10**9, r"num_queries must be between 1 and 1,000, got 1,000,000,000\."),
        ("num_queries", "6", r"Field 'num_queries' expected int, got str \(value: '6'\)\."),
        ("num_queries", [1] * 2000, r"Field 'num_queries' expected int, got list .{500,600} \.\.\.\."),
        ("score_threshold", "0.5", r"Field 'score_threshold' with value '0\.5' doesn't match any type in .*\)\."),
        ("score_threshold", float("nan"), r"`score_threshold` must be a score, 0 to 1, or None\. Got nan\."),
    ],
)
def test_a_config_that_cannot_be_used_is_told_in_its_own_words(field, value, said, copied):
    content = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**content, field: value}))
    with pytest.raises(ValueError, match=rf"cannot be opened, since its config\.json cannot be used: {said}$"):
        load_pipeline(copied)


@pytest.mark.parametrize(
    ("file", "keys", "value"),
    [
        ("processor_config.json", ("image_processor", "image_processor_type"), "Evil"),
        ("config.json", ("model_type",), "hivg2"),
    ],
)
def test_code_that_a_folder_asks_for_is_neither_run_nor_asked_about(file, keys, value, copied, monkeypatch):
    content = json.loads((copied / file).read_text())
    place = content
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    (copied / file).write_text(json.dumps(content))
    asked = []
    monkeypatch.setattr("builtins.input", lambda *words: asked.append(words) or "y")
    with pytest.raises(ValueError, match="asks for code of its own, and none was run: pass trust_remote_code=True"):
        load_pipeline(copied)
    assert asked == []


def test_a_growing_model_may_have_new_bridges_but_whole_clip_weights(copied, tiny_config):
    grown = load_growing(copied, {"bridge_layers": [0, 1, 3]})
    assert grown.config.bridge_layers == [0, 1, 3]
    with pytest.raises(ValueError, match=r"missing \(.*bridge"):
        open_model(str(copied), overrides={"bridge_layers": [0, 1, 3]})  # would measure random weights
    change_weights(copied, rename_one)
    with pytest.raises(ValueError, match=r"1 missing \(clip\.visual_projection\.weight\)"):
        load_growing(copied, {"bridge_layers": [0, 1, 3]})


def test_from_clip_starts_new_heads_as_before(tiny_config, tmp_path):
    CLIPModel(tiny_config.clip_config).save_pretrained(tmp_path)
    assert HiVGForVisualGrounding.from_clip(tmp_path, image_size=64, bridge_layers=[1]).config.bridge_layers == [1]


def test_weights_beyond_the_range_of_a_type_are_named_with_it(copied):
    change_weights(copied, lambda state: state["clip.visual_projection.weight"].fill_(1e5))
    load_pipeline(copied, "cpu", "bfloat16")
    with pytest.raises(ValueError, match=r"infinite values in float16 .* or load in float32"):
        load_pipeline(copied, "cpu", "float16")


def test_answers_that_json_cannot_hold_are_refused():
    box = {"xmin": 0.0, "ymin": 1.0, "xmax": float("nan"), "ymax": 2.0}
    with pytest.raises(ValueError, match=r"answer to 'a star' is not finite .* load it in float32"):
        answer_as_json({"expression": "a star", "box": box, "score": 0.5})
    with pytest.raises(ValueError, match=r"not finite"):
        answer_as_json({"expression": "a star", "box": {**box, "xmax": 3.0}, "score": float("inf")})
    assert answer_as_json({"expression": "a", "box": {**box, "xmax": 3.0}, "score": None})["score"] is None


# ---- adapters ----


@pytest.fixture(scope="module")
def published(tiny_model, tiny_processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    torch.manual_seed(0)
    config = HiLoraConfig.for_model(tiny_model.config, 2, rank=2)
    model = copy.deepcopy(tiny_model)
    for stage in (1, 2):
        model = start_stage(model, config, stage)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.05 * torch.randn_like(parameter))
    publish_stages(model.eval(), folder, "stage_2", tiny_processor)
    return folder


@pytest.fixture
def run(published, tmp_path):
    """A copy whose export names the base beside it."""
    folder = Path(shutil.copytree(published, tmp_path / "run"))
    name_base(folder / "exports" / "stage_2", folder / "base")
    return folder


def name_base(adapter, base, **more):
    path = adapter / "adapter_config.json"
    content = {**json.loads(path.read_text()), "base_model_name_or_path": None if base is None else str(base), **more}
    path.write_text(json.dumps(content))


def rename_all(state):
    for name in list(state):
        state[name.replace("q_proj", "query")] = state.pop(name)


def drop_first(state):
    del state[min(state)]


def add_one(state):
    state["base_model.model.clip.extra.lora_A.weight"] = torch.ones(2, 16)


def cut_first(state):
    state[min(state)] = state[min(state)][..., :-1].contiguous()


def nan_first(state):
    state[min(state)].view(-1)[0] = float("nan")


def drop_all(state):
    state.clear()
    state["strange"] = torch.ones(1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename_all, r"missing \(.*q_proj.*\), \d+ not expected \(.*query"),
        (drop_first, r"1 missing \("),
        (add_one, r"1 not expected \(base_model\.model\.clip\.extra\.lora_A\.weight\)"),
        (cut_first, r"1 of another shape \("),
        (nan_first, r"1 of \d+ hold NaN or infinite values"),
        (drop_all, r"missing \(.*, \.\.\.\), 1 not expected \(strange\)"),
    ],
)
def test_adapters_that_do_not_fit_are_refused_before_they_are_merged(change, message, run):
    adapter, export = run / "adapters" / "stage_2", run / "exports" / "stage_2"
    load_with_stages(str(run / "base"), [str(run / "adapters" / "stage_1"), str(adapter)])
    load_with_stages(str(export))
    for folder in (adapter, export):
        change_weights(folder, change, "adapter_model.safetensors")
    for opener in (
        lambda: load_with_stages(str(run / "base"), [str(run / "adapters" / "stage_1"), str(adapter)]),
        lambda: load_with_stages(str(export)),
        lambda: load_pipeline(export, "cpu"),
        lambda: load_stages(run),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            opener()
        assert "\n" not in str(caught.value)


def test_an_adapter_opens_as_the_merged_model(run, tiny_processor):
    image = Image.new("RGB", (60, 40), "white")
    found = [load_pipeline(run / part, "cpu")(image, "the red star") for part in ("merged", "exports/stage_2")]
    for side, value in found[0]["box"].items():
        assert found[1]["box"][side] == pytest.approx(value, abs=1e-4)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_adapters_that_are_their_own_base_are_refused(length, run, tmp_path):
    ring = [
        Path(shutil.copytree(run / "exports" / "stage_2", tmp_path / f"ring-{number}")) for number in range(length)
    ]
    for number, folder in enumerate(ring):
        name_base(folder, ring[(number + 1) % length])
    for opener in (load_with_stages, load_pipeline):
        with pytest.raises(ValueError, match=r"The adapter .*ring-0 is its own base .*: name a model in"):
            opener(str(ring[0]))


def test_an_adapter_that_lies_in_its_own_base_s_place_is_found_under_any_name(run, tmp_path):
    (tmp_path / "link").symlink_to(run / "exports" / "stage_2")
    name_base(run / "exports" / "stage_2", tmp_path / "link")
    with pytest.raises(ValueError, match="is its own base"):
        load_with_stages(str(run / "exports" / "stage_2"))


def test_adapters_on_adapters_are_followed_to_the_model(run, tiny_model, tmp_path):
    """Two exports that each hold bridge and head: the chain ends at the model, and both are read."""
    name_base(run / "adapters" / "stage_1", run / "base")
    name_base(run / "adapters" / "stage_2", run / "adapters" / "stage_1")
    chained, _ = load_with_stages(str(run / "adapters" / "stage_2"))
    merged = load_whole(HiVGForVisualGrounding, run / "merged")
    for name, tensor in merged.state_dict().items():
        torch.testing.assert_close(chained.state_dict()[name], tensor, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init_lora_weights": "pissa"}, r"init_lora_weights='pissa'"),
        ({"megatron_config": {"a": 1}, "megatron_core": "this"}, r"megatron_c"),
        ({"use_something_new": True}, r"`use_something_new`, which peft\.LoraConfig does not take"),
        ({"peft_type": None}, r"cannot be put on this model|is not a config of an adapter"),
        ({"peft_type": "NEW"}, r"cannot be put on this model"),
        ({"target_modules": ["nothing"]}, r"cannot be put on this model: No modules were targeted for adaptation"),
        ({"target_modules": "("}, r"cannot be put on this model"),
        ({"r": 3}, r"of another shape \("),
        ({"lora_alpha": math.nan}, r"numbers that are not finite \(lora_alpha\)"),
        ({"alpha_pattern": {"q_proj": math.inf}}, r"numbers that are not finite \(alpha_pattern\)"),
    ],
)
def test_adapters_with_options_that_are_not_exact_are_refused(options, message, run):
    export = run / "exports" / "stage_2"
    name_base(export, run / "base", **options)
    with pytest.raises(ValueError, match=message):
        load_with_stages(str(export))


@pytest.mark.parametrize(
    "options", [{"target_modules": "(.*)*!"}, {"exclude_modules": "(.*)*!"}, {"rank_pattern": {"(.*)*!": 3}}]
)
def test_patterns_that_never_end_are_refused(options, run, monkeypatch):
    monkeypatch.setattr("hivg_hf.hilora.loading.check_patterns", partial(check_patterns, seconds=1))
    export = run / "exports" / "stage_2"
    name_base(export, run / "base", **options)
    with pytest.raises(ValueError, match=r"regular expressions \(.*!.*\) take more than 1 seconds"):
        load_with_stages(str(export))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("patch_size", 4, r"makes patches of side 4, and its model reads \d+"),
        ("size", {"height": 32, "width": 32}, r"makes squares of side 32, and its model reads \d+"),
    ],
)
def test_a_processor_of_another_model_is_refused(name, value, message, copied):
    path = copied / "processor_config.json"
    content = json.loads(path.read_text())
    assert content["image_processor"][name] != value
    content["image_processor"][name] = value
    path.write_text(json.dumps(content))
    for opener in (load_with_stages, load_pipeline):
        with pytest.raises(ValueError, match=message):
            opener(str(copied))


def test_a_tokenizer_of_another_model_is_refused(copied, tiny_processor):
    tokenizer = copy.deepcopy(tiny_processor.tokenizer)
    tokenizer.add_tokens([f"word{number}" for number in range(2000)])
    tokenizer.save_pretrained(copied)
    with pytest.raises(ValueError, match=r"has \d+ tokens, and its model knows \d+"):
        load_with_stages(str(copied))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tokenizer: cut_vocabulary(tokenizer, 200), r"has 200 tokens, and its model knows \d+"),
        (
            lambda tokenizer: setattr(tokenizer, "eos_token", tokenizer.convert_ids_to_tokens(5)),
            r"has the eos_token_id \d+, and its model \d+",
        ),
        (
            lambda tokenizer: setattr(tokenizer, "bos_token", tokenizer.convert_ids_to_tokens(5)),
            r"has the bos_token_id \d+, and its model \d+",
        ),
    ],
)
def test_a_smaller_tokenizer_or_one_with_other_special_tokens_is_refused(change, message):
    pipe = load_pipeline(TINY_CHECKPOINT)
    tokenizer = copy.deepcopy(pipe.tokenizer)
    change(tokenizer)
    with pytest.raises(ValueError, match=message):
        pipeline("visual-grounding", model=pipe.model, tokenizer=tokenizer, image_processor=pipe.image_processor)


def cut_vocabulary(tokenizer, length):
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    words = sorted(content["model"]["vocab"], key=content["model"]["vocab"].get)[:length]
    content["model"].update(vocab={word: number for number, word in enumerate(words)}, merges=[])
    content["added_tokens"] = []
    tokenizer._tokenizer = type(tokenizer.backend_tokenizer).from_str(json.dumps(content))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "[" * 100_000, r"nested too deeply"),
        ("config.json", '{"model_type": "hivg", "model_type": "hivg"}', r"the key 'model_type' stands twice"),
        ("tokenizer_config.json", "[" * 100_000, r"nested too deeply"),
        ("processor_config.json", "[" * 100_000, r"nested too deeply"),
    ],
)
def test_settings_that_say_two_things_or_never_end_are_one_sentence(name, content, message, copied):
    (copied / name).write_text(content)
    for opener in (load_with_stages, load_pipeline):
        with pytest.raises(ValueError, match=message) as caught:
            opener(str(copied))
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("shard", ["../outside.safetensors", "/outside.safetensors", "a/b.safetensors", "x.bin", 3])
def test_an_index_names_weights_beside_it_alone(shard, copied):
    weights = load_file(copied / "model.safetensors")
    (copied.parent / "outside.safetensors").write_bytes((copied / "model.safetensors").read_bytes())
    (copied / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, shard)}
    (copied / "model.safetensors.index.json").write_text(json.dumps(index))
    for opener in OPENERS.values():
        with pytest.raises(ValueError, match=r"which is not a shard such as model-00001-of-00002\.safetensors"):
            opener(copied)


def test_an_option_of_a_newer_peft_that_is_off_changes_nothing(run):
    name_base(run / "exports" / "stage_2", run / "base", use_something_new=False)
    load_with_stages(str(run / "exports" / "stage_2"))


@pytest.mark.parametrize("base", [None, "", 5])
def test_an_adapter_without_a_base_is_named(base, run):
    export = run / "exports" / "stage_2"
    name_base(export, None, base_model_name_or_path=base)
    with pytest.raises(ValueError, match=r"names no base"):
        load_with_stages(str(export))


def test_an_adapter_whose_base_is_gone_is_named(run):
    shutil.rmtree(run / "base")
    with pytest.raises(FileNotFoundError, match=r"stage_2 belongs to the model .*base, which is not there"):
        load_pipeline(run / "exports" / "stage_2")


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"position": "1", "bridge_and_head_sha256": "x"}', "[" * 100_000]
)
def test_a_damaged_record_of_a_stage_is_named(content, run):
    (run / "adapters" / "stage_2" / "hilora.json").write_text(content)
    with pytest.raises(ValueError, match=r"stage_2/hilora\.json does not say which stage the adapter is"):
        load_stages(run)


def test_a_stage_s_folder_does_not_take_the_name_of_a_part_of_the_model(run):
    (run / "adapters" / "stage_2").rename(run / "adapters" / "clip")
    with pytest.raises(ValueError, match="Stage name 'clip' stands for something else"):
        load_stages(run)


def test_plain_transformers_and_peft_still_read_what_is_published(run):
    PeftModel.from_pretrained(AutoModel.from_pretrained(run / "base"), run / "exports" / "stage_2")
