"""Official checkpoints and CLIP files to models of this package, strictly, by a table.

    model = load_official_checkpoint("best_checkpoint.pth")        # the variant that its own arguments describe
    model = load_official_checkpoint("best.safetensors", HiVGConfig.preset("base-unc"))
    model = load_official_clip("clip_b_ml_cascade_maskrcnn_model_224.pth")   # a new model around the debiased CLIP

Every parameter of a file is mapped, or merged, or on the named list of those that no official forward reads; anything
else is an error that lists it. `convert_official_checkpoint` also gives the report of what became of each.
"""

import logging
import os
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from .check import check_fit, config_for_file, published_clip_config
from .files import CLIP_ALONE, CLIP_WITH_BRIDGES, WHOLE_MODEL, LoraPair, OfficialFile, read_official_file
from .names import OFFICIAL_LOSS_NAMES, hivg_parameter_name, official_parameter_name, unused_reason
from .report import ConversionReport, module_groups
from .weights import load_strictly, merge_lora, translate

if TYPE_CHECKING:
    from transformers import CLIPConfig, CLIPModel

    from hivg_hf.modeling import HiVGConfig, HiVGForVisualGrounding, HiVGProcessor

__all__ = [
    "OFFICIAL_LOSS_NAMES",
    "Conversion",
    "ConversionReport",
    "convert_official_checkpoint",
    "load_official_checkpoint",
    "load_official_clip",
    "official_clip",
    "official_parameter_name",
]

logger = logging.getLogger(__name__)

OFFICIAL_LORA_ALPHA = 16  # HiVG.py:777; the rank, 32 there, is read from the shapes
OFFICIAL_LORA_DROPOUT = 0.1  # HiVG.py:778
# What a config may ask for that official weights do not have: ours alone, and fresh in a converted model.
OURS_ALONE = (".text_norms.", "grounding_head.score_head.")
# The bridges' low-rank terms: fresh where the file has them merged.
BRIDGE_LORA = tuple(
    f".bridge.attention.{name}_proj.{side}" for name in ("q", "k", "v", "out") for side in ("down", "up")
)


@dataclass
class Conversion:
    """A converted checkpoint: the model (a `PeftModel` around it with `lora="adapter"`) and the report."""

    model: Any
    report: ConversionReport


def load_official_checkpoint(
    path: str | os.PathLike[str],
    config: "HiVGConfig | None" = None,
    *,
    return_processor: bool = False,
    tokenizer: Any = None,
    **options: Any,
) -> Any:
    """Load an official checkpoint file.

    Args:
        path: `.pth` or `.safetensors`: a whole model, or CLIP with bridges (`clip_lora_stage_with_bridge.pth`), whose
            heads are then fresh, or CLIP alone, where bridges are fresh too.
        config: the variant; None builds the one that the file's own arguments describe.
        return_processor: also give the `HiVGProcessor` that the weights need.
        tokenizer: for the processor: a tokenizer, or the folder or Hub id of one. None takes OpenAI's CLIP's.
        options: of `convert_official_checkpoint`: `args`, `clip_config`, `lora`, `lora_alpha`, and fields of the
            config such as `bridge_mixes_batch=True`.

    Returns:
        The model in eval mode, `HiVGForVisualGrounding`; with `lora="adapter"` a `PeftModel` around it; with
        `return_processor` a pair.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: the file is damaged, refused or another model's; the config does not fit it; a parameter is
            missing or unknown.
    """
    conversion = convert_official_checkpoint(path, config, **options)
    logger.info("%s", conversion.report)
    if conversion.report.created:
        logger.warning(
            "%s has no weights for %s: they are freshly initialized and must be trained.",
            path,
            ", ".join(module_groups(conversion.report.created)),
        )
    if not return_processor:
        return conversion.model
    return conversion.model, official_processor(conversion.model.config, tokenizer)


