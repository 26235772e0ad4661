"""HiVG-tiny's tokenizer: one token per RefShapes word, and any other text by letters and bytes."""

from itertools import islice

import pytest
from transformers import CLIPTokenizer

from hivg_hf.data.refshapes import build_tokenizer, refshapes_samples
from hivg_hf.modeling.presets_hivg import CLIP_TINY


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def test_it_fits_the_tiny_preset(tokenizer):
    text = CLIP_TINY["text_config"]
    assert len(tokenizer) == text["vocab_size"]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (text["bos_token_id"], text["eos_token_id"])
    assert tokenizer.model_max_length == text["max_position_embeddings"]


@pytest.mark.parametrize("split", ["val", "text", "compositional"])
def test_every_refshapes_word_is_one_token(tokenizer, split):
    for sample in islice(refshapes_samples(split, seed=8), 40):
        text = sample.expressions[0].text
        assert len(tokenizer(text).input_ids) == len(text.split()) + 2


@pytest.mark.parametrize("text", ["the mug, left of the laptop!", "café numéro 3", "漢字 😀", "x"])
def test_any_text_tokenises_without_loss(tokenizer, text):
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.eos_token_id not in ids[:-1]
    decoded = tokenizer.decode(ids, skip_special_tokens=True)
    assert decoded.replace(" ", "") == text.replace(" ", "")


def test_it_is_saved_and_loaded_as_a_clip_tokenizer(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = CLIPTokenizer.from_pretrained(tmp_path)
    text = "The Second small STAR from the left"
    assert loaded(text).input_ids == tokenizer(text.lower()).input_ids
    assert loaded(["star", "a red star"], padding=True).attention_mask == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
