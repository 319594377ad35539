"""The waste of each way of packing: padding, dropped tokens, and documents that are cut.

    python benchmarks/packing.py [--corpus FILE ...] [--separator TEXT] [--length 1024] [--vocabulary 4096]

A corpus is a .jsonl file with the field `text`, or a text file with separators between documents; the default is
Python's standard library. "Cut" counts documents that would fit into one sample but are divided.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from typing import Any

import numpy as np

from quintet.config.schema import RunConfig
from quintet.data.packing import Packed
from quintet.data.prepare import prepare
from quintet.data.samples import Samples, Windows
from quintet.data.store import TokenStore

PACKINGS: dict[str, dict[str, Any]] = {
    "stream": {"kind": "stream"},
    "chunks, joined": {"kind": "chunks"},
    "chunks, each document": {"kind": "chunks", "join": False},
    "document, truncated": {"kind": "document"},
    "best fit": {"kind": "best_fit"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", action="append", help="a file of documents (may be repeated)")
    parser.add_argument("--separator", default="\n\n", help="separator between documents of a text file")
    parser.add_argument("--length", type=int, default=1024, help="tokens per sample")
    parser.add_argument("--vocabulary", type=int, default=4096, help="size of the BPE vocabulary trained on the corpus")
    options = parser.parse_args()
    for corpus in options.corpus or [None]:
        with tempfile.TemporaryDirectory() as cache:
            measure(corpus, options, cache)


def measure(corpus: str | None, options: argparse.Namespace, cache: str) -> None:
    prepare(run_config(corpus, {"kind": "stream"}, options, cache))  # so that only the packing is timed
    print(f"\n{corpus or 'the standard library'}, samples of {options.length} tokens")
    print(f"{'packing':<24}{'samples':>9}{'padding':>12}{'dropped':>10}{'cut':>8}{'seconds':>9}")
    for name, packing in PACKINGS.items():
        config = run_config(corpus, packing, options, cache)
        start = time.perf_counter()
        prepared = prepare(config)
        seconds = time.perf_counter() - start
        samples, store = prepared.train.source_samples[0], prepared.stores[0]
        waste = samples.waste if isinstance(samples, Packed) else 0.0
        dropped, cut = losses(samples, store, options.length + 1)
        print(f"{name:<24}{samples.count:>9,}{waste:>12.1%}{dropped:>10.1%}{cut:>8.1%}{seconds:>9.2f}")
    sizes = np.diff(store.document_ends(0, store.document_count), prepend=0)
    print(
        f"{store.document_count:,} documents, {store.token_count:,} tokens; "
        f"{(sizes > options.length + 1).mean():.1%} of the documents are longer than a sample"
    )


def losses(samples: Samples, store: TokenStore, room: int) -> tuple[float, float]:
    """Return the share of tokens in no sample, and the share of the documents fitting into a sample that are cut."""
    starts, stops = pieces(samples)
    order = np.argsort(starts, kind="stable")
    starts, stops = starts[order], np.maximum.accumulate(stops[order])
    joined = np.concatenate([[0], stops[:-1]])
    covered = np.maximum(stops - np.maximum(starts, joined), 0).sum()
    firsts, lasts = store.document_bounds(np.arange(store.document_count))
    fits = lasts - firsts <= room
    holder = np.searchsorted(starts, firsts, side="right") - 1
    whole = (holder >= 0) & (stops[np.maximum(holder, 0)] >= lasts)
    if isinstance(samples, Windows):  # adjacent windows overlap, so the maximum above joins them
        whole = (firsts // (room - 1) + 1) * (room - 1) + 1 >= lasts
    return float(1 - covered / store.token_count), float((fits & ~whole).sum() / max(fits.sum(), 1))


def pieces(samples: Samples) -> tuple[np.ndarray, np.ndarray]:
    """Return the first token of each piece, and the position after its last: int64 [pieces] each."""
    if isinstance(samples, Packed):
        return np.asarray(samples.table.starts), np.asarray(samples.table.stops)
    assert isinstance(samples, Windows)
    starts = np.arange(samples.count) * samples.sequence_length
    return starts, starts + samples.sequence_length + 1


def run_config(corpus: str | None, packing: dict[str, Any], options: argparse.Namespace, cache: str) -> RunConfig:
    source: dict[str, Any] = {"kind": "python_stdlib"}
    if corpus is not None and corpus.endswith(".jsonl"):
        source = {"kind": "jsonl", "path": corpus}
    elif corpus is not None:
        source = {"kind": "text", "path": corpus, "separator": options.separator}
    data = {
        "sources": [source],
        "validation": 0,
        "cache_dir": cache,
        "sequence_length": options.length,
        "packing": packing,
    }
    tokenizer = {"kind": "bpe", "vocab_size": options.vocabulary}
    return RunConfig.model_validate({"name": "it", "data": data, "tokenizer": tokenizer, "train": {"steps": 1}})


if __name__ == "__main__":
    main()
