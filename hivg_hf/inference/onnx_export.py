"""A model as ONNX files that other runtimes read, with what is needed to feed them, and a check that they agree.

Files lie in `onnx/` of a model folder under the names that Transformers.js and optimum use, and each says in its
metadata which weights, config and version of this package it was made from (`GraphIdentity`).
"""

import copy
import logging
import warnings
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hivg_hf.hub import load_with_stages
from hivg_hf.modeling.modeling_hivg import HiVGForVisualGrounding
from hivg_hf.modeling.processing_hivg import HiVGProcessor
from hivg_hf.utils.atomic import atomic_folder, write_json
from hivg_hf.utils.imports import require_package

from .onnx_model import (
    MODEL_FILES,
    ONNX_FOLDER,
    PRECISIONS,
    GraphIdentity,
    check_onnx_paths,
    open_session,
    patches_of,
    read_graph,
)
from .onnx_split import SPLIT_FILES, write_parts

SETTINGS_NAME = "grounding.json"
OPSET = 18
TOLERANCE, SPLIT_TOLERANCE = 1e-4, 1e-5
# Above, weights go into a file beside the graph: a protobuf file ends at 2 GB, and one that holds its weights is
# read whole into memory before it is used.
LARGEST_SINGLE_FILE = 200_000_000
CHECKED_BATCHES = (1, 8)
SMALLEST_HALVED = 1024  # bytes
# Where a rounding error moves the box itself, and where there is next to nothing to gain.
FULL_PRECISION_PARTS = ("box_head", "score_head", "patch_embedding")


class GroundingGraph(nn.Module):
    """The forward pass with positional tensors in and out, as an exporter needs it."""

    def __init__(self, model: HiVGForVisualGrounding, masks: bool, tokens: bool):
        super().__init__()
        self.model = model
        self.masks = masks
        self.tokens = tokens or model.config.score == "similarity"  # the score is made of them

    @property
    def input_names(self) -> tuple[str, ...]:
        padding = "patch_index" if self.model.config.skip_padded_patches else "pixel_mask"
        return ("input_ids", "attention_mask", "pixel_values", padding, "image_index")

    @property
    def output_names(self) -> tuple[str, ...]:
        scores = self.model.config.score == "head" or self.tokens
        several = self.model.config.num_queries > 1
        optional = {"scores": scores, "mask_logits": self.masks, "token_logits": self.tokens}
        optional |= {"query_boxes": several, "query_scores": several, "query_mask_logits": several and self.masks}
        return ("pred_boxes", *(name for name, given in optional.items() if given))

    def forward(self, input_ids, attention_mask, pixel_values, padding, image_index) -> tuple[torch.Tensor, ...]:
        """(B, T), (B, T), (I, 3, S, S), patch index (I, P) or pixel mask (I, S, S), (B,) -> `output_names`."""
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            pixel_values=pixel_values,
            image_index=image_index,
            output_masks=self.masks,
            output_token_logits=self.tokens,
            **{self.input_names[3]: padding},
        )
        return tuple(getattr(outputs, name) for name in self.output_names)


def export_onnx(
    model: HiVGForVisualGrounding,
    processor: HiVGProcessor,
    folder: str | Path,
    masks: bool = False,
    tokens: bool = False,
    int8: bool = False,
    float16: bool = False,
    split: bool = False,
) -> dict[str, float]:
    """Write `onnx/model.onnx` (any batch size, text length and number of patches) and what is needed to feed it.

    Args:
        model: float32; its adapters, if any, merged.
        processor: the processor saved with the model.
        folder: a new folder, which appears whole, after the check, or not at all, and gets config and tokenizer too;
            or the folder of this very model, of which `onnx/` is replaced.
        masks, tokens: also give `mask_logits` (and, of a model with several queries, `query_mask_logits`) and
            `token_logits`.
        int8: also write `onnx/model_quantized.onnx`, its matrices in 8 bits, quantized as they run (dynamically).
        float16: also write `onnx/model_fp16.onnx`: weights in half the space, computed with in float32.
        split: also write the graph, and that in 8 bits, in two parts, `onnx/text_model.onnx` and
            `onnx/grounding_model.onnx`: the outputs of one are inputs of the other, by their names.

    Returns:
        For each output the largest difference from torch, as `|a - b| / (1 + max |b|)`; with `int8` and `float16` also
        the largest move of a box's edge as a share of the square, `int8_box` and `float16_box`; with `split` that
        between the two parts and the one graph, `split_box`.

    Raises:
        ImportError: onnx, onnxruntime or onnxscript is not installed.
        ValueError: the file does not compute what the model computes, or the folder holds another model.
    """
    folder, identity = Path(folder), GraphIdentity.of_model(model)
    if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
        if GraphIdentity.of_folder(folder) != identity:
            raise ValueError(f"The folder {folder} holds another model than the one to export; choose another folder.")
        with atomic_folder(folder / ONNX_FOLDER) as temporary:
            return write_onnx_files(model, processor, temporary, identity, masks, tokens, int8, float16, split)
    with atomic_folder(folder) as temporary:
        (temporary / ONNX_FOLDER).mkdir()
        model.config.save_pretrained(temporary)
        processor.save_pretrained(temporary)
        place = temporary / ONNX_FOLDER
        return write_onnx_files(model, processor, place, identity, masks, tokens, int8, float16, split)


