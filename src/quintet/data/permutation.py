"""Random orders of any length that take no memory."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from quintet.randomness import key

_ROUNDS, _SMALL_ROUNDS = 8, 24
_SMALL = 1 << 16
_LARGEST = 1 << 62


@dataclass(frozen=True)
class Permutation:
    """A permutation of 0 … ``size`` - 1 (at most 2^62), keyed by ``seed``: a block cipher with that domain.

    A Feistel network (Luby and Rackoff 1988) permutes the integers of ``bits`` bits, where 2^bits is the smallest power
    of two that is at least ``size``. The number is split into a high and a low half (the high half has one bit more if
    ``bits`` is odd), and each round XORs a keyed function of one half into the other. Results outside the range are
    encrypted again until they are inside, which keeps it a permutation (cycle walking: Black and Rogaway 2002). More
    than half of the domain is inside, so that takes fewer than two passes on average.

    Four rounds of independent random functions cannot be told from a random permutation by fewer than about 2^(bits/4)
    values (Luby and Rackoff), and six rounds not by fewer than about 2^(bits/2) (Patarin 2004). Eight leave a margin
    for unequal halves. Below 2^16 values these bounds say little, and there are 24 rounds: over the seeds, all
    permutations of 5, 6 or 7 values are then equally frequent within the statistical error; with 8 or 12 rounds they
    are not.

    The round function is the finaliser of SplitMix64 (Steele, Lea and Flood 2014), keyed by addition. It is not
    cryptographic: the order has to be free of patterns, not secret.
    """

    size: int
    seed: int

    def __post_init__(self) -> None:
        assert 1 <= self.size <= _LARGEST, self.size

    def __call__(self, indices: np.ndarray) -> np.ndarray:
        """Return the value at each of ``indices``; int64, of the same shape."""
        indices = np.asarray(indices)
        assert not indices.size or (indices.min() >= 0 and indices.max() < self.size), self.size
        values = self._encrypt(indices.astype(np.uint64).reshape(-1))
        outside = np.flatnonzero(values >= self.size)
        while outside.size:
            again = self._encrypt(values[outside])
            values[outside] = again
            outside = outside[again >= self.size]
        return values.astype(np.int64).reshape(indices.shape)

    @cached_property
    def _keys(self) -> list[np.uint64]:
        rounds = _SMALL_ROUNDS if self.size < _SMALL else _ROUNDS
        return [np.uint64(key(self.seed, "round", number)) for number in range(rounds)]

    def _encrypt(self, values: np.ndarray) -> np.ndarray:
        """Return ``values``, uint64 [n], after one pass of the network."""
        bits = max(1, (self.size - 1).bit_length())
        low_bits = np.uint64(bits // 2)
        low_mask = np.uint64((1 << bits // 2) - 1)
        high_mask = np.uint64((1 << bits - bits // 2) - 1)
        low, high = values & low_mask, values >> low_bits
        for number, round_key in enumerate(self._keys):
            if number % 2:
                low = low ^ (_mix(high + round_key) & low_mask)
            else:
                high = high ^ (_mix(low + round_key) & high_mask)
        return high << low_bits | low


def _mix(values: np.ndarray) -> np.ndarray:
    """Return the finaliser of SplitMix64 of ``values``, uint64 [n]: each bit of the input changes each bit of the
    result with probability about 1/2."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
