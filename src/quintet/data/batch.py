"""Batches as a function of the step, a thread that computes them ahead, and the lowest loss that a batch allows."""

from __future__ import annotations

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
from quintet.data.split import TokenRanges, TokenStream
from quintet.data.store import TokenStore
from quintet.tokenize import Tokenizer
from quintet.tokenize.bounds import begin_ids

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
    """The data that a run trains on. ``labels`` name the sources that ``Batch.sources`` counts."""

    source_samples: tuple[Samples, ...]
    labels: tuple[str, ...]
    order: Order
    batch_size: int
    sequence_length: int

    @property
    def tokens(self) -> int:
        """Tokens of all sources, without what is held out."""
        return sum(one.tokens for one in self.source_samples)

    @property
    def epoch_samples(self) -> int:
        """Samples of an epoch: those of all sources, repeated as the run says; with weights not each of them once."""
        return self.order.epoch_samples

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        """The batch of ``step``, counted from 0: a pure function.

        With ``world_size`` > 1, only the consecutive part of it that belongs to ``rank``; the parts of all ranks, one
        after the other, are the whole batch, and differ by at most one sample in size.
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
    """The data that a run validates on. ``labels`` name the sources that ``Batch.sources`` counts; ``each``: a number
    of samples is asked of every source by itself, and not of all together."""

    source_samples: tuple[Samples, ...]
    labels: tuple[str, ...]
    sequence_length: int
    each: bool = False

    @property
    def tokens(self) -> int:
        """Tokens held out from all sources."""
        return sum(one.tokens for one in self.source_samples)

    @property
    def samples(self) -> int:
        """Samples of all sources."""
        return sum(self._counts)

    def lines(self) -> list[str]:
        """A line for each label that nothing is validated on of, as its sources make no sample."""
        counts = dict.fromkeys(self.labels, 0)
        for label, count in zip(self.labels, self._counts, strict=True):
            counts[label] += count
        empty = [label for label, count in counts.items() if not count]
        return [f"not validated on: {label}, which has nothing or too little for a sample" for label in empty]

    def batches(self, batch_size: int, samples: int | None) -> Iterator[Batch]:
        """``samples`` samples, all of them when None, in batches of ``batch_size``; the last one may be smaller.

        Always the same: each source has its share, at least one if there is enough, spread evenly over its stream.
        """
        sources, chosen = self._chosen(self.samples if samples is None else samples)
        for start in range(0, len(sources), batch_size):
            part = slice(start, start + batch_size)
            yield _collate(self.source_samples, sources[part], chosen[part], self.sequence_length)

    @property
    def _counts(self) -> list[int]:
        return [one.count for one in self.source_samples]

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


def packing_lines(data: TrainData | ValidationData | None, prefix: str) -> Iterator[str]:
    """A line for what packing leaves out of each source of ``data``, after ``prefix``."""
    for label, samples in zip(data.labels, data.source_samples, strict=True) if data is not None else ():
        yield from (f"{prefix}{label}: {line}" for line in samples.left_out.lines())


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


def _collate(source_samples: Sequence[Samples], sources: np.ndarray, samples: np.ndarray, length: int) -> Batch:
    """``samples`` of ``sources``, int64 [rows] each, side by side; zeros, without a target, fill shorter ones."""
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
    """A number for what each of ``inputs`` [samples, length] sees, int64 of the same shape: equal where they see equal.

    A position sees the ids up to itself, or with ``ahead`` those after it too, and its index among them. With
    ``documents`` of the same shape these are the ids of its own document; where that begins in the sample is seen with
    ``positions`` only. ``prompts``, bool of the same shape, are seen as well: how many tokens of a document see one
    another backwards.
    """
    known: dict[object, int] = {}
    found = np.empty(inputs.shape, dtype=np.int64)
    for row, ids in enumerate(inputs.tolist()):
        for start, stop in pairwise(document_borders(None if documents is None else documents[row], len(ids)).tolist()):
            prompt = None if prompts is None else int(prompts[row, start:stop].sum())
            beginning = (start if positions else 0, prompt, tuple(ids[start:stop]) if ahead else ())
            seen = known.setdefault(beginning, len(known))
            for index in range(start, stop):
                if ahead:
                    found[row, index] = known.setdefault((seen, index - start), len(known))
                else:
                    found[row, index] = seen = known.setdefault((seen, ids[index]), len(known))
    return found


def conditional_entropy(targets: np.ndarray, seen: np.ndarray) -> float:
    """Entropy of ``targets`` among those that see the same, in nats, mean over the targets with a loss.

    ``targets`` and ``seen`` are int64 [...] of one shape. The cross-entropy of no function of what is seen is lower:
    within a group it predicts the same for all, and Gibbs' inequality holds. 0.0 without any target.
    """
    valid = targets != IGNORED
    pairs, counts = np.unique(np.stack([seen[valid], targets[valid]]), axis=1, return_counts=True)
    if not counts.size:
        return 0.0
    groups = np.bincount(pairs[0], weights=counts)[pairs[0]]
    return float(np.abs((counts * np.log(groups / counts)).sum() / counts.sum()))


@dataclass(frozen=True)
class HeldOutDocument:
    """``ids`` [tokens] without begin and end ids, of which ``loss_mask``, bool [tokens] or None for all, have a loss;
    ``whole`` unless only its tail is held out."""

    ids: np.ndarray
    loss_mask: np.ndarray | None
    whole: bool


def held_out_documents(validation: ValidationData, tokenizer: Tokenizer) -> Iterator[tuple[str, HeldOutDocument]]:
    """Each held-out document with the label of its source, in the order of sources and documents. Music has none."""
    for label, samples in zip(validation.labels, validation.source_samples, strict=True):
        parts = _parts(samples)
        if parts is None:
            continue
        store, ranges = parts
        begin = begin_ids(tokenizer)
        spans = document_spans(store, ranges, tokenizer.end_id, begin)
        for start, stop in zip(*(span.tolist() for span in spans), strict=True):
            first = int(store.document_bounds(np.array([store.document_at(start)]))[0][0])
            yield (
                label,
                HeldOutDocument(store.tokens(start, stop), store.loss_mask(start, stop), start <= first + len(begin)),
            )


def _parts(samples: object) -> tuple[TokenStore, TokenRanges] | None:
    if isinstance(samples, Packed):
        return samples.store, samples.ranges
    if isinstance(samples, Windows) and isinstance(samples.stream, TokenStream):
        store = samples.stream.store
        assert isinstance(store, TokenStore)
        return store, samples.stream.ranges
    return None
