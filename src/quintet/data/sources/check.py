"""Whether the sources of a run are there: a quick look that reads no data."""

from __future__ import annotations

import glob
import os
from pathlib import Path

from quintet.config.names import local_path
from quintet.config.schema import RunConfig
from quintet.config.sources import (
    BinSource,
    CsvSource,
    HuggingFaceSource,
    JsonlSource,
    MegatronSource,
    MidiSource,
    NpySource,
    ParquetSource,
    PythonStdlibSource,
    ScoresSource,
    SourceConfig,
    StoreSource,
    TatmSource,
    TextSource,
)
from quintet.data.sources.files import as_paths, check_path
from quintet.data.sources.stdlib import library_folder
from quintet.errors import UserError
from quintet.libraries import is_installed, not_installed

AnyFileSource = TextSource | JsonlSource | CsvSource | ParquetSource | NpySource | BinSource | MidiSource

MANIFEST = "manifest.json"
_LIBRARIES = {  # that read a kind of source, each with the extra that installs it
    "parquet": ("pyarrow", "hf"),
    "huggingface": ("datasets", "hf"),
    "midi": ("symusic", "piano"),
    "music21": ("music21", "piano"),
}


def check_sources(config: RunConfig) -> None:
    """Raise UserError with everything that is missing: files, folders, patterns without a match, token stores, extras.

    What is inside the files is read by `prepare` only; a name on the hub is taken on trust.
    """
    problems = [problem for source, where in sources_of(config) for problem in _problems(source, where)]
    if problems:
        raise UserError(*problems)


def sources_of(config: RunConfig) -> list[tuple[SourceConfig, str]]:
    """All sources of a run, those to validate on last, each with the key path that names it in messages."""
    data = config.data
    training = [(source, f"data.sources[{index}]") for index, source in enumerate(data.sources)]
    held_out = [(source, f"data.validation_sources[{index}]") for index, source in enumerate(data.validation_sources)]
    return training + held_out


def folder_suffixes(source: AnyFileSource) -> tuple[str, ...]:
    """How the names of the files end that are read when ``source`` names a folder."""
    if isinstance(source, TextSource):
        return ("",)
    whole = {MidiSource: (".mid", ".midi"), JsonlSource: (".jsonl", ".ndjson")}.get(type(source), (f".{source.kind}",))
    ends = ("", ".gz", ".zst") if isinstance(source, JsonlSource | CsvSource) else ("",)
    return tuple(name + ending for name in whole for ending in ends)


def _problems(source: SourceConfig, where: str) -> list[str]:
    match source:
        case PythonStdlibSource():
            return [] if library_folder().is_dir() else [no_library(where)]
        case TextSource() | JsonlSource() | CsvSource() | ParquetSource() | NpySource() | BinSource():
            found = [check_path(path, folder_suffixes(source), f"{where}.path") for path in as_paths(source.path)]
            return _missing(source, where) + [one for one in found if one is not None]
        case StoreSource():
            folder = local_path(source.path)
            return [] if (folder / MANIFEST).is_file() else [f"{where}.path: {no_store(folder)}"]
        case HuggingFaceSource():
            missing = _missing(source, where)
            if looks_local(source.path) and not local_path(source.path).is_dir():
                missing.append(f"{where}.path: there is no folder {source.path} in {Path.cwd()}; correct the path")
            return missing
        case MidiSource():
            found = [check_path(path, folder_suffixes(source), f"{where}.path") for path in as_paths(source.path)]
            return _missing(source, where) + [one for one in found if one is not None]
        case ScoresSource():
            return _missing(source, where)
        case TatmSource() | MegatronSource():
            return [
                f"{where}.path: there is no {path} in {Path.cwd()}; correct the path"
                for path in as_paths(source.path)
                if not any(sign in path for sign in "*?[") and not _begun(path)
            ]


def _begun(path: str) -> bool:
    """Whether something is there whose name begins with ``path``: names of Megatron's are without an ending."""
    return bool(glob.glob(f"{glob.escape(os.path.expanduser(path))}*"))


def _missing(source: SourceConfig, where: str) -> list[str]:
    """The problem that the library which reads ``source`` is not installed, if it is not."""
    if source.kind not in _LIBRARIES:
        return []
    library, extra = _LIBRARIES[source.kind]
    what = f"{where}: a source of kind {source.kind}"
    return [] if is_installed(library) else [not_installed(what, extra, library)]


def looks_local(path: str) -> bool:
    """Whether a dataset's ``path`` is one on this disk: names on the hub are NAME or OWNER/NAME."""
    return local_path(path).exists() or path.startswith((".", "/", "~")) or path.count("/") > 1


def no_store(folder: Path) -> str:
    """What to say of a folder without a manifest."""
    return f"{folder} holds no {MANIFEST} and so no finished token store; write one with quintet prepare --output"


def no_library(where: str) -> str:
    """What to say where the standard library is not on disk."""
    return f"{where}: {library_folder()} does not exist: this Python has no library on disk; use a source of kind text"
