"""The transformer: embedding, blocks, last norm, head."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quintet.config.model import TransformerConfig
from quintet.model.abilities import Abilities
from quintet.model.attention import Attention, build_output
from quintet.model.block import BlockContext, build_block
from quintet.model.cache import KVCache
from quintet.model.dropout import KeyedDropout
from quintet.model.feedforward import build_feedforward
from quintet.model.kernels import choose_kernel, prepare_mask
from quintet.model.mask import lay_out
from quintet.model.norm import build_norm, product_dtype
from quintet.model.position import build_added_position, build_rope


class Transformer(nn.Module):
    """Blocks around a residual stream.

    Under autocast the residual stream stays fp32, so that small updates of late blocks are not rounded away; only what
    enters matrix products is narrow. What all blocks share lies in ``shared``, once: so an optimizer, a checkpoint and
    a sharding see one tensor. However it is read, its features are those of plain reading.
    """

    abilities = Abilities()

    def __init__(self, config: TransformerConfig, vocab_size: int, context_length: int, extra_rows: int = 0) -> None:
        super().__init__()
        self.config, self.vocab_size, self.context_length = config, vocab_size, context_length
        rows = config.rows(vocab_size + extra_rows)
        self.embedding = nn.Embedding(rows, config.width)
        self.position = build_added_position(config.position, context_length, config.width)
        self.embedding_dropout = KeyedDropout(config.embedding_dropout)
        self.rope = build_rope(config, context_length)
        self.blocks = nn.ModuleList(build_block(config) for _ in range(config.layers))
        self.shared = nn.ModuleDict()
        if config.tie_attention_output:
            self.shared["attention_output"] = build_output(config)
        if config.tie_feedforward:
            self.shared["feedforward"] = build_feedforward(config)
        self.norm = build_norm(config.last_norm, config.width)
        self.head_dropout = KeyedDropout(config.head.dropout)
        self.head = Head(rows, config.width, own_weight=not config.tie_embeddings, bias=config.head.bias)

    def forward(self, ids: Tensor, *, documents: Tensor | None = None, prompts: Tensor | None = None) -> Tensor:
        """Logits [batch, length, vocab] of the token after each of ``ids`` [batch, length]; see ``hidden``."""
        return self.logits(self.hidden(ids, documents=documents, prompts=prompts))

    def hidden(
        self,
        ids: Tensor,
        *,
        documents: Tensor | None = None,
        prompts: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Features [batch, length, width] that the head takes, of ``ids`` [batch, length].

        ``documents`` [batch, length] numbers the document of each token, for masks that tell them apart, and
        ``prompts`` bool [batch, length] says which are of its prompt, for the prefix mask; others do not read them.
        With ``cache``, ``ids`` continues the positions that are stored there, and is stored as well.
        """
        attention = self.config.attention
        layout = lay_out(attention, ids, documents, prompts, cache)
        length = layout.ranges.keys
        assert length <= self.context_length, f"{length} positions; built for {self.context_length}"
        x = self.embedding(ids)
        if self.config.embedding_scale != 1.0:
            x = x * self.config.embedding_scale
        if self.position is not None:
            x = x + self.position(layout.positions)
        x = self.embedding_dropout(x)
        dropping = self.training and any(part.dropout.p for part in self.modules() if isinstance(part, Attention))
        kernel = choose_kernel(
            attention, layout.ranges, x.device, product_dtype(x), cached=cache is not None, dropping=dropping
        )
        context = BlockContext(
            prepare_mask(layout.ranges, kernel, x.device),
            None if self.rope is None else self.rope(layout.positions),
            **{name: module for name, module in self.shared.items()},  # noqa: C416
        )
        for index, block in enumerate(self.blocks):
            x = block(x, context, None if cache is None else cache.layers[index])
        if cache is not None:
            cache.advance(ids.shape[1])
        return self.head_dropout(self.norm(x))

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., width] to [..., vocab]; the rows that pad the vocabulary are cut off."""
        return F.linear(hidden, self.head_weight, self.head_bias)[..., : self.vocab_size]

    def start_cache(
        self, batch: int, capacity: int, *, padding: list[int] | None = None, static: bool = False
    ) -> KVCache:
        """An empty cache for ``batch`` texts of up to ``capacity`` positions, of which row i begins with ``padding[i]``
        that hold no token; ``static`` as in ``KVCache``."""
        assert padding is None or len(padding) == batch
        on_device = None if padding is None else torch.tensor(padding, device=self.device)
        return KVCache(len(self.blocks), capacity, padding=on_device, static=static, device=self.device)

    @property
    def head_weight(self) -> Tensor:
        """[rows, width]; the embedding itself when the two are tied."""
        return self.embedding.weight if self.head.weight is None else self.head.weight

    @property
    def head_bias(self) -> Tensor | None:
        """[rows], or None."""
        return self.head.bias

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.weight.device


class Head(nn.Module):
    """The parameters of the head: a matrix unless it is the embedding's, and a bias if there is one."""

    def __init__(self, rows: int, width: int, *, own_weight: bool, bias: bool) -> None:
        super().__init__()
        self.width = width
        self.weight = nn.Parameter(torch.empty(rows, width)) if own_weight else None
        self.bias = nn.Parameter(torch.empty(rows)) if bias else None

    def reset_parameters(self) -> None:
        """As PyTorch's linear layer: uniform within ±1 / sqrt(width)."""
        for parameter in self.parameters(recurse=False):
            nn.init.uniform_(parameter, -1 / math.sqrt(self.width), 1 / math.sqrt(self.width))
