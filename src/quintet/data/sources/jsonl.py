"""JSON lines as documents (https://jsonlines.org: UTF-8, one JSON value a line)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from quintet.config.sources import JsonlSource
from quintet.data.sources import compressed
from quintet.data.sources.compressed import is_compressed
from quintet.data.sources.document import Document, Report
from quintet.data.sources.files import File
from quintet.data.sources.problems import BadRow
from quintet.data.sources.rows import (
    Made,
    MakeDocument,
    Place,
    Row,
    check_texts,
    document_maker,
    documents_of,
    kind_of,
)
from quintet.data.sources.spans import ByteRange, cut, line_of, read, records
from quintet.tokenize import Tokenizer

_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class JsonlUnit:
    """Whole lines of one or several files; compressed files are read as a whole."""

    source: JsonlSource
    spans: tuple[ByteRange, ...]

    @property
    def size(self) -> int:
        """Bytes to read."""
        return sum(span.size for span in self.spans)

    @property
    def place(self) -> str:
        """Where this unit is, for messages."""
        first, last = self.spans[0], self.spans[-1]
        return first.path if first.path == last.path else f"{first.path} to {last.path}"


def jsonl_units(source: JsonlSource, files: list[File], length: int) -> list[JsonlUnit]:
    """Work units of about ``length`` bytes: large files are cut between lines, small ones are read together."""
    units: list[JsonlUnit] = []
    group: list[ByteRange] = []
    filled = 0
    for file in files:
        whole = [ByteRange(file.path, 0, file.size)]
        for span in whole if is_compressed(file.path) else cut(file.path, file.size, b"\n", length):
            if group and filled + span.size > length:
                units.append(JsonlUnit(source, tuple(group)))
                group, filled = [], 0
            group.append(span)
            filled += span.size
    return [*units, JsonlUnit(source, tuple(group))] if group else units


def jsonl_documents(unit: JsonlUnit, report: Report, tokenizer: Tokenizer | None) -> Iterator[Document]:
    """Documents of ``unit``, empty ones included. Lines of white space are passed over.

    Raises UserError with file and line for what is no JSON object or lacks what a document needs, or with
    ``on_error: skip`` counts it in ``report``.
    """
    make = partial(_document, document_maker(unit.source.document, tokenizer))
    for span in unit.spans:
        yield from documents_of(lines_of(span), make, unit.source.on_error == "skip", report)


def lines_of(span: ByteRange) -> Iterator[tuple[bytes, Place]]:
    """The lines of ``span`` that are not white space, with their places; of a compressed file, those of all of it."""
    return _lines_of_stream(span.path) if is_compressed(span.path) else _lines(span)


def row_of(line: bytes) -> Row:
    """The JSON object that ``line`` is. Raises BadRow for what is none, and for an object with a key twice: which value
    counts is not defined (RFC 8259, section 4)."""
    try:
        value = json.loads(line.decode("utf-8"), object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        raise BadRow("not_utf8", f"byte {error.start} of the line is not UTF-8; convert the file to UTF-8") from None
    except json.JSONDecodeError as error:
        message = f"is no JSON ({error.msg} at character {error.pos}); correct or remove the line"
        raise BadRow("no_json", message) from None
    except RecursionError:
        raise BadRow("no_json", "is nested too deeply; correct or remove the line") from None
    if not isinstance(value, dict):
        raise BadRow("no_json", f'is {kind_of(value)}, not a JSON object; each line must be one, such as {{"text": …}}')
    return value


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise BadRow("key_twice", f"has the key {twice!r} twice in one object; correct or remove the line")
    return found


def _lines(span: ByteRange) -> Iterator[tuple[bytes, Place]]:
    for offset, line in records(read(span), b"\n"):
        if span.start + offset == 0:
            line = line.removeprefix(_BOM)
        if line and not line.isspace():
            yield line, partial(_place, span.path, span.start + offset)


def _place(path: str, offset: int) -> str:
    return f"{path}:{line_of(path, offset)}"


def _lines_of_stream(path: str) -> Iterator[tuple[bytes, Place]]:
    for number, line in enumerate(compressed.records(compressed.blocks(path), b"\n"), 1):
        if number == 1:
            line = line.removeprefix(_BOM)
        if line and not line.isspace():
            yield line, partial("{}:{}".format, path, number)


def _document(make: MakeDocument, line: bytes, place: Callable[[], str]) -> Made:
    document = make(row_of(line), place)
    if b"\\u" in line:
        check_texts(document)
    return document
