"""The search for a change of settings with which a run fits into the memory of its devices."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from quintet.config.parallel import FSDPConfig, HSDPConfig
from quintet.config.schema import RunConfig
from quintet.config.section import ConfigSection
from quintet.plan.machine import Machine
from quintet.plan.simulation import Simulation, simulate


@dataclass(frozen=True)
class Change:
    """Settings by their keys, and the peak of memory with them, in bytes."""

    settings: dict[str, Any]
    peak: int

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.settings.items())


def find_change(
    config: RunConfig, vocab_size: int, machine: Machine, found: Simulation
) -> tuple[Change | None, Change | None]:
    """Simulate changes of settings until ``config`` fits the devices of ``machine``, and return that change, and the
    one with the lowest peak among those tried before it; None for one that does not exist."""
    best: Change | None = None
    for settings in _candidates(config, machine, found):
        trial = simulate(changed(config, settings), vocab_size, machine, found.precision)
        change = Change(settings, trial.memory.peak)
        if change.peak <= machine.memory:
            return change, best
        if best is None or change.peak < best.peak:
            best = change
    return None, best


def changed(config: RunConfig, settings: dict[str, Any]) -> RunConfig:
    """Return ``config`` with ``settings``, which are given by their keys."""
    for name, value in settings.items():
        if name == "parallel.kind":
            config = config.model_copy(update={"parallel": FSDPConfig(kind="fsdp")})
            continue
        section, key = name.split(".")
        part: ConfigSection = getattr(config, section)
        config = config.model_copy(update={section: part.model_copy(update={key: value})})
    return config


def _candidates(config: RunConfig, machine: Machine, found: Simulation) -> Iterator[dict[str, Any]]:
    """Yield changes of settings, the cheapest first, without those that leave too much state for the memory."""
    memory, current = found.memory, config.train.activation_checkpointing
    checkpointing: list[dict[str, Any]] = [
        {"train.activation_checkpointing": how} for how in ("selective", 1) if current == "none" or how == 1 != current
    ]
    micro = found.shape.micro_batch_size
    smaller = [size for size in range(micro - 1, 0, -1) if found.shape.samples % size == 0]
    micro_batches = [{"train.micro_batch_size": size} for size in _halves(smaller)]
    if config.train.accumulation is not None:
        samples = config.train.batch_size_per_device or config.batch.samples
        for settings in micro_batches:
            settings["train.accumulation"] = samples // settings["train.micro_batch_size"]
    if getattr(found.strategy.config, "reduce_passes", "each") == "last" and found.shape.accumulation > 1:
        yield {"parallel.reduce_passes": "each"}
    state = memory.parameters + memory.optimizer + memory.gradients - memory.host
    both = (checkpointing[-1] if checkpointing else {}) | (micro_batches[-1] if micro_batches else {})
    if state < machine.memory:
        yield from (*checkpointing, *micro_batches)
        if checkpointing and micro_batches:
            yield both
    sharding = _more_sharding(found, machine)
    for settings in sharding:
        yield settings
        if both:
            yield both | settings
    can_offload = isinstance(found.strategy.config, FSDPConfig | HSDPConfig) or sharding
    if can_offload and not getattr(found.strategy.config, "offload", False):
        yield both | (sharding[-1] if sharding else {}) | {"parallel.offload": True}


def _more_sharding(found: Simulation, machine: Machine) -> list[dict[str, Any]]:
    """Return settings that shard the weights further."""
    config = found.strategy.config
    if machine.devices == 1:
        return []
    if not found.strategy.sharded or isinstance(config, HSDPConfig):
        return [{"parallel.kind": "fsdp"}]
    return [{"parallel.shard": "full"}] if getattr(config, "shard", "") == "grad_op" else []


def _halves(sizes: list[int]) -> list[int]:
    """Return those of the falling ``sizes`` that are at most half of the one before, and the last."""
    kept: list[int] = []
    for size in sizes:
        if not kept or size <= kept[-1] / 2 or size == sizes[-1]:
            kept.append(size)
    return kept
