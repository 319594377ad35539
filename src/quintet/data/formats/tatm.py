"""Tokenized datasets of tatm: a folder for training and one for validation, each with metadata, ids and tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from quintet.data.formats.streams import slices, streams_of
from quintet.data.manifest import write_json
from quintet.data.samples import Samples, Stream
from quintet.data.store import token_dtype
from quintet.errors import UserError
from quintet.tokenize import Tokenizer
from quintet.tokenize.huggingface import HuggingFaceTokenizer

PREFIX = "tokenized"
FILE_TOKENS = 1 << 30  # after which a new file is begun, as tatm does


def write_tatm(parts: Mapping[str, Sequence[Samples]], tokenizer: Tokenizer, folder: Path) -> None:
    """Write each of ``parts`` into a folder of its name.

    Raises UserError for tokens without a loss, which the format cannot mark, and for a tokenizer without the
    tokenizer.json that says what ends a document.
    """
    if not isinstance(tokenizer, HuggingFaceTokenizer):
        raise UserError("--format tatm needs a tokenizer.json; set `tokenizer.kind` to huggingface or bpe")
    for name, samples in parts.items():
        streams, place = streams_of(samples, "tatm"), folder / name
        place.mkdir()
        dtype = token_dtype(tokenizer.vocab_size)
        _write_files(streams, place, dtype, tokenizer.end_id)
        tokenizer.write_for_transformers(place, tokenizer.begin_ids)
        write_json(place / "metadata.json", _metadata(name, dtype, tokenizer))


def _write_files(streams: Sequence[Stream], place: Path, dtype: np.dtype, end: int) -> None:
    """PREFIX_0.bin and on, in which documents are whole."""
    number, written, last = 0, 0, end
    out = (place / f"{PREFIX}_0.bin").open("wb")
    try:
        for ids in _pieces(streams, end):
            if written and last == end and written + ids.size > FILE_TOKENS:
                out.close()
                number, written = number + 1, 0
                out = (place / f"{PREFIX}_{number}.bin").open("wb")
            out.write(np.ascontiguousarray(ids, dtype=dtype).data)
            written, last = written + ids.size, int(ids[-1])
        if last == 0 != end:  # a text that was cut here: readers take zeros at the end for padding
            out.write(np.array([end], dtype=dtype).data)
    finally:
        out.close()


def _pieces(streams: Sequence[Stream], end: int) -> Iterator[np.ndarray]:
    """All tokens in pieces that end with a document where they can."""
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
