"""An official file's weights as a state dict of this package: low-rank terms merged, names translated, all checked."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .files import OfficialFile
from .names import hivg_parameter_name, unused_reason
from .report import ConversionReport

if TYPE_CHECKING:
    from hivg_hf.modeling import HiVGConfig


def merge_lora(file: OfficialFile, kept: set[str], alpha: float, report: ConversionReport) -> dict[str, Tensor]:
    """The file's weights with W + alpha / r * B A for every low-rank term but the kept ones, computed in float64."""
    weights = dict(file.weights)
    for name, pair in file.lora.items():
        if name in kept:
            continue
        weight = weights[f"{name}.weight"]
        term = pair.up.double() @ pair.down.double() * (alpha / pair.rank)
        weights[f"{name}.weight"] = (weight.double() + term).to(weight.dtype)
        report.merged.append((hivg_parameter_name(f"{name}.weight") or name).removesuffix(".weight"))
    return weights


def translate(
    weights: Mapping[str, Tensor], file: OfficialFile, config: "HiVGConfig", report: ConversionReport
) -> dict[str, Tensor]:
    """Official names to ours; what is never read is dropped.

    Raises:
        ValueError: names that are neither.
    """
    projected, has_bridges = config.bridge_text_source == "projection", bool(config.bridge_layers)
    translated, unknown = {}, []
    for name, tensor in weights.items():
        reason, ours = unused_reason(name, projected, has_bridges), hivg_parameter_name(name)
        if reason is not None:
            report.dropped[name] = reason
        elif ours is not None:
            report.mapped[name] = ours
            translated[ours] = tensor
        else:
            unknown.append(name)
    if unknown:
        raise ValueError(f"{file.path} holds parameters that no official HiVG has: {', '.join(sorted(unknown))}.")
    return translated


def load_strictly(
    model: torch.nn.Module, weights: Mapping[str, Tensor], path: str, may_miss: tuple[str, ...]
) -> list[str]:
    """Load a state dict; give the names that it lacks and may lack (parts of names in `may_miss`).

    Raises:
        ValueError: anything else is missing, left over or of another shape.
    """
    expected = model.state_dict()
    lacking = [name for name in expected if name not in weights]
    created = [name for name in lacking if any(part in name for part in may_miss)]
    missing = sorted(set(lacking) - set(created))
    unexpected = sorted(set(weights) - set(expected))
    other = [
        f"{name} {tuple(weights[name].shape)} for {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    problems = [
        *([f"missing: {', '.join(missing)}"] if missing else []),
        *([f"not of this model: {', '.join(unexpected)}"] if unexpected else []),
        *([f"of another shape: {', '.join(other)}"] if other else []),
    ]
    if problems:
        raise ValueError(f"{path} does not fit the model; {'; '.join(problems)} (names of this package).")
    model.load_state_dict(weights, strict=False)
    return created
