"""What a source will read, its fingerprint, and the work units that can be read independently."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

from quintet.config.documents import AnswerFields, ChatField, ConditionalText, TokenField
from quintet.config.names import local_path
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
    Source,
    SourceConfig,
    TatmSource,
    TextSource,
)
from quintet.data.sources.check import folder_suffixes, no_library
from quintet.data.sources.document import Document, Report
from quintet.data.sources.files import EMPTY, File, PassedOver, as_paths, find_files
from quintet.data.sources.huggingface import Dataset, RowUnit, describe_dataset, row_documents, row_units
from quintet.data.sources.jsonl import JsonlUnit, jsonl_documents, jsonl_units
from quintet.data.sources.megatron import MegatronUnit, megatron_documents, megatron_files, megatron_units
from quintet.data.sources.music import (
    MidiUnit,
    ScoresUnit,
    midi_documents,
    midi_units,
    scores_documents,
    scores_units,
)
from quintet.data.sources.stdlib import python_files
from quintet.data.sources.tables import CsvUnit, ParquetUnit, csv_documents, parquet_documents, parquet_units
from quintet.data.sources.tatm import TatmUnit, tatm_documents, tatm_files, tatm_units
from quintet.data.sources.text import TextUnit, text_documents, text_units
from quintet.data.sources.token_files import ArrayUnit, array_documents, array_units, with_labels
from quintet.errors import UserError
from quintet.tokenize import Tokenizer
from quintet.tokenize.base import digest, versions_of

MusicSource = MidiSource | ScoresSource
TokenSource = NpySource | BinSource | TatmSource | MegatronSource
FileSource = TextSource | JsonlSource | CsvSource | ParquetSource
ReadSource = PythonStdlibSource | FileSource | HuggingFaceSource | TokenSource | MusicSource
TokenUnit = ArrayUnit | TatmUnit | MegatronUnit
WorkUnit = TextUnit | JsonlUnit | CsvUnit | ParquetUnit | RowUnit | TokenUnit | MidiUnit | ScoresUnit

UNIT_BYTES = 16 << 20
_ANSWERS = "2"  # to be raised when the same prompts and answers give other tokens, or others with a loss, than before
_LARGEST_UNIT = 128 << 20
_UNITS = 2048


@dataclass(frozen=True)
class SourceIndex:
    """A source as it is now: its files with sizes and times, or its dataset. ``fingerprint`` follows from these, from
    how they are read and from the versions of the libraries that read them; ``size`` is in bytes, and ``passed`` are
    names in its folders that are not read."""

    source: ReadSource
    fingerprint: str
    size: int
    files: tuple[File, ...] = ()
    dataset: Dataset | None = None
    passed: PassedOver = field(default_factory=dict)


def label_of(source: SourceConfig) -> str:
    """The name of a source in reports."""
    if source.label is not None:
        return source.label
    if isinstance(source, PythonStdlibSource | ScoresSource):
        return source.kind
    return f"{source.kind} {', '.join(as_paths(source.path))}"


def list_source(source: ReadSource, where: str) -> SourceIndex:
    """Look at what ``source`` names without reading it. Raises UserError when something is missing."""
    versions = "".join(f"\n{name} {version}" for name, version in versions_of(source_libraries(source)).items())
    how = source.model_dump_json(exclude={"path", *Source.model_fields}) + _template(source, where) + versions
    if isinstance(source, HuggingFaceSource):
        dataset = describe_dataset(source, where)
        return SourceIndex(source, digest(how, dataset.fingerprint), dataset.size, dataset=dataset)
    if isinstance(source, ScoresSource):
        units = scores_units(source)
        names = [score.name for unit in units for score in unit.scores]
        return SourceIndex(source, digest(how, *names), sum(unit.size for unit in units))
    passed: PassedOver = {}
    files = _files(source, where, passed)
    passed |= {EMPTY: [file.path for file in files if not file.size]} if any(not file.size for file in files) else {}
    facts = [file.facts for file in files]
    if isinstance(source, PythonStdlibSource):
        # Times are left out: every installation of one version has its own, and the same files.
        facts = [sys.version, *(f"{file.name}\n{file.size}" for file in files)]
    return SourceIndex(source, digest(how, *facts), sum(file.size for file in files), tuple(files), passed=passed)


def source_libraries(source: ReadSource) -> tuple[str, ...]:
    """The libraries that say what the documents of ``source`` are, by their names on PyPI. What takes files apart whose
    content has a checksum (zstandard) is none of them."""
    match source:
        case ParquetSource():
            reads: tuple[str, ...] = ("pyarrow",)
        case HuggingFaceSource():
            reads = ("datasets", "pyarrow")
        case MidiSource():
            reads = ("mido", "symusic")
        case ScoresSource():
            reads = ("music21",)
        case _:
            reads = ()
    return (*reads, "jinja2") if isinstance(getattr(source, "document", None), ChatField) else reads


def _files(
    source: PythonStdlibSource | FileSource | TokenSource | MidiSource, where: str, passed: PassedOver
) -> list[File]:
    match source:
        case PythonStdlibSource():
            files = python_files()
            if not files:
                raise UserError(no_library(where))
            return files
        case TatmSource():
            return tatm_files(source, where)
        case MegatronSource():
            return megatron_files(source, where, passed)
        case NpySource():
            return with_labels(find_files(source.path, folder_suffixes(source), f"{where}.path", passed))
        case _:
            return find_files(source.path, folder_suffixes(source), f"{where}.path", passed)


def _template(source: ReadSource, where: str) -> str:
    """The chat template that a source names, "" when it names none."""
    document = getattr(source, "document", None)
    if not isinstance(document, ChatField) or document.template is None:
        return ""
    try:
        return local_path(document.template).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{where}.document.template: {document.template} cannot be read ({error})") from None


def reading_rules(source: ReadSource, tokenizer: Tokenizer) -> str:
    """What the documents of ``source`` depend on besides the source and how ``tokenizer`` encodes a text: how answers
    are told from prompts, the chat template and the ids that end a turn.

    To be part of a store's key."""
    document, chat = getattr(source, "document", None), getattr(tokenizer, "chat", None)
    match document:
        case AnswerFields() | ConditionalText():
            return _ANSWERS
        case ChatField() | TokenField() if chat is not None:
            own = getattr(document, "template", None) is None
            return digest(_ANSWERS, str(chat.template) if own else "", str(sorted(chat.end_ids)))
        case _:
            return ""


