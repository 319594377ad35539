"""From the run file to the order of its samples."""

from __future__ import annotations

from typing import Any

from quintet.config.data import StageConfig
from quintet.config.schema import RunConfig
from quintet.config.train import steps_of, total_steps
from quintet.data.batch import ValidationData
from quintet.data.mixture import EpochOrder, MixtureStage, Order, WeightedOrder


def build_order(config: RunConfig, counts: tuple[int, ...]) -> Order:
    """The order that ``config`` asks for, of sources with ``counts`` samples."""
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
    """What a checkpoint keeps of each stage: the steps that are done when it starts, and the weight of each source."""
    if not config.data.stages or not isinstance(order, WeightedOrder):
        return []
    return [[stage.start // config.batch.samples, list(stage.weights)] for stage in order.stages]


def stage_lines(config: RunConfig, order: Order) -> list[str]:
    """The stages of a run as a person reads them, one a line; none where there are no stages."""
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
    """The stages with their first positions, which follow from the run's steps where they are fractions of them."""
    samples = config.batch.samples
    steps = total_steps(config.train, samples, config.data.sequence_length, sum(counts))
    ends = [steps_of(stage.until, steps) for stage in config.data.stages[:-1] if stage.until is not None]
    weights = [_source_weights(config, stage, counts) for stage in config.data.stages]
    return [MixtureStage(end * samples, found) for end, found in zip([0, *ends], weights, strict=True)]


def _source_weights(config: RunConfig, stage: StageConfig, counts: tuple[int, ...]) -> tuple[float, ...]:
    """Weight of each source in ``stage``: that of its label, which sources with the same one share by their size."""
    labels = [source.label or "" for source in config.data.sources]
    sizes = {label: sum(size for one, size in zip(labels, counts, strict=True) if one == label) for label in labels}
    return tuple(
        stage.weights.get(label, 0.0) * size / sizes[label] for label, size in zip(labels, counts, strict=True)
    )


def nothing_of_lines(validation: ValidationData | None) -> list[str]:
    """A line for each label that nothing is validated on of, as its sources make no sample."""
    if validation is None:
        return []
    counts = dict.fromkeys(validation.labels, 0)
    for label, stream in zip(validation.labels, validation.streams, strict=True):
        counts[label] += stream.count
    empty = [label for label, count in counts.items() if not count]
    return [f"not validated on: {label}, which has nothing or too little for a sample" for label in empty]


def left_out_line(documents: int) -> list[str]:
    """What to say of so many ``documents`` that are not trained on because they are validated on; nothing of none."""
    return [f"left out of the training: {documents:,} documents that are also validated on"] if documents else []
