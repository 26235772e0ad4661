"""What a stranger's `tokenizer.json` may ask of the tokenizers library, which neither ends nor refuses on its own.

Its patterns backtrack (past a limit the library ends the process's work by a panic), and chained replacements make a
short expression as long as they like. A tokenizer of CLIP needs neither.
"""

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from .files import read_json

MOST_STEPS = 2_000
MOST_PATTERN = 1_000  # characters
MOST_GROWTH = 16  # of a character, by all replacements of text together
_STEPS = {
    "Sequence", "Replace", "Prepend", "Strip", "StripAccents", "Lowercase", "NFC", "NFD", "NFKC", "NFKD",
    "BertNormalizer", "Nmt",
}  # fmt: skip
_TOKEN = re.compile(r"\\.|\[(?:\\.|[^\]\\])*\]|[()|*+?]|\{[\d,]+\}", re.DOTALL)


def check_tokenizer(folder: Path) -> None:
    """Refuse a tokenizer whose patterns may never end or whose replacements may never fit.

    Raises:
        ValueError: With the first that is so.
    """
    _check_length(folder / "tokenizer_config.json")
    path = folder / "tokenizer.json"
    if not path.is_file():
        return  # whoever opens the tokenizer says so
    content = read_json(path)
    for pattern in _patterns([content.get(key) for key in ("normalizer", "pre_tokenizer", "decoder")]):
        if len(pattern) > MOST_PATTERN or _backtracks(pattern):
            raise ValueError(
                f"The tokenizer {path} has the pattern {pattern[:80]!r}, which may take for ever: repetitions stand "
                "in repetitions, or it is too long; save the tokenizer that the model was trained with."
            )
    _check_growth(path, list(_steps(content.get("normalizer"))))


def _check_length(path: Path) -> None:
    """Refuse a length that the tokenizer could not cut to; CLIP's is 77."""
    length = read_json(path).get("model_max_length", 1) if path.is_file() else 1
    if type(length) is not int or not 1 <= length < 2**31:
        raise ValueError(
            f"model_max_length in {path} must be a whole number of tokens from 1 to 2^31 - 1. Got {str(length)[:80]}; "
            "save the tokenizer that the model was trained with."
        )


def _patterns(tree: Any) -> Iterator[str]:
    """Every regular expression, wherever it stands."""
    left = [tree]
    while left:
        node = left.pop()
        if isinstance(node, dict):
            if isinstance(node.get("Regex"), str):
                yield node["Regex"]
            left.extend(node.values())
        elif isinstance(node, list):
            left.extend(node)


def _backtracks(pattern: str) -> bool:
    """Whether a group that repeats or chooses is repeated, which is what makes time grow without bounds."""
    groups = [False]  # whether the open groups hold a repetition or a choice
    tokens = [*_TOKEN.findall(pattern), ""]
    for token, after in pairwise(tokens):
        if token == "(":
            groups.append(False)
        elif token == ")" and len(groups) > 1:
            inner = groups.pop()
            if inner and after[:1] in ("*", "+", "{"):
                return True
            groups[-1] |= inner
        elif token == "|" or token[:1] in ("*", "+", "{"):
            groups[-1] = True
    return False


def _steps(normalizer: Any) -> Iterator[dict[str, Any]]:
    left = [normalizer]
    while left:
        step = left.pop()
        if isinstance(step, dict):
            yield step
            inner = step.get("normalizers")
            left.extend(reversed(inner) if isinstance(inner, list) else ())


def _check_growth(path: Path, steps: list[dict[str, Any]]) -> None:
    """Follow each text that is replaced through all later replacements."""
    unknown = [step.get("type") for step in steps if step.get("type") not in _STEPS]
    if unknown or len(steps) > MOST_STEPS:
        what = f"a step {unknown[0]!r}, which is unknown here" if unknown else f"{len(steps):,} steps"
        raise ValueError(f"The normalizer in {path} has {what}; save the tokenizer that the model was trained with.")
    texts, by_pattern = [], 0
    for step in steps:
        replacement = str(step.get("content", step.get("prepend", "")))
        plain = step.get("pattern", {}).get("String") if isinstance(step.get("pattern"), dict) else None
        if isinstance(plain, str) and plain:
            texts.append((plain, replacement))
        elif step.get("type") in ("Replace", "Prepend"):
            by_pattern += len(replacement)
    grown = 1
    for start, (first, _) in enumerate(texts):
        text = first
        for plain, replacement in texts[start:]:
            text = text.replace(plain, replacement)
            grown = max(grown, len(text) // len(first))
            if grown > MOST_GROWTH:
                break
    if grown > MOST_GROWTH or by_pattern > MOST_GROWTH:
        raise ValueError(
            f"The normalizer in {path} makes more than {MOST_GROWTH} characters of one; save the tokenizer that the "
            "model was trained with."
        )
