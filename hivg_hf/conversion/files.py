"""Reading an official file: which kind it is, its weights under plain names, its LoRA pairs apart, its arguments.

The authors publish and their code writes three kinds, told apart by their names alone:

- a whole model (`best_checkpoint.pth`): CLIP under `clip.`, and the heads;
- CLIP with bridges (`clip_lora_stage_with_bridge.pth`): CLIP without the `clip.`, with `cross_*` in its vision layers;
- CLIP without them (`clip_b_ml_cascade_maskrcnn_model_224.pth`, the "debiased" CLIP that training starts from).

Each may hold LoRA pairs, and `base_model.model.` as often as its code wrapped CLIP for PEFT.
"""

import os
import re
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from hivg_hf.utils.safe_pickle import foreign_kind, load_torch_file

WHOLE_MODEL = "a whole model"
CLIP_WITH_BRIDGES = "CLIP with bridges"
CLIP_ALONE = "CLIP alone"

# Keys under which training scripts put the weights; the official code uses the first.
WEIGHT_KEYS = ("model", "state_dict")
# Names that no file with heads is without. Official: models/HiVG.py:736-748
HEAD_MARKS = ("reg_token.weight", "bbox_embed.layers.0.weight", "vl_pos_embed.weight")
CLIP_MARKS = ("clip.text_model.", "clip.vision_model.")


@dataclass(frozen=True)
class LoraPair:
    """The two factors of a low-rank term: `down` is lora_A (r, inputs), `up` is lora_B (outputs, r)."""

    down: Tensor
    up: Tensor

    @property
    def rank(self) -> int:
        return self.down.shape[0]


@dataclass(frozen=True)
class OfficialFile:
    """What an official file holds.

    Args:
        path: where it was read from.
        kind: WHOLE_MODEL, CLIP_WITH_BRIDGES or CLIP_ALONE.
        weights: plain official name to tensor, without the LoRA factors; CLIP's names start with `clip.`.
        lora: plain official name of a linear module to its LoRA pair.
        args: the arguments that the file was trained with, or None.
        unread: names of other sets of weights in the file, such as `model_ema`, which nothing here reads.
    """

    path: str
    kind: str
    weights: dict[str, Tensor]
    lora: dict[str, LoraPair]
    args: Namespace | None
    unread: tuple[str, ...] = ()


def read_official_file(path: str | os.PathLike[str]) -> OfficialFile:
    """Read a `.pth` or `.safetensors` file that the official code wrote, or that was made from one.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: the file is truncated, would run code, or has no HiVG and no CLIP.
    """
    state, args, unread = _read(Path(path))
    weights: dict[str, Tensor] = {}
    for name, tensor in state.items():
        plain = plain_name(name)
        if plain in weights:
            raise ValueError(f"{path} holds the parameter {plain!r} twice, once of them as {name!r}.")
        weights[plain] = tensor
    kind = _kind(weights, path)
    if kind != WHOLE_MODEL:
        weights = {f"clip.{name}": tensor for name, tensor in weights.items()}
    weights, lora = _split_lora(weights, path)
    return OfficialFile(str(path), kind, weights, lora, args, unread)


def plain_name(name: str) -> str:
    """An official name without what wrapped the model: PEFT (old or new, any number of times) and DataParallel."""
    name = re.sub(r"(base_model\.model\.)+", "", name.removeprefix("module."))
    return name.replace(".base_layer.", ".")


def _read(path: Path) -> tuple[Mapping[str, Tensor], Namespace | None, tuple[str, ...]]:
    """The state dict as it stands in the file, the arguments beside it, and the names of other state dicts."""
    if path.is_dir():
        raise ValueError(
            f"{path} is a folder, and official checkpoints are single files; a folder that this package wrote opens "
            "with HiVGForVisualGrounding.from_pretrained."
        )
    if not path.is_file():
        raise FileNotFoundError(f"File not found: {path}.")
    if path.suffix == ".safetensors":
        if foreign := foreign_kind(path):
            raise ValueError(f"{path} is {foreign}; expected a safetensors file.")
        try:
            return _named(load_file(path), path), None, ()
        except SafetensorError as error:
            raise ValueError(f"{path} is not a whole safetensors file ({error}); fetch it again.") from error
    content = load_torch_file(path)
    args, unread = None, ()
    if isinstance(content, Mapping):
        args = _arguments(content.get("args"))
        weights = next((key for key in WEIGHT_KEYS if isinstance(content.get(key), Mapping)), None)
        if weights is not None:
            unread = tuple(key for key, value in content.items() if key != weights and _is_state_dict(value))
            content = content[weights]
    return _named(content, path), args, unread


