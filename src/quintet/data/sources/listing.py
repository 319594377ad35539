"""What a source will read, its fingerprint, and the work units that can be read independently."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass

from quintet.config.data import (
    HuggingFaceSource,
    JsonlSource,
    PythonStdlibSource,
    SourceConfig,
    StoreSource,
    TextSource,
)
from quintet.data.sources.check import folder_suffix, no_library
from quintet.data.sources.document import Document, Report
from quintet.data.sources.files import File, as_paths, find_files
from quintet.data.sources.huggingface import Dataset, RowUnit, describe_dataset, row_documents, row_units
from quintet.data.sources.jsonl import JsonlUnit, jsonl_documents, jsonl_units
from quintet.data.sources.stdlib import python_files
from quintet.data.sources.text import TextUnit, text_documents, text_units
from quintet.errors import UserError
from quintet.tokenize.base import digest

ReadSource = PythonStdlibSource | TextSource | JsonlSource | HuggingFaceSource
Unit = TextUnit | JsonlUnit | RowUnit

UNIT_BYTES = 16 << 20
_LARGEST_UNIT = 128 << 20
_UNITS = 2048


@dataclass(frozen=True)
class Listing:
    """A source as it is now: its files with sizes and times, or its dataset. ``fingerprint`` follows from these and
    from how they are read; ``size`` is in bytes."""

    source: ReadSource
    fingerprint: str
    size: int
    files: tuple[File, ...] = ()
    dataset: Dataset | None = None


def label_of(source: SourceConfig) -> str:
    """The name of a source in reports."""
    if source.label is not None:
        return source.label
    if isinstance(source, PythonStdlibSource):
        return source.kind
    path = source.path if isinstance(source, StoreSource | HuggingFaceSource) else ", ".join(as_paths(source.path))
    return f"{source.kind} {path}"


def list_source(source: ReadSource, where: str) -> Listing:
    """Look at what ``source`` names without reading it. Raises UserError when something is missing."""
    how = source.model_dump_json(exclude={"path", "weight", "label"})
    if isinstance(source, HuggingFaceSource):
        dataset = describe_dataset(source, where)
        return Listing(source, digest(how, dataset.fingerprint), dataset.size, dataset=dataset)
    if isinstance(source, PythonStdlibSource):
        files = python_files()
        if not files:
            raise UserError(no_library(where))
        # Times are left out: every installation of one version has its own, and the same files.
        facts = [sys.version, *(f"{file.name}\n{file.size}" for file in files)]
    else:
        files = find_files(source.path, folder_suffix(source), f"{where}.path")
        facts = [f"{file.name}\n{file.named}\n{file.size}\n{file.mtime_ns}" for file in files]
    return Listing(source, digest(how, *facts), sum(file.size for file in files), files=tuple(files))


def units_of(listing: Listing) -> tuple[list[Unit], list[str]]:
    """The work units of a source, in the order of its documents, and files that are left out because they are no text.

    They follow from the listing alone, and not from the number of processes. Units grow with the corpus from 16 to 128
    MB, so that a large one has thousands of shards and not a hundred thousand.
    """
    source, files = listing.source, list(listing.files)
    length = min(max(UNIT_BYTES, listing.size // _UNITS), _LARGEST_UNIT)
    match source:
        case PythonStdlibSource():
            units, left_out = text_units(files, None, length)
            return list(units), left_out
        case TextSource():
            units, left_out = text_units(files, source.separator, length)
            return list(units), left_out
        case JsonlSource():
            return list(jsonl_units(files, source.field, length)), []
        case HuggingFaceSource():
            assert listing.dataset is not None
            return list(row_units(source, listing.dataset, length)), []


def documents(unit: Unit, report: Report) -> Iterator[Document]:
    """The documents of ``unit`` in their order, empty ones included.

    What is left out is added to ``report``. Raises UserError with the place of what cannot be read.
    """
    match unit:
        case TextUnit():
            return text_documents(unit, report.left_out)
        case JsonlUnit():
            return jsonl_documents(unit)
        case RowUnit():
            return row_documents(unit)
