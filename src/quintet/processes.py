"""The processes that train one model together, as torchrun starts them; without them there is one."""

from __future__ import annotations

import os
from typing import Any


def rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """The number of this process among those of its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return rank() == 0


def gathered(value: Any) -> list[Any]:
    """``value`` of every process, in the order of their numbers, at each of them; all must call it. Any object that
    pickle takes; for figures, not for tensors of a model."""
    if world() == 1:
        return [value]
    import torch.distributed as dist

    found: list[Any] = [None] * world()
    dist.all_gather_object(found, value)
    return found
