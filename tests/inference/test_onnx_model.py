"""The onnx backend: the pipeline's own answers from another engine, from files that were made from these weights."""

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from hivg_hf import HiVGForVisualGrounding, HiVGProcessor, VisualGroundingPipeline
from hivg_hf.inference import OnnxModel, load_pipeline, onnx_export, onnx_model, onnx_split, write_current_onnx
from hivg_hf.inference.onnx_model import GraphIdentity, check_onnx_paths, read_graph

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install 'hivg_hf[onnx]'")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'hivg_hf[onnx]'")
pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install 'hivg_hf[onnx]'")

TEXTS = ["the star", "red", "the big blue star left of the red"]


@pytest.fixture(scope="module")
def folder(exported: tuple[Path, dict[str, float]], tiny_checkpoint: str, tmp_path_factory: Any) -> Path:
    """A model folder with weights, processor and ONNX files."""
    folder = tmp_path_factory.mktemp("model") / "model"
    shutil.copytree(tiny_checkpoint, folder)
    shutil.copytree(exported[0] / "onnx", folder / "onnx")
    return folder


@pytest.fixture
def copy_of_folder(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "model"))


@pytest.fixture(scope="module")
def engines(folder: Path) -> tuple[VisualGroundingPipeline, VisualGroundingPipeline]:
    return load_pipeline(folder, "cpu"), load_pipeline(folder, backend="onnx")


@pytest.fixture(scope="module")
def pictures() -> list[PIL.Image.Image]:
    rng = np.random.default_rng(0)
    sizes = [(30, 60), (64, 20), (50, 50), (20, 90)]
    return [PIL.Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


@pytest.fixture
def no_export(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a file was exported that was there")

    monkeypatch.setattr(onnx_export, "write_onnx_files", refuse)


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, exported: tuple[Path, dict[str, float]]) -> list[Path]:
    """Exporting copies the fixture's file with another identity, since a real export takes long; gives the folders."""
    done: list[Path] = []

    def write(model: Any, processor: Any, place: Path, identity: GraphIdentity, *_: Any) -> dict[str, float]:
        done.append(place)
        file = onnx.load(str(exported[0] / "onnx" / "model.onnx"))
        onnx.helper.set_model_props(file, identity.as_metadata())
        onnx.save(file, str(place / "model.onnx"))
        return {}

    cache = tmp_path / "cache"
    monkeypatch.setattr(onnx_export, "write_onnx_files", write)
    monkeypatch.setattr(onnx_model, "cached_assets_path", lambda *names: cache.joinpath(*names))
    return done


def assert_close(found: Any, expected: Any) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one["expression"] == other["expression"]
        assert list(one["box"].values()) == pytest.approx(list(other["box"].values()), abs=1e-5 * 90)
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)
        assert np.abs(one["heatmap"] - other["heatmap"]).max() <= 1e-5
        assert (one["mask"] == other["mask"]).all()


def test_boxes_scores_masks_and_heat_maps_are_those_of_torch(engines: Any, pictures: list[Any]) -> None:
    torch_pipe, onnx_pipe = engines
    assert type(onnx_pipe) is type(torch_pipe)
    asked = {"mask": True, "heatmap": True}
    for batch_size in (1, 4):
        answers = [pipe(pictures, [TEXTS] * 4, batch_size=batch_size, **asked) for pipe in engines]
        for ours, theirs in zip(*answers, strict=True):
            assert_close(theirs, ours)


def test_streams_and_errors_are_those_of_torch(engines: Any, pictures: list[Any]) -> None:
    rows = [{"image": pictures[0], "text": "the star"}, {"image": "absent.png", "text": "red"}]
    plain, other = (list(pipe(iter(rows), on_error="return", batch_size=2)) for pipe in engines)
    assert other[0]["box"] == pytest.approx(plain[0]["box"], abs=1e-3)
    assert other[1] == plain[1]
    with pytest.raises(ValueError, match=r"blank|empty"):
        engines[1](pictures[0], " ")


def test_what_is_not_asked_for_is_not_computed(folder: Path, pictures: list[Any]) -> None:
    pipe = load_pipeline(folder, backend="onnx")
    pipe(pictures[0], "the star")
    (names,) = pipe.model._sessions
    assert names == ("pred_boxes", "scores")
    sizes = [len(onnx_model.open_session(pipe.model.path, outputs).get_outputs()) for outputs in (names, None)]
    assert sizes == [2, 4]


