"""Building the token store of a source: many processes tokenise its work units, and finished shards are kept."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import lru_cache
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

from quintet.config.cleaning import CleaningConfig
from quintet.config.packing import MusicPackingConfig
from quintet.config.schema import RunConfig
from quintet.data.cleaning import CLEANING_LIBRARIES, NO_CLEANING, find_duplicates
from quintet.data.locks import locked
from quintet.data.manifest import MANIFEST, Dropped, Manifest, read_manifest, write_json
from quintet.data.shards import FinishedShard, read_shard, write_shard
from quintet.data.sources import reader_libraries
from quintet.data.sources.base import SourceIndex, WorkUnit
from quintet.data.sources.files import shown
from quintet.data.sources.rows import reading_rules
from quintet.data.store import DROPPED, TokenStore, token_dtype, write_dropped
from quintet.errors import UserError, one_line
from quintet.files import from_json, new_folder
from quintet.system import __version__
from quintet.tokenize import Tokenizer, load_tokenizer
from quintet.tokenize.base import digest, libraries_of, versions_of
from quintet.tokenize.registry import tokenizer_libraries

UNFINISHED = "unfinished.json"
TOKENIZER = "tokenizer"
# Bytes up to which no processes are started. These are two units: at most two processes would share them, and the
# threads of one tokenizer use two cores as well (200 MB of JSON lines with a BPE of 4096 on two cores: 19 s in threads,
# 18 s in processes).
_SMALL = 32 << 20
_MOST_NAMES = 1000
_RECIPE = "3"  # raise it when the same source and tokenizer give other tokens, shards or counts than before

ProgressCallback = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Share:
    """Share ``index``, from 0, of ``count`` shares of the work: every ``count``-th work unit from ``index`` on."""

    index: int
    count: int

    def of(self, units: int) -> range:
        """Return the numbers of the units of this share."""
        return range(self.index, units, self.count)


@dataclass(frozen=True)
class StoreSpec:
    """A store to be made of a source with a tokenizer, which ``tokenizer_config`` of the run file describes.

    With ``where``, the key path of the source, the source is indexed once more at the end, and must not have changed.
    """

    index: SourceIndex
    tokenizer: Tokenizer
    tokenizer_config: dict[str, Any]
    folder: Path
    cleaning: CleaningConfig = NO_CLEANING
    where: str = ""

    @property
    def key(self) -> str:
        """Name of the store."""
        return store_key(self.index, self.tokenizer, self.cleaning)

    @property
    def dtype(self) -> str:
        """Type of the tokens."""
        return token_dtype(self.tokenizer.vocab_size).str


def store_key(index: SourceIndex, tokenizer: Tokenizer, cleaning: CleaningConfig = NO_CLEANING) -> str:
    """Return the name of the store of a source and a tokenizer. It depends on all that its documents depend on, also on
    the versions of the libraries that read and encode them."""
    rules = reading_rules(index.source, tokenizer)
    encoded_by = versions_of(libraries_of(tokenizer))
    versions = [f"{name} {version}" for name, version in encoded_by.items()]
    return digest(_RECIPE, index.fingerprint, tokenizer.fingerprint, rules, cleaning.model_dump_json(), *versions)


def encoding_libraries(config: RunConfig, tokenizer: Tokenizer) -> tuple[str, ...]:
    """Return the libraries that make ids only while the run trains: those of a tokenizer of notes."""
    return libraries_of(tokenizer) if isinstance(config.data.packing, MusicPackingConfig) else ()


def versions_used(index: SourceIndex, tokenizer: Tokenizer) -> dict[str, str]:
    """Return the versions of the libraries that make the ids of the store of ``index`` and ``tokenizer``, by name."""
    return versions_of((*index.reader.libraries, *libraries_of(tokenizer)))


def build_store(spec: StoreSpec, processes: int, progress: ProgressCallback | None) -> TokenStore:
    """Return the store that ``spec`` describes, and make what is missing of it.

    Each byte is the same for any number of ``processes``; none is started for little work. Waits for processes that
    make a share of the store. Raises UserError for what cannot be read; finished shards are kept.
    """
    if not (spec.folder / MANIFEST).is_file():
        spec.folder.mkdir(parents=True, exist_ok=True)
        with locked(spec.folder, alone=True):
            if not (spec.folder / MANIFEST).is_file():  # another process may have made it while this one waited
                _begin(spec)
                units, left_out = spec.index.units()
                _remove_unfinished(spec, len(units))
                _make_shards(spec, units, range(len(units)), processes, progress)
                _check_unchanged(spec)
                _finish(spec, _shards(spec, len(units)), left_out)
    store = TokenStore.open(spec.folder, spec.tokenizer.fingerprint, progress)
    assert store.manifest.key == spec.key, (store.manifest.key, spec.key)
    return store


def build_share(spec: StoreSpec, share: Share, processes: int, progress: ProgressCallback | None) -> int:
    """Make the shards of ``share``, while other processes make theirs in the same folder, on any machine.

    The process that finds all shards at the end makes the store of them, bit for bit the one of ``build_store``.
    Returns the number of missing shards, 0 when the store is made.
    """
    if (spec.folder / MANIFEST).is_file():
        return 0
    spec.folder.mkdir(parents=True, exist_ok=True)
    units, left_out = spec.index.units()
    with locked(spec.folder, alone=True, wait=False) as alone:
        if alone and not (spec.folder / MANIFEST).is_file():
            _remove_unfinished(spec, len(units))
    with locked(spec.folder, alone=False):
        if not (spec.folder / MANIFEST).is_file():
            _begin(spec)
            _make_shards(spec, units, share.of(len(units)), processes, progress)
            _check_unchanged(spec)
    # Each process counts the shards after its last one, so the process that counts last finds all of them.
    missing = len(units) - len(_shards(spec, len(units)))
    if not missing:
        with locked(spec.folder, alone=True):
            if not (spec.folder / MANIFEST).is_file():
                _remove_unfinished(spec, len(units))
                _finish(spec, _shards(spec, len(units)), left_out)
    return missing


def check_output(folder: Path, key: str) -> None:
    """Raise UserError unless ``folder`` is new, empty, or holds the store ``key``, finished or not."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; name a folder")
    # Another process may be about to start the same store.
    started = (".lock", f".{UNFINISHED}")
    if not folder.exists() or all(file.name.startswith(started) for file in folder.iterdir()):
        return
    if (folder / MANIFEST).is_file():
        existing = read_manifest(folder).key
    elif (folder / UNFINISHED).is_file():
        existing = _key_in(folder / UNFINISHED)
    else:
        raise UserError(f"{folder}: is not empty and holds no token store; name a new folder")
    if existing != key:
        raise UserError(
            f"{folder}: holds another token store, of other files, settings or versions of libraries; name another "
            "folder or delete this one"
        )


