"""Speed and memory of `prepare`, against the bare tokenizer and `datasets.map` on the same documents.

    python benchmarks/tokenising.py [CORPUS.jsonl] [--megabytes 100] [--vocabulary 32000] [--rounds 3]

The corpus has a field `text`; by default one is generated with words of Zipf's law in documents of log-normal length.
Each way runs in separate processes on all cores. The ways alternate, the fastest round of each counts, and peak memory
is that of the largest process. The bare tokenizer encodes texts in memory; the others read them from disk and write
tokens. CPU seconds do not depend on other load on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

BATCH = 1000  # documents in one call of the tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", nargs="?", type=Path)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--way", choices=list(WAYS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.way is not None:
        documents, tokens, times = WAYS[given.way](given.corpus, given.folder)
        peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        print(json.dumps([*times, documents, tokens, peak]))
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        corpus = given.corpus or generate(folder / "corpus.jsonl", given.megabytes << 20)
        make_tokenizer(corpus, folder, given.vocabulary)
        size = sum(len(text.encode("utf-8")) for text in texts_of(corpus))
        print(f"{size / 1e6:,.1f} MB of text, a BPE of {given.vocabulary:,} ids, {len(os.sched_getaffinity(0))} cores")
        print(f"{'':18}{'documents/s':>13}{'tokens/s':>13}{'MB/s':>8}{'seconds':>9}{'CPU s':>9}{'peak MB':>9}")
        rounds = [{way: measured(way, corpus, folder) for way in WAYS} for _ in range(given.rounds)]
        for way in WAYS:
            seconds, cpu, documents, tokens, peak = min(found[way] for found in rounds)
            speeds = f"{documents / seconds:13,.0f}{tokens / seconds:13,.0f}{size / 1e6 / seconds:8.1f}"
            print(f"{way:18}{speeds}{seconds:9.2f}{cpu:9.2f}{peak / 1024:9,.0f}")


def measured(way: str, corpus: Path, folder: Path) -> list:
    """What a process of its own says of ``way``: seconds, CPU seconds, documents, tokens, peak memory in kB."""
    shutil.rmtree(folder / "cache" / "stores", ignore_errors=True)
    command = [sys.executable, __file__, str(corpus), "--way", way, "--folder", str(folder)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])


def cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


class Clock:
    """Seconds and CPU seconds since it was made."""

    def __init__(self) -> None:
        self._began, self._used = time.perf_counter(), cpu_seconds()

    def read(self) -> tuple[float, float]:
        return time.perf_counter() - self._began, cpu_seconds() - self._used


def generate(file: Path, size: int) -> Path:
    """Documents of made-up words, about ``size`` bytes."""
    random = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwypvbgk"))
    words = np.array(["".join(random.choice(letters, length)) for length in random.integers(1, 11, 50_000)])
    with file.open("w", encoding="utf-8") as out:
        while out.tell() < size:
            chosen = words[(random.zipf(1.2, int(random.lognormal(5.5, 1.0)) + 1) - 1) % words.size]
            out.write(json.dumps({"text": " ".join(chosen)}) + "\n")
    return file


def make_tokenizer(corpus: Path, folder: Path, vocabulary: int) -> None:
    """Train a BPE on the corpus into ``folder``/tokenizer."""
    from quintet.data.prepare import build_tokenizer_of

    tokenizer = {"kind": "bpe", "vocab_size": vocabulary, "train_bytes": 20 << 20}
    build_tokenizer_of(run_config(corpus, folder, tokenizer)).save(folder / "tokenizer")


def run_config(corpus: Path, folder: Path, tokenizer: dict):
    from quintet.config.schema import RunConfig

    source = {"kind": "jsonl", "path": str(corpus)}
    data = {"sources": [source], "cache_dir": str(folder / "cache"), "sequence_length": 64, "validation": 0}
    train = {"steps": 1, "batch_size": 1}
    return RunConfig.model_validate({"name": "tokenising", "data": data, "tokenizer": tokenizer, "train": train})


def texts_of(corpus: Path) -> list[str]:
    with corpus.open(encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def library(folder: Path):
    import tokenizers

    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json"))


def bare(corpus: Path, folder: Path) -> tuple[int, int, tuple[float, float]]:
    """The library alone: ids are counted and thrown away."""
    tokenizer, texts = library(folder), texts_of(corpus)
    clock = Clock()
    tokens = 0
    for start in range(0, len(texts), BATCH):
        found = tokenizer.encode_batch_fast(texts[start : start + BATCH], add_special_tokens=False)
        tokens += sum(map(len, found))
    return len(texts), tokens, clock.read()


def prepared(corpus: Path, folder: Path) -> tuple[int, int, tuple[float, float]]:
    from quintet.data.prepare import prepare

    clock = Clock()
    config = run_config(corpus, folder, {"kind": "huggingface", "path": str(folder / "tokenizer")})
    (store,) = prepare(config).stores
    times = clock.read()
    return store.document_count, store.token_count, times


def mapped(corpus: Path, folder: Path) -> tuple[int, int, tuple[float, float]]:
    """`datasets.map` in batches; the corpus is in its format already, which is not counted."""
    os.environ.update(HF_HOME=str(folder / "hf"), TOKENIZERS_PARALLELISM="false")
    import datasets

    datasets.disable_progress_bars()
    rows = datasets.load_dataset("json", data_files=str(corpus), split="train")
    datasets.disable_caching()
    tokenizer = library(folder)

    def encode(batch: dict) -> dict:
        found = tokenizer.encode_batch_fast(batch["text"], add_special_tokens=False)
        return {"input_ids": [encoding.ids for encoding in found]}

    clock = Clock()
    cores = len(os.sched_getaffinity(0))
    done = rows.map(encode, batched=True, batch_size=BATCH, num_proc=cores, remove_columns=rows.column_names)
    times = clock.read()
    tokens = sum(len(ids) for batch in done.iter(BATCH) for ids in batch["input_ids"])
    return len(done), tokens, times


WAYS = {"bare encode_batch": bare, "quintet prepare": prepared, "datasets.map": mapped}

if __name__ == "__main__":
    main()
