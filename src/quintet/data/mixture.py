"""Which sample is next: from a position in the run to a source and one of its samples, without state.

A position counts samples from the beginning of the run; a sample is a number below its source's count. The same
position gives the same sample in whichever process, order or batch it is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from quintet.data.permutation import Permutation
from quintet.errors import UserError
from quintet.randomness import key

BLOCK = 4096


@dataclass(frozen=True)
class EpochOrder:
    """Every sample of every source once an epoch, in an order of its own if ``shuffle``, else in that of the sources.

    ``counts`` are the samples of each source.
    """

    counts: tuple[int, ...]
    seed: int
    shuffle: bool

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Source and sample at each of ``positions``, int64 [positions] each."""
        total = sum(self.counts)
        indices = _draw(positions, total, (self.seed, "order"), self.shuffle)
        ends = np.cumsum(self.counts, dtype=np.int64)
        sources = np.searchsorted(ends, indices, side="right")
        return sources, indices - (ends - self.counts)[sources]


@dataclass(frozen=True)
class WeightedOrder:
    """Sources in proportion to ``weights``, exactly so in every block of 4096 samples (largest remainders, and at least
    one sample each). Each source goes through its own epochs, every one of its samples once in each.

    Within a block the sources are spread evenly; if ``shuffle``, the block is then permuted, and so are the epochs.
    """

    counts: tuple[int, ...]
    weights: tuple[float, ...]
    seed: int
    shuffle: bool

    def __post_init__(self) -> None:
        if len(self.weights) > BLOCK:
            raise UserError(f"data.sources: {len(self.weights)} sources with weights are more than {BLOCK}; join some")

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Source and sample at each of ``positions``, int64 [positions] each."""
        block, slots = np.divmod(np.asarray(positions, dtype=np.int64), BLOCK)
        if self.shuffle:
            slots = slots.copy()
            for number in np.unique(block).tolist():
                inside = block == number
                slots[inside] = Permutation(BLOCK, key(self.seed, "block", number))(slots[inside])
        pattern, ranks, shares = self._pattern
        sources = pattern[slots]
        drawn = block * shares[sources] + ranks[slots]  # how many samples of its source came before, in block order
        samples = np.empty_like(drawn)
        for source in np.unique(sources).tolist():
            inside = sources == source
            purpose = (self.seed, "order", source)
            samples[inside] = _draw(drawn[inside], self.counts[source], purpose, self.shuffle)
        return sources, samples

    @cached_property
    def _pattern(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Source of each slot and its rank among that source's slots, [4096] each; and slots a source, [sources]."""
        shares = np.array(apportion(self.weights, BLOCK))
        sources = np.repeat(np.arange(len(shares)), shares)
        ranks = np.concatenate([np.arange(share) for share in shares])
        order = np.argsort((ranks + 0.5) / shares[sources], kind="stable")
        return sources[order], ranks[order], shares


Order = EpochOrder | WeightedOrder


def apportion(weights: Sequence[float], slots: int, least: int = 1) -> list[int]:
    """``slots`` shared out in proportion to ``weights`` by largest remainders (Hamilton's method), at least ``least``
    each; the earlier of two equals comes first."""
    assert slots >= least * len(weights), (slots, len(weights))
    total = sum(weights)
    exact = [slots * weight / total for weight in weights]
    shares = [max(least, int(share)) for share in exact]
    while (short := slots - sum(shares)) != 0:
        if short > 0:
            shares[max(range(len(shares)), key=lambda index: exact[index] - shares[index])] += 1
        else:
            able = [index for index, share in enumerate(shares) if share > least]
            shares[max(able, key=lambda index: shares[index] - exact[index])] -= 1
    return shares


def _draw(drawn: np.ndarray, count: int, purpose: tuple[int, str, *tuple[int, ...]], shuffle: bool) -> np.ndarray:
    """The samples, of ``count``, that come after ``drawn`` earlier ones: a keyed permutation for each pass."""
    passes, indices = np.divmod(np.asarray(drawn, dtype=np.int64), count)
    if not shuffle:
        return indices
    for number in np.unique(passes).tolist():
        inside = passes == number
        indices[inside] = Permutation(count, key(*purpose, number))(indices[inside])
    return indices
