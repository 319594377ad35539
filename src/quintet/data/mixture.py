"""The order of samples: from a position in the run to a source and one of its samples, without state.

A position counts samples from the start of the run; a sample is a number below its source's count. A position always
gives the same sample, in any process, order or batch.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from quintet.config.data import StageConfig
from quintet.config.schema import RunConfig
from quintet.config.train import steps_of, total_steps
from quintet.data.permutation import Permutation
from quintet.errors import UserError
from quintet.randomness import key

BLOCK = 4096


@dataclass(frozen=True)
class EpochOrder:
    """All sources once per epoch: in random order if ``shuffle``, else one source after the other.

    ``counts`` are the samples of each source. ``repeats``, by default 1 each, is how often an epoch has them: it has
    ceil(count · repeat) samples of a source, whole passes and then the beginning of a keyed permutation (without
    ``shuffle``, of the source), the same in each epoch. With ``sequential`` the sources always come one after the
    other, and ``shuffle`` permutes each source within itself.
    """

    counts: tuple[int, ...]
    seed: int
    shuffle: bool
    repeats: tuple[float, ...] = ()
    sequential: bool = False

    @property
    def epoch_samples(self) -> int:
        """Samples of an epoch."""
        return sum(self.lengths)

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Samples that each source has in an epoch."""
        repeats = self.repeats or (1.0,) * len(self.counts)
        # As fractions: in floating point 0.07 · 100 is more than 7, and would be rounded up to 8.
        return tuple(
            math.ceil(Fraction(str(repeat)) * count) for count, repeat in zip(self.counts, repeats, strict=True)
        )

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return source and sample at each of ``positions``: int64 [positions] each."""
        positions = np.asarray(positions, dtype=np.int64)
        lengths = np.array(self.lengths, dtype=np.int64)
        ends = np.cumsum(lengths)
        indices = positions % ends[-1]
        if not self.sequential:
            indices = _draw(positions, int(ends[-1]), (self.seed, "order"), self.shuffle)
        sources = np.searchsorted(ends, indices, side="right")
        ranks = indices - (ends - lengths)[sources]
        for source in _distinct(sources):
            inside = sources == source
            own = ranks[inside]
            if self.sequential:
                drawn = positions[inside] // ends[-1] * lengths[source] + own
                own = _draw(drawn, self.lengths[source], (self.seed, "order", source), self.shuffle)
            ranks[inside] = self._samples(source, own)
        return sources, ranks

    def _samples(self, source: int, ranks: np.ndarray) -> np.ndarray:
        """Return the samples of ``source`` at ``ranks`` of its part of an epoch, int64 [ranks]."""
        count = self.counts[source]
        samples = ranks % count
        part = ranks >= self.lengths[source] // count * count
        if self.shuffle and part.any():
            samples[part] = Permutation(count, key(self.seed, "repeat", source))(samples[part])
        return samples


@dataclass(frozen=True)
class MixtureStage:
    """The stage from position ``start`` of the run on, in which sources are drawn in proportion to ``weights``."""

    start: int
    weights: tuple[float, ...]


@dataclass(frozen=True)
class WeightedOrder:
    """Sources in proportion to ``weights``, exactly so in each block of 4096 samples, rounded by largest remainders and
    with at least one sample of each source. Each source has its own epochs, with each of its samples once.

    Within a block the sources are spread evenly; with ``shuffle`` each block, and each epoch, is permuted. ``later``
    stages, in the order of their starts, change the weights. A stage has its own blocks from its start on, and cuts the
    last block of the stage before: so no sample depends on where a later stage starts.
    """

    counts: tuple[int, ...]
    weights: tuple[float, ...]
    seed: int
    shuffle: bool
    later: tuple[MixtureStage, ...] = ()

    def __post_init__(self) -> None:
        if len(self.counts) > BLOCK:
            raise UserError(f"data.sources: {len(self.counts)} sources with weights are more than {BLOCK}; join some")

    @property
    def stages(self) -> tuple[MixtureStage, ...]:
        """All stages; the first starts at 0."""
        return MixtureStage(0, self.weights), *self.later

    @property
    def epoch_samples(self) -> int:
        """Samples of all sources together; an epoch need not have each of them."""
        return sum(self.counts)

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return source and sample at each of ``positions``: int64 [positions] each."""
        positions = np.asarray(positions, dtype=np.int64)
        stages = np.searchsorted(self._starts, positions, side="right") - 1
        blocks, slots = np.divmod(positions - self._starts[stages], BLOCK)
        sources, drawn = np.empty_like(positions), np.empty_like(positions)
        used: set[tuple[int, int]] = set(zip(stages.tolist(), blocks.tolist(), strict=True))
        for stage, block in sorted(used):
            inside = (stages == stage) & (blocks == block)
            owners, ranks = self._block(stage, block)
            sources[inside] = owner = owners[slots[inside]]
            before = self._drawn_before[stage] + block * self._patterns[stage][1]
            drawn[inside] = before[owner] + ranks[slots[inside]]
        samples = np.empty_like(positions)
        for source in _distinct(sources):
            inside = sources == source
            purpose = (self.seed, "order", source)
            samples[inside] = _draw(drawn[inside], self.counts[source], purpose, self.shuffle)
        return sources, samples

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.array([stage.start for stage in self.stages], dtype=np.int64)

    @cached_property
    def _patterns(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """The pattern of each stage: int64 [4096] and int64 [sources]; see `_pattern`."""
        return [_pattern(stage.weights) for stage in self.stages]

    @cached_property
    def _drawn_before(self) -> list[np.ndarray]:
        """The number of samples of each source that are drawn before each stage, int64 [sources] each."""
        drawn = [np.zeros(len(self.counts), dtype=np.int64)]
        for stage, length in enumerate(np.diff(self._starts).tolist()):
            blocks, rest = divmod(length, BLOCK)
            last = np.bincount(self._block(stage, blocks)[0][:rest], minlength=len(self.counts))
            drawn.append(drawn[-1] + blocks * self._patterns[stage][1] + last)
        return drawn

    @cached_property
    def _block(self) -> Callable[[int, int], tuple[np.ndarray, np.ndarray]]:
        """`_make_block` with the last blocks cached: a batch is a small part of a block, and so is the next one."""
        return lru_cache(maxsize=4)(self._make_block)

    def _make_block(self, stage: int, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the source of each slot of ``block`` of ``stage``, and the number of earlier slots of that source:
        int64 [4096] each."""
        owners, shares = self._patterns[stage]
        if self.shuffle:
            purpose = ("block", stage, block) if stage else ("block", block)
            owners = owners[Permutation(BLOCK, key(self.seed, *purpose))(np.arange(BLOCK))]
        by_source = np.argsort(owners, kind="stable")
        ranks = np.empty(BLOCK, dtype=np.int64)
        ranks[by_source] = np.arange(BLOCK) - np.repeat(np.cumsum(shares) - shares, shares)
        return owners, ranks


Order = EpochOrder | WeightedOrder


def _pattern(weights: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return the source of each slot of a block, spread evenly, int64 [4096], and the number of slots of each source,
    int64 [sources]."""
    drawn = [source for source, weight in enumerate(weights) if weight]
    shares = np.zeros(len(weights), dtype=np.int64)
    shares[drawn] = apportion([weights[source] for source in drawn], BLOCK)
    sources = np.repeat(np.arange(len(weights)), shares)
    ranks = np.concatenate([np.arange(share) for share in shares])
    return sources[np.argsort((ranks + 0.5) / shares[sources], kind="stable")], shares


def apportion(weights: Sequence[float], slots: int, least: int = 1) -> list[int]:
    """Return the shares of ``slots`` in proportion to ``weights`` by largest remainders (Hamilton's method), at least
    ``least`` each; of two equal remainders the earlier one wins."""
    assert slots >= least * len(weights), (slots, len(weights))
    total = sum(weights)
    exact = [slots * weight / total for weight in weights]
    shares = [max(least, int(share)) for share in exact]
    while (short := slots - sum(shares)) != 0:
        if short > 0:
            shares[max(range(len(shares)), key=lambda index: exact[index] - shares[index])] += 1
        else:
            able = [index for index, share in enumerate(shares) if share > least]
            shares[max(able, key=lambda index: shares[index] - exact[index])] -= 1
    return shares


def _distinct(numbers: np.ndarray) -> list[int]:
    """Return the distinct values of ``numbers``, int64 [...], ascending."""
    values: list[int] = np.unique(numbers).tolist()
    return values


def _draw(drawn: np.ndarray, count: int, purpose: tuple[int, str, *tuple[int, ...]], shuffle: bool) -> np.ndarray:
    """Return the samples, below ``count``, that come after ``drawn`` earlier draws, int64 [draws]; each pass over the
    source has its own keyed permutation."""
    passes, indices = np.divmod(np.asarray(drawn, dtype=np.int64), count)
    if not shuffle:
        return indices
    for number in _distinct(passes):
        inside = passes == number
        indices[inside] = Permutation(count, key(*purpose, number))(indices[inside])
    return indices


def build_order(config: RunConfig, counts: tuple[int, ...]) -> Order:
    """Return the order that ``config`` asks for, of sources with ``counts`` samples."""
    data, seed = config.data, config.seed
    if data.stages:
        first, *later = _stages(config, counts)
        return WeightedOrder(counts, first.weights, seed, data.shuffle, tuple(later))
    weights = tuple(source.weight for source in data.sources if source.weight is not None)
    if weights:
        return WeightedOrder(counts, weights, seed, data.shuffle)
    repeats = tuple(1.0 if source.repeat is None else source.repeat for source in data.sources)
    return EpochOrder(counts, seed, data.shuffle, repeats, data.mixing == "sequential")


def stage_facts(config: RunConfig, order: Order) -> list[list[Any]]:
    """Return the facts that a checkpoint keeps of each stage: the steps before its start, and the weight of each
    source."""
    if not config.data.stages or not isinstance(order, WeightedOrder):
        return []
    return [[stage.start // config.batch.samples, list(stage.weights)] for stage in order.stages]


def stage_lines(config: RunConfig, order: Order) -> list[str]:
    """Describe the stages of a run, one per line; [] if it has none."""
    if not isinstance(order, WeightedOrder) or not config.data.stages:
        return []
    first = [stage.start // config.batch.samples + 1 for stage in order.stages]
    ends = [*(f"to {start - 1:,}" for start in first[1:]), "on"]
    return [
        f"from step {start:,} {end}: "
        + ", ".join(f"{label} {weight:g}" for label, weight in stage.weights.items() if weight)
        for start, end, stage in zip(first, ends, config.data.stages, strict=True)
    ]


def _stages(config: RunConfig, counts: tuple[int, ...]) -> list[MixtureStage]:
    """Return the stages with their first positions; ends that are fractions are fractions of the run's steps."""
    samples = config.batch.samples
    steps = total_steps(config.train, samples, config.data.sequence_length, sum(counts))
    ends = [steps_of(stage.until, steps) for stage in config.data.stages[:-1] if stage.until is not None]
    weights = [_source_weights(config, stage, counts) for stage in config.data.stages]
    return [MixtureStage(end * samples, shares) for end, shares in zip([0, *ends], weights, strict=True)]


def _source_weights(config: RunConfig, stage: StageConfig, counts: tuple[int, ...]) -> tuple[float, ...]:
    """Return the weight of each source in ``stage``: sources with the same label share its weight by their size."""
    labels = [source.label or "" for source in config.data.sources]
    sizes = Counter[str]()
    for label, count in zip(labels, counts, strict=True):
        sizes[label] += count
    return tuple(
        stage.weights.get(label, 0.0) * size / sizes[label] for label, size in zip(labels, counts, strict=True)
    )