def _key_in(unfinished: Path) -> Any:
    try:
        return from_json(unfinished.read_bytes())["key"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{unfinished}: is damaged ({one_line(error)}); delete the folder and run again") from None


def _begin(spec: StoreSpec) -> None:
    """Write the key of the store and the tokenizer into the folder. Several processes may do so at once."""
    folder = spec.folder
    if not (folder / UNFINISHED).is_file():
        write_json(folder / UNFINISHED, {"key": spec.key})
    if not (folder / TOKENIZER).is_dir():
        with new_folder(folder / TOKENIZER, shared=True) as unfinished:
            spec.tokenizer.save(unfinished)


def _finish(spec: StoreSpec, finished: list[FinishedShard], left_out: list[str]) -> None:
    """Make a store of the shards: find duplicates, and write the manifest, without which there is no store."""
    manifest = _manifest(spec, finished, left_out)
    store = TokenStore(spec.folder, manifest)
    dropped, reasons = find_duplicates(store, spec.cleaning)
    if dropped.size:
        write_dropped(spec.folder, dropped)
        starts, stops = store.document_bounds(dropped)
        unused = Dropped(dropped.size, int((stops - starts).sum()), digest(dropped.astype("<i8").tobytes()))
        manifest = replace(manifest, dropped=dict(Counter(manifest.dropped) + reasons), unused=unused)
    manifest.write(spec.folder)
    (spec.folder / UNFINISHED).unlink()


def _shards(spec: StoreSpec, count: int) -> list[FinishedShard]:
    """Return those of the ``count`` shards that are finished, in order."""
    shards = (read_shard(spec.folder, index, spec.dtype) for index in range(count))
    return [shard for shard in shards if shard is not None]


def _check_unchanged(spec: StoreSpec) -> None:
    # Files can be written to while they are read; a dataset is a snapshot.
    files = spec.where and spec.index.files
    if files and spec.index.reader.index(spec.where).fingerprint != spec.index.fingerprint:
        raise UserError(f"{spec.index.source.display_name}: changed while it was read; run again")


def _make_shards(
    spec: StoreSpec, units: list[WorkUnit[Any]], indices: range, processes: int, progress: ProgressCallback | None
) -> None:
    """Write the shards of the units ``indices`` that are not finished."""
    missing = {index: units[index] for index in indices if read_shard(spec.folder, index, spec.dtype) is None}
    total = sum(units[index].size for index in indices)
    meter = _Meter(f"tokenising {spec.index.source.display_name}", total, progress)
    meter.advance(total - sum(unit.size for unit in missing.values()))
    if min(processes, len(missing)) <= 1 or sum(unit.size for unit in missing.values()) <= _SMALL:
        for index, unit in missing.items():
            write_shard(spec.folder, index, unit, spec.tokenizer, meter.advance, spec.cleaning)
    else:
        _in_processes(spec, missing, min(processes, len(missing)), meter)
    meter.finish()


def _in_processes(spec: StoreSpec, units: dict[int, WorkUnit[Any]], processes: int, meter: _Meter) -> None:
    pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_start_worker)
    try:
        futures = {pool.submit(_work, spec.folder, spec.cleaning, index, unit): index for index, unit in units.items()}
        for future in as_completed(futures):
            future.result()
            meter.advance(units[futures[future]].size)
    except BrokenProcessPool as error:
        raise UserError(
            f"{spec.folder}: a process that tokenised was killed, most likely because memory ran out; set "
            f"data.processes below {processes} and run again: what is finished is kept"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    """Give the tokenizer one thread, as there is a process per core, and end this process with its parent."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["RAYON_NUM_THREADS"] = "1"
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Exit when the parent is killed: this process has both ends of the pipe and would wait for work forever."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(folder: Path, cleaning: CleaningConfig, index: int, unit: WorkUnit[Any]) -> None:
    write_shard(folder, index, unit, _loaded(folder / TOKENIZER), cleaning=cleaning)


_loaded = lru_cache(maxsize=1)(load_tokenizer)


def library_versions() -> dict[str, str]:
    """Return the versions of Quintet and of each installed library that a kind of tokenizer or source, or a step of
    cleaning, names as its own."""
    names = (*tokenizer_libraries(), *reader_libraries(), *CLEANING_LIBRARIES)
    return {"quintet": __version__, **versions_of(names)}


class _Meter:
    """Reports the finished bytes of a stage to ``progress``, and never more than its total."""

    def __init__(self, stage: str, total: int, progress: ProgressCallback | None) -> None:
        self._stage, self._total, self._progress, self._done = stage, total, progress, 0

    def advance(self, size: int) -> None:
        # The total is reported only by `finish`: text can be longer than the bytes that it was read from.
        self._done = min(self._done + size, self._total - 1)
        self._report(self._done)

    def finish(self) -> None:
        self._report(self._total)

    def _report(self, done: int) -> None:
        if self._progress is not None and self._total:
            self._progress(self._stage, max(done, 0), self._total)


def _manifest(spec: StoreSpec, finished: list[FinishedShard], left_out: list[str]) -> Manifest:
    shards = tuple(one.shard for one in finished if one.shard.tokens)
    left_out = [*map(shown, left_out), *(name for one in finished for name in one.left_out)]
    return Manifest(
        key=spec.key,
        description=spec.index.source.display_name,
        tokenizer=spec.tokenizer.fingerprint,
        tokenizer_config=spec.tokenizer_config,
        vocab_size=spec.tokenizer.vocab_size,
        dtype=spec.dtype,
        tokens=sum(shard.tokens for shard in shards),
        documents=sum(shard.documents for shard in shards),
        bytes=sum(shard.bytes for shard in shards),
        dropped=dict(sum((Counter(one.dropped) for one in finished), Counter[str]())),
        left_out=len(left_out),
        left_out_files=tuple(left_out[:_MOST_NAMES]),
        shards=shards,
        matched=dict(sum((Counter(one.matched) for one in finished), Counter[str]())),
        made_with=library_versions(),
    )


def _remove_unfinished(spec: StoreSpec, count: int) -> None:
    """Delete what killed processes left of unfinished shards, while no process writes."""
    finished = {finished.shard.name for finished in _shards(spec, count)}
    for file in spec.folder.iterdir():
        shard = file.name.startswith("shard-") and file.name.split(".")[0] not in finished
        if shard or file.name.startswith((".shard-", f".{DROPPED}", f".{MANIFEST}", f".{UNFINISHED}")):
            file.unlink()
        elif file.name.startswith(f".{TOKENIZER}."):
            shutil.rmtree(file)
