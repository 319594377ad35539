"""Batches as a function of the step, and a thread that computes them ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from quintet.config.documents import IGNORED
from quintet.data.mixture import Order, apportion
from quintet.data.samples import Samples

PADDING = -1  # the number of no document


@dataclass(frozen=True)
class Batch:
    """Samples: ``inputs`` and ``targets`` are int64 [samples, sequence_length], ``IGNORED`` for targets without loss.

    ``sources`` int64 [samples] counts the source of each sample; ``valid`` is the number of targets with a loss here.
    ``documents`` int64, of the shape of the inputs, numbers the document of each input from 0 on, -1 for padding; None
    where nobody asks, and each sample is one document. ``prompts`` bool, of that shape too, says which inputs stand in
    their document before its first token with a loss; None where none does.
    """

    inputs: np.ndarray
    targets: np.ndarray
    sources: np.ndarray
    valid: int
    documents: np.ndarray | None = None
    prompts: np.ndarray | None = None


@dataclass(frozen=True)
class TrainData:
    """What a run trains on. ``labels`` name the sources that ``Batch.sources`` counts."""

    streams: tuple[Samples, ...]
    labels: tuple[str, ...]
    order: Order
    batch_size: int
    sequence_length: int

    @property
    def tokens(self) -> int:
        """Tokens of all sources, without what is held out."""
        return sum(stream.tokens for stream in self.streams)

    @property
    def epoch_samples(self) -> int:
        """Samples of an epoch: those of all sources, repeated as the run says; with weights not each of them once."""
        return self.order.epoch_samples

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        """The batch of ``step``, counted from 0: a pure function.

        With ``world_size`` > 1, only the consecutive part of it that belongs to ``rank``; the parts of all ranks, one
        behind the other, are the whole batch, and differ by at most one sample in size.
        """
        assert step >= 0, step
        assert 0 <= rank < world_size, (rank, world_size)
        first = step * self.batch_size
        positions = np.arange(
            first + rank * self.batch_size // world_size,
            first + (rank + 1) * self.batch_size // world_size,
            dtype=np.int64,
        )
        return _collate(self.streams, *self.order.at(positions), self.sequence_length)


@dataclass(frozen=True)
class ValidationData:
    """What a run validates on. ``labels`` name the sources that ``Batch.sources`` counts; ``each``: a number of samples
    is asked of every source by itself, and not of all together."""

    streams: tuple[Samples, ...]
    labels: tuple[str, ...]
    sequence_length: int
    each: bool = False

    @property
    def tokens(self) -> int:
        """Tokens held out from all sources."""
        return sum(stream.tokens for stream in self.streams)

    @property
    def samples(self) -> int:
        """Samples of all sources."""
        return sum(self._counts)

    def batches(self, batch_size: int, samples: int | None) -> Iterator[Batch]:
        """``samples`` samples, all of them when None, in batches of ``batch_size``; the last one may be smaller.

        Always the same: each source has its share, at least one if there is enough, spread evenly over its stream.
        """
        sources, chosen = self._chosen(self.samples if samples is None else samples)
        for start in range(0, len(sources), batch_size):
            part = slice(start, start + batch_size)
            yield _collate(self.streams, sources[part], chosen[part], self.sequence_length)

    @property
    def _counts(self) -> list[int]:
        return [stream.count for stream in self.streams]

    def _chosen(self, samples: int) -> tuple[np.ndarray, np.ndarray]:
        """Sources and their samples, int64 [samples] each."""
        filled = [source for source, count in enumerate(self._counts) if count]
        counts = [self._counts[source] for source in filled]
        if self.each:
            shares = [min(samples, count) for count in counts]
        else:
            samples = min(samples, self.samples)
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


def _collate(streams: Sequence[Samples], sources: np.ndarray, samples: np.ndarray, length: int) -> Batch:
    """Samples side by side; shorter ones have zeros behind them, which no target needs."""
    inputs = np.zeros((len(sources), length), dtype=np.int64)
    targets = np.full_like(inputs, IGNORED)
    numbers, prompts = np.full_like(inputs, PADDING), np.zeros(inputs.shape, dtype=bool)
    for row, (source, index) in enumerate(zip(sources.tolist(), samples.tolist(), strict=True)):
        sample = streams[source].sample(index)
        size = sample.ids.size - 1
        inputs[row, :size], targets[row, :size] = sample.ids[:-1], sample.ids[1:]
        if sample.loss_mask is not None:
            targets[row, :size][~sample.loss_mask[1:]] = IGNORED
        numbers[row, :size] = 0 if sample.documents is None else sample.documents[:-1]
        if sample.prompts is not None:
            prompts[row, :size] = sample.prompts[:-1]
    valid = int((targets != IGNORED).sum())
    return Batch(inputs, targets, sources, valid, numbers, prompts if prompts.any() else None)
