"""From the harness's requests to ids: what is read, and which of it is scored.

The rules are those of the harness's own class for Hugging Face models (`lm_eval.models.huggingface.HFLM`), so that
figures can be compared with published ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quintet.errors import UserError
from quintet.tokenize import Tokenizer
from quintet.tokenize.bounds import TextBounds, encode_with_special, special_tokens

Pair = tuple[str, str]

NOTHING_TO_SCORE = "an answer has no token of its own; it is empty, or a token spans its join with the question"
TOO_LONG = "an answer is longer than the context"


@dataclass(frozen=True)
class Text:
    """``ids``, of which the last ``scored`` are asked for, given all before them; ``cut`` ids were left out in front,
    for they had no room. The first ``preceding`` are of the document before. ``problem`` says why there is nothing that
    could be scored."""

    ids: tuple[int, ...]
    scored: int
    cut: int = 0
    preceding: int = 0
    problem: str | None = None

    @property
    def inputs(self) -> tuple[int, ...]:
        """The ids that a model reads: all but the last id, whose successor nobody asks for."""
        return self.ids[:-1]


class Encoder:
    """Ids of contexts and continuations.

    Each text stands after what ``bounds`` says that one begins with. The text of a special token is the id of that
    token, as for the harness.
    """

    def __init__(self, tokenizer: Tokenizer, context_length: int, bounds: TextBounds) -> None:
        self.tokenizer, self.context_length = tokenizer, context_length
        self._begin, self._before = list(bounds.begin), list(bounds.before)
        self._preceding = bounds.preceding
        named = special_tokens(tokenizer)
        self._begin_texts = tuple(text for text, number in named.items() if number in self._begin)

    @property
    def prefix(self) -> list[int]:
        """Ids that a text without a context follows. Raises UserError where documents do not end."""
        if not self._before:
            raise UserError("the tokenizer has no id that ends a document, which a text without context would follow")
        return self._before

    def encode(self, texts: Sequence[str], alone: bool = True) -> dict[str, list[int]]:
        """Ids of each of ``texts``. A whole one (``alone``) begins with the first id where all texts do, once."""
        found = {text: encode_with_special(self.tokenizer, text) for text in dict.fromkeys(texts)}
        if not alone:
            return found
        return {
            text: ids if text.startswith(self._begin_texts) else [*self._begin, *ids] for text, ids in found.items()
        }

    def pairs(self, pairs: Sequence[Pair]) -> list[Text]:
        """The text to be read for each (context, continuation), with the continuation to be scored.

        White space at the end of a context belongs to the continuation. Both are encoded as one text, and the
        continuation is what follows there on as many ids as the context has alone; it is scored after these. Without
        a context, or where it is only white space or has no id, the continuation stands after ``prefix``, or after its
        own first id if that is the same. What is too long loses its beginning. A continuation that is left without an
        id, or has more than the context holds, has a ``problem``: the harness's class raises an AssertionError there.
        """
        moved = [_without_trailing_space(*pair) for pair in pairs]
        wholes = self.encode([context + continuation for context, continuation in moved if context])
        contexts = self.encode([context for context, _ in moved if context])
        bare = self.encode([continuation for context, continuation in moved if not context], alone=False)
        found = []
        for context, continuation in moved:
            if context and contexts[context]:
                before, whole = contexts[context], wholes[context + continuation]
                found.append(self._cut([*before, *whole[len(before) :]], len(whole) - len(before)))
                continue
            ids, prefix = wholes[context + continuation] if context else bare[continuation], self.prefix
            if ids[: len(prefix)] != prefix:
                ids = [*prefix, *ids]
            found.append(self._cut(ids, len(ids) - len(prefix), self._preceding))
        return found

    def rolling(self, text: str) -> list[Text]:
        """Windows over ``text``, each id of which is scored in exactly one, with as much before it as there is room
        for; the first id is scored after ``prefix``."""
        ids, room = self.encode([text])[text], self.context_length
        prefix = self.prefix
        done = max(1, room + 1 - len(prefix))
        first = ids[:done]
        windows = [Text((*prefix, *first), len(first), preceding=self._preceding)] if ids else []
        while done < len(ids):
            stop = min(done + room, len(ids))
            windows.append(Text(tuple(ids[max(0, stop - room - 1) : stop]), stop - done))
            done = stop
        return windows

    def _cut(self, ids: list[int], scored: int, preceding: int = 0) -> Text:
        if not 0 < scored <= self.context_length:
            return Text(tuple(ids), 0, problem=TOO_LONG if scored > 0 else NOTHING_TO_SCORE)
        kept = ids[-(self.context_length + 1) :]
        cut = len(ids) - len(kept)
        return Text(tuple(kept), scored, cut, max(0, preceding - cut))


def _without_trailing_space(context: str, continuation: str) -> Pair:
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation
