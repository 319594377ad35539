"""The model: a transformer put together from the parts that the run file names.

``quintet.model.count`` needs no PyTorch, so the names below are looked up when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quintet.model.transformer import Transformer, build_model

__all__ = ["Transformer", "build_model"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("quintet.model.transformer"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