def write_current_onnx(folder: Path) -> None:
    """Put fp32 and int8 files with every output into a model folder, unless those there were made from its weights.

    Raises:
        ValueError: the folder has no whole model; adapters are exported merged.
    """
    expected = GraphIdentity.of_folder(folder)
    paths = [folder / ONNX_FOLDER / MODEL_FILES[precision] for precision in PRECISIONS]
    others = [path for path in (folder / ONNX_FOLDER).glob("*.onnx") if path not in paths]
    if all(path.is_file() and GraphIdentity.of_file(read_graph(path)) == expected for path in [*paths, *others]):
        return
    model, processor = load_with_stages(str(folder))
    split = any((folder / ONNX_FOLDER / name).is_file() for names in SPLIT_FILES.values() for name in names)
    export_onnx(model, processor, folder, masks=True, tokens=True, int8=True, split=split)


def write_onnx_files(
    model: HiVGForVisualGrounding,
    processor: HiVGProcessor,
    folder: Path,
    identity: GraphIdentity,
    masks: bool = True,
    tokens: bool = True,
    int8: bool = False,
    float16: bool = False,
    split: bool = False,
) -> dict[str, float]:
    """The graphs and `grounding.json` in an existing folder; see `export_onnx`."""
    if split and model.config.bridge_mixes_batch:
        raise ValueError(
            "With bridge_mixes_batch samples read each other's words, so that the graph has no text part."
        )
    report = write_graphs(model, folder, identity, masks, tokens, int8, float16)
    if split:
        written = [folder / MODEL_FILES[name] for name, wanted in (("fp32", True), ("int8", int8)) if wanted]
        report["split_box"] = max(_split_difference(GroundingGraph(model, masks, tokens), path) for path in written)
    write_json(folder / SETTINGS_NAME, _feeding_settings(model, processor, GroundingGraph(model, masks, tokens)))
    return report


