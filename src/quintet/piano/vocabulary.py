"""The special names that every model of piano music knows, so that it can be tuned on tasks that are new to it.

The first ids after those of the music are the data sets and composers, in piano-gpt's order; then come the words of all
tasks by the alphabet, the parameters by their numbers, and the two around an answer.
"""

from __future__ import annotations

from quintet.errors import UserError
from quintet.piano.context import ANSWER, COMPOSERS, DATASETS, END_OF_ANSWER
from quintet.piano.tasks import KINDS, parameter_token
from quintet.piano.tokenizers.base import NoteTokenizer
from quintet.tokenize import Tokenizer

LARGEST_PARAMETER = 128

SPECIAL_NAMES = (
    *DATASETS,
    *COMPOSERS,
    *sorted({token for kind in KINDS.values() for token in kind.tokens}),
    *(parameter_token(value) for value in range(1, LARGEST_PARAMETER + 1)),
    ANSWER,
    END_OF_ANSWER,
)


def note_tokenizer(tokenizer: Tokenizer) -> NoteTokenizer:
    """``tokenizer`` as one of notes. Raises UserError for one of text, which knows no notes."""
    if not hasattr(tokenizer, "encode_notes"):
        raise UserError("tokenizer.kind: must be one of notes for piano music: exponential_time, note_bpe or miditok")
    return tokenizer  # pyright: ignore[reportReturnType]
