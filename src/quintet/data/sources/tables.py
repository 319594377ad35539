"""Rows of tables that Arrow reads as documents: Parquet files and Hugging Face datasets."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

from quintet.config.keypath import is_list
from quintet.config.names import local_path
from quintet.config.sources import HuggingFaceSource, ParquetSource
from quintet.data.sources.base import Document, Report, SourceIndex, WorkUnit
from quintet.data.sources.files import File, described, walk
from quintet.data.sources.reading import BadFile, open_file
from quintet.data.sources.rows import Location, Row, RowReader, columns_of, document_maker
from quintet.errors import UserError, one_line
from quintet.files import from_json
from quintet.libraries import require
from quintet.tokenize.base import Tokenizer, digest

_ROWS_READ = 1000
_DATASET, _DATASETS = "state.json", "dataset_dict.json"  # the files `save_to_disk` writes for one and for several


def check_schema(schema: Any, source: ParquetSource | HuggingFaceSource, path: str) -> None:
    """Raise UserError unless the pyarrow ``schema`` of the table at ``path`` has the columns that a document needs,
    with text in columns of text. With ``on_error: skip`` a column of another type is accepted: all of its rows are
    bad."""
    columns = columns_of(source.document)
    columns.check(schema.names, path)
    for name in columns.texts if source.on_error == "stop" else ():
        kind = schema.field(name).type
        if not _may_hold_text(kind):
            raise UserError(f"{path}: column {name!r} holds {kind}, not text; name another one, or write it as text")


def _may_hold_text(kind: Any) -> bool:
    pyarrow = _pyarrow("a table")
    kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    return str(kind) in ("string", "large_string", "string_view", "null") or isinstance(kind, pyarrow.JsonType)


@dataclass(frozen=True)
class RowGroups:
    """Row groups ``first`` to ``last`` of a Parquet file; ``row`` is the number of the first row."""

    path: str
    first: int
    last: int
    row: int


class ParquetReader(RowReader[ParquetSource, RowGroups]):
    """Parquet files, in groups of rows."""

    suffixes = (".parquet",)
    needs = ("pyarrow", "hf")
    read_by = ("pyarrow",)

    def units(self, index: SourceIndex, length: int) -> tuple[list[WorkUnit[RowGroups]], list[str]]:
        """Group the rows. A file that is no Parquet raises UserError, or with ``on_error: skip`` is among the
        unreadable files; a missing column raises UserError."""
        units: list[WorkUnit[RowGroups]] = []
        left_out: list[str] = []
        for file in index.files:
            try:
                parquet = _open_parquet(file.path)
            except BadFile:
                if self.source.on_error == "stop":
                    raise
                left_out.append(file.path)
                continue
            check_schema(parquet.schema_arrow, self.source, file.path)
            units += self._groups(file, parquet.metadata, length)
        return units, left_out

    def _groups(self, file: File, metadata: Any, length: int) -> Iterator[WorkUnit[RowGroups]]:
        first = row = rows = size = 0
        for group in range(metadata.num_row_groups):
            facts = metadata.row_group(group)
            if rows and size + facts.total_byte_size > length:
                yield self._unit(RowGroups(file.path, first, group - 1, row), rows, size)
                first, row, rows, size = group, row + rows, 0, 0
            rows, size = rows + facts.num_rows, size + facts.total_byte_size
        if rows:
            yield self._unit(RowGroups(file.path, first, metadata.num_row_groups - 1, row), rows, size)

    def _unit(self, part: RowGroups, rows: int, size: int) -> WorkUnit[RowGroups]:
        return WorkUnit(self, part, f"{part.path}, rows {part.row} to {part.row + rows - 1}", size)

    def documents(self, part: RowGroups, report: Report, tokenizer: Tokenizer | None) -> Iterator[Document]:
        """Yield a document per row. A row that cannot be used raises UserError with file and row, counted from 0, or
        with ``on_error: skip`` is counted in ``report``; the rest of a damaged row group counts as one."""
        make = document_maker(self.source.document, tokenizer)
        parquet = _open_parquet(part.path)
        names = columns_of(self.source.document).used(parquet.schema_arrow.names)
        columns = {name: parquet.schema_arrow.field(name).type for name in names}
        row = part.row
        for group in range(part.first, part.last + 1):
            rows = _parquet_rows(part.path, parquet, group, columns, row)
            yield from self.documents_of(rows, make, report)
            row += parquet.metadata.row_group(group).num_rows


def _pyarrow(what: str, module: str = "pyarrow") -> ModuleType:
    """Return the library, which has no types. Raises NotHere when it is not installed, and ``what`` needs it."""
    return require(module, "hf", what)


def _open_parquet(path: str) -> Any:
    pyarrow, parquet = (_pyarrow(f"{path}: a Parquet file", name) for name in ("pyarrow", "pyarrow.parquet"))
    file = open_file(path)
    try:
        return parquet.ParquetFile(file, page_checksum_verification=True)
    except (OSError, pyarrow.ArrowException) as error:
        raise _damaged(path, error) from None


def _parquet_rows(
    path: str, file: Any, group: int, columns: dict[str, Any], row: int
) -> Iterator[tuple[Row, Location]]:
    pyarrow = _pyarrow(path)
    special = {name: kind for name, kind in columns.items() if "arrow.json" in str(kind) or "map<" in str(kind)}
    try:
        for batch in file.iter_batches(_ROWS_READ, row_groups=[group], columns=list(columns)):
            for values in batch.to_pylist():
                for name, kind in special.items():
                    values[name] = _as_json(values[name], kind)
                yield values, partial("{}: row {}".format, path, row)
                row += 1
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise _damaged(f"{path}: row group {group}, after row {row - 1}", error) from None


def _as_json(value: Any, kind: Any) -> Any:
    """Return a ``value`` of a column of type ``kind`` as it is in JSON. Arrow gives JSON as text, and a map as a list
    of pairs (https://arrow.apache.org/docs/format/CanonicalExtensions.html#json)."""
    if value is None:
        return None
    pyarrow = _pyarrow("a table")
    if isinstance(kind, pyarrow.JsonType):
        return from_json(value)
    if pyarrow.types.is_map(kind):
        return {name: _as_json(held, kind.item_type) for name, held in value}
    if pyarrow.types.is_struct(kind):
        return {field.name: _as_json(value[field.name], field.type) for field in kind}
    if is_list(value):
        return [_as_json(item, kind.value_type) for item in value]
    return value


def _damaged(location: str, error: Exception) -> BadFile:
    return BadFile(f"{location}: is damaged or no Parquet ({one_line(error)}); fetch the file again")


class HuggingFaceReader(RowReader[HuggingFaceSource, tuple[int, int]]):
    """A dataset, in ranges of rows: the first row, and the one after the last."""

    needs = ("datasets", "hf")
    read_by = ("datasets", "pyarrow")

    def missing(self, where: str) -> list[str]:
        path = self.source.path
        if not _looks_local(path) or local_path(path).is_dir():
            return self.missing_library(where)
        problem = f"{where}.path: there is no folder {path} in {Path.cwd()}; correct the path"
        return [*self.missing_library(where), problem]

    def index(self, where: str) -> SourceIndex:
        """Return the index of the dataset. Raises UserError when it does not exist, or lacks a column."""
        _load.cache_clear()  # the folder may have changed since the last call in this process
        dataset = self._dataset()
        check_schema(dataset.features.arrow_schema, self.source, f"{where}.document: {self.source.path}")
        return self.indexed(where, [_fingerprint(self.source, dataset)], max(1, dataset.data.nbytes))

    def units(self, index: SourceIndex, length: int) -> tuple[list[WorkUnit[tuple[int, int]]], list[str]]:
        rows = len(self._dataset())
        step = max(1, rows * length // index.size)
        bounds = [(start, min(start + step, rows)) for start in range(0, rows, step)]
        return [self._unit(start, stop, index.size * (stop - start) // rows) for start, stop in bounds], []

    def _unit(self, start: int, stop: int, size: int) -> WorkUnit[tuple[int, int]]:
        return WorkUnit(self, (start, stop), f"{self.source.path}, rows {start} to {stop - 1}", size)

    def documents(self, part: tuple[int, int], report: Report, tokenizer: Tokenizer | None) -> Iterator[Document]:
        """Yield a document per row. A row that cannot be used raises UserError, or with ``on_error: skip`` is counted
        in ``report``."""
        return self.documents_of(self._rows(*part), document_maker(self.source.document, tokenizer), report)

    def _rows(self, first: int, stop: int) -> Iterator[tuple[Row, Location]]:
        dataset = self._dataset()
        dataset = dataset.select_columns(columns_of(self.source.document).used(dataset.column_names))
        for start in range(first, stop, _ROWS_READ):
            rows = dataset[start : min(start + _ROWS_READ, stop)]
            names = list(rows)
            for index, values in enumerate(zip(*rows.values(), strict=True), start):
                yield dict(zip(names, values, strict=True)), partial("{}: row {}".format, self.source.path, index)

    def _dataset(self) -> Any:
        source = self.source
        return _load(source.path, source.name, source.split, source.revision)


@lru_cache(maxsize=4)  # a worker reads many units of one dataset, and opening it takes longer than reading a unit
def _load(path: str, name: str | None, split: str, revision: str | None) -> Any:
    """Return the dataset with all its columns, whose values are Python's whatever format it was saved with."""
    what = f"{path}: a source of kind huggingface"
    datasets, exceptions = (require(name, "hf", what) for name in ("datasets", "datasets.exceptions"))
    folder = local_path(path)
    if folder.is_dir() and revision is not None:
        raise UserError(f"{path}: a folder has no revisions; leave `revision` out")
    if _looks_local(path) and not folder.is_dir():
        raise UserError(f"{path}: there is no such folder in {Path.cwd()}; correct the path")
    if (folder / _DATASET).is_file() or (folder / _DATASETS).is_file():
        return _from_disk(datasets, folder, name, split).with_format(None)
    try:
        loaded = datasets.load_dataset(str(folder) if folder.is_dir() else path, name, split=split, revision=revision)
    except (OSError, ValueError, exceptions.DatasetsError) as error:
        raise UserError(f"{path}: the dataset cannot be loaded: {one_line(error)}") from error
    return loaded.with_format(None)


def _looks_local(path: str) -> bool:
    """Return True if ``path`` is on this disk: names on the hub are NAME or OWNER/NAME."""
    return local_path(path).exists() or path.startswith((".", "/", "~")) or path.count("/") > 1


def _from_disk(datasets: ModuleType, folder: Path, name: str | None, split: str) -> Any:
    if name is not None:
        raise UserError(f"{folder}: a dataset that save_to_disk wrote has no configurations; leave `name` out")
    loaded = datasets.load_from_disk(str(folder))
    if isinstance(loaded, datasets.DatasetDict):
        splits = {str(name): dataset for name, dataset in loaded.items()}
    else:
        splits = {str(loaded.split or "train"): loaded}
    if split not in splits:
        raise UserError(f"{folder}: has no split {split!r}; `split` can be {', '.join(splits)}")
    return splits[split]


def _fingerprint(source: HuggingFaceSource, dataset: Any) -> str:
    """Return the fingerprint of a dataset: of a folder, by names, sizes and times of its files; from the hub, by names,
    which hold the revision, and sizes in the library's cache, whose times say only when they were fetched."""
    folder = local_path(source.path)
    if folder.is_dir():
        files = sorted(walk(folder, lambda name: name.startswith("."), "data.sources"))
        facts = [described(file, file.relative_to(folder).as_posix(), named=False) for file in files]
        return digest(*(f"{file.name}\n{file.size}\n{file.mtime_ns}" for file in facts))
    cached = sorted(entry["filename"] for entry in dataset.cache_files)
    return digest(source.path, *(f"{name}\n{os.path.getsize(name)}" for name in cached))
