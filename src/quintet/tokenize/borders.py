"""Where tokens may be cut apart, and what a text begins with."""

from __future__ import annotations

import numpy as np

from quintet.tokenize.base import Tokenizer
from quintet.tokenize.huggingface import HuggingFaceTokenizer

_CONTINUATION = (0x80, 0xBF)  # bytes of UTF-8 that go on with a character


def clean_starts(tokenizer: Tokenizer) -> np.ndarray:
    """Of each id whether a text that is cut in front of it decodes to the same text in two: bool [vocab_size].

    It does not where the id goes on with a character, or with a word as `##ing` of WordPiece does, which is written
    with its marks at the beginning of a text.
    """
    low, high = _CONTINUATION
    clean = np.array([not (piece and low <= piece[0] <= high) for piece in tokenizer.pieces.table], dtype=bool)
    if isinstance(tokenizer, HuggingFaceTokenizer):
        clean[tokenizer.continuing_ids] = False
    return clean


def begin_id(tokenizer: Tokenizer) -> int:
    """The id that a text begins with: the tokenizer's own (`bos_token`), or the one that ends documents."""
    if isinstance(tokenizer, HuggingFaceTokenizer):
        named = tokenizer.chat.tokens.get("bos_token")
        if named is not None:
            return tokenizer.special_tokens[named]
    return tokenizer.end_id
