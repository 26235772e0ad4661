"""The small BPE tokenizer of HiVG-tiny: CLIP's algorithm with a vocabulary learned from RefShapes expressions.

The alphabet is CLIP's 256 byte letters, each also as a word end (`</w>`), so any text tokenises; merges are added
until every RefShapes word is one token. Loaded and saved as an ordinary `CLIPTokenizer`.
"""

import json
from functools import lru_cache
from itertools import islice

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from .dataset import refshapes_samples
from .language import COUNTS, RANKS
from .scenes import COLORS, FILLINGS, SHAPES, SHIFTED_COLORS, SIZES

START, END = "<|startoftext|>", "<|endoftext|>"
CONTEXT_LENGTH = 77


def build_tokenizer() -> CLIPTokenizer:
    """Build the tokenizer; the same one every time (the expressions come from a fixed seed)."""
    vocabulary, merges = _learn()
    return CLIPTokenizer(
        vocab=dict(vocabulary),
        merges=list(merges),
        bos_token=START,
        eos_token=END,
        unk_token=END,
        pad_token=END,  # as CLIP; a pad token of its own would change how that token's text is read
        model_max_length=CONTEXT_LENGTH,
    )


@lru_cache(maxsize=1)
def _learn() -> tuple[tuple[tuple[str, int], ...], tuple[tuple[str, str], ...]]:
    """Learn (vocabulary, merges) from the expressions of 500 training scenes and every attribute word."""
    texts = [
        expression.text for sample in islice(refshapes_samples("train"), 500) for expression in sample.expressions
    ]
    plurals = ["crosses" if shape == "cross" else f"{shape}s" for shape in SHAPES]
    words = [*SHAPES, *plurals, *FILLINGS, *SIZES, *COLORS, *SHIFTED_COLORS, *RANKS.values(), *COUNTS.values()]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=4096,  # an upper bound; merges stop at the last pair of letters that occurs twice
        min_frequency=2,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.Whitespace()
    learner.train_from_iterator([*texts, *words, *words], trainer)
    merges = _merges_of(learner)
    # CLIP's order: letters, letters at a word's end, merges, the two special tokens.
    tokens = [*alphabet, *(f"{letter}</w>" for letter in alphabet), *("".join(pair) for pair in merges), START, END]
    unique = dict.fromkeys(tokens)
    return tuple((token, index) for index, token in enumerate(unique)), merges


def _merges_of(learner: Tokenizer) -> tuple[tuple[str, str], ...]:
    """The merges in the order they were learned, from the tokenizer's own serialisation."""
    merges = json.loads(learner.to_str())["model"]["merges"]
    return tuple((first, second) for first, second in merges)
