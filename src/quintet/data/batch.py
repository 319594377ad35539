"""Batches as a function of the step, their prefetching, and the lowest loss that a model can reach on a batch."""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from quintet.config.documents import IGNORED
from quintet.data.mixture import Order, apportion
from quintet.data.packing import Packed, document_spans
from quintet.data.samples import Samples, Windows, document_borders
from quintet.tokenize import Tokenizer
from quintet.tokenize.bounds import begin_ids

PADDING = -1  # the document number of padding


@dataclass(frozen=True)
class Batch:
    """Samples side by side: ``inputs`` and ``targets`` are int64 [samples, sequence_length], with the target
    ``IGNORED`` for no loss.

    ``sources`` int64 [samples] is the index of each sample's source, and ``valid`` the number of targets with a loss.
    ``documents`` int64, of the shape of the inputs, numbers the document of each input from 0, -1 for padding; None
    means that each sample is one document. ``prompts`` bool, of the same shape, is True for inputs before the first
    token with a loss in their document; None if there are none.
    """

    inputs: np.ndarray
    targets: np.ndarray
    sources: np.ndarray
    valid: int
    documents: np.ndarray | None = None
    prompts: np.ndarray | None = None


@dataclass(frozen=True)
class TrainData:
    """The data that a run trains on. ``labels`` name the sources, by the index in ``Batch.sources``."""

    source_samples: tuple[Samples, ...]
    labels: tuple[str, ...]
    order: Order
    batch_size: int
    sequence_length: int

    @property
    def tokens(self) -> int:
        """Tokens of all sources, without held-out ones."""
        return sum(samples.tokens for samples in self.source_samples)

    @property
    def epoch_samples(self) -> int:
        """Samples of an epoch: those of all sources, repeated as the run says; with weights an epoch need not have each
        of them."""
        return self.order.epoch_samples

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        """Return the batch of ``step``, counted from 0: a pure function.

        With ``world_size`` > 1, return only the consecutive part of ``rank``. The parts of all ranks, in their order,
        are the whole batch; their sizes differ by at most one sample.
        """
        assert step >= 0, step
        assert 0 <= rank < world_size, (rank, world_size)
        first = step * self.batch_size
        positions = np.arange(
            first + rank * self.batch_size // world_size,
            first + (rank + 1) * self.batch_size // world_size,
            dtype=np.int64,
        )
        return _collate(self.source_samples, *self.order.at(positions), self.sequence_length)


