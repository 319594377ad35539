"""Sources of documents: each kind has one `Reader`, named in one table."""

from __future__ import annotations

from pkgutil import resolve_name
from typing import Any

from quintet.config.names import is_path, placeholder_problem
from quintet.config.schema import RunConfig
from quintet.config.sources import SourceConfig
from quintet.data.sources.base import TEMPLATE_LIBRARIES, Reader
from quintet.errors import NotHere, UserError

READERS = {
    "python_stdlib": "quintet.data.sources.text:PythonStdlibReader",
    "text": "quintet.data.sources.text:TextReader",
    "jsonl": "quintet.data.sources.lines:JsonlReader",
    "csv": "quintet.data.sources.lines:CsvReader",
    "parquet": "quintet.data.sources.tables:ParquetReader",
    "huggingface": "quintet.data.sources.tables:HuggingFaceReader",
    "npy": "quintet.data.sources.token_files:NpyReader",
    "bin": "quintet.data.sources.token_files:BinReader",
    "tatm": "quintet.data.sources.token_files:TatmReader",
    "megatron": "quintet.data.sources.megatron:MegatronReader",
    "store": "quintet.data.sources.token_files:StoreReader",
    "midi": "quintet.data.sources.music:MidiReader",
    "music21": "quintet.data.sources.music:ScoresReader",
}
"""The class of each kind, by name, so that what it needs is imported when it is used and not before."""


def reader_of(source: SourceConfig) -> Reader[Any, Any]:
    """The reader of ``source``."""
    return resolve_name(READERS[source.kind])(source)


def reader_libraries() -> tuple[str, ...]:
    """Return the libraries that the readers of all kinds name, by their names on PyPI."""
    return (*TEMPLATE_LIBRARIES, *(name for kind in READERS.values() for name in resolve_name(kind).read_by))


def sources_of(config: RunConfig) -> list[tuple[SourceConfig, str]]:
    """All sources of a run, those to validate on last, each with the key path that names it in messages."""
    data = config.data
    training = [(source, f"data.sources[{index}]") for index, source in enumerate(data.sources)]
    held_out = [(source, f"data.validation_sources[{index}]") for index, source in enumerate(data.validation_sources)]
    return training + held_out


def check_sources(config: RunConfig) -> None:
    """Raise UserError with everything that is missing: files, folders, patterns without a match, token stores, extras;
    NotHere where that is all that is wrong, and no file or folder is another than its kind says.

    What is inside the files is read by `prepare` only; a name on the hub is taken on trust.
    """
    problems: list[str] = []
    mistaken = False
    for source, where in sources_of(config):
        reader = reader_of(source)
        libraries = reader.missing_library(where)
        problems += libraries
        for path in source.paths:
            found = [one for one in _of_path(source, path).missing(where) if one not in libraries]
            if (placeholder := placeholder_problem(f"{where}.path", path)) is not None:
                problems.append(placeholder)
            else:
                problems += found
                mistaken |= bool(found) and is_path(path)
        if not source.paths:
            problems += [one for one in reader.missing(where) if one not in libraries]
    if problems:
        raise (UserError if mistaken else NotHere)(*problems)


def _of_path(source: SourceConfig, path: str) -> Reader[Any, Any]:
    return reader_of(source if source.paths == (path,) else source.model_copy(update={"path": path}))
