"""The machine that a plan without devices is made for: this one."""

from __future__ import annotations

import time

import torch

from quintet.config.schema import RunConfig
from quintet.errors import UserError
from quintet.plan.machine import Machine
from quintet.train.compute import Compute, choose_compute, device_memory, measure_peak_flops, synchronize

_COPIED = 2**26


def this_machine(config: RunConfig) -> tuple[Machine, Compute]:
    """One device of this machine, as ``config`` chooses it, with the speeds that are measured now. Raises UserError for
    a device that is not there, or a system that does not tell its memory."""
    compute = choose_compute(config.train)
    memory = device_memory(compute.device, 1)
    if memory is None:
        raise UserError("this system does not tell its memory; describe the device: --devices 1 --device-memory …")
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
    """Bytes a second that a copy of a large tensor reads and writes on this device, the best of several."""
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
