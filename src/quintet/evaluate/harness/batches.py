"""Batches of texts that are read together, what they share, and which process reads them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from quintet.evaluate.harness.texts import Text

_WORTH = 0.25  # share of the positions that sharing has to save, for it costs a second pass


@dataclass(frozen=True)
class Limit:
    """The most that one forward pass may hold: ``tokens`` positions, ``rows`` texts where that is given, and ``length``
    positions a row. A text that is longer than ``tokens`` is read alone."""

    tokens: int
    length: int
    rows: int | None = None

    def holds(self, rows: int, width: int) -> bool:
        """True where ``rows`` texts of ``width`` positions may be read together."""
        return width <= self.length and (rows == 1 or (rows * width <= self.tokens and rows <= (self.rows or rows)))


@dataclass(frozen=True)
class Group:
    """Numbers of ``texts`` whose inputs begin with the same ``shared`` ids; ``rest`` more has the longest of them."""

    texts: tuple[int, ...]
    shared: int
    rest: int

    @property
    def rows(self) -> int:
        """Rows of the widest pass: one where nothing but what is shared is read."""
        return len(self.texts) if self.rest else 1


@dataclass(frozen=True)
class BatchPlan:
    """Batches of groups: ``whole`` are read in one pass, ``split`` first in what they share and then in the rest."""

    whole: list[list[Group]]
    split: list[list[Group]]


def plan(
    texts: Sequence[Text],
    owners: Sequence[Hashable],
    limit: Limit,
    alone: Callable[[Text], bool] = lambda text: False,
    side_by_side: Callable[[int], Hashable] = lambda length: None,
) -> BatchPlan:
    """Batches for ``texts``, of which those of one of ``owners`` (the choices of a question) may share a beginning.

    The beginning that all of them share is read once where that saves a quarter of the positions or more; texts with
    the same inputs are always read once. ``alone`` says of a text that it must share nothing; whole texts are in one
    batch only if ``side_by_side`` gives their lengths the same.
    """
    together: dict[Hashable, list[int]] = {}
    for index, (text, owner) in enumerate(zip(texts, owners, strict=True)):
        together.setdefault(("alone", index) if alone(text) else ("owner", owner), []).append(index)
    groups = [group for found in together.values() for group in _groups(texts, found, limit)]
    whole, split = ([one for one in groups if bool(one.rest) == rest] for rest in (False, True))
    return BatchPlan(_filled(whole, limit, side_by_side), _filled(split, limit))


def _groups(texts: Sequence[Text], found: list[int], limit: Limit) -> Iterator[Group]:
    inputs = [texts[index].inputs for index in found]
    shared = _shared(inputs)
    total = sum(map(len, inputs))
    if len(set(inputs)) > 1 and shared * (len(found) - 1) >= _WORTH * total:
        yield from _parts(texts, Group(tuple(found), shared, max(map(len, inputs)) - shared), limit)
        return
    same: dict[tuple[int, ...], list[int]] = {}
    for index, one in zip(found, inputs, strict=True):
        same.setdefault(one, []).append(index)
    for one, indexes in same.items():
        yield Group(tuple(indexes), len(one), 0)


def _shared(inputs: Sequence[tuple[int, ...]]) -> int:
    """The number of ids that all of ``inputs`` begin with."""
    # What the first and the last in alphabetical order share, all between them share.
    first, last = min(inputs), max(inputs)
    different = (index for index, (a, b) in enumerate(zip(first, last, strict=False)) if a != b)
    return next(different, min(len(first), len(last)))


def _parts(texts: Sequence[Text], group: Group, limit: Limit) -> Iterator[Group]:
    """``group`` in parts that one pass may hold, each of which reads what is shared anew."""
    size = len(group.texts)
    while size > 1 and not limit.holds(size, group.shared + group.rest):
        size -= 1
    for first in range(0, len(group.texts), size):
        part = group.texts[first : first + size]
        longest = max(len(texts[index].inputs) for index in part)
        shared = group.shared if len(part) > 1 else longest
        yield Group(part, shared, longest - shared)


def _filled(
    groups: Iterable[Group], limit: Limit, side_by_side: Callable[[int], Hashable] = lambda length: None
) -> list[list[Group]]:
    """``groups`` in batches, like lengths together and the longest first, where memory would run out first."""
    batches: list[list[Group]] = []
    rows = shared = rest = 0
    for group in sorted(groups, key=lambda one: (-one.shared - one.rest, -one.shared, one.texts)):
        width = max(shared, group.shared) + max(rest, group.rest)
        apart = bool(batches) and side_by_side(batches[-1][0].shared) != side_by_side(group.shared)
        if not batches or apart or not limit.holds(rows + group.rows, width):
            batches.append([])
            rows = shared = rest = 0
        batches[-1].append(group)
        rows, shared, rest = rows + group.rows, max(shared, group.shared), max(rest, group.rest)
    return batches


def deal(batches: int, rank: int, world_size: int) -> list[tuple[int, bool]]:
    """The batches that process ``rank`` of ``world_size`` reads, and whether each counts.

    Batch i goes to process i modulo ``world_size``. All processes read equally many, for a model that is spread over
    them needs all of them in each pass: one that has none left reads its last one again (the first of all, if it never
    had one), and that does not count.
    """
    found: list[tuple[int, bool]] = []
    last = 0
    for first in range(0, batches, world_size):
        own = first + rank < batches
        last = first + rank if own else last
        found.append((last, own))
    return found
