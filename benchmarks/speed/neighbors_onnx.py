"""Grounding DINO and OWLv2 in onnxruntime, so that nobody is compared in an engine that is slow for everybody.

Neither exports as it is. Grounding DINO builds the masks of its words with operators that ONNX lacks, and samples its
pictures at float64 places, which onnxruntime has no kernel for: here the masks, functions of the words alone, are
constants of the graph, and the places are cast. Florence-2 writes its boxes word by word and has no single graph.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.models.grounding_dino import modeling_grounding_dino

from hivg_hf.inference.onnx_export import quantize
from hivg_hf.utils.imports import require_package

from .measure import Case

OPSET = 18
OUTPUTS = ("logits", "pred_boxes")


def onnx_cases(name: str, model: PreTrainedModel, inputs: Mapping[str, torch.Tensor], folder: Path) -> list[Case]:
    """A detector of transformers in onnxruntime, in float32 and with its matrices in 8 bits (as ours are).

    Args:
        name: Of the detector.
        model: One that gives `logits` and `pred_boxes`.
        inputs: What it is asked; the graphs have these shapes.
        folder: Where the graphs are written.
    """
    plain, small = folder / f"{type(model).__name__}.onnx", folder / f"{type(model).__name__}-int8.onnx"
    write_graph(model, inputs, plain)
    quantize(plain, small)
    return [
        _case(f"{name}, onnxruntime {precision}", path, model, inputs)
        for precision, path in (("fp32", plain), ("int8", small))
    ]


def write_graph(model: PreTrainedModel, inputs: Mapping[str, torch.Tensor], path: Path) -> None:
    """The model's logits and boxes for inputs of these shapes as an ONNX file that onnxruntime can run."""
    with warnings.catch_warnings(), torch.no_grad(), _constant_word_masks(model, inputs):
        warnings.simplefilter("ignore")  # the tracer's, about shapes that are meant to be constants
        torch.onnx.export(
            _Detector(model, list(inputs)).eval(),
            tuple(inputs.values()),
            str(path),
            input_names=list(inputs),
            output_names=list(OUTPUTS),
            opset_version=OPSET,
            dynamo=False,  # torch.export does not get through Swin's windows
        )
    _cast_places(path)


class _Detector(nn.Module):
    """Positional tensors in, a tuple out, as the tracer wants it."""

    def __init__(self, model: PreTrainedModel, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = self.model(**dict(zip(self.names, tensors, strict=True)))
        return tuple(outputs[name] for name in OUTPUTS)


@contextmanager
def _constant_word_masks(model: PreTrainedModel, inputs: Mapping[str, torch.Tensor]) -> Iterator[None]:
    maker = "generate_masks_with_special_tokens_and_transfer_map"
    if not isinstance(model, modeling_grounding_dino.GroundingDinoForObjectDetection):
        yield
        return
    masks = getattr(modeling_grounding_dino, maker)(inputs["input_ids"], model.model.special_tokens)
    with mock.patch.object(modeling_grounding_dino, maker, return_value=masks):
        yield


def _cast_places(path: Path) -> None:
    onnx = require_package("onnx", extra="onnx")
    file = onnx.load(str(path))
    for place, node in reversed(list(enumerate(file.graph.node))):
        if node.op_type == "GridSample":
            kind = onnx.TensorProto.FLOAT
            cast = onnx.helper.make_node("Cast", [node.input[1]], [f"{node.input[1]}_float32"], to=kind)
            node.input[1] = cast.output[0]
            file.graph.node.insert(place, cast)
    onnx.save(file, str(path))


def _open_session(path: Path) -> Any:
    """A session whose working memory is shared with the others opened here: each alone keeps up to 3 GB of it."""
    onnxruntime = require_package("onnxruntime", extra="onnx")
    _share_memory()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.use_env_allocators", "1")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@cache
def _share_memory() -> None:
    """Give the sessions that are opened here one pool of memory, once in a process."""
    runtime = require_package("onnxruntime", extra="onnx")
    kind = runtime.OrtAllocatorType.ORT_ARENA_ALLOCATOR
    runtime.create_and_register_allocator(runtime.OrtMemoryInfo("Cpu", kind, 0, runtime.OrtMemType.DEFAULT), None)


def _case(name: str, path: Path, model: PreTrainedModel, inputs: Mapping[str, torch.Tensor]) -> Case:
    session = _open_session(path)  # read whole: the file may go
    read = {one.name for one in session.get_inputs()}  # a mask of ones may have become a constant
    arrays = {key: value.numpy() for key, value in inputs.items() if key in read}
    return Case(name, lambda: session.run(None, arrays), parameters=model.num_parameters(), timed_only=True)