def convert_official_checkpoint(
    path: str | os.PathLike[str] | OfficialFile,
    config: "HiVGConfig | None" = None,
    *,
    args: Namespace | Mapping[str, Any] | None = None,
    clip_config: "CLIPConfig | Mapping[str, Any] | None" = None,
    lora: Literal["merge", "adapter"] = "merge",
    lora_alpha: float = OFFICIAL_LORA_ALPHA,
    **overrides: Any,
) -> Conversion:
    """Load an official checkpoint file and say what became of each parameter.

    Args:
        path: the file, or what `read_official_file` gave.
        config: the variant; None builds the one that `args` describe.
        args: official arguments for a file that holds none, or instead of its own.
        clip_config: the CLIP configuration for `args`, where it is not a published one.
        lora: `"merge"` adds the low-rank terms to the weights; `"adapter"` keeps those of the two towers as a PEFT
            adapter named `hilora`, and those of the bridges where the config has `bridge_lora` (they are merged
            otherwise).
        lora_alpha: the terms are scaled by `lora_alpha / rank`.
        overrides: fields of the config to set otherwise.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: as `load_official_checkpoint`.
    """
    if lora not in ("merge", "adapter"):
        raise ValueError(f'lora must be "merge" or "adapter". Got {lora!r}.')
    if config is not None and (args is not None or clip_config is not None or overrides):
        given = [*(["args"] if args is not None else []), *(["clip_config"] if clip_config is not None else [])]
        raise ValueError(f"Give either a config or {', '.join([*given, *overrides])}: a config says it all.")
    file = _read(path)
    if config is None:
        config = config_for_file(file, args, clip_config, overrides)
    return _convert(file, config, lora_alpha, as_adapter=lora == "adapter", with_args=args is None)


def load_official_clip(path: str | os.PathLike[str], **config_overrides: Any) -> "HiVGForVisualGrounding":
    """A new model around an official CLIP file, its LoRA merged; bridges and heads are fresh.

    Args:
        path: the debiased CLIP that official training starts from.
        config_overrides: fields of `HiVGConfig`; `clip_config` where the CLIP is not a published one.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: the file has no plain CLIP; as `load_official_checkpoint`.
    """
    from hivg_hf.modeling import HiVGConfig

    file = _plain_clip_file(path)
    clip_config = config_overrides.pop("clip_config", None)
    clip_config = published_clip_config(file) if clip_config is None else clip_config
    conversion = _convert(file, HiVGConfig(clip_config=clip_config, **config_overrides), OFFICIAL_LORA_ALPHA)
    logger.info("%s", conversion.report)
    return conversion.model


def official_clip(
    path: str | os.PathLike[str] | OfficialFile,
    clip_config: "CLIPConfig | Mapping[str, Any] | None" = None,
    lora_alpha: float = OFFICIAL_LORA_ALPHA,
) -> "tuple[CLIPModel, ConversionReport]":
    """An official CLIP file as a plain transformers `CLIPModel`, its LoRA merged.

    Saved to a folder, it is what `HiVGForVisualGrounding.from_clip`, or any other user of CLIP, takes.

    Args:
        path: the debiased CLIP that official training starts from.
        clip_config: its configuration, where it is not a published one.
        lora_alpha: the low-rank terms are scaled by `lora_alpha / rank`.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: the file has no plain CLIP; as `load_official_checkpoint`.
    """
    from transformers import CLIPConfig, CLIPModel

    file = _plain_clip_file(path)
    clip_config = published_clip_config(file) if clip_config is None else clip_config
    config = clip_config if isinstance(clip_config, CLIPConfig) else CLIPConfig(**clip_config)
    report = ConversionReport(file.path, file.kind, unread=file.unread)
    weights = {}
    for name, tensor in merge_lora(file, set(), lora_alpha, report).items():
        reason = unused_reason(name, projected_text=False, has_bridges=False)
        if reason:
            report.dropped[name] = reason
        else:
            report.mapped[name] = name.removeprefix("clip.")
            weights[report.mapped[name]] = tensor
    model = CLIPModel(config)
    load_strictly(model, weights, file.path, may_miss=())
    return model.eval(), report


def official_processor(config: "HiVGConfig", tokenizer: Any = None) -> "HiVGProcessor":
    """The processor that a converted model needs.

    Args:
        config: of the model.
        tokenizer: a tokenizer, or the folder or Hub id of one; None takes that of OpenAI's CLIP ViT-B/16, which all
            its sizes share.

    Raises:
        OSError: there is no tokenizer at that place.
    """
    from transformers import CLIPTokenizer

    from hivg_hf.modeling import HiVGProcessor

    if tokenizer is None or isinstance(tokenizer, str | os.PathLike):
        place = "openai/clip-vit-base-patch16" if tokenizer is None else str(tokenizer)
        try:
            tokenizer = CLIPTokenizer.from_pretrained(place)
        except (OSError, ValueError, TypeError) as error:
            raise OSError(f"No CLIP tokenizer found at {place}; give one as tokenizer, a folder or Hub id.") from error
        if len(tokenizer) <= len(tokenizer.all_special_tokens):  # transformers' answer where no file can be reached
            raise OSError(
                f"No words found in the CLIP tokenizer at {place}, as where the Hub cannot be reached; connect, or "
                "give one as tokenizer, a folder or Hub id."
            )
    return HiVGProcessor.for_config(config, tokenizer)


