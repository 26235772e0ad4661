"""Tuners of the installed PEFT that fit linear layers train, save, reload and merge, as docs/peft.md says."""

import copy
import functools
import importlib.util
import tempfile
from pathlib import Path

import peft
import pytest
import torch
from packaging.version import Version
from peft import PeftModel
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from helpers.peft_tuners import (
    NOT_FOR_LAYERS,
    OPTIONS,
    TOLERANCE,
    small_batch,
    small_model,
    table,
    try_tuner,
    tuner_names,
)
from hivg_hf.hilora import add_tuner, load_adapter_state, save_adapter_state, tuner_config
from hivg_hf.hilora.config import TARGET_SETS
from hivg_hf.hilora.folders import save_export
from hivg_hf.hilora.options import check_patterns
from hivg_hf.hilora.tuners import REFUSED_TUNERS

PAGE = (Path(__file__).parents[2] / "docs" / "peft.md").read_text(encoding="utf-8")
FAST = ["LORA", "IA3", "OFT", "LILY"]


@pytest.fixture(scope="module")
def base():
    return small_model()


def check(name, base):
    outcome = try_tuner(name, base)
    assert outcome.moved > 0
    assert outcome.reload <= TOLERANCE
    assert outcome.merge is None or outcome.merge <= TOLERANCE
    assert table({name: outcome}).splitlines()[2] in PAGE


@pytest.mark.parametrize("name", FAST)
def test_a_tuner_does_what_the_page_says(name, base):
    check(name, base)


def check_as_a_phase(name, base):
    """Trained beside bridge and head: merged, exported onto the base and reloaded from a checkpoint to 1e-6."""
    torch.manual_seed(0)
    config = tuner_config({"peft_type": name, **OPTIONS.get(name, {})}, TARGET_SETS["attention"])
    model = add_tuner(copy.deepcopy(base), config, "mine")
    frozen = {path: value.clone() for path, value in model.get_base_model().clip.named_parameters()
              if value.requires_grad is False and "bridge" not in path}  # fmt: skip
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):
        model.train()(**small_batch()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(torch.equal(dict(model.get_base_model().clip.named_parameters())[path], value)
               for path, value in frozen.items())  # fmt: skip
    trained = boxes(model)
    with model.disable_adapter():
        assert (boxes(model) - trained).abs().max() > 0
    with tempfile.TemporaryDirectory() as folder:
        save_export(model, Path(folder) / "export", base=folder)
        save_adapter_state(model, Path(folder) / "state")
        exported = PeftModel.from_pretrained(copy.deepcopy(base), Path(folder) / "export")
        again = add_tuner(copy.deepcopy(base), config, "mine")
        trains = [parameter.requires_grad for parameter in again.parameters()]
        load_adapter_state(again, Path(folder) / "state")
        assert trains == [parameter.requires_grad for parameter in again.parameters()]
    for other in (exported, again, model.merge_and_unload()):
        assert (boxes(other) - trained).abs().max() <= 1e-6


@torch.no_grad()
def boxes(model):
    return model.eval()(**{key: value for key, value in small_batch().items() if key != "labels"}).pred_boxes


PHASE_TUNERS = [name for name in tuner_names() if name not in (*REFUSED_TUNERS, "LILY", "ADAMSS")]


@pytest.mark.parametrize("name", ["IA3", "OFT", "VERA", "MISS", "RANDLORA"])
def test_a_tuner_trains_as_a_phase(name, base):
    check_as_a_phase(name, base)


@pytest.mark.slow
@pytest.mark.parametrize("name", PHASE_TUNERS)
def test_every_tuner_that_can_be_merged_trains_as_a_phase(name, base):
    check_as_a_phase(name, base)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, r"`peft_type` must be a tuner of PEFT, got None: expected some of: ADALORA"),
        ({"peft_type": "IA4"}, r"got 'IA4': did you mean `IA3`\?"),
        ({"peft_type": "LORA"}, r"LORA cannot be taken: a phase that trains `lora` takes its options"),
        ({"peft_type": "ADALORA"}, r"ADALORA cannot be taken: its ranks change by a call of its own"),
        ({"peft_type": "PREFIX_TUNING"}, r"PREFIX_TUNING is put on no linear layers"),
        ({"peft_type": "OFT", "oft_blok_size": 3}, r"Unknown key `oft_blok_size` in the config of OFT: did you mean"),
        ({"peft_type": "OFT", "modules_to_save": ["x"]}, r"`modules_to_save` is set by the phase"),
        ({"peft_type": "OFT", "r": 8, "oft_block_size": 8}, r"PEFT does not take this config of OFT"),
        ({"peft_type": "LILY"}, r"PEFT cannot merge LILY, and a phase ends with a plain model"),
        (
            {"peft_type": "IA3", "target_modules": ["nothing"], "feedforward_modules": []},
            r"PEFT cannot put IA3 on this",
        ),
        (
            {"peft_type": "OFT", "r": 0, "oft_block_size": 8, "target_modules": ["q_proj"]},
            r"OFT reaches clip.vision_model.encoder.layers.1.bridge.attention.q_proj, and bridge and grounding_head",
        ),
    ],
)
def test_what_cannot_train_as_a_phase_is_refused(content, message, base):
    with pytest.raises(ValueError, match=message):
        add_tuner(copy.deepcopy(base), tuner_config(content), "mine")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in tuner_names() if name not in (*FAST, "ADAMSS")])
def test_every_tuner_does_what_the_page_says(name, base):
    check(name, base)


def test_a_tuner_that_needs_another_package_is_marked(base):
    assert "`ADAMSS` needs the package scikit-learn" in PAGE
    if importlib.util.find_spec("sklearn"):
        return check("ADAMSS", base)
    with pytest.raises(ImportError, match="scikit-learn is required"):
        try_tuner("ADAMSS", base)


def test_the_page_lists_every_tuner_of_the_installed_peft():
    listed = {line.split(" | ")[0].removeprefix("| ") for line in PAGE.splitlines() if line.startswith("| ")}
    known = {kind.value for kind in PEFT_TYPE_TO_CONFIG_MAPPING}
    assert known <= listed
    # the page is written for the pinned PEFT; an older one knows fewer
    assert set(NOT_FOR_LAYERS) <= known or Version(peft.__version__) < Version("0.21")


@pytest.mark.parametrize(
    "fields",
    [
        {"peft_type": "IA3", "feedforward_modules": [], "target_modules": "(.*)*x"},
        {"peft_type": "IA3", "feedforward_modules": "(.*)*x", "target_modules": "clip.*q_proj"},
        {"peft_type": "LOHA", "rank_pattern": {"(.*)*(.*)*x": 2}},
    ],
)
def test_patterns_of_a_tuner_that_never_end_are_refused(fields, monkeypatch):
    monkeypatch.setattr("hivg_hf.hilora.tuners.check_patterns", functools.partial(check_patterns, seconds=1))
    with pytest.raises(ValueError, match=r"its regular expressions .* take more than 1 seconds"):
        add_tuner(small_model(), tuner_config(fields), "mine")


def test_a_pattern_that_is_none_and_a_rank_beyond_any_model_are_refused():
    fields = {"peft_type": "IA3", "feedforward_modules": [], "target_modules": "(["}
    with pytest.raises(ValueError, match="unterminated character set"):
        add_tuner(small_model(), tuner_config(fields), "mine")
    with pytest.raises(ValueError, match="`r` of the tuner VERA may be at most 65,536"):
        tuner_config({"peft_type": "VERA", "r": 10**9})
