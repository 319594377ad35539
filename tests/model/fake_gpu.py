"""A GPU without values: PyTorch's fake tensors, which refuse to mix devices, and counts of the host's waits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from quintet.model import generate, kernels

GPU = torch.device("cuda", 0)
aten = torch.ops.aten


class _Waits(TorchDispatchMode):
    """Counts the waits of the host: copies of memory that is not pinned, and reads of values."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        devices = {one.device.type for one in (*args, found) if isinstance(one, Tensor)}
        if "copy" in str(func) and len(devices) > 1:
            self.counts["copies"] += 1
        if str(func).startswith(("aten._local_scalar", "aten.nonzero", "aten.equal")):
            self.counts["reads"] += 1
        return found


class _Operators(TorchFunctionMode):
    """Python's brackets and signs as operations that do not ask the driver for the current device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__getitem__ and args[0].is_cuda:
            return _indexed(*args)
        if func is Tensor.__setitem__ and args[0].is_cuda:
            part, value = _indexed(*args[:2]), args[2]
            return aten.copy_.default(part, value) if isinstance(value, Tensor) else aten.fill_.Scalar(part, value)
        if func is Tensor.__invert__:
            return aten.bitwise_not.default(*args)
        if func is Tensor.long:
            return aten._to_copy.default(*args, dtype=torch.long)
        return func(*args, **(kwargs or {}))


def _indexed(values: Tensor, index: Any) -> Tensor:
    index = index if isinstance(index, tuple) else (index,)
    if Ellipsis in [one for one in index if not isinstance(one, Tensor)]:
        at = next(number for number, one in enumerate(index) if one is Ellipsis)
        used = sum(one is not None for one in index) - 1
        index = (*index[:at], *[slice(None)] * (values.dim() - used), *index[at + 1 :])
    dimension, chosen = 0, dict[int, Tensor]()
    for one in index:
        if isinstance(one, int):
            values = aten.select.int(values, dimension, one)
            continue
        if one is None:
            values = aten.unsqueeze.default(values, dimension)
        elif isinstance(one, slice):
            values = aten.slice.Tensor(values, dimension, one.start, one.stop, one.step or 1)
        else:
            chosen[dimension] = one
        dimension += 1
    return aten.index.Tensor(values, [chosen.get(n) for n in range(max(chosen) + 1)]) if chosen else values


@contextmanager
def fake_gpu(monkeypatch: pytest.MonkeyPatch, model: nn.Module) -> Iterator[Counter[str]]:
    """Move ``model`` from the meta device to a GPU inside the context, in which the host reads 1 for each value; yield
    the counts of copies and reads for which the host would wait."""

    def ones(values: Tensor) -> Any:
        waits.counts["reads"] += 1
        return _nested(values.shape)

    def not_yet(search: Any) -> bool:
        waits.counts["reads"] += 1
        return False

    waits = _Waits()
    for module in (generate, kernels):
        monkeypatch.setattr(module, "as_list", ones)
    monkeypatch.setattr(generate._Search, "ended", property(not_yet))
    # No generator lies on a fake GPU.
    monkeypatch.setattr(generate, "_generators", lambda device, seed, rows: [None for _ in rows])
    with FakeTensorMode(allow_non_fake_inputs=True), waits, _Operators(), torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            owner = model.get_submodule(name.rpartition(".")[0])
            there = torch.empty(value.shape, dtype=value.dtype, device=GPU)
            setattr(owner, name.rpartition(".")[2], nn.Parameter(there) if isinstance(value, nn.Parameter) else there)
        yield waits.counts


def _nested(shape: torch.Size) -> Any:
    return 1 if not shape else [_nested(shape[1:]) for _ in range(shape[0])]
