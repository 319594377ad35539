"""Rows in text files as documents: JSON lines (https://jsonlines.org) and comma-separated values."""

import csv
import io
import json
from collections.abc import Iterator
from functools import partial
from typing import Any

from quintet.config.keypath import is_mapping
from quintet.config.sources import CsvSource, JsonlSource
from quintet.data.sources.base import BadRow, Document, Report, SourceIndex, WorkUnit
from quintet.data.sources.reading import BadFile, ByteRange, blocks, cut, is_compressed, line_of, read, records
from quintet.data.sources.rows import (
    Location,
    MakeDocument,
    Row,
    RowDocuments,
    RowReader,
    check_texts,
    columns_of,
    document_maker,
    kind_of,
)
from quintet.tokenize.base import Tokenizer

_BOM = b"\xef\xbb\xbf"
_LONGEST_FIELD = (1 << 31) - 1  # the most that the library can count on every system

Spans = tuple[ByteRange, ...]
"""Ranges of whole lines in one or several files; a compressed file is one range."""


class JsonlReader(RowReader[JsonlSource, Spans]):
    """UTF-8, one JSON object per line. Lines of white space are skipped."""

    suffixes = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".ndjson", ".ndjson.gz", ".ndjson.zst")

    def units(self, index: SourceIndex, length: int) -> tuple[list[WorkUnit[Spans]], list[str]]:
        """Cut large files between lines, and read small ones together."""
        units: list[WorkUnit[Spans]] = []
        group: list[ByteRange] = []
        filled = 0
        for file in index.files:
            whole = [ByteRange(file.path, 0, file.size)]
            for span in whole if is_compressed(file.path) else cut(file.path, file.size, b"\n", length):
                if group and filled + span.size > length:
                    units.append(self._unit(tuple(group)))
                    group, filled = [], 0
                group.append(span)
                filled += span.size
        return [*units, *([self._unit(tuple(group))] if group else [])], []

    def _unit(self, spans: Spans) -> WorkUnit[Spans]:
        first, last = spans[0].path, spans[-1].path
        size = sum(span.size for span in spans)
        return WorkUnit(self, spans, first if first == last else f"{first} to {last}", size)

    def documents(self, part: Spans, report: Report, tokenizer: Tokenizer | None) -> Iterator[Document]:
        """Yield a document per line. A line that is no JSON object or lacks what a document needs raises UserError with
        file and line, or with ``on_error: skip`` is counted in ``report``."""
        make = partial(_json_document, document_maker(self.source.document, tokenizer))
        for span in part:
            yield from self.documents_of(lines_of(span), make, report)


def lines_of(span: ByteRange) -> Iterator[tuple[bytes, Location]]:
    """Yield the lines of ``span``, or of all of a compressed file, that are not white space, with their locations."""
    path, compressed = span.path, is_compressed(span.path)
    lines = records(blocks(path) if compressed else [read(span)], b"\n")
    for number, (offset, line) in enumerate(lines, 1):
        if span.start + offset == 0:
            line = line.removeprefix(_BOM)
        if line and not line.isspace():
            if compressed:
                yield line, partial("{}:{}".format, path, number)
            else:
                yield line, partial(_location, path, span.start + offset)


def _location(path: str, offset: int) -> str:
    return f"{path}:{line_of(path, offset)}"


def row_of(line: bytes) -> Row:
    """Return the JSON object in ``line``. Raises BadRow for anything else, and for an object with a key twice: which
    value counts is not defined (RFC 8259, section 4)."""
    try:
        value = json.loads(line.decode("utf-8"), object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        raise BadRow("not_utf8", f"byte {error.start} of the line is not UTF-8; convert the file to UTF-8") from None
    except json.JSONDecodeError as error:
        message = f"is no JSON ({error.msg} at character {error.pos}); correct or remove the line"
        raise BadRow("no_json", message) from None
    except ValueError:  # valid JSON, but beyond Python's limit of digits
        raise BadRow("no_json", "holds a whole number of thousands of digits; correct the line") from None
    except RecursionError:
        raise BadRow("no_json", "is nested too deeply; correct or remove the line") from None
    if not is_mapping(value):
        raise BadRow("no_json", f'is {kind_of(value)}, not a JSON object; each line must be one, such as {{"text": …}}')
    return value


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise BadRow("key_twice", f"has the key {twice!r} twice in one object; correct or remove the line")
    return value


def _json_document(make: MakeDocument, line: bytes, location: Location) -> RowDocuments:
    document = make(row_of(line), location)
    if b"\\u" in line:
        check_texts(document)
    return document


class CsvReader(RowReader[CsvSource, str]):
    """Tables as text, whose first row has the names of the columns. A file is one unit and read from its beginning,
    because a value may hold line breaks.

    The standard library reads them. pyarrow is not part of the core install, does not give the line of a row whose
    values hold line breaks, and accepts a quote that is never closed.
    """

    suffixes = (".csv", ".csv.gz", ".csv.zst")

    def units(self, index: SourceIndex, length: int) -> tuple[list[WorkUnit[str]], list[str]]:
        return [WorkUnit(self, file.path, file.path, file.size) for file in index.files], []

    def documents(self, part: str, report: Report, tokenizer: Tokenizer | None) -> Iterator[Document]:
        """Yield a document per row. A row that lacks what a document needs raises UserError with file and line, or with
        ``on_error: skip`` is counted in ``report``."""
        names, rows = self._rows(part)
        columns = columns_of(self.source.document)
        columns.check(names, part)
        make = partial(_csv_document, document_maker(self.source.document, tokenizer), names, columns.used(names))
        return self.documents_of(rows, make, report)

    def _rows(self, path: str) -> tuple[list[str], Iterator[tuple[list[str], Location]]]:
        """Return the names of the columns, and an iterator over the values of each row."""
        csv.field_size_limit(_LONGEST_FIELD)
        content = io.BufferedReader(_Blocks(blocks(path)), 1 << 20)
        lines = io.TextIOWrapper(content, "utf-8-sig", "surrogateescape", newline="")
        reader = csv.reader(lines, delimiter=self.source.delimiter, strict=True)

        def rows() -> Iterator[tuple[list[str], Location]]:
            begin = reader.line_num + 1
            try:
                for values in reader:
                    if values:
                        yield values, partial("{}:{}".format, path, begin)
                    begin = reader.line_num + 1
            except csv.Error as error:
                raise BadFile(f"{path}:{begin}: is no CSV ({error}); correct the file") from None

        no_names: list[str] = []
        return next(reader, no_names), rows()


def _csv_document(
    make: MakeDocument, names: list[str], used: list[str], values: list[str], location: Location
) -> RowDocuments:
    if len(values) != len(names):
        raise BadRow("wrong_width", f"has {len(values)} values, and there are {len(names)} columns; correct the row")
    row = dict(zip(names, values, strict=True))
    for name in used:
        try:
            row[name].encode("utf-8")
        except UnicodeEncodeError:
            raise BadRow("not_utf8", f"the value of {name!r} is not UTF-8; convert the file to UTF-8") from None
    return make(row, location)


class _Blocks(io.RawIOBase):
    """Blocks of bytes as a raw stream."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks, self._rest = blocks, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest and (block := next(self._blocks, None)) is not None:
            self._rest = block
        size = min(len(buffer), len(self._rest))
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        return size
