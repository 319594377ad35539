"""Where tokens may be cut apart."""

from __future__ import annotations

import numpy as np

from quintet.tokenize.base import Tokenizer
from quintet.tokenize.huggingface import HuggingFaceTokenizer

_CONTINUATION = (0x80, 0xBF)  # bytes of UTF-8 that go on with a character


def clean_starts(tokenizer: Tokenizer) -> np.ndarray:
    """Of each id whether it begins a word, as its mark tells: bool [vocab_size].

    WordPiece marks what goes on with a word (`##ing`); SentencePiece (`▁the`) and byte-level BPE (`Ġthe`) mark what
    begins one, by the space in front of it. A special token stands by itself. A tokenizer that marks neither has
    characters for words.
    """
    library = tokenizer if isinstance(tokenizer, HuggingFaceTokenizer) else None
    pieces = tokenizer.pieces.table
    if library and library.continuing_ids:
        clean = np.ones(len(pieces), dtype=bool)
        clean[library.continuing_ids] = False
        return clean
    if not any(piece.startswith(b" ") and len(piece) > 1 for piece in pieces):
        return character_starts(tokenizer)
    clean = np.array([not piece or piece.startswith(b" ") for piece in pieces], dtype=bool)
    if library and library.unknown_id is not None:
        clean[library.unknown_id] = False
    return clean


def character_starts(tokenizer: Tokenizer) -> np.ndarray:
    """Of each id whether it begins a character, rather than going on with the bytes of one: bool [vocab_size]."""
    low, high = _CONTINUATION
    return np.array([not (piece and low <= piece[0] <= high) for piece in tokenizer.pieces.table], dtype=bool)
