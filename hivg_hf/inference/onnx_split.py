"""One graph cut into two: what depends on the words alone, and the rest, so that words are encoded once for a stream.

The text graph has everything that no picture changes: the text tower, its projections, and what bridges and fusion
make of the words before they meet a picture. The grounding graph takes its outputs as inputs of the same names. Both
are cut out of the combined graph, so that they compute what it computes, with the same weights and the same data file.
"""

from pathlib import Path
from typing import Any

from hivg_hf.utils.imports import require_package

TEXT_INPUTS = ("input_ids", "attention_mask")
TEXT, GROUNDING = "text", "grounding"
SPLIT_FILES = {
    "model.onnx": ("text_model.onnx", "grounding_model.onnx"),
    "model_quantized.onnx": ("text_model_quantized.onnx", "grounding_model_quantized.onnx"),
}
# What makes a tensor worth keeping: masks, positions and sizes before the first of these cost nothing, and belong to
# the rows of a batch; they are computed again with the pictures.
PRODUCTS = {"MatMul", "Gemm", "MatMulInteger", "DynamicQuantizeMatMul"}
SIZES = {"Shape", "Size"}


def part_of(file: Any, part: str) -> Any:
    """One of the two graphs of a loaded ONNX file that has the words and the pictures in one.

    Args:
        file: without external data, whose place is the same for the part.
        part: `"text"` or `"grounding"`.

    Raises:
        ValueError: nothing in the graph depends on the words alone.
    """
    onnx = require_package("onnx", extra="onnx")
    words = words_alone(file)
    if not words:
        raise ValueError("The graph computes nothing from the words alone: it cannot be cut in two.")
    inputs = [value.name for value in file.graph.input]
    outputs = [value.name for value in file.graph.output]
    inferred = onnx.shape_inference.infer_shapes(file).graph.value_info
    types = {value.name: value.type.tensor_type.elem_type for value in inferred}
    whole = onnx.ModelProto()
    whole.CopyFrom(file)
    known = {value.name for value in [*file.graph.input, *file.graph.output, *file.graph.value_info]}
    whole.graph.value_info.extend(
        onnx.helper.make_tensor_value_info(name, types.get(name, onnx.TensorProto.FLOAT), None)
        for name in words
        if name not in known
    )
    extractor = require_package("onnx.utils", extra="onnx").Extractor(whole)
    if part == TEXT:
        cut = extractor.extract_model(list(TEXT_INPUTS), words)
    else:
        cut = extractor.extract_model([*inputs, *words], outputs)
    used = {name for node in cut.graph.node for name in node.input}
    unused = [value for value in cut.graph.input if value.name not in used]
    for value in unused:
        cut.graph.input.remove(value)
    onnx.helper.set_model_props(cut, {entry.key: entry.value for entry in file.metadata_props})
    return cut


def words_alone(file: Any) -> list[str]:
    """Tensors behind a product of matrices that the words alone decide and that something else reads, in their order.

    Each has a row for each expression.
    """
    from_words, behind_products = set(TEXT_INPUTS), set[str]()
    fixed = {tensor.name for tensor in file.graph.initializer} | {""}
    produced: list[str] = []
    readers: dict[str, list[Any]] = {}
    for node in file.graph.node:  # in topological order, as the standard demands
        for name in node.input:
            readers.setdefault(name, []).append(node)
        read = [name for name in node.input if name not in fixed]
        if not read and not any(attribute.HasField("g") for attribute in node.attribute):
            fixed.update(node.output)  # constants
        elif all(name in from_words for name in read):
            from_words.update(node.output)
            if node.op_type in PRODUCTS or (node.op_type not in SIZES and behind_products & {*read}):
                behind_products.update(node.output)
                produced += node.output
    given = {value.name for value in file.graph.output}
    return [
        name
        for name in produced
        if name in given or any(not behind_products & {*node.output} for node in readers.get(name, []))
    ]


def write_parts(path: Path) -> tuple[Path, Path]:
    """Write the two graphs of a combined file beside it; they share its data file, where it has one."""
    onnx = require_package("onnx", extra="onnx")
    file = onnx.load(str(path), load_external_data=False)
    targets = [path.with_name(name) for name in SPLIT_FILES[path.name]]
    for part, target in zip((TEXT, GROUNDING), targets, strict=True):
        onnx.save(part_of(file, part), str(target))
    return targets[0], targets[1]
