"""Differences between operating systems: cores, memory, and the signals that ask a process to stop.

Windows has neither `resource` nor `os.sysconf` nor most signals; what it has instead is called through ctypes.
"""

import ctypes
import io
import os
import signal
import sys
from contextlib import suppress
from typing import Any

__version__ = "0.1.0"

STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGBREAK", "SIGUSR1", "SIGHUP") if hasattr(signal, name)
)
"""The signals that ask a run to stop, the most important first. SIGBREAK is Ctrl-Break on Windows. SLURM can send
SIGUSR1 before a time limit, and a terminal that closes sends SIGHUP."""


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def process_peak_memory() -> int | None:
    """Return the most bytes of memory that this process has used; None if the system does not report it."""
    try:
        import resource
    except ImportError:
        return _windows_peak_memory() if sys.platform == "win32" else None
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def machine_memory() -> int | None:
    """Return the bytes of memory of this machine; None if the system does not report it."""
    if sys.platform == "win32":
        return _windows_machine_memory()
    with suppress(AttributeError, ValueError, OSError):  # no such function, no such name, no answer
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


def write_utf8() -> None:
    """Make standard streams use UTF-8, unless the user chose an encoding or they are a terminal.

    On Windows a pipe or a file has the code page of the system, which cannot encode most texts.
    """
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and not stream.isatty() and "PYTHONIOENCODING" not in os.environ:
            stream.reconfigure(encoding="utf-8")


class _ProcessMemory(ctypes.Structure):
    """PROCESS_MEMORY_COUNTERS of psapi.h."""

    _fields_ = (
        ("cb", ctypes.c_uint32),
        ("PageFaultCount", ctypes.c_uint32),
        ("PeakWorkingSetSize", ctypes.c_size_t),
        ("WorkingSetSize", ctypes.c_size_t),
        ("QuotaPeakPagedPoolUsage", ctypes.c_size_t),
        ("QuotaPagedPoolUsage", ctypes.c_size_t),
        ("QuotaPeakNonPagedPoolUsage", ctypes.c_size_t),
        ("QuotaNonPagedPoolUsage", ctypes.c_size_t),
        ("PagefileUsage", ctypes.c_size_t),
        ("PeakPagefileUsage", ctypes.c_size_t),
    )


class _MachineMemory(ctypes.Structure):
    """MEMORYSTATUSEX of sysinfoapi.h."""

    _fields_ = (
        ("dwLength", ctypes.c_uint32),
        ("dwMemoryLoad", ctypes.c_uint32),
        ("ullTotalPhys", ctypes.c_uint64),
        ("ullAvailPhys", ctypes.c_uint64),
        ("ullTotalPageFile", ctypes.c_uint64),
        ("ullAvailPageFile", ctypes.c_uint64),
        ("ullTotalVirtual", ctypes.c_uint64),
        ("ullAvailVirtual", ctypes.c_uint64),
        ("ullAvailExtendedVirtual", ctypes.c_uint64),
    )


def gpu_memory(device: Any) -> int:
    """Return the bytes of memory of the CUDA ``device``."""
    import torch

    found: Any = torch.cuda
    return found.get_device_properties(device).total_memory


def _windows_kernel() -> Any:
    return getattr(ctypes, "WinDLL")("kernel32")  # noqa: B009  (on Windows alone)


def _windows_peak_memory() -> int | None:
    kernel = _windows_kernel()
    kernel.GetCurrentProcess.restype = ctypes.c_void_p
    ask = kernel.K32GetProcessMemoryInfo
    ask.argtypes = (ctypes.c_void_p, ctypes.POINTER(_ProcessMemory), ctypes.c_uint32)
    found = _ProcessMemory(cb=ctypes.sizeof(_ProcessMemory))
    answered = ask(kernel.GetCurrentProcess(), ctypes.byref(found), found.cb)
    return found.PeakWorkingSetSize if answered else None


def _windows_machine_memory() -> int | None:
    kernel = _windows_kernel()
    found = _MachineMemory(dwLength=ctypes.sizeof(_MachineMemory))
    return found.ullTotalPhys if kernel.GlobalMemoryStatusEx(ctypes.byref(found)) else None
