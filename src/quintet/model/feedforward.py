"""What each position computes by itself."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quintet.config.model import Activation, GatedFeedForwardConfig, TransformerConfig


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _squared_relu(x: Tensor) -> Tensor:
    return F.relu(x).square()


def _identity(x: Tensor) -> Tensor:
    return x


ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": _gelu_tanh,
    "relu": F.relu,
    "relu2": _squared_relu,
    "leaky_relu": F.leaky_relu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "none": _identity,
}
"""``gelu`` is exact (with erf), ``gelu_tanh`` its approximation, ``relu2`` the squared relu of So et al. (2021), and
``leaky_relu`` has a slope of 0.01."""


def build_feedforward(config: TransformerConfig) -> nn.Module:
    """The feed-forward network of ``config``: [..., width] to [..., width]."""
    part = config.feedforward
    kind = GatedFeedForward if isinstance(part, GatedFeedForwardConfig) else PlainFeedForward
    return kind(config.width, config.hidden, part.activation, part.bias, part.dropout)


class GatedFeedForward(nn.Module):
    """down(activation(gate(x)) · up(x)) (Shazeer 2020)."""

    def __init__(self, width: int, hidden: int, activation: Activation, bias: bool, dropout: float) -> None:
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=bias)
        self.up = nn.Linear(width, hidden, bias=bias)
        self.down = nn.Linear(hidden, width, bias=bias)
        self.activation = ACTIVATIONS[activation]
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.activation(self.gate(x)) * self.up(x)
        return self.down(F.dropout(hidden, self.dropout, self.training))


class PlainFeedForward(nn.Module):
    """down(activation(up(x))) (Vaswani et al. 2017)."""

    def __init__(self, width: int, hidden: int, activation: Activation, bias: bool, dropout: float) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden, bias=bias)
        self.down = nn.Linear(hidden, width, bias=bias)
        self.activation = ACTIVATIONS[activation]
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.dropout(self.activation(self.up(x)), self.dropout, self.training))
