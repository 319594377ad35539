"""How positions exchange information."""

from __future__ import annotations

from torch import Tensor, nn

from quintet.config.model import TransformerConfig
from quintet.model.cache import LayerCache
from quintet.model.dropout import KeyedDropout
from quintet.model.kernels import AttentionMask, attend
from quintet.model.norm import build_norm
from quintet.model.position import Rotation, rotate, split_and_rotate


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
