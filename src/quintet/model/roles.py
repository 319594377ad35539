"""The role of each parameter: what it does to what passes through, told by its module and its name.

A shape does not tell: gains of a norm of heads, biases of experts and of gates have two dimensions and more. The rules
are those of transformers' ``get_parameter_names`` (norms by their class, biases by their name), and these beyond them:
what a linear layer multiplies with is a matrix wherever it stands, and a parameter along one axis alone, a scale, or
one of which its module says ``_no_weight_decay``, is none.
"""

from __future__ import annotations

import re
from typing import Literal

from torch import Tensor, nn

Role = Literal["matrix", "embedding", "gain", "bias", "vector"]
"""``vector`` is what is no matrix and no gain or bias of a known kind: decays of a state, scales of a branch, sinks."""

_NORM = re.compile(r"layernorm|rmsnorm|(^|\.)norm($|\.)|_norm($|\.)")
_SCALE = re.compile(r"(^|_)(scale|scales|gain|gamma|a_log)$")


def roles(model: nn.Module) -> dict[str, Role]:
    """The role of each parameter of ``model`` by its name, those that are tied once, as ``named_parameters`` has it."""
    modules = dict(model.named_modules())
    return {
        name: role_of(modules[name.rpartition(".")[0]], name, parameter) for name, parameter in model.named_parameters()
    }


def role_of(module: nn.Module, name: str, parameter: Tensor) -> Role:
    """The role of ``parameter``, called ``name`` in the model and a parameter of ``module`` itself."""
    path, leaf = name.lower(), name.lower().rpartition(".")[2]
    kind = type(module).__name__
    if isinstance(module, nn.Linear | nn.modules.conv._ConvNd) or kind == "Conv1D":
        return _of_a_product(leaf)
    if "bias" in path:  # tables of biases by distance are embeddings by their class
        return "bias"
    if isinstance(module, nn.Embedding):
        return "embedding"
    if "norm" in kind.lower() or _NORM.search(path.rpartition(".")[0].rpartition(".")[2]) or _NORM.search(leaf):
        return "gain"
    if getattr(parameter, "_no_weight_decay", False) or _SCALE.search(leaf):
        return "vector"
    # A tensor along one axis alone, however many it has, is a vector.
    return "matrix" if sum(size > 1 for size in parameter.shape) >= 2 else "vector"


def _of_a_product(leaf: str) -> Role:
    if "bias" in leaf:
        return "bias"
    return "vector" if _SCALE.search(leaf) else "matrix"