@pytest.mark.parametrize("given", ["patch_index", "pixel_mask", "nothing"])
def test_the_model_is_called_as_torchs_whatever_says_where_the_image_is(
    folder: Path, tiny_model: HiVGForVisualGrounding, tiny_processor: HiVGProcessor, pictures: list[Any], given: str
) -> None:
    inputs = dict(tiny_processor(images=pictures[:2], text=TEXTS[:2], return_tensors="pt"))
    inputs = {name: inputs[name] for name in ("input_ids", "attention_mask", "pixel_values", given) if name in inputs}
    both = {**inputs, "text_index": torch.tensor([1, 0, 1]), "image_index": torch.tensor([0, 1, 1])}
    model = load_pipeline(folder, backend="onnx").model
    with torch.no_grad():
        for asked in (inputs, both):
            found, expected = model(**asked), tiny_model(**asked)
            torch.testing.assert_close(found.pred_boxes, expected.pred_boxes, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(found.scores, expected.scores, rtol=1e-5, atol=1e-5)


def test_the_file_beside_its_weights_is_used(folder: Path, no_export: None) -> None:
    for precision in ("fp32", "int8"):
        model = load_pipeline(folder, backend="onnx", precision=precision).model
        assert model.path.parent == folder / "onnx"


def test_an_exported_folder_answers_without_weights(exported: Any, no_export: None, pictures: list[Any]) -> None:
    assert not list(exported[0].glob("*.safetensors"))
    assert load_pipeline(exported[0], backend="onnx")(pictures[0], "the star")["score"] is not None


def test_identity_does_not_depend_on_how_weights_are_stored(
    tiny_model: HiVGForVisualGrounding, tiny_checkpoint: str, tmp_path: Path
) -> None:
    expected = GraphIdentity.of_model(tiny_model)
    assert GraphIdentity.of_folder(Path(tiny_checkpoint)) == expected
    tiny_model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert GraphIdentity.of_folder(tmp_path) == expected


def new_weights(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["grounding_head.box_head.layers.0.bias"] += 1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def new_config(folder: Path) -> None:
    config = (folder / "config.json").read_text()
    changed = config.replace('"score_similarity_bias": 0.0', '"score_similarity_bias": 1.0')
    assert changed != config
    (folder / "config.json").write_text(changed)


def new_version(folder: Path) -> None:
    file = onnx.load(str(folder / "onnx" / "model.onnx"))
    said = {entry.key: entry.value for entry in file.metadata_props}
    onnx.helper.set_model_props(file, {**said, "hivg_version": "0.0.1"})
    onnx.save(file, str(folder / "onnx" / "model.onnx"))


def says_nothing(folder: Path) -> None:
    file = onnx.load(str(folder / "onnx" / "model.onnx"))
    del file.metadata_props[:]
    onnx.save(file, str(folder / "onnx" / "model.onnx"))


@pytest.mark.parametrize(
    ("change", "what"),
    [(new_weights, "weights"), (new_config, "config"), (new_version, "version"), (says_nothing, "weights, config")],
)
def test_a_file_of_another_model_never_answers(
    copy_of_folder: Path,
    exports: list[Path],
    change: Callable[[Path], None],
    what: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    change(copy_of_folder)
    pipe = load_pipeline(copy_of_folder, backend="onnx")
    assert len(exports) == 1
    assert copy_of_folder not in pipe.model.path.parents
    assert pipe.model.identity == GraphIdentity.of_folder(copy_of_folder)
    assert f"was made from other {what}" in caplog.text
    load_pipeline(copy_of_folder, backend="onnx")
    assert len(exports) == 1  # once


def test_an_exported_folder_of_another_config_is_refused(exported: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported[0], tmp_path / "exported"))
    new_config(folder)
    with pytest.raises(ValueError, match=r"made from other config .*no weights to export again"):
        load_pipeline(folder, backend="onnx")


def test_files_are_made_current_before_they_are_pushed(
    copy_of_folder: Path, exports: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_current_onnx(copy_of_folder)
    assert exports == []
    new_weights(copy_of_folder)
    write_current_onnx(copy_of_folder)
    assert len(exports) == 1
    assert GraphIdentity.of_file(read_graph(copy_of_folder / "onnx" / "model.onnx")) == GraphIdentity.of_folder(
        copy_of_folder
    )


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "sub/data", "..", ""])
def test_weights_outside_the_folder_of_the_file_are_refused(location: str, tmp_path: Path) -> None:
    tensor = onnx.helper.make_tensor("weight", onnx.TensorProto.FLOAT, [1], [1.0])
    tensor.ClearField("float_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    # Also where a tensor hides in an attribute.
    node = onnx.helper.make_node("Constant", [], ["out"], value=tensor)
    out = onnx.helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, [1])
    for graph in (
        onnx.helper.make_graph([node], "g", [], [out]),
        onnx.helper.make_graph([], "g", [], [out], [tensor]),
    ):
        with pytest.raises(ValueError, match="outside its own folder"):
            check_onnx_paths(onnx.helper.make_model(graph), tmp_path / "model.onnx")


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"0000")
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "data").symlink_to(tmp_path / "secret")
    tensor = onnx.helper.make_tensor("weight", onnx.TensorProto.FLOAT, [1], [1.0])
    tensor.ClearField("float_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="data")
    graph = onnx.helper.make_graph([], "g", [], [], [tensor])
    with pytest.raises(ValueError, match="outside its own folder"):
        check_onnx_paths(onnx.helper.make_model(graph), tmp_path / "onnx" / "model.onnx")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "tflite"}, "backend must be one of torch, onnx, got 'tflite'"),
        ({"backend": "onnx", "precision": "bf16"}, "onnx backend has the precisions fp32, int8, got 'bf16'"),
        ({"precision": "int8"}, "torch backend has the precisions fp32, bf16, got 'int8'"),
        ({"precision": "bf16", "dtype": "float32"}, "contradict each other"),
        ({"backend": "onnx", "dtype": "bfloat16"}, "takes no dtype 'bfloat16'"),
        ({"backend": "onnx", "device": "cuda:0"}, "computes on the CPU, not on 'cuda:0'"),
        ({"backend": "onnx", "trust_remote_code": True}, "omit trust_remote_code"),
        ({"backend": "onnx", "num_threads": 0}, "threads must be a whole number, at least 1, got 0"),
    ],
)
def test_options_that_do_not_go_together_are_refused(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_pipeline(folder, **options)


def test_bf16_is_torchs_bfloat16(folder: Path) -> None:
    assert load_pipeline(folder, "cpu", precision="bf16").model.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("asked", "message"),
    [({"labels": torch.zeros(1, 4)}, "no labels"), ({"output_attentions": True}, "no output_attentions")],
)
def test_what_only_torch_computes_is_refused(folder: Path, asked: dict[str, Any], message: str) -> None:
    model = load_pipeline(folder, backend="onnx").model
    inputs = {"input_ids": torch.ones(1, 4), "attention_mask": torch.ones(1, 4)}
    with pytest.raises(ValueError, match=f"{message}: load the model with backend='torch'"):
        model(**inputs, pixel_values=torch.zeros(1, 3, 64, 64), **asked)


