"""`hivg export` and `hivg demo`: what they say, and that mistakes are one sentence."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hivg_hf import HiVGForVisualGrounding, HiVGProcessor, VisualGroundingPipeline
from hivg_hf.cli import main


@pytest.fixture(scope="module")
def model_folder(
    tiny_model: HiVGForVisualGrounding, tiny_processor: HiVGProcessor, tmp_path_factory: pytest.TempPathFactory
) -> str:
    folder = tmp_path_factory.mktemp("model")
    VisualGroundingPipeline(tiny_model, processor=tiny_processor, device="cpu").save_pretrained(folder)
    return str(folder)


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0)


def test_export_says_what_it_wrote_and_how_well_it_agrees(
    model_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: dict[str, Any] = {}

    def export(model: Any, processor: Any, out: Path, *options: bool) -> dict[str, float]:
        asked.update(zip(("masks", "tokens", "int8", "float16", "split"), options, strict=True), dtype=model.dtype)
        (out / "onnx").mkdir(parents=True)
        (out / "onnx" / "model.onnx").write_bytes(b"0" * 100_000)
        return {"pred_boxes": 2e-7, "int8_box": 0.01}

    monkeypatch.setattr(
        "hivg_hf.inference.onnx_export.export_onnx", export
    )  # tests/inference/test_onnx_export.py runs the real one
    assert run("export", model_folder, "--out", str(tmp_path / "out"), "--masks", "--int8", "--split") == 0
    given = {"masks": True, "tokens": False, "int8": True, "float16": False, "split": True}
    assert asked == {"dtype": torch.float32, **given}
    printed = capsys.readouterr().out
    assert "pred_boxes: differs from torch by at most 2e-07" in printed
    assert "int8_box: boxes move by at most (share of the square) 0.01" in printed
    assert f"wrote {tmp_path / 'out' / 'onnx' / 'model.onnx'} (0.1 MB)" in printed


def test_export_refuses_other_formats(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("export", "--format", "tflite") == 2
    assert capsys.readouterr().err.strip() == "hivg: --format must be one of onnx, got 'tflite'."


def test_demo_without_gradio_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert run("demo") == 2
    assert "pip install 'hivg_hf[demo]'" in capsys.readouterr().err


def test_demo_serves_with_its_limits(model_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gradio", reason="gradio is not installed: pip install 'hivg_hf[demo]'")
    served: dict[str, Any] = {}
    monkeypatch.setattr(
        "hivg_hf.inference.web_page.build_page", lambda pipe, name: served.update(pipe=pipe, name=name) or "page"
    )
    monkeypatch.setattr("hivg_hf.inference.web_page.serve", lambda *arguments: served.update(arguments=arguments))
    assert run("demo", "--model", model_folder, "--port", "8123", "--queue-size", "5", "--max-upload-mb", "2") == 0
    assert served["arguments"] == ("page", "127.0.0.1", 8123, 5, 2)
    assert isinstance(served["pipe"], VisualGroundingPipeline)
    assert served["name"] == model_folder


def test_demo_passes_on_what_a_service_needs(model_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gradio", reason="gradio is not installed: pip install 'hivg_hf[demo]'")
    served: dict[str, Any] = {}
    monkeypatch.setattr("hivg_hf.inference.web_page.build_page", lambda *_, **limits: served.update(limits=limits))
    monkeypatch.setattr("hivg_hf.inference.web_page.serve", lambda *arguments, **more: served.update(more=more))
    options = ("--workers", "3", "--time-limit", "7.5", "--root-path", "/hivg")
    assert run("demo", "--model", model_folder, *options) == 0
    assert served == {"limits": {"workers": 3, "seconds": 7.5}, "more": {"root_path": "/hivg"}}


def test_demo_refuses_limits_that_answer_nothing(model_folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gradio", reason="gradio is not installed: pip install 'hivg_hf[demo]'")
    assert run("demo", "--model", model_folder, "--time-limit", "0") == 2
    assert "Expected at least 1 worker and a time limit above 0, got 2 and 0.0." in capsys.readouterr().err
    assert run("demo", "--model", model_folder, "--workers", "0") == 2


def test_the_container_serves_the_page_without_root() -> None:
    lines = (Path(__file__).parents[2] / "Dockerfile").read_text().splitlines()
    steps = [line.split(maxsplit=1) for line in lines if line and not line.startswith(("#", " "))]
    users = [value for step, value in steps if step == "USER"]
    assert users[-1:] not in ([], ["root"], ["0"])
    assert [step for step, _ in steps].index("USER") > max(n for n, (step, _) in enumerate(steps) if step == "RUN")
    command = json.loads(next(value for step, value in steps if step == "ENTRYPOINT"))
    assert command[:2] == ["hivg", "demo"]
    assert "/health" in next(value for step, value in steps if step == "HEALTHCHECK")
    described = {name for parameter in typer_options() for name in parameter}
    assert {part for part in command if part.startswith("--")} <= described


def typer_options() -> list[list[str]]:
    import typer

    from hivg_hf.cli.demo import demo

    app = typer.Typer()
    app.command()(demo)
    return [parameter.opts for parameter in typer.main.get_command(app).params]
