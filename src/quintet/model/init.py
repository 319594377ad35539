"""The role of each parameter, and its initial value.

Each parameter is drawn from a generator of its own, keyed by the seed and the parameter's name. So the initial values
of a layer depend neither on the rest of the model nor on the order of building, and PyTorch's global generator is not
used.
"""

import copy
import math
import re
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from quintet.config.model import (
    KaimingInitConfig,
    NoInitConfig,
    NormalInitConfig,
    PretrainedInitConfig,
    TransformerConfig,
    XavierInitConfig,
)
from quintet.model.typed import forked_generator, named_modules
from quintet.randomness import key

Role = Literal["matrix", "embedding", "gain", "bias", "vector"]
"""A ``vector`` is a parameter of no other role: decays of a state, scales of a branch, attention sinks."""

_NORM = re.compile(r"layernorm|rmsnorm|(^|\.)norm($|\.)|_norm($|\.)")
_DIFFERENCE = re.compile(r"_differences?\.(\w+\.)?(down|up)$")
_SCALE = re.compile(r"(^|_)(scale|scales|gain|gamma|a_log)$")


def roles(model: nn.Module) -> dict[str, Role]:
    """Return the role of each parameter of ``model`` by its name in ``named_parameters``, which has tied ones once."""
    modules = dict(named_modules(model))
    return {
        name: role_of(modules[name.rpartition(".")[0]], name, parameter) for name, parameter in model.named_parameters()
    }


def role_of(module: nn.Module, name: str, parameter: Tensor) -> Role:
    """Return the role of ``parameter``, of any shape and dtype, which belongs to ``module`` and is ``name`` in the
    model.

    >>> role_of(layer := nn.Linear(2, 2), "head.bias", layer.bias)
    'bias'
    """
    path, leaf = name.lower(), name.lower().rpartition(".")[2]
    kind = type(module).__name__
    convolution = nn.modules.conv._ConvNd  # pyright: ignore[reportPrivateUsage]  (the base of all convolutions)
    if isinstance(module, nn.Linear | convolution) or kind == "Conv1D":
        return _role_in_product(leaf)
    if "bias" in path:  # tables of biases by distance are embeddings by their class
        return "bias"
    if isinstance(module, nn.Embedding):
        return "embedding"
    if "norm" in kind.lower() or _NORM.search(path.rpartition(".")[0].rpartition(".")[2]) or _NORM.search(leaf):
        return "gain"
    if getattr(parameter, "_no_weight_decay", False) or _SCALE.search(leaf):
        return "vector"
    # A tensor with only one axis longer than 1 is a vector.
    return "matrix" if sum(size > 1 for size in parameter.shape) >= 2 else "vector"


def _role_in_product(leaf: str) -> Role:
    if "bias" in leaf:
        return "bias"
    return "vector" if _SCALE.search(leaf) else "matrix"


EMBEDDING_STD = 0.02
RESIDUAL_WRITERS = ("attention.output.weight", "attention_output.weight", "feedforward.down.weight")
EMBEDDINGS = ("embedding.weight", "position.weight")
"""The ends of the names of the embeddings of ids and positions."""
GAINS = {
    "linear": 1.0,
    "sigmoid": 1.0,
    "tanh": 5 / 3,
    "relu": math.sqrt(2.0),
    "gelu": math.sqrt(2.0),
    "silu": math.sqrt(2.0),
    "leaky_relu": math.sqrt(2.0 / (1 + 0.01**2)),
}
"""The factors that keep the variance through a nonlinearity, as in PyTorch's ``calculate_gain``; leaky_relu has a slope
of 0.01."""


def initialise(model: nn.Module, config: TransformerConfig, seed: int) -> None:
    """Give each parameter of ``model``, which may be on the meta device, its initial value, in fp32 on the CPU."""
    for name, value in first_values(model, config, seed):
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, nn.Parameter(value))


def first_values(model: nn.Module, config: TransformerConfig, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and initial value, fp32 on the CPU in the parameter's shape, of each parameter of ``model``, so
    that not all have to be in memory at once. Only the shapes of ``model`` are read."""
    if isinstance(config.init, NoInitConfig):
        yield from _values_of_pytorch(model, seed)
        return
    role = roles(model)
    for name, parameter in list(model.named_parameters()):
        value = torch.empty(parameter.shape, dtype=torch.float32)
        with torch.no_grad():
            _fill(value, name, role[name], config, torch.Generator().manual_seed(key(seed, "init", name)))
        yield name, value


def _fill(value: Tensor, name: str, role: Role, config: TransformerConfig, generator: torch.Generator) -> None:
    """Fill fp32 ``value``, of any shape, in place: gains with 1, biases with 0, matrices as ``config.init`` says."""
    init = config.init
    assert not isinstance(init, PretrainedInitConfig), "trained weights are given, not drawn"
    if role == "bias":
        value.zero_()
    elif role == "gain":
        value.fill_(1.0)
    elif _DIFFERENCE.search(name):  # a low-rank difference starts as zero under any init
        value.zero_() if name.endswith("up") else value.uniform_(*_bounds_of_down(value), generator=generator)
    elif isinstance(init, NormalInitConfig):
        scaled = init.scale_residual and name.endswith(RESIDUAL_WRITERS)
        value.normal_(0.0, init.std / (math.sqrt(2 * config.layers) if scaled else 1.0), generator=generator)
    elif role == "embedding" or name.endswith(EMBEDDINGS):
        value.normal_(0.0, EMBEDDING_STD, generator=generator)
    else:
        for matrix in _matrices(value, name, config):
            _scale_by_fans(matrix, init, generator)


def _bounds_of_down(down: Tensor) -> tuple[float, float]:
    """Return the bounds of the first factor [rank, inputs] of a low-rank difference (Hu et al. 2022)."""
    bound = 1 / math.sqrt(down.shape[1])
    return -bound, bound


def _matrices(value: Tensor, name: str, config: TransformerConfig) -> tuple[Tensor, ...]:
    """Return ``value``, or its parts if it holds several projections, each of which has fans of its own."""
    if not name.endswith(("attention.qkv.weight", "attention_qkv.weight")):
        return (value,)
    rows = [heads * config.head_dim for heads in (config.heads, config.kv_heads, config.kv_heads)]
    return torch.split(value, rows)


def _scale_by_fans(matrix: Tensor, init: object, generator: torch.Generator) -> None:
    """Draw fp32 ``matrix`` [outputs, inputs] in place with a variance that depends on its shape."""
    fan_out, fan_in = matrix.shape
    if isinstance(init, XavierInitConfig):
        bound = init.gain * math.sqrt(6.0 / (fan_in + fan_out))
        matrix.uniform_(-bound, bound, generator=generator)
        return
    assert isinstance(init, KaimingInitConfig)
    fan = fan_in if init.mode == "fan_in" else fan_out
    matrix.normal_(0.0, GAINS[init.nonlinearity] / math.sqrt(fan), generator=generator)


def _values_of_pytorch(model: nn.Module, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Yield the names and fp32 values, of all shapes, that the modules' own ``reset_parameters`` draw."""
    for name, module in list(named_modules(model)):
        if next(module.parameters(recurse=False), None) is None:
            continue
        drawn = copy.deepcopy(module).to_empty(device="cpu", recurse=False)
        reset = getattr(drawn, "reset_parameters")  # noqa: B009  (nn.Module does not declare it)
        # PyTorch's own initialisations draw from the global generator.
        with forked_generator(key(seed, "init", name)):
            reset()
        for leaf, parameter in drawn.named_parameters(recurse=False):
            yield f"{name}.{leaf}" if name else leaf, parameter.detach()
