"""Hugging Face datasets as documents."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from quintet.config.names import local_path
from quintet.config.sources import HuggingFaceSource
from quintet.data.sources.check import looks_local
from quintet.data.sources.document import Document, Report
from quintet.data.sources.files import described, walk
from quintet.data.sources.rows import Place, Row, columns_of, document_maker, documents_of
from quintet.data.sources.tables import check_schema, wanted
from quintet.errors import UserError, one_line
from quintet.libraries import require
from quintet.tokenize import Tokenizer
from quintet.tokenize.base import digest

_ROWS_READ = 1000
_DATASET, _DATASETS = "state.json", "dataset_dict.json"  # which file `save_to_disk` writes for one and for several


@dataclass(frozen=True)
class RowUnit:
    """Rows ``start`` to ``stop`` of a dataset; ``size`` is their share of its bytes."""

    source: HuggingFaceSource
    start: int
    stop: int
    size: int

    @property
    def place(self) -> str:
        """Where this unit is, for messages."""
        return f"{self.source.path}, rows {self.start} to {self.stop - 1}"


@dataclass(frozen=True)
class Dataset:
    """What is known of a dataset without reading its rows."""

    fingerprint: str
    rows: int
    size: int


def describe_dataset(source: HuggingFaceSource, where: str) -> Dataset:
    """Load the dataset of ``source`` and check its columns. Raises UserError for what is not there."""
    _load.cache_clear()  # the folder may hold another dataset than at the last call in this process
    dataset = _load(source.path, source.name, source.split, source.revision)
    check_schema(dataset.features.arrow_schema, source, f"{where}.document: {source.path}")
    return Dataset(_fingerprint(source, dataset), len(dataset), max(1, dataset.data.nbytes))


def row_units(source: HuggingFaceSource, dataset: Dataset, length: int) -> list[RowUnit]:
    """Work units of about ``length`` bytes."""
    step = max(1, dataset.rows * length // dataset.size)
    starts = range(0, dataset.rows, step)
    bounds = [(start, min(start + step, dataset.rows)) for start in starts]
    return [RowUnit(source, start, stop, dataset.size * (stop - start) // dataset.rows) for start, stop in bounds]


def row_documents(unit: RowUnit, report: Report, tokenizer: Tokenizer | None) -> Iterator[Document]:
    """Documents of ``unit``, empty ones included. Raises UserError for a row that cannot be used, or with
    ``on_error: skip`` counts it in ``report``."""
    make = document_maker(unit.source.document, tokenizer)
    return documents_of(_rows(unit), make, unit.source.on_error == "skip", report)


def _rows(unit: RowUnit) -> Iterator[tuple[Row, Place]]:
    source = unit.source
    dataset = _load(source.path, source.name, source.split, source.revision)
    dataset = dataset.select_columns(wanted(dataset.column_names, columns_of(source.document)))
    for start in range(unit.start, unit.stop, _ROWS_READ):
        rows = dataset[start : min(start + _ROWS_READ, unit.stop)]
        names = list(rows)
        for index, values in enumerate(zip(*rows.values(), strict=True), start):
            yield dict(zip(names, values, strict=True)), partial("{}: row {}".format, source.path, index)


@lru_cache(maxsize=4)  # a worker reads many units of one dataset, and opening it takes longer than reading a unit
def _load(path: str, name: str | None, split: str, revision: str | None) -> Any:
    """The dataset with all its columns and values of Python, whatever format it was saved with."""
    return _loaded(path, name, split, revision).with_format(None)


def _loaded(path: str, name: str | None, split: str, revision: str | None) -> Any:
    datasets = require("datasets", "hf", f"{path}: a source of kind huggingface")
    from datasets.exceptions import DatasetsError

    folder = local_path(path)
    if folder.is_dir() and revision is not None:
        raise UserError(f"{path}: a folder has no revisions; leave `revision` out")
    if looks_local(path) and not folder.is_dir():
        raise UserError(f"{path}: there is no such folder in {Path.cwd()}; correct the path")
    if (folder / _DATASET).is_file() or (folder / _DATASETS).is_file():
        return _from_disk(folder, name, split)
    try:
        return datasets.load_dataset(str(folder) if folder.is_dir() else path, name, split=split, revision=revision)
    except (OSError, ValueError, DatasetsError) as error:
        raise UserError(f"{path}: the dataset cannot be loaded: {one_line(error)}") from error


def _from_disk(folder: Path, name: str | None, split: str) -> Any:
    import datasets

    if name is not None:
        raise UserError(f"{folder}: a dataset that save_to_disk wrote has no configurations; leave `name` out")
    loaded = datasets.load_from_disk(str(folder))
    if isinstance(loaded, datasets.DatasetDict):
        splits = {str(each): dataset for each, dataset in loaded.items()}
    else:
        splits = {str(loaded.split or "train"): loaded}
    if split not in splits:
        raise UserError(f"{folder}: has no split {split!r}; `split` can be {', '.join(splits)}")
    return splits[split]


def _fingerprint(source: HuggingFaceSource, dataset: Any) -> str:
    """Of a folder: names, sizes and times of its files. From the hub: the files of the library's cache, whose names
    hold the revision; their times say only when they were fetched."""
    folder = local_path(source.path)
    if folder.is_dir():
        files = sorted(walk(folder, lambda name: name.startswith("."), "data.sources"))
        facts = [described(file, file.relative_to(folder).as_posix(), named=False) for file in files]
        return digest(*(f"{file.name}\n{file.size}\n{file.mtime_ns}" for file in facts))
    cached = sorted(entry["filename"] for entry in dataset.cache_files)
    return digest(source.path, *(f"{name}\n{os.path.getsize(name)}" for name in cached))
