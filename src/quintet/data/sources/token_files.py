"""Files of token ids as documents: arrays of NumPy, raw ids, datasets of tatm, and existing token stores."""

from __future__ import annotations

import json
import re
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from tokenize import TokenError
from typing import Any, BinaryIO, Never

import numpy as np

from quintet.config.keypath import is_mapping
from quintet.config.names import local_path
from quintet.config.sources import BinSource, NpySource, StoreSource, TatmSource
from quintet.data.manifest import MANIFEST, no_store
from quintet.data.sources.base import BadRow, Document, Reader, Report, SourceIndex, TokenIds, WorkUnit
from quintet.data.sources.files import File, PassedOver, beside, described, missing_paths
from quintet.data.sources.reading import ByteRange, open_file, read
from quintet.data.sources.rows import loss_mask_of
from quintet.errors import UserError, one_line
from quintet.tokenize.base import NO_END, Tokenizer

SLICE = 1 << 20  # tokens read at once
METADATA = ("metadata.json", "metadata.yaml", "metadata.yml")
TOKENIZER = "tokenizer.json"
T5_END = 1  # the id that tatm itself takes for the end of a document, for every tokenizer
_DTYPES = ("uint8", "uint16", "uint32", "uint64", "int16", "int32", "int64")

ArrayPart = tuple[str, int, str | None]
"""The path of a file, its size in bytes, and the path of its labels."""


