"""The start of DeepSpeed's engine: the settings of a run and its ds_config, checks, and the builds of extensions."""

import gc
import logging
import os
import socket
import sys
import time
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.file_baton import FileBaton

from quintet.config.deepspeed import AUTO
from quintet.config.keypath import is_mapping, is_sequence
from quintet.config.optimizer import TorchOptimizerConfig, name_of
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

# ZeRO gives an optimizer one vector with parts of many weights, so its arithmetic must be elementwise.
ELEMENTWISE = ("AdamW", "Adam", "Adamax", "Adadelta", "ASGD", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD")
_SECTIONS_OF_LOOP = ("optimizer", "scheduler")


def stage_of(parallel: DeepSpeedConfig) -> int:
    """Return the ZeRO stage of a ds_config, 0 if it names none."""
    if parallel.config.get("zero_optimization") is True:
        return 1
    return int(number_in(_section(parallel.config, "zero_optimization").get("stage", 0)))


def _section(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the mapping under ``name``, {} if there is none: DeepSpeed also takes true, false and null for one."""
    value = settings.get(name)
    return value if is_mapping(value) else {}


def stays_eager(parallel: ParallelConfig) -> bool:
    """True if blocks cannot be compiled, because the hooks of ZeRO 3 gather and drop weights around each module."""
    return isinstance(parallel, DeepSpeedConfig) and stage_of(parallel) == 3


def settings_of(config: RunConfig, shape: BatchShape, compute: Compute, parameters: int) -> dict[str, Any]:
    """Return the complete ds_config of a run.

    ``shape`` is this process's part of a batch, and ``parameters`` the number of trainable parameters. Raises UserError
    if the number of processes, the optimizer or the device contradicts the ds_config.
    """
    parallel = config.parallel
    assert isinstance(parallel, DeepSpeedConfig)
    given = _plain(parallel.config)
    _check_batch(given, shape)
    _check_optimizer(config, stage_of(parallel))
    settings = {name: value for name, value in given.items() if name not in _SECTIONS_OF_LOOP and value != AUTO}
    settings |= {
        "train_batch_size": shape.samples * world_size(),
        "train_micro_batch_size_per_gpu": shape.micro_batch_size,
        "gradient_accumulation_steps": shape.accumulation,
        "gradient_clipping": config.train.clip_norm or 0.0,
    }
    _fill_precision(settings, given, compute)
    # The optimizer is one of torch, and was checked above to be elementwise.
    settings.setdefault("zero_allow_untested_optimizer", True)
    settings.setdefault("zero_force_ds_cpu_optimizer", False)
    if stage := stage_of(parallel):
        # A bucket that holds all gradients is large enough; DeepSpeed's default takes 2 GB.
        bucket = min(500_000_000, max(parameters, 1))
        zero = _without_auto(_section(settings, "zero_optimization")) or {"stage": stage}
        settings["zero_optimization"] = {"reduce_bucket_size": bucket, **zero}
    return settings


def offloads_optimizer(settings: dict[str, Any]) -> bool:
    """True if the optimizer's state is kept outside of the device."""
    zero = _section(settings, "zero_optimization")
    device = _section(zero, "offload_optimizer").get("device", "none")
    return bool(zero.get("cpu_offload")) or device not in (None, "none")


def wants_cpu_adam(config: RunConfig, settings: dict[str, Any]) -> bool:
    """True if DeepSpeedCPUAdam takes the steps: the ds_config names Adam, and its state is in the host's memory."""
    assert isinstance(config.parallel, DeepSpeedConfig)
    optimizer = _section(config.parallel.config, "optimizer")
    names_adam = str(optimizer.get("type", "")).lower() in ("adam", "adamw")
    torch_adam = bool(_section(optimizer, "params").get("torch_adam"))
    return offloads_optimizer(settings) and config.optimizer.kind == "adamw" and names_adam and not torch_adam


def _plain(value: Any) -> Any:
    """Return a copy of ``value`` with lists for tuples, and numbers for the texts that spell them."""
    if is_mapping(value):
        return {name: _plain(entry) for name, entry in value.items()}
    if is_sequence(value):
        return [_plain(entry) for entry in value]
    return number_in(value)


def _without_auto(value: Any) -> Any:
    """Return ``value`` without the entries ``auto``, which below the top level mean DeepSpeed's default."""
    if not is_mapping(value):
        return value
    return {name: _without_auto(entry) for name, entry in value.items() if entry != AUTO}


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
    name = name_of(config.optimizer)
    if stage and name not in ELEMENTWISE:
        raise UserError(
            f"optimizer.name: {name} needs whole matrices, which ZeRO {stage} cuts into parts; take one of "
            f"{', '.join(ELEMENTWISE)}, or parallel.config.zero_optimization.stage: 0"
        )


def _fill_precision(settings: dict[str, Any], given: dict[str, Any], compute: Compute) -> None:
    for kind in ("fp16", "bf16"):
        asked = _section(given, kind).get("enabled")
        # DeepSpeed scales the loss for fp16. In bf16 the weights stay in fp32 unless the ds_config asks for bf16.
        enabled = compute.precision == kind and (asked in (True, AUTO) or kind == "fp16")
        if asked is False and compute.precision == kind:
            raise UserError(
                f"parallel.config.{kind}.enabled: is false, and train.precision: auto is {kind} here; set "
                "train.precision to fp32"
            )
        settings[kind] = {**_without_auto(_section(settings, kind)), "enabled": enabled}
    if settings["bf16"]["enabled"]:
        settings["bf16"].setdefault("check_grad_overflow", True)


def check_deepspeed(config: RunConfig) -> None:
    """Raise UserError if DeepSpeed cannot train ``config``, and NotHere if it is not installed."""
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
        raise UserError("train.device: DeepSpeed runs on cuda and cpu, not on mps; take one of them")


def start_deepspeed(
    loss_module: nn.Module, model: Model, config: RunConfig, shape: BatchShape, compute: Compute
) -> DeepSpeedEngine:
    """Start the engine of a run whose ``loss_module`` holds ``model``, in the process group that there is.

    Raises UserError for settings that contradict the run or that DeepSpeed refuses.
    """
    check_deepspeed(config)
    assert isinstance(config.parallel, DeepSpeedConfig)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    settings = settings_of(config, shape, compute, sum(p.numel() for p in trained))
    deepspeed = _imported(compute, settings)
    optimizer = build_optimizer(config.optimizer, model)
    if isinstance(optimizer, LowPrecisionAdamW) and stage_of(config.parallel):
        optimizer.shard = rank()  # each process holds other parts
    groups = [dict(group, params=list(group["params"])) for group in optimizer.param_groups]
    if wants_cpu_adam(config, settings):
        with _bounded_builds(config):
            optimizer = _cpu_adam(groups)
    # DeepSpeed calls functions that torch has renamed.
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)
    # Some of its optimizers take a step with zero gradients to create their state; it must not decay the weights.
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
    """Set LOCAL_RANK within the context, because DeepSpeed reads it also in its steps.

    Outside it is removed unless torchrun set it: other libraries would take this process for one of several.
    """
    before = os.environ.get("LOCAL_RANK")
    os.environ["LOCAL_RANK"] = str(local_rank())
    try:
        yield
    finally:
        if before is None:
            del os.environ["LOCAL_RANK"]


QUIET_SECONDS = 30.0
"""Seconds without a change after which a folder whose lock no process here holds is not being built in."""
_LONGEST_BUILD = 1800.0  # seconds


@contextmanager
def _bounded_builds(config: RunConfig) -> Generator[None]:
    """Let PyTorch use ``BuildLock`` when it builds extensions within the context."""
    assert isinstance(config.parallel, DeepSpeedConfig)
    seconds = config.parallel.timeout_seconds

    def lock(path: str, **_: Any) -> BuildLock:
        return BuildLock(path, seconds)

    with patch("torch.utils.cpp_extension.FileBaton", lock):
        yield


class BuildLock(FileBaton):
    """PyTorch's lock on the folder of an extension: a file that exists while one process builds.

    A killed build leaves the file, and PyTorch then waits for ever. Here the file names its holder, a file without a
    living holder is removed, and a wait ends after ``seconds``, or after half an hour while a process of this machine
    builds.
    """

    def __init__(self, path: str, seconds: float) -> None:
        super().__init__(path)  # pyright: ignore[reportUnknownMemberType]  (open in PyTorch)
        self.path, self.seconds = Path(path), seconds

    def try_acquire(self) -> bool:
        """Take the lock, after a wait if necessary. Raises UserError with the file's path when the wait is over."""
        began = alive = time.monotonic()
        reported = False
        while not super().try_acquire():
            held = self._is_held()
            if held is False and local_rank() == 0:
                self._say("is left from a killed build; the extension is built again")
                self.path.unlink(missing_ok=True)
                continue
            now = time.monotonic()
            alive = now if held else alive
            limit = _LONGEST_BUILD if held else self.seconds
            if not reported:
                self._say(f"another process builds there; waiting for it, {limit:.0f} s at most")
                reported = True
            if now - (began if held else alive) > limit:
                raise UserError(
                    f"parallel.kind: deepspeed waited {limit:.0f} s for another process that builds an extension; if "
                    f"there is none, remove {self.path}"
                )
            time.sleep(0.1)
        self.path.write_text(f"{socket.gethostname()} {os.getpid()}", encoding="utf-8")
        return True

    def _is_held(self) -> bool | None:
        """Return True if a process of this machine builds, and None if that cannot be known."""
        try:
            host, _, process = self.path.read_text(encoding="utf-8").partition(" ")
            last = max(entry.stat().st_mtime for entry in (self.path.parent, *self.path.parent.iterdir()))
        except FileNotFoundError:  # released meanwhile
            return True
        if host and host != socket.gethostname():
            return None
        if process.isdigit():
            return _is_open_in(process, self.path)
        # Another program made the file and did not write its process number.
        if sys.platform != "linux":
            return None
        if any(_is_open_in(folder.name, self.path) for folder in Path("/proc").glob("[0-9]*")):
            return True
        return False if time.time() - last > QUIET_SECONDS else None

    def _say(self, what: str) -> None:
        if local_rank() == 0:
            print(f"{self.path}: {what}", file=sys.stderr, flush=True)


def _is_open_in(process: str, file: Path) -> bool:
    """Return True if the ``process`` of this number has ``file`` open, or exists if open files cannot be listed."""
    try:
        if sys.platform == "linux":
            return any(entry.exists() and entry.samefile(file) for entry in Path(f"/proc/{process}/fd").iterdir())
        if sys.platform == "win32":  # signal 0 is Ctrl-C on Windows
            return True
        os.kill(int(process), 0)
    except (ProcessLookupError, FileNotFoundError):
        return False
    except PermissionError:  # it is another user's
        return sys.platform != "linux"
    return True


def leave_group() -> None:
    """Destroy the process group, together with DeepSpeed's record of it if DeepSpeed was started."""
    comm: Any = sys.modules.get("deepspeed.comm.comm")
    if getattr(comm, "cdb", None) is None:
        dist.destroy_process_group()
        return
    # A process may be aborted if it ends while DeepSpeed's threads still hold the group.
    gc.collect()
    dist.barrier()  # pyright: ignore[reportUnknownMemberType]  (open in PyTorch)
    comm.destroy_process_group()


def _imported(compute: Compute, settings: dict[str, Any]) -> Any:
    """Import DeepSpeed for the device of ``compute``, with no log below errors unless the settings name a level."""
    os.environ.setdefault("DS_ACCELERATOR", compute.device.type)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        deepspeed = import_module("deepspeed")
    level = str(settings.get("log_level", "error")).upper()
    logging.getLogger("DeepSpeed").setLevel(level)
    deepspeed.utils.logger.setLevel(level)
    return deepspeed


def _cpu_adam(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    names = ("params", "lr", "betas", "eps", "weight_decay")
    known = [{name: group[name] for name in names} for group in groups]
    return import_module("deepspeed.ops.adam").DeepSpeedCPUAdam(known, adamw_mode=True)
