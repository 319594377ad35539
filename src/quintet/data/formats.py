"""Prepared data in the formats of other frameworks."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from quintet.config.documents import IGNORED
from quintet.data.manifest import write_json
from quintet.data.prepare import Prepared
from quintet.data.samples import Sample, Samples, Windows, document_borders
from quintet.data.split import TokenStream
from quintet.data.store import ArrayWriter, token_dtype
from quintet.errors import UserError
from quintet.files import new_folder
from quintet.libraries import require
from quintet.tokenize import Tokenizer
from quintet.tokenize.huggingface import HuggingFaceTokenizer

SLICE = 1 << 20  # tokens read at once
PREFIX = "tokenized"
FILE_TOKENS = 1 << 30  # after which a new file is started, as in tatm
_ROWS = 1000
_DATASET = "a Hugging Face dataset"


def streams_of(parts: Sequence[Samples], kind: str) -> list[TokenStream]:
    """Return the stream that each of ``parts`` is cut from. Raises UserError for samples of another packing."""
    streams = [part.stream for part in parts if isinstance(part, Windows)]
    if len(streams) < len(parts):
        raise UserError(
            f"--format {kind} holds one stream of tokens, and data.packing makes other samples; set data.packing.kind "
            "to stream, or write --format huggingface"
        )
    return streams


def slices(streams: Sequence[TokenStream]) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Yield all tokens, stream after stream, with their loss mask.

    The tokens are [at most SLICE] in the dtype of the stream; the mask is bool of that shape, or None if all tokens
    have a loss.
    """
    for stream in streams:
        for start in range(0, stream.length, SLICE):
            size = min(SLICE, stream.length - start)
            yield stream.read(start, size), stream.loss_mask(start, size)


def write_npy(parts: Mapping[str, Sequence[Samples]], tokenizer: Tokenizer, folder: Path) -> None:
    """Write the tokens of each of ``parts``, source after source, to NAME.npy, uint16 or uint32 [tokens]. If some
    tokens have no loss, write the labels to NAME_labels.npy, int32 [tokens]."""
    for name, samples in parts.items():
        streams = streams_of(samples, "npy")
        masked = any(loss_mask is not None and not loss_mask.all() for _, loss_mask in slices(streams))
        _write(folder / f"{name}.npy", streams, token_dtype(tokenizer.vocab_size), labels=False)
        if masked:
            _write(folder / f"{name}_labels.npy", streams, np.dtype("<i4"), labels=True)


def _write(file: Path, streams: Sequence[TokenStream], dtype: np.dtype, *, labels: bool) -> None:
    writer = ArrayWriter(file, dtype)
    for ids, loss_mask in slices(streams):
        writer.append(np.where(loss_mask, ids.astype(np.int32), IGNORED) if labels and loss_mask is not None else ids)
    writer.close()


def write_tatm(parts: Mapping[str, Sequence[Samples]], tokenizer: Tokenizer, folder: Path) -> None:
    """Write each of ``parts`` into a folder of its name.

    Raises UserError for tokens without a loss, which the format cannot mark, and for a tokenizer without the
    tokenizer.json that says what ends a document.
    """
    if not isinstance(tokenizer, HuggingFaceTokenizer):
        raise UserError("--format tatm needs a tokenizer.json; set `tokenizer.kind` to huggingface or bpe")
    for name, samples in parts.items():
        streams, out = streams_of(samples, "tatm"), folder / name
        out.mkdir()
        dtype = token_dtype(tokenizer.vocab_size)
        _write_files(streams, out, dtype, tokenizer.end_id)
        tokenizer.write_for_transformers(out, tokenizer.begin_ids)
        write_json(out / "metadata.json", _metadata(name, dtype, tokenizer))


def _write_files(streams: Sequence[TokenStream], folder: Path, dtype: np.dtype, end: int) -> None:
    """Write PREFIX_0.bin, PREFIX_1.bin, … with whole documents."""
    number, written, last = 0, 0, end
    out = (folder / f"{PREFIX}_0.bin").open("wb")
    try:
        for ids in _pieces(streams, end):
            if written and last == end and written + ids.size > FILE_TOKENS:
                out.close()
                number, written = number + 1, 0
                out = (folder / f"{PREFIX}_{number}.bin").open("wb")
            out.write(np.ascontiguousarray(ids, dtype=dtype).data)
            written, last = written + ids.size, int(ids[-1])
        if last == 0 != end:  # a text that the split cut; readers take zeros at the end for padding
            out.write(np.array([end], dtype=dtype).data)
    finally:
        out.close()


