"""From the harness's requests to ids: what is read, and which of it is scored.

The rules are those of the harness's own class for Hugging Face models (`lm_eval.models.huggingface.HFLM`), so that
figures can be compared with published ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quintet.errors import UserError
from quintet.tokenize import Tokenizer
from quintet.tokenize.base import NO_END
from quintet.tokenize.borders import begin_id

Pair = tuple[str, str]


@dataclass(frozen=True)
class Text:
    """``ids``, of which the last ``scored`` are asked for, given all before them; ``cut`` ids were left out in front,
    for they had no room. The first ``preceding`` are of the document before."""

    ids: tuple[int, ...]
    scored: int
    cut: int = 0
    preceding: int = 0

    @property
    def inputs(self) -> tuple[int, ...]:
        """What a model reads: all but the last id, whose successor nobody asks for."""
        return self.ids[:-1]


class Encoder:
    """Ids of contexts and continuations.

    ``begins``: each text gets the tokenizer's first id in front, as the tokenizer of a Hugging Face checkpoint may do
    by itself.
    """

    def __init__(self, tokenizer: Tokenizer, context_length: int, begins: bool = False) -> None:
        self.tokenizer, self.context_length = tokenizer, context_length
        self._begin = [begin_id(tokenizer)] if begins else []

    @property
    def prefix(self) -> int:
        """What stands in front of a text without a context. Raises UserError where documents do not end."""
        found = begin_id(self.tokenizer)
        if found == NO_END:
            raise UserError("the tokenizer has no id that ends a document, behind which a text without context begins")
        return found

    @property
    def _preceding(self) -> int:
        """How many ids of ``prefix`` are of the document before."""
        return int(self.prefix == self.tokenizer.end_id)

    def encode(self, texts: Sequence[str]) -> dict[str, list[int]]:
        """Ids of each of ``texts``, whole ones."""
        different = list(dict.fromkeys(texts))
        return {
            text: [*self._begin, *ids.tolist()]
            for text, ids in zip(different, self.tokenizer.encode_batch(different), strict=True)
        }

    def pairs(self, pairs: Sequence[Pair]) -> list[Text]:
        """What is read for each (context, continuation), and the continuation to be scored.

        Spaces at the end of a context belong to the continuation. Both are encoded as one text, and the continuation is
        what follows as many ids as the context has alone. Without a context the continuation stands behind ``prefix``,
        or behind its own first id if that is the same. What is too long loses its beginning.
        """
        moved = [_without_trailing_space(*pair) for pair in pairs]
        wholes = self.encode([context + continuation for context, continuation in moved])
        contexts = self.encode([context for context, _ in moved if context])
        found = []
        for context, continuation in moved:
            whole = wholes[context + continuation]
            if context:
                found.append(self._cut(whole, len(whole) - len(contexts[context])))
                continue
            bare = whole[len(self._begin) :]
            if bare[:1] != [self.prefix]:
                bare = [self.prefix, *bare]
            found.append(self._cut(bare, len(bare) - 1, self._preceding))
        return found

    def rolling(self, text: str) -> list[Text]:
        """Windows over ``text``, each id of which is scored in exactly one, with as much before it as there is room
        for; the first id is scored behind ``prefix``."""
        ids, room = self.encode([text])[text], self.context_length
        first = (self.prefix, *ids[:room])
        windows = [Text(first, len(first) - 1, preceding=self._preceding)] if ids else []
        done = room
        while done < len(ids):
            stop = min(done + room, len(ids))
            windows.append(Text(tuple(ids[max(0, stop - room - 1) : stop]), stop - done))
            done = stop
        return windows

    def _cut(self, ids: list[int], scored: int, preceding: int = 0) -> Text:
        kept = ids[-(self.context_length + 1) :]
        cut = len(ids) - len(kept)
        return Text(tuple(kept), max(0, min(scored, len(kept) - 1)), cut, max(0, preceding - cut))


def _without_trailing_space(context: str, continuation: str) -> Pair:
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation
