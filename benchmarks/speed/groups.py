"""What is measured beside what: groups of cases that alternate in the same rounds, and the ratios they answer."""

import copy
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from pathlib import Path

import torch
from peft import PeftModel
from torch import nn

from hivg_hf.hilora import HiLoraConfig, start_stage
from hivg_hf.inference.onnx_export import write_graphs
from hivg_hf.inference.onnx_model import MODEL_FILES, GraphIdentity, OnnxModel
from hivg_hf.modeling.configuration_hivg import HiVGConfig
from hivg_hf.modeling.modeling_hivg import HiVGForVisualGrounding

from .inputs import Batch, random_batch
from .measure import Case
from .official_reference import mask_head
from .straightforward import Straightforward, from_adapted, largest_difference, merge_random_adapters

STRAIGHTFORWARD = "official, straightforward"
BOX, MASK, ALL = "official", "official, with mask", "official, with mask and token logits"
NATIVE, NATIVE_MASK = "new model", "new model, with mask"


@dataclass(frozen=True)
class Comparison:
    """How many times less time (or memory, or operations) `fast` takes than `slow`.

    Args:
        at_least: the ratio of times that the project holds itself to, or None.
        memory_at_most: the same for memory, fast over slow, weights included.
    """

    slow: str
    fast: str
    at_least: float | None = None
    memory_at_most: float | None = None


@dataclass
class Group:
    """Cases that alternate, what is compared, and how far their results are apart."""

    name: str
    cases: list[Case]
    comparisons: list[Comparison]
    differences: dict[str, float] = field(default_factory=dict)


def inference_group(
    name: str,
    official: HiVGConfig,
    new: HiVGConfig,
    batch_size: int,
    variants: bool = False,
    compiled: bool = False,
) -> Group:
    """Inference of the official computation, straightforwardly and by this package, and of a new model.

    Args:
        name: of the group.
        official: an official variant.
        new: the new model of the same shape.
        batch_size: B.
        variants: also unmerged adapters and bfloat16.
        compiled: also `torch.compile`, which takes a minute to begin with.
    """
    model = HiVGForVisualGrounding(official).eval()
    plain = merge_random_adapters(model)
    batch = random_batch(official, batch_size)
    differences = _output_differences(model, plain, batch)

    slow = Case(STRAIGHTFORWARD, torch.no_grad()(lambda: plain(batch)), batch_size, (), plain.parameters)
    slow.note = "adapters beside the weights, eager attention, every output, 77 positions"
    cases = [
        slow,
        _ours(BOX, model, batch, output_scores=False),
        _ours(MASK, model, batch, output_masks=True, output_scores=False),
        _ours(ALL, model, batch, output_masks=True, output_token_logits=True),
    ]
    comparisons = [
        Comparison(STRAIGHTFORWARD, BOX, at_least=1.25 if batch_size == 1 else None, memory_at_most=1.0),
        Comparison(STRAIGHTFORWARD, MASK, at_least=1.2 if batch_size == 1 else None, memory_at_most=1.0),
        Comparison(STRAIGHTFORWARD, ALL),
    ]
    native, native_batch = HiVGForVisualGrounding(new).eval(), random_batch(new, batch_size)
    cases += [_ours(NATIVE, native, native_batch), _ours(NATIVE_MASK, native, native_batch, output_masks=True)]
    comparisons += [
        Comparison(STRAIGHTFORWARD, NATIVE, at_least=1.7 if batch_size == 1 else None),
        Comparison(STRAIGHTFORWARD, NATIVE_MASK),
    ]
    if variants:
        cases += _variants(model, batch)
    if compiled:
        cases.append(_ours(f"{BOX}, compiled", torch.compile(model), batch, output_scores=False))
        cases[-1].timed_only = True
    comparisons += [Comparison(BOX, case.name) for case in cases[6:]]
    return Group(name, cases, comparisons, differences)


def _variants(model: HiVGForVisualGrounding, batch: Batch) -> list[Case]:
    adapted = start_stage(copy.deepcopy(model), HiLoraConfig.for_model(model.config, stages=1), 1).eval()
    half = copy.deepcopy(model).to(torch.bfloat16)
    half_batch = {**batch, "pixel_values": batch["pixel_values"].to(torch.bfloat16)}
    return [
        _ours(f"{BOX}, adapters unmerged", adapted, batch),
        _ours(f"{BOX}, bfloat16", half, half_batch),
    ]


def _ours(name: str, model: nn.Module, batch: Batch, **outputs: bool) -> Case:
    return _case(name, torch.no_grad()(lambda: model(**batch, **outputs)), model, batch)


def _case(name: str, run: Callable[[], object], model: nn.Module, batch: Batch) -> Case:
    counted = model.get_base_model() if isinstance(model, PeftModel) else model
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Case(name, run, len(batch["pixel_values"]), (counted,), parameters)


