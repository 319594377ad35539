"""Where a text begins and ends, in ids: one value for training, writing, measuring and export."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quintet.tokenize.base import END_OF_TEXT, NO_END, Tokenizer
from quintet.tokenize.huggingface import HuggingFaceTokenizer, named_begin
from quintet.tokenize.openai import TiktokenTokenizer


@dataclass(frozen=True)
class TextBounds:
    """What a model has learnt to see around a text.

    ``begin`` ids stand in front of every text. ``before`` are the ids that the first token of a text follows:
    ``begin``, or the end of the document before it; empty where documents neither begin nor end. Any of ``stop_ids``
    ends what the model writes, and so does any of the texts ``stops``. ``preceding`` of the ids ``before`` are of the
    document before.
    """

    begin: tuple[int, ...]
    before: tuple[int, ...]
    stop_ids: frozenset[int]
    stops: tuple[str, ...] = ()
    preceding: int = 0

    def prompt(self, ids: Sequence[int]) -> list[int]:
        """``ids`` of a text as the model reads them; an empty text is one that has yet to begin."""
        return [*self.begin, *ids] or list(self.before)

    def starts(self, prompt: Sequence[int]) -> bool:
        """Whether ``prompt`` holds nothing of a text yet."""
        return tuple(prompt) in (self.begin, self.before)


def text_bounds(tokenizer: Tokenizer, *, around_samples: bool = False) -> TextBounds:
    """The bounds of a model that is trained with ``tokenizer``; ``around_samples`` says that each sample begins with
    the begin token whatever the documents begin with (`data.packing.add_bos_eos`)."""
    begin = begin_ids(tokenizer)
    if around_samples:
        begin = named_begin(tokenizer) if isinstance(tokenizer, HuggingFaceTokenizer) else _end(tokenizer)
    return _bounds(tokenizer, begin, begin or _end(tokenizer))


def checkpoint_bounds(tokenizer: Tokenizer) -> TextBounds:
    """The bounds of a checkpoint of others, which was trained in ways that its files do not tell: a text without
    context follows the begin token if there is one, as in lm-evaluation-harness."""
    begin = begin_ids(tokenizer)
    named = named_begin(tokenizer) if isinstance(tokenizer, HuggingFaceTokenizer) else _end(tokenizer)
    return _bounds(tokenizer, begin, begin or named)


def begin_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ids that each document begins with."""
    return tokenizer.begin_ids if isinstance(tokenizer, HuggingFaceTokenizer) else ()


def special_tokens(tokenizer: Tokenizer) -> Mapping[str, int]:
    """Ids that write nothing, by the text that stands for each in a template or a stop string."""
    if isinstance(tokenizer, HuggingFaceTokenizer | TiktokenTokenizer):
        return tokenizer.special_tokens
    return {} if tokenizer.end_id == NO_END else {END_OF_TEXT: tokenizer.end_id}


def encode_with_special(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of ``text``, in which the text of a special token is its id. Raises UserError as ``encode`` does."""
    if isinstance(tokenizer, HuggingFaceTokenizer):
        return tokenizer.encode_template(text)
    special = special_tokens(tokenizer)
    if not any(one in text for one in special):
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
