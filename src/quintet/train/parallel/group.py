"""PyTorch's process group, for as long as a run lasts."""

from __future__ import annotations

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
    """Connect the processes that torchrun started; a single one needs no group unless its weights are to be sharded.

    Raises UserError for what a run in several processes cannot do.
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
        raise  # leaving the group would wait for other processes, which may be gone
    leave_group()


def backend_of(device: torch.device) -> dict[str, Any]:
    """What `init_process_group` needs to know of ``device``. A GPU is named, so that NCCL connects at once and knows
    on which one, instead of guessing it at the first barrier."""
    if device.type == "cuda":
        return {"backend": "cpu:gloo,cuda:nccl", "device_id": device}
    return {"backend": "gloo"}


def timeout(config: RunConfig) -> timedelta:
    """Return how long a process waits for the others."""
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
    there = torch.cuda.device_count()
    if choose_device(config.train.device).type == "cuda" and local_rank() >= there:
        raise UserError(
            f"train.device: {local_world_size()} processes were started on this machine, which has {there} GPUs; "
            f"start {there}"
        )