@dataclass(frozen=True)
class ValidationData:
    """The data that a run validates on. ``labels`` name the sources, by the index in ``Batch.sources``. With ``each``,
    a number of samples is for each source by itself, and not for all together."""

    source_samples: tuple[Samples, ...]
    labels: tuple[str, ...]
    sequence_length: int
    each: bool = False

    @property
    def tokens(self) -> int:
        """Tokens held out from all sources."""
        return sum(samples.tokens for samples in self.source_samples)

    @property
    def samples(self) -> int:
        """Samples of all sources."""
        return sum(self._counts)

    def lines(self) -> list[str]:
        """Return a line for each label whose sources have no sample."""
        counts = dict.fromkeys(self.labels, 0)
        for label, count in zip(self.labels, self._counts, strict=True):
            counts[label] += count
        empty = [label for label, count in counts.items() if not count]
        return [f"not validated on: {label}, which has nothing or too little for a sample" for label in empty]

    def batches(self, batch_size: int, samples: int | None) -> Iterator[Batch]:
        """Yield ``samples`` samples, or all, in batches of ``batch_size``; the last batch may be smaller.

        They are always the same: each source has its share, at least one sample if there are enough, spread evenly over
        the source.
        """
        sources, chosen = self._chosen(self.samples if samples is None else samples)
        for start in range(0, len(sources), batch_size):
            part = slice(start, start + batch_size)
            yield _collate(self.source_samples, sources[part], chosen[part], self.sequence_length)

    @property
    def _counts(self) -> list[int]:
        return [samples.count for samples in self.source_samples]

    def _chosen(self, samples: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the source of each of ``samples`` samples, and its number there: int64 [samples] each."""
        filled = [source for source, count in enumerate(self._counts) if count]
        counts = [self._counts[source] for source in filled]
        if self.each:
            shares = [min(samples, count) for count in counts]
        else:
            samples = min(samples, self.samples)
            shares = apportion(counts, samples, least=int(samples >= len(filled)))
        chosen = [np.arange(share) * count // max(share, 1) for share, count in zip(shares, counts, strict=True)]
        return np.repeat(filled, shares), np.concatenate(chosen)


def packing_lines(data: TrainData | ValidationData | None, prefix: str) -> Iterator[str]:
    """Yield a line, after ``prefix``, for what packing does not use of each source of ``data``."""
    for label, samples in zip(data.labels, data.source_samples, strict=True) if data is not None else ():
        yield from (f"{prefix}{label}: {line}" for line in samples.left_out.lines())


def prefetch(batch_of: Callable[[int], Batch], first: int, last: int, ahead: int = 2) -> Generator[Batch, None, None]:
    """Yield ``batch_of(first)`` … ``batch_of(last - 1)``, which a thread computes ``ahead`` batches in advance.

    An error in ``batch_of`` is raised in place of its batch. When the generator is closed or ends, the thread ends
    after the batch that it is computing.
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


def _collate(source_samples: Sequence[Samples], sources: np.ndarray, samples: np.ndarray, length: int) -> Batch:
    """Return the batch of ``samples`` of ``sources``, int64 [rows] each; shorter ones are padded with zeros."""
    inputs = np.zeros((len(sources), length), dtype=np.int64)
    targets = np.full_like(inputs, IGNORED)
    numbers, prompts = np.full_like(inputs, PADDING), np.zeros(inputs.shape, dtype=bool)
    owners: list[int] = sources.tolist()
    for row, (source, index) in enumerate(zip(owners, samples.tolist(), strict=True)):
        sample = source_samples[source].sample(index)
        size = sample.ids.size - 1
        inputs[row, :size], targets[row, :size] = sample.ids[:-1], sample.ids[1:]
        if sample.loss_mask is not None:
            targets[row, :size][~sample.loss_mask[1:]] = IGNORED
        numbers[row, :size] = 0 if sample.documents is None else sample.documents[:-1]
        if sample.prompts is not None:
            prompts[row, :size] = sample.prompts[:-1]
    valid = int((targets != IGNORED).sum())
    return Batch(inputs, targets, sources, valid, numbers, prompts if prompts.any() else None)


def context_ids(
    inputs: np.ndarray,
    documents: np.ndarray | None = None,
    prompts: np.ndarray | None = None,
    *,
    ahead: bool = False,
    positions: bool = False,
) -> np.ndarray:
    """Return a number for what a model sees at each of ``inputs`` [samples, length]: int64 of the same shape, equal for
    positions that see the same.

    A position sees the ids up to itself, or with ``ahead`` also those after it and its index among them. With
    ``documents``, of the same shape, it sees only the ids of its own document, and with ``positions`` also where that
    begins in the sample. ``prompts``, bool of the same shape, adds the number of prompt tokens of a document, which see
    one another.
    """
    known: dict[object, int] = {}
    numbers = np.empty(inputs.shape, dtype=np.int64)
    for row, ids in enumerate(inputs.tolist()):
        for start, stop in pairwise(document_borders(None if documents is None else documents[row], len(ids)).tolist()):
            prompt = None if prompts is None else int(prompts[row, start:stop].sum())
            beginning = (start if positions else 0, prompt, tuple(ids[start:stop]) if ahead else ())
            seen = known.setdefault(beginning, len(known))
            for index in range(start, stop):
                if ahead:
                    numbers[row, index] = known.setdefault((seen, index - start), len(known))
                else:
                    numbers[row, index] = seen = known.setdefault((seen, ids[index]), len(known))
    return numbers


def conditional_entropy(targets: np.ndarray, seen: np.ndarray) -> float:
    """Return the entropy of ``targets`` given what is ``seen``, in nats, mean over the targets with a loss; 0.0 without
    any target.

    ``targets`` and ``seen`` are int64 [...] of one shape. No model has a lower cross-entropy: it predicts the same for
    all positions that see the same, and Gibbs' inequality holds among these.
    """
    valid = targets != IGNORED
    pairs, counts = np.unique(np.stack([seen[valid], targets[valid]]), axis=1, return_counts=True)
    if not counts.size:
        return 0.0
    groups = np.bincount(pairs[0], weights=counts)[pairs[0]]
    return float(np.abs((counts * np.log(groups / counts)).sum() / counts.sum()))


@dataclass(frozen=True)
class HeldOutDocument:
    """The ``ids`` of a document, [tokens], without begin and end ids, of which ``loss_mask``, bool [tokens] or None for
    all, have a loss. ``whole`` is False if only its tail is held out."""

    ids: np.ndarray
    loss_mask: np.ndarray | None
    whole: bool


def held_out_documents(validation: ValidationData, tokenizer: Tokenizer) -> Iterator[tuple[str, HeldOutDocument]]:
    """Yield each held-out document of text with the label of its source, in the order of sources and documents."""
    begin = begin_ids(tokenizer)
    for label, samples in zip(validation.labels, validation.source_samples, strict=True):
        if isinstance(samples, Windows):
            store, ranges = samples.stream.store, samples.stream.ranges
        elif isinstance(samples, Packed):
            store, ranges = samples.store, samples.ranges
        else:  # samples of music
            continue
        spans = document_spans(store, ranges, tokenizer.end_id, begin)
        for start, stop in zip(*(span.tolist() for span in spans), strict=True):
            first = int(store.document_bounds(np.array([store.document_at(start)]))[0][0])
            whole = start <= first + len(begin)
            yield label, HeldOutDocument(store.tokens(start, stop), store.loss_mask(start, stop), whole)
