"""Batches as a function of the step, and a thread that computes them ahead.

Sample i of a stream is its tokens i·T … i·T + T: inputs are the first T of these, targets the last T. Samples overlap
by one token, so that every token but a stream's first is a target once an epoch, as far as whole samples reach.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from quintet.data.mixture import Order, apportion

IGNORED = -100


class Stream(Protocol):
    """A sequence of tokens that can be read anywhere."""

    @property
    def length(self) -> int: ...
    def read(self, position: int, length: int) -> np.ndarray: ...


@dataclass(frozen=True)
class Batch:
    """Samples: ``inputs`` and ``targets`` are int64 [samples, sequence_length], with -100 where a target has no loss.

    ``sources`` int64 [samples] counts the source of each sample; ``valid`` is the number of targets with a loss here.
    """

    inputs: np.ndarray
    targets: np.ndarray
    sources: np.ndarray
    valid: int


def sample_count(length: int, sequence_length: int) -> int:
    """Samples in a stream of ``length`` tokens."""
    return max(0, (length - 1) // sequence_length)


@dataclass(frozen=True)
class TrainData:
    """What a run trains on. ``labels`` name the sources that ``Batch.sources`` counts."""

    streams: tuple[Stream, ...]
    labels: tuple[str, ...]
    order: Order
    batch_size: int
    sequence_length: int

    @property
    def tokens(self) -> int:
        """Tokens of all sources, without what is held out."""
        return sum(stream.length for stream in self.streams)

    @property
    def epoch_samples(self) -> int:
        """Samples of all sources; with weights an epoch has as many, though not each of them once."""
        return sum(self.order.counts)

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """The batch of ``step``, counted from 0: a pure function.

        With ``world`` > 1, only the consecutive part of it that belongs to ``rank``; the parts of all ranks, one behind
        the other, are the whole batch, and differ by at most one sample in size.
        """
        assert step >= 0, step
        assert 0 <= rank < world, (rank, world)
        first = step * self.batch_size
        positions = np.arange(
            first + rank * self.batch_size // world, first + (rank + 1) * self.batch_size // world, dtype=np.int64
        )
        return _collate(self.streams, *self.order.at(positions), self.sequence_length)


@dataclass(frozen=True)
class ValidationData:
    """What a run validates on. ``labels`` name the sources that ``Batch.sources`` counts."""

    streams: tuple[Stream, ...]
    labels: tuple[str, ...]
    sequence_length: int

    @property
    def tokens(self) -> int:
        """Tokens held out from all sources."""
        return sum(stream.length for stream in self.streams)

    @property
    def samples(self) -> int:
        """Samples of all sources."""
        return sum(self._counts)

    def batches(self, batch_size: int, samples: int | None) -> Iterator[Batch]:
        """``samples`` samples, all of them when None, in batches of ``batch_size``; the last one may be smaller.

        Always the same: each source has its share, at least one if there is enough, spread evenly over its stream.
        """
        sources, chosen = self._chosen(self.samples if samples is None else min(samples, self.samples))
        for start in range(0, len(sources), batch_size):
            part = slice(start, start + batch_size)
            yield _collate(self.streams, sources[part], chosen[part], self.sequence_length)

    @property
    def _counts(self) -> list[int]:
        return [sample_count(stream.length, self.sequence_length) for stream in self.streams]

    def _chosen(self, samples: int) -> tuple[np.ndarray, np.ndarray]:
        """Sources and their samples, int64 [samples] each."""
        filled = [source for source, count in enumerate(self._counts) if count]
        counts = [self._counts[source] for source in filled]
        shares = apportion(counts, samples, least=int(samples >= len(filled)))
        chosen = [np.arange(share) * count // max(share, 1) for share, count in zip(shares, counts, strict=True)]
        return np.repeat(filled, shares), np.concatenate(chosen)


def prefetch(batch_of: Callable[[int], Batch], first: int, last: int, ahead: int = 2) -> Generator[Batch, None, None]:
    """``batch_of(first)`` … ``batch_of(last - 1)``, of which a thread computes ``ahead`` before they are asked for.

    An error in ``batch_of`` is raised where its batch is asked for. When the generator is closed or ends, so is the
    thread, after the batch that it is computing.
    """
    pending: deque[Future[Batch]] = deque()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches") as thread:
        try:
            for step in range(first, min(first + ahead, last)):
                pending.append(thread.submit(batch_of, step))
            for following in range(first + ahead, last + ahead):
                batch = pending.popleft().result()
                if following < last:
                    pending.append(thread.submit(batch_of, following))
                yield batch
        finally:
            for future in pending:
                future.cancel()


def _collate(streams: Sequence[Stream], sources: np.ndarray, samples: np.ndarray, length: int) -> Batch:
    windows = np.empty((len(sources), length + 1), dtype=np.int64)
    for row, (source, sample) in enumerate(zip(sources.tolist(), samples.tolist(), strict=True)):
        windows[row] = streams[source].read(sample * length, length + 1)
    targets = np.ascontiguousarray(windows[:, 1:])
    return Batch(np.ascontiguousarray(windows[:, :-1]), targets, sources, int((targets != IGNORED).sum()))
