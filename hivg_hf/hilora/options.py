"""Which options of `peft.LoraConfig` HiLoRA takes: those with which every published form computes what was trained.

Each field of `LoraConfig` is in one of three tables, and one that a newer PEFT adds is refused until it is in one:
`OWN_FIELDS` are set by stages and publishing, `ACCEPTED` may be given, `REFUSED` say why not.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from peft import LoraConfig

from hivg_hf.utils.strict_mapping import parse_json

OWN_FIELDS = {
    "r": "a stage's `rank`",
    "lora_alpha": "a stage's `alpha`",
    "lora_dropout": "a stage's `dropout`",
    "target_modules": "`targets`, and a stage's `vision_layers` and `text_layers`",
    "layers_to_transform": "a stage's `vision_layers` and `text_layers`",
    "layers_pattern": "a stage's `vision_layers` and `text_layers`",
    "modules_to_save": "HiLoRA, which always trains bridge and grounding_head",
    "bias": "HiLoRA, which never trains CLIP's own weights (`lora_bias` gives the terms a bias of their own)",
    "task_type": "HiLoRA, whose model has one task",
    "inference_mode": "HiLoRA, stage by stage",
    "peft_type": "PEFT",
    "auto_mapping": "PEFT",
    "peft_version": "PEFT",
    "base_model_name_or_path": "publishing",
    "revision": "publishing",
}


MOST_RANK = 65_536  # beyond the width of any CLIP


def _is_pattern(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(re.compile(value))
    except re.error:
        return False


def is_finite(value: float) -> bool:
    """Whether a model can compute with a number: an integer may be beyond every float, which `math` refuses."""
    return -3.4e38 < value < 3.4e38


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _are_modules(value: Any) -> bool:
    return (
        value is None
        or _is_pattern(value)
        or (isinstance(value, (list, tuple, set)) and all(isinstance(one, str) for one in value))
    )


def _are_ranks(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        _is_pattern(name) and isinstance(rank, int) and not isinstance(rank, bool) and 1 <= rank <= MOST_RANK
        for name, rank in value.items()
    )


def _are_alphas(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        _is_pattern(name) and isinstance(alpha, (int, float)) and not isinstance(alpha, bool) and is_finite(alpha)
        for name, alpha in value.items()
    )


# Starts that leave CLIP's weights as they are and ask for no pass over the data.
STARTS = (True, False, "gaussian", "orthogonal")

ACCEPTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "use_rslora": (_is_bool, "true or false"),
    "use_dora": (_is_bool, "true or false"),
    "lora_bias": (_is_bool, "true or false"),
    "init_lora_weights": (
        lambda value: any(value is start or (value == start and isinstance(value, str)) for start in STARTS),
        "one of True, False, 'gaussian' and 'orthogonal' (PiSSA, OLoRA and the others change CLIP's weights, need a "
        "pass over the data first, or freeze what a stage trains: what is published would not be what was trained)",
    ),
    "exclude_modules": (_are_modules, "a list of module names or a regular expression"),
    "rank_pattern": (_are_ranks, "a mapping of regular expressions to ranks of at least 1 and at most 65,536"),
    "alpha_pattern": (_are_alphas, "a mapping of regular expressions to numbers"),
}

_OTHER_START = "it belongs to a start that HiLoRA does not take (see init_lora_weights)"
REFUSED = {
    "loftq_config": _OTHER_START,
    "eva_config": _OTHER_START,
    "corda_config": _OTHER_START,
    "lora_ga_config": _OTHER_START,
    "fan_in_fan_out": "the towers' layers are all `nn.Linear`, which store weights the other way",
    "megatron_config": "the towers have no Megatron layers",
    "megatron_core": "the towers have no Megatron layers",
    "trainable_token_indices": "it trains CLIP's token embedding, which HiLoRA keeps as it is",
    "velora_config": "its compressed activations make gradients inexact, and no test covers stages with it",
    "alora_invocation_tokens": "it is made for text generation: a merged model cannot switch at a token",
    "use_qalora": "it works on quantized layers only, which cannot be merged exactly",
    "qalora_group_size": "it works on quantized layers only, which cannot be merged exactly",
    "monteclora_config": "it draws random weights, so that no merged model computes what was trained",
    "layer_replication": "it repeats layers of language models; the towers keep theirs",
    "runtime_config": "PEFT does not store it",
    "target_parameters": "the towers' linear layers are adapted as modules",
    "use_bdlora": "its block-diagonal terms cannot be put side by side with those of other stages",
    "arrow_config": "it chooses between adapters by the input, which no merged model can",
    "kasa_config": "it cuts CLIP's weights at the start, so that what is published would not be what was trained",
    "ensure_weight_tying": "the adapted layers share no weights",
}


def check_lora_options(options: Mapping[str, Any], where: str) -> None:
    """Refuse an option that HiLoRA sets itself, does not know, or could not publish exactly.

    An option with PEFT's default changes nothing and passes, unless HiLoRA sets it itself.

    Args:
        options: Fields of `LoraConfig`.
        where: What holds them, for the message.

    Raises:
        ValueError: With the option, its value and the reason.
    """
    known = {field.name: field for field in fields(LoraConfig)}
    for name, value in options.items():
        if name in OWN_FIELDS:
            raise ValueError(f"{where} holds `{name}`, which is set by {OWN_FIELDS[name]}: omit it here.")
        if name not in known:
            raise ValueError(f"{where} holds `{name}`, which peft.LoraConfig does not take: expected {_names()}.")
        if name in ACCEPTED:
            fits, expected = ACCEPTED[name]
            if not fits(value):
                raise ValueError(f"{where} holds {name}={value!r}; `{name}` must be {expected}.")
        elif value != _default(known[name]):
            reason = REFUSED.get(name, "this version of hivg_hf does not know whether it can be published exactly")
            raise ValueError(f"{where} holds {name}={value!r}, which HiLoRA refuses: {reason}; take {_names()}.")


MOST_ENTRIES = 2_000  # of a stored list or mapping; ViT-L has some 400 modules that could be named


def check_stored_options(path: Path) -> None:
    """Refuse a stored LoRA adapter whose options this package would not have trained with.

    They would change CLIP's weights as it is loaded (PiSSA), import code (`megatron_core`), or cannot be merged.

    Args:
        path: Its `adapter_config.json`.

    Raises:
        ValueError: The file cannot be read, or with the option and the reason.
    """
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
        if content["peft_type"] != "LORA":
            return
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not the config of an adapter ({error!r}); publish or download it again."
        ) from None
    strange = [name for name, value in content.items() if not _is_finite(value)]
    if strange:  # alpha NaN gives a model of NaN, whose answers are none
        raise ValueError(f"{path} holds numbers that are not finite ({', '.join(strange)}); publish it again.")
    many = [name for name, value in content.items() if isinstance(value, list | dict) and len(value) > MOST_ENTRIES]
    if many:  # each is tried on each of the model's modules
        raise ValueError(f"{path} has more than {MOST_ENTRIES:,} entries in {', '.join(many)}; publish it again.")
    rank = content.get("r")
    if isinstance(rank, int) and rank > MOST_RANK:
        raise ValueError(f"{path} has the rank r={rank:,}, and at most {MOST_RANK:,} is read; publish it again.")
    known = {field.name for field in fields(LoraConfig)}
    # what a newer PEFT writes and leaves empty means nothing here
    given = {name: value for name, value in content.items() if name in known or value}
    check_lora_options({name: value for name, value in given.items() if name not in OWN_FIELDS}, str(path))


def _is_finite(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_finite, value.values()))
    if isinstance(value, list):
        return all(map(_is_finite, value))
    return not isinstance(value, int | float) or is_finite(value)


_MATCH = """
import json, re, sys
patterns, names = json.load(sys.stdin)
for pattern in patterns:
    for name in names:
        re.fullmatch(pattern, name), re.match(rf"(.*\\.)?({pattern})$", name)
