"""PyTorch's functions whose own annotations leave a type open, with the types that they have.

Pyright checks all of ``quintet.model`` in its strict mode; what it does not know about PyTorch is ignored here.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

P = ParamSpec("P")
R = TypeVar("R")


def as_list(values: Tensor) -> list[Any]:
    """The numbers of ``values`` [length, ...] of any dtype as Python's; nested lists where there are more dimensions.

    >>> as_list(torch.tensor([[1, 2], [3, 4]]))
    [[1, 2], [3, 4]]
    """
    return values.tolist()


def apply(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    """The results of the forward pass of ``function``, whose backward pass autograd then runs."""
    return function.apply(*arguments)


def from_array(values: np.ndarray) -> Tensor:
    """The tensor that shares the memory of ``values``, in their shape and dtype."""
    return torch.from_numpy(values)


def in_heads(values: Tensor, features: int) -> Tensor:
    """``values`` [..., heads * features] of any dtype as [..., heads, features]."""
    return values.unflatten(-1, (-1, features))


def on_gradient(values: Tensor, call: Callable[[], object]) -> None:
    """Call ``call`` when the gradient of ``values``, of any shape and dtype, is known."""

    def told(_: Tensor) -> None:
        call()

    values.register_hook(told)


def vector_norm(values: Tensor, dtype: torch.dtype) -> Tensor:
    """The Euclidean norm over the last dimension of floats ``values`` [..., width], computed in ``dtype``: [..., 1].

    >>> vector_norm(torch.tensor([[3.0, 4.0]]), torch.float64)
    tensor([[5.]], dtype=torch.float64)
    """
    return torch.linalg.vector_norm(values, dim=-1, keepdim=True, dtype=dtype)


def compiled(function: Callable[P, R], **options: Any) -> Callable[P, R]:
    """``function`` as ``torch.compile`` compiles it when it is first called."""
    return torch.compile(function, **options)


def never_compiled(function: Callable[P, R]) -> Callable[P, R]:
    """``function`` as it is, also where compiled code calls it; the compiler is imported by its first call."""
    found: Any = torch._disable_dynamo(function)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
    return found


def keep_address(*tensors: Tensor) -> None:
    """Tell compiled code that ``tensors``, of any shape and dtype, stay where they are while it writes to them; else it
    could not be recorded as a CUDA graph."""
    for tensor in filter(lambda tensor: tensor.is_cuda, tensors):
        torch._dynamo.mark_static_address(tensor, guard=False)  # pyright: ignore[reportPrivateUsage]


def named_modules(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """``module`` and all modules inside it, each with its name."""
    return module.named_modules()


@contextmanager
def forked_generator(seed: int | None = None) -> Generator[None]:
    """Within, the CPU's global generator draws from ``seed``; afterwards it continues as if nothing was drawn."""
    with torch.random.fork_rng(devices=[]):
        if seed is not None:
            torch.manual_seed(seed)
        yield
