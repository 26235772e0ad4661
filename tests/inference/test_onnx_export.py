"""An exported model computes what the model computes, for any batch and length, and needs nothing of ours to run."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from helpers.turned_pictures import UNDONE, save_turned
from hivg_hf import HiVGConfig, HiVGForVisualGrounding, HiVGProcessor, VisualGroundingPipeline
from hivg_hf.inference import check_onnx, export_onnx, onnx_export
from hivg_hf.inference.onnx_export import GroundingGraph
from hivg_hf.inference.onnx_model import MODEL_FILES, GraphIdentity, open_session, read_graph
from hivg_hf.modeling.image_loading_hivg import load_grounding_image
from hivg_hf.modeling.modeling_hivg import padded_patches

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'hivg_hf[onnx]'")
pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install 'hivg_hf[onnx]'")

SCRIPT = Path(__file__).parents[2] / "docs" / "ground_with_onnxruntime.py"


def test_outputs_equal_torch_for_two_batches_and_two_lengths(
    exported: tuple[Path, dict[str, float]], tiny_model: HiVGForVisualGrounding
) -> None:
    folder, report = exported
    assert set(report) == {"pred_boxes", "scores", "mask_logits", "token_logits", "int8_box", "float16_box"}
    assert all(report[name] <= 1e-5 for name in report if not name.endswith("_box"))
    # Sizes that the export itself never saw.
    graph = GroundingGraph(tiny_model, masks=True, tokens=True)
    assert max(check_onnx(graph, folder / "onnx" / "model.onnx", batches=[3, 5]).values()) <= 1e-5


def test_an_official_model_sees_the_same_padding_wherever_its_images_end(
    tiny_config: HiVGConfig, tmp_path: Path
) -> None:
    """In the middle of a patch, too, where the official resizing is a tie and engines round it as they like."""
    official = {"skip_padded_patches": False, "bridge_mask_padding": False, "pad_align": "pixel"}
    torch.manual_seed(0)
    model = HiVGForVisualGrounding(HiVGConfig.from_dict({**tiny_config.to_dict(), **official})).eval()
    onnx_export.write_graphs(model, tmp_path, GraphIdentity.of_model(model), masks=False, tokens=False)
    session = open_session(tmp_path / MODEL_FILES["fp32"])
    size = model.config.image_size
    ends = torch.arange(1, size + 1)
    inputs = {
        "input_ids": torch.randint(3, 20, (size, 5)),
        "attention_mask": torch.ones(size, 5, dtype=torch.long),
        "pixel_values": torch.randn(size, 3, size, size),
        "pixel_mask": (torch.arange(size) < ends[:, None, None]).expand(size, size, size).long(),
        "image_index": torch.arange(size),
    }
    with torch.no_grad():
        expected = model(**inputs).pred_boxes
    (found,) = session.run(["pred_boxes"], {name: value.numpy() for name, value in inputs.items()})
    assert np.abs(found - expected.numpy()).max() < 1e-5


@pytest.mark.parametrize(("size", "patch"), [(224, 16), (224, 32), (112, 8), (384, 16), (336, 14)])
def test_exported_padding_is_what_torch_resizes_and_rounds(size: int, patch: int) -> None:
    ends = torch.arange(1, size + 1)[:, None, None]
    padding = (torch.arange(size) >= ends).expand(size, size, size)[:, None].float()  # images that end anywhere
    grid = size // patch
    resized = torch.nn.functional.interpolate(padding, size=(grid, grid), mode="bilinear", antialias=True)
    apart = (padded_patches(padding, grid) != resized.round())[:, 0].any(-1).any(-1)  # (S,)
    ties = ((resized - 0.5).abs() < 1e-5)[:, 0].any(-1).any(-1)
    assert not (apart & ~ties).any()
    if patch & (patch - 1) == 0:
        assert ties.any()
        assert not apart.any()


def test_left_padding_changes_no_answer_of_the_file(exported: tuple[Path, dict[str, float]]) -> None:
    session = open_session(exported[0] / "onnx" / "model.onnx")
    ids = np.array([[512, 40, 41, 42, 513], [512, 50, 513, 513, 513]])
    inputs = {
        "input_ids": ids,
        "attention_mask": np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
        "pixel_values": np.random.default_rng(0).standard_normal((2, 3, 64, 64), dtype=np.float32),
        "patch_index": np.tile(np.arange(64), (2, 1)),
        "image_index": np.arange(2),
    }
    left = {**inputs, "input_ids": ids.copy(), "attention_mask": inputs["attention_mask"][:, ::-1].copy()}
    left["input_ids"][1] = [513, 513, 512, 50, 513]
    for expected, found in zip(session.run(None, inputs), session.run(None, left), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_export_leaves_the_model_as_it_was(
    exported: tuple[Path, dict[str, float]], tiny_model: HiVGForVisualGrounding
) -> None:
    assert tiny_model.config._attn_implementation == "sdpa"


def test_int8_and_float16_are_smaller_and_stay_near(exported: tuple[Path, dict[str, float]]) -> None:
    folder, report = exported
    assert 0 < report["int8_box"] < 0.1
    assert 0 < report["float16_box"] < 1e-3
    sizes = {name: (folder / "onnx" / name).stat().st_size for name in MODEL_FILES.values()}
    assert sizes["model_quantized.onnx"] < 1.1 * sizes["model.onnx"]  # in a model this small, scales weigh as much
    assert sizes["model_fp16.onnx"] < 0.8 * sizes["model.onnx"]


def test_the_box_head_keeps_its_precision(exported: tuple[Path, dict[str, float]]) -> None:
    file = read_graph(exported[0] / "onnx" / "model_quantized.onnx")
    kept = {tensor.name: tensor.data_type for tensor in file.graph.initializer if "box_head" in tensor.name}
    assert set(kept.values()) == {1}  # float32
    assert not any(name.endswith("_quantized") for name in kept)
    assert any(node.op_type == "MatMulInteger" for node in file.graph.node)


def test_products_in_8_bits_do_not_overflow_on_any_processor(tmp_path: Path) -> None:
    """Two products of 255 and 127 are more than 16 bits hold, and that is where AVX2 without VNNI adds signed ones."""
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    weight = onnx.numpy_helper.from_array(np.ones((64, 16), np.float32), "weight")
    values = [helper.make_tensor_value_info(name, kind, [4, size]) for name, size in (("x", 64), ("y", 16))]
    node = helper.make_node("MatMul", ["x", "weight"], ["y"], name="product")
    graph = helper.make_graph([node], "graph", values[:1], values[1:], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "a.onnx")
    onnx_export.quantize(tmp_path / "a.onnx", tmp_path / "b.onnx")
    (found,) = open_session(tmp_path / "b.onnx").run(None, {"x": np.ones((4, 64), np.float32)})
    assert found == pytest.approx(64, rel=1e-3)


def test_the_documented_script_grounds_with_onnxruntime_alone(
    exported: tuple[Path, dict[str, float]],
    tiny_model: HiVGForVisualGrounding,
    tiny_processor: HiVGProcessor,
    tmp_path: Path,
) -> None:
    folder, _ = exported
    pixels = np.random.default_rng(0).integers(0, 256, (40, 90, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(tmp_path / "photo.png")
    expressions = ["The  red star", "\u200bthe \u201cblue\u201d ring &amp; left of it", "<|endoftext|> star"]
    block = "import sys\nfor name in ('torch', 'transformers', 'hivg_hf'): sys.modules[name] = None\n"
    run = f"{block}import runpy\nrunpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    command = [sys.executable, "-c", run, str(folder), str(tmp_path / "photo.png"), *expressions]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    pipe = VisualGroundingPipeline(tiny_model, processor=tiny_processor, device="cpu")
    for line, result in zip(lines, pipe(str(tmp_path / "photo.png"), expressions), strict=True):
        score, *box = line.split()[:5]
        assert float(score) == pytest.approx(result["score"], abs=2e-3)
        assert [float(value) for value in box] == pytest.approx(list(result["box"].values()), abs=0.11)
        assert line.endswith(result["expression"])


def test_a_file_that_differs_is_not_left_behind(
    tiny_model: HiVGForVisualGrounding, tiny_processor: HiVGProcessor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "_write_graph", lambda graph, path: path.write_bytes(b""))
    monkeypatch.setattr(onnx_export, "_finish_graph", lambda path, identity: None)
    monkeypatch.setattr(onnx_export, "check_onnx", lambda graph, path: {"pred_boxes": 0.5})
    with pytest.raises(ValueError, match=r"differs from the model by 0\.5 in pred_boxes"):
        export_onnx(tiny_model, tiny_processor, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_settings_say_how_to_feed_it(exported: tuple[Path, dict[str, float]], tiny_processor: HiVGProcessor) -> None:
    settings = json.loads((exported[0] / "onnx" / "grounding.json").read_text())
    assert settings["size"] == tiny_processor.image_processor.side
    assert settings["outputs"] == ["pred_boxes", "scores", "mask_logits", "token_logits"]
    assert (exported[0] / "tokenizer.json").exists()


@pytest.mark.parametrize("orientation", UNDONE)
def test_the_documented_script_opens_pictures_as_the_package_does(orientation: int, tmp_path: Path) -> None:
    opens = runpy.run_path(str(SCRIPT))["open_picture"]
    pixels = np.random.default_rng(0).integers(0, 256, (40, 90, 4), dtype=np.uint8)
    save_turned(PIL.Image.fromarray(pixels), tmp_path / "photo.png", orientation)
    assert np.array_equal(np.asarray(opens(tmp_path / "photo.png")), load_grounding_image(tmp_path / "photo.png"))


def test_the_documented_script_refuses_what_it_would_show_wrongly(tmp_path: Path) -> None:
    opens = runpy.run_path(str(SCRIPT))["open_picture"]
    PIL.Image.fromarray(np.zeros((5, 7), dtype=np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(SystemExit, match="deeper than 8 bits"):
        opens(tmp_path / "deep.png")
    PIL.Image.new("RGB", (9, 9)).save(tmp_path / "program.png", "EPS")
    with pytest.raises(PIL.UnidentifiedImageError):
        opens(tmp_path / "program.png")
