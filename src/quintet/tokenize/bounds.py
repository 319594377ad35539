"""The ids that begin and end a text, in training, generation, evaluation and export, and where tokens may be cut."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from quintet.tokenize.base import END_OF_TEXT, NO_END, Tokenizer
from quintet.tokenize.huggingface import HuggingFaceTokenizer, named_begin
from quintet.tokenize.openai import TiktokenTokenizer

_CONTINUATION = (0x80, 0xBF)  # bytes that continue a character in UTF-8


@dataclass(frozen=True)
class TextBounds:
    """The ids around a text that a model was trained with.

    ``begin`` ids precede every text. ``before`` are the ids that the first token of a text follows: ``begin``, or the
    end of the previous document; empty if documents neither begin nor end. ``preceding`` of the ids ``before`` belong
    to the previous document. Each of ``stop_ids``, and each of the texts ``stops``, ends what the model writes.
    """

    begin: tuple[int, ...]
    before: tuple[int, ...]
    stop_ids: frozenset[int]
    stops: tuple[str, ...] = ()
    preceding: int = 0

    def prompt(self, ids: Sequence[int]) -> list[int]:
        """Return the ``ids`` of a text as the model reads them; an empty text has yet to begin."""
        return [*self.begin, *ids] or list(self.before)

    def starts(self, prompt: Sequence[int]) -> bool:
        """Return True if ``prompt`` holds nothing of a text yet."""
        return tuple(prompt) in (self.begin, self.before)


def text_bounds(tokenizer: Tokenizer, *, around_samples: bool = False) -> TextBounds:
    """Return the bounds of a model that is trained with ``tokenizer``. ``around_samples``: each sample begins with the
    begin token, whatever the documents begin with (`data.packing.add_bos_eos`)."""
    begin = begin_ids(tokenizer)
    if around_samples:
        begin = named_begin(tokenizer) if isinstance(tokenizer, HuggingFaceTokenizer) else _end(tokenizer)
    return _bounds(tokenizer, begin, begin or _end(tokenizer))


def checkpoint_bounds(tokenizer: Tokenizer) -> TextBounds:
    """Return the bounds of a checkpoint that Quintet did not train. Its files do not say how it was trained: as in
    lm-evaluation-harness, a text without context follows the begin token if there is one."""
    begin = begin_ids(tokenizer)
    named = named_begin(tokenizer) if isinstance(tokenizer, HuggingFaceTokenizer) else _end(tokenizer)
    return _bounds(tokenizer, begin, begin or named)


def begin_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the ids that each document begins with."""
    return tokenizer.begin_ids if isinstance(tokenizer, HuggingFaceTokenizer) else ()


def special_tokens(tokenizer: Tokenizer) -> Mapping[str, int]:
    """Return the special ids, by the text that stands for each in a template or a stop string."""
    if isinstance(tokenizer, HuggingFaceTokenizer | TiktokenTokenizer):
        return tokenizer.special_tokens
    return {} if tokenizer.end_id == NO_END else {END_OF_TEXT: tokenizer.end_id}


def encode_with_special(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the ids of ``text``, in which the text of a special token is its id. Raises UserError as ``encode``."""
    if isinstance(tokenizer, HuggingFaceTokenizer):
        return tokenizer.encode_template(text)
    special = special_tokens(tokenizer)
    if not any(token in text for token in special):
        return tokenizer.encode(text)
    longest_first = sorted(special, key=len, reverse=True)
    parts = re.split(f"({'|'.join(map(re.escape, longest_first))})", text)
    return [number for part in parts for number in ([special[part]] if part in special else tokenizer.encode(part))]


def _bounds(tokenizer: Tokenizer, begin: tuple[int, ...], before: tuple[int, ...]) -> TextBounds:
    named, stops = (), ()
    if isinstance(tokenizer, HuggingFaceTokenizer):
        named, stops = tokenizer.chat.end_ids, tokenizer.chat.stops
    preceding = len(before) if not begin and before == _end(tokenizer) else 0
    return TextBounds(begin, before, frozenset((*_end(tokenizer), *named)), stops, preceding)


def _end(tokenizer: Tokenizer) -> tuple[int, ...]:
    return () if tokenizer.end_id == NO_END else (tokenizer.end_id,)


def clean_starts(tokenizer: Tokenizer) -> np.ndarray:
    """Return for each id if it begins a word, bool [vocab_size].

    WordPiece marks ids that continue a word (`##ing`); SentencePiece (`▁the`) and byte-level BPE (`Ġthe`) mark ids that
    begin one, by the space in front of it. A special token is a word. If a tokenizer marks neither, each character is.
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
    """Return for each id if it begins a character and does not continue one, bool [vocab_size]."""
    low, high = _CONTINUATION
    return np.array([not (piece and low <= piece[0] <= high) for piece in tokenizer.pieces.table], dtype=bool)
