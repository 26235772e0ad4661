"""Text is cleaned as the official tokenizer cleans it, by the saved tokenizer itself, and what nobody sees is gone."""

import copy
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import normalizers
from transformers import AutoProcessor, AutoTokenizer, CLIPTokenizer, TokenizersBackend

from hivg_hf import TINY_CHECKPOINT
from hivg_hf.modeling.image_processing_hivg import HiVGImageProcessor
from hivg_hf.modeling.processing_hivg import HiVGProcessor
from hivg_hf.modeling.text_cleaning_hivg import checked_expressions, clean_expression, cleaning_tokenizer

# What ftfy 6.3.1 `fix_text`, `html.unescape` twice, white space and lower case give; each kind once or twice.
OFFICIAL = {
    "the man\u2019s left hand": "the man's left hand",
    "\u201cSTOP\u201d sign \u201aup\u201b": "\"stop\" sign 'up'",
    "rock \u02bcn\u02bc roll": "rock 'n' roll",
    "the of\ufb01ce \ufb02oor, a\ufb04ict": "the office floor, afflict",
    "\u0132sberg \u01c5": "ijsberg d\u017e",
    "\uff32\uff25\uff24\u3000\uff42\uff55\uff53\uff01": "red bus!",
    "\uff76\uff9e \uffe5": "\u30ac \xa5",
    "\ufeffred mug": "red mug",
    "red\x00mug\x07": "redmug",
    "\x1b[31mred\x1b[0m mug": "red mug",
    "\x93hi\x94 it\x92s \x85": '"hi" it\'s \u2026',
    "cafe\u0301 sign": "caf\u00e9 sign",
    "red\u00a0mug\u2028\r\n\tleft": "red mug left",
    "\u03a3\u0391\u03a3 \u0130stanbul Stra\u00dfe": "\u03c3\u03b1\u03c2 i\u0307stanbul stra\u00dfe",
    "\u00bd x\u00b2 \u2122 \u2116 \u2026 \u2014": "\u00bd x\u00b2 \u2122 \u2116 \u2026 \u2014",
    "\U0001f469\u200d\U0001f4bb \u2764\ufe0f 1\ufe0f\u20e3 \U0001f1e9\U0001f1ea": (
        "\U0001f469\u200d\U0001f4bb \u2764\ufe0f 1\ufe0f\u20e3 \U0001f1e9\U0001f1ea"
    ),
    "\u0915\u094d\u200d\u0937 \u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645": (
        "\u0915\u094d\u200d\u0937 \u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"
    ),
    "&quot;a &amp;amp; b&quot; &lt;b&gt;": '"a & b" <b>',
}
INVISIBLE = (
    "\u200b \u200c \u200d \u200e \u200f \u202a \u202e \u2060 \u2064 \u2066 \u2069 \u206a \ufeff \u00ad \u034f \u061c "
    "\u180e \u115f \u3164 \uffa0 \ufe0e \ufe0f \ufff9 \ufffc \U000e0041 \U000e0100 \x00 \x1f \x7f \x9d"
).split(" ")


@pytest.fixture
def processor(tiny_tokenizer: CLIPTokenizer) -> HiVGProcessor:
    return HiVGProcessor(HiVGImageProcessor(size=64, patch_size=8), tiny_tokenizer)


def ids_of(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text).input_ids


@pytest.mark.parametrize("raw", OFFICIAL, ids=ascii)
def test_text_becomes_what_the_official_tokenizer_reads(processor, tiny_tokenizer, raw):
    assert clean_expression(raw) == OFFICIAL[raw]
    wanted = ids_of(tiny_tokenizer, OFFICIAL[raw])
    assert processor(text=raw)["input_ids"][0].tolist() == wanted
    if "&" not in raw:  # entities are the processor's
        assert ids_of(processor.tokenizer, raw) == wanted


@pytest.mark.parametrize("character", INVISIBLE, ids=ascii)
def test_what_nobody_sees_changes_nothing_and_is_blank_alone(processor, character):
    expected = ids_of(processor.tokenizer, "the red star")
    spellings = [f"{character}the red star", f"the re{character}d star", f"the {character * 3} red star{character}"]
    for text in spellings:
        assert ids_of(processor.tokenizer, text) == expected, ascii(text)
        assert processor(text=text)["input_ids"][0].tolist() == expected
    for blank in (character, f" {character}{character} ", f"\u200b{character}\ufe0f", f"&#{ord(character)};"):
        if blank in ("&#0;", "&#157;", "&#127;", "&#31;"):  # no characters in HTML
            continue
        with pytest.raises(ValueError, match=re.escape(f"is blank ({blank!r})")):
            checked_expressions(blank)


@pytest.mark.parametrize(
    "blank", ["", " ", "\u2800", "\u3000\u00a0", "&nbsp;", "&amp;nbsp;", "\x1b[0m", "\r\n"], ids=ascii
)
def test_blank_text_is_refused(processor, blank):
    with pytest.raises(ValueError, match="is blank"):
        processor(text=["the star", blank])


def test_cleaning_twice_is_cleaning_once():
    for raw in OFFICIAL:
        assert clean_expression(clean_expression(raw)) == clean_expression(raw), ascii(raw)


