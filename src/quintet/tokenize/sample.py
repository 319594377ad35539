"""An even sample of a corpus of unknown size, in one pass and bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from quintet.tokenize.base import check_text

_PART = 65_536  # characters; long documents are cut, so that a corpus of one file is sampled evenly too


def even_sample(texts: Iterable[str], budget: int) -> list[str]:
    """Parts of ``texts`` of ``budget`` UTF-8 bytes in all, evenly over the whole corpus; all of it when it is smaller.

    Every k-th part is kept. k is 1 at first; when more than twice the budget is kept, every second of the kept parts is
    dropped and k doubles, so memory stays within two budgets and one part, and what is kept is always the parts 0, k,
    2k, … of all that was read. At the end the kept parts, about one to two budgets, are thinned evenly to the budget. A
    reservoir of random draws would do as well in the mean, but its sample is uneven by chance; taking the head would
    learn the first source alone.
    """
    kept: list[tuple[str, int]] = []
    every, size = 1, 0
    for index, part in enumerate(_parts(texts, max(1, min(_PART, budget // 64)))):
        if index % every:
            continue
        length = len(part.encode("utf-8"))
        kept.append((part, length))
        size += length
        while size > 2 * budget and len(kept) > 1:
            kept, every = kept[::2], 2 * every
            size = sum(length for _, length in kept)
    return _thinned(kept, size, budget)


def _thinned(kept: list[tuple[str, int]], size: int, budget: int) -> list[str]:
    """Parts at even distances in bytes, so many that they hold about ``budget`` of ``size`` bytes."""
    if size <= budget:
        return [part for part, _ in kept]
    chosen, read, written = [], 0, 0
    for part, length in kept:
        read += length
        if written * size < read * budget:
            chosen.append(part)
            written += length
    return chosen


def _parts(texts: Iterable[str], length: int) -> Iterator[str]:
    """``texts`` in parts of at most ``length`` characters, cut after a line or a word where there is one."""
    for text in texts:
        check_text(text)
        start = 0
        while len(text) - start > length:
            end = max(text.rfind(mark, start + length // 2, start + length) for mark in "\n ") + 1 or start + length
            yield text[start:end]
            start = end
        if start < len(text):
            yield text[start:]
