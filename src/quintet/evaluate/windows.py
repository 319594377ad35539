"""How a document longer than the context is read: in windows that predict every token once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """The tokens ``start`` to ``stop`` of document number ``document``: those from ``first`` on are predicted here,
    each from all that stand before it in the window."""

    document: int
    start: int
    first: int
    stop: int

    @property
    def inputs(self) -> int:
        """Positions that the model reads: the last token is only predicted."""
        return self.stop - 1 - self.start


def windows(length: int, context: int, stride: int, document: int = 0) -> list[Window]:
    """Windows of at most ``context`` inputs that predict each of the tokens 1 … ``length`` - 1 once.

    The first is as long as the context, and each further one adds ``stride`` tokens, which so have at least
    ``context`` - ``stride`` others before them.
    """
    assert 1 <= stride <= context, (stride, context)
    found: list[Window] = []
    done = 1
    while done < length:
        stop = min(done + (stride if found else context), length)
        found.append(Window(document, max(0, stop - 1 - context), done, stop))
        done = stop
    return found


def batched(
    found: Sequence[Window], tokens: int, together: Callable[[int], Hashable] = lambda length: None
) -> list[list[Window]]:
    """The windows, the longest first, in batches that have at most ``tokens`` positions with their padding, or are one
    window alone; ``together`` gives the lengths of a batch the same."""
    batches: list[list[Window]] = []
    for window in sorted(found, key=lambda one: -one.inputs):
        longest = batches[-1][0].inputs if batches else 0
        if batches and (len(batches[-1]) + 1) * longest <= tokens and together(longest) == together(window.inputs):
            batches[-1].append(window)
        else:
            batches.append([window])
    return batches
