"""The transformer in one sitting: attention, feed-forward networks, blocks, and the model around them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quintet.config.embedding_and_head import LinearHeadConfig
from quintet.config.model import Activation, FeedForwardConfig, TransformerConfig
from quintet.config.sharing import SharedPart, SharingConfig
from quintet.model.cache import Abilities, KVCache, LayerCache
from quintet.model.dropout import KeyedDropout, WeightDropout
from quintet.model.embedding_and_head import EMBEDDINGS, HEADS, ByteHead
from quintet.model.kernels import AttentionMask, attend_dropping, choose_kernel, prepare_mask
from quintet.model.mask import lay_out
from quintet.model.norm import build_norm, product_dtype
from quintet.model.position import Rotation, build_positions, rotate, split_and_rotate
from quintet.model.typed import in_heads


def _gelu_tanh(x: Tensor) -> Tensor:
    """Map floats [...] to the same shape and dtype."""
    return F.gelu(x, approximate="tanh")


def _squared_relu(x: Tensor) -> Tensor:
    """Map floats [...] to the same shape and dtype."""
    return F.relu(x).square()


def _identity(x: Tensor) -> Tensor:
    """Return ``x``, of any shape and dtype."""
    return x


Pointwise = Callable[[Tensor], Tensor]
ACTIVATIONS: dict[Activation, Pointwise] = {
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


class LowRankDifference(nn.Module):
    """scale · up(down(x)) plus a bias: the term that a block adds to the product with a shared matrix.

    It starts as zero: ``down`` [rank, inputs] is drawn within ±1 / sqrt(inputs), ``up`` [outputs, rank] is zero (Hu et
    al. 2022).
    """

    def __init__(self, inputs: int, outputs: int, config: SharingConfig, bias: bool) -> None:
        super().__init__()
        self.scale = config.scale
        self.down = nn.Parameter(torch.empty(config.rank, inputs))
        self.up = nn.Parameter(torch.empty(outputs, config.rank))
        self.down_bias = nn.Parameter(torch.empty(config.rank)) if config.bias else None
        self.up_bias = nn.Parameter(torch.empty(outputs)) if config.bias or bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Map floats [..., inputs] to [..., outputs]."""
        difference = F.linear(F.linear(x, self.down, self.down_bias), self.up) * self.scale
        return difference if self.up_bias is None else difference + self.up_bias.to(difference.dtype)

    def reset_parameters(self) -> None:
        bound = 1 / math.sqrt(self.down.shape[1])
        nn.init.uniform_(self.down, -bound, bound)
        for parameter in (self.up, self.down_bias, self.up_bias):
            if parameter is not None:
                nn.init.zeros_(parameter)


Differences = nn.ModuleDict | None
"""The low-rank differences of a block from the matrices of a shared feed-forward network, by the matrices' names."""


def _named(differences: Differences, name: str) -> nn.Module | None:
    return None if differences is None else differences[name]


def _product(layer: nn.Module, x: Tensor, difference: nn.Module | None) -> Tensor:
    return layer(x) if difference is None else layer(x) + difference(x)


def build_feedforward(config: TransformerConfig) -> nn.Module:
    """Build the feed-forward network of ``config``: [..., width] to [..., width]."""
    return FEEDFORWARDS[config.feedforward.kind](config.width, config.hidden, config.feedforward)


def build_qkv(config: TransformerConfig) -> nn.Linear:
    """Build the projection from the width of the model to queries, keys and values of all heads."""
    return nn.Linear(config.width, config.qkv_width, bias=config.attention.bias)


def build_shared(config: TransformerConfig, part: SharedPart) -> nn.Module:
    """Build the module of ``part`` that blocks share, without biases if blocks add low-rank differences, which have
    them."""
    if config.shared_how(part) == "low_rank":
        attention = config.attention.model_copy(update={"bias": False, "output_bias": False})
        feedforward = config.feedforward.model_copy(update={"bias": False})
        config = config.model_copy(update={"attention": attention, "feedforward": feedforward})
    return _BUILDERS[part](config)


class GatedFeedForward(nn.Module):
    """down(dropout(activation(gate(x)) · up(x))) (Shazeer 2020), with the dropout of the block, because blocks that
    share a network have masks of their own."""

    def __init__(self, width: int, hidden: int, config: FeedForwardConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=config.bias)
        self.up = nn.Linear(width, hidden, bias=config.bias)
        self.down = nn.Linear(hidden, width, bias=config.bias)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor, dropout: Pointwise = _identity, differences: Differences = None) -> Tensor:
        gate = _product(self.gate, x, _named(differences, "gate"))
        up = _product(self.up, x, _named(differences, "up"))
        return _product(self.down, dropout(self.activation(gate) * up), _named(differences, "down"))


