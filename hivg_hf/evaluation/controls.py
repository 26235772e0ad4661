"""Controls: what a claim about the bridge, or about reading the expression at all, has to be held against.

- `bridge-off`: every bridge passes its image tokens through unchanged.
- `constant-text`: every bridge reads one fixed expression instead of the one that was asked; the fusion encoder still
  reads the real one. Equal accuracy means that the bridge does not use the words.
- `other-expression`: the model is asked for another object of the same picture, and measured against the original
  one. What remains of the accuracy did not come from the expression.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from PIL import Image

from hivg_hf.utils.hooks import named_inputs

MODEL_CONTROLS = ("bridge-off", "constant-text")
CONTROLS = (*MODEL_CONTROLS, "other-expression")
CONSTANT_EXPRESSION = "the object"


@contextmanager
def apply_control(
    control: str | None, model: torch.nn.Module, processor: Any, expression: str = CONSTANT_EXPRESSION
) -> Iterator[None]:
    """Put a model under a control for the length of a `with` block; None and "other-expression" change nothing.

    Raises:
        ValueError: the control is unknown, or the model has no bridge.
    """
    if control == "bridge-off":
        context: Any = bridges_off(model)
    elif control == "constant-text":
        context = constant_bridge_text(model, processor, expression)
    elif control in (None, "other-expression"):
        context = nullcontext()
    else:
        raise ValueError(f"Unknown control {control!r}: choose among {', '.join(CONTROLS)}.")
    with context:
        yield


@contextmanager
def bridges_off(model: torch.nn.Module) -> Iterator[None]:
    """Every bridge returns the image tokens it was given.

    Raises:
        ValueError: the model has no bridge.
    """
    with ExitStack() as stack:
        for bridge in find_bridges(model):
            stack.enter_context(bridge.register_forward_hook(_pass_through, with_kwargs=True))
        yield


def _pass_through(bridge: torch.nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> torch.Tensor:
    return named_inputs(bridge, args, kwargs)["hidden_states"]


@contextmanager
def constant_bridge_text(
    model: torch.nn.Module, processor: Any, expression: str = CONSTANT_EXPRESSION, learning: bool = False
) -> Iterator[None]:
    """Every bridge reads `expression`, whatever was asked.

    Args:
        model: called itself, not a part of it, inside the `with` block.
        processor: of the model.
        expression: what the bridges read.
        learning: the text tower may change inside the block, so the expression is read anew at every call of the
            model; no gradient flows back through that reading.

    Raises:
        ValueError: the model has no bridge.
    """
    bridges = find_bridges(model)
    constant = _bridge_inputs(model, bridges, processor, expression)
    reading = False

    def read_anew(module: torch.nn.Module, args: tuple) -> None:
        nonlocal reading
        if reading:
            return
        reading, was_training = True, module.training
        try:
            constant.update(_bridge_inputs(model, bridges, processor, expression))
        finally:
            reading = False
            module.train(was_training)

    def replace(bridge: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        if reading:
            return args, kwargs
        inputs = named_inputs(bridge, args, kwargs)
        states, bias = constant[id(bridge)]
        rows = len(inputs["hidden_states"])
        # (1, T, D) -> (B, T, D); (1, 1, 1, T) -> (B, 1, 1, T)
        inputs["text_states"] = tuple(state.expand(rows, -1, -1) for state in states)
        inputs["text_bias"] = None if bias is None else bias.expand(rows, -1, -1, -1)
        return (), inputs

    with ExitStack() as stack:
        if learning:
            stack.enter_context(model.register_forward_pre_hook(read_anew))
        for bridge in bridges:
            stack.enter_context(bridge.register_forward_pre_hook(replace, with_kwargs=True))
        yield


def find_bridges(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The bridges of a model, those that PEFT keeps as copies included.

    Raises:
        ValueError: there are none.
    """
    # By name: a model loaded as remote code has a class of its own.
    bridges = [module for module in model.modules() if type(module).__name__ == "HiVGBridge"]
    if not bridges:
        raise ValueError("This model has no bridge (bridge_layers is empty), so there is none to control for.")
    return bridges


@torch.no_grad()  # no inference mode: a model may be trained under a control
def _bridge_inputs(
    model: torch.nn.Module, bridges: list[torch.nn.Module], processor: Any, expression: str
) -> dict[int, tuple[tuple[torch.Tensor, ...], torch.Tensor | None]]:
    """Text states and bias that each bridge receives for one expression, by running the model on a gray picture."""
    seen = {}

    def record(bridge: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        inputs = named_inputs(bridge, args, kwargs)
        seen[id(bridge)] = (inputs["text_states"], inputs["text_bias"])

    picture = Image.fromarray(np.full((32, 32, 3), 128, dtype=np.uint8))
    device = next(model.parameters()).device
    inputs = {name: tensor.to(device) for name, tensor in processor(images=[picture], text=[expression]).items()}
    with ExitStack() as stack:
        for bridge in bridges:
            stack.enter_context(bridge.register_forward_pre_hook(record, with_kwargs=True))
        model.eval()(**inputs)
    return seen


class OtherExpressions:
    """Rows of a dataset with other expressions in them; read row by row, as `predict` does.

    Args:
        dataset: the rows.
        replaced: number of a row to the expression it gets; other rows are left out.
    """

    def __init__(self, dataset: Any, replaced: dict[int, str]) -> None:
        self.dataset = dataset
        self.kept = sorted(replaced)
        self.expressions = [replaced[index] for index in self.kept]

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return {**self.dataset[self.kept[place]], "expression": self.expressions[place]}


def other_expressions(dataset: Any) -> OtherExpressions:
    """The rows of a dataset, each asking for another object of the same picture.

    The expression is that of the next row of the same image with another target; rows whose image has none are left
    out, as are rows without a target.
    """
    columns = dataset.select_columns(["image_id", "ref_id", "expression", "no_target"])
    by_image: dict[str, list[tuple[int, str, str]]] = defaultdict(list)
    for index, row in enumerate(columns):
        if not row["no_target"]:
            by_image[row["image_id"]].append((index, row["ref_id"], row["expression"]))
    replaced: dict[int, str] = {}
    for rows in by_image.values():
        for place, (index, ref_id, _) in enumerate(rows):
            others = [text for _, other, text in (*rows[place + 1 :], *rows[:place]) if other != ref_id]
            if others:
                replaced[index] = others[0]
    return OtherExpressions(dataset, replaced)


def paired_by_sentence(dataset: Any, other: Any) -> list[int]:
    """For each row of `other`, the row of `dataset` with the same `sent_id`."""
    places = {sent_id: index for index, sent_id in enumerate(dataset["sent_id"])}
    return [places[sent_id] for sent_id in other["sent_id"]]
