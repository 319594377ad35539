"""The model: a transformer built from the parts that the run file names, or a model of the transformers library.

The names below are imported on first use, because ``quintet.model.count`` needs no PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quintet.model.build import Model, build_model
    from quintet.model.transformer import Transformer

_HOMES = {
    "Model": "quintet.model.build",
    "build_model": "quintet.model.build",
    "Transformer": "quintet.model.transformer",
}
__all__ = ["Model", "Transformer", "build_model"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
