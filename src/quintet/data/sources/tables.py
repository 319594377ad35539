"""Comma-separated values and Parquet files as documents, one a row."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from quintet.config.sources import CsvSource, HuggingFaceSource, ParquetSource
from quintet.data.sources import compressed
from quintet.data.sources.compressed import BadFile
from quintet.data.sources.document import Document, Report
from quintet.data.sources.files import File
from quintet.data.sources.rows import (
    BadRow,
    Columns,
    Made,
    MakeDocument,
    Place,
    Row,
    columns_of,
    document_maker,
    documents_of,
)
from quintet.data.sources.spans import open_file
from quintet.errors import UserError, one_line
from quintet.libraries import require
from quintet.tokenize import Tokenizer

_ROWS_READ = 1000
_LONGEST_FIELD = (1 << 31) - 1  # the most that the library can count on every system


@dataclass(frozen=True)
class CsvUnit:
    """A file; it is read from its beginning, as a line break can stand within a value."""

    source: CsvSource
    path: str
    size: int

    @property
    def place(self) -> str:
        """Where this unit is, for messages."""
        return self.path


@dataclass(frozen=True)
class ParquetUnit:
    """Row groups ``first`` to ``last`` of a file; ``row`` is the number of the first row, ``size`` in bytes."""

    source: ParquetSource
    path: str
    first: int
    last: int
    row: int
    rows: int
    size: int

    @property
    def place(self) -> str:
        """Where this unit is, for messages."""
        return f"{self.path}, rows {self.row} to {self.row + self.rows - 1}"


def csv_documents(unit: CsvUnit, report: Report, tokenizer: Tokenizer | None) -> Iterator[Document]:
    """Documents of ``unit``. Raises UserError with file and line for a row that lacks what a document needs, or with
    ``on_error: skip`` counts it in ``report``."""
    names, rows = _csv_rows(unit)
    columns = columns_of(unit.source.document)
    _check_columns(names, columns, unit.path)
    make = partial(_csv_document, document_maker(unit.source.document, tokenizer), names, wanted(names, columns))
    return documents_of(rows, make, unit.source.on_error == "skip", report)


def parquet_units(source: ParquetSource, files: list[File], length: int) -> tuple[list[ParquetUnit], list[str]]:
    """Row groups of ``files``, together about ``length`` bytes, and the files that are no Parquet where these are to be
    skipped. Raises UserError for such a file otherwise, and for a column that is not there."""
    units, left_out = [], []
    for file in files:
        try:
            parquet = _open_parquet(file.path)
        except BadFile:
            if source.on_error == "stop":
                raise
            left_out.append(file.path)
            continue
        check_schema(parquet.schema_arrow, source, file.path)
        units += _groups(source, file, parquet.metadata, length)
    return units, left_out


def parquet_documents(unit: ParquetUnit, report: Report, tokenizer: Tokenizer | None) -> Iterator[Document]:
    """Documents of ``unit``. Raises UserError with file and row, counted from 0, of what cannot be used, or with
    ``on_error: skip`` counts it in ``report``: the rest of a row group that is damaged as one."""
    make = document_maker(unit.source.document, tokenizer)
    parquet = _open_parquet(unit.path)
    names = wanted(parquet.schema_arrow.names, columns_of(unit.source.document))
    columns = {name: parquet.schema_arrow.field(name).type for name in names}
    row = unit.row
    for group in range(unit.first, unit.last + 1):
        rows = _parquet_rows(unit.path, parquet, group, columns, row)
        yield from documents_of(rows, make, unit.source.on_error == "skip", report)
        row += parquet.metadata.row_group(group).num_rows


def wanted(names: list[str], columns: Columns) -> list[str]:
    """Those of the columns ``names`` that are to be read."""
    return [*columns.texts, *columns.others, *(name for name in columns.optional if name in names)]


def check_schema(schema: Any, source: ParquetSource | HuggingFaceSource, path: str) -> None:
    """Raise UserError unless the pyarrow ``schema`` of the table at ``path`` has the columns that a document needs, and
    text where it has to be; where bad rows are left out, a column of another type is a column of such rows."""
    columns = columns_of(source.document)
    _check_columns(schema.names, columns, path)
    for name in columns.texts if source.on_error == "stop" else ():
        kind = schema.field(name).type
        if not _may_hold_text(kind):
            raise UserError(f"{path}: column {name!r} holds {kind}, not text; name another one, or write it as text")


def _may_hold_text(kind: Any) -> bool:
    import pyarrow

    kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    return str(kind) in ("string", "large_string", "string_view", "null") or isinstance(kind, pyarrow.JsonType)


def _check_columns(names: list[str], columns: Columns, path: str) -> None:
    for name in (*columns.texts, *columns.others):
        if name not in names:
            raise UserError(
                f"{path}: has no column {name!r}; it has {', '.join(names)}; name another one under `document`"
            )
    for name in wanted(names, columns):
        if names.count(name) > 1:
            raise UserError(f"{path}: has {names.count(name)} columns {name!r}; rename or remove all but one")


def _csv_rows(unit: CsvUnit) -> tuple[list[str], Iterator[tuple[list[str], Place]]]:
    """The names of the columns, and the values of each row."""
    csv.field_size_limit(_LONGEST_FIELD)
    bytes_read = io.BufferedReader(_Blocks(compressed.blocks(unit.path)), 1 << 20)
    lines = io.TextIOWrapper(bytes_read, "utf-8-sig", "surrogateescape", newline="")
    reader = csv.reader(lines, delimiter=unit.source.delimiter, strict=True)

    def rows() -> Iterator[tuple[list[str], Place]]:
        begin = reader.line_num + 1
        try:
            for values in reader:
                if values:
                    yield values, partial("{}:{}".format, unit.path, begin)
                begin = reader.line_num + 1
        except csv.Error as error:
            raise BadFile(f"{unit.path}:{begin}: is no CSV ({error}); correct the file") from None

    return next(reader, []), rows()


def _csv_document(make: MakeDocument, names: list[str], used: list[str], values: list[str], place: Place) -> Made:
    if len(values) != len(names):
        raise BadRow("wrong_width", f"has {len(values)} values, and there are {len(names)} columns; correct the row")
    row = dict(zip(names, values, strict=True))
    for name in used:
        try:
            row[name].encode("utf-8")
        except UnicodeEncodeError:
            raise BadRow("not_utf8", f"the value of {name!r} is not UTF-8; convert the file to UTF-8") from None
    return make(row, place)


class _Blocks(io.RawIOBase):
    """Blocks of bytes as a file."""

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


def _open_parquet(path: str) -> Any:
    require("pyarrow", "hf", f"{path}: a Parquet file")
    import pyarrow
    import pyarrow.parquet

    file = open_file(path)
    try:
        return pyarrow.parquet.ParquetFile(file, page_checksum_verification=True)
    except (OSError, pyarrow.ArrowException) as error:
        raise _damaged(path, error) from None


def _groups(source: ParquetSource, file: File, metadata: Any, length: int) -> Iterator[ParquetUnit]:
    first = row = rows = 0
    size = 0
    for group in range(metadata.num_row_groups):
        facts = metadata.row_group(group)
        if rows and size + facts.total_byte_size > length:
            yield ParquetUnit(source, file.path, first, group - 1, row, rows, size)
            first, row, rows, size = group, row + rows, 0, 0
        rows, size = rows + facts.num_rows, size + facts.total_byte_size
    if rows:
        yield ParquetUnit(source, file.path, first, metadata.num_row_groups - 1, row, rows, size)


def _parquet_rows(path: str, file: Any, group: int, columns: dict[str, Any], row: int) -> Iterator[tuple[Row, Place]]:
    import pyarrow

    special = {name: kind for name, kind in columns.items() if "arrow.json" in str(kind) or "map<" in str(kind)}
    try:
        for batch in file.iter_batches(_ROWS_READ, row_groups=[group], columns=list(columns)):
            for values in batch.to_pylist():
                for name, kind in special.items():
                    values[name] = _as_json(values[name], kind)
                yield values, partial("{}: row {}".format, path, row)
                row += 1
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise _damaged(f"{path}: row group {group}, behind row {row - 1}", error) from None


def _as_json(value: Any, kind: Any) -> Any:
    """A ``value`` of a column of type ``kind`` as JSON has it: Arrow gives JSON as text, and a map as a list of pairs
    (https://arrow.apache.org/docs/format/CanonicalExtensions.html#json)."""
    import pyarrow

    if value is None:
        return None
    if isinstance(kind, pyarrow.JsonType):
        return json.loads(value)
    if pyarrow.types.is_map(kind):
        return {name: _as_json(held, kind.item_type) for name, held in value}
    if pyarrow.types.is_struct(kind):
        return {field.name: _as_json(value[field.name], field.type) for field in kind}
    if isinstance(value, list):
        return [_as_json(one, kind.value_type) for one in value]
    return value


def _damaged(place: str, error: Exception) -> BadFile:
    return BadFile(f"{place}: is damaged or no Parquet ({one_line(error)}); fetch the file again")
