"""One block of the transformer: attention and feed-forward network around the residual stream."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from quintet.config.model import TransformerConfig
from quintet.model.attention import Attention
from quintet.model.cache import LayerCache
from quintet.model.dropout import KeyedDropout
from quintet.model.feedforward import build_feedforward
from quintet.model.kernels import AttentionMask
from quintet.model.norm import build_norm
from quintet.model.position import Rotation


@dataclass(frozen=True)
class BlockContext:
    """What is the same for all blocks of a forward pass: the mask, the rotation, and the modules that they share."""

    mask: AttentionMask
    rotation: Rotation | None
    attention_output: nn.Module | None = None
    feedforward: nn.Module | None = None


def build_block(config: TransformerConfig) -> nn.Module:
    """A block of ``config``: (x [batch, length, width], surroundings, cache) to the shape of x."""
    return ParallelBlock(config) if config.block == "parallel" else SequentialBlock(config)


class ParallelBlock(nn.Module):
    """x + attention(norm(x)) + feedforward(norm(x)), with one norm for both (Wang and Komatsuzaki 2021)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention_norm = build_norm(config.attention_norm, config.width)
        self.attention = Attention(config)
        self.feedforward = None if config.tie_feedforward else build_feedforward(config)
        self.dropout = KeyedDropout(config.residual_dropout)

    def forward(self, x: Tensor, context: BlockContext, cache: LayerCache | None = None) -> Tensor:
        normed = self.attention_norm(x)
        attended = self.attention(normed, context.mask, context.rotation, cache, context.attention_output)
        return x + self.dropout(attended) + self.dropout(_own(self.feedforward, context.feedforward)(normed), 1)


class SequentialBlock(nn.Module):
    """Attention, then feed-forward, each f added to the residual stream x, with norms where ``config.block`` says:

    pre_norm: x + f(norm(x)) (Radford et al. 2019); post_norm: norm(x + f(x)) (Vaswani et al. 2017); output_norm:
    x + norm(f(x)) (OLMo et al. 2024); sandwich_norm: x + norm(f(norm(x))) (Ding et al. 2021).
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.order = config.block
        self.attention_norm = build_norm(config.attention_norm, config.width)
        self.attention = Attention(config)
        self.feedforward_norm = build_norm(config.feedforward_norm, config.width)
        self.feedforward = None if config.tie_feedforward else build_feedforward(config)
        sandwich = config.block == "sandwich_norm"
        self.attention_output_norm = build_norm(config.attention_norm, config.width) if sandwich else None
        self.feedforward_output_norm = build_norm(config.feedforward_norm, config.width) if sandwich else None
        self.dropout = KeyedDropout(config.residual_dropout)

    def forward(self, x: Tensor, context: BlockContext, cache: LayerCache | None = None) -> Tensor:
        first = self.order in ("pre_norm", "sandwich_norm")
        found = self.attention(
            self.attention_norm(x) if first else x, context.mask, context.rotation, cache, context.attention_output
        )
        x = self._add(x, found, self.attention_norm, self.attention_output_norm, 0)
        found = _own(self.feedforward, context.feedforward)(self.feedforward_norm(x) if first else x)
        return self._add(x, found, self.feedforward_norm, self.feedforward_output_norm, 1)

    def _add(self, x: Tensor, found: Tensor, norm: nn.Module, output_norm: nn.Module | None, call: int) -> Tensor:
        match self.order:
            case "post_norm":
                return norm(x + self.dropout(found, call))
            case "output_norm":
                return x + self.dropout(norm(found), call)
            case _:
                return x + self.dropout(found if output_norm is None else output_norm(found), call)


def _own(own: nn.Module | None, shared: nn.Module | None) -> nn.Module:
    chosen = own if own is not None else shared
    assert chosen is not None
    return chosen
