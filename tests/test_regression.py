"""Models saved by every earlier version load, and say what they said: tests/fixtures/regression/VERSION.

A difference here means that checkpoints of users changed their answers. If that is intended, say so in CHANGELOG.md,
under the heading of the version, and keep the old fixture with the option that brings the old answers back.
"""

from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor

import hivg_hf

FIXTURES = Path(__file__).parent / "fixtures" / "regression"
VERSIONS = sorted(path.name for path in FIXTURES.iterdir() if path.is_dir() and path.name != "__pycache__")
EXPRESSIONS = ["the red star", "a blue star, left of it"]
TOLERANCE = 1e-5


def test_this_version_has_a_fixture() -> None:
    assert hivg_hf.__version__ in VERSIONS, "run tests/fixtures/regression/make.py once before the release"


@pytest.mark.parametrize("version", VERSIONS)
def test_saved_processor_prepares_the_same_inputs(version: str) -> None:
    processor = AutoProcessor.from_pretrained(FIXTURES / version / "model")
    picture = Image.open(FIXTURES / version / "picture.png")
    inputs = processor(images=[picture] * len(EXPRESSIONS), text=EXPRESSIONS, return_tensors="pt")
    for name, expected in load_file(FIXTURES / version / "inputs.safetensors").items():
        torch.testing.assert_close(inputs[name], expected, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("version", VERSIONS)
def test_saved_model_gives_the_same_outputs(version: str) -> None:
    model, report = AutoModel.from_pretrained(FIXTURES / version / "model", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    inputs = load_file(FIXTURES / version / "inputs.safetensors")
    with torch.no_grad():
        outputs = model.eval()(**inputs, output_masks=True, output_token_logits=True)
    for name, expected in load_file(FIXTURES / version / "outputs.safetensors").items():
        torch.testing.assert_close(outputs[name], expected, atol=TOLERANCE, rtol=TOLERANCE)
