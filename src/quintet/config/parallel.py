"""How the work of a run is spread over processes, one for each device."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from quintet.config.section import ConfigSection, key


class _Processes(ConfigSection):
    timeout_seconds: float = key(
        600.0, "a process that waits so long for the others gives up, and the run ends", unit="seconds", gt=0
    )


class AutoParallelConfig(_Processes):
    """Let Quintet choose; with one process there is nothing to distribute."""

    kind: Literal["auto"] = key(
        "auto", "chosen from the number of processes, the size of the model and the memory of a device, and said"
    )


class NoParallelConfig(ConfigSection):
    """One process on one device."""

    kind: Literal["none"] = key(..., "one process, one device")


class DDPConfig(_Processes):
    """The whole model on every device; the gradients are averaged (Li et al. 2020)."""

    kind: Literal["ddp"] = key(..., "the whole model on every device")
    bucket_mb: float = key(25.0, "gradients that are sent together", unit="MiB", gt=0)


class _Sharded(_Processes):
    shard: Literal["full", "grad_op"] = key(
        "full",
        "full: each block's weights are gathered for its forward pass and again for its backward pass (ZeRO 3); "
        "grad_op: they stay between the two, only gradients and optimizer state are always spread (ZeRO 2)",
    )
    gather: Literal["auto", "fp32", "bf16"] = key(
        "auto",
        "numbers in which weights are gathered; they are kept in fp32. auto: those of the matrix products "
        "(train.precision)",
    )
    reduce: Literal["fp32", "bf16"] = key("fp32", "numbers in which gradients are summed over the devices")
    reduce_passes: Literal["each", "last"] = key(
        "each",
        "passes of a step after which gradients are summed over the devices. each: a device keeps its part of the "
        "gradient alone; last: after the last pass, which sends less and keeps the whole gradient in fp32 on every "
        "device until then. The copies of hsdp's groups are summed after the last pass in any case",
    )
    offload: bool = key(False, "keep weights, gradients and optimizer state in the memory of the host")


class FSDPConfig(_Sharded):
    """Weights, gradients and optimizer state are spread over all devices (Zhao et al. 2023; PyTorch's fully_shard)."""

    kind: Literal["fsdp"] = key(..., "weights, gradients and optimizer state are spread over all devices")


class HSDPConfig(_Sharded):
    """Spread inside a group of devices, the same in every group (PyTorch's hybrid sharding)."""

    kind: Literal["hsdp"] = key(..., "spread over the devices of a group, the same in every group")
    shard_size: int | None = key(None, "devices of a group; when not given those of one machine", unit="devices", ge=1)


class DeepSpeedConfig(_Processes):
    """DeepSpeed's engine (Rajbhandari et al. 2020)."""

    kind: Literal["deepspeed"] = key(..., "DeepSpeed's engine (needs `pip install 'quintet[deepspeed]'`)")
    config: dict[str, Any] = key(
        {},
        "DeepSpeed's own settings, as in its ds_config; what the run file says by a key of its own is filled in, and "
        "must not contradict it",
    )


ParallelConfig = Annotated[
    AutoParallelConfig | NoParallelConfig | DDPConfig | FSDPConfig | HSDPConfig | DeepSpeedConfig,
    Field(discriminator="kind"),
]
