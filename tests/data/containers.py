"""Rows in each container that a source reads, and the token store that they have to become in any of them."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from pydantic import TypeAdapter

from quintet.config.sources import SourceConfig
from quintet.data.build import StoreSpec, build_store
from quintet.data.sources import reader_of
from quintet.tokenize import Tokenizer
from quintet.tokenize.simple import ByteTokenizer

pyarrow = pytest.importorskip("pyarrow")
datasets = pytest.importorskip("datasets")
datasets.disable_progress_bars()

END = ByteTokenizer().end_id
Row = dict[str, Any]

TEXTS = ["string", "large_string", "string_view", "dictionary", "dictionary_large"]
LISTS = ["list", "large_list", "fixed_size_list", "list_view", "large_list_view"]
VIEWS = ("list_view", "large_list_view")  # which `datasets` does not know
INTEGERS = ["uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
FORMATS = [None, "numpy", "torch", "pandas", "arrow"]


@dataclass(frozen=True)
class Store:
    """The content of a token store: ids, ends of documents, loss mask, and counts of what was dropped."""

    ids: list[int]
    ends: list[int]
    loss_mask: list[bool]
    dropped: dict[str, int]


@dataclass(frozen=True)
class Container:
    """A container of rows: a source of ``kind``, with the options of the writer and the ``types`` of columns."""

    kind: str
    options: Row
    types: Row

    def write(self, rows: list[Row], folder: Path) -> Row:
        """Write ``rows`` into ``folder``, and return the source for the run file."""
        writers: dict[str, Callable[..., Path]] = {
            "jsonl": _jsonl,
            "csv": _csv,
            "parquet": _parquet,
            "huggingface": _huggingface,
        }
        folder.mkdir()
        keys = {"delimiter": self.options["delimiter"]} if self.kind == "csv" else {}
        if self.kind in ("jsonl", "csv"):
            return {"kind": self.kind, "path": str(writers[self.kind](rows, folder, **self.options)), **keys}
        path = writers[self.kind](table_of(rows, self.types), folder, **self.options)
        return {"kind": self.kind, "path": str(path)}


def store_of(source: Row, folder: Path, tokenizer: Tokenizer | None = None) -> Store:
    """Return the token store of ``source``, made in ``folder``."""
    listing = reader_of(TypeAdapter(SourceConfig).validate_python(source)).index("data.sources[0]")
    store = build_store(StoreSpec(listing, tokenizer or ByteTokenizer(), {}, folder), 1, None)
    count = store.token_count
    loss_mask = store.loss_mask(0, count)
    return Store(
        store.tokens(0, count).tolist(),
        store.document_ends(0, store.document_count).tolist(),
        (np.ones(count, bool) if loss_mask is None else loss_mask).tolist(),
        store.manifest.dropped,
    )


def expected_store(documents: list[tuple[list[int], list[bool]]], **dropped: int) -> Store:
    """Return the store of ``documents``, each with ids and loss mask; an end id is added if it is missing."""
    ids: list[int] = []
    loss_mask: list[bool] = []
    ends: list[int] = []
    for document, mask in documents:
        missing = document[-1] != END
        ids += [*document, END] if missing else document
        loss_mask += [*mask, mask[-1]] if missing else mask
        ends.append(len(ids))
    return Store(ids, ends, loss_mask, {reason: count for reason, count in dropped.items() if count})


def table_of(rows: list[Row], types: Row) -> Any:
    """Return ``rows`` as a table of pyarrow: a column for each key of a row, null for rows without it."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {}
    for name in names:
        values = [row.get(name) for row in rows]
        kind = _arrow_type(types.get(name), values)
        columns[name] = pyarrow.array(values, kind)
    return pyarrow.table(columns)


