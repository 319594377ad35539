"""From the harness's requests to the ids that a model reads, and from the ids that it writes to answers.

The rules are those of the harness's own class for Hugging Face models (`lm_eval.models.huggingface.HFLM`), so that
figures can be compared with published ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from quintet.errors import UserError
from quintet.tokenize import TextStream, Tokenizer
from quintet.tokenize.bounds import TextBounds, encode_with_special, special_tokens

Pair = tuple[str, str]

NOTHING_TO_SCORE = "an answer has no token of its own; it is empty, or a token spans its join with the question"
TOO_LONG = "an answer is longer than the context"


@dataclass(frozen=True)
class Text:
    """``ids``, of which the last ``scored`` are scored, each given all before it.

    ``cut`` ids were dropped in front, because the context has no room for them. The first ``preceding`` belong to the
    document before. ``problem`` says why nothing can be scored.
    """

    ids: tuple[int, ...]
    scored: int
    cut: int = 0
    preceding: int = 0
    problem: str | None = None

    @property
    def inputs(self) -> tuple[int, ...]:
        """The ids that the model reads: all but the last, which is only predicted."""
        return self.ids[:-1]


class Encoder:
    """Encodes contexts and continuations.

    Each text follows the ids that texts begin with according to ``bounds``. As in the harness, the text of a special
    token is encoded as that token.
    """

    def __init__(self, tokenizer: Tokenizer, context_length: int, bounds: TextBounds) -> None:
        self.tokenizer, self.context_length = tokenizer, context_length
        self._begin, self._before = list(bounds.begin), list(bounds.before)
        self._preceding = bounds.preceding
        special = special_tokens(tokenizer)
        self._begin_texts = tuple(text for text, number in special.items() if number in self._begin)

    @property
    def prefix(self) -> list[int]:
        """The ids that a text without a context follows. Raises UserError if documents have no end."""
        if not self._before:
            raise UserError("the tokenizer has no id that ends a document, which a text without context would follow")
        return self._before

    def encode(self, texts: Sequence[str], *, whole: bool = True) -> dict[str, list[int]]:
        """Return the ids of each of ``texts``. A ``whole`` text begins with the begin ids, unless it spells them."""
        encoded = {text: encode_with_special(self.tokenizer, text) for text in dict.fromkeys(texts)}
        if not whole:
            return encoded
        return {
            text: ids if text.startswith(self._begin_texts) else [*self._begin, *ids] for text, ids in encoded.items()
        }

    def pairs(self, pairs: Sequence[Pair]) -> list[Text]:
        """Return the text to read for each (context, continuation), of which the continuation is scored.

        White space at the end of a context is moved to the continuation. Both are encoded as one text; the continuation
        is what follows in it after as many ids as the context has by itself. If the context is missing, is only white
        space or has no id, the continuation follows ``prefix``, which is not repeated if the continuation begins with
        it. A text that is too long loses its beginning. A continuation with no id, or with more ids than the context
        holds, has a ``problem``; the harness's class raises an AssertionError for it.
        """
        moved = [_move_trailing_space(*pair) for pair in pairs]
        wholes = self.encode([context + continuation for context, continuation in moved if context])
        contexts = self.encode([context for context, _ in moved if context])
        bare = self.encode([continuation for context, continuation in moved if not context], whole=False)
        texts: list[Text] = []
        for context, continuation in moved:
            if context and contexts[context]:
                before, ids = contexts[context], wholes[context + continuation]
                texts.append(self._cut([*before, *ids[len(before) :]], len(ids) - len(before)))
                continue
            ids, prefix = wholes[context + continuation] if context else bare[continuation], self.prefix
            if ids[: len(prefix)] != prefix:
                ids = [*prefix, *ids]
            texts.append(self._cut(ids, len(ids) - len(prefix), self._preceding))
        return texts

    def rolling(self, text: str) -> list[Text]:
        """Return windows over ``text`` that score each id exactly once, with as many ids before it as there is room
        for; the first id follows ``prefix``."""
        ids, prefix = self.encode([text])[text], self.prefix
        done = max(1, self.context_length + 1 - len(prefix))
        first = ids[:done]
        windows = [Text((*prefix, *first), len(first), preceding=self._preceding)] if ids else []
        while done < len(ids):
            stop = min(done + self.context_length, len(ids))
            windows.append(Text(tuple(ids[max(0, stop - self.context_length - 1) : stop]), stop - done))
            done = stop
        return windows

    def _cut(self, ids: list[int], scored: int, preceding: int = 0) -> Text:
        if not 0 < scored <= self.context_length:
            return Text(tuple(ids), 0, problem=TOO_LONG if scored > 0 else NOTHING_TO_SCORE)
        kept = ids[-(self.context_length + 1) :]
        cut = len(ids) - len(kept)
        return Text(tuple(kept), scored, cut, max(0, preceding - cut))


def _move_trailing_space(context: str, continuation: str) -> Pair:
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation


class GeneratedText:
    """A text while its ids arrive; it ends and is cut where the harness's class ends and cuts it.

    The harness decodes the answer by itself, without the prompt, so that sentencepiece drops the space before its first
    word. It stops at any of ``stops`` or at the text of the id that ends a document, and looks for them in the text
    with special tokens written out (`MultiTokenEOSCriteria`), but cuts the text without special tokens.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]) -> None:
        self._special = {number: text for text, number in special_tokens(tokenizer).items()}
        end = self._special.get(tokenizer.end_id)
        self._stops = tuple(stops) if end is None or end in stops else (*stops, end)
        self._stream = TextStream(tokenizer)
        self._text = self._text_with_special = ""
        self.stopped = False

    def push(self, token: int) -> None:
        """Add the text of the id ``token``."""
        piece = self._stream.push(token)
        self._text += piece
        self._text_with_special += self._stream.dropped + piece + self._special.get(token, "")
        self.stopped = any(stop in self._text_with_special for stop in self._stops)

    def finish(self) -> str:
        """Return the text up to its stop strings; as in the harness, each cuts what the ones before it have left."""
        text = self._text + self._stream.finish()
        for stop in self._stops:
            text = text.split(stop)[0]
        return text
