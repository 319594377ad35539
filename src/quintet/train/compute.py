"""Device, precision and compilation of a run, and the peak speed of the hardware."""

import ctypes
import os
import shutil
import sys
import time
from collections.abc import MutableMapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from quintet.config.train import TrainConfig
from quintet.errors import NotHere, UserError
from quintet.model.typed import from_array
from quintet.processes import local_rank
from quintet.system import gpu_memory, machine_memory, process_peak_memory

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Compute:
    """Device, precision and compilation of a run, with the ``reason`` for the precision."""

    device: torch.device
    precision: str
    compile: bool
    reason: str

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of matrix products."""
        return DTYPES[self.precision]

    def autocast(self, *, keep_casts: bool = True) -> torch.autocast:
        """Return a context that computes matrix products in ``dtype`` and leaves weights as they are.

        The casts of weights are kept until its end unless ``keep_casts`` is False.
        """
        enabled = self.dtype != torch.float32
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=enabled, cache_enabled=keep_casts)


def choose_compute(config: TrainConfig) -> Compute:
    """Choose device, precision and compilation for ``config``.

    Raises UserError for a device that this machine lacks.
    """
    device = choose_device(config.device)
    precision, reason = config.precision, "as the run file says"
    if precision == "auto":
        precision, reason = _choose_precision(device)
    _check_precision(precision, device.type)
    compile_blocks = device.type == "cuda" if config.compile == "auto" else config.compile
    return Compute(device, precision, compile_blocks, reason)


def keep_precision(compute: Compute, config: TrainConfig, began: str) -> Compute:
    """Return ``compute`` in the precision in which a continued run ``began``, unless the run file names one.

    `auto` may choose another precision on another machine. ``began`` is "" if it is not known.
    """
    if config.precision != "auto" or began in ("", compute.precision):
        return compute
    if began == "fp16" and compute.device.type == "cpu":
        reason = "the run began in fp16, which is hundreds of times slower than fp32 on a CPU"
        return replace(compute, reason=reason)
    if began == "tf32" and not multiplies_tf32(compute.device.type):
        return replace(compute, reason="the run began in tf32, which this device does not multiply")
    return replace(compute, precision=began, reason="as the run began")


def check_compute(config: TrainConfig) -> None:
    """Raise NotHere if this machine lacks the device, the precision or the compiler that ``config`` names.

    Raises UserError for a precision that no device of the named kind has.
    """
    missing: list[str] = []
    try:
        device = choose_device(config.device).type
    except UserError as error:
        missing, device = [*error.problems], config.device
    try:
        # The precisions of a GPU that is not here are unknown.
        _check_precision(config.precision if device != "cuda" or not missing else "auto", device)
    except UserError as error:
        if config.device not in ("auto", "cuda"):
            raise
        missing = [*missing, *error.problems]
    if config.compile is True and device == "cpu" and not _has_compiler():
        missing = [*missing, _NO_COMPILER]
    if missing:
        raise NotHere(*missing)


_NO_COMPILER = "train.compile: needs a C++ compiler, which this machine lacks; install g++ or set compile: false"


def _has_compiler() -> bool:
    return any(shutil.which(name) for name in ("g++", "clang++", "c++"))


def check_compiler(device: torch.device) -> None:
    """Raise UserError if compiling for ``device`` needs a C++ compiler and there is none."""
    if device.type == "cpu" and not _has_compiler():
        raise UserError(_NO_COMPILER)


def multiplies_tf32(device: str) -> bool:
    """Return True if devices of this kind multiply tf32: NVIDIA GPUs from Ampere on."""
    return device == "cuda" and torch.cuda.get_device_capability() >= (8, 0)


def _check_precision(precision: str, device: str) -> None:
    if precision == "tf32" and not multiplies_tf32(device):
        raise UserError(
            "train.precision: tf32 is multiplied by NVIDIA GPUs from Ampere on, and the device here is none; take fp32"
        )
    if precision == "fp16" and device == "cpu":
        # Measured on a CPU with AVX512: 1 to 2 GFLOP/s in fp16 against 200 in fp32 and 900 in bf16.
        raise UserError(
            "train.precision: fp16 is hundreds of times slower than fp32 on a CPU, and that is the device here; take "
            "other numbers, or a GPU"
        )


def choose_device(wanted: str) -> torch.device:
    """Return the device of this process. The index of a GPU is the number of the process on its machine.

    Without an index PyTorch cannot set the device, and treats two names of one GPU as two devices. Raises UserError for
    a device that this machine lacks.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        wanted = next(name for name, available in present.items() if available)
    if not present[wanted]:
        raise UserError(f"train.device: this machine has no {wanted} device; use auto or cpu")
    return torch.device("cuda", local_rank()) if wanted == "cuda" else torch.device(wanted)


def _choose_precision(device: torch.device) -> tuple[str, str]:
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", "this GPU multiplies bf16 at full speed"
        return "fp16", "this GPU has no bf16; the loss is scaled"
    if device.type == "mps":
        return "fp32", "mixed precision is not faster on mps"
    if _cpu_multiplies_bf16():
        return "bf16", "this CPU multiplies bf16 in hardware, several times faster than fp32"
    return "fp32", "this CPU has no instructions for bf16"


def _cpu_multiplies_bf16() -> bool:
    features = {"avx512_bf16", "amx_bf16", "bf16"}
    if hasattr(torch.cpu, "get_capabilities"):  # torch 2.12 and later
        return any(torch.cpu.get_capabilities().get(name) for name in features)
    listing = Path("/proc/cpuinfo")
    return listing.exists() and bool(features & set(listing.read_text(encoding="utf-8").split()))


_ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # PyTorch still reads the second, older name


def use_gpu(device: torch.device, environment: MutableMapping[str, str] = os.environ) -> None:
    """Make ``device``, a GPU with an index, the device of this process, with expandable memory segments.

    PyTorch's allocator otherwise keeps blocks in the requested sizes, and the memory between them is lost. Settings of
    the user in ``environment`` stay; PyTorch reads it when the first tensor is made on the GPU. Does nothing for other
    devices.
    """
    if device.type != "cuda":
        return
    if sys.platform == "linux" and not any(name in environment for name in _ALLOCATOR):
        environment[_ALLOCATOR[0]] = "expandable_segments:True"
    torch.cuda.set_device(device)


def set_products(compute: Compute) -> None:
    """Let fp32 matrix products on a GPU use all bits, or with tf32 the first 11 of the mantissa."""
    if compute.device.type == "cuda":
        torch.set_float32_matmul_precision("high" if compute.precision == "tf32" else "highest")


def is_deterministic(wanted: Literal["auto"] | bool, device: torch.device) -> bool:
    """Return True if `train.deterministic`, which is ``wanted``, promises the same bits on ``device``."""
    return device.type != "cuda" if wanted == "auto" else wanted


_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


def make_deterministic(
    wanted: Literal["auto"] | bool, device: torch.device, environment: MutableMapping[str, str] = os.environ
) -> None:
    """Set PyTorch to deterministic kernels if `train.deterministic` promises the same bits on ``device``.

    Otherwise backward passes of attention and sums of cuBLAS differ between two runs on a GPU. ``environment`` is read
    when cuBLAS is first used. The compiler then does not choose kernels by measuring them. Deterministic mode would
    also fill each new tensor, which only helps to find bugs and costs a pass over memory. Raises UserError if the
    environment contradicts the promise.
    """
    strict = is_deterministic(wanted, device)
    on_gpu = strict and device.type == "cuda"
    if on_gpu and environment.setdefault(_WORKSPACE, ":4096:8") not in (":4096:8", ":16:8"):
        raise UserError(
            f"train.deterministic: needs {_WORKSPACE} in the environment to be :4096:8 or :16:8, and it is "
            f"{environment[_WORKSPACE]}; unset it"
        )
    torch.use_deterministic_algorithms(strict, warn_only=strict and wanted == "auto")
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]


def keep_freed_memory() -> None:
    """Let the C library keep large freed blocks instead of returning them to the kernel.

    Each step on a CPU allocates and frees the same activations. Each time the kernel must map and clear their pages,
    which costs as much as the arithmetic of many operations. Only glibc has this setting; elsewhere nothing changes.
    The figure is in `benchmarks/attention_cpu.py` and the journal.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3
    if not mallopt(mmap_threshold, 2**30):  # older glibc takes 32 MB at most
        mallopt(mmap_threshold, 2**25)
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(top_pad, 2**28)


def measure_peak_flops(compute: Compute, seconds: float = 0.3) -> float:
    """Measure the FLOP/s of large square matrix products with ``compute``: the peak that utilisation refers to.

    Returns the best of several repeats, because other work on the machine can only slow them down.
    """
    size = 8192 if compute.device.type == "cuda" else 2048
    a = torch.randn(size, size, device=compute.device, dtype=compute.dtype)
    out = a @ a
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        synchronize(compute.device)
        start = time.perf_counter()
        torch.mm(a, a, out=out)
        synchronize(compute.device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def synchronize(device: torch.device) -> None:
    """Wait until ``device`` has finished all queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def peak_memory(device: torch.device) -> int | None:
    """Return the peak bytes so far, of the GPU's memory or of the process on a CPU; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":  # it has no maximum, but keeps most of its memory
        return torch.mps.driver_allocated_memory()
    return process_peak_memory()


def device_memory(device: torch.device, local: int) -> int | None:
    """Return the bytes for each of the ``local`` processes of this machine, None if unknown."""
    if device.type == "cuda":
        return gpu_memory(device)
    memory = torch.mps.recommended_max_memory() if device.type == "mps" else machine_memory()
    return None if memory is None else memory // local


_OUT_OF_MEMORY = (
    "DefaultCPUAllocator: ",
    "MPS backend out of memory",
    "CUDA error: out of memory",
    "Cuda failure 2 'out of memory'",  # NCCL's
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def ran_out_of_memory(error: BaseException | None) -> bool:
    """Return True if ``error`` or one of its causes is an out-of-memory error.

    It is known by its type, or by the words of PyTorch's allocators and NVIDIA's libraries. A compiler's error that
    mentions allocations is none.
    """
    while error is not None:
        known = isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY)
        if known or isinstance(error, torch.OutOfMemoryError | MemoryError):
            return True
        error = error.__cause__
    return False


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return ``tensor``, of any shape and dtype, on ``device``.

    A CUDA GPU continues to compute while it copies pinned memory. Prefetched batches are pinned (`pinned`).
    """
    return tensor.to(device, non_blocking=device.type == "cuda" and tensor.is_pinned())


def pinned(array: np.ndarray, device: torch.device) -> np.ndarray:
    """Return ``array``, of any shape and dtype, in pinned memory for ``device``, a CUDA GPU."""
    with torch.cuda.device(device):  # a thread starts with the first GPU
        return from_array(array).pin_memory().numpy()
