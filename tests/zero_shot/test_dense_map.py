"""The vision tower run by hand: exact where CLIP defines the answer, and what each way to attend changes."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F

from hivg_hf.zero_shot import ZeroShotClip
from hivg_hf.zero_shot.clip_towers import Squares
from hivg_hf.zero_shot.dense_map import changed_blocks, dense_states, image_states, self_self_attention


@pytest.fixture
def squares():
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return Squares(pixels, torch.ones(2, 64, dtype=torch.bool))


def test_ordinary_attention_gives_clips_own_patch_features_exactly(clip, encoder, squares):
    with torch.no_grad():
        states = clip.vision_model(pixel_values=squares.pixel_values).last_hidden_state
        expected = F.normalize(clip.visual_projection(clip.vision_model.post_layernorm(states[:, 1:])), dim=-1)
    assert torch.equal(encoder.patches(squares), expected)


def test_pooled_features_are_clips_own_exactly(clip, encoder, squares):
    with torch.no_grad():
        expected = clip.visual_projection(clip.vision_model(pixel_values=squares.pixel_values).pooler_output)
    assert torch.equal(encoder.pooled(squares), F.normalize(expected, dim=-1))


def test_text_features_are_clips_own(clip, encoder, tiny_tokenizer):
    prompts = ["red star", "a blue star of the sea"]
    tokens = tiny_tokenizer(prompts, padding=True, return_tensors="pt")
    own = copy.deepcopy(clip)
    own.text_model.eos_token_id = tiny_tokenizer.eos_token_id  # the random config names another one
    with torch.no_grad():
        expected = own.text_projection(own.text_model(**tokens).pooler_output)
    assert torch.allclose(encoder.texts(prompts), F.normalize(expected, dim=-1), atol=1e-6)


def test_value_attention_of_one_block_is_the_block_with_identity_attention(clip, squares):
    hidden = ZeroShotClip(clip, None).embed(squares)
    dense = dense_states(clip, hidden, None, "value")
    before = image_states(clip, hidden, None, stop=-1)
    block = clip.vision_model.encoder.layers[-1]
    only_itself = torch.full((65, 65), float("-inf")).fill_diagonal_(0.0)[None, None]
    assert torch.allclose(dense, block(before, only_itself), atol=1e-5)


def test_self_self_attention_of_alike_tokens_returns_their_common_value(clip):
    block = clip.vision_model.encoder.layers[-1].self_attn
    token = torch.randn(1, 1, 16, generator=torch.Generator().manual_seed(0))
    expected = block.out_proj(block.v_proj(token)).expand(1, 5, 16)
    assert torch.allclose(self_self_attention(block, token.expand(1, 5, 16), None), expected, atol=1e-5)


def test_self_self_attention_groups_tokens_that_are_alike(clip):
    """Two kinds of tokens, apart: each gathers more of its own kind's value."""
    block = clip.vision_model.encoder.layers[-1].self_attn
    kinds = 4 * torch.randn(2, 16, generator=torch.Generator().manual_seed(3))
    states = self_self_attention(block, kinds[[0, 0, 1, 1]][None], None)[0]
    own = block.out_proj(block.v_proj(kinds))
    for token, kind in zip(states, (0, 0, 1, 1), strict=True):
        assert (token - own[kind]).norm() < (token - own[1 - kind]).norm()


@pytest.mark.parametrize("attention", ["ordinary", "value", "self-self"])
def test_padding_never_reaches_a_patch(clip, tiny_tokenizer, attention):
    encoder = ZeroShotClip(clip, tiny_tokenizer, attention=attention)
    mask = torch.ones(1, 64, dtype=torch.bool).view(1, 8, 8)
    mask[:, 5:] = False
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    other = pixels.clone()
    other[:, :, 40:] = 7.0
    first, second = (encoder.patches(Squares(p, mask.flatten(1)))[mask.flatten(1)] for p in (pixels, other))
    assert torch.allclose(first, second, atol=1e-6)


def test_the_three_ways_differ_and_defaults_follow_the_papers(clip, tiny_tokenizer, squares):
    features = [ZeroShotClip(clip, tiny_tokenizer, attention=a).patches(squares) for a in ("ordinary", "value")]
    features.append(ZeroShotClip(clip, tiny_tokenizer, attention="self-self").patches(squares))
    assert all((one - other).abs().max() > 1e-3 for one, other in itertools.pairwise(features))
    assert changed_blocks(12, "self-self") == 7
    assert changed_blocks(12, "value") == 1
    assert changed_blocks(12, "ordinary", 3) == 0


def test_a_larger_resolution_gives_a_finer_grid(clip, tiny_tokenizer):
    encoder = ZeroShotClip(clip, tiny_tokenizer, resolution=128)
    squares = Squares(torch.zeros(1, 3, 128, 128), torch.ones(1, 256, dtype=torch.bool))
    assert encoder.patches(squares).shape == (1, 256, 16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention": "values"}, "Expected attention to be one of ordinary, value, self-self, got 'values'"),
        ({"layers": 9}, r"Expected layers in 1\.\.4, the blocks of this CLIP, got 9"),
        ({"layers": 0}, r"Expected layers in 1\.\.4"),
        ({"templates": ("a photo",)}, "Expected templates with {} in place of the expression"),
        ({"resolution": 60}, "multiple of patch_size"),
    ],
)
def test_options_that_fit_nothing_are_refused(clip, tiny_tokenizer, options, message):
    with pytest.raises(ValueError, match=message):
        ZeroShotClip(clip, tiny_tokenizer, **options)
