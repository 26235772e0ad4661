"""What several tests of this folder share: one export, which takes most of their time."""

from pathlib import Path

import pytest

from hivg_hf import HiVGForVisualGrounding, HiVGProcessor
from hivg_hf.inference import export_onnx


@pytest.fixture(scope="session")
def exported(
    tiny_model: HiVGForVisualGrounding, tiny_processor: HiVGProcessor, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, float]]:
    """A folder that `hivg export` wrote, with every kind of file, and the report."""
    folder = tmp_path_factory.mktemp("export") / "exported"
    report = export_onnx(tiny_model, tiny_processor, folder, masks=True, tokens=True, int8=True, float16=True)
    return folder, report
