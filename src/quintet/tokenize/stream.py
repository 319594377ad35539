"""Text from ids that come one by one: decoding them, and ending at a stop string."""

import codecs
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from copy import copy

from quintet.errors import UserError
from quintet.tokenize.base import Tokenizer


class TextStream:
    """Text of ids that come one by one: whole characters only, in all exactly ``tokenizer.decode(ids)``.

    A character may be spread over several ids, so ``push`` returns "" until it is complete. With ``continues`` the ids
    continue a text, and a tokenizer that drops the space of the first word keeps it. ``dropped`` is the space that the
    last id lost if ids that write nothing came before it: with special tokens written out, it is between them and the
    word, as in ``decode`` of transformers.
    """

    def __init__(self, tokenizer: Tokenizer, *, continues: bool = False) -> None:
        self._pieces = tokenizer.pieces
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._drop_space = tokenizer.pieces.leading_space and not continues
        self._first = True
        self.dropped = ""

    def push(self, token: int) -> str:
        """Return the characters that are complete with this id."""
        piece, self.dropped = self._pieces.of(token), ""
        if self._drop_space and piece:
            self._drop_space = False
            if piece.startswith(b" "):
                piece, self.dropped = piece[1:], "" if self._first else " "
        self._first = False
        return self._decoder.decode(piece)

    def finish(self) -> str:
        """Return the rest of the text: U+FFFD if the last character is incomplete, else nothing."""
        return self._decoder.decode(b"", final=True)


class StopAt:
    """Passes on the pieces of a text up to the first of ``stops``, and drops this stop string and all that follows.

    A stop string is looked for twice: in the text that a reader sees, and in the text with special tokens written out,
    as for `stop_strings` of transformers. So it may be the text of a special token, or begin or end in one. The first
    stop string is the one that is complete first; of several that are complete with the same character, the longest.
    So the result does not depend on how the text is cut into pieces. Only what may be the beginning of a stop string is
    held back. Raises UserError for an empty stop string.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if "" in stops:
            raise UserError(
                "stop: an empty text would stop before the first character; give some text, or leave it out"
            )
        self._stops = tuple(stops)
        self._held = ""  # with special tokens written out
        self._shown: list[bool] = []  # for each character held: True if a reader sees it
        self.stopped = False

    def push(self, piece: str, special: str = "", dropped: str = "") -> str:
        """Add ``piece``, and return the characters that are now certain to come before any stop string. A reader sees
        neither ``dropped``, which comes before the piece, nor the special token ``special`` after it."""
        if self.stopped:
            return ""
        written = self._held + dropped + piece + special
        shown = self._shown + [False] * len(dropped) + [True] * len(piece) + [False] * len(special)
        indices = [index for index, seen in enumerate(shown) if seen]
        text = "".join([written[index] for index in indices])
        # Of each stop string that is there: the end in `written`, and the beginning in `text`.
        matches = [(indices[at + len(stop) - 1], at) for stop in self._stops if (at := text.find(stop)) >= 0]
        matches += [
            (at + len(stop) - 1, bisect_left(indices, at)) for stop in self._stops if (at := written.find(stop)) >= 0
        ]
        if matches:
            self.stopped, self._held, self._shown = True, "", []
            return text[: min(matches)[1]]
        certain = len(written) - max((_overlap(written, stop) for stop in self._stops), default=0)
        if held := max((_overlap(text, stop) for stop in self._stops), default=0):
            certain = min(certain, indices[-held])
        self._held, self._shown = written[certain:], shown[certain:]
        return text[: bisect_left(indices, certain)]

    def finish(self, ends: Iterable[str] = ()) -> str:
        """Return the text that was held back, when the text ends without a stop string. One of the special tokens
        ``ends`` may have ended it; what is a stop string together with such a token is dropped."""
        for end in ends:
            trial = copy(self)
            text = trial.push("", end)
            if trial.stopped:
                break
        else:
            text = "".join(character for character, seen in zip(self._held, self._shown, strict=True) if seen)
        self._held, self._shown = "", []
        return text


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of ``text`` ``stop`` begins with."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
