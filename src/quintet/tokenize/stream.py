"""Text that arrives piece by piece: decoding ids as they come, and ending at a stop string."""

from __future__ import annotations

import codecs
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from copy import copy

from quintet.errors import UserError
from quintet.tokenize.base import Tokenizer


class TextStream:
    """Text of ids that come one by one: whole characters only, and together exactly ``tokenizer.decode(ids)``.

    A character may be spread over several ids, so ``push`` returns "" until it is complete. With ``continues`` the ids
    carry on a text that stands already, and a tokenizer that drops the first word's space keeps it. ``dropped`` is that
    space after the id that lost it, where ids that write nothing came before: it stands between them and the word when
    special tokens are written out, as ``decode`` of transformers does.
    """

    def __init__(self, tokenizer: Tokenizer, *, continues: bool = False) -> None:
        self._pieces = tokenizer.pieces
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._drop_space = tokenizer.pieces.leading_space and not continues
        self._first = True
        self.dropped = ""

    def push(self, token: int) -> str:
        """The characters that are complete with this id."""
        piece, self.dropped = self._pieces.of(token), ""
        if self._drop_space and piece:
            self._drop_space = False
            if piece.startswith(b" "):
                piece, self.dropped = piece[1:], "" if self._first else " "
        self._first = False
        return self._decoder.decode(piece)

    def finish(self) -> str:
        """The rest of the text: U+FFFD when the last character is not complete, else nothing."""
        return self._decoder.decode(b"", final=True)


class StopAt:
    """Passes on the pieces of a text up to the first of ``stops``, which is left out with all that follows.

    A stop string is looked for twice: in the text that a reader sees, and in the text with special tokens written out,
    as `stop_strings` of transformers is. So it may be, or begin or end in, the text of a special token. The first is
    the one that is complete first; of those that are complete with the same character the longest counts. So the result
    depends on the text and not on how it is cut into pieces. No more is held back than what may be the beginning of a
    stop string. Raises UserError for an empty stop string.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if "" in stops:
            raise UserError(
                "stop: an empty text would stop before the first character; give some text, or leave it out"
            )
        self._stops = tuple(stops)
        self._held = ""  # special tokens written out
        self._shown: list[bool] = []  # for each character held: whether a reader sees it
        self.stopped = False

    def push(self, piece: str, special: str = "", dropped: str = "") -> str:
        """The characters that are certain, with ``piece``, to stand before any stop string. ``dropped`` before it and
        the special token ``special`` after it are not seen."""
        if self.stopped:
            return ""
        written = self._held + dropped + piece + special
        shown = self._shown + [False] * len(dropped) + [True] * len(piece) + [False] * len(special)
        indices = [index for index, seen in enumerate(shown) if seen]  # the characters that a reader sees
        text = "".join([written[index] for index in indices])
        found = [(indices[at + len(stop) - 1], at) for stop in self._stops if (at := text.find(stop)) >= 0] + [
            (at + len(stop) - 1, bisect_left(indices, at)) for stop in self._stops if (at := written.find(stop)) >= 0
        ]
        if found:
            self.stopped, self._held, self._shown = True, "", []
            return text[: min(found)[1]]
        certain = len(written) - max((_overlap(written, stop) for stop in self._stops), default=0)
        if held := max((_overlap(text, stop) for stop in self._stops), default=0):
            certain = min(certain, indices[-held])
        self._held, self._shown = written[certain:], shown[certain:]
        return text[: bisect_left(indices, certain)]

    def finish(self, ends: Iterable[str] = ()) -> str:
        """The text that was held back when it ends without a stop string; one of the special tokens ``ends`` may have
        ended it, and what such a token would make a stop string is left out."""
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
    """Characters at the end of ``text`` that ``stop`` begins with."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
