"""The processes that train one model together, as torchrun starts them, one for each device; without it there is one.

What they do together, all of them must do: a call below returns when every process has made it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

from quintet.errors import UserError

Found = TypeVar("Found")


class FailedElsewhere(UserError):
    """Another process has raised this, and says it."""


def rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """The number of this process among those of its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_world_size() -> int:
    """How many processes this machine has."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def is_rank_zero() -> bool:
    """True if this process is the one that writes and speaks."""
    return rank() == 0


def all_gather(value: Any, group: Any = None) -> list[Any]:
    """``value`` of every process, in the order of their numbers: anything small that pickle takes."""
    if world_size() == 1:
        return [value]
    import torch.distributed as dist

    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, value, group=group)  # pyright: ignore[reportUnknownMemberType]  (open in PyTorch)
    return found


def broadcast_from_rank0(make: Callable[[], Found], group: Any = None) -> Found:
    """Return what ``make`` returns in the first process; it is called there alone.

    Raises its UserError or OSError in the first process, and FailedElsewhere in the others.
    """
    if world_size() == 1:
        return make()
    made: Any = None
    problems: list[str] | None = None
    error: Exception | None = None
    if is_rank_zero():
        try:
            made = make()
        except (UserError, OSError) as raised:
            error, problems = raised, list(getattr(raised, "problems", [str(raised)]))
    made, problems = all_gather((made, problems), group)[0]
    if error is not None:
        raise error
    if problems is not None:
        raise FailedElsewhere(*problems)
    return made


def all_reduce(values: Any, *, later: bool = False) -> Any:
    """Replace ``values``, a tensor of any shape and dtype, by its sum over the processes; return what to wait for if
    ``later``."""
    import torch.distributed as dist

    return dist.all_reduce(values, async_op=later)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def new_group(timeout: timedelta | None) -> Any:
    """Make a group of all processes, whose messages, on the CPU, are not mixed with others; each waits ``timeout``."""
    import torch.distributed as dist

    return dist.new_group(backend="gloo", timeout=timeout)  # pyright: ignore[reportUnknownMemberType]  (open in PyTorch)


def destroy_group(group: Any) -> None:
    """End ``group``, which `new_group` made."""
    import torch.distributed as dist

    dist.destroy_process_group(group)


def rank_zero_first(make: Callable[[], Found]) -> Found:
    """The value that ``make`` returns, which finds what an earlier call has written.

    The first process calls it first, then the first of each machine, then the others. It may take hours. Where one
    raises UserError or OSError, the others raise FailedElsewhere.
    """
    if world_size() == 1:
        return make()
    patient = new_group(timedelta(days=1))
    made: Any = None
    own = 0 if is_rank_zero() else 1 if local_rank() == 0 else 2
    try:
        for turn in range(3):
            error: Exception | None = None
            if turn == own:
                try:
                    made = make()
                except (UserError, OSError) as raised:
                    error = raised
            problems = [] if error is None else list(getattr(error, "problems", [str(error)]))
            found = [one for one in all_gather(problems, patient) if one]
            if error is not None:
                raise error
            if found:
                raise FailedElsewhere(*found[0])
    finally:
        destroy_group(patient)
    return made
