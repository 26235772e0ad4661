"""A saved folder opens without trust where `hivg_hf` is installed, and with trust where it is not."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import pipeline

import hivg_hf
from helpers.hub_client import AUTO_CLASSES, PIPELINE, boxes
from helpers.interpreter import CodeFailedError, Interpreter

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


@pytest.mark.parametrize("code", [AUTO_CLASSES, PIPELINE])
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
    found = boxes(away, AUTO_CLASSES, again, picture, trust_remote_code=True)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-6)
