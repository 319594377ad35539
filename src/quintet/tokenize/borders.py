"""Where tokens may be cut apart."""

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