@torch.no_grad()
def _output_differences(model: HiVGForVisualGrounding, plain: Straightforward, batch: Batch) -> dict[str, float]:
    """max |a - b| / (1 + |b|) of each output of the two."""
    ours, theirs = model(**batch, output_masks=True, output_token_logits=True), plain(batch)
    return {
        "boxes": largest_difference(ours.pred_boxes, theirs.pred_boxes),
        "token logits": largest_difference(ours.token_logits, theirs.token_similarity),
        "mask logits": largest_difference(ours.mask_logits, theirs.mask_logits[:, 0]),
        "contrastive logits": largest_difference(ours.logits_per_text, theirs.logits_per_text),
    }


TORCH, HALF, ONNX, INT8 = "torch fp32", "torch bf16", "onnxruntime fp32", "onnxruntime int8"


def engines_group(name: str, config: HiVGConfig) -> Group:
    """One answer of a new model in each engine and precision of the ordinary calls."""
    model = HiVGForVisualGrounding(config).eval()
    batch = random_batch(config, 1)
    half, half_batch = (
        copy.deepcopy(model).to(torch.bfloat16),
        {**batch, "pixel_values": batch["pixel_values"].bfloat16()},
    )
    cases = [_ours(TORCH, model, batch), _ours(HALF, half, half_batch)]
    exported, differences = _in_onnxruntime(model, batch)
    cases += exported
    comparisons = [
        Comparison(TORCH, HALF),
        Comparison(TORCH, ONNX, at_least=2.2),
        Comparison(TORCH, INT8, at_least=5.5),
    ]
    return Group(name, cases, comparisons, differences)


def _in_onnxruntime(
    model: HiVGForVisualGrounding, batch: Batch, prefix: str = ""
) -> tuple[list[Case], dict[str, float]]:
    """A model's answer in onnxruntime, in float32 and int8, and how far its boxes lie from torch's.

    Words change from answer to answer: those of the last one would not be encoded again.
    """
    cases, differences = [], {}
    other_words = {**batch, "input_ids": batch["input_ids"].flip(0, 1)}
    parameters = sum(parameter.numel() for parameter in model.parameters())
    with tempfile.TemporaryDirectory() as folder:
        write_graphs(model, Path(folder), GraphIdentity.of_model(model), masks=False, tokens=False, int8=True)
        for title, precision in ((f"{prefix}{ONNX}", "fp32"), (f"{prefix}{INT8}", "int8")):
            other = OnnxModel(Path(folder) / MODEL_FILES[precision], model.config)
            boxes = other(**batch).pred_boxes  # the session is open before the folder goes
            differences[f"boxes, {title}"] = largest_difference(boxes, model(**batch).pred_boxes.detach())
            turns = cycle([other_words, batch])
            cases.append(Case(title, partial(_next_answer, other, turns), 1, (), parameters, timed_only=True))
    return cases, differences


def _next_answer(model: OnnxModel, turns: Iterator[Batch]) -> object:
    return model(**next(turns))


def expressions_group(name: str, config: HiVGConfig, count: int) -> Group:
    """Several expressions of one image, each as an answer of its own against all in one pass that shares the image.

    What stands beside it, one pass over repeated images, says how much of the difference is the batch alone.
    """
    model = HiVGForVisualGrounding(config).eval()
    batch = random_batch(config, count)
    images: Batch = {key: batch[key][:1] for key in ("pixel_values", "pixel_mask", "patch_index") if key in batch}
    words: Batch = {key: batch[key] for key in ("input_ids", "attention_mask")}
    shared = {**words, **images, "image_index": torch.zeros(count, dtype=torch.long)}
    repeated = {**words, **{key: value.expand(count, *value.shape[1:]) for key, value in images.items()}}
    single = [{**images, **{key: value[i : i + 1] for key, value in words.items()}} for i in range(count)]

    @torch.no_grad()
    def one_by_one() -> list[object]:
        return [model(**inputs, output_scores=False) for inputs in single]

    options = {"output_scores": False}
    cases = [
        _case("one by one", one_by_one, model, repeated),
        _ours("one pass, image repeated", model, repeated, **options),
        _ours("one pass, image shared", model, shared, **options),
    ]
    with torch.no_grad():
        boxes = [model(**inputs, **options).pred_boxes for inputs in (shared, repeated)]
    comparisons = [
        Comparison("one by one", cases[2].name, at_least=1 / 0.78 if count == 4 else None),
        Comparison(cases[1].name, cases[2].name),
    ]
    return Group(name, cases, comparisons, {"boxes": largest_difference(*boxes)})


