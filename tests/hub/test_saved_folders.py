"""A saved folder opens without trust where `hivg_hf` is installed, and with trust where it is not."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForZeroShotObjectDetection, Trainer, TrainingArguments, pipeline

import hivg_hf
from helpers.hub_client import AUTO_CLASSES, PIPELINE, ZERO_SHOT_CLASSES, ZERO_SHOT_PIPELINE, boxes
from helpers.interpreter import CodeFailedError, Interpreter
from hivg_hf import HiVGForVisualGrounding
from hivg_hf.modeling.configuration_hivg import AUTO_MAP

pytestmark = pytest.mark.xdist_group("hub")  # one pair of interpreters, on one worker

MODELING = Path(__file__).parents[2] / "modeling"

SAVE_AGAIN = """
from transformers import AutoModel, AutoProcessor
AutoModel.from_pretrained(repo_id, trust_remote_code=True).save_pretrained(again)
AutoProcessor.from_pretrained(repo_id, trust_remote_code=True).save_pretrained(again)
result = True
"""


@pytest.fixture(params=["model and processor", "pipeline", "shipped checkpoint"])
def saved(request: Any, tiny_model: Any, tiny_processor: Any, tmp_path: Path) -> str:
    if request.param == "shipped checkpoint":
        pipeline("visual-grounding", model=hivg_hf.TINY_CHECKPOINT).save_pretrained(tmp_path)
    elif request.param == "pipeline":
        pipeline("visual-grounding", model=tiny_model, processor=tiny_processor).save_pretrained(tmp_path)
    else:
        tiny_model.save_pretrained(tmp_path)
        tiny_processor.save_pretrained(tmp_path)
    return str(tmp_path)


def test_a_folder_carries_the_code_of_the_package_byte_for_byte(saved: str) -> None:
    copies = {path.name: path.read_bytes() for path in Path(saved).glob("*.py")}
    assert copies == {path.name: path.read_bytes() for path in MODELING.glob("*_hivg.py")}


@pytest.mark.parametrize("code", [AUTO_CLASSES, PIPELINE, ZERO_SHOT_CLASSES, ZERO_SHOT_PIPELINE])
def test_a_folder_gives_the_same_boxes_with_the_package_and_without(
    saved: str, code: str, home: Interpreter, away: Interpreter, picture: str
) -> None:
    expected = boxes(home, code, saved, picture)
    assert expected.shape == (2, 5)
    found = boxes(away, code, saved, picture, trust_remote_code=True)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-6)
    trusting = boxes(home, code, saved, picture, trust_remote_code=True)  # trust changes nothing where it is installed
    torch.testing.assert_close(trusting, expected, atol=1e-5, rtol=1e-6)


def test_without_trust_the_bare_interpreter_gets_transformers_own_error(
    saved: str, away: Interpreter, picture: str
) -> None:
    with pytest.raises(CodeFailedError, match="trust_remote_code=True"):
        boxes(away, AUTO_CLASSES, saved, picture)


def test_what_the_bare_interpreter_saves_opens_everywhere(
    saved: str, home: Interpreter, away: Interpreter, picture: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    again = str(tmp_path_factory.mktemp("again"))
    assert away.run(SAVE_AGAIN, repo_id=saved, again=again)
    expected = boxes(home, AUTO_CLASSES, saved, picture)
    torch.testing.assert_close(boxes(home, AUTO_CLASSES, again, picture), expected, atol=1e-5, rtol=1e-6)
    for code in (AUTO_CLASSES, ZERO_SHOT_CLASSES):
        found = boxes(away, code, again, picture, trust_remote_code=True)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-6)


def test_a_config_names_both_auto_classes_however_it_was_saved(
    tiny_model: Any, tiny_processor: Any, tiny_checkpoint: str, away: Interpreter, picture: str, tmp_path: Path
) -> None:
    merged = get_peft_model(copy.deepcopy(tiny_model), LoraConfig(target_modules=["q_proj"])).merge_and_unload()
    trainer = Trainer(copy.deepcopy(tiny_model), TrainingArguments(str(tmp_path / "run"), use_cpu=True))
    saves = {
        "reloaded": HiVGForVisualGrounding.from_pretrained(tiny_checkpoint).save_pretrained,
        "zero-shot": AutoModelForZeroShotObjectDetection.from_pretrained(tiny_checkpoint).save_pretrained,
        "merged": merged.save_pretrained,
        "trainer": trainer.save_model,
        "config": tiny_model.config.save_pretrained,
    }
    for name, save in saves.items():
        folder = tmp_path / name
        save(str(folder))
        written = json.loads((folder / "config.json").read_text())
        assert written["auto_map"] == AUTO_MAP
        assert written["id2label"] == {"0": "target"}
        if name in ("merged", "trainer"):
            tiny_processor.save_pretrained(folder)
            found = [
                boxes(away, code, str(folder), picture, trust_remote_code=True)
                for code in (AUTO_CLASSES, ZERO_SHOT_CLASSES)
            ]
            assert torch.equal(*found)