@dataclass(frozen=True)
class TokenFile:
    """``count`` ids of ``dtype`` in a file from byte ``offset`` on."""

    path: str
    dtype: str
    offset: int
    count: int

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return ids ``start`` to ``stop``, [stop - start] in the dtype of the file."""
        item = np.dtype(self.dtype).itemsize
        return np.frombuffer(
            read(ByteRange(self.path, self.offset + start * item, self.offset + stop * item)), dtype=self.dtype
        )

    def part(self, source: NpySource | BinSource) -> TokenFile:
        """Return the part that ``source`` reads."""
        start, stop = (_position(position, self.count) for position in (source.start, source.stop))
        start = min(start, stop)
        return replace(self, offset=self.offset + start * np.dtype(self.dtype).itemsize, count=stop - start)


def _position(position: float | None, count: int) -> int:
    """Return a position in tokens; a float is a fraction of ``count``, None is the end."""
    if position is None:
        return count
    return min(int(position * count) if isinstance(position, float) else position, count)


@dataclass(frozen=True)
class Labels:
    """A file of labels: the same ids, or ``ignore_index`` for tokens that do not count in the loss."""

    file: TokenFile
    ignore_index: int

    def loss_mask(self, start: int, ids: np.ndarray) -> np.ndarray:
        """Return the loss mask of ``ids``, which begin at token ``start``: bool [tokens]. Raises UserError for other
        labels."""
        try:
            return loss_mask_of(ids, self.file.read(start, start + ids.size), self.ignore_index)
        except BadRow as bad:
            raise UserError(f"{self.file.path}, from token {start} on: {bad}") from None


class _ArrayReader(Reader[NpySource | BinSource, ArrayPart]):
    """A base for readers of arrays. Each file is a unit: where documents end is known only after reading it."""

    @abstractmethod
    def _open(self, path: str, size: int) -> TokenFile: ...

    def documents(self, part: ArrayPart, report: Report, tokenizer: Tokenizer | None) -> Iterator[Document]:
        """Yield the documents of a file, which end with each end id, or with `document: file` at the end of the file.
        Raises UserError for a file that is no such array, or is truncated, and for labels that do not fit."""
        assert tokenizer is not None
        source, (path, size, labels_path) = self.source, part
        end = None if source.document == "file" or tokenizer.end_id == NO_END else tokenizer.end_id
        tokens = self._open(path, size)
        if labels_path is None or not isinstance(source, NpySource):
            return cut_at(tokens.part(source), end, report)
        labels = npy_file(labels_path)
        if labels.count != tokens.count:
            raise UserError(
                f"{labels.path}: has {labels.count:,} labels, and {tokens.path} has {tokens.count:,} tokens; "
                "make them anew, or move the labels away"
            )
        return cut_at(tokens.part(source), end, report, Labels(labels.part(source), source.ignore_index))

    def unmatched(self, index: SourceIndex, matched: Mapping[str, int], documents: int) -> Iterator[str]:
        if self.source.document == "end_id" and not matched.get("end_id"):
            yield "`document: end_id`: the end id stands nowhere: each file is one document"


class NpyReader(_ArrayReader):
    """Arrays of NumPy, with files of labels beside them."""

    suffixes = (".npy",)

    def find(self, where: str, passed: PassedOver) -> list[File]:
        files = super().find(where, passed)
        paths = {file.path for file in files}
        labels = ((file, labels_file(file.path)) for file in files)
        missing = [(file, path) for file, path in labels if path not in paths]
        return [*files, *(extra for file, path in missing for extra in beside(file, path, labels_file(file.name)))]

    def units(self, index: SourceIndex, length: int) -> tuple[list[WorkUnit[ArrayPart]], list[str]]:
        paths = {file.path for file in index.files}
        labels = {path: labels_file(path) for path in paths if labels_file(path) in paths}
        arrays = [file for file in index.files if file.path not in labels.values()]
        parts = [(file.path, file.size, labels.get(file.path)) for file in arrays]
        return [WorkUnit(self, part, part[0], part[1]) for part in parts], []

    def _open(self, path: str, size: int) -> TokenFile:
        return npy_file(path)


class BinReader(_ArrayReader):
    """Files of raw ids, without a header."""

    suffixes = (".bin",)

    def units(self, index: SourceIndex, length: int) -> tuple[list[WorkUnit[ArrayPart]], list[str]]:
        return [WorkUnit(self, (file.path, file.size, None), file.path, file.size) for file in index.files], []

    def _open(self, path: str, size: int) -> TokenFile:
        assert isinstance(self.source, BinSource)
        return raw_file(path, size, self.source.dtype)


class StoreReader(Reader[StoreSource, Never]):
    """A token store, which is opened and not read; only ``missing`` is called."""

    def missing(self, where: str) -> list[str]:
        folder = local_path(self.source.path)
        return [] if (folder / MANIFEST).is_file() else [f"{where}.path: {no_store(folder)}"]

    def units(self, index: SourceIndex, length: int) -> tuple[list[WorkUnit[Never]], list[str]]:
        raise AssertionError(self.source.path)

    def documents(self, part: Never, report: Report, tokenizer: Tokenizer | None) -> Iterator[Document]:
        raise AssertionError(self.source.path)


def labels_file(path: str) -> str:
    """Return the path where the labels of the array at ``path`` are, if it has any."""
    return f"{path[:-4]}_labels{path[-4:]}" if path.lower().endswith(".npy") else f"{path}_labels.npy"


def cut_at(
    tokens: TokenFile, end: int | None, report: Report, labels: Labels | None = None, stop: int | None = None
) -> Iterator[Document]:
    """Yield the ids of ``tokens`` up to ``stop``, slice by slice: one document, or those that end with the id ``end``,
    which are counted in ``report``."""
    stop = tokens.count if stop is None else stop
    for start in range(0, stop, SLICE):
        ids = tokens.read(start, min(start + SLICE, stop))
        loss_mask = None if labels is None else labels.loss_mask(start, ids)
        at = 0
        for stop_at in [] if end is None else (np.flatnonzero(ids == end) + 1).tolist():
            report.matched["end_id"] += 1
            yield _piece(tokens, start, ids, loss_mask, at, stop_at, continues=False)
            at = stop_at
        if at < ids.size:
            yield _piece(tokens, start, ids, loss_mask, at, ids.size, continues=start + ids.size < stop)


def raw_file(path: str, size: int, dtype: str) -> TokenFile:
    """Return the file of raw ids at ``path``, of ``size`` bytes. Raises UserError when these are no whole ids."""
    item = np.dtype(dtype).newbyteorder("<")
    if size % item.itemsize:
        raise UserError(
            f"{path}: {size:,} bytes are no whole number of {dtype} ids; correct the dtype, or restore the file"
        )
    return TokenFile(path, item.str, 0, size // item.itemsize)


def npy_file(path: str) -> TokenFile:
    """Return the array at ``path``. Raises UserError unless it holds integers, with at most one axis longer than 1."""
    with open_file(path) as file:
        shape, dtype, offset, size = _header(path, file)
    if dtype.kind not in "iu":
        raise UserError(f"{path}: holds {dtype}, not token ids; name an array of integers")
    if sum(length != 1 for length in shape) > 1:
        raise UserError(f"{path}: has the shape {list(shape)}; name an array of one axis, or ravel it")
    count = prod(shape)
    if size != offset + count * dtype.itemsize:
        raise UserError(
            f"{path}: has {size:,} bytes, and its header says {offset + count * dtype.itemsize:,}; restore the file"
        )
    return TokenFile(path, dtype.str, offset, count)


def _header(path: str, file: BinaryIO) -> tuple[tuple[int, ...], np.dtype, int, int]:
    """Return the shape, the dtype, the offset of the data, and the size of the file in bytes."""
    readers: dict[tuple[int, int], Callable[[BinaryIO], tuple[tuple[int, ...], bool, np.dtype]]] = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    try:
        shape, _, dtype = readers[np.lib.format.read_magic(file)](file)
    except (ValueError, KeyError, EOFError, RecursionError, TokenError) as error:  # the header is Python's own text
        raise UserError(f"{path}: is no array of NumPy ({one_line(error)}); make it with numpy.save") from None
    offset = file.tell()
    return shape, dtype, offset, file.seek(0, 2)


def _piece(
    tokens: TokenFile, start: int, ids: np.ndarray, loss_mask: np.ndarray | None, at: int, to: int, *, continues: bool
) -> TokenIds:
    location = f"{tokens.path}, from token {start + at} on"
    return TokenIds(ids[at:to], location, None if loss_mask is None else loss_mask[at:to], continues)


@dataclass(frozen=True)
class TatmPart:
    """A file of ids, of ``size`` bytes; ``tokenizer`` is its name in the metadata in ``folder``."""

    path: str
    size: int
    dtype: str
    folder: Path
    tokenizer: str


class TatmReader(Reader[TatmSource, TatmPart]):
    """A folder with metadata, raw ids in PREFIX_0.bin, PREFIX_1.bin, …, and a tokenizer."""

    def missing(self, where: str) -> list[str]:
        return missing_paths(self.source.paths, where)

    def find(self, where: str, passed: PassedOver) -> list[File]:
        """Return the metadata, the tokenizer if there is one, and the files of ids in the order of their numbers.
        Raises UserError when there are none."""
        metadata = _metadata_file(self.source, where)
        made_with, named = str(_info(metadata).get("tokenizer", "")), self.source.tokenizer
        if named is not None and made_with and Path(made_with).name != Path(named).name:
            raise UserError(f"{where}.tokenizer: the dataset was made with {made_with}, not with {named}")
        return [*(_file(path) for path in (metadata, metadata.parent / TOKENIZER) if path.is_file()), *_bins(metadata)]

    def units(self, index: SourceIndex, length: int) -> tuple[list[WorkUnit[TatmPart]], list[str]]:
        """Return a unit for each file of ids: in tatm no document continues in another file."""
        metadata = _metadata_file(self.source, "tatm")
        info = _info(metadata)
        facts = (info.get("dtype", "uint16"), metadata.parent, str(info.get("tokenizer", "")))
        parts = [TatmPart(file.path, file.size, *facts) for file in _bins(metadata)]
        return [WorkUnit(self, part, part.path, part.size) for part in parts], []

    def documents(self, part: TatmPart, report: Report, tokenizer: Tokenizer | None) -> Iterator[Document]:
        """Yield the documents of a file. Zeros at its end are padding, counted in ``report`` as padding_tokens. Raises
        UserError when the documents end with another id than those of ``tokenizer``."""
        assert tokenizer is not None
        end = end_of(part.folder / TOKENIZER, part.tokenizer)
        if end != tokenizer.end_id:
            raise UserError(
                f"{part.path}: its documents end with id {end}, those of the run's tokenizer "
                f"{'do not end' if tokenizer.end_id == NO_END else f'with {tokenizer.end_id}'}; "
                "set `tokenizer` to the one that the dataset was made with, or the `end_id` of kind ids to that"
            )
        tokens = raw_file(part.path, part.size, part.dtype)
        stop = _count_content(tokens, end)
        report.dropped["padding_tokens"] += tokens.count - stop
        return cut_at(tokens, end, report, stop=stop)


def _metadata_file(source: TatmSource, where: str) -> Path:
    """Return the file that describes the dataset. Raises UserError when there is none."""
    path = local_path(source.path)
    if path.is_file():
        return path
    file = next((path / name for name in METADATA if (path / name).is_file()), None)
    if file is None:
        raise UserError(f"{where}.path: {source.path} holds no {METADATA[0]} or .yaml; name a dataset of tatm")
    return file


def end_of(tokenizer: Path, name: str) -> int:
    """Return the id that ends a document: by the tokenizer's file, or 1 if the tokenizer is a T5. Raises UserError."""
    if tokenizer.is_file():
        from quintet.tokenize.huggingface import huggingface_tokenizer

        return huggingface_tokenizer(str(tokenizer)).end_id
    if "t5" in name.lower():
        return T5_END
    raise UserError(
        f"{tokenizer}: does not exist, and the id that ends a document is not known without it; put the file "
        f"of the tokenizer {name!r} there"
    )


