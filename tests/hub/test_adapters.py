"""Adapters shared by themselves: what names their base, and the ways to read them."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.hub_client import EXPRESSIONS, PIPELINE, boxes, push, pushed
from helpers.hub_state import Hub
from helpers.interpreter import CodeFailedError, Interpreter
from hivg_hf import HiLoraConfig, start_stage
from hivg_hf.hilora import publish_stages

pytestmark = pytest.mark.xdist_group("hub")

GROUND = """
import torch
found = [model.eval().ground(picture, text, processor) for text in expressions]
result = [list(one["box"].values()) + [one["score"]] for one in found]
"""
WITH_STAGES = (
    "from hivg_hf.hub.loading import load_with_stages\nmodel, processor = load_with_stages(*names)\n" + GROUND
)
AUTO_MODEL = (
    """
from transformers import AutoModel, AutoProcessor
model = AutoModel.from_pretrained(names[0], **options)
processor = AutoProcessor.from_pretrained(names[1], **options)
"""
    + GROUND
)
PEFT = (
    """
from peft import PeftModel
from transformers import AutoModel, AutoProcessor
model = PeftModel.from_pretrained(AutoModel.from_pretrained(names[1], **options), names[0]).merge_and_unload()
processor = AutoProcessor.from_pretrained(names[1], **options)
"""
    + GROUND
)


@pytest.fixture(scope="module")
def trained(tiny_model: Any, tiny_processor: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of two HiLoRA stages, whose terms and whose bridge and head have moved from where they began."""
    model = copy.deepcopy(tiny_model)
    config = HiLoraConfig.for_model(model.config, stages=2, rank=2, alpha=4)
    generator = torch.Generator().manual_seed(0)
    for stage in (1, 2):
        model = start_stage(model, config, stage)
        with torch.no_grad():
            for parameter in filter(lambda p: p.requires_grad, model.parameters()):
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    folder = tmp_path_factory.mktemp("trained")
    publish_stages(model.eval(), folder, "stage_2", tiny_processor)
    return folder


@pytest.fixture
def shared(hub: Hub, home: Interpreter, trained: Path) -> dict[str, str]:
    """Repositories of a base, of each stage, and of both stages as one export, pinned to the base's commit."""
    pushed(home, trained / "base", "alice/base")
    commit = hub.repositories["alice/base"].head.oid
    for name in ("stage_1", "stage_2"):
        pushed(home, trained / "adapters" / name, f"alice/{name}", "--base", "alice/base")
    pushed(home, trained / "exports" / "stage_2", "alice/export", "--base", f"alice/base@{commit}")
    return {"commit": commit}


def ground(process: Interpreter, code: str, picture: str, *names: Any, **options: Any) -> torch.Tensor:
    names_in_code = {"names": list(names), "picture": picture, "expressions": EXPRESSIONS, "options": options}
    return torch.tensor(process.run(code, **names_in_code), dtype=torch.float64)


@pytest.fixture
def expected(home: Interpreter, trained: Path, picture: str) -> torch.Tensor:
    """What the merged model says, and says differently from the base."""
    found = boxes(home, PIPELINE, str(trained / "merged"), picture)
    assert (found - boxes(home, PIPELINE, str(trained / "base"), picture)).abs().max() > 0.01
    return found


def test_every_way_of_reading_stages_gives_the_trained_model(
    shared: dict[str, str], home: Interpreter, away: Interpreter, expected: torch.Tensor, picture: str
) -> None:
    trust = {"trust_remote_code": True}
    ways = {
        "base and stages": ground(home, WITH_STAGES, picture, "alice/base", ["alice/stage_1", "alice/stage_2"]),
        "export": ground(home, WITH_STAGES, picture, "alice/export"),
        "AutoModel": ground(home, AUTO_MODEL, picture, "alice/export", "alice/base"),
        "PeftModel": ground(home, PEFT, picture, "alice/export", "alice/base"),
        "AutoModel without the package": ground(away, AUTO_MODEL, picture, "alice/export", "alice/base", **trust),
        "PeftModel without the package": ground(away, PEFT, picture, "alice/export", "alice/base", **trust),
    }
    for way, found in ways.items():
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-5, msg=lambda text, way=way: f"{way}: {text}")


def test_pushed_adapter_names_its_base_and_revision(shared: dict[str, str], hub: Hub, trained: Path) -> None:
    from hivg_hf.hub.files import read_json

    config = hub.repositories["alice/export"].head.files["adapter_config.json"]
    assert b'"base_model_name_or_path": "alice/base"' in config
    assert f'"revision": "{shared["commit"]}"'.encode() in config
    local = read_json(trained / "exports" / "stage_2" / "adapter_config.json")
    assert local["base_model_name_or_path"] == str(trained / "base")  # the folder itself stays as it was


def test_adapter_stays_with_the_revision_of_its_base(
    shared: dict[str, str], hub: Hub, home: Interpreter, folder: Path, expected: torch.Tensor, picture: str
) -> None:
    pushed(home, folder, "alice/base", "--update")
    assert hub.repositories["alice/base"].head.oid != shared["commit"]
    found = ground(home, WITH_STAGES, picture, "alice/export")
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-5)


def test_stages_are_refused_on_a_base_of_another_run(
    shared: dict[str, str], home: Interpreter, folder: Path, picture: str
) -> None:
    pushed(home, folder, "alice/other")
    with pytest.raises(CodeFailedError, match="trained with another bridge and head than the base has"):
        ground(home, WITH_STAGES, picture, "alice/other", ["alice/stage_1"])


def test_adapter_of_a_local_base_is_refused_until_the_base_is_named(
    hub: Hub, home: Interpreter, trained: Path
) -> None:
    done = push(home, trained / "exports" / "stage_2", "alice/export")
    assert done["status"] == 2
    assert (
        "which is not a repository of the Hub; push the base first, and name it (--base owner/name" in done["output"]
    )
    assert hub.repositories == {}


def test_pushed_adapter_is_read_back_with_its_base(hub: Hub, home: Interpreter, trained: Path) -> None:
    pushed(home, trained / "base", "alice/base")
    done = push(home, trained / "exports" / "stage_2", "alice/export", "--base", "alice/base")
    assert done["status"] == 0, done["output"]
    assert "read back and working" in done["output"]


def test_push_to_hub_of_peft_makes_one_loadable_commit(
    shared: dict[str, str], hub: Hub, home: Interpreter, expected: torch.Tensor, picture: str
) -> None:
    code = (
        "from peft import PeftModel\nfrom transformers import AutoModel\n"
        "model = PeftModel.from_pretrained(AutoModel.from_pretrained('alice/base'), 'alice/export')\n"
        "model.push_to_hub('alice/again', token='hf_alice')"
    )
    home.run(code)
    repository = hub.repositories["alice/again"]
    assert len(repository.commits) == 2
    assert repository.head.files.keys() >= {"adapter_config.json", "adapter_model.safetensors"}
    found = ground(home, AUTO_MODEL, picture, "alice/again", "alice/base")
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-5)
