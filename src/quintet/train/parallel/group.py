"""PyTorch's process group during a run."""

import os
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from quintet.config.schema import RunConfig
from quintet.errors import UserError
from quintet.processes import local_rank, local_world_size, rank, world_size
from quintet.train.compute import choose_device, use_gpu
from quintet.train.integrations.deepspeed import leave_group, local_rank_set


@contextmanager
def process_group(config: RunConfig) -> Generator[None]:
    """Connect the processes that torchrun started. A single process gets a group only if `parallel` needs one.

    Raises UserError if the run cannot be trained in so many processes.
    """
    kind, device = config.parallel.kind, choose_device(config.train.device)
    _check(config)
    use_gpu(device)
    alone = world_size() == 1
    if dist.is_initialized() or (alone and kind not in ("ddp", "fsdp", "hsdp", "deepspeed")):
        yield
        return
    waiting = timeout(config)
    if alone and "MASTER_ADDR" not in os.environ:
        dist.init_process_group(**backend_of(device), store=HashStore(), rank=0, world_size=1, timeout=waiting)
    else:
        dist.init_process_group(**backend_of(device), rank=rank(), world_size=world_size(), timeout=waiting)
    try:
        with local_rank_set() if kind == "deepspeed" else nullcontext():
            yield
    except BaseException:
        if alone:
            leave_group()
        raise  # leaving the group would wait for other processes, which may have ended
    leave_group()


def backend_of(device: torch.device) -> dict[str, Any]:
    """Return the arguments of `init_process_group` for ``device``.

    With a GPU as device id NCCL connects at once, instead of guessing the GPU at the first barrier.
    """
    if device.type == "cuda":
        return {"backend": "cpu:gloo,cuda:nccl", "device_id": device}
    return {"backend": "gloo"}


def timeout(config: RunConfig) -> timedelta:
    """Return the time that a process waits for the others."""
    return timedelta(seconds=getattr(config.parallel, "timeout_seconds", 600.0))


def _check(config: RunConfig) -> None:
    if world_size() == 1:
        return
    if config.parallel.kind == "none":
        raise UserError(f"parallel.kind: none is for one process, and there are {world_size()}; set it to auto")
    if config.trainer.kind != "quintet":
        raise UserError(
            f"trainer.kind: {config.trainer.kind} takes its steps in one process here, and there are {world_size()}; "
            "leave it out, which trains to the same weights"
        )
    gpus = torch.cuda.device_count()
    if choose_device(config.train.device).type == "cuda" and local_rank() >= gpus:
        raise UserError(
            f"train.device: {local_world_size()} processes were started on this machine, which has {gpus} GPUs; "
            f"start {gpus}"
        )
