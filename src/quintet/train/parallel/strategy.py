"""The choice of DDP, FSDP or HSDP for a run, and each process's part of a batch; `parallelize` wraps the model."""

from dataclasses import dataclass, replace

from torch import nn

from quintet.config.parallel import (
    AutoParallelConfig,
    DDPConfig,
    FSDPConfig,
    HSDPConfig,
    NoParallelConfig,
    ParallelConfig,
)
from quintet.config.schema import BatchShape, RunConfig
from quintet.errors import UserError
from quintet.train.optimizer import optimizer_bytes

# The fraction of a device's memory for weights, gradients and optimizer state; the rest is for activations.
STATE_SHARE = 0.6


@dataclass(frozen=True)
class Environment:
    """All ``processes``, those ``local`` to each machine, and the ``memory`` of each in bytes, None if unknown."""

    processes: int
    local: int
    memory: int | None


@dataclass(frozen=True)
class Strategy:
    """A ``config`` that is not ``auto``, and the ``reason`` for it."""

    config: ParallelConfig
    reason: str

    @property
    def kind(self) -> str:
        """One of none, ddp, fsdp, hsdp and deepspeed."""
        return self.config.kind

    @property
    def sharded(self) -> bool:
        """True if a process holds only a part of the weights."""
        return self.kind in ("fsdp", "hsdp")


def choose_strategy(config: ParallelConfig, environment: Environment, state_bytes: float) -> Strategy:
    """Return ``config``, or for ``auto`` the strategy with the least communication that fits the memory of a device.

    ``state_bytes`` are the weights, gradients and optimizer state of the whole model.
    """
    if not isinstance(config, AutoParallelConfig):
        return Strategy(config, "as the run file says")
    if environment.processes == 1:
        return Strategy(NoParallelConfig(kind="none"), "there is one process")
    waiting = config.timeout_seconds
    needed = f"weights, gradients and optimizer state take {state_bytes / 2**30:.2f} GiB"
    if environment.memory is None:
        reason = f"{needed}, and how much memory a device has is not known"
        return Strategy(FSDPConfig(kind="fsdp", timeout_seconds=waiting), reason)
    room = STATE_SHARE * environment.memory
    memory = f"{environment.memory / 2**30:.2f} GiB of a device"
    if state_bytes <= room:
        return Strategy(DDPConfig(kind="ddp", timeout_seconds=waiting), f"{needed}, which fits the {memory}")
    several = environment.processes > environment.local > 1
    if several and state_bytes / environment.local <= room:
        reason = (
            f"{needed}: too much for the {memory}, and enough when spread over the {environment.local} of a machine"
        )
        return Strategy(HSDPConfig(kind="hsdp", timeout_seconds=waiting), reason)
    return Strategy(FSDPConfig(kind="fsdp", timeout_seconds=waiting), f"{needed}: too much for the {memory}")


def share_of_batch(shape: BatchShape, processes: int) -> BatchShape:
    """Return each process's part of a batch of ``shape``. Raises UserError if the parts cannot be equal.

    A micro-batch keeps its size if that divides the part, and is smaller otherwise.
    """
    if shape.samples % processes:
        raise UserError(
            f"train.batch_size: {shape.samples} samples cannot be spread evenly over {processes} processes; take a "
            f"multiple of {processes}, or another number of processes"
        )
    own = shape.samples // processes
    micro = max(size for size in range(1, min(shape.micro_batch_size, own) + 1) if own % size == 0)
    return replace(shape, samples=own, micro_batch_size=micro, accumulation=own // micro)


def mesh_shape(strategy: Strategy, environment: Environment) -> tuple[int, int]:
    """Return the number of copies of the weights, and the number of processes that each copy is sharded over.

    FSDP has one copy. Raises UserError if the number of processes is not a multiple of the processes for one copy.
    """
    config = strategy.config
    if isinstance(config, FSDPConfig):
        return 1, environment.processes
    assert isinstance(config, HSDPConfig), config
    size = config.shard_size or environment.local
    if environment.processes % size:
        raise UserError(
            f"parallel.shard_size: {environment.processes} processes do not make groups of {size}; take one of "
            f"{', '.join(str(n) for n in range(1, environment.processes + 1) if environment.processes % n == 0)}"
        )
    return environment.processes // size, size


def counts_of(model: nn.Module) -> tuple[int, int]:
    """Return the numbers of all parameters and of trainable parameters of ``model``."""
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)


def state_bytes_of(config: RunConfig, model: nn.Module) -> float:
    """Return the bytes of weights, gradients and optimizer state of ``model``, which may be on the meta device.

    Weights and gradients are fp32.
    """
    parameters, trained = counts_of(model)
    return 4.0 * (parameters + trained) + optimizer_bytes(config.optimizer, model)