def test_shapes_are_checked_as_torchs(folder: Path) -> None:
    model = load_pipeline(folder, backend="onnx").model
    words = {"input_ids": torch.ones(2, 4), "attention_mask": torch.ones(2, 4)}
    with pytest.raises(ValueError, match="64 x 64 pixels"):
        model(**words, pixel_values=torch.zeros(2, 3, 32, 32))
    with pytest.raises(ValueError, match="2 expressions for 1 images"):
        model(**words, pixel_values=torch.zeros(1, 3, 64, 64))


def test_a_model_travels_to_other_processes(engines: Any, pictures: list[Any]) -> None:
    pipe = engines[1]
    pipe(pictures[0], "red")
    again = VisualGroundingPipeline(pickle.loads(pickle.dumps(pipe.model)), processor=pipe.processor, device="cpu")
    assert again(pictures[0], "red") == pipe(pictures[0], "red")


def test_a_device_that_the_engine_lacks_is_refused(folder: Path) -> None:
    model = load_pipeline(folder, backend="onnx").model
    assert model.to("cpu") is model
    with pytest.raises(ValueError, match="computes on the CPU"):
        model.to("cuda")
    with pytest.raises(ValueError, match="precision of its file"):
        model.to(torch.bfloat16)


def test_threads_are_torchs_unless_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    seen: list[tuple[int, str]] = []
    real = onnxruntime.InferenceSession

    def session(content: bytes, options: Any, **kwargs: Any) -> Any:
        spinning = options.get_session_config_entry("session.intra_op.allow_spinning")
        seen.append((options.intra_op_num_threads, spinning))
        return real(content, options, **kwargs)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    path = load_pipeline(folder, backend="onnx", num_threads=3).model
    assert isinstance(path, OnnxModel)
    path._session(("pred_boxes",))
    load_pipeline(folder, backend="onnx").model._session(("pred_boxes",))
    assert seen == [(3, "0"), (torch.get_num_threads(), "0")]


