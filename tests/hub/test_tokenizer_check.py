"""Tokenizers of strangers: patterns that never end and texts that never fit are refused, CLIP's own pass."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, normalizers

from hivg_hf import TINY_CHECKPOINT
from hivg_hf.hub.tokenizer_check import check_tokenizer

CLIP = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def folder_of(tmp_path: Path, **content: Any) -> Path:
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    return tmp_path


def by_pattern(pattern: str, content: str = " ") -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}


def by_text(text: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": text}, "content": content}


def test_own_and_clips_tokenizers_pass(tmp_path: Path, tiny_checkpoint: str) -> None:
    check_tokenizer(Path(TINY_CHECKPOINT))
    check_tokenizer(Path(tiny_checkpoint))
    split = {"type": "Split", "pattern": {"Regex": CLIP}, "behavior": "Removed", "invert": True}
    check_tokenizer(folder_of(tmp_path, normalizer=by_pattern(r"\s+"), pre_tokenizer=split))


@pytest.mark.parametrize(
    "pattern",
    [r"(a+)+b", r"(a|a)+$", r"(?:(?:(?:a*)*)*)*c", r"((\w+\.?)+)+!", r"(((a{1,9}){1,9}){1,9})", "(" * 600 + ")" * 600],
)
@pytest.mark.parametrize("place", ["normalizer", "pre_tokenizer", "decoder"])
def test_patterns_that_may_never_end_are_refused(pattern: str, place: str, tmp_path: Path) -> None:
    step = {"type": "Sequence", "pretokenizers": [by_pattern(pattern)]}
    with pytest.raises(ValueError, match=r"has the pattern .* which may take for ever"):
        check_tokenizer(folder_of(tmp_path, **{place: step}))


@pytest.mark.parametrize(
    "steps",
    [
        [by_text("a", "a" * 10)] * 9,
        [by_text("a", "bb"), by_text("b", "cc"), by_text("c", "dd"), by_text("d", "ee"), by_text("e", "ff")],
        [{"type": "Prepend", "prepend": "x" * 10**6}],
        [by_pattern("x*", "y")] * 40,
        [by_pattern("x", "y" * 10**6)],
    ],
    ids=["tenfold", "chain", "prepend", "empty matches", "long"],
)
def test_texts_that_may_never_fit_are_refused(steps: list[dict[str, Any]], tmp_path: Path) -> None:
    normalizer = {"type": "Sequence", "normalizers": steps}
    with pytest.raises(ValueError, match=r"makes more than 16 characters of one"):
        check_tokenizer(folder_of(tmp_path, normalizer=normalizer))


@pytest.mark.parametrize(
    ("normalizer", "sentence"),
    [
        ({"type": "Precompiled", "precompiled_charsmap": ""}, r"a step 'Precompiled', which is unknown here"),
        ({"type": "Sequence", "normalizers": [{"type": "NFC"}] * 5000}, r"has 5,001 steps"),
    ],
)
def test_unknown_and_endless_steps_are_refused(normalizer: Any, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=sentence):
        check_tokenizer(folder_of(tmp_path, normalizer=normalizer))


def test_a_panic_of_the_tokenizers_library_is_a_sentence(tiny_processor: Any) -> None:
    processor = copy.deepcopy(tiny_processor)
    backend = processor.tokenizer.backend_tokenizer
    backend.normalizer = normalizers.Replace(Regex(r"(a+)+b"), " ")
    with pytest.raises(ValueError, match=r"The tokenizer gave up on the expression 'aaaa"):
        processor(text="a" * 400)


@pytest.mark.parametrize("length", [[1], 7.5, 10**12, 0, -1, True, "77", None])
def test_lengths_that_nothing_can_be_cut_to_are_refused(length: Any, tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": length}))
    with pytest.raises(ValueError, match=r"model_max_length in .* must be a whole number of tokens from 1 to"):
        check_tokenizer(tmp_path)
