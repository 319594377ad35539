"""A CPU that plays MPS: tensors of the CPU that say that they are on MPS, and operations that refuse what MPS lacks."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torchgen
import yaml
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MPS = torch.device("mps", 0)
# MPS has no float64 (https://developer.apple.com/metal/Metal-Shading-Language-Specification.pdf, 2.1), and complex
# numbers for some operations of newer systems only.
ABSENT = {torch.float64, torch.complex32, torch.complex64, torch.complex128}
# Copies go from device to device, an index may be on the host.
BETWEEN = {"copy_", "_to_copy", "index", "index_put", "index_put_", "_index_put_impl_", "_foreach_copy_"}
_GET_DEVICE = torch.Tensor.device.__get__  # type: ignore[attr-defined]


class Refused(RuntimeError):
    """MPS cannot do this."""


@functools.cache
def without_kernel() -> frozenset[str]:
    """The operations with kernels of their own for other devices and none for MPS, as PyTorch lists them in the file
    from which it makes its operations (aten/src/ATen/native/native_functions.yaml, which the wheel brings)."""
    listing = Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml"
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    functions = {entry["func"].partition("(")[0]: entry for entry in yaml.load(listing.read_text(), loader)}

    def is_served(entry: dict[str, Any]) -> bool:
        if "structured_delegate" in entry:
            return is_served(functions[entry["structured_delegate"]])
        keys = ",".join(entry.get("dispatch", {"CompositeImplicitAutograd": ""}))
        name, _, overload = entry["func"].partition("(")[0].partition(".")
        writing = functions.get(f"{name}.{overload}_out" if overload else f"{name}.out")
        # What is composed for all devices may call the form that writes into a tensor, which is not.
        composed = "CompositeImplicit" in keys or ("Composite" in keys and (writing is None or is_served(writing)))
        return "MPS" in keys or composed

    return frozenset(name for name, entry in functions.items() if not is_served(entry))


class _Operations(TorchDispatchMode):
    """Passes on to results that they are on MPS, and raises Refused."""

    def __init__(self) -> None:
        super().__init__()
        self.on_mps: set[StorageWeakRef] = set()
        self.used: set[str] = set()
        self.composing = False  # PyTorch makes tensors of its own, which it takes for those of the CPU

    def has(self, tensor: torch.Tensor) -> bool:
        """Whether ``tensor`` is on MPS."""
        return StorageWeakRef(tensor.untyped_storage()) in self.on_mps

    def put(self, tensor: torch.Tensor) -> torch.Tensor:
        """Have ``tensor`` be there. Raises Refused."""
        if tensor.dtype in ABSENT:
            raise Refused(f"MPS has no {tensor.dtype}")
        self.on_mps.add(StorageWeakRef(tensor.untyped_storage()))
        return tensor

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
        there = [self.has(one) for one in inputs]
        if not any(there):
            return result
        name = func.name().removeprefix("aten::")
        self.used.add(name)
        if name in without_kernel():
            raise Refused(f"MPS has no {name}")
        if (
            not self.composing
            and name.partition(".")[0] not in BETWEEN
            and any(one.dim() and not is_there for one, is_there in zip(inputs, there, strict=True))
        ):
            raise Refused(f"{name} is asked for tensors of the CPU and of MPS")
        for one in tree_leaves(result):
            if isinstance(one, torch.Tensor) and not (name.startswith("copy_") and not there[0]):
                self.put(one)
        return result


class _Claims(TorchFunctionMode):
    """Takes mps for cpu in what Python asks PyTorch for, and says of tensors that are there that they are."""

    def __init__(self, operations: _Operations) -> None:
        super().__init__()
        self.operations = operations

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        has, name = self.operations.has, getattr(func, "__name__", "")
        if func == _GET_DEVICE:
            return MPS if has(args[0]) else func(*args)
        if name == "numpy" and has(args[0]):
            raise Refused("a tensor on MPS is no array")
        if name == "pin_memory":
            raise Refused("MPS takes no pinned memory")
        if name in ("cpu", "to") and isinstance(args[0], torch.Tensor):
            return self._moved(func, args, kwargs)
        if func is torch.Tensor.backward:  # of a loss; backward passes of Python shall ask here too
            engine = torch.autograd.Variable._execution_engine
            with self:
                seed = torch.ones_like(args[0])
                return engine.run_backward((args[0],), (seed,), False, False, (), True, accumulate_grad=True)
        if name == "tolist" and has(args[0]):
            return func(self._at_home(args[0]))
        if name == "scaled_dot_product_attention":  # PyTorch chooses its kernel by the real device
            self.operations.composing = True
            try:
                with sdpa_kernel(SDPBackend.MATH):
                    return func(*args, **kwargs)
            finally:
                self.operations.composing = False
        wanted = kwargs.get("device")
        if wanted is None or torch.device(wanted).type != "mps":
            return func(*args, **kwargs)
        return self.operations.put(func(*args, **(kwargs | {"device": "cpu"})))

    def _moved(self, func: Any, args: Any, kwargs: dict[str, Any]) -> torch.Tensor:
        given = [one for one in (*args[1:], kwargs.get("device")) if isinstance(one, str | torch.device)]
        given += [_GET_DEVICE(one) if not self.operations.has(one) else MPS for one in args[1:] if torch.is_tensor(one)]
        target = "cpu" if func.__name__ == "cpu" else torch.device(given[0]).type if given else None
        there = self.operations.has(args[0])
        home = [torch.device("cpu") if isinstance(one, str | torch.device) else one for one in args]
        if "device" in kwargs:
            kwargs["device"] = torch.device("cpu")
        if target == "mps" and not there:
            # What is converted on the way is converted on the CPU first.
            return self.operations.put(func(*home, **kwargs).clone())
        if target == "cpu" and there:
            return func(self._at_home(args[0]), *home[1:], **kwargs)
        return func(*home, **kwargs)

    def _at_home(self, tensor: torch.Tensor) -> torch.Tensor:
        with torch._C._DisableTorchDispatch():
            return tensor.detach().clone()


@contextmanager
def playing_mps(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Operations]:
    """Within, there is a device mps."""
    operations = _Operations()

    class Generator(torch.Generator):
        def __new__(cls, device: Any = "cpu") -> Any:
            return super().__new__(cls, "cpu" if torch.device(device).type == "mps" else device)

    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "synchronize", lambda: None)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 1 << 20)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 1 << 33)
    monkeypatch.setattr(torch, "Generator", Generator)
    with operations, _Claims(operations):
        yield operations
