"""The transformer in one sitting: attention, feed-forward networks, blocks, and the model around them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quintet.config.embedding_and_head import ByteEmbeddingConfig, ByteHeadConfig
from quintet.config.model import Activation, FeedForwardConfig, GatedFeedForwardConfig, TransformerConfig
from quintet.model.byte_level import ByteEmbedding, ByteHead
from quintet.model.cache import Abilities, KVCache, LayerCache
from quintet.model.dropout import KeyedDropout
from quintet.model.kernels import AttentionMask, attend, choose_kernel, prepare_mask
from quintet.model.mask import lay_out
from quintet.model.norm import build_norm, product_dtype
from quintet.model.position import Rotation, build_added_position, build_rope, rotate, split_and_rotate


def _gelu_tanh(x: Tensor) -> Tensor:
    """Floats [...] to the same shape and dtype."""
    return F.gelu(x, approximate="tanh")


def _squared_relu(x: Tensor) -> Tensor:
    """Floats [...] to the same shape and dtype."""
    return F.relu(x).square()


def _identity(x: Tensor) -> Tensor:
    """``x`` of any shape and dtype."""
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


class Attention(nn.Module):
    """Multi-head, grouped-query or multi-query attention, to what the mask lets each position see.

    Queries, keys and values come from one projection: the rows of ``qkv.weight`` are all query heads, then all key
    heads, then all value heads. ``output`` is None where all blocks share one.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        part = config.attention
        self.heads, self.kv_heads, self.scale = config.heads, config.kv_heads, part.scale
        self.input_dropout = KeyedDropout(part.input_dropout)
        self.qkv = nn.Linear(config.width, (self.heads + 2 * self.kv_heads) * config.head_dim, bias=part.bias)
        self.norm_heads_together = part.qk_norm == "projection"
        self.query_norm = self.key_norm = None
        if part.qk_norm != "none":
            together = (self.heads, self.kv_heads) if self.norm_heads_together else (1, 1)
            self.query_norm, self.key_norm = (build_norm(config.norm, heads * config.head_dim) for heads in together)
        self.dropout = nn.Dropout(part.dropout)
        self.output = None if config.tie_attention_output else build_output(config)

    def forward(
        self,
        x: Tensor,
        mask: AttentionMask,
        rotation: Rotation | None,
        cache: LayerCache | None = None,
        shared_output: nn.Module | None = None,
    ) -> Tensor:
        """[batch, length, width] to the same; with ``cache``, ``x`` continues what is stored there."""
        queries, keys, values = self._project(self.input_dropout(x), rotation)
        if cache is not None:
            keys, values = cache.append(keys, values)
        dropout = self.dropout.p if self.training else 0.0
        mixed = attend(queries, keys, values, mask, dropout=dropout, scale=self.scale)
        output = self.output if self.output is not None else shared_output
        assert output is not None
        return output(mixed.transpose(1, 2).flatten(2))

    def _project(self, x: Tensor, rotation: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [batch, heads, length, head_dim], keys and values [batch, kv_heads, length, head_dim]."""
        qkv = self.qkv(x)
        if self.query_norm is None or self.key_norm is None:
            return split_and_rotate(qkv, self.heads, self.kv_heads, rotation)
        features = qkv.shape[-1] // (self.heads + 2 * self.kv_heads)
        widths = [heads * features for heads in (self.heads, self.kv_heads, self.kv_heads)]
        queries, keys, values = qkv.split(widths, dim=-1)
        if self.norm_heads_together:
            queries, keys = self.query_norm(queries), self.key_norm(keys)
        queries, keys, values = (part.unflatten(-1, (-1, features)) for part in (queries, keys, values))
        if not self.norm_heads_together:
            queries, keys = self.query_norm(queries), self.key_norm(keys)
        queries, keys, values = (part.transpose(1, 2) for part in (queries, keys, values))
        if rotation is not None:
            queries, keys = rotate(queries, rotation), rotate(keys, rotation)
        return queries, keys, values


def build_output(config: TransformerConfig) -> nn.Linear:
    """The projection of what the heads found back to the width of the model."""
    return nn.Linear(config.heads * config.head_dim, config.width, bias=config.output_bias)


@dataclass(frozen=True)
class BlockContext:
    """The mask, the rotation and the shared modules, which are the same for all blocks of a forward pass."""

    mask: AttentionMask
    rotation: Rotation | None
    attention_output: nn.Module | None = None
    feedforward: nn.Module | None = None


def build_block(config: TransformerConfig) -> nn.Module:
    """A block of ``config``: (x [batch, length, width], context, cache) to the shape of x."""
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
        """``x`` and ``found``, both floats [batch, length, width], summed and normed by the order of the block."""
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


class Transformer(nn.Module):
    """Blocks around a residual stream.

    Under autocast the residual stream stays fp32, so that small updates of late blocks are not rounded away; only what
    enters matrix products is narrow. What all blocks share lies in ``shared``, once: so an optimizer, a checkpoint and
    a sharding see one tensor. However a text is read, its features are those of plain reading.
    """

    abilities = Abilities()

    def __init__(
        self,
        config: TransformerConfig,
        vocab_size: int,
        context_length: int,
        extra_rows: int = 0,
        pieces: Sequence[bytes] = (),
    ) -> None:
        """``pieces`` are the bytes of each id, which byte-level parts alone read."""
        super().__init__()
        self.config, self.vocab_size, self.context_length = config, vocab_size, context_length
        self.lay_out = lay_out  # a plan, whose tensors have no numbers, sets one that looks at none
        self.rows = rows = config.rows(vocab_size + extra_rows)
        if isinstance(config.embedding, ByteEmbeddingConfig):
            self.embedding = ByteEmbedding(config.embedding, config.width, config.norm, rows, pieces)
        else:
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
        if isinstance(config.head, ByteHeadConfig):
            self.head_dropout = nn.Identity()
            self.head = ByteHead(config.head, config.width, config.norm, rows, pieces)
        else:
            self.head_dropout = KeyedDropout(config.head.dropout)
            self.head = Head(rows, config.width, own_weight=not config.tie_embeddings, bias=config.head.bias)

    def forward(self, ids: Tensor, *, documents: Tensor | None = None, prompts: Tensor | None = None) -> Tensor:
        """Logits [batch, length, vocab] of the token after each of int64 ``ids`` [batch, length]; see ``hidden``."""
        return self.logits(self.hidden(ids, documents=documents, prompts=prompts))

    def hidden(
        self,
        ids: Tensor,
        *,
        documents: Tensor | None = None,
        prompts: Tensor | None = None,
        cache: KVCache | None = None,
        embedded: Tensor | None = None,
    ) -> Tensor:
        """Features [batch, length, width] that the head takes, of int64 ``ids`` [batch, length].

        Their dtype is that of the weights, or of autocast. ``documents``, int64 [batch, length], numbers the document
        of each token, for masks that separate documents, and ``prompts``, bool [batch, length], is True for tokens of
        its prompt, for the prefix mask; other masks do not read them. With ``cache``, ``ids`` continues the positions
        that are stored there, and is stored as well. ``embedded`` is ``embed(ids)`` where that is known.
        """
        attention = self.config.attention
        layout = self.lay_out(attention, ids, documents, prompts, cache)
        length = layout.ranges.keys
        assert length <= self.context_length, f"{length} positions; built for {self.context_length}"
        x = self.embed(ids) if embedded is None else embedded
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

    def embed(self, ids: Tensor) -> Tensor:
        """int64 ``ids`` [batch, length] to floats [batch, length, width], before positions and dropout."""
        x = self.embedding(ids)
        return x if self.config.embedding_scale == 1.0 else x * self.config.embedding_scale

    def logits(self, hidden: Tensor) -> Tensor:
        """Floats [..., width] to [..., vocab]; the rows that pad the vocabulary are cut off."""
        if isinstance(self.head, ByteHead):
            return self.head.id_logits(hidden, self.vocab_size)
        assert self.head_weight is not None
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
    def head_weight(self) -> Tensor | None:
        """Floats [rows, width]; the embedding's if the two are tied, None where the head is more than a matrix."""
        if isinstance(self.head, ByteHead):
            return None
        if self.head.weight is not None:
            return self.head.weight
        assert isinstance(self.embedding, nn.Embedding)
        return self.embedding.weight

    @property
    def head_bias(self) -> Tensor | None:
        """Floats [rows], or None."""
        return None if isinstance(self.head, ByteHead) else self.head.bias

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.embedding.parameters()).device


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
