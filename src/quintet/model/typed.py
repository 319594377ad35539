"""Typed wrappers of PyTorch functions whose annotations are incomplete.

Pyright checks ``quintet.model`` in its strict mode; this file alone ignores what it does not know about PyTorch.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

P = ParamSpec("P")
R = TypeVar("R")


def as_list(values: Tensor) -> list[Any]:
    """Return ``values`` [length, ...] of any dtype as a list of Python numbers, nested for several dimensions.

    >>> as_list(torch.tensor([[1, 2], [3, 4]]))
    [[1, 2], [3, 4]]
    """
    return values.tolist()


def apply(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    """Return the results of the forward pass of ``function`` and record its backward pass."""
    return function.apply(*arguments)


def from_array(values: np.ndarray) -> Tensor:
    """Return a tensor that shares the memory of ``values``, in their shape and dtype."""
    return torch.from_numpy(values)


def in_heads(values: Tensor, features: int) -> Tensor:
    """View ``values`` [..., heads * features] of any dtype as [..., heads, features]."""
    return values.unflatten(-1, (-1, features))


def on_gradient(values: Tensor, call: Callable[[], object]) -> None:
    """Call ``call`` as soon as the gradient of ``values``, of any shape and dtype, is computed."""

    def hook(_: Tensor) -> None:
        call()

    values.register_hook(hook)


def replace_gradient(values: Tensor, call: Callable[[Tensor], Tensor]) -> None:
    """Replace the gradient of ``values``, of any shape and dtype, by the result of ``call``."""
    values.register_hook(call)


def vector_norm(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the Euclidean norm of floats ``values`` [..., width] over the last dimension, in ``dtype``: [..., 1].

    >>> vector_norm(torch.tensor([[3.0, 4.0]]), torch.float64)
    tensor([[5.]], dtype=torch.float64)
    """
    return torch.linalg.vector_norm(values, dim=-1, keepdim=True, dtype=dtype)


def compiled(function: Callable[P, R], **options: Any) -> Callable[P, R]:
    """Return ``function`` under ``torch.compile``, which compiles it when it is first called."""
    return torch.compile(function, **options)


def never_compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Return ``function`` such that compiled code leaves it as it is; its first call imports the compiler."""
    eager: Any = torch._disable_dynamo(function)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
    return eager


def keep_address(*tensors: Tensor) -> None:
    """Promise the compiler that ``tensors``, of any shape and dtype, keep their addresses when compiled code writes to
    them; without this it records no CUDA graph."""
    for tensor in filter(lambda tensor: tensor.is_cuda, tensors):
        torch._dynamo.mark_static_address(tensor, guard=False)  # pyright: ignore[reportPrivateUsage]


def named_modules(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield ``module`` and all modules inside it, each with its name."""
    return module.named_modules()


@contextmanager
def forked_generator(seed: int | None = None) -> Generator[None]:
    """Seed the CPU's global generator with ``seed`` inside the context, and restore its state on exit."""
    with torch.random.fork_rng(devices=[]):
        if seed is not None:
            torch.manual_seed(seed)
        yield