def _named(content: Any, path: Path) -> Mapping[str, Tensor]:
    """A state dict, or the sentence that says what stands in its place."""
    if not isinstance(content, Mapping):
        found = f"a {type(content).__name__}"
    elif not content:
        found = "an empty dict"
    else:
        wrong = next((part for part in content.items() if not _is_parameter(*part)), None)
        if wrong is None:
            return content
        name, value = (str(part)[:80] for part in (repr(wrong[0]), type(wrong[1]).__name__))
        found = f"a dict with {name}: {value}"
    raise ValueError(
        f"{path} has no state dict but {found}; an official checkpoint has one under {WEIGHT_KEYS[0]!r}, a dict of "
        "names to tensors."
    )


def _is_parameter(name: Any, value: Any) -> bool:
    return isinstance(name, str) and isinstance(value, Tensor)


def _is_state_dict(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(part, Tensor) for part in value.values())


def _arguments(args: Any) -> Namespace | None:
    if isinstance(args, Mapping):
        return Namespace(**{str(name): value for name, value in args.items()})
    return args if isinstance(args, Namespace) else None


def _kind(weights: Mapping[str, Tensor], path: str | os.PathLike[str]) -> str:
    """Tell the kind by its plain names."""
    if any(name.startswith(CLIP_MARKS) for name in weights) and any(mark in weights for mark in HEAD_MARKS):
        return WHOLE_MODEL
    if any(name.startswith("vision_model.") for name in weights) and any(n.startswith("text_model.") for n in weights):
        has_bridges = any(".cross_attn." in name for name in weights)
        return CLIP_WITH_BRIDGES if has_bridges else CLIP_ALONE
    raise ValueError(
        f"{path} is a checkpoint of another model: it has neither HiVG's heads over a `clip.` nor the two towers of a "
        f"CLIP; its first parameters are {', '.join(sorted(weights)[:3])}."
    )


def _split_lora(
    weights: Mapping[str, Tensor], path: str | os.PathLike[str]
) -> tuple[dict[str, Tensor], dict[str, LoraPair]]:
    """Take the factors `MODULE.lora_A.default.weight` and `MODULE.lora_B.default.weight` out of the weights.

    Raises:
        ValueError: a factor without its partner or without the weight it adds to, or shapes that do not fit.
    """
    plain = {name: tensor for name, tensor in weights.items() if ".lora_A." not in name and ".lora_B." not in name}
    pairs = {}
    for name in (name for name in weights if name not in plain):
        match = re.fullmatch(r"(.+)\.lora_([AB])\.(?:default\.)?weight", name)
        if match is None:
            raise ValueError(f"{path} holds {name!r}; official files have one adapter, `default`, and no more.")
        module = match[1]
        down, up = (weights.get(f"{name[: match.start(2)]}{side}{name[match.end(2) :]}") for side in "AB")
        base = plain.get(f"{module}.weight")
        if down is None or up is None or base is None:
            raise ValueError(f"{path} holds {name!r} without the rest of its pair or without {module}.weight.")
        if base.shape != (up.shape[0], down.shape[1]) or up.shape[1] != down.shape[0]:
            raise ValueError(
                f"{path} holds LoRA factors of {tuple(up.shape)} and {tuple(down.shape)} for {module}, whose weight "
                f"is {tuple(base.shape)}; the file is damaged or was put together from two."
            )
        pairs[module] = LoraPair(down, up)
    return plain, pairs