def units_of(listing: SourceIndex) -> tuple[list[WorkUnit], list[str]]:
    """The work units of a source, in the order of its documents, and files that are left out because they are no text.

    They follow from the listing alone, and not from the number of processes. Units grow with the corpus from 16 to 128
    MB, so that a large one has thousands of shards and not a hundred thousand.
    """
    source, files = listing.source, list(listing.files)
    length = min(max(UNIT_BYTES, listing.size // _UNITS), _LARGEST_UNIT)
    match source:
        case PythonStdlibSource():
            units, left_out = text_units(files, None, length)
        case TextSource():
            units, left_out = text_units(files, source.separator, length, source.document, source.on_error)
        case ParquetSource():
            units, left_out = parquet_units(source, files, length)
        case JsonlSource():
            units, left_out = jsonl_units(source, files, length), []
        case CsvSource():
            units, left_out = [CsvUnit(source, file.path, file.size) for file in files], []
        case HuggingFaceSource():
            assert listing.dataset is not None
            units, left_out = row_units(source, listing.dataset, length), []
        case NpySource() | BinSource():
            units, left_out = array_units(source, files), []
        case TatmSource():
            units, left_out = tatm_units(source), []
        case MegatronSource():
            units, left_out = megatron_units(files, length), []
        case MidiSource():
            units, left_out = midi_units(source, files), []
        case ScoresSource():
            units, left_out = scores_units(source), []
    return list(units), left_out


def documents(unit: WorkUnit, report: Report, tokenizer: Tokenizer | None = None) -> Iterator[Document]:
    """The documents of ``unit`` in their order, empty ones included.

    Without a ``tokenizer`` these are the texts and the music that one can be made from; of tokens that are ready there
    are none. What is left out is added to ``report``. Raises UserError with the place of what cannot be read.
    """
    match unit:
        case TextUnit():
            return text_documents(unit, report, tokenizer)
        case MidiUnit():
            return midi_documents(unit, report)
        case ScoresUnit():
            return scores_documents(unit, report)
        case ArrayUnit() | TatmUnit() | MegatronUnit():
            return iter(()) if tokenizer is None else _ready(unit, report, tokenizer)
        case _ if tokenizer is None and isinstance(unit.source.document, TokenField):
            return iter(())
        case JsonlUnit():
            return jsonl_documents(unit, report, tokenizer)
        case CsvUnit():
            return csv_documents(unit, report, tokenizer)
        case ParquetUnit():
            return parquet_documents(unit, report, tokenizer)
        case RowUnit():
            return row_documents(unit, report, tokenizer)


def _ready(unit: TokenUnit, report: Report, tokenizer: Tokenizer) -> Iterator[Document]:
    match unit:
        case ArrayUnit():
            return array_documents(unit, report, tokenizer.end_id)
        case TatmUnit():
            return tatm_documents(unit, report, tokenizer)
        case MegatronUnit():
            return megatron_documents(unit)
