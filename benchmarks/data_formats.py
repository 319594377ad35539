"""Every format that Quintet reads or writes: are the tokens equal, and how fast is it read?

    python benchmarks/data_formats.py [MEGABYTES]

A generated corpus is written to a file of each format and prepared. The result is compared with the store made from
JSON lines, by the hashes of the documents and the loss masks. Prints a Markdown table.
"""

from __future__ import annotations

import csv
import gzip
import json
import random
import struct
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quintet.config.schema import RunConfig
from quintet.data.formats import write_format
from quintet.data.prepare import Prepared, prepare
from quintet.data.store import TokenStore

SEPARATOR = " => "


@dataclass(frozen=True)
class Case:
    """A file of one format and the source that reads it.

    ``written`` is True if `quintet prepare` wrote the file, ``masked`` if the format can hold a loss mask.
    """

    name: str
    source: dict[str, Any]
    written: bool = False
    masked: bool = True


class Bench:
    """The generated rows, and how to prepare a source."""

    def __init__(self, folder: Path, megabytes: float) -> None:
        self.folder, self.rows = folder, list(made_up(megabytes))
        self.tokenizer: dict[str, Any] = {"kind": "bpe", "vocab_size": 4096}

    def prepared(self, source: dict[str, Any], **data: Any) -> tuple[Prepared, float]:
        """Prepare ``source`` with an empty cache, and return the result and the seconds it took."""
        config = RunConfig.model_validate(
            {
                "name": "formats",
                "data": {
                    "sources": [source], "sequence_length": 256, "validation": 0, "processes": 1,
                    "cache_dir": tempfile.mkdtemp(dir=self.folder), **data,
                },
                "tokenizer": self.tokenizer,
                "train": {"steps": 1, "batch_size": 1},
            }
        )  # fmt: skip
        start = time.perf_counter()
        prepared = prepare(config)
        return prepared, time.perf_counter() - start


def made_up(megabytes: float) -> Iterator[dict[str, str]]:
    """Yield rows of prompts and answers, about ``megabytes`` in total."""
    rng, size = random.Random(1), 0
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(2, 9))) for _ in range(5000)]
    while size < megabytes * 1e6:
        text = f"{' '.join(rng.choices(words, k=40))}{SEPARATOR}{' '.join(rng.choices(words, k=rng.randint(20, 200)))}"
        size += len(text)
        yield {"text": text}


def same(one: TokenStore, other: TokenStore, *, masks: bool) -> bool:
    """Return True if both stores hold the same documents and, with ``masks``, the same loss masks."""
    if (one.document_count, one.token_count) != (other.document_count, other.token_count):
        return False
    if masks and not np.array_equal(loss_mask_of(one), loss_mask_of(other)):
        return False
    return np.array_equal(one.hashes(0, one.document_count), other.hashes(0, one.document_count))


def loss_mask_of(store: TokenStore) -> np.ndarray:
    """Return the loss mask of all tokens of ``store``: bool [tokens]."""
    mask = store.loss_mask(0, store.token_count)
    return np.ones(store.token_count, bool) if mask is None else mask


def cases(bench: Bench, plain: Prepared, masked: Prepared) -> Iterator[Case]:
    """Write the rows, and the tokens of the stores ``plain`` and ``masked``, to a file of every format."""
    folder, lines = bench.folder, "".join(json.dumps(row) + "\n" for row in bench.rows).encode()
    rows = {"document": {"kind": "conditional", "separator": SEPARATOR}}
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(lines, 1))
    yield Case("jsonl.gz", {"kind": "jsonl", "path": f"{folder}/a.jsonl.gz", **rows})
    import zstandard

    (folder / "a.jsonl.zst").write_bytes(zstandard.compress(lines))
    yield Case("jsonl.zst", {"kind": "jsonl", "path": f"{folder}/a.jsonl.zst", **rows})
    (folder / "a.txt").write_text("\0".join(row["text"] for row in bench.rows))
    yield Case("text", {"kind": "text", "path": f"{folder}/a.txt", "separator": "\0", **rows})
    with (folder / "a.csv").open("w", newline="") as out:
        writer = csv.DictWriter(out, ["text"])
        writer.writeheader()
        writer.writerows(bench.rows)
    yield Case("csv", {"kind": "csv", "path": f"{folder}/a.csv", **rows})
    import datasets
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_pylist(bench.rows)
    pyarrow.parquet.write_table(table, folder / "a.parquet")
    yield Case("parquet", {"kind": "parquet", "path": f"{folder}/a.parquet", **rows})
    datasets.Dataset(table).save_to_disk(folder / "rows")
    yield Case("huggingface, text", {"kind": "huggingface", "path": f"{folder}/rows", **rows})
    import fsspec

    fsspec.filesystem("memory").pipe_file("/a.jsonl", lines)
    yield Case("jsonl at an address", {"kind": "jsonl", "path": "memory://a.jsonl", **rows})
    yield from token_cases(folder, plain, masked)


