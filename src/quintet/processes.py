"""The processes that train one model together, one per device, as torchrun starts them; without torchrun there is one.

Collective calls, from `all_gather` on, must be made by all processes, and return when all have made them.
"""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

from quintet.errors import UserError

Result = TypeVar("Result")


class FailedElsewhere(UserError):
    """An error that another process has raised and reports."""


def rank() -> int:
    """Return the number of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Return the number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """Return the number of this process among those of its node, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_world_size() -> int:
    """Return the number of processes of this node."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def is_rank_zero() -> bool:
    """Return True for the process that prints and writes."""
    return rank() == 0


def all_gather(value: Any, group: Any = None) -> list[Any]:
    """Return the ``value`` of every process, in the order of their numbers; it must be small and picklable."""
    if world_size() == 1:
        return [value]
    import torch.distributed as dist

    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value, group=group)  # pyright: ignore[reportUnknownMemberType]  (open in PyTorch)
    return values


def broadcast_from_rank0(make: Callable[[], Result], group: Any = None) -> Result:
    """Call ``make`` in the first process, and return its result in all of them.

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
    """Replace ``values``, a tensor of any shape and dtype, by its sum over the processes. If ``later``, return a handle
    to wait for."""
    import torch.distributed as dist

    return dist.all_reduce(values, async_op=later)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def new_group(timeout: timedelta | None) -> Any:
    """Return a new group of all processes for messages on the CPU, in which each waits at most ``timeout``."""
    import torch.distributed as dist

    return dist.new_group(backend="gloo", timeout=timeout)  # pyright: ignore[reportUnknownMemberType]  (open in PyTorch)


def destroy_group(group: Any) -> None:
    """Destroy ``group``, which `new_group` returned."""
    import torch.distributed as dist

    dist.destroy_process_group(group)


def rank_zero_first(make: Callable[[], Result]) -> Result:
    """Call ``make`` in all processes and return its result, so that later calls find what earlier ones have written.

    The first process calls it first, then the first of each node, then the others. It may take hours. If a process
    raises UserError or OSError, the others raise FailedElsewhere.
    """
    if world_size() == 1:
        return make()
    patient = new_group(timedelta(days=1))
    made: Any = None
    own_turn = 0 if is_rank_zero() else 1 if local_rank() == 0 else 2
    try:
        for turn in range(3):
            error: Exception | None = None
            if turn == own_turn:
                try:
                    made = make()
                except (UserError, OSError) as raised:
                    error = raised
            problems = [] if error is None else list(getattr(error, "problems", [str(error)]))
            failures = [of_process for of_process in all_gather(problems, patient) if of_process]
            if error is not None:
                raise error
            if failures:
                raise FailedElsewhere(*failures[0])
    finally:
        destroy_group(patient)
    return made
