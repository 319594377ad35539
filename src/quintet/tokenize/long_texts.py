"""Long texts in parts, where the ids provably stay the same.

A text is one unit of work for the libraries: it runs on one core, and `tokenizers` keeps the origin of every byte,
which made a single text of 4 MB four times slower on two cores than the same text in parts of 64 kB.

A cut stands between an ASCII letter and a space (U+0020). In the patterns of GPT-2, cl100k_base and o200k_base no
alternative has a letter before a space, so a match always ends there; their only lookaheads stand behind white space,
so what ends with a letter is matched the same without the rest; and there is no lookbehind, so the rest is matched the
same without what came before. Merges happen inside a match only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np

PART = 65_536  # characters
_CUT = re.compile("(?<=[A-Za-z]) ")


def split_long(text: str) -> list[str]:
    """``text`` in parts of about ``PART`` characters; one part where no safe cut exists."""
    return list(cut_text(text, PART))


def cut_text(text: str, size: int) -> Iterator[str]:
    """``text`` in parts of about ``size`` characters, the last one at most twice as long, where safe cuts exist."""
    start = 0
    while len(text) - start > 2 * size and (found := _CUT.search(text, start + size)):
        yield text[start : found.start()]
        start = found.start()
    yield text[start:]


def encode_in_parts(texts: Sequence[str], encode: Callable[[Sequence[str]], list[np.ndarray]]) -> list[np.ndarray]:
    """``encode(texts)``, with long texts cut before and their ids put together after."""
    if all(len(text) <= 2 * PART for text in texts):
        return encode(texts)
    parts = [split_long(text) for text in texts]
    encoded = iter(encode([part for text in parts for part in text]))
    return [np.concatenate([next(encoded) for _ in text]) for text in parts]
