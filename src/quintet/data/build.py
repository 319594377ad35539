"""A source becomes a token store: its work units are tokenised by many processes, and what is done stays done."""

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
from quintet.data.cleaning import CLEANING_LIBRARIES, find_duplicates
from quintet.data.locks import locked
from quintet.data.manifest import MANIFEST, Dropped, Manifest, read_manifest, write_json
from quintet.data.shards import Written, read_written, write_shard
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
# Two units: at most two processes would share them, and the threads of one tokenizer use two cores as well (200 MB of
# JSON lines with a BPE of 4096 on two cores: 19 s in threads, 18 s in processes).
_SMALL = 32 << 20
_MOST_NAMES = 1000
_RECIPE = "3"  # to be raised when the same source and tokenizer give other tokens, shards or counts than before

_ALL = CleaningConfig()

ProgressCallback = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Share:
    """One of ``count`` shares of the work, numbered from 0: every ``count``-th work unit from ``index`` on."""

    index: int
    count: int

    def of(self, units: int) -> range:
        """The numbers of the units of this share."""
        return range(self.index, units, self.count)


@dataclass(frozen=True)
class StoreSpec:
    """A store to be made of a source with a tokenizer, and what the run file says of that one, in a folder.

    Where the key path ``where`` of the source is given, it is looked at once more at the end, so that one that changed
    meanwhile is not taken for what it was.
    """

    index: SourceIndex
    tokenizer: Tokenizer
    tokenizer_config: dict[str, Any]
    folder: Path
    cleaning: CleaningConfig = _ALL
    where: str = ""

    @property
    def key(self) -> str:
        """Name of the store."""
        return store_key(self.index, self.tokenizer, self.cleaning)

    @property
    def dtype(self) -> str:
        """Type of the tokens."""
        return token_dtype(self.tokenizer.vocab_size).str


def store_key(index: SourceIndex, tokenizer: Tokenizer, cleaning: CleaningConfig = _ALL) -> str:
    """Name of the store that a source and a tokenizer make: it follows from all that its documents depend on, the
    versions of the libraries that read and encode them included."""
    rules = reading_rules(index.source, tokenizer)
    encoded_by = versions_of(libraries_of(tokenizer))
    versions = [f"{name} {version}" for name, version in encoded_by.items()]
    return digest(_RECIPE, index.fingerprint, tokenizer.fingerprint, rules, cleaning.model_dump_json(), *versions)


def encoding_libraries(config: RunConfig, tokenizer: Tokenizer) -> tuple[str, ...]:
    """The libraries that make ids while the run trains, and not before: those of a tokenizer of notes."""
    return libraries_of(tokenizer) if isinstance(config.data.packing, MusicPackingConfig) else ()


def versions_used(index: SourceIndex, tokenizer: Tokenizer) -> dict[str, str]:
    """Versions of the libraries that make the ids of the store of ``index`` and ``tokenizer``, by name."""
    return versions_of((*index.reader.libraries, *libraries_of(tokenizer)))


def build_store(spec: StoreSpec, processes: int, progress: ProgressCallback | None) -> TokenStore:
    """The store that ``spec`` describes; made if it is not there, continued if it is half there.

    The result is the same to the byte for any number of ``processes``. With little to do, none is started. Raises
    UserError for what cannot be read; what was finished before it stays. Waits for processes that make a share of the
    store.
    """
    if not (spec.folder / MANIFEST).is_file():
        spec.folder.mkdir(parents=True, exist_ok=True)
        with locked(spec.folder, alone=True):
            if not (spec.folder / MANIFEST).is_file():  # another process may have made it while this one waited
                _begin(spec)
                units, left_out = spec.index.units()
                _clean(spec, len(units))
                _make_shards(spec, units, range(len(units)), processes, progress)
                _check_unchanged(spec)
                _finish(spec, _shards(spec, len(units)), left_out)
    store = TokenStore.open(spec.folder, spec.tokenizer.fingerprint, progress)
    assert store.manifest.key == spec.key, (store.manifest.key, spec.key)
    return store


def build_share(spec: StoreSpec, share: Share, processes: int, progress: ProgressCallback | None) -> int:
    """Make the shards of ``share``, while other processes make theirs in the same folder, on any machine.

    Whoever finds all shards there at the end makes the store of them, bit for bit the one of ``build_store``. Returns
    how many shards are still missing; 0 when the store is made.
    """
    if (spec.folder / MANIFEST).is_file():
        return 0
    spec.folder.mkdir(parents=True, exist_ok=True)
    units, left_out = spec.index.units()
    with locked(spec.folder, alone=True, wait=False) as alone:
        if alone and not (spec.folder / MANIFEST).is_file():
            _clean(spec, len(units))
    with locked(spec.folder, alone=False):
        if not (spec.folder / MANIFEST).is_file():
            _begin(spec)
            _make_shards(spec, units, share.of(len(units)), processes, progress)
            _check_unchanged(spec)
    # Each process looks after its last shard, so the one that looks last finds all of them.
    missing = len(units) - len(_shards(spec, len(units)))
    if not missing:
        with locked(spec.folder, alone=True):
            if not (spec.folder / MANIFEST).is_file():
                _clean(spec, len(units))
                _finish(spec, _shards(spec, len(units)), left_out)
    return missing


