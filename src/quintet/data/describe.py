"""A report on a token store: its figures and the beginnings of a few documents. Nothing is tokenised."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from quintet.config.schema import RunConfig
from quintet.data.build import TOKENIZER
from quintet.data.manifest import dropped_lines, left_out_files
from quintet.data.packing import Packed
from quintet.data.permutation import Permutation
from quintet.data.prepare import Prepared, find_prepared
from quintet.data.store import TokenStore
from quintet.errors import UserError
from quintet.piano.context import COMPOSERS, DATASETS
from quintet.piano.notes import HEADER, NUMBERS, PER_NOTE, from_numbers, pitch_name
from quintet.tokenize import Tokenizer, load_tokenizer
from quintet.tokenize.base import NO_END
from quintet.tokenize.simple import IdTokenizer

PERCENTS = (0, 1, 10, 25, 50, 75, 90, 99, 100)
_MEASURED = 1 << 22  # documents whose lengths are read, evenly chosen if there are more
_SHOWN_TOKENS = 96
_BAR = 40
_EIGHTHS = " ▏▎▍▌▋▊▉█"


@dataclass(frozen=True)
class Bin:
    """The number of ``documents`` with ``first`` to ``last`` tokens, their end included."""

    first: int
    last: int
    documents: int


@dataclass(frozen=True)
class StoreReport:
    """The figures of one store, without the documents that are not to be used.

    ``bytes`` and ``tokens_per_byte`` are of all that is stored; ``bytes`` is the size of the text in UTF-8.
    ``percentiles`` are lengths in tokens by the percentage of documents that are at most as long; they and the
    ``histogram`` are of ``measured`` documents. ``dropped`` counts documents by reason, and ``left_out`` unreadable
    files. ``samples`` are the beginnings of a few documents. For a store of a run, ``held_out`` is the share of its
    tokens to validate on, ``waste`` the share of the room in its training samples that is empty, if packing leaves any,
    and ``packing`` describes what is in no sample.
    """

    label: str
    folder: str
    documents: int
    tokens: int
    bytes: int
    tokens_per_byte: float | None
    measured: int
    percentiles: dict[str, int]
    histogram: tuple[Bin, ...]
    dropped: dict[str, int]
    left_out: int
    left_out_files: tuple[str, ...]
    samples: tuple[str, ...]
    held_out: float | None = None
    waste: float | None = None
    packing: tuple[str, ...] = ()

    def lines(self) -> Iterator[str]:
        """Yield the report as text."""
        yield f"{self.label} ({self.folder})"
        yield f"  {self.documents:,} documents, {self.tokens:,} tokens"
        if self.tokens_per_byte is not None:
            yield f"  {self.bytes:,} bytes of text, {self.tokens_per_byte:.3f} tokens a byte"
        if self.held_out is not None:
            yield f"  held out: {self.held_out:.2%} of the tokens"
        if self.waste is not None:
            yield f"  packing: {self.waste:.2%} of the room in the samples is empty"
        yield from (f"  {line}" for line in self.packing)
        yield from (f"  {line}" for line in dropped_lines(self.dropped, self.documents))
        yield from (f"  {line}" for line in left_out_files(self.left_out, self.left_out_files))
        if self.histogram:
            of = "" if self.measured == self.documents else f", of {self.measured:,} evenly chosen ones"
            yield f"  tokens of a document, its end included{of}:"
            yield from (f"    {line}" for line in draw(self.histogram))
            yield "    " + ", ".join(f"{percent}%: {length:,}" for percent, length in self.percentiles.items())
        yield from (f"  | {document}" for document in self.samples)


def report_run(config: RunConfig, seed: int, shown: int = 3) -> list[StoreReport]:
    """Return a report on each store of a run with the beginnings of ``shown`` documents, drawn by ``seed``, in the
    order of its sources, validation sources last.

    Raises UserError when they are not prepared.
    """
    prepared = find_prepared(config)
    if prepared is None:
        raise UserError(
            f"{config.name}: its data is not prepared, and this tokenises nothing; run quintet prepare first"
        )
    labels = prepared.train.labels
    if config.data.validation_sources:
        assert prepared.validation is not None
        labels += prepared.validation.labels
    return [
        replace(_report(store, prepared.tokenizer, label, seed, shown), **_use_of(config, prepared, index))
        for index, (store, label) in enumerate(zip(prepared.stores, labels, strict=True))
    ]


def report_store(folder: Path, seed: int, shown: int = 3) -> StoreReport:
    """Return a report on the store in ``folder``, as `report_run` does. Raises UserError when there is none."""
    store = TokenStore.open(folder)
    return _report(store, load_tokenizer(folder / TOKENIZER), store.manifest.description, seed, shown)


def draw(bins: tuple[Bin, ...]) -> Iterator[str]:
    """Yield a line for each of ``bins``, with a bar in proportion to the largest."""
    most = max(row.documents for row in bins)
    total = sum(row.documents for row in bins)
    width = len(f"{bins[-1].last:,}")
    for row in bins:
        eighths = round(row.documents / most * _BAR * 8)
        bar = "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
        bar = bar or ("▏" if row.documents else "")
        share = f"{row.documents:,} ({row.documents / total:.1%})"
        yield f"{row.first:>{width},} – {row.last:>{width},} {bar:<{_BAR}} {share}"


def log_bins(lengths: np.ndarray) -> tuple[Bin, ...]:
    """Return the counts of ``lengths``, int64 [documents] from 1 on, between powers of two, shortest to longest.

    >>> log_bins(np.array([1, 5, 6, 8]))[-1]
    Bin(first=8, last=15, documents=1)
    """
    if not lengths.size:
        return ()
    counts = np.bincount(np.frexp(lengths.astype(np.float64))[1] - 1)
    first = int(np.flatnonzero(counts)[0])
    return tuple(Bin(1 << power, (2 << power) - 1, int(counts[power])) for power in range(first, counts.size))


def _report(store: TokenStore, tokenizer: Tokenizer, label: str, seed: int, shown: int) -> StoreReport:
    facts = store.manifest
    lengths = _lengths(store)
    percentiles: list[float] = np.percentile(lengths, PERCENTS, method="inverted_cdf").tolist() if lengths.size else []
    return StoreReport(
        label=label,
        folder=str(store.folder),
        documents=store.document_count - facts.unused.documents,
        tokens=store.token_count - facts.unused.tokens,
        bytes=facts.bytes,
        tokens_per_byte=facts.tokens / facts.bytes if facts.bytes else None,
        measured=lengths.size,
        percentiles={str(percent): int(length) for percent, length in zip(PERCENTS, percentiles, strict=False)},
        histogram=log_bins(lengths),
        dropped=facts.dropped,
        left_out=facts.left_out,
        left_out_files=facts.left_out_files,
        samples=tuple(_beginnings(store, tokenizer, seed, shown)),
    )


def _use_of(config: RunConfig, prepared: Prepared, index: int) -> dict[str, Any]:
    """Return the fields of a report on what a run does with store ``index``; none for validation sources."""
    if index >= len(config.data.sources):
        return {}
    samples, held_out = prepared.train.source_samples[index], 0
    if prepared.validation is not None and not config.data.validation_sources:
        held_out = prepared.validation.source_samples[index].tokens
    return {
        "held_out": held_out / max(samples.tokens + held_out, 1),
        "waste": samples.waste if isinstance(samples, Packed) else None,  # a stream leaves no room
        "packing": tuple(samples.left_out.lines()),
    }


def _lengths(store: TokenStore) -> np.ndarray:
    """Return the tokens of each document to be used, int64 [documents], or of evenly chosen ones of very many."""
    chosen = np.arange(min(store.document_count, _MEASURED)) * store.document_count // max(1, _MEASURED)
    if store.document_count <= _MEASURED:
        chosen = np.arange(store.document_count)
    starts, stops = store.document_bounds(np.setdiff1d(chosen, store.dropped, assume_unique=True))
    return stops - starts


def _beginnings(store: TokenStore, tokenizer: Tokenizer, seed: int, count: int) -> Iterator[str]:
    """Yield the beginnings of ``count`` documents, drawn by ``seed``, on one line each: texts, or notes."""
    if not store.document_count:
        return
    facts = store.manifest  # of a run with `tokenizer.kind: ids` the ids may be anything
    of_notes = facts.tokenizer == IdTokenizer(NUMBERS, NO_END).fingerprint and facts.tokenizer_config["kind"] != "ids"
    drawn = min(store.document_count, count + store.dropped.size)
    order = Permutation(store.document_count, seed)(np.arange(drawn))
    for document in order[~np.isin(order, store.dropped)][:count]:
        starts, stops = store.document_bounds(np.array([document]))
        start, stop = int(starts[0]), int(stops[0])
        ids = store.tokens(start, min(stop, start + _SHOWN_TOKENS))
        shown = _shown_piece(ids) if of_notes else repr(tokenizer.decode(ids))
        yield f"document {document:,}: {shown}{' …' if stop - start > _SHOWN_TOKENS else ''}"


def _shown_piece(numbers: np.ndarray) -> str:
    """Return the beginning of a piece as text: pitch, start and end in seconds, and velocity of each note."""
    dataset, composer = (int(number) for number in numbers[:HEADER])
    notes = from_numbers(numbers[HEADER : HEADER + (numbers.size - HEADER) // PER_NOTE * PER_NOTE])
    table = zip(*(getattr(notes, name).tolist() for name in ("pitch", "start", "end", "velocity")), strict=True)
    shown = [f"{pitch_name(pitch)} {start:.2f}–{end:.2f}s v{velocity}" for pitch, start, end, velocity in table]
    return f"{DATASETS[dataset]} {COMPOSERS[composer]} {', '.join(shown)}"