class PlainFeedForward(nn.Module):
    """down(dropout(activation(up(x)))) (Vaswani et al. 2017), with the dropout of the block."""

    def __init__(self, width: int, hidden: int, config: FeedForwardConfig) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden, bias=config.bias)
        self.down = nn.Linear(hidden, width, bias=config.bias)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor, dropout: Pointwise = _identity, differences: Differences = None) -> Tensor:
        hidden = self.activation(_product(self.up, x, _named(differences, "up")))
        return _product(self.down, dropout(hidden), _named(differences, "down"))


FEEDFORWARDS = {"gated": GatedFeedForward, "plain": PlainFeedForward}


class Attention(nn.Module):
    """Multi-head, grouped-query or multi-query attention under a mask.

    Queries, keys and values come from one projection: the rows of ``qkv.weight`` are all query heads, then all key
    heads, then all value heads. ``qkv`` and ``output`` are None where the block shares one.
    """

    def __init__(self, config: TransformerConfig, block: int = 0) -> None:
        super().__init__()
        part = config.attention
        self.heads, self.kv_heads, self.scale = config.heads, config.kv_heads, part.scale
        self.input_dropout = KeyedDropout(part.input_dropout)
        self.qkv = build_qkv(config) if config.how("attention_qkv", block) == "own" else None
        self.norm_heads_together = part.qk_norm == "projection"
        self.query_norm = self.key_norm = None
        if part.qk_norm != "none":
            together = (self.heads, self.kv_heads) if self.norm_heads_together else (1, 1)
            self.query_norm, self.key_norm = (build_norm(config.norm, heads * config.head_dim) for heads in together)
        self.dropout = WeightDropout(part.dropout)
        self.output = build_output(config) if config.how("attention_output", block) == "own" else None
        self.qkv_difference = self.output_difference = None
        if config.sharing is not None:
            mixed, width, shape = config.heads * config.head_dim, config.width, config.sharing
            if config.how("attention_qkv", block) == "low_rank":
                self.qkv_difference = LowRankDifference(width, config.qkv_width, shape, part.bias)
            if config.how("attention_output", block) == "low_rank":
                self.output_difference = LowRankDifference(mixed, width, shape, config.output_bias)

    def forward(self, x: Tensor, context: BlockContext, cache: LayerCache | None = None) -> Tensor:
        """Map floats [batch, length, width] to the same shape; with ``cache``, ``x`` continues the stored positions."""
        qkv = _product(_own(self.qkv, context.attention_qkv), self.input_dropout(x), self.qkv_difference)
        queries, keys, values = self._split(qkv, context.rotation)
        if cache is not None:
            keys, values = cache.append(keys, values)
        mixed = attend_dropping(self.dropout, queries, keys, values, context.mask, self.scale)
        output = _own(self.output, context.attention_output)
        return _product(output, mixed.transpose(1, 2).flatten(2), self.output_difference)

    def _split(self, qkv: Tensor, rotation: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries [batch, heads, length, head_dim], and keys and values [batch, kv_heads, length, head_dim]."""
        if self.query_norm is None or self.key_norm is None:
            return split_and_rotate(qkv, self.heads, self.kv_heads, rotation)
        features = qkv.shape[-1] // (self.heads + 2 * self.kv_heads)
        widths = [heads * features for heads in (self.heads, self.kv_heads, self.kv_heads)]
        queries, keys, values = torch.split(qkv, widths, dim=-1)
        if self.norm_heads_together:
            queries, keys = self.query_norm(queries), self.key_norm(keys)
        queries, keys, values = (in_heads(part, features) for part in (queries, keys, values))
        if not self.norm_heads_together:
            queries, keys = self.query_norm(queries), self.key_norm(keys)
        queries, keys, values = (part.transpose(1, 2) for part in (queries, keys, values))
        if rotation is not None:
            queries, keys = rotate(queries, rotation), rotate(keys, rotation)
        return queries, keys, values


def build_output(config: TransformerConfig) -> nn.Linear:
    """Build the projection from the results of all heads to the width of the model."""
    return nn.Linear(config.heads * config.head_dim, config.width, bias=config.output_bias)


_BUILDERS: dict[SharedPart, Callable[[TransformerConfig], nn.Module]] = {
    "attention_qkv": build_qkv,
    "attention_output": build_output,
    "feedforward": build_feedforward,
}


@dataclass(frozen=True)
class BlockContext:
    """The mask, the rotation and the shared modules of a forward pass, which are the same for all blocks."""

    mask: AttentionMask
    rotation: Rotation | None
    attention_qkv: nn.Module | None = None
    attention_output: nn.Module | None = None
    feedforward: nn.Module | None = None


def build_block(config: TransformerConfig, index: int = 0) -> nn.Module:
    """Build block number ``index`` of ``config``: (x [batch, length, width], context, cache) to the shape of x."""
    return (ParallelBlock if config.block == "parallel" else SequentialBlock)(config, index)


class _Block(nn.Module):
    """The attention and the feed-forward network of a block, its own or shared with low-rank differences."""

    def __init__(self, config: TransformerConfig, index: int = 0) -> None:
        super().__init__()
        self.attention_norm = build_norm(config.attention_norm, config.width)
        self.attention = Attention(config, index)
        if config.block != "parallel":
            self.feedforward_norm = build_norm(config.feedforward_norm, config.width)
        how = config.how("feedforward", index)
        self.feedforward = build_feedforward(config) if how == "own" else None
        self.feedforward_differences: Differences = None
        if how == "low_rank" and config.sharing is not None:
            names = ("gate", "up", "down") if config.feedforward.kind == "gated" else ("up", "down")
            wide, narrow = (config.width, config.hidden), (config.hidden, config.width)
            shapes = {name: narrow if name == "down" else wide for name in names}
            self.feedforward_differences = nn.ModuleDict(
                {
                    name: LowRankDifference(*shape, config.sharing, config.feedforward.bias)
                    for name, shape in shapes.items()
                }
            )
        self.feedforward_dropout = KeyedDropout(config.feedforward.input_dropout)
        self.hidden_dropout = KeyedDropout(config.feedforward.dropout)
        self.dropout = KeyedDropout(config.residual_dropout)

    def feed_forward(self, x: Tensor, context: BlockContext) -> Tensor:
        """Map [batch, length, width] to the same shape."""
        network = _own(self.feedforward, context.feedforward)
        return network(self.feedforward_dropout(x), self.hidden_dropout, self.feedforward_differences)


class ParallelBlock(_Block):
    """x + attention(norm(x)) + feedforward(norm(x)), with one norm for both (Wang and Komatsuzaki 2021)."""

    def forward(self, x: Tensor, context: BlockContext, cache: LayerCache | None = None) -> Tensor:
        normed = self.attention_norm(x)
        attended = self.attention(normed, context, cache)
        return x + self.dropout(attended) + self.dropout(self.feed_forward(normed, context), 1)


class SequentialBlock(_Block):
    """Attention, then feed-forward, each as f added to the residual stream x, with the norms of ``config.block``:

    pre_norm: x + f(norm(x)) (Radford et al. 2019); post_norm: norm(x + f(x)) (Vaswani et al. 2017); output_norm:
    x + norm(f(x)) (OLMo et al. 2024); sandwich_norm: x + norm(f(norm(x))) (Ding et al. 2021).
    """

    def __init__(self, config: TransformerConfig, index: int = 0) -> None:
        super().__init__(config, index)
        self.order = config.block
        sandwich = config.block == "sandwich_norm"
        self.attention_output_norm = build_norm(config.attention_norm, config.width) if sandwich else None
        self.feedforward_output_norm = build_norm(config.feedforward_norm, config.width) if sandwich else None

    def forward(self, x: Tensor, context: BlockContext, cache: LayerCache | None = None) -> Tensor:
        first = self.order in ("pre_norm", "sandwich_norm")
        update = self.attention(self.attention_norm(x) if first else x, context, cache)
        x = self._add(x, update, self.attention_norm, self.attention_output_norm, 0)
        update = self.feed_forward(self.feedforward_norm(x) if first else x, context)
        return self._add(x, update, self.feedforward_norm, self.feedforward_output_norm, 1)

    def _add(self, x: Tensor, update: Tensor, norm: nn.Module, output_norm: nn.Module | None, call: int) -> Tensor:
        """Add ``update`` to ``x``, both floats [batch, length, width], with the norms in the order of the block."""
        match self.order:
            case "post_norm":
                return norm(x + self.dropout(update, call))
            case "output_norm":
                return x + self.dropout(norm(update), call)
            case _:
                return x + self.dropout(update if output_norm is None else output_norm(update), call)


def _own(own: nn.Module | None, shared: nn.Module | None) -> nn.Module:
    chosen = own if own is not None else shared
    assert chosen is not None
    return chosen


class Transformer(nn.Module):
    """Blocks around a residual stream.

    Under autocast the residual stream stays fp32, so that small updates of late blocks are not rounded away; only the
    inputs of matrix products are narrow. ``shared`` holds the modules that blocks share, each once, so that an
    optimizer, a checkpoint and a sharding see one tensor. All ways of reading a text (`Abilities`) give the same
    features.
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
        """``pieces`` are the bytes of each id; only byte-level parts read them."""
        super().__init__()
        self.config, self.vocab_size, self.context_length = config, vocab_size, context_length
        self.lay_out = lay_out  # a plan replaces it, because tensors on the meta device have no values
        self.rows = rows = config.rows(vocab_size + extra_rows)
        self.embedding = EMBEDDINGS[config.embedding.kind](config.embedding, config, rows, pieces)
        positions = build_positions(config, context_length)
        self.position = positions.added
        self.embedding_dropout = KeyedDropout(config.embedding_dropout)
        self.rope = positions.rope
        self.blocks = nn.ModuleList(build_block(config, index) for index in range(config.layers))
        self.shared = nn.ModuleDict()
        for part in _BUILDERS:
            if config.shared_how(part) != "own":
                self.shared[part] = build_shared(config, part)
        self.norm = build_norm(config.last_norm, config.width)
        linear = isinstance(config.head, LinearHeadConfig)
        self.head_dropout = KeyedDropout(config.head.dropout) if linear else nn.Identity()
        self.head = HEADS[config.head.kind](config.head, config, rows, pieces)

    def forward(self, ids: Tensor, *, documents: Tensor | None = None, prompts: Tensor | None = None) -> Tensor:
        """Return logits [batch, length, vocab] of the token after each of int64 ``ids`` [batch, length]; see
        ``hidden``."""
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
        """Return the inputs of the head [batch, length, width] for int64 ``ids`` [batch, length].

        Their dtype is that of the weights, or autocast's. ``documents``, int64 [batch, length], is the number of each
        token's document, for masks that separate documents. ``prompts``, bool [batch, length], is True for tokens of
        the prompt, for the prefix mask. Other masks ignore them. With ``cache``, ``ids`` continue the stored positions
        and are stored too. ``embedded`` is ``embed(ids)`` if that is known already.
        """
        attention = self.config.attention
        layout = self.lay_out(attention, ids, documents, prompts, cache)
        length = layout.ranges.keys
        assert length <= self.context_length, f"{length} positions; built for {self.context_length}"
        x = self.embed(ids) if embedded is None else embedded
        if self.position is not None:
            x = x + self.position(layout.positions)
        x = self.embedding_dropout(x)
        dropping = self.training and any(part.dropout.drops for part in self.modules() if isinstance(part, Attention))
        cached, features = cache is not None, self.config.head_dim
        kernel = choose_kernel(
            attention, layout.ranges, x.device, product_dtype(x), cached=cached, dropping=dropping, features=features
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
        """Map int64 ``ids`` [batch, length] to floats [batch, length, width], before positions and dropout."""
        x = self.embedding(ids)
        return x if self.config.embedding_scale == 1.0 else x * self.config.embedding_scale

    def logits(self, hidden: Tensor) -> Tensor:
        """Map floats [..., width] to [..., vocab], without the rows that pad the vocabulary."""
        if isinstance(self.head, ByteHead):
            return self.head.id_logits(hidden, self.vocab_size)
        assert self.head_weight is not None
        return F.linear(hidden, self.head_weight, self.head_bias)[..., : self.vocab_size]

    def start_cache(
        self, batch: int, capacity: int, *, padding: list[int] | None = None, static: bool = False
    ) -> KVCache:
        """Return an empty cache for ``batch`` texts of up to ``capacity`` positions; the first ``padding[i]`` positions
        of row i hold no token. ``static`` is as in ``KVCache``."""
        assert padding is None or len(padding) == batch
        on_device = None if padding is None else torch.tensor(padding, device=self.device)
        return KVCache(len(self.blocks), capacity, padding=on_device, static=static, device=self.device)

    @property
    def head_weight(self) -> Tensor | None:
        """Floats [rows, width]: the embedding's if the two are tied, None if the head is more than a matrix."""
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
