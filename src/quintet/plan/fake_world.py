"""As many processes as a plan asks for, of which only the first exists, and models without numbers in them."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from quintet.config.model import TransformerConfig
from quintet.config.schema import RunConfig
from quintet.model.mask import lay_out
from quintet.processes import all_reduce
from quintet.tokenize import Tokenizer
from quintet.tokenize.base import TokenBytes
from quintet.train.cross_entropy import default_chunk


@contextmanager
def fake_world(processes: int, local: int, *, grouped: bool) -> Generator[None]:
    """Within, this process is the first of ``processes``, ``local`` on each machine.

    PyTorch's fake process group, when ``grouped``, answers every collective at once, so that nothing here grows with
    their number but lists of their numbers.
    """
    numbers = {"RANK": "0", "WORLD_SIZE": processes, "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": min(local, processes)}
    with ExitStack() as stack:
        stack.enter_context(patch.dict(os.environ, {name: str(value) for name, value in numbers.items()}))
        if grouped:
            stack.enter_context(_fake_group(processes))
        yield


@contextmanager
def _fake_group(processes: int) -> Generator[None]:
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=processes)
    try:
        yield
    finally:
        dist.destroy_process_group()


def wrap_without_comparing(*arguments: Any, **named: Any) -> DistributedDataParallel:
    """Wrap a module as DDP does, without the comparison of the processes' parameters, for only one process has any.

    The fake group has no future for the reducer in C++ to wait for, so a hook sends the buckets; and what the
    reducer does after the first step, to order them by when they were ready, it does with numbers."""
    made = DistributedDataParallel(*arguments, **named, init_sync=False)
    hooked: Any = made
    hooked.register_comm_hook(None, _send_bucket)
    made.reducer = _InOrder(made.reducer)  # pyright: ignore[reportAttributeAccessIssue]
    return made


class _InOrder:
    def __init__(self, reducer: Any) -> None:
        self._reducer = reducer

    def __getattr__(self, name: str) -> Any:
        return (lambda: False) if name == "_rebuild_buckets" else getattr(self._reducer, name)


def _send_bucket(_: Any, bucket: Any) -> torch.futures.Future[Tensor]:
    all_reduce(bucket.buffer())
    sent: torch.futures.Future[Tensor] = torch.futures.Future()
    sent.set_result(bucket.buffer())
    return sent


_send_bucket.__annotations__.clear()  # DDP compares them with classes, and here they are words


@dataclass(frozen=True)
class _Sizes:
    """The facts of a tokenizer that a model is built from."""

    vocab_size: int
    end_id: int = 0  # stands for the mask
    pieces = TokenBytes(())


def fake_tokenizer(vocab_size: int) -> Tokenizer:
    """A tokenizer of which nothing but the ``vocab_size`` is known: enough to build a model and its loss."""
    return cast(Tokenizer, _Sizes(vocab_size))


def take_step(optimizer: torch.optim.Optimizer, norm: Tensor) -> Tensor:
    """Take a step whatever the norm is: an optimizer that cannot leave one out by itself would read a number first."""
    optimizer.step()
    return torch.zeros_like(norm)


def lay_out_one_document(*arguments: Any, **named: Any) -> Any:
    """Lay out a sample as one document, which costs most: where documents begin is not known."""
    layout = lay_out(*arguments, **named)
    ranges = replace(layout.ranges, first=None, last=None)
    return replace(layout, ranges=ranges)


def as_on_accelerator(config: RunConfig, vocab_size: int) -> RunConfig:
    """``config`` with what is chosen by device as a GPU has it, for tensors that all say they are on a CPU.

    Attention is fused, and drops weights without keeping them, which the kernel of a CPU cannot; chunks of logits are
    larger.
    """
    changes: dict[str, Any] = {}
    if isinstance(config.model, TransformerConfig):
        attention = config.model.attention.model_copy(update={"backend": "sdpa", "dropout": 0.0})
        changes["model"] = config.model.model_copy(update={"attention": attention})
    if config.loss.chunk is None:
        changes["loss"] = config.loss.model_copy(update={"chunk": default_chunk(vocab_size, "cuda")})
    return config.model_copy(update=changes)
