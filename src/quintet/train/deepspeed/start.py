"""DeepSpeed's engine for a run, made from its run file."""

from __future__ import annotations

import gc
import logging
import os
import socket
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.file_baton import FileBaton

from quintet.config.parallel import DeepSpeedConfig
from quintet.config.schema import BatchShape, RunConfig
from quintet.errors import UserError, one_line
from quintet.libraries import check_installed
from quintet.model import Model
from quintet.processes import local_rank
from quintet.train.compute import Compute
from quintet.train.deepspeed.engine import DeepSpeedEngine, InPrecision
from quintet.train.deepspeed.settings import settings_of, stays_eager, wants_cpu_adam
from quintet.train.optimizer import build_optimizer


def check_deepspeed(config: RunConfig) -> None:
    """Raise UserError when DeepSpeed is not installed, or the device is not one that it is run on."""
    what = "parallel.kind: deepspeed"
    check_installed("deepspeed", "ninja", extra="deepspeed", what=what, otherwise="take fsdp")
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
    loss_module: nn.Module, model: Model, config: RunConfig, shape: BatchShape, compute: Compute
) -> DeepSpeedEngine:
    """The engine of a run whose ``loss_module`` holds ``model``; the process group is there.

    Raises UserError for settings that contradict the run or that DeepSpeed refuses.
    """
    check_deepspeed(config)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    settings = settings_of(config, shape, compute, sum(p.numel() for p in trained))
    deepspeed = _imported(compute, settings)
    optimizer = build_optimizer(config.optimizer, model)
    groups = [dict(group, params=list(group["params"])) for group in optimizer.param_groups]
    if wants_cpu_adam(config, settings):
        with _bounded_builds(config):
            optimizer = _cpu_adam(groups)
    # DeepSpeed calls what torch renamed, and prints what it compiles.
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)
    # To have a state, some of its optimizers take a step of zero gradients, which would decay and count.
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    try:
        with _bounded_builds(config):
            deepspeed.init_distributed(dist_backend="nccl" if compute.device.type == "cuda" else "gloo")
            engine, *_ = deepspeed.initialize(
                model=InPrecision(loss_module, compute), optimizer=optimizer, config=settings, dist_init_required=False
            )
    except (ValueError, AssertionError, NotImplementedError, deepspeed.DeepSpeedConfigError) as error:
        raise UserError(f"parallel.config: DeepSpeed refuses it: {one_line(error, lines=3)}") from error
    optimizer.state.clear()
    return DeepSpeedEngine(engine, model, groups, config, shape, compute)


@contextmanager
def local_rank_set() -> Iterator[None]:
    """Set LOCAL_RANK, which DeepSpeed reads in its steps too, where torchrun has not. Left in the environment, it would
    make other libraries take this process for one of several."""
    before = os.environ.get("LOCAL_RANK")
    os.environ["LOCAL_RANK"] = str(local_rank())
    try:
        yield
    finally:
        if before is None:
            del os.environ["LOCAL_RANK"]


# A folder in which nothing changes for so long, and whose lock no process here holds, is not being built in.
QUIET_SECONDS = 30.0
_LONGEST_BUILD = 1800.0


@contextmanager
def _bounded_builds(config: RunConfig) -> Iterator[None]:
    """Within, PyTorch builds extensions behind a ``BuildLock``."""
    assert isinstance(config.parallel, DeepSpeedConfig)
    seconds = config.parallel.timeout_seconds

    def lock(path: str, **_: Any) -> BuildLock:
        return BuildLock(path, seconds)

    with patch("torch.utils.cpp_extension.FileBaton", lock):
        yield


class BuildLock(FileBaton):
    """PyTorch's lock on the folder of an extension: a file that is there while one process builds.

    A build that was killed leaves the file, for which PyTorch waits without an end. Here the file says who holds it,
    one that nobody holds any more is removed and the extension is built again, and a wait ends after ``seconds``, or
    half an hour while a process on this machine builds.
    """

    def __init__(self, path: str, seconds: float) -> None:
        super().__init__(path)
        self.path, self.seconds = Path(path), seconds

    def try_acquire(self) -> bool:
        """Take the lock, after a wait if need be. Raises UserError, naming the file, when the wait is over."""
        began = alive = time.monotonic()
        told = False
        while not super().try_acquire():
            held = self._is_held()
            if held is False and local_rank() == 0:
                self._say("is left of a build that was killed; it is built again")
                self.path.unlink(missing_ok=True)
                continue
            now = time.monotonic()
            alive = now if held else alive
            limit = _LONGEST_BUILD if held else self.seconds
            if not told:
                self._say(f"another process builds there; waiting for it, {limit:.0f} s at most")
                told = True
            if now - (began if held else alive) > limit:
                raise UserError(
                    f"parallel.kind: deepspeed waited {limit:.0f} s for another process that builds an extension; if "
                    f"there is none, remove {self.path}"
                )
            time.sleep(0.1)
        self.path.write_text(f"{socket.gethostname()} {os.getpid()}", encoding="utf-8")
        return True

    def _is_held(self) -> bool | None:
        """Whether a process of this machine builds; None where that cannot be known."""
        try:
            host, _, process = self.path.read_text(encoding="utf-8").partition(" ")
            last = max(entry.stat().st_mtime for entry in (self.path.parent, *self.path.parent.iterdir()))
        except FileNotFoundError:  # released meanwhile
            return True
        if host and host != socket.gethostname():
            return None
        if process.isdigit():
            return _is_open_in(process, self.path)
        # Made by another program, which does not say who it is.
        if sys.platform != "linux":
            return None
        if any(_is_open_in(folder.name, self.path) for folder in Path("/proc").glob("[0-9]*")):
            return True
        return False if time.time() - last > QUIET_SECONDS else None

    def _say(self, what: str) -> None:
        if local_rank() == 0:
            print(f"{self.path}: {what}", file=sys.stderr, flush=True)


def _is_open_in(process: str, file: Path) -> bool:
    """Whether the ``process`` of this number has ``file`` open; where that cannot be seen, whether there is one."""
    try:
        if sys.platform == "linux":
            return any(entry.exists() and entry.samefile(file) for entry in Path(f"/proc/{process}/fd").iterdir())
        if sys.platform == "win32":  # there signal 0 is Ctrl-C
            return True
        os.kill(int(process), 0)
    except (ProcessLookupError, FileNotFoundError):
        return False
    except PermissionError:  # it is another user's
        return sys.platform != "linux"
    return True


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