def token_cases(folder: Path, plain: Prepared, masked: Prepared) -> Iterator[Case]:
    """The formats that hold token ids."""
    write_format(masked, "huggingface", folder / "out_rows")
    tokens = {"document": {"kind": "tokens"}}
    yield Case("huggingface, tokens", {"kind": "huggingface", "path": f"{folder}/out_rows", **tokens}, written=True)
    stream = prepare_stream(masked)
    np.save(folder / "train.npy", stream[0])
    np.save(folder / "train_labels.npy", np.where(stream[1], stream[0].astype(np.int64), -100))
    yield Case("npy with labels", {"kind": "npy", "path": f"{folder}/train.npy", "document": "end_id"})
    prepare_stream(plain)[0].astype("<u2").tofile(folder / "train.bin")
    yield Case("bin", {"kind": "bin", "path": f"{folder}/train.bin", "document": "end_id"}, masked=False)
    write_megatron(folder / "mega", plain)
    yield Case("megatron", {"kind": "megatron", "path": f"{folder}/mega"}, masked=False)
    write_format(plain, "npy", folder / "out_npy")
    yield Case(
        "npy", {"kind": "npy", "path": f"{folder}/out_npy/train.npy", "document": "end_id"}, written=True, masked=False
    )
    write_format(plain, "tatm", folder / "out_tatm")
    yield Case("tatm", {"kind": "tatm", "path": f"{folder}/out_tatm/train"}, written=True, masked=False)


def prepare_stream(prepared: Prepared) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens of the only store and their loss mask."""
    store = prepared.stores[0]
    return store.tokens(0, store.token_count), loss_mask_of(store)


def write_megatron(stem: Path, prepared: Prepared) -> None:
    """Write the documents as an indexed dataset, as Megatron-LM's preprocessing does."""
    ids, _ = prepare_stream(prepared)
    starts, ends = prepared.stores[0].document_bounds(np.arange(prepared.stores[0].document_count))
    ids.astype("<i4").tofile(stem.with_suffix(".bin"))
    head = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 4, len(ends), len(ends) + 1)
    body = (ends - starts).astype("<i4").tobytes() + (4 * starts).astype("<i8").tobytes()
    stem.with_suffix(".idx").write_bytes(head + body + np.arange(len(ends) + 1, dtype="<i8").tobytes())


def main() -> None:
    """Print the table."""
    megabytes = float(sys.argv[1]) if len(sys.argv) > 1 else 10
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name), megabytes)
        (bench.folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in bench.rows))
        source = {"kind": "jsonl", "path": f"{name}/a.jsonl"}
        first, _ = bench.prepared(source)
        first.tokenizer.save(bench.folder / "tokenizer")
        bench.tokenizer = {"kind": "huggingface", "path": f"{name}/tokenizer"}
        plain, seconds = bench.prepared(source)
        conditional = {**source, "document": {"kind": "conditional", "separator": SEPARATOR}}
        packing = {"packing": {"kind": "document", "keep_ends": True}, "sequence_length": 4096}
        masked, seconds_masked = bench.prepared(conditional, **packing)
        size = plain.stores[0].manifest.bytes / 1e6
        print("| format | masks | written by prepare | equal when read | MB/s of text |\n|---|---|---|---|---|")
        print(f"| jsonl | | | (compared with) | {size / seconds:.1f} |")
        print(f"| jsonl, conditional | yes | | (compared with) | {size / seconds_masked:.1f} |")
        for case in cases(bench, plain, masked):
            prepared, seconds = bench.prepared(case.source)
            equal = same(prepared.stores[0], (masked if case.masked else plain).stores[0], masks=case.masked)
            cells = [words(case.masked), words(case.written), "yes" if equal else "NO", f"{size / seconds:.1f}"]
            print(f"| {case.name} | {' | '.join(cells)} |")


def words(holds: bool) -> str:
    """Return a cell of the table."""
    return "yes" if holds else ""


if __name__ == "__main__":
    main()
