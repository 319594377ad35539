"""Packing of documents into samples by tables of the pieces of each sample, other than by cutting one stream.

A sample has room for ``sequence_length`` + 1 tokens, all of which but the first are targets. The table for a store, a
split and a packing is computed once, kept on disk and mapped into memory, so that any sample is found at once.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from quintet.config.packing import BestFitPackingConfig, ChunkPackingConfig, DocumentPackingConfig, TablePackingConfig
from quintet.data.manifest import write_json
from quintet.data.samples import LeftOut, Sample, Windows
from quintet.data.split import TokenRanges, TokenStream
from quintet.data.store import ArrayWriter, TokenStore
from quintet.data.verify import ArrayCheck, find_damage
from quintet.errors import UserError, one_line
from quintet.files import from_json, new_folder
from quintet.tokenize import Tokenizer
from quintet.tokenize.base import NO_END, digest
from quintet.tokenize.bounds import begin_ids, character_starts, clean_starts, text_bounds

_RECIPE = "4"  # raise it when the same documents are packed in another way than before, or stored in another form
_LOOK_BACK = 64  # tokens among which a cut at a word is looked for
_BLOCK = 1 << 16  # documents that are packed together, so that reads are local and memory is bounded
_ARRAYS = ("rows", "starts", "stops")
_LEFT_OUT, _CHECKSUMS = "left_out", "checksums.json"
_ITEM = np.dtype("<i8")


@dataclass(frozen=True)
class PieceTable:
    """Pieces of a store, tokens ``starts`` to ``stops``, int64 [pieces] each. Sample i has the pieces ``rows[i]`` to
    ``rows[i + 1]``: int64 [samples + 1]."""

    rows: np.ndarray
    starts: np.ndarray
    stops: np.ndarray

    @property
    def count(self) -> int:
        """Samples."""
        return len(self.rows) - 1

    @cached_property
    def tokens(self) -> int:
        """Tokens of all samples; a token in two samples counts twice."""
        return int((self.stops - self.starts).sum())


@dataclass(frozen=True)
class Packed:
    """The samples of ``table``, from the ``ranges`` of ``store``. With ``borders`` each sample begins with the first
    ids of these and ends with the last."""

    store: TokenStore
    ranges: TokenRanges
    table: PieceTable
    sequence_length: int
    borders: tuple[tuple[int, ...], int] | None
    left_out: LeftOut

    @property
    def tokens(self) -> int:
        return self.table.tokens

    @property
    def count(self) -> int:
        return self.table.count

    @property
    def waste(self) -> float:
        """Share of the room for tokens that is empty."""
        room = self.count * (self.sequence_length + 1)
        used = self.tokens + ((len(self.borders[0]) + 1) * self.count if self.borders else 0)
        return 1 - used / room if room else 0.0

    def sample(self, index: int) -> Sample:
        first, last = int(self.table.rows[index]), int(self.table.rows[index + 1])
        bounds = list(zip(self.table.starts[first:last].tolist(), self.table.stops[first:last].tolist(), strict=True))
        parts = [self.store.tokens(start, stop) for start, stop in bounds]
        numbers = np.repeat(np.arange(len(parts)), [part.size for part in parts])
        ids, mask = np.concatenate(parts), np.concatenate([self._loss_mask(start, stop) for start, stop in bounds])
        known = [part for start, stop in bounds if (part := self.store.prompts(start, stop)) is not None]
        prompts = np.concatenate(known) if known else np.zeros(ids.size, dtype=bool)
        if self.borders is not None:
            begin, end = self.borders
            ids = np.concatenate([begin, ids, [end]])
            mask = np.concatenate([np.zeros(len(begin), dtype=bool), mask, [mask.any()]])
            numbers = np.concatenate([numbers[:1].repeat(len(begin)), numbers, numbers[-1:]])
            prompts = np.concatenate([prompts[:1].repeat(len(begin)), prompts, [False]])
        return Sample(ids, mask, numbers, prompts)

    def _loss_mask(self, start: int, stop: int) -> np.ndarray:
        mask = self.store.loss_mask(start, stop)
        return np.ones(stop - start, dtype=bool) if mask is None else mask


def pack(
    store: TokenStore,
    ranges: TokenRanges,
    config: TablePackingConfig,
    sequence_length: int,
    tokenizer: Tokenizer,
    cache: Path,
) -> Packed:
    """Return the samples that ``config``, a packing other than the stream, makes of the documents in ``ranges`` of
    ``store``.

    Of a document that a range cuts, the part inside is used. The table is kept in ``cache``. Samples without a target,
    because they have a single token or no loss, are dropped and counted.
    """
    begin = text_bounds(tokenizer, around_samples=config.add_bos_eos).begin
    begin_and_end = (begin, tokenizer.end_id) if config.add_bos_eos else None
    facts = (config.model_dump_json(), str(sequence_length), tokenizer.fingerprint)
    where = digest(ranges.starts.tobytes(), ranges.stops.tobytes())
    folder = cache / "packings" / digest(_RECIPE, store.fingerprint, where, *facts)
    if not folder.is_dir():
        room = sequence_length + 1 - (len(begin) + 1 if begin_and_end else 0)
        end_id = NO_END if config.ends_kept else tokenizer.end_id
        starts, stops = document_spans(store, ranges, end_id, begin_ids(tokenizer) if begin_and_end else ())
        empty = _documents_in(store, ranges) - len(starts)
        table = TABLES[config.kind](config, (starts, stops), room, store, tokenizer)
        used = _with_target(store, table, first=int(begin_and_end is None))
        short = np.maximum(stops - starts - room, 0) if isinstance(config, DocumentPackingConfig) else starts * 0
        counts = (table.count - used.count, table.count, int(short.sum()), int((short > 0).sum()), empty)
        _write(folder, {name: getattr(used, name) for name in _ARRAYS} | {_LEFT_OUT: np.array(counts)})
    kept = _read(folder)
    table, left_out = PieceTable(*(kept[name] for name in _ARRAYS)), LeftOut(*kept[_LEFT_OUT].tolist())
    return Packed(store, ranges, table, sequence_length, begin_and_end, left_out)


def cut_stream(stream: TokenStream, sequence_length: int, predict_next: bool, cache: Path) -> Windows:
    """Return the samples of the packing ``stream``. Those without a target are counted once; the count is kept in
    ``cache``."""
    windows = Windows(stream, sequence_length, predict_next)
    store = stream.store
    if not store.masked:
        return windows
    where = digest(stream.ranges.starts.tobytes(), stream.ranges.stops.tobytes())
    facts = digest(_RECIPE, store.fingerprint, where, str(sequence_length), str(predict_next))
    folder = cache / "packings" / facts
    if not folder.is_dir():
        _write(folder, {_LEFT_OUT: np.array([windows.count_without_target()])})
    return replace(windows, without_target=int(_read(folder)[_LEFT_OUT][0]))


def document_spans(
    store: TokenStore, ranges: TokenRanges, end_id: int, begin: tuple[int, ...] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """Return the first token of each document in ``ranges``, and the one after its last: int64 [documents] each.

    The spans do not include ``end_id`` at the end of a document, unless it is ``NO_END``, nor the ids ``begin`` at its
    beginning. Documents that have nothing else are dropped.
    """
    starts, stops = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for start, stop in zip(ranges.starts.tolist(), ranges.stops.tolist(), strict=True):
        first, last = store.document_at(start), store.document_at(stop - 1) + 1
        documents = np.arange(first, last)
        bounds = store.document_bounds(documents)
        ended = 0 if end_id == NO_END else (bounds[1] <= stop) & store.end_with(documents, end_id)
        starts.append(np.maximum(bounds[0] + len(begin) * _begin_with(store, bounds, begin), start))
        stops.append(np.minimum(bounds[1] - ended, stop))
    all_starts, all_stops = np.concatenate(starts), np.concatenate(stops)
    kept = all_starts < all_stops
    return all_starts[kept], all_stops[kept]


def _documents_in(store: TokenStore, ranges: TokenRanges) -> int:
    bounds = zip(ranges.starts.tolist(), ranges.stops.tolist(), strict=True)
    return sum(store.document_at(stop - 1) + 1 - store.document_at(start) for start, stop in bounds)


def _begin_with(store: TokenStore, bounds: tuple[np.ndarray, np.ndarray], begin: tuple[int, ...]) -> np.ndarray:
    """Return True for documents with these ``bounds`` that begin with the ids ``begin``: bool [documents]."""
    matches = bounds[1] - bounds[0] >= len(begin)
    for offset, token in enumerate(begin):
        matches[matches] = store.tokens_at(bounds[0][matches] + offset) == token
    return matches


Spans = tuple[np.ndarray, np.ndarray]
"""The first token of each document and the one after its last: int64 [documents] each."""


def _documents(
    config: DocumentPackingConfig, spans: Spans, room: int, store: TokenStore, tokenizer: Tokenizer
) -> PieceTable:
    starts, stops = spans
    return PieceTable(np.arange(len(starts) + 1), starts, np.minimum(stops, starts + room))


def _chunks(config: ChunkPackingConfig, spans: Spans, room: int, store: TokenStore, tokenizer: Tokenizer) -> PieceTable:
    cut = _joined_chunks if config.join else _separate_chunks
    return cut(spans, room, config.overlap, _Borders(store, tokenizer))


def _fitted_documents(
    config: BestFitPackingConfig, spans: Spans, room: int, store: TokenStore, tokenizer: Tokenizer
) -> PieceTable:
    return _best_fit(*spans, room)


TABLES: dict[str, Callable[[Any, Spans, int, TokenStore, Tokenizer], PieceTable]] = {
    "chunks": _chunks,
    "document": _documents,
    "best_fit": _fitted_documents,
}
"""For each kind of packing that needs a table of pieces, the function that makes it. It gets the packing's config, the
documents, the tokens for which a sample has room, the store and its tokenizer."""


class _Borders:
    """The choice of cuts in a text: before a token that begins a word, or else a character."""

    def __init__(self, store: TokenStore, tokenizer: Tokenizer) -> None:
        self._store = store
        self._kinds = (clean_starts(tokenizer), character_starts(tokenizer))
        self.anywhere = all(clean.all() for clean in self._kinds)

    def last(self, stops: np.ndarray, starts: np.ndarray, first: np.ndarray) -> int:
        """Return the index of the best of several cuts, int64 [cuts] each. With cut i a chunk ends before the token
        ``stops[i]``, and the next chunk begins with the token ``starts[i]``, the first of a document if ``first[i]``.

        The best cuts have both tokens at the beginning of a word; the next best have the start of the next chunk, which
        a reader sees, there; then the same with characters. The last of equally good cuts wins.
        """
        for clean in self._kinds:
            begins = clean[self._store.tokens_at(starts)] | first
            for good in (begins & clean[self._store.tokens_at(stops)], begins):
                if good.any():
                    return int(np.flatnonzero(good)[-1])
        return len(stops) - 1


def _near(earliest: int, position: int) -> np.ndarray:
    """Return the positions up to ``position``, from ``earliest`` on, where a cut is looked for: int64 [positions]."""
    return np.arange(max(earliest, position - _LOOK_BACK), position + 1)


def _separate_chunks(spans: Spans, room: int, overlap: int, borders: _Borders) -> PieceTable:
    """Cut each document into pieces of at most ``room`` tokens, of which neighbours share ``overlap`` tokens."""
    starts: list[int] = []
    stops: list[int] = []
    for first, last in zip(*(span.tolist() for span in spans), strict=True):
        start = first
        while True:
            stop = min(last, start + room)
            if stop < last and not borders.anywhere:
                near = _near(start + overlap + 1, stop)
                stop = int(near[borders.last(near, near - overlap, near - overlap == first)])
            starts.append(start)
            stops.append(stop)
            if stop == last:
                break
            start = stop - overlap
    return PieceTable(np.arange(len(starts) + 1), np.array(starts, np.int64), np.array(stops, np.int64))


def _joined_chunks(spans: Spans, room: int, overlap: int, borders: _Borders) -> PieceTable:
    """Cut all documents, one after the other, into pieces of at most ``room`` tokens, of which neighbours share
    ``overlap`` tokens."""
    begins, lengths = spans[0], spans[1] - spans[0]
    ends = np.cumsum(lengths)
    offsets = ends - lengths  # the tokens before each document in the joined text
    total = int(ends[-1]) if ends.size else 0

    def cut(earliest: int, position: int) -> int:
        document = int(np.searchsorted(ends, position, side="right"))
        if borders.anywhere or position == offsets[document]:
            return position  # between two documents
        near = _near(max(earliest, int(offsets[document])), position)
        starts = near - overlap
        inside = np.searchsorted(ends, starts, side="right")
        shift = begins - offsets
        return int(near[borders.last(near + shift[document], starts + shift[inside], starts == offsets[inside])])

    cuts: list[tuple[int, int]] = []
    start = 0
    while start < total:
        stop = total if total - start <= room else cut(start + overlap + 1, start + room)
        cuts.append((start, stop))
        if stop == total:
            break
        start = stop - overlap
    bounds = np.array(cuts, dtype=np.int64).reshape(-1, 2)
    return _pieces(bounds[:, 0], bounds[:, 1], begins, lengths, ends)


def _pieces(
    firsts: np.ndarray, lasts: np.ndarray, begins: np.ndarray, lengths: np.ndarray, ends: np.ndarray
) -> PieceTable:
    """Return the parts of documents between ``firsts`` and ``lasts``, positions in the joined text: int64 [samples]."""
    first_document = np.searchsorted(ends, firsts, side="right")
    last_document = np.searchsorted(ends, lasts, side="left")
    counts = last_document - first_document + 1
    rows = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    row = np.repeat(np.arange(len(firsts)), counts)
    document = np.arange(int(rows[-1])) - rows[row] + first_document[row]
    offsets = ends - lengths
    starts = np.maximum(firsts[row], offsets[document]) - offsets[document] + begins[document]
    stops = np.minimum(lasts[row], ends[document]) - offsets[document] + begins[document]
    return PieceTable(rows, starts, stops)


def _best_fit(starts: np.ndarray, stops: np.ndarray, room: int) -> PieceTable:
    """Put each document, the longest first, into the fullest sample that has room for it (best-fit decreasing; Ding et
    al. 2024). A document longer than a sample fills whole samples, and its rest is put like a document."""
    rows: list[list[tuple[int, int]]] = []
    for block in range(0, len(starts), _BLOCK):
        part = slice(block, block + _BLOCK)
        rows += _fitted(starts[part].tolist(), stops[part].tolist(), room)
    pieces = [piece for row in rows for piece in row]
    counts = np.array([len(row) for row in rows], dtype=np.int64)
    bounds = np.array(pieces, dtype=np.int64).reshape(-1, 2)
    return PieceTable(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), bounds[:, 0], bounds[:, 1])


def _fitted(starts: list[int], stops: list[int], room: int) -> list[list[tuple[int, int]]]:
    rows: list[list[tuple[int, int]]] = []
    rests: list[tuple[int, int]] = []
    for start, stop in zip(starts, stops, strict=True):
        while stop - start > room:
            rows.append([(start, start + room)])
            start += room
        rests.append((start, stop))
    free: list[tuple[int, int]] = []  # (room left, row), sorted
    for start, stop in sorted(rests, key=lambda piece: (piece[0] - piece[1], piece[0])):
        size = stop - start
        index = bisect_left(free, (size, -1))
        if index == len(free):
            rows.append([(start, stop)])
            left, row = room - size, len(rows) - 1
        else:
            left, row = free.pop(index)
            rows[row].append((start, stop))
            left -= size
        if left:
            insort(free, (left, row))
    return rows


def _with_target(store: TokenStore, table: PieceTable, first: int) -> PieceTable:
    """Return ``table`` without samples that have no loss; token ``first`` of a sample is its first target."""
    if store.masked:
        used = np.array([_has_target(store, table, row, first) for row in range(table.count)], dtype=bool)
    else:
        sizes = np.diff(np.append(0, np.cumsum(table.stops - table.starts))[table.rows])
        used = sizes > first
    counts = np.diff(table.rows)
    kept = np.repeat(used, counts)
    rows = np.concatenate([[0], np.cumsum(counts[used])]).astype(np.int64)
    return PieceTable(rows, table.starts[kept], table.stops[kept])


def _has_target(store: TokenStore, table: PieceTable, row: int, first: int) -> bool:
    pieces = range(int(table.rows[row]), int(table.rows[row + 1]))
    masks = [store.loss_mask(int(table.starts[piece]), int(table.stops[piece])) for piece in pieces]
    return any(mask is not None and mask[0 if index else first :].any() for index, mask in enumerate(masks))


def _write(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write ``arrays``, int64 [...] each, with their lengths and checksums."""
    with new_folder(folder, shared=True) as unfinished:
        facts: dict[str, list[int]] = {}
        for name, values in arrays.items():
            writer = ArrayWriter(unfinished / f"{name}.npy", _ITEM)
            writer.append(values)
            writer.close()
            facts[name] = [values.size, writer.checksum]
        write_json(unfinished / _CHECKSUMS, facts)


def _read(folder: Path) -> dict[str, np.ndarray]:
    """Return the arrays in ``folder``, int64 [...] each, memory-mapped. Raises UserError if they are damaged."""
    facts: dict[str, list[int]] = {}
    try:
        facts = from_json((folder / _CHECKSUMS).read_bytes())
        checks = {f"{name}.npy": ArrayCheck(_ITEM.str, *fact) for name, fact in facts.items()}
        problems = find_damage(folder, checks)
    except (OSError, ValueError, AttributeError, TypeError) as error:
        problems = [f"{folder / _CHECKSUMS}: cannot be read ({one_line(error)})"]
    if problems:
        raise UserError(*(f"{problem}: delete its folder and run again" for problem in problems))
    return {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in facts}
