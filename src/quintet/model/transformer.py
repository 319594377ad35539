"""The transformer: embedding, blocks, last norm, head."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quintet.config.model import TransformerConfig
from quintet.model.attention import CausalAttention
from quintet.model.cache import KVCache, LayerCache
from quintet.model.feedforward import build_feedforward
from quintet.model.init import initialise
from quintet.model.norm import build_norm
from quintet.model.position import Rotation, build_added_position, build_rope


def build_model(config: TransformerConfig, vocab_size: int, context_length: int, seed: int) -> Transformer:
    """The transformer of ``config`` in fp32 on the CPU, with weights that follow from ``seed`` and their own names.

    ``vocab_size`` rows of the embedding and ``context_length`` positions are what the caller resolved them to; the
    config's own values, which may be left out there, are not read. PyTorch's global generator is not touched.
    """
    with torch.device("meta"):
        model = Transformer(config, vocab_size, context_length)
    initialise(model, config, seed)
    return model


class Transformer(nn.Module):
    """A decoder with a norm before each sub-block (pre-norm; Radford et al. 2019).

    Under autocast the residual stream stays fp32, so that small updates of late blocks are not rounded away; only what
    enters matrix products is narrow.
    """

    def __init__(self, config: TransformerConfig, vocab_size: int, context_length: int) -> None:
        super().__init__()
        self.config, self.vocab_size, self.context_length = config, vocab_size, context_length
        self.embedding = nn.Embedding(vocab_size, config.width)
        self.position = build_added_position(config.position, context_length, config.width)
        self.rope = build_rope(config.position, context_length, config.head_dim)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = build_norm(config.norm, config.width)
        self.head = Head(vocab_size, config.width, own_weight=not config.tie_embeddings, bias=config.head_bias)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits [batch, length, vocab] of the token after each of ``ids`` [batch, length]."""
        return self.logits(self.hidden(ids))

    def hidden(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """Features [batch, length, width] after the last norm, of ``ids`` [batch, length].

        With ``cache``, ``ids`` continues the positions that are stored there, and is stored as well.
        """
        start, length = (cache.length if cache is not None else 0), ids.shape[1]
        assert start + length <= self.context_length, f"{start + length} positions; built for {self.context_length}"
        x = self.embedding(ids)
        if self.position is not None:
            x = x + self.position(start, length)
        x = F.dropout(x, self.config.dropout, self.training)
        rotation = self.rope(start, length) if self.rope is not None else None
        for index, block in enumerate(self.blocks):
            x = block(x, rotation, cache.layers[index] if cache is not None else None)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., width] to [..., vocab]."""
        return F.linear(hidden, self.head_weight, self.head_bias)

    @property
    def head_weight(self) -> Tensor:
        """[vocab, width]; the embedding itself when the two are tied."""
        return self.embedding.weight if self.head.weight is None else self.head.weight

    @property
    def head_bias(self) -> Tensor | None:
        """[vocab], or None."""
        return self.head.bias

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.weight.device


class Block(nn.Module):
    """x + attention(norm(x)), then x + feedforward(norm(x)), with dropout on what is added."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention_norm = build_norm(config.norm, config.width)
        self.attention = CausalAttention(config)
        self.feedforward_norm = build_norm(config.norm, config.width)
        self.feedforward = build_feedforward(config)
        self.dropout = config.dropout

    def forward(self, x: Tensor, rotation: Rotation | None, cache: LayerCache | None = None) -> Tensor:
        x = x + F.dropout(self.attention(self.attention_norm(x), rotation, cache), self.dropout, self.training)
        return x + F.dropout(self.feedforward(self.feedforward_norm(x)), self.dropout, self.training)


class Head(nn.Module):
    """The parameters of the head: a matrix unless it is the embedding's, and a bias if there is one."""

    def __init__(self, vocab_size: int, width: int, *, own_weight: bool, bias: bool) -> None:
        super().__init__()
        self.width = width
        self.weight = nn.Parameter(torch.empty(vocab_size, width)) if own_weight else None
        self.bias = nn.Parameter(torch.empty(vocab_size)) if bias else None

    def reset_parameters(self) -> None:
        """As PyTorch's linear layer: uniform within ±1 / sqrt(width)."""
        for parameter in self.parameters(recurse=False):
            nn.init.uniform_(parameter, -1 / math.sqrt(self.width), 1 / math.sqrt(self.width))
