"""Configs of strangers' adapters: sizes that take for ever or do not fit are refused before anything is made."""

import json
from pathlib import Path
from typing import Any

import pytest

from hivg_hf.hilora.options import check_stored_options

PLAIN = {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"]}


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ({"r": 10**9}, r"has the rank r=1,000,000,000, and at most 65,536 is read; publish it again"),
        ({"modules_to_save": [f"m{n}" for n in range(100_000)]}, r"has more than 2,000 entries in modules_to_save"),
        ({"target_modules": ["x"] * 2_001}, r"has more than 2,000 entries in target_modules"),
        ({"rank_pattern": {f"x{n}": 3 for n in range(200_000)}}, r"has more than 2,000 entries in rank_pattern"),
        ({"layers_to_transform": list(range(10**6))}, r"has more than 2,000 entries in layers_to_transform"),
        ({"trainable_token_indices": list(range(10**6))}, r"has more than 2,000 entries in trainable_token_indices"),
        ({"unheard_of": [0] * 10**6}, r"has more than 2,000 entries in unheard_of"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_sizes_beyond_any_model_are_refused(option: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**PLAIN, **option}))
    with pytest.raises(ValueError, match=sentence):
        check_stored_options(path)


def test_usual_sizes_pass(tmp_path: Path) -> None:
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**PLAIN, "r": 256, "target_modules": [f"layers.{n}.q_proj" for n in range(400)]}))
    check_stored_options(path)
