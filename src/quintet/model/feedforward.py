"""What each position computes by itself."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quintet.config.model import Activation, FeedForwardConfig, GatedFeedForwardConfig, TransformerConfig
from quintet.model.dropout import KeyedDropout


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
    gated = isinstance(config.feedforward, GatedFeedForwardConfig)
    return (GatedFeedForward if gated else PlainFeedForward)(config.width, config.hidden, config.feedforward)


class GatedFeedForward(nn.Module):
    """down(activation(gate(x)) · up(x)) (Shazeer 2020)."""

    def __init__(self, width: int, hidden: int, config: FeedForwardConfig) -> None:
        super().__init__()
        self.input_dropout = KeyedDropout(config.input_dropout)
        self.gate = nn.Linear(width, hidden, bias=config.bias)
        self.up = nn.Linear(width, hidden, bias=config.bias)
        self.down = nn.Linear(hidden, width, bias=config.bias)
        self.activation = ACTIVATIONS[config.activation]
        self.dropout = KeyedDropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.input_dropout(x)
        return self.down(self.dropout(self.activation(self.gate(x)) * self.up(x)))


class PlainFeedForward(nn.Module):
    """down(activation(up(x))) (Vaswani et al. 2017)."""

    def __init__(self, width: int, hidden: int, config: FeedForwardConfig) -> None:
        super().__init__()
        self.input_dropout = KeyedDropout(config.input_dropout)
        self.up = nn.Linear(width, hidden, bias=config.bias)
        self.down = nn.Linear(hidden, width, bias=config.bias)
        self.activation = ACTIVATIONS[config.activation]
        self.dropout = KeyedDropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.dropout(self.activation(self.up(self.input_dropout(x)))))