# -- words apart from pictures ----------------------------------------------------------------------------------------


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of words of each run of a text part."""
    rows: list[int] = []
    opened = onnx_model.open_session

    class Counted:
        def __init__(self, session: Any) -> None:
            self.session, self.get_outputs = session, session.get_outputs

        def run(self, names: Any, inputs: dict[str, Any]) -> Any:
            rows.append(len(inputs["input_ids"]))
            return self.session.run(names, inputs)

    def open_counted(path: Path, outputs: Any = None, threads: Any = None, part: str | None = None) -> Any:
        session = opened(path, outputs, threads, part)
        return Counted(session) if part == onnx_split.TEXT else session

    monkeypatch.setattr(onnx_model, "open_session", open_counted)
    return rows


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("text", ["the big blue star", TEXTS])
def test_words_of_a_stream_are_encoded_once(
    folder: Path, pictures: list[Any], encoded: list[int], text: Any, precision: str
) -> None:
    pipe = load_pipeline(folder, backend="onnx", precision=precision)
    frames = [{"image": picture, "text": text} for picture in [*pictures, *pictures]]
    asked = {"mask": True, "heatmap": True}
    count = 1 if isinstance(text, str) else len(text)
    answers = list(pipe(iter(frames), batch_size=2 * count, **asked))
    assert encoded == [count]
    for picture, answer in zip(pictures, answers, strict=False):
        whole = OnnxModel(pipe.model.path, pipe.model.config)
        alone = VisualGroundingPipeline(whole, processor=pipe.processor, device="cpu")
        expected = alone(picture, text, batch_size=8, **asked)
        assert not whole._in_parts
        if precision == "fp32":  # in 8 bits, the scale of an activation depends on the batch
            assert_close(answer if count > 1 else [answer], expected if count > 1 else [expected])
    list(pipe(iter(frames[:2]), batch_size=2 * count, **asked))
    assert encoded == [count]  # still known


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_both_parts_together_answer_as_the_whole(
    folder: Path, tiny_processor: HiVGProcessor, pictures: list[Any], precision: str
) -> None:
    path = folder / "onnx" / onnx_model.MODEL_FILES[precision]
    inputs = tiny_processor(images=pictures[:3], text=[TEXTS[2]] * 3, return_tensors="pt")
    inputs = {name: inputs[name] for name in ("input_ids", "attention_mask", "pixel_values", "pixel_mask")}
    model = OnnxModel(path, onnx_model.HiVGConfig.from_pretrained(folder))
    first = model(**inputs, output_masks=True, output_token_logits=True)
    assert not model._in_parts  # one call says nothing of a stream
    again = model(**inputs, output_masks=True, output_token_logits=True)
    assert model._in_parts
    for name in ("pred_boxes", "scores", "mask_logits", "token_logits"):
        assert (first[name] - again[name]).abs().max() <= 1e-5, name
    words = {name: inputs[name][:1] for name in ("input_ids", "attention_mask")}
    pictures_alone = {name: inputs[name] for name in ("pixel_values", "pixel_mask")}
    indexed = model(**words, **pictures_alone, text_index=torch.tensor([0, 0, 0]), output_masks=True)
    assert (indexed.pred_boxes - first.pred_boxes).abs().max() <= 1e-5


def test_other_words_are_encoded_anew(
    folder: Path, tiny_processor: HiVGProcessor, pictures: list[Any], encoded: list[int]
) -> None:
    model = OnnxModel(folder / "onnx" / "model.onnx", onnx_model.HiVGConfig.from_pretrained(folder))
    plain = OnnxModel(model.path, model.config)
    for text in ("red", "red", "the star", "red", "red"):
        inputs = tiny_processor(images=pictures[:1], text=text, return_tensors="pt")
        inputs = {name: inputs[name] for name in ("input_ids", "attention_mask", "pixel_values", "pixel_mask")}
        plain._said = (b"", {})  # as if it had never been asked
        assert (model(**inputs).pred_boxes - plain(**inputs).pred_boxes).abs().max() <= 1e-5
    assert encoded == [1, 1, 1]
    assert not plain._in_parts


def test_parts_are_written_with_the_identity_of_the_whole(copy_of_folder: Path) -> None:
    path = copy_of_folder / "onnx" / "model.onnx"
    text, grounding = onnx_split.write_parts(path)
    assert [text.name, grounding.name] == ["text_model.onnx", "grounding_model.onnx"]
    whole = read_graph(path)
    parts = [read_graph(part) for part in (text, grounding)]
    assert {GraphIdentity.of_file(part) for part in parts} == {GraphIdentity.of_file(whole)}
    assert [value.name for value in parts[0].graph.input] == ["input_ids", "attention_mask"]
    passed = [value.name for value in parts[0].graph.output]
    assert passed == onnx_split.words_alone(whole)
    assert {*passed} <= {value.name for value in parts[1].graph.input}
    assert [value.name for value in parts[1].graph.output] == [value.name for value in whole.graph.output]
    assert text.stat().st_size + grounding.stat().st_size < 1.1 * path.stat().st_size  # weights are not there twice
    matrices = [tensor.name for tensor in parts[1].graph.initializer if len(tensor.dims) > 1]  # equal vectors are one
    assert not [name for name in matrices if "text_projection" in name or "text_model" in name]


def test_a_part_of_another_model_is_made_anew_with_the_others(
    copy_of_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = copy_of_folder / "onnx" / "model.onnx"
    text, _ = onnx_split.write_parts(path)
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(onnx_export, "export_onnx", lambda *_, **options: asked.append(options))
    (copy_of_folder / "onnx" / "model_fp16.onnx").unlink()
    write_current_onnx(copy_of_folder)
    assert asked == []
    file = onnx.load(str(text))
    onnx.helper.set_model_props(file, {**GraphIdentity.of_file(file).as_metadata(), "hivg_weights_sha256": "0" * 64})
    onnx.save(file, str(text))
    write_current_onnx(copy_of_folder)
    assert asked == [{"masks": True, "tokens": True, "int8": True, "split": True}]


def test_a_model_that_mixes_its_batch_stays_whole(
    folder: Path,
    tiny_model: HiVGForVisualGrounding,
    tiny_processor: HiVGProcessor,
    pictures: list[Any],
    tmp_path: Path,
) -> None:
    config = onnx_model.HiVGConfig.from_pretrained(folder, bridge_mixes_batch=True)
    model = OnnxModel(folder / "onnx" / "model.onnx", config)
    inputs = tiny_processor(images=pictures[:1], text="red", return_tensors="pt")
    inputs = {name: inputs[name] for name in ("input_ids", "attention_mask", "pixel_values", "pixel_mask")}
    model(**inputs)
    model(**inputs)
    assert not model._in_parts
    with pytest.raises(ValueError, match="With bridge_mixes_batch samples read each other's words"):
        onnx_export.write_onnx_files(
            HiVGForVisualGrounding(config), tiny_processor, tmp_path, model.identity, split=True
        )


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_an_export_in_parts_is_compared_with_the_whole(
    copy_of_folder: Path, tiny_model: HiVGForVisualGrounding, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = onnx_export.GroundingGraph(tiny_model, True, True)
    path = copy_of_folder / "onnx" / onnx_model.MODEL_FILES[precision]
    assert onnx_export._split_difference(graph, path) <= 1e-5
    assert all((path.parent / name).is_file() for name in onnx_split.SPLIT_FILES[path.name])
    monkeypatch.setattr(onnx_export, "SPLIT_TOLERANCE", -1.0)
    with pytest.raises(ValueError, match=r"in two parts differs from itself in one by .* in its boxes"):
        onnx_export._split_difference(graph, path)
