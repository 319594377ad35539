"""What a run is computed with, in words."""

from __future__ import annotations

import os
import platform
from typing import TYPE_CHECKING

import quintet

if TYPE_CHECKING:
    import torch


def system_figures(device: torch.device, precision: str) -> dict[str, str]:
    """Device, precision, and versions of what computes; memory in bytes."""
    import torch

    figures = {
        "device": str(device),
        "precision": precision,
        "host": platform.node(),
        "platform": platform.platform(),
        "cpus": str(os.cpu_count()),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "quintet": quintet.__version__,
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        figures |= {"gpu": properties.name, "gpu_memory_bytes": str(properties.total_memory)}
        figures |= {"cuda": str(torch.version.cuda)}
    return figures
