"""Opening token stores: how fast their bytes are verified, and what checking the ids costs.

    python benchmarks/store_checks.py [MEGABYTES]

The figures are gigabytes per CPU second of one core, the best of three: the checks by CRC-32 with and without checking
each id, the single BLAKE2b of stores from earlier versions, and other hashes for comparison. Below them are the cost of
a batch with and without checking its ids, and of opening a store that was verified before.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from quintet.data import verify
from quintet.data.manifest import Manifest, Shard
from quintet.data.store import ArrayWriter, TokenStore, array_file

VOCABULARY, LENGTH, ROWS, DOCUMENT = 50_257, 1024, 64, 1000
CLAIMED = 1.0  # GB/s


def best(work: Callable[[], object], times: int = 3) -> float:
    """Return the least CPU seconds of ``work``, which other load on the machine does not change."""
    seconds = []
    for _ in range(times):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return min(seconds)


def made_store(folder: Path, megabytes: float) -> TokenStore:
    """Write a store of random ids in one shard of about ``megabytes``."""
    documents = max(1, int(megabytes * 1e6 / 2 / DOCUMENT))
    ids = np.random.default_rng(0).integers(0, VOCABULARY, documents * DOCUMENT, dtype=np.uint16)
    arrays = {
        "tokens": ids,
        "ends": np.arange(1, documents + 1, dtype=np.int64) * DOCUMENT,
        "hashes": np.arange(documents, dtype=np.uint64),
    }
    checksums = {}
    for what, values in arrays.items():
        writer = ArrayWriter(array_file(folder, "shard-000000", what), values.dtype)
        writer.append(values)
        writer.close()
        checksums[what] = writer.checksum
    digest = hashlib.blake2b(ids.data, digest_size=16)
    digest.update(arrays["ends"].data)
    shard = Shard("shard-000000", ids.size, documents, 4 * ids.size, digest.hexdigest(), checksums=checksums)
    counts = (ids.size, documents, 4 * ids.size, {}, 0, (), (shard,))
    Manifest("key", "made up", "fingerprint", {}, VOCABULARY, "<u2", *counts).write(folder)
    return TokenStore.open(folder)


def opened_anew(folder: Path) -> None:
    verify.forget_all()
    TokenStore.open(folder)


def speeds(store: TokenStore) -> dict[str, float]:
    """Return the gigabytes per second of each way to verify the tokens."""
    [shard] = store.manifest.shards
    file = array_file(store.folder, shard.name, "tokens")
    check = verify.ArrayCheck("<u2", shard.tokens, shard.checksums["tokens"], VOCABULARY)
    data = store.tokens(0, store.token_count).data
    old = replace(store.manifest, shards=(replace(shard, checksums={}),))
    found = {
        "whole store, first opening": best(lambda: opened_anew(store.folder)),
        "CRC-32 and the look at each id": best(lambda: check.problem(file)),
        "CRC-32 of a file": best(lambda: replace(check, vocab_size=None).problem(file)),
    }
    (store.folder / "old").mkdir()
    for one in store.folder.glob("shard-*"):
        os.link(one, store.folder / "old" / one.name)
    old.write(store.folder / "old")
    found["store of an earlier version, by BLAKE2b"] = best(lambda: opened_anew(store.folder / "old"))
    found["zlib.crc32 alone"] = best(lambda: zlib.crc32(data))
    for name in ("sha1", "sha256", "blake2b", "md5"):
        found[f"hashlib.{name} alone"] = best(lambda name=name: hashlib.new(name, data).digest())
    return {name: data.nbytes / 1e9 / seconds for name, seconds in found.items()}


def batch_seconds(store: TokenStore, *, look: bool) -> float:
    """Return the seconds of reading the ids of a batch."""
    store._all_known = not look
    starts = np.random.default_rng(1).integers(0, store.token_count - LENGTH - 1, ROWS).tolist()

    def read() -> None:
        out = np.zeros((ROWS, LENGTH), dtype=np.int64)
        for row, start in enumerate(starts):
            out[row] = store.tokens(start, start + LENGTH + 1)[:-1]

    return best(read, 50)


def main() -> None:
    megabytes = float(sys.argv[1]) if len(sys.argv) > 1 else 200.0
    with tempfile.TemporaryDirectory() as home:
        os.environ["HOME"] = home
        verify.cores = lambda: 1
        folder = Path(home, "store")
        folder.mkdir()
        store = made_store(folder, megabytes)
        found = speeds(store)
        print("| what | GB/s |\n|---|---|")
        for name, speed in found.items():
            print(f"| {name} | {speed:.2f} |")
        plain, looked = batch_seconds(store, look=False), batch_seconds(store, look=True)
        print(f"\na batch of {ROWS} × {LENGTH} ids: {plain * 1e6:.0f} µs, with the look {looked * 1e6:.0f} µs")
        print(f"opening again what was found whole: {best(lambda: TokenStore.open(folder)) * 1e3:.2f} ms")
        ratio = found["whole store, first opening"] / CLAIMED
        print(f"first opening / {CLAIMED:g} GB/s: {ratio:.2f}")


if __name__ == "__main__":
    main()