def _convert(
    file: OfficialFile, config: "HiVGConfig", alpha: float, as_adapter: bool = False, with_args: bool = True
) -> Conversion:
    """Build the model of a config from a file that was read."""
    if config.num_queries > 1 and file.kind == WHOLE_MODEL:
        raise ValueError(
            f"{file.path} holds a model with one [REG] token, and num_queries={config.num_queries} was asked for: "
            "convert it as it is; a model with a score head then gets more by `model.add_queries`."
        )
    check_fit(file, config, has_heads=file.kind == WHOLE_MODEL, with_args=with_args)
    report = ConversionReport(file.path, file.kind, unread=file.unread)
    in_bridges = {name for name in file.lora if ".cross_" in name}
    kept = set(file.lora) - in_bridges if as_adapter else set()
    whole = in_bridges if config.bridge_lora and as_adapter else set()
    weights = translate(merge_lora(file, kept | whole, alpha, report), file, config, report)
    weights.update(_bridge_terms(file, whole, alpha, report))
    model = _build_model(config, weights, report)
    if kept:
        model = _with_adapter(model, {name: file.lora[name] for name in sorted(kept)}, alpha, report)
    return Conversion(model.eval(), report)


def _bridge_terms(file: OfficialFile, names: set[str], alpha: float, report: ConversionReport) -> dict[str, Tensor]:
    """The low-rank terms of the bridges, by the names of a model with `bridge_lora`."""
    from hivg_hf.modeling.modeling_hivg import LowRankLinear

    terms: dict[str, Tensor] = {}
    for name in sorted(names):
        pair = file.lora[name]
        if pair.rank != LowRankLinear.rank or alpha / pair.rank != LowRankLinear.scale:
            raise ValueError(
                f"{file.path} has bridge terms of rank {pair.rank} and scale {alpha / pair.rank:g}; `bridge_lora` is "
                f"of rank {LowRankLinear.rank} and scale {LowRankLinear.scale:g}. Omit it to have them merged."
            )
        ours = (hivg_parameter_name(f"{name}.weight") or name).removesuffix(".weight")
        terms |= {f"{ours}.down": pair.down, f"{ours}.up": pair.up}
        report.adapter.append(ours)
    return terms


def _read(path: str | os.PathLike[str] | OfficialFile) -> OfficialFile:
    return path if isinstance(path, OfficialFile) else read_official_file(path)


def _plain_clip_file(path: str | os.PathLike[str] | OfficialFile) -> OfficialFile:
    file = _read(path)
    if file.kind != CLIP_ALONE:
        raise ValueError(
            f"{file.path} holds {file.kind}, not a CLIP to start from; load it with load_official_checkpoint."
        )
    return file


def _build_model(
    config: "HiVGConfig", weights: Mapping[str, Tensor], report: ConversionReport
) -> "HiVGForVisualGrounding":
    """A model of that config with those weights; what the file's kind does not hold is fresh."""
    from hivg_hf.modeling import HiVGForVisualGrounding

    may_miss = {
        WHOLE_MODEL: (*OURS_ALONE, *BRIDGE_LORA),
        CLIP_WITH_BRIDGES: (*OURS_ALONE, *BRIDGE_LORA, "grounding_head."),
        CLIP_ALONE: (*OURS_ALONE, "grounding_head.", ".bridge."),
    }[report.kind]
    model = HiVGForVisualGrounding(config)
    report.created = load_strictly(model, weights, report.path, may_miss)
    if report.kind != WHOLE_MODEL:
        model.copy_visual_projection()  # fresh heads start as the official code's do
    return model


def _with_adapter(
    model: "HiVGForVisualGrounding", pairs: Mapping[str, LoraPair], alpha: float, report: ConversionReport
) -> Any:
    """Wrap the model with the towers' low-rank terms as one PEFT adapter, as progressive HiLoRA trains it on."""
    from peft import LoraConfig, get_peft_model

    from hivg_hf.hilora import PROGRESSIVE_ADAPTER

    ranks = {pair.rank for pair in pairs.values()}
    if len(ranks) > 1:
        raise ValueError(f'{report.path} mixes the ranks {sorted(ranks)}, which one adapter cannot; use lora="merge".')
    config = LoraConfig(
        r=ranks.pop(),
        lora_alpha=alpha,
        lora_dropout=OFFICIAL_LORA_DROPOUT,
        target_modules=sorted(pairs),
        bias="none",
    )
    peft_model = get_peft_model(model, config, adapter_name=PROGRESSIVE_ADAPTER)
    with torch.no_grad():
        for name, pair in pairs.items():
            module = model.get_submodule(name)
            module.lora_A[PROGRESSIVE_ADAPTER].weight.copy_(pair.down)
            module.lora_B[PROGRESSIVE_ADAPTER].weight.copy_(pair.up)
            report.adapter.append(name)
    return peft_model
