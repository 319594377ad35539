"""DeepSpeed's engine for a run, made from its run file."""

from __future__ import annotations

import gc
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from quintet.config.schema import BatchShape, RunConfig
from quintet.errors import UserError
from quintet.model import Model
from quintet.processes import local_rank
from quintet.train.compute import Compute
from quintet.train.deepspeed.engine import DeepSpeedEngine, InPrecision
from quintet.train.deepspeed.settings import settings_of, stays_eager, wants_cpu_adam
from quintet.train.optimizer import build_optimizer


def check_deepspeed(config: RunConfig) -> None:
    """Raise UserError when DeepSpeed is not installed, or the device is not one that it is run on."""
    missing = [name for name in ("deepspeed", "ninja") if find_spec(name) is None]
    if missing:
        raise UserError(
            f"parallel.kind: deepspeed needs {' and '.join(missing)}; pip install 'quintet[deepspeed]', or take fsdp"
        )
    if config.trainer.kind != "quintet":
        raise UserError(
            f"trainer.kind: {config.trainer.kind} takes its steps by itself, and so does parallel.kind: deepspeed; "
            "leave one of them out"
        )
    if config.train.compile is True and stays_eager(config.parallel):
        raise UserError(
            "train.compile: ZeRO 3 gathers weights around each module, which cannot be compiled; set it to false, or "
            "take parallel.kind: fsdp"
        )
    if config.train.device == "mps":
        raise UserError("train.device: DeepSpeed is run on cuda and cpu here, not on mps; take one of them")


def start_deepspeed(
    learner: nn.Module, model: Model, config: RunConfig, shape: BatchShape, compute: Compute
) -> DeepSpeedEngine:
    """The engine of a run whose ``learner`` holds ``model``; the process group is there.

    Raises UserError for settings that contradict the run or that DeepSpeed refuses.
    """
    check_deepspeed(config)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    settings = settings_of(config, shape, compute, sum(p.numel() for p in trained))
    deepspeed = _imported(compute, settings)
    optimizer = build_optimizer(config.optimizer, model)
    groups = [dict(group, params=list(group["params"])) for group in optimizer.param_groups]
    if wants_cpu_adam(config, settings):
        optimizer = _cpu_adam(groups)
    # DeepSpeed calls what torch renamed, and prints what it compiles.
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)
    # To have a state, some of its optimizers take a step of zero gradients, which would decay and count.
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    try:
        with _told_its_number():
            deepspeed.init_distributed(dist_backend="nccl" if compute.device.type == "cuda" else "gloo")
            engine, *_ = deepspeed.initialize(
                model=InPrecision(learner, compute), optimizer=optimizer, config=settings, dist_init_required=False
            )
    except (ValueError, AssertionError, NotImplementedError, deepspeed.DeepSpeedConfigError) as error:
        raise UserError(f"parallel.config: DeepSpeed refuses it: {_in_a_line(error)}") from error
    optimizer.state.clear()
    return DeepSpeedEngine(engine, model, groups, config, shape, compute)


@contextmanager
def _told_its_number() -> Iterator[None]:
    """Within, the environment has LOCAL_RANK, also where no torchrun has set it; left there, other libraries would take
    this process for one of several."""
    before = os.environ.get("LOCAL_RANK")
    os.environ["LOCAL_RANK"] = str(local_rank())
    try:
        yield
    finally:
        if before is None:
            del os.environ["LOCAL_RANK"]


def leave_group() -> None:
    """End the process group, and what DeepSpeed remembers of it if it was there."""
    comm: Any = sys.modules.get("deepspeed.comm.comm")
    if getattr(comm, "cdb", None) is None:
        dist.destroy_process_group()
        return
    # A process that ends while DeepSpeed's threads still hold the group is aborted now and then.
    gc.collect()
    dist.barrier()
    comm.destroy_process_group()


def _imported(compute: Compute, settings: dict[str, Any]) -> Any:
    """DeepSpeed, told on which device it runs and to speak only of what goes wrong."""
    os.environ.setdefault("DS_ACCELERATOR", compute.device.type)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import deepspeed
    level = str(settings.get("log_level", "error")).upper()
    logging.getLogger("DeepSpeed").setLevel(level)
    deepspeed.utils.logger.setLevel(level)
    return deepspeed


def _cpu_adam(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    names = ("params", "lr", "betas", "eps", "weight_decay")
    return DeepSpeedCPUAdam([{name: group[name] for name in names} for group in groups], adamw_mode=True)


def _in_a_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return "; ".join(lines[:3]) or type(error).__name__