def training_group(name: str, official: HiVGConfig, new: HiVGConfig, batch_size: int) -> Group:
    """A training step with every official loss: forward, backward, AdamW. Adapters on all tower layers, bridges and
    heads train, CLIP's own weights do not. Both configs without dropout, so that gradients can be compared."""
    adapted = _adapted(official)
    plain, names = from_adapted(adapted, official)
    batch = random_batch(official, batch_size, labels=True)
    differences = {"gradients": _gradient_difference(adapted, plain, names, batch)}

    native, native_batch = _adapted(new), random_batch(new, batch_size, labels=True)
    cases = [
        Case(
            STRAIGHTFORWARD,
            _step(lambda: plain.loss(batch), list(plain.state.values())),
            batch_size,
            (),
            plain.parameters,
        ),
        _case(BOX, _step(lambda: adapted(**batch).loss, list(adapted.parameters())), adapted, batch),
        _case(NATIVE, _step(lambda: native(**native_batch).loss, list(native.parameters())), native, native_batch),
    ]
    comparisons = [
        Comparison(STRAIGHTFORWARD, BOX, at_least=1.3, memory_at_most=0.75),
        Comparison(STRAIGHTFORWARD, NATIVE),
    ]
    return Group(name, cases, comparisons, differences)


def _adapted(config: HiVGConfig) -> nn.Module:
    """A model in training mode with an adapter on every tower layer that already has an effect."""
    model = start_stage(HiVGForVisualGrounding(config), HiLoraConfig.for_model(config, stages=1, dropout=0.0), 1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.02)
    return model.train()


def _step(loss: Callable[[], torch.Tensor], parameters: list[torch.Tensor]) -> Callable[[], float]:
    """A whole step; the learning rate is 0, so that the work is done and the weights stay comparable."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.0, weight_decay=0.0)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return value.item()

    return step


def _gradient_difference(adapted: nn.Module, plain: Straightforward, names: dict[str, str], batch: Batch) -> float:
    """The largest difference of a parameter's gradient, relative to its norm; gradients of both sides are freed again.

    A key bias moves all scores of a query alike, so its true gradient is 0 and what is left is rounding: norms below
    a ten-thousandth of the whole gradient's count as that much.
    """
    adapted(**batch).loss.backward()
    plain.loss(batch).backward()
    trained = {name: parameter for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    theirs = {name: plain.state[names[name]].grad for name in trained}
    least = 1e-4 * torch.stack([gradient.norm() for gradient in theirs.values()]).norm()
    worst = max(
        float((parameter.grad - theirs[name]).norm() / theirs[name].norm().clamp(min=least))
        for name, parameter in trained.items()
    )
    adapted.zero_grad(set_to_none=True)
    for tensor in plain.state.values():
        tensor.grad = None
    return worst


def mask_head_group(name: str, config: HiVGConfig, batch_size: int) -> Group:
    """The mask head alone: three transposed convolutions as written against the folded product."""
    head = HiVGForVisualGrounding(config).grounding_head.eval()
    state = {f"seg_conv{k + 1}.weight": conv.weight for k, conv in enumerate(head.mask_convs)}
    patches = torch.randn(batch_size, config.grid_size**2, config.hidden_size)
    expression = nn.functional.normalize(torch.randn(batch_size, config.hidden_size), dim=-1)
    slow = Case("three convolutions", torch.no_grad()(lambda: mask_head(state, patches, expression)), batch_size)
    fast = Case("folded", torch.no_grad()(lambda: head.mask_similarity(patches, expression)), batch_size)
    slow.parameters = fast.parameters = sum(weight.numel() for weight in state.values())
    cells = fast.run().unflatten(1, (config.grid_size, config.grid_size))  # (B, G, G, 8, 8)
    mask = cells.permute(0, 1, 3, 2, 4).flatten(3).flatten(1, 2)  # (B, 8 G, 8 G)
    differences = {"mask logits": largest_difference(mask, slow.run()[:, 0])}
    return Group(name, [slow, fast], [Comparison(slow.name, fast.name)], differences)


def neighbor_group(name: str, official: HiVGConfig, new: HiVGConfig, others: list[Case]) -> Group:
    """Box only, beside the models that people ground with today, and beside CLIP alone; each in torch, and in
    onnxruntime where it exports (names of such cases begin with the name of the model's case in torch)."""
    cases: list[Case] = []
    differences: dict[str, float] = {}
    for title, config in ((BOX, official), (NATIVE, new)):
        model, batch = HiVGForVisualGrounding(config).eval(), random_batch(config, 1)
        exported, moved = _in_onnxruntime(model, batch, f"{title}, ")
        cases += [_ours(title, model, batch, output_scores=False), *exported]
        differences |= moved
    comparisons = [Comparison(case.name, ours) for case in others for ours in (BOX, NATIVE)]
    return Group(name, [*cases, *others], comparisons, differences)
