"""DeepSpeed's engine for a run, made from its run file and its ds_config."""

from __future__ import annotations

import gc
import logging
import os
import socket
import sys
import time
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.file_baton import FileBaton

from quintet.config.deepspeed import AUTO
from quintet.config.optimizer import TorchOptimizerConfig
from quintet.config.parallel import DeepSpeedConfig, ParallelConfig
from quintet.config.schema import BatchShape, RunConfig
from quintet.config.section import number_in
from quintet.errors import UserError, one_line
from quintet.libraries import check_installed
from quintet.model import Model
from quintet.processes import local_rank, rank, world_size
from quintet.train.compute import Compute
from quintet.train.integrations.deepspeed_engine import DeepSpeedEngine, InPrecision
from quintet.train.library_optimizers import in_torch
from quintet.train.optimizer import LowPrecisionAdamW, build_optimizer

# Under ZeRO an optimizer sees one long vector of parts, so each weight's step may only need what belongs to it.
ELEMENTWISE = ("AdamW", "Adam", "Adamax", "Adadelta", "ASGD", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD")
_OUR_LOOP = ("optimizer", "scheduler")


def stage_of(parallel: DeepSpeedConfig) -> int:
    """The stage of ZeRO that a ds_config asks for; 0 when it says none."""
    block = parallel.config.get("zero_optimization")
    if isinstance(block, bool):
        return int(block)
    return int(number_in((block or {}).get("stage", 0)))


def stays_eager(parallel: ParallelConfig) -> bool:
    """True if blocks cannot be compiled: the hooks of ZeRO 3 gather and drop weights around each module."""
    return isinstance(parallel, DeepSpeedConfig) and stage_of(parallel) == 3


def settings_of(config: RunConfig, shape: BatchShape, compute: Compute, parameters: int) -> dict[str, Any]:
    """The ds_config of this run, whole; ``shape`` is this process's part of a batch, ``parameters`` counts those that
    are trained. Raises UserError where the processes or the device contradict it."""
    parallel = config.parallel
    assert isinstance(parallel, DeepSpeedConfig)
    given = _plain(deepcopy(parallel.config))
    _check_batch(given, shape)
    _check_optimizer(config, stage_of(parallel))
    settings = {name: value for name, value in given.items() if name not in _OUR_LOOP and value != AUTO}
    settings |= {
        "train_batch_size": shape.samples * world_size(),
        "train_micro_batch_size_per_gpu": shape.micro_batch_size,
        "gradient_accumulation_steps": shape.accumulation,
        "gradient_clipping": config.train.clip_norm or 0.0,
    }
    _fill_precision(settings, given, compute)
    # The optimizer is ours, of torch; its arithmetic is element by element, as is checked above.
    settings.setdefault("zero_allow_untested_optimizer", True)
    settings.setdefault("zero_force_ds_cpu_optimizer", False)
    if stage_of(parallel):
        zero = settings["zero_optimization"]
        zero = {"stage": stage_of(parallel)} if isinstance(zero, bool) else _without_auto(zero)
        # A bucket that holds all gradients is large enough; DeepSpeed's default takes 2 GB.
        zero.setdefault("reduce_bucket_size", min(500_000_000, max(parameters, 1)))
        settings["zero_optimization"] = zero
    return settings


def offloads_optimizer(settings: dict[str, Any]) -> bool:
    """True if the optimizer's state is kept outside of the device."""
    zero = settings.get("zero_optimization") or {}
    device = (zero.get("offload_optimizer") or {}).get("device", "none")
    return bool(zero.get("cpu_offload")) or device not in (None, "none")


def wants_cpu_adam(config: RunConfig, settings: dict[str, Any]) -> bool:
    """True if DeepSpeed's Adam for the host takes the steps: the ds_config names Adam and keeps its state there."""
    assert isinstance(config.parallel, DeepSpeedConfig)
    block = config.parallel.config.get("optimizer") or {}
    torch_adam = bool((block.get("params") or {}).get("torch_adam"))
    named = str(block.get("type", "")).lower() in ("adam", "adamw") and not torch_adam
    return offloads_optimizer(settings) and config.optimizer.kind == "adamw" and named


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return number_in(value)


def _without_auto(value: Any) -> Any:
    """Leave out each ``auto`` below the top level of DeepSpeed's settings, which means its default."""
    if not isinstance(value, dict):
        return value
    return {name: _without_auto(one) for name, one in value.items() if one != AUTO}


def _check_batch(given: dict[str, Any], shape: BatchShape) -> None:
    own = {
        "train_micro_batch_size_per_gpu": (shape.micro_batch_size, "train.micro_batch_size"),
        "gradient_accumulation_steps": (shape.accumulation, "train.batch_size"),
    }
    for name, (value, key) in own.items():
        theirs = given.get(name, AUTO)
        if theirs not in (AUTO, value):
            raise UserError(
                f"parallel.config.{name}: is {theirs}, and by {key} a step over {world_size()} processes has "
                f"{shape.accumulation} passes of {shape.micro_batch_size} samples in each; make them agree or set it "
                "to auto"
            )


def _check_optimizer(config: RunConfig, stage: int) -> None:
    name = "AdamW" if config.optimizer.kind == "adamw" else config.optimizer.name
    if stage and name not in ELEMENTWISE:
        raise UserError(
            f"optimizer.name: {name} needs whole matrices, which ZeRO {stage} cuts into parts; take one of "
            f"{', '.join(ELEMENTWISE)}, or parallel.config.zero_optimization.stage: 0"
        )


def _fill_precision(settings: dict[str, Any], given: dict[str, Any], compute: Compute) -> None:
    for kind in ("fp16", "bf16"):
        block = settings.get(kind)
        block = _without_auto(block) if isinstance(block, dict) else {}
        asked = (given.get(kind) or {}).get("enabled")
        # fp16 needs its loss scaled, which DeepSpeed does; in bf16 weights stay in fp32 unless it is asked for.
        enabled = compute.precision == kind and (asked in (True, AUTO) or kind == "fp16")
        if asked is False and compute.precision == kind:
            raise UserError(
                f"parallel.config.{kind}.enabled: is false, and train.precision: auto is {kind} here; set "
                "train.precision to fp32"
            )
        settings[kind] = {**block, "enabled": enabled}
    if settings["bf16"]["enabled"]:
        settings["bf16"].setdefault("check_grad_overflow", True)


def check_deepspeed(config: RunConfig) -> None:
    """Raise UserError when DeepSpeed is not installed, or the device is not one that it is run on."""
    what = "parallel.kind: deepspeed"
    check_installed("deepspeed", "ninja", extra="deepspeed", what=what, otherwise="take fsdp")
    if config.trainer.kind != "quintet":
        raise UserError(
            f"trainer.kind: {config.trainer.kind} takes its steps by itself, and so does parallel.kind: deepspeed; "
            "leave one of them out"
        )
    if isinstance(config.optimizer, TorchOptimizerConfig) and not in_torch(config.optimizer):
        raise UserError(
            f"optimizer.name: {config.optimizer.name} is of pytorch_optimizer, and parallel.kind: deepspeed keeps the "
            "state of those of torch.optim alone; take one of them, or parallel.kind: ddp"
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
    assert isinstance(config.parallel, DeepSpeedConfig)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    settings = settings_of(config, shape, compute, sum(p.numel() for p in trained))
    deepspeed = _imported(compute, settings)
    optimizer = build_optimizer(config.optimizer, model)
    if isinstance(optimizer, LowPrecisionAdamW) and stage_of(config.parallel):  # each process holds parts
        optimizer.shard = rank()
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
def local_rank_set() -> Generator[None]:
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
def _bounded_builds(config: RunConfig) -> Generator[None]:
    """Let PyTorch take a ``BuildLock`` when it builds extensions within the context."""
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
        """True if a process of this machine builds, None if that cannot be known."""
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
    """True if the ``process`` of this number has ``file`` open or, where that cannot be seen, exists."""
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
