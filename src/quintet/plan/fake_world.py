"""A simulated group of processes, of which only the first exists, and parts of a run that need no numbers."""

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
    """Within, make this process the first of ``processes``, with ``local`` processes on each node.

    If ``grouped``, PyTorch's fake process group answers each collective at once, so that only lists of ranks grow with
    the number of processes.
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
    """Wrap a module in DDP without comparing the parameters of the processes, because only one process has any.

    A hook sends the buckets, because the fake group gives the C++ reducer no future to wait for. The reducer may not
    reorder the buckets after the first step, because that needs numbers.
    """
    wrapped: Any = DistributedDataParallel(*arguments, **named, init_sync=False)
    wrapped.register_comm_hook(None, _send_bucket)
    wrapped.reducer = _InOrder(wrapped.reducer)
    return wrapped


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


_send_bucket.__annotations__.clear()  # DDP compares them with classes, and here they are strings


@dataclass(frozen=True)
class _Sizes:
    """The properties of a tokenizer that a model is built from."""

    vocab_size: int
    end_id: int = 0  # also taken for the mask
    pieces = TokenBytes(())


def fake_tokenizer(vocab_size: int) -> Tokenizer:
    """Return a tokenizer that has only a ``vocab_size``, which is enough to build a model and its loss."""
    return cast(Tokenizer, _Sizes(vocab_size))


def take_step(optimizer: torch.optim.Optimizer, norm: Tensor) -> Tensor:
    """Take a step whatever the ``norm``, a scalar of any dtype, is: a real step may read it, and it has no value."""
    optimizer.step()
    return torch.zeros_like(norm)


def lay_out_one_document(*arguments: Any, **named: Any) -> Any:
    """Lay out a sample as one document, which costs most, because the ends of the documents are not known."""
    layout = lay_out(*arguments, **named)
    ranges = replace(layout.ranges, first=None, last=None)
    return replace(layout, ranges=ranges)


def as_on_accelerator(config: RunConfig, vocab_size: int) -> RunConfig:
    """Return ``config`` with the settings that would be chosen on a GPU, because simulated tensors are on a CPU.

    Attention is fused and keeps no mask for dropout, which the kernel of a CPU cannot do; chunks of logits are larger.
    """
    changes: dict[str, Any] = {}
    if isinstance(config.model, TransformerConfig):
        attention = config.model.attention.model_copy(update={"backend": "sdpa", "dropout": 0.0})
        changes["model"] = config.model.model_copy(update={"attention": attention})
    if config.loss.chunk is None:
        changes["loss"] = config.loss.model_copy(update={"chunk": default_chunk(vocab_size, "cuda")})
    return config.model_copy(update=changes)
