"""The name that a misspelt one is most likely to mean."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The one of ``known`` that ``name`` is most likely to mean, None when it is like none.

    Letters in another order are the commonest slip and the one that difflib, which compares runs of letters, misses in
    short names; they go first.
    """
    known = list(known)
    reordered = [one for one in known if sorted(one) == sorted(name)]
    return next(iter(reordered or difflib.get_close_matches(name, known, n=1, cutoff=0.55)), None)