"""


def check_patterns(config: Any, names: Iterable[str], seconds: float = 10) -> None:
    """Refuse regular expressions of an adapter that take forever on a model's names, as `(.*)*x` does.

    Nothing can stop Python's `re` from inside its process, so another one tries them first.

    Args:
        config: Of the adapter, or what has its fields of this kind.
        names: Of the model's modules.
        seconds: That all of them may take; milliseconds are usual.

    Raises:
        ValueError: They take longer.
    """
    # `target_modules`, `feedforward_modules`, `rank_pattern`, `layers_pattern`, ...: a text, a list, or the keys of a
    # mapping; of modules, texts alone are patterns
    given = {name: value for name, value in vars(config).items() if name.endswith(("_modules", "_pattern"))}
    patterns = [value for value in given.values() if isinstance(value, str)]
    for name, value in given.items():
        if name.endswith("_pattern") and isinstance(value, (Mapping, list, tuple, set)):
            patterns += [pattern for pattern in value if isinstance(pattern, str)]
    if not any(set(pattern) & set("*+?{") for pattern in patterns):
        return
    question = json.dumps([patterns, list(names)])
    try:
        # an invalid pattern ends it early, and is named by PEFT
        subprocess.run(
            [sys.executable, "-I", "-S", "-c", _MATCH], input=question.encode(), timeout=seconds, capture_output=True
        )
    except subprocess.TimeoutExpired:
        shown = ", ".join(pattern[:60] for pattern in patterns)
        raise ValueError(
            f"its regular expressions ({shown}) take more than {seconds:g} seconds on the names of this model; name "
            "its layers in target_modules"
        ) from None


def _names() -> str:
    return "some of " + ", ".join(ACCEPTED)


def _default(field: Any) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()
