"""A Hugging Face dataset with `input_ids`, `labels`, `attention_mask` and `seq_lengths`, one row a sample."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from quintet.config.documents import IGNORED
from quintet.data.samples import Sample, Samples
from quintet.libraries import require
from quintet.tokenize import Tokenizer

_ROWS = 1000


def write_huggingface(parts: Mapping[str, Sequence[Samples]], tokenizer: Tokenizer, folder: Path) -> None:
    """Write a split for each of ``parts``: its samples, source after source, as the packing cuts them.

    A row has as many ids as its sample, no padding; labels are the ids again, not shifted, or -100 where there is no
    loss. ``seq_lengths`` are those of the documents in it, or of what the packing left of them, as TRL's packing has
    them. Memory is bounded by a thousand rows.
    """
    datasets = _library()
    files = {name: folder / f".{name}.arrow" for name in parts}
    for name, samples in parts.items():
        _write_rows(samples, files[name], IGNORED, lengths=True)
    datasets.DatasetDict((name, datasets.Dataset.from_file(str(file))) for name, file in files.items()).save_to_disk(
        folder
    )
    for file in files.values():
        file.unlink()


def write_rows(samples: Sequence[Samples], folder: Path, ignore_index: int) -> None:
    """Write one dataset without splits, as VectorLM's preprocessing does: the rows of `write_huggingface`, with a
    column `id` that numbers them in place of the lengths, which it has not, and labels of ``ignore_index`` where there
    is no loss."""
    datasets = _library()
    file = folder / ".rows" / "rows.arrow"  # the library does not save a dataset beside its own files
    file.parent.mkdir()
    _write_rows(samples, file, ignore_index, lengths=False)
    rows = datasets.Dataset.from_file(str(file))
    rows.add_column("id", np.arange(len(rows))).save_to_disk(folder)
    del rows  # Windows removes no file that is mapped
    shutil.rmtree(file.parent)


def _library() -> Any:
    datasets = require("datasets", "hf", "a Hugging Face dataset")
    datasets.disable_progress_bars()
    return datasets


def _write_rows(samples: Sequence[Samples], file: Path, ignore_index: int, *, lengths: bool) -> None:
    import pyarrow

    types = {"input_ids": pyarrow.int32(), "labels": pyarrow.int32(), "attention_mask": pyarrow.int8()}
    types |= {"seq_lengths": pyarrow.int32()} if lengths else {}
    schema = pyarrow.schema([(name, pyarrow.list_(item)) for name, item in types.items()])
    with pyarrow.OSFile(str(file), "wb") as out, pyarrow.ipc.new_stream(out, schema) as writer:
        for rows in _batches(samples):
            writer.write_batch(_batch(rows, schema, ignore_index))


def _batches(parts: Sequence[Samples]) -> Iterator[list[Sample]]:
    for part in parts:
        for start in range(0, part.count, _ROWS):
            yield [part.sample(index) for index in range(start, min(start + _ROWS, part.count))]


def _batch(rows: list[Sample], schema: Any, ignore_index: int) -> Any:
    import pyarrow

    ids = np.concatenate([row.ids for row in rows]).astype(np.int32)
    loss_mask = np.concatenate(
        [np.ones(row.ids.size, bool) if row.loss_mask is None else row.loss_mask for row in rows]
    )
    ends = np.cumsum([0, *(row.ids.size for row in rows)], dtype=np.int32)
    columns = [(ends, values) for values in (ids, np.where(loss_mask, ids, ignore_index), np.ones(ids.size))]
    lengths = [_lengths(row) for row in rows]
    columns.append((np.cumsum([0, *map(len, lengths)], dtype=np.int32), np.concatenate(lengths)))
    return pyarrow.record_batch(
        [
            pyarrow.ListArray.from_arrays(pyarrow.array(ends), pyarrow.array(values.astype(kind.to_pandas_dtype())))
            for (ends, values), kind in zip(columns, (item.value_type for item in schema.types), strict=False)
        ],
        schema=schema,
    )


def _lengths(row: Sample) -> np.ndarray:
    """Ids of each document in a sample, in their order: int64."""
    documents = np.zeros(row.ids.size, np.int64) if row.documents is None else row.documents
    borders = np.flatnonzero(np.diff(documents)) + 1
    return np.diff(np.concatenate([[0], borders, [row.ids.size]]))