def _arrow_type(name: Any, values: list[Any]) -> Any:
    """Return the type with the ``name``: of texts a name, of lists of ids a pair of names; inferred for None."""
    if name is None or all(value is None for value in values):
        return None
    if isinstance(name, tuple):
        inner = pyarrow.type_for_alias(name[1])
        sizes = {len(value) for value in values if value is not None}
        if name[0] == "fixed_size_list":
            return pyarrow.list_(inner, sizes.pop()) if len(sizes) == 1 and 0 not in sizes else pyarrow.list_(inner)
        return getattr(pyarrow, "list_" if name[0] == "list" else name[0])(inner)
    if name.startswith("dictionary"):
        return pyarrow.dictionary(
            pyarrow.int32(), pyarrow.large_string() if name.endswith("large") else pyarrow.string()
        )
    return pyarrow.type_for_alias(name)


def _jsonl(rows: list[Row], folder: Path, *, ending: str, ascii_only: bool, line_end: str, nulls: bool) -> Path:
    kept = rows if nulls else [{name: value for name, value in row.items() if value is not None} for row in rows]
    data = "".join(json.dumps(row, ensure_ascii=ascii_only) + line_end for row in kept).encode()
    path = folder / f"rows.jsonl{ending}"
    path.write_bytes(gzip.compress(data) if ending else data)
    return path


def _csv(rows: list[Row], folder: Path, *, delimiter: str, quoting: int, line_end: str, mark: bool) -> Path:
    path = folder / "rows.csv"
    if any("\r" in str(value) for row in rows for value in row.values()):
        quoting = csv.QUOTE_ALL  # otherwise the writer may not quote the character, and the reader ends a row at it
    with path.open("w", newline="", encoding="utf-8-sig" if mark else "utf-8") as out:
        names = list(dict.fromkeys(name for row in rows for name in row))
        writer = csv.DictWriter(out, names, delimiter=delimiter, quoting=quoting, lineterminator=line_end)  # type: ignore[arg-type]
        writer.writeheader()
        writer.writerows(rows)
    return path


def _parquet(table: Any, folder: Path, *, group: int, version: str, dictionary: bool, compression: str) -> Path:
    import pyarrow.parquet

    path = folder / "rows.parquet"
    pyarrow.parquet.write_table(
        table,
        path,
        row_group_size=group,
        data_page_version=version,
        use_dictionary=dictionary,
        compression=compression,
    )
    return path


def _huggingface(table: Any, folder: Path, *, shape: str | None, first_only: bool, shards: int, split: bool) -> Path:
    found = datasets.Dataset(table)
    found = found.with_format(shape, columns=found.column_names[:1] if first_only else None)
    path = folder / "rows"
    if split:
        datasets.DatasetDict({"train": found, "other": found}).save_to_disk(path)
    else:
        found.save_to_disk(path, num_shards=min(shards, len(found)))
    return path


def containers(types: st.SearchStrategy[Row], *kinds: str) -> st.SearchStrategy[Container]:
    """Return containers of the ``kinds``, all of them by default, with columns of ``types``."""
    options = {
        "jsonl": st.fixed_dictionaries(
            {
                "ending": st.sampled_from(["", ".gz"]),
                "ascii_only": st.booleans(),
                "line_end": st.sampled_from(["\n", "\r\n"]),
                "nulls": st.booleans(),
            }
        ),
        "csv": st.fixed_dictionaries(
            {
                "delimiter": st.sampled_from([",", ";", "\t", "|"]),
                "quoting": st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
                "line_end": st.sampled_from(["\n", "\r\n"]),
                "mark": st.booleans(),
            }
        ),
        "parquet": st.fixed_dictionaries(
            {
                "group": st.integers(1, 5),
                "version": st.sampled_from(["1.0", "2.0"]),
                "dictionary": st.booleans(),
                "compression": st.sampled_from(["none", "snappy", "zstd"]),
            }
        ),
        "huggingface": st.fixed_dictionaries(
            {
                "shape": st.sampled_from(FORMATS),
                "first_only": st.booleans(),
                "shards": st.integers(1, 3),
                "split": st.booleans(),
            }
        ),
    }
    drawn = [st.builds(Container, st.just(kind), options[kind], types) for kind in kinds or options]
    return st.one_of(drawn)
