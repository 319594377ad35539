"""A source becomes a token store: its work units are tokenised by many processes, and what is done stays done."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

from quintet.data.shards import Written, read_written, write_shard
from quintet.data.sources.check import MANIFEST
from quintet.data.sources.listing import Listing, Unit, label_of, units_of
from quintet.data.store import Manifest, TokenStore, read_manifest, token_dtype, write_json
from quintet.errors import UserError
from quintet.tokenize import Tokenizer, load_tokenizer
from quintet.tokenize.base import digest

UNFINISHED = "unfinished.json"
# Two units: at most two processes would share them, and the threads of one tokenizer use two cores as well (200 MB of
# JSON lines with a BPE of 4096 on two cores: 19 s in threads, 18 s in processes).
_SMALL = 32 << 20
_MOST_NAMES = 1000
_RECIPE = "2"  # to be raised when the same source and tokenizer give other tokens, shards or counts than before

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Order:
    """A store to be made: of which source, with which tokenizer (and what the run file says of it), and where."""

    listing: Listing
    tokenizer: Tokenizer
    tokenizer_config: dict[str, Any]
    folder: Path

    @property
    def dtype(self) -> str:
        """Type of the tokens."""
        return token_dtype(self.tokenizer.vocab_size).str


def store_key(listing: Listing, tokenizer: Tokenizer) -> str:
    """Name of the store that a source and a tokenizer make: it follows from all that its tokens depend on."""
    return digest(_RECIPE, listing.fingerprint, tokenizer.fingerprint)


def build_store(
    order: Order, processes: int, progress: Progress | None, relist: Callable[[], Listing] | None = None
) -> TokenStore:
    """The store that ``order`` describes; made if it is not there, continued if it is half there.

    The result is the same to the byte for any number of ``processes``. With little to do, none is started. ``relist``
    looks at the source once more, so that one that changed meanwhile is not taken for what it was. Raises UserError for
    what cannot be read; what was finished before it stays.
    """
    folder, key = order.folder, store_key(order.listing, order.tokenizer)
    if not (folder / MANIFEST).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            if not (folder / MANIFEST).is_file():  # another process may have made it while this one waited
                write_json(folder / UNFINISHED, {"key": key})
                if not (folder / "tokenizer" / "quintet.json").is_file():
                    order.tokenizer.save(folder / "tokenizer")
                units, left_out = units_of(order.listing)
                written = _all_shards(order, units, processes, progress)
                if relist is not None and relist().fingerprint != order.listing.fingerprint:
                    raise UserError(f"{label_of(order.listing.source)}: changed while it was read; run again")
                _manifest(order, key, written, left_out).write(folder)
                (folder / UNFINISHED).unlink()
    store = TokenStore.open(folder, order.tokenizer.fingerprint)
    assert store.manifest.key == key, (store.manifest.key, key)
    return store


def check_output(folder: Path, key: str) -> None:
    """Raise UserError unless ``folder`` is new, empty, or holds the store ``key``, finished or not."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; name a folder")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if (folder / MANIFEST).is_file():
        found = read_manifest(folder).key
    elif (folder / UNFINISHED).is_file():
        found = json.loads((folder / UNFINISHED).read_text(encoding="utf-8"))["key"]
    else:
        raise UserError(f"{folder}: is not empty and holds no token store; name a new folder")
    if found != key:
        raise UserError(f"{folder}: holds another token store; name another folder or delete this one")


def _all_shards(order: Order, units: list[Unit], processes: int, progress: Progress | None) -> list[Written]:
    """Every shard, in the order of ``units``; those that are not there yet are written."""
    done = {index: read_written(order.folder, index, order.dtype) for index in range(len(units))}
    finished = {index: written for index, written in done.items() if written is not None}
    _clean(order.folder, {written.shard.name for written in finished.values()})
    missing = {index: unit for index, unit in enumerate(units) if index not in finished}
    meter = _Meter(f"tokenising {label_of(order.listing.source)}", sum(unit.size for unit in units), progress)
    meter.advance(sum(units[index].size for index in finished))
    if min(processes, len(missing)) <= 1 or sum(unit.size for unit in missing.values()) <= _SMALL:
        for index, unit in missing.items():
            finished[index] = write_shard(order.folder, index, unit, order.tokenizer, meter.advance)
    else:
        finished |= _in_processes(order.folder, missing, min(processes, len(missing)), meter)
    meter.finish()
    return [finished[index] for index in range(len(units))]


def _in_processes(folder: Path, units: dict[int, Unit], processes: int, meter: _Meter) -> dict[int, Written]:
    written: dict[int, Written] = {}
    pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_start_worker)
    try:
        futures = {pool.submit(_work, folder, index, unit): index for index, unit in units.items()}
        for future in as_completed(futures):
            index = futures[future]
            written[index] = future.result()
            meter.advance(units[index].size)
    except BrokenProcessPool as error:
        raise UserError(
            f"{folder}: a process that tokenised was killed, most likely because memory ran out; set data.processes "
            f"below {processes} and run again: what is finished is kept"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return written


def _start_worker() -> None:
    """One thread for the tokenizer, as there is a process for each core; and end with the process that is served."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["RAYON_NUM_THREADS"] = "1"
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever: it holds both ends of the pipe itself."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(folder: Path, index: int, unit: Unit) -> Written:
    return write_shard(folder, index, unit, _loaded(folder / "tokenizer"))


_loaded = lru_cache(maxsize=1)(load_tokenizer)


class _Meter:
    """Bytes done of a stage, told to ``progress`` and never more than there are."""

    def __init__(self, stage: str, total: int, progress: Progress | None) -> None:
        self._stage, self._total, self._progress, self._done = stage, total, progress, 0

    def advance(self, size: int) -> None:
        # The end of a stage is told once, when it is certain: text can be longer than what it was read from.
        self._done = min(self._done + size, self._total - 1)
        self._tell(self._done)

    def finish(self) -> None:
        self._tell(self._total)

    def _tell(self, done: int) -> None:
        if self._progress is not None and self._total:
            self._progress(self._stage, max(done, 0), self._total)


def _manifest(order: Order, key: str, written: list[Written], left_out: list[str]) -> Manifest:
    shards = tuple(one.shard for one in written if one.shard.tokens)
    left_out = [*left_out, *(name for one in written for name in one.left_out)]
    return Manifest(
        key=key,
        description=label_of(order.listing.source),
        tokenizer=order.tokenizer.fingerprint,
        tokenizer_config=order.tokenizer_config,
        vocab_size=order.tokenizer.vocab_size,
        dtype=order.dtype,
        tokens=sum(shard.tokens for shard in shards),
        documents=sum(shard.documents for shard in shards),
        bytes=sum(shard.bytes for shard in shards),
        dropped=dict(sum((Counter(one.dropped) for one in written), Counter[str]())),
        left_out=len(left_out),
        left_out_files=tuple(left_out[:_MOST_NAMES]),
        shards=shards,
    )


def _clean(folder: Path, finished: set[str]) -> None:
    """Delete what a process that was killed left of shards that it did not finish."""
    for file in folder.iterdir():
        if file.name.startswith((".shard-", "shard-")) and file.name.split(".")[0] not in finished:
            file.unlink()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Only one process at a time makes the store in ``folder``; the lock goes with the process, however that ends."""
    import fcntl

    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            raise UserError(
                f"{folder}: its file system cannot lock files ({error.strerror}); put data.cache_dir on one that can"
            ) from None
        yield
