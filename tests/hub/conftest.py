"""A served Hub, interpreters with the package and without, and a saved model to push."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from PIL import Image
from transformers import pipeline

from helpers.hub_client import PLANTED
from helpers.hub_server import serve_hub
from helpers.hub_state import Hub
from helpers.interpreter import Interpreter

USERS = {"hf_alice": "alice", "hf_bob": "bob"}


@pytest.fixture(scope="session")
def served() -> Iterator[tuple[Hub, str]]:
    with serve_hub(USERS) as hub_and_address:
        yield hub_and_address


@pytest.fixture
def hub(served: tuple[Hub, str]) -> Hub:
    """The Hub, emptied."""
    served[0].repositories.clear()
    served[0].requests.clear()
    served[0].large_files.clear()
    served[0].heal()
    return served[0]


def interpreter(folder: Path, address: str, with_package: bool) -> Interpreter:
    environment = {"HF_ENDPOINT": address, "HF_HOME": str(folder), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    return Interpreter(folder, with_package, environment)


@pytest.fixture(scope="session")
def home(served: tuple[Hub, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Interpreter]:
    process = interpreter(tmp_path_factory.mktemp("home"), served[1], with_package=True)
    process.run("import hivg_hf")
    yield process
    process.close()


@pytest.fixture(scope="session")
def away(served: tuple[Hub, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Interpreter]:
    process = interpreter(tmp_path_factory.mktemp("away"), served[1], with_package=False)
    yield process
    process.close()


@pytest.fixture(scope="session")
def picture(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("picture") / "scene.png"
    noise = torch.randint(0, 256, (40, 60, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    Image.fromarray(noise.numpy()).save(path)
    return str(path)


@pytest.fixture(scope="session")
def folder(tiny_model: Any, tiny_processor: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model with processor, code and card, among files that are nobody else's business."""
    path = tmp_path_factory.mktemp("saved") / "model"
    pipeline("visual-grounding", model=tiny_model, processor=tiny_processor).save_pretrained(path)
    result = EvalResult("visual-grounding", "refshapes", "RefShapes", "accuracy", 0.75, metric_name="Acc@0.5")
    data = ModelCardData(license="apache-2.0", tags=["visual-grounding"], model_name="tiny", eval_results=[result])
    ModelCard.from_template(data, model_id="tiny").save(path / "README.md")
    for name, content in PLANTED.items():
        (path / name).write_text(content)
    return path
