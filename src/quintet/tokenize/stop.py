"""Ending a text at a stop string while it arrives."""

from __future__ import annotations

from collections.abc import Sequence

from quintet.errors import UserError


class StopAt:
    """Passes on the pieces of a text up to the first of ``stops``, which is left out with all that follows.

    The first is the one that is complete first; of those that are complete with the same character the longest counts.
    So the result depends on the text and not on how it is cut into pieces. No more is held back than what may be the
    beginning of a stop string. Raises UserError for an empty stop string.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if "" in stops:
            raise UserError(
                "stop: an empty text would stop before the first character; give some text, or leave it out"
            )
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, piece: str) -> str:
        """What is certain with ``piece`` to stand before any stop string."""
        if self.stopped:
            return ""
        text = self._held + piece
        found = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> str:
        """What was held back when the text ends without a stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of ``text`` that ``stop`` begins with."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
