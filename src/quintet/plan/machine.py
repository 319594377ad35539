"""The machine that a plan is made for: its devices, their memory and their speeds, given or measured here."""

import re
import time
from dataclasses import dataclass

import torch

from quintet.config.schema import RunConfig
from quintet.errors import UserError
from quintet.train.compute import Compute, choose_compute, device_memory, measure_peak_flops, synchronize

_COPIED = 2**26  # bytes whose copy is timed

_UNITS = {"": 1, "B": 1} | {
    f"{letter}{kind}": base**power
    for kind, base in (("B", 1000), ("iB", 1024))
    for power, letter in enumerate("KMGT", start=1)
}


@dataclass(frozen=True)
class Machine:
    """``devices`` in all, ``per_node`` of them in each node, with ``memory`` bytes each.

    Matrix products reach the share ``utilisation`` of ``peak_flops``, the FLOP/s of a device in the run's precision.
    ``memory_bandwidth``, ``node_bandwidth`` (to devices of the same node) and ``bandwidth`` (to other nodes) are bytes
    per second and device. ``accelerator`` is False for a CPU.
    """

    devices: int
    per_node: int
    memory: int
    peak_flops: float
    utilisation: float
    memory_bandwidth: float
    node_bandwidth: float
    bandwidth: float
    accelerator: bool

    @property
    def local(self) -> int:
        """Devices of one node that are used."""
        return min(self.devices, self.per_node)


def parse_bytes(text: str, where: str) -> int:
    """Return the bytes that ``text`` names, as 80GiB, 900MB or 3e9. Raises UserError, which names ``where``."""
    match = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([KMGT]?i?B?)\s*", text, re.IGNORECASE)
    units = {name.lower(): value for name, value in _UNITS.items()}
    try:
        size = int(float(match[1]) * units[match[2].lower()]) if match else 0
    except (ValueError, KeyError):
        size = 0
    if size <= 0:
        raise UserError(f"{where}: {text!r} is no size; write a number and a unit, as 80GiB or 900MB")
    return size


def this_machine(config: RunConfig) -> tuple[Machine, Compute]:
    """Return the device of this machine that ``config`` chooses, with its measured speeds. Raises UserError if there is
    no such device, or if the system does not report its memory."""
    compute = choose_compute(config.train)
    memory = device_memory(compute.device, 1)
    if memory is None:
        raise UserError("this system does not report its memory; describe the device: --devices 1 --device-memory …")
    speed = measure_memory(compute)
    machine = Machine(
        devices=1,
        per_node=1,
        memory=memory,
        peak_flops=measure_peak_flops(compute),
        utilisation=1.0,
        memory_bandwidth=speed,
        node_bandwidth=speed,
        bandwidth=speed,
        accelerator=compute.device.type != "cpu",
    )
    return machine, compute


def measure_memory(compute: Compute, seconds: float = 0.1) -> float:
    """Return the bytes per second that a copy of a large tensor reads and writes on this device, the best of several
    copies."""
    source = torch.ones(_COPIED // 4, device=compute.device)
    target = source.clone()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        synchronize(compute.device)
        start = time.perf_counter()
        target.copy_(source)
        synchronize(compute.device)
        best = min(best, time.perf_counter() - start)
    return 2 * _COPIED / best
