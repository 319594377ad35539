"""A counter of the memory, the traffic and the FLOPs of a computation, by operation, on real or fake tensors."""

import weakref
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import _resolve_process_group  # pyright: ignore[reportPrivateUsage]
from torch._subclasses import FakeTensor  # pyright: ignore[reportPrivateUsage]
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten
_ATTENTION = {
    aten._scaled_dot_product_flash_attention_for_cpu.default: 2,
    aten._scaled_dot_product_flash_attention_for_cpu_backward.default: 5,
}
# PyTorch's operations for collectives: the name to show, and the argument with the whole tensor (None: the result).
_COLLECTIVES = {
    "_allgather_base_": ("all-gather", 0),
    "allgather_": ("all-gather", 0),
    "_reduce_scatter_base_": ("reduce-scatter", 1),
    "reduce_scatter_": ("reduce-scatter", 1),
    "allreduce_": ("all-reduce", 0),
    "allreduce_coalesced_": ("all-reduce", 0),
    "broadcast_": ("broadcast", 0),
    "_all_gather_into_tensor": ("all-gather", None),
    "all_gather_into_tensor": ("all-gather", None),
    "reduce_scatter_tensor": ("reduce-scatter", 0),
    "all_reduce": ("all-reduce", 0),
    "all_reduce_": ("all-reduce", 0),
}


@dataclass
class Sent:
    """Calls of one collective, and the bytes of the whole tensors: what an all-gather gives, what a reduce-scatter or
    an all-reduce takes."""

    calls: int = 0
    bytes: int = 0


class Counter(TorchDispatchMode):
    """Within the context, counts what operations allocate (``live`` bytes now), send (``sent``) and compute.

    ``calls`` has for each operation its FLOPs (of matrix products and attention) and the bytes that it reads and
    writes. A storage counts once, from the operation that creates it until it is freed. ``gathered`` counts the bytes
    of storages that were resized, as FSDP resizes those of gathered weights. ``peaks`` holds for each phase the most
    live bytes, and the gathered ones among them. Reading a fake number gives 1 for a float and else the largest
    integer, so that a count that is read before use (as that of the targets) is not too small.
    """

    def __init__(self) -> None:
        super().__init__()  # pyright: ignore[reportUnknownMemberType]  (open in PyTorch)
        self.live = self.gathered = 0
        self.peaks: dict[Any, tuple[int, int]] = {}
        self.sent: dict[tuple[str, tuple[int, ...]], Sent] = {}
        self.calls: list[tuple[int, int]] = []
        self._phase: Any = None
        self._sizes: dict[int, int] = {}
        self._resized: set[int] = set()

    def reset(self) -> None:
        """Forget peaks, traffic and calls; live storages stay counted."""
        self.peaks, self.sent, self.calls = {}, {}, []

    def enter(self, phase: Any) -> None:
        """Start ``phase``, which has a peak of its own."""
        self._phase = phase
        self._update_peak()

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # the operations on its local part are dispatched by themselves
        kwargs = kwargs or {}
        if func is aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return 1.0 if args[0].is_floating_point() else torch.iinfo(torch.int64).max
        out = func(*args, **kwargs)
        tensors = [tensor for tensor in tree_iter(out) if isinstance(tensor, Tensor)]
        for tensor in tensors:
            self.see(tensor)
        if func.namespace in ("c10d", "_c10d_functional"):
            self._count_traffic(func, args, out)
        elif not func.is_view:
            self._count_work(func, args, kwargs, out, tensors)
        return out

    def see(self, tensor: Tensor) -> None:
        """Count the storage of ``tensor``, of any shape and dtype, unless it is counted already."""
        storage = tensor.untyped_storage()
        key = _address(storage)
        if key not in self._sizes:
            weakref.finalize(storage, self._free, key)
            self._sizes[key] = 0
            self._set(key, storage.nbytes())

    @contextmanager
    def resizing(self) -> Generator[None]:
        """Within, follow storages that are resized."""
        resize: Callable[..., Any] = torch.UntypedStorage.resize_

        def resize_and_count(storage: torch.UntypedStorage, size: int) -> Any:
            result = resize(storage, size)
            key = _address(storage)
            if key in self._sizes:
                if key not in self._resized:
                    self._resized.add(key)
                    self.gathered += self._sizes[key]
                self._set(key, size)
            return result

        with patch.object(torch.UntypedStorage, "resize_", resize_and_count):
            yield

    def _set(self, key: int, size: int) -> None:
        change = size - self._sizes[key]
        self._sizes[key] = size
        self.live += change
        if key in self._resized:
            self.gathered += change
        self._update_peak()

    def _update_peak(self) -> None:
        if self.live > self.peaks.get(self._phase, (-1, 0))[0]:
            self.peaks[self._phase] = (self.live, self.gathered)

    def _free(self, key: int) -> None:
        self._set(key, 0)
        del self._sizes[key]
        self._resized.discard(key)

    def _count_traffic(self, func: Any, args: tuple[Any, ...], out: Any) -> None:
        collective = _COLLECTIVES.get(func._schema.name.split("::")[1])
        if collective is None:
            return
        name, place = collective
        whole = out if place is None else args[place]
        entry = self.sent.setdefault((name, tuple(_ranks(func, args))), Sent())
        entry.calls += 1
        entry.bytes += sum(_bytes(tensor) for tensor in tree_iter(whole) if isinstance(tensor, Tensor))

    def _count_work(self, func: Any, args: Any, kwargs: Any, out: Any, tensors: list[Tensor]) -> None:
        flops = 0
        if func in _ATTENTION:
            flops = _attention_flops(func, args, kwargs)
        elif func._overloadpacket in flop_registry:
            flops = flop_registry[func._overloadpacket](*args, **kwargs, out_val=out)
        read = [tensor for tensor in tree_iter((args, kwargs)) if isinstance(tensor, Tensor)]
        self.calls.append((flops, sum(map(_bytes, read)) + sum(map(_bytes, tensors))))


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of the storages of ``tensors`` in this process, each once; of a DTensor its local part."""
    local = (tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors)
    return sum({_address(storage): storage.nbytes() for storage in (t.untyped_storage() for t in local)}.values())


def _address(storage: torch.UntypedStorage) -> int:
    return storage._cdata  # pyright: ignore[reportPrivateUsage]


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _attention_flops(func: Any, args: Any, kwargs: Any) -> int:
    """Return the FLOPs of fused attention: 2 matrix products forward, and 5 backward, which computes the weights again;
    half of that if causal."""
    products = _ATTENTION[func]
    shift = 1 if products == 5 else 0  # the backward pass gets the gradient first
    queries, keys = args[shift], args[shift + 1]
    causal = kwargs.get("is_causal", args[7] if products == 5 else args[4] if len(args) > 4 else False)
    batch, heads, length, features = queries.shape
    return products * 2 * batch * heads * length * keys.shape[2] * features // (2 if causal else 1)


def _ranks(func: Any, args: tuple[Any, ...]) -> list[int]:
    """Return the ranks of the group in the arguments of a collective."""
    for argument, value in zip(func._schema.arguments, args, strict=False):
        if argument.name == "group_name":
            return dist.get_process_group_ranks(_resolve_process_group(value))
        if argument.name == "process_group":
            group = dist.ProcessGroup.unbox(value) if isinstance(value, torch.ScriptObject) else value
            return dist.get_process_group_ranks(group)
    return list(range(dist.get_world_size()))