def check_output(folder: Path, key: str) -> None:
    """Raise UserError unless ``folder`` is new, empty, or holds the store ``key``, finished or not."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; name a folder")
    # Another process may be about to begin the same store.
    begun = (".lock", f".{UNFINISHED}")
    if not folder.exists() or all(file.name.startswith(begun) for file in folder.iterdir()):
        return
    if (folder / MANIFEST).is_file():
        found = read_manifest(folder).key
    elif (folder / UNFINISHED).is_file():
        found = _key_in(folder / UNFINISHED)
    else:
        raise UserError(f"{folder}: is not empty and holds no token store; name a new folder")
    if found != key:
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
    """Say in the folder whose it is, and put the tokenizer there. Any number of processes may do so at once."""
    folder = spec.folder
    if not (folder / UNFINISHED).is_file():
        write_json(folder / UNFINISHED, {"key": spec.key})
    if not (folder / TOKENIZER).is_dir():
        with new_folder(folder / TOKENIZER, shared=True) as unfinished:
            spec.tokenizer.save(unfinished)


def _finish(spec: StoreSpec, written: list[Written], left_out: list[str]) -> None:
    """Make a store of the shards: find what is in it twice, and write the manifest, with which it is there."""
    manifest = _manifest(spec, written, left_out)
    store = TokenStore(spec.folder, manifest)
    dropped, reasons = find_duplicates(store, spec.cleaning)
    if dropped.size:
        write_dropped(spec.folder, dropped)
        starts, stops = store.document_bounds(dropped)
        which = digest(dropped.astype("<i8").tobytes())
        unused = Dropped(dropped.size, int((stops - starts).sum()), which)
        manifest = replace(manifest, dropped=dict(Counter(manifest.dropped) + reasons), unused=unused)
    manifest.write(spec.folder)
    (spec.folder / UNFINISHED).unlink()


def _shards(spec: StoreSpec, count: int) -> list[Written]:
    """The shards that are finished, of ``count``, in their order."""
    found = (read_written(spec.folder, index, spec.dtype) for index in range(count))
    return [written for written in found if written is not None]


def _check_unchanged(spec: StoreSpec) -> None:
    # A dataset is a snapshot; files can be written to while they are read.
    files = spec.where and spec.index.files
    if files and spec.index.reader.index(spec.where).fingerprint != spec.index.fingerprint:
        raise UserError(f"{spec.index.source.display_name}: changed while it was read; run again")


def _make_shards(
    spec: StoreSpec, units: list[WorkUnit[Any]], wanted: range, processes: int, progress: ProgressCallback | None
) -> None:
    """Write the shards of the units ``wanted``, but for those that are there."""
    missing = {index: units[index] for index in wanted if read_written(spec.folder, index, spec.dtype) is None}
    total = sum(units[index].size for index in wanted)
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
        how = (spec.folder, spec.cleaning)
        futures = {pool.submit(_work, *how, index, unit): index for index, unit in units.items()}
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


def _work(folder: Path, cleaning: CleaningConfig, index: int, unit: WorkUnit[Any]) -> None:
    write_shard(folder, index, unit, _loaded(folder / TOKENIZER), cleaning=cleaning)


_loaded = lru_cache(maxsize=1)(load_tokenizer)


def library_versions() -> dict[str, str]:
    """Return the versions of Quintet and of each installed library that a kind of tokenizer or source, or a step of
    cleaning, names as its own."""
    names = (*tokenizer_libraries(), *reader_libraries(), *CLEANING_LIBRARIES)
    return {"quintet": __version__, **versions_of(names)}


class _Meter:
    """Bytes done of a stage, told to ``progress`` and never more than there are."""

    def __init__(self, stage: str, total: int, progress: ProgressCallback | None) -> None:
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


def _manifest(spec: StoreSpec, written: list[Written], left_out: list[str]) -> Manifest:
    shards = tuple(one.shard for one in written if one.shard.tokens)
    left_out = [*map(shown, left_out), *(name for one in written for name in one.left_out)]
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
        dropped=dict(sum((Counter(one.dropped) for one in written), Counter[str]())),
        left_out=len(left_out),
        left_out_files=tuple(left_out[:_MOST_NAMES]),
        shards=shards,
        matched=dict(sum((Counter(one.matched) for one in written), Counter[str]())),
        made_with=library_versions(),
    )


def _clean(spec: StoreSpec, count: int) -> None:
    """Delete what processes that were killed left of shards that they did not finish. Only while nobody writes."""
    finished = {written.shard.name for written in _shards(spec, count)}
    for file in spec.folder.iterdir():
        shard = file.name.startswith("shard-") and file.name.split(".")[0] not in finished
        if shard or file.name.startswith((".shard-", f".{DROPPED}", f".{MANIFEST}", f".{UNFINISHED}")):
            file.unlink()
        elif file.name.startswith(f".{TOKENIZER}."):
            shutil.rmtree(file)
