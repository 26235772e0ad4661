"""A model as an ONNX file that other runtimes read, with what is needed to feed it, and a check that it agrees."""

import copy
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hivg_hf.modeling.modeling_hivg import HiVGForVisualGrounding
from hivg_hf.modeling.processing_hivg import HiVGProcessor
from hivg_hf.utils.atomic import atomic_folder, write_json
from hivg_hf.utils.imports import require_package

MODEL_NAME = "model.onnx"
INT8_NAME = "model.int8.onnx"
SETTINGS_NAME = "grounding.json"
INPUT_NAMES = ("input_ids", "attention_mask", "pixel_values", "pixel_mask")
OPSET = 18
TOLERANCE = 1e-4
# A protobuf file ends at 2 GB; larger weights go into a file beside it.
LARGEST_SINGLE_FILE = 1_900_000_000
CHECKED_BATCHES = (1, 8)


class GroundingGraph(nn.Module):
    """The forward pass with positional tensors in and out, as an exporter needs it."""

    def __init__(self, model: HiVGForVisualGrounding, masks: bool, tokens: bool):
        super().__init__()
        self.model = model
        self.masks = masks
        self.tokens = tokens

    @property
    def output_names(self) -> tuple[str, ...]:
        scores = self.model.config.score == "head" or self.tokens
        optional = {"scores": scores, "mask_logits": self.masks, "token_logits": self.tokens}
        return ("pred_boxes", *(name for name, given in optional.items() if given))

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        pixel_values: torch.Tensor,
        pixel_mask: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """(B, T), (B, T), (B, 3, S, S), (B, S, S) -> the tensors of `output_names`."""
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            pixel_values=pixel_values,
            pixel_mask=pixel_mask,
            output_masks=self.masks,
            output_token_logits=self.tokens,
        )
        return tuple(getattr(outputs, name) for name in self.output_names)