def write_graphs(
    model: HiVGForVisualGrounding,
    folder: Path,
    identity: GraphIdentity,
    masks: bool,
    tokens: bool,
    int8: bool = False,
    float16: bool = False,
) -> dict[str, float]:
    """The graphs alone, checked against the model; see `export_onnx`."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        require_package(package, extra="onnx")
    # Eager attention exports to plain matrix products, which every runtime knows and fuses in its own way.
    model = copy.deepcopy(model).float().cpu().eval()
    model.set_attn_implementation("eager")
    graph, path = GroundingGraph(model, masks, tokens), folder / MODEL_FILES["fp32"]
    _write_graph(graph, path)
    _finish_graph(path, identity)
    report = check_onnx(graph, path)
    worst = max(report, key=lambda name: report[name])
    if not report[worst] <= TOLERANCE:
        raise ValueError(f"The exported file differs from the model by {report[worst]:.2g} in {worst}.")
    if int8:
        quantize(path, folder / MODEL_FILES["int8"])
        report["int8_box"] = _box_difference(graph, folder / MODEL_FILES["int8"])
    if float16:
        _store_halved(path, folder / MODEL_FILES["fp16"])
        report["float16_box"] = _box_difference(graph, folder / MODEL_FILES["fp16"])
    return report


def check_onnx(graph: GroundingGraph, path: Path, batches: Sequence[int] = CHECKED_BATCHES) -> dict[str, float]:
    """Largest `|a - b| / (1 + max |b|)` of each output over batch sizes and two text lengths.

    Logits near 0 are sums of large terms, whose last bits depend on the order of summation: torch itself moves them by
    more than 1e-4 of their own size between float32 and float64. So differences are measured by each tensor's scale.
    """
    session = open_session(path)
    report = dict.fromkeys(graph.output_names, 0.0)
    for batch in batches:
        for length in _text_lengths(graph.model):
            inputs = _random_inputs(graph, batch, length)
            with torch.no_grad():
                expected = graph(*inputs.values())
            found = session.run(list(graph.output_names), {name: value.numpy() for name, value in inputs.items()})
            for name, ours, theirs in zip(graph.output_names, expected, found, strict=True):
                scale = 1 + float(ours.abs().max())
                difference = float((torch.from_numpy(theirs) - ours).abs().max()) / scale
                report[name] = difference if difference != difference else max(report[name], difference)
    return report


def quantize(source: Path, target: Path) -> None:
    """Matrices of a graph in 8 bits, one scale for each column; what the source says of itself is kept.

    Weights are unsigned: where a processor has no VNNI, onnxruntime adds products with signed ones in 16 bits, which
    overflow in silence (1.7 points of the shipped model at IoU 0.75, 0.2 with unsigned ones; docs/export.md).
    """
    quantization = require_package("onnxruntime.quantization", extra="onnx")
    onnx = require_package("onnx", extra="onnx")
    nodes = onnx.load(str(source), load_external_data=False).graph.node
    kept = [node.name for node in nodes if any(part in name for part in FULL_PRECISION_PARTS for name in node.input)]
    kept += [f"{name}_MatMul" for name in kept]  # as the quantizer calls what it makes of a Gemm
    with _quiet_logging():
        quantization.quantize_dynamic(
            str(source),
            str(target),
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            weight_type=quantization.QuantType.QUInt8,
            nodes_to_exclude=kept,
        )
    _copy_metadata(source, target)


def _write_graph(graph: GroundingGraph, path: Path) -> None:
    size = sum(parameter.numel() * 4 for parameter in graph.parameters())
    batch, length = torch.export.Dim("batch", min=1, max=4096), torch.export.Dim.DYNAMIC
    images, patches = torch.export.Dim("images", min=1, max=4096), torch.export.Dim.DYNAMIC
    padding = {0: images, 1: patches} if graph.model.config.skip_padded_patches else {0: images}
    inputs = _random_inputs(graph, 3, _text_lengths(graph.model)[0])
    with warnings.catch_warnings(), _quiet_logging():
        warnings.simplefilter("ignore")  # the exporter's own notes on its deprecations
        torch.onnx.export(
            graph,
            tuple(inputs.values()),
            f=str(path),
            input_names=list(inputs),
            output_names=list(graph.output_names),
            dynamic_shapes=({0: batch, 1: length}, {0: batch, 1: length}, {0: images}, padding, {0: batch}),
            dynamo=True,
            opset_version=OPSET,
            external_data=size > LARGEST_SINGLE_FILE,
            verbose=False,
        )


def _finish_graph(path: Path, identity: GraphIdentity) -> None:
    """Say what the file was made from, and leave out what the exporter notes of it.

    It notes shapes between input and output before it transposes weights, so that some are wrong: onnxruntime does not
    mind, strict readers (and onnxruntime's own quantizer) do. And at each node the lines of code it came from, with
    the folders of this machine.
    """
    onnx = require_package("onnx", extra="onnx")
    file = onnx.load(str(path), load_external_data=False)
    del file.graph.value_info[:], file.graph.metadata_props[:]
    for node in file.graph.node:
        del node.metadata_props[:]
        node.ClearField("doc_string")
    onnx.helper.set_model_props(file, identity.as_metadata())
    written = path.with_name(f"{path.name}.data")
    if written.is_file():
        written.rename(path.with_name(f"{path.name}_data"))  # the name that Transformers.js looks for
    for tensor in file.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = f"{path.name}_data"
    onnx.save(file, str(path))
    check_onnx_paths(file, path)
    onnx.checker.check_model(str(path), full_check=True)


def _copy_metadata(source: Path, target: Path) -> None:
    onnx = require_package("onnx", extra="onnx")
    made_from = {entry.key: entry.value for entry in onnx.load(str(source), load_external_data=False).metadata_props}
    file = onnx.load(str(target), load_external_data=False)
    onnx.helper.set_model_props(file, made_from)
    onnx.save(file, str(target))


def _store_halved(source: Path, target: Path) -> None:
    """Weights in float16 on disk, each cast back before it is used: half the size, the same arithmetic."""
    onnx = require_package("onnx", extra="onnx")
    file = onnx.load(str(source))
    casts = []
    for tensor in file.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or tensor.ByteSize() < SMALLEST_HALVED:
            continue
        name, values = tensor.name, onnx.numpy_helper.to_array(tensor)
        tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype("float16"), f"{name}.float16"))
        casts.append(onnx.helper.make_node("Cast", [tensor.name], [name], f"{name}.cast", to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *file.graph.node]
    del file.graph.node[:]
    file.graph.node.extend(nodes)
    large = file.ByteSize() > LARGEST_SINGLE_FILE
    onnx.save(file, str(target), save_as_external_data=large, location=f"{target.name}_data" if large else None)


def _text_lengths(model: HiVGForVisualGrounding) -> tuple[int, int]:
    longest = model.config.max_text_length
    return max(3, longest // 3), longest


def _random_inputs(graph: GroundingGraph, batch: int, length: int) -> dict[str, torch.Tensor]:
    """Expressions of several lengths about letterboxed noise: half landscape, half portrait, one with two of them."""
    generator = torch.Generator().manual_seed(batch * 1000 + length)
    config, size = graph.model.config, graph.model.config.image_size
    lengths = torch.randint(3, length + 1, (batch,), generator=generator)
    lengths[0] = length
    attention_mask = (torch.arange(length) < lengths[:, None]).long()
    images = max(1, batch - 1)
    pixel_mask = torch.zeros(images, size, size, dtype=torch.long)
    pixel_mask[::2, : size // 2], pixel_mask[1::2, :, : size * 3 // 4] = 1, 1
    pixels = torch.randn(images, 3, size, size, generator=generator) * pixel_mask[:, None]
    input_ids = torch.randint(0, config.clip_config.text_config.vocab_size, (batch, length), generator=generator)
    padding = patches_of(pixel_mask, config) if config.skip_padded_patches else pixel_mask
    values = (input_ids, attention_mask, pixels, padding, torch.arange(batch) % images)
    return dict(zip(graph.input_names, values, strict=True))


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
        "inputs": list(graph.input_names),
        "outputs": list(graph.output_names),
        "boxes": "cx, cy, w, h in 0..1 of the padded square",
    }


@contextmanager
def _quiet_logging():
    """The exporter reports its steps, and the quantizer advises on every use to run another tool first."""
    loggers = [logging.getLogger(name) for name in ("", "torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _split_difference(graph: GroundingGraph, path: Path) -> float:
    """Write a graph in its two parts, and compare their boxes with its own.

    Raises:
        ValueError: they differ.
    """
    inputs = {name: value.numpy() for name, value in _random_inputs(graph, 3, _text_lengths(graph.model)[0]).items()}
    (whole,) = open_session(path).run(["pred_boxes"], inputs)
    text, grounding = map(open_session, write_parts(path))
    encoded = text.run(None, {value.name: inputs[value.name] for value in text.get_inputs()})
    inputs |= dict(zip((value.name for value in text.get_outputs()), encoded, strict=True))
    (parts,) = grounding.run(["pred_boxes"], {value.name: inputs[value.name] for value in grounding.get_inputs()})
    difference = float(abs(parts - whole).max())
    if not difference <= SPLIT_TOLERANCE:
        raise ValueError(f"{path.name} in two parts differs from itself in one by {difference:.2g} in its boxes.")
    return difference


def _box_difference(graph: GroundingGraph, path: Path) -> float:
    inputs: Mapping[str, torch.Tensor] = _random_inputs(graph, max(CHECKED_BATCHES), _text_lengths(graph.model)[0])
    with torch.no_grad():
        expected = graph(*inputs.values())[0]
    (found,) = open_session(path).run(["pred_boxes"], {name: value.numpy() for name, value in inputs.items()})
    return float((torch.from_numpy(found) - expected).abs().max())