def _pieces(streams: Sequence[TokenStream], end: int) -> Iterator[np.ndarray]:
    """Yield all tokens in pieces, [tokens] of the stream's dtype, that end with a document if possible."""
    for ids, loss_mask in slices(streams):
        if loss_mask is not None and not loss_mask.all():
            raise UserError("--format tatm cannot say which tokens have no loss; write --format huggingface or npy")
        ends = np.flatnonzero(ids == end)
        cut = int(ends[-1]) + 1 if ends.size else 0
        yield from (part for part in (ids[:cut], ids[cut:]) if part.size)


def _metadata(name: str, dtype: np.dtype, tokenizer: HuggingFaceTokenizer) -> dict[str, object]:
    return {
        "name": name,
        "dataset_path": ".",
        "description": "Tokens that quintet prepare wrote",
        "date_downloaded": "",
        "download_source": "quintet",
        "data_content": "text",
        "content_field": "NA",
        "corpuses": [],
        "tokenized_info": {
            "tokenizer": "tokenizer.json",
            "file_prefix": PREFIX,
            "dtype": dtype.name,
            "file_extension": "bin",
            "vocab_size": tokenizer.vocab_size,
        },
    }


def write_huggingface(parts: Mapping[str, Sequence[Samples]], tokenizer: Tokenizer, folder: Path) -> None:
    """Write a split for each of ``parts``: its samples, source after source, as the packing cuts them.

    A row has the ids of a sample, without padding; labels are the same ids, not shifted, or -100 for no loss.
    ``seq_lengths`` are the lengths of the documents, or parts of documents, in it, as in TRL's packing. Memory is
    bounded by a thousand rows.
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
    """Write one dataset without splits, as VectorLM's preprocessing does: the rows of `write_huggingface`, with their
    numbers in a column `id` instead of the lengths, and ``ignore_index`` as the label for no loss."""
    datasets = _library()
    file = folder / ".rows" / "rows.arrow"  # the library does not save a dataset among its own files
    file.parent.mkdir()
    _write_rows(samples, file, ignore_index, lengths=False)
    rows = datasets.Dataset.from_file(str(file))
    rows.add_column("id", np.arange(len(rows))).save_to_disk(folder)
    del rows  # Windows removes no file that is mapped
    shutil.rmtree(file.parent)


def _library() -> ModuleType:
    datasets = require("datasets", "hf", _DATASET)
    datasets.disable_progress_bars()
    return datasets


def _pyarrow() -> ModuleType:
    return require("pyarrow", "hf", _DATASET)


def _write_rows(samples: Sequence[Samples], file: Path, ignore_index: int, *, lengths: bool) -> None:
    pyarrow = _pyarrow()
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
    ids = np.concatenate([row.ids for row in rows]).astype(np.int32)
    loss_mask = np.concatenate(
        [np.ones(row.ids.size, bool) if row.loss_mask is None else row.loss_mask for row in rows]
    )
    ends = np.cumsum([0, *(row.ids.size for row in rows)], dtype=np.int32)
    columns = [(ends, values) for values in (ids, np.where(loss_mask, ids, ignore_index), np.ones(ids.size))]
    lengths = [np.diff(document_borders(row.documents, row.ids.size)) for row in rows]
    columns.append((np.cumsum([0, *map(len, lengths)], dtype=np.int32), np.concatenate(lengths)))
    pyarrow = _pyarrow()
    return pyarrow.record_batch(
        [
            pyarrow.ListArray.from_arrays(pyarrow.array(ends), pyarrow.array(values.astype(kind.to_pandas_dtype())))
            for (ends, values), kind in zip(columns, (item.value_type for item in schema.types), strict=False)
        ],
        schema=schema,
    )


Parts = dict[str, tuple[Samples, ...]]
FORMATS: dict[str, Callable[[Parts, Tokenizer, Path], None]] = {
    "huggingface": write_huggingface,
    "npy": write_npy,
    "tatm": write_tatm,
}


def write_format(prepared: Prepared, kind: str, folder: Path) -> None:
    """Write the training and validation samples of ``prepared`` to ``folder`` in the format ``kind``.

    Raises UserError when the folder is not empty, or the format cannot hold the data.
    """
    parts = {"train": prepared.train.source_samples}
    if prepared.validation is not None:
        parts["validation"] = prepared.validation.source_samples
    check_new(folder)
    with new_folder(folder) as unfinished:
        FORMATS[kind](parts, prepared.tokenizer, unfinished)


def write_samples(prepared: Prepared, folder: Path, ignore_index: int) -> None:
    """Write the training samples of ``prepared`` to ``folder`` as one Hugging Face dataset; see `write_rows`.

    Raises UserError when the folder is not empty.
    """
    check_new(folder)
    with new_folder(folder) as unfinished:
        write_rows(prepared.train.source_samples, unfinished, ignore_index)


def check_new(folder: Path) -> None:
    """Raise UserError unless ``folder`` is new or empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: is there already; name a new folder")
