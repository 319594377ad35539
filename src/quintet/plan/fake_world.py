"""As many processes as a plan asks for, of which only the first exists, and models without numbers in them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from quintet.model.kernels import attend
from quintet.model.mask import lay_out
from quintet.train.loss import OTHER_LOGITS_BYTES


@contextmanager
def fake_world(processes: int, local: int, *, grouped: bool, accelerator: bool) -> Iterator[None]:
    """Within, this process is the first of ``processes``, ``local`` on each machine.

    PyTorch's fake process group, when ``grouped``, answers every collective at once, so that nothing here grows with
    their number but lists of their numbers. All tensors say that they are on a CPU, which needs no driver; with
    ``accelerator`` what chooses by device chooses as on a GPU: fused attention, larger chunks of logits.
    """
    numbers = {"RANK": "0", "WORLD_SIZE": processes, "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": min(local, processes)}
    with ExitStack() as stack:
        stack.enter_context(patch.dict(os.environ, {name: str(value) for name, value in numbers.items()}))
        if grouped:
            stack.enter_context(_fake_group(processes))
        for change in _changes(accelerator=accelerator):
            stack.enter_context(change)
        yield


@contextmanager
def _fake_group(processes: int) -> Iterator[None]:
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=processes)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _changes(*, accelerator: bool) -> list[Any]:
    """What must be otherwise where tensors have no numbers, or would be otherwise on an accelerator."""
    changes = [
        # The processes would compare their parameters, and only one has any.
        patch("quintet.train.parallel.shard.DistributedDataParallel", _without_comparing),
        patch("quintet.train.step.step_if_finite", _step),
        patch("quintet.model.transformer.lay_out", _one_document),
    ]
    if accelerator:
        changes += [
            patch("quintet.model.transformer.choose_kernel", lambda *_, **__: "sdpa"),
            patch("quintet.model.transformer.attend", _fused),
            patch.dict("quintet.train.loss.LOGITS_BYTES", {"cpu": OTHER_LOGITS_BYTES}),
        ]
    return changes


def _without_comparing(*arguments: Any, **named: Any) -> DistributedDataParallel:
    """The fake group has no future for the reducer in C++ to wait for, so a hook sends the buckets; and what the
    reducer does after the first step, to order them by when they were ready, it does with numbers."""
    made = DistributedDataParallel(*arguments, **named, init_sync=False)
    made.register_comm_hook(None, _send_bucket)
    made.reducer = _InOrder(made.reducer)  # pyright: ignore[reportAttributeAccessIssue]
    return made


class _InOrder:
    def __init__(self, reducer: Any) -> None:
        self._reducer = reducer

    def __getattr__(self, name: str) -> Any:
        return (lambda: False) if name == "_rebuild_buckets" else getattr(self._reducer, name)


def _send_bucket(_, bucket):  # DDP compares annotations with classes, and here they are words
    dist.all_reduce(bucket.buffer())
    sent: torch.futures.Future[Tensor] = torch.futures.Future()
    sent.set_result(bucket.buffer())
    return sent


def _step(optimizer: torch.optim.Optimizer, norm: Tensor) -> Tensor:
    """An optimizer that cannot leave out a step by itself would read a number first."""
    optimizer.step()
    return torch.zeros_like(norm)


def _one_document(*arguments: Any, **named: Any) -> Any:
    """Where documents begin is not known; one that fills the sample costs most."""
    layout = lay_out(*arguments, **named)
    ranges = replace(layout.ranges, first=None, last=None)
    return replace(layout, ranges=ranges)


def _fused(queries: Tensor, keys: Tensor, values: Tensor, mask: Any, *, dropout: float = 0.0, **named: Any) -> Tensor:
    """Fused kernels of GPUs drop weights without keeping them, which that of a CPU cannot."""
    return attend(queries, keys, values, mask, dropout=0.0, **named)
