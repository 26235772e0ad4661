"""Cleaning of expressions: by the tokenizer what a tokenizer can clean, the rest here.

Official: the CLIP tokenizer runs `ftfy.fix_text`, resolves HTML entities twice, collapses white space and lower-cases
(simple_tokenizer.py). Ordinary text becomes the same token ids; characters that nobody sees go, which official keeps.
"""

import html
import json
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from transformers import CLIPTokenizer, TokenizersBackend

# The package `tokenizers` as transformers brings it: this folder's files name no package beside the allowed ones.
from transformers.models.clip.tokenization_clip import Regex, decoders, normalizers

LIGATURES = {
    **{letter: unicodedata.normalize("NFKC", letter) for letter in "\u0132\u0133\u0149"},
    **{chr(code): unicodedata.normalize("NFKC", chr(code)) for code in (*range(0x1C4, 0x1CD), *range(0x1F1, 0x1F4))},
    **{chr(code): unicodedata.normalize("NFKC", chr(code)) for code in range(0xFB00, 0xFB07)},
}
# Control codes (not those of white space), byte order mark, zero width, directions, fillers, tags.
INVISIBLE = (
    "\u0000-\u0008\u000b\u000e-\u001f\u007f-\u0084\u0086-\u009f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f"
    "\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\u3164\ufeff\ufff0-\ufffc\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
JOINERS = "\u200c\u200d\ufe00-\ufe0f"
# A full stop that ends a phrase: not that of an ellipsis, an initial or a common abbreviation.
PHRASE_END = re.compile(
    r"(?<![.])(?<!\b[a-z])(?<!\b(?:mr|ms|dr|st|no|vs|jr|sr))(?<!\b(?:mrs|etc))\s*\.(?:\s+|$)", re.I
)


def checked_expressions(text: str | Sequence[str]) -> list[str]:
    """Cleaned expressions as a list.

    Raises:
        TypeError: an expression is not a string.
        ValueError: there is none, or one of them is blank.
    """
    expressions = [text] if isinstance(text, str) else list(text)
    if not expressions:
        raise ValueError("The list of expressions is empty: give at least one, for example 'the red mug'.")
    cleaned = []
    for place, expression in enumerate(expressions):
        if not isinstance(expression, str):
            raise TypeError(f"Expression {place} must be a string, not {type(expression).__name__}.")
        cleaned.append(clean_expression(expression))
        if not cleaned[-1]:
            raise ValueError(
                f"Expression {place} is blank ({expression!r}): say what to look for, as in 'the red mug'."
            )
    return cleaned


def clean_expression(expression: str) -> str:
    """HTML entities resolved twice; then what the tokenizer itself cleans (`cleaning_tokenizer`).

    Raises:
        ValueError: the text holds half a character (a lone surrogate).
    """
    try:  # halves that belong together become the character that they are
        whole = expression.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise ValueError(
            f"The expression {expression!r} holds half a character (a lone surrogate), as text does that was decoded "
            "wrongly: read its source again, as UTF-8."
        ) from None
    return CLEANING.normalize_str(html.unescape(html.unescape(whole)))


def listed_phrases(expression: str) -> list[str]:
    """The phrases of an expression such as "a star. a circle.", as Grounding DINO takes several in one string;
    [] where it is one phrase. Two English sentences look the same."""
    phrases = [phrase for phrase in PHRASE_END.split(expression) if any(map(str.isalpha, phrase))]
    return phrases if len(phrases) > 1 else []


def cleaning_tokenizer(tokenizer: Any) -> Any:
    """A tokenizer that cleans what it reads by itself, saved folders included.

    transformers' own pipelines call the tokenizer alone, and `CLIPTokenizer` replaces the normalizer of its file by
    CLIP's own when it is loaded; so a CLIP tokenizer becomes the general class, which keeps it. The names of special
    tokens in an expression are plain text.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return tokenizer
    if isinstance(tokenizer, CLIPTokenizer):
        tokenizer = _general_tokenizer(tokenizer)
        backend = tokenizer.backend_tokenizer
    own = backend.normalizer
    if own is None or _steps_of(CLEANING) not in _steps_of(own):
        backend.normalizer = CLEANING if own is None else normalizers.Sequence([CLEANING, own])
    tokenizer.split_special_tokens = tokenizer.init_kwargs["split_special_tokens"] = True
    backend.encode_special_tokens = True
    return tokenizer


def _steps_of(normalizer: Any) -> str:
    """What a file says of a normalizer: its steps as JSON, one after the other."""
    state = json.loads(normalizer.__getstate__())
    return json.dumps(state.get("normalizers", [state]))[1:-1]


def _general_tokenizer(tokenizer: CLIPTokenizer) -> TokenizersBackend:
    """The same tokens, ids and text in the class that keeps what its file says."""
    general = TokenizersBackend(
        tokenizer_object=tokenizer.backend_tokenizer,
        model_max_length=tokenizer.model_max_length,
        padding_side=tokenizer.padding_side,
        truncation_side=tokenizer.truncation_side,
        **tokenizer.special_tokens_map,
    )
    # `CLIPTokenizer` does this in Python, after decoding.
    suffix = general.backend_tokenizer.model.end_of_word_suffix
    general.backend_tokenizer.decoder = decoders.Sequence(
        [decoders.ByteLevel(), decoders.Replace(suffix, " "), decoders.Strip(" ", 1, 1)]
    )
    return general


def _cleaning_steps() -> list[Any]:
    """The steps of a tokenizer's normalizer. Official: `ftfy.fix_text`, white space, lower case, in CLIP's
    simple_tokenizer.py; what ftfy does is restated in its order. Characters that nobody sees go, too.

    Not restated: repair of text that was decoded wrongly twice ("cafÃ©"), which no normalizer can do.
    """
    replace, pattern = normalizers.Replace, Regex
    # Control codes that are windows-1252 characters in truth.
    windows = {chr(code): bytes([code]).decode("cp1252", "ignore") for code in range(0x80, 0xA0)}
    widths = {chr(code): unicodedata.normalize("NFKC", chr(code)) for code in range(0xFF01, 0xFFF0)}
    return [
        replace(pattern("\\x1b\\[[\\d;]*[a-zA-Z]"), ""),  # colors of a terminal
        *(replace(old, new) for old, new in windows.items() if new),
        *(replace(letter, parts) for letter, parts in LIGATURES.items()),
        *(replace(old, new) for old, new in widths.items() if new != old),
        replace(pattern("[\u02bc\u2018-\u201b]"), "'"),
        replace(pattern("[\u201c-\u201f]"), '"'),
        replace(pattern(f"[{INVISIBLE}]"), ""),
        # Joiners and variants shape emoji and letters of other scripts; anywhere else nobody sees them.
        replace(pattern(f"(?<![^\u0000-\u024f])[{JOINERS}]+(?!\u20e3)|[\u200c\u200d]+(?![^\u0000-\u024f])"), ""),
        normalizers.NFC(),
        replace(pattern("[\\s\u2800]+"), " "),
        normalizers.Strip(),
        replace(
            pattern("(?<=\\p{L})\u03a3(?!\\p{L})"), "\u03c2"
        ),  # the sigma at a word's end, as Python lower-cases it
        normalizers.Lowercase(),
    ]


CLEANING = normalizers.Sequence(_cleaning_steps())


__all__ = ["checked_expressions", "clean_expression", "cleaning_tokenizer", "listed_phrases"]
