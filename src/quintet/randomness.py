"""Random numbers that follow from a key and not from a history.

Whatever is random in a run (the order of samples, dropout, initial weights) is drawn from a generator seeded by
``key(seed, purpose, step)``. Nothing has to be stored to continue a run, and nothing depends on how many processes,
workers or earlier draws there were.
"""

from __future__ import annotations

import hashlib


def key(seed: int, *purpose: str | int) -> int:
    """A 63-bit integer that depends on ``seed`` and on every word of ``purpose``, for use as a generator's seed.

    BLAKE2b is used as the mixing function so that neighbouring steps give unrelated seeds, which small multiplicative
    hashes do not guarantee.
    """
    text = "/".join([str(seed), *(str(word) for word in purpose)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