def export_onnx(
    model: HiVGForVisualGrounding,
    processor: HiVGProcessor,
    folder: str | Path,
    masks: bool = False,
    tokens: bool = False,
    int8: bool = False,
) -> dict[str, float]:
    """Write `model.onnx` (dynamic batch and text length), the tokenizer and `grounding.json` to a new folder.

    Args:
        model: float32; its adapters, if any, merged.
        processor: the processor saved with the model.
        folder: appears whole, after the check, or not at all.
        masks, tokens: also give `mask_logits` and `token_logits`.
        int8: also write `model.int8.onnx`, its matrices in 8 bits, quantised as they run (dynamically).

    Returns:
        For each output the largest difference from torch, as `|a - b| / (1 + max |b|)`; with `int8` also the largest
        move of a box's edge as a share of the square, `int8_box`.

    Raises:
        ImportError: onnx, onnxruntime or onnxscript is not installed.
        ValueError: the file does not compute what the model computes.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        require_package(package, extra="onnx")
    if model.config.score == "similarity":
        tokens = True  # the score is made of them
    # Eager attention exports to plain matrix products, which every runtime knows and fuses in its own way.
    model = copy.deepcopy(model).float().cpu().eval()
    model.set_attn_implementation("eager")
    graph = GroundingGraph(model, masks, tokens)
    with atomic_folder(folder) as temporary:
        _write_graph(graph, temporary / MODEL_NAME)
        _forget_inner_shapes(temporary / MODEL_NAME)
        processor.tokenizer.save_pretrained(temporary)
        write_json(temporary / SETTINGS_NAME, _feeding_settings(model, processor, graph))
        report = check_onnx(graph, temporary / MODEL_NAME)
        worst = max(report, key=lambda name: report[name])
        if not report[worst] <= TOLERANCE:
            raise ValueError(f"The exported file differs from the model by {report[worst]:.2g} in {worst}.")
        if int8:
            _quantize(temporary / MODEL_NAME, temporary / INT8_NAME)
            report["int8_box"] = _box_difference(graph, temporary / INT8_NAME)
    return report


def check_onnx(graph: GroundingGraph, path: Path, batches: Sequence[int] = CHECKED_BATCHES) -> dict[str, float]:
    """Largest `|a - b| / (1 + max |b|)` of each output over batch sizes and two text lengths.

    Logits near 0 are sums of large terms, whose last bits depend on the order of summation: torch itself moves them by
    more than 1e-4 of their own size between float32 and float64. So differences are measured by each tensor's scale.
    """
    session = _session(path)
    report = dict.fromkeys(graph.output_names, 0.0)
    for batch in batches:
        for length in _text_lengths(graph.model):
            inputs = _random_inputs(graph.model, batch, length)
            with torch.no_grad():
                expected = graph(**inputs)
            found = session.run(None, {name: value.numpy() for name, value in inputs.items()})
            for name, ours, theirs in zip(graph.output_names, expected, found, strict=True):
                scale = 1 + float(ours.abs().max())
                report[name] = max(report[name], float(np.abs(theirs - ours.numpy()).max()) / scale)
    return report


def _write_graph(graph: GroundingGraph, path: Path) -> None:
    size = sum(parameter.numel() * 4 for parameter in graph.parameters())
    batch, length = torch.export.Dim("batch", min=1, max=4096), torch.export.Dim.DYNAMIC
    shapes = {"input_ids": {0: batch, 1: length}, "attention_mask": {0: batch, 1: length}}
    shapes |= {"pixel_values": {0: batch}, "pixel_mask": {0: batch}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own notes on its deprecations
        for talkative in ("torch.onnx", "onnxscript", "onnx_ir"):
            logging.getLogger(talkative).setLevel(logging.ERROR)
        torch.onnx.export(
            graph,
            kwargs=_random_inputs(graph.model, 2, _text_lengths(graph.model)[0]),
            f=str(path),
            input_names=list(INPUT_NAMES),
            output_names=list(graph.output_names),
            dynamic_shapes=shapes,
            dynamo=True,
            opset_version=OPSET,
            external_data=size > LARGEST_SINGLE_FILE,
            verbose=False,
        )


def _forget_inner_shapes(path: Path) -> None:
    """Leave the shapes between input and output to whoever reads the file.

    The exporter notes them before it transposes weights, so that some are wrong: onnxruntime does not mind, strict
    readers (and onnxruntime's own quantiser) do.
    """
    onnx = require_package("onnx", extra="onnx")
    file = onnx.load(str(path), load_external_data=False)
    del file.graph.value_info[:]
    onnx.save(file, str(path))
    onnx.checker.check_model(str(path), full_check=True)


def _text_lengths(model: HiVGForVisualGrounding) -> tuple[int, int]:
    longest = model.config.max_text_length
    return max(3, longest // 3), longest


def _random_inputs(model: HiVGForVisualGrounding, batch: int, length: int) -> dict[str, torch.Tensor]:
    """Expressions of several lengths and letterboxed noise, half of the images lying, half standing."""
    generator = torch.Generator().manual_seed(batch * 1000 + length)
    config, size = model.config, model.config.image_size
    lengths = torch.randint(3, length + 1, (batch,), generator=generator)
    lengths[0] = length
    attention_mask = (torch.arange(length) < lengths[:, None]).long()
    pixel_mask = torch.zeros(batch, size, size, dtype=torch.long)
    pixel_mask[::2, : size // 2], pixel_mask[1::2, :, : size // 2] = 1, 1
    pixels = torch.randn(batch, 3, size, size, generator=generator) * pixel_mask[:, None]
    vocabulary = config.clip_config.text_config.vocab_size
    input_ids = torch.randint(0, vocabulary, (batch, length), generator=generator)
    return dict(zip(INPUT_NAMES, (input_ids, attention_mask, pixels, pixel_mask), strict=True))


def _feeding_settings(
    model: HiVGForVisualGrounding, processor: HiVGProcessor, graph: GroundingGraph
) -> dict[str, Any]:
    """What a program without this package must know to make the inputs and read the outputs."""
    images = processor.image_processor
    return {
        "size": images.side,
        "patch_size": images.patch_size,
        "pad_align": images.pad_align,
        "image_mean": list(images.image_mean),
        "image_std": list(images.image_std),
        "max_text_length": model.config.max_text_length,
        "inputs": list(INPUT_NAMES),
        "outputs": list(graph.output_names),
        "boxes": "cx, cy, w, h in 0..1 of the padded square",
    }


def _session(path: Path) -> Any:
    onnxruntime = require_package("onnxruntime", extra="onnx")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _quantize(source: Path, target: Path) -> None:
    quantization = require_package("onnxruntime.quantization", extra="onnx")
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it advises on every use to run another tool first
    try:
        quantization.quantize_dynamic(str(source), str(target), weight_type=quantization.QuantType.QInt8)
    finally:
        root.setLevel(level)


def _box_difference(graph: GroundingGraph, path: Path) -> float:
    inputs = _random_inputs(graph.model, max(CHECKED_BATCHES), _text_lengths(graph.model)[0])
    with torch.no_grad():
        expected = graph(**inputs)[0].numpy()
    found = _session(path).run(["pred_boxes"], {name: value.numpy() for name, value in inputs.items()})[0]
    return float(np.abs(found - expected).max())