@pytest.mark.parametrize(
    "name", ["<|endoftext|>", "<|startoftext|>", "<|ENDOFTEXT|>", "<\u200b|endoftext|>", "&lt;|endoftext|>"]
)
def test_the_name_of_a_special_token_is_plain_text(processor, name):
    tokenizer = processor.tokenizer
    ids = processor(text=f"the {name} red star")["input_ids"][0].tolist()
    special = [place for place, token in enumerate(ids) if token in (tokenizer.bos_token_id, tokenizer.eos_token_id)]
    assert special == [0, len(ids) - 1]
    assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == f"the{clean_expression(name)}redstar"


@pytest.mark.parametrize("half", ["\ud83d", "red \ude00 mug", "\ude00\ud83d"], ids=ascii)
def test_half_a_character_is_refused_and_two_halves_are_one(processor, half):
    with pytest.raises(ValueError, match=r"holds half a character \(a lone surrogate\)"):
        processor(text=half)
    assert clean_expression("red \ud83d\ude00 mug") == "red \U0001f600 mug"


def test_a_saved_tokenizer_cleans_wherever_it_is_loaded(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    again.save_pretrained(tmp_path / "again")
    loaded = [AutoTokenizer.from_pretrained(tmp_path), again.tokenizer, pickle.loads(pickle.dumps(again)).tokenizer]
    for tokenizer in (*loaded, AutoTokenizer.from_pretrained(tmp_path / "again"), copy.deepcopy(processor).tokenizer):
        assert ids_of(tokenizer, "\ufeff\uff32\uff45d <|endoftext|>") == ids_of(
            processor.tokenizer, "red <|endoftext|>"
        )
        assert tokenizer.model_max_length == processor.tokenizer.model_max_length
    written = [(folder / "tokenizer.json").read_bytes() for folder in (tmp_path, tmp_path / "again")]
    assert written[0] == written[1]  # nothing is added a second time


def test_a_folder_of_an_older_version_cleans_too(processor, tiny_tokenizer, tmp_path):
    processor.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).unlink()
    tiny_tokenizer.save_pretrained(tmp_path)  # as version 0.1 saved it
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert ids_of(loaded.tokenizer, "\u200bRED \u201cstar\u201d") == ids_of(tiny_tokenizer, 'red "star"')


def test_the_shipped_checkpoint_cleans_with_its_tokenizer_alone():
    tokenizer = AutoTokenizer.from_pretrained(TINY_CHECKPOINT)
    assert ids_of(tokenizer, "\u200bthe RED\u00a0\ufb01sh <|endoftext|>") == ids_of(
        AutoProcessor.from_pretrained(TINY_CHECKPOINT).tokenizer, "the red fish <|endoftext|>"
    )
    assert tokenizer.eos_token_id not in ids_of(tokenizer, "<|endoftext|>")[1:-1]


def test_the_given_tokenizer_stays_as_it_was_and_reads_ordinary_text_alike(processor, tiny_tokenizer):
    assert type(tiny_tokenizer) is CLIPTokenizer
    assert tiny_tokenizer.split_special_tokens is False
    for text in ("the red star, left of it!", "stop!!", "5 o'clock", "a_b-c/d #1", "x"):
        ids = ids_of(tiny_tokenizer, text)
        assert ids_of(processor.tokenizer, text) == ids
        for skip in (False, True):
            assert processor.tokenizer.decode(ids, skip_special_tokens=skip) == tiny_tokenizer.decode(
                ids, skip_special_tokens=skip
            )
    assert len(processor.tokenizer) == len(tiny_tokenizer)
    assert processor.tokenizer.special_tokens_map == tiny_tokenizer.special_tokens_map


def test_another_tokenizers_own_normalizer_is_kept(tiny_tokenizer):
    other = TokenizersBackend(
        tokenizer_object=copy.deepcopy(tiny_tokenizer.backend_tokenizer), eos_token="<|endoftext|>"
    )
    other.backend_tokenizer.normalizer = normalizers.Replace("rouge", "red")
    for _ in range(2):
        other = cleaning_tokenizer(other)
        assert ids_of(other, "\u200bROUGE star") == ids_of(tiny_tokenizer, "red star")


def test_the_processor_pads_on_the_side_that_the_tokenizer_says(processor):
    """As CLIP's does; the model rolls such rows back (test_modeling_hivg.py)."""
    last = processor(text=["the star", "the big red star"])
    processor.tokenizer.padding_side = "left"
    first = processor(text=["the star", "the big red star"])
    words = int(last["attention_mask"][0].sum())
    assert first["attention_mask"][0].tolist() == last["attention_mask"][0].flip(0).tolist()
    assert torch.equal(first["input_ids"][0, -words:], last["input_ids"][0, :words])
    assert torch.equal(first["input_ids"][1], last["input_ids"][1])


def test_the_file_for_other_runtimes_holds_the_cleaning(processor, tmp_path):
    from tokenizers import Tokenizer

    processor.save_pretrained(tmp_path)
    plain = Tokenizer.from_file(str(Path(tmp_path) / "tokenizer.json"))
    assert plain.encode("\ufeffTHE \u201cred\u201d").ids == ids_of(processor.tokenizer, 'the "red"')
