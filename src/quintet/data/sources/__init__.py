"""Sources of documents: the table of their readers, one for each kind."""

from __future__ import annotations

from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from quintet.config.names import is_path, placeholder_problem
from quintet.config.schema import RunConfig
from quintet.config.sources import SourceConfig
from quintet.errors import NotHere, UserError
from quintet.files import problem_of_path

if TYPE_CHECKING:  # it imports NumPy
    from quintet.data.sources.base import Reader

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
    """Return the reader of ``source``."""
    return resolve_name(READERS[source.kind])(source)


def reader_libraries() -> tuple[str, ...]:
    """Return the libraries that the readers of all kinds name, by their names on PyPI."""
    readers: list[type[Reader[Any, Any]]] = [resolve_name(reader) for reader in READERS.values()]
    return tuple(name for reader in readers for name in (*reader.written_by, *reader.read_by))


def sources_of(config: RunConfig) -> list[tuple[SourceConfig, str]]:
    """Return all sources of a run, validation sources last, each with the key path that names it in messages."""
    data = config.data
    training = [(source, f"data.sources[{index}]") for index, source in enumerate(data.sources)]
    held_out = [(source, f"data.validation_sources[{index}]") for index, source in enumerate(data.validation_sources)]
    return training + held_out


def check_sources(config: RunConfig) -> None:
    """Raise UserError with everything that is missing: files, folders, patterns without a match, token stores, extras.

    Raises NotHere if nothing is wrong but that: no file or folder is of another kind than the source says. What is
    inside the files is read by `prepare` only; a name on the hub is assumed to exist.
    """
    problems: list[str] = []
    mistaken = False
    for source, where in sources_of(config):
        libraries = reader_of(source).missing_library(where)
        problems += libraries
        for path in source.paths or (None,):
            single = source if path is None else source.model_copy(update={"path": path})
            try:
                missing = [problem for problem in reader_of(single).missing(where) if problem not in libraries]
            except OSError as error:
                if (forbidden := problem_of_path(error)) is None:
                    raise
                missing = [f"{where}.path: {forbidden}"]
            if path is not None and (placeholder := placeholder_problem(f"{where}.path", path)) is not None:
                missing = [placeholder]
            elif path is not None:
                mistaken |= bool(missing) and is_path(path)
            problems += missing
    if problems:
        raise (UserError if mistaken else NotHere)(*problems)