def _count_content(tokens: TokenFile, end: int) -> int:
    """Return the number of tokens before the zeros at the end; if 0 ends a document, the first of these counts too."""
    for start in reversed(range(0, tokens.count, SLICE)):
        used = np.flatnonzero(tokens.read(start, min(start + SLICE, tokens.count)))
        if used.size:
            stop = start + int(used[-1]) + 1
            return min(stop + 1, tokens.count) if end == 0 else stop
    return 0


def _bins(metadata: Path) -> list[File]:
    info = _info(metadata)
    prefix = Path(str(info.get("file_prefix", "")))
    folder = prefix.parent if prefix.is_absolute() and _numbered(prefix.parent, prefix.name) else metadata.parent
    numbered = _numbered(folder, prefix.name)
    if not numbered:
        raise UserError(f"{metadata}: there is no file {folder / prefix.name}_0.bin; put the files beside the metadata")
    return [_file(path) for _, path in sorted(numbered.items())]


def _numbered(folder: Path, prefix: str) -> dict[int, Path]:
    """Return the files of ids in ``folder``, by their numbers."""
    pattern = re.compile(re.escape(prefix) + r"_(0|[1-9][0-9]*)\.bin")  # so that no two files have one number
    if not folder.is_dir():
        return {}
    return {int(match[1]): file for file in folder.iterdir() if (match := pattern.fullmatch(file.name))}


def _info(metadata: Path) -> dict[str, Any]:
    """Return the metadata on the tokens. Raises UserError unless they describe a tokenized dataset."""
    try:
        text = metadata.read_text(encoding="utf-8")
        if metadata.suffix == ".json":
            content = json.loads(text)
        else:
            import yaml

            content = yaml.safe_load(text)
    except Exception as error:  # the YAML library has its own kind of error
        raise UserError(f"{metadata}: cannot be read ({one_line(error)}); restore it") from None
    info = content.get("tokenized_info") if is_mapping(content) else None
    if not is_mapping(info) or not info.get("file_prefix"):
        raise UserError(f"{metadata}: says nothing of tokens (tokenized_info.file_prefix); tokenise the dataset first")
    if info.get("dtype", "uint16") not in _DTYPES:
        raise UserError(f"{metadata}: dtype {info['dtype']!r} is no type of ids; it can be {', '.join(_DTYPES)}")
    return info


def _file(path: Path) -> File:
    return described(path, path.name, named=True)
