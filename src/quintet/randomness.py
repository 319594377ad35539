"""Seeds of random numbers, which depend on a key and not on earlier draws.

Everything random in a run (the order of samples, dropout, initial weights) is drawn from a generator seeded by
``key(seed, purpose, step)``. So a run that continues needs no stored state, and nothing depends on the number of
processes, workers or earlier draws.
"""

import hashlib


def key(seed: int, *purpose: str | int) -> int:
    """Return a 63-bit seed for a generator that depends on ``seed`` and on every word of ``purpose``.

    BLAKE2b gives unrelated seeds to neighbouring steps, which small multiplicative hashes do not guarantee.
    """
    text = "/".join([str(seed), *(str(word) for word in purpose)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
