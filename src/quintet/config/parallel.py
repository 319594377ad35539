"""The kinds of `parallel`: how a run is distributed over processes, one per device."""

from typing import Annotated, Any, Literal

from pydantic import Field

from quintet.config.section import ConfigSection, key


class _Processes(ConfigSection):
    timeout_seconds: float = key(
        600.0, "time after which a process that waits for the others gives up, which ends the run", unit="seconds", gt=0
    )


class AutoParallelConfig(_Processes):
    """The kind that Quintet chooses."""

    kind: Literal["auto"] = key(
        "auto", "chosen by the number of processes, the size of the model and the memory of a device, and reported"
    )


class NoParallelConfig(ConfigSection):
    """One process on one device."""

    kind: Literal["none"] = key(..., "one process, one device")


class DDPConfig(_Processes):
    """Distributed data parallel: the whole model on each device, with averaged gradients (Li et al. 2020)."""

    kind: Literal["ddp"] = key(..., "the whole model on each device")
    bucket_mb: float = key(25.0, "size of the buckets in which gradients are sent", unit="MiB", gt=0)


class _Sharded(_Processes):
    shard: Literal["full", "grad_op"] = key(
        "full",
        "full: gather each block's weights for its forward pass and again for its backward pass (ZeRO 3); grad_op: "
        "keep them between the two, so that only gradients and optimizer state are always sharded (ZeRO 2)",
    )
    gather: Literal["auto", "fp32", "bf16"] = key(
        "auto",
        "dtype in which weights are gathered; they are kept in fp32. auto: the dtype of the matrix products "
        "(train.precision)",
    )
    reduce: Literal["fp32", "bf16"] = key("fp32", "dtype in which gradients are summed over the devices")
    reduce_passes: Literal["each", "last"] = key(
        "each",
        "passes of a step after which gradients are summed over the devices. each: after each pass, so that a device "
        "keeps only its shard of the gradient; last: after the last pass, which sends less, but keeps the whole "
        "gradient in fp32 on each device until then. Over the groups of hsdp gradients are always summed after the "
        "last pass",
    )
    offload: bool = key(False, "keep weights, gradients and optimizer state in host memory")


class FSDPConfig(_Sharded):
    """Weights, gradients and optimizer state sharded over all devices (Zhao et al. 2023; PyTorch's fully_shard)."""

    kind: Literal["fsdp"] = key(..., "weights, gradients and optimizer state sharded over all devices")


class HSDPConfig(_Sharded):
    """Sharded over the devices of a group, and replicated over groups (PyTorch's hybrid sharding)."""

    kind: Literal["hsdp"] = key(..., "sharded over the devices of a group, replicated over groups")
    shard_size: int | None = key(None, "devices of a group; those of one machine when not given", unit="devices", ge=1)


class DeepSpeedConfig(_Processes):
    """DeepSpeed's engine (Rajbhandari et al. 2020)."""

    kind: Literal["deepspeed"] = key(..., "DeepSpeed's engine (needs `pip install 'quintet[deepspeed]'`)")
    config: dict[str, Any] = key(
        {},
        "DeepSpeed's own settings, as in its ds_config; those that the run file has keys for are filled in, and must "
        "not contradict these keys",
    )


ParallelConfig = Annotated[
    AutoParallelConfig | NoParallelConfig | DDPConfig | FSDPConfig | HSDPConfig | DeepSpeedConfig,
    Field(discriminator="kind"),
]
