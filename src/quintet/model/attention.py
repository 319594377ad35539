"""How positions exchange information."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quintet.config.model import TransformerConfig
from quintet.model.blocked_attention import blocked_causal_attention
from quintet.model.cache import LayerCache
from quintet.model.position import Rotation, split_heads


class CausalAttention(nn.Module):
    """Multi-head, grouped-query or multi-query attention to earlier positions.

    Queries, keys and values come from one projection: the rows of ``qkv.weight`` are all query heads, then all key
    heads, then all value heads.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.heads, config.kv_heads, config.head_dim
        self.dropout = config.attention.dropout
        bias = config.attention.bias
        self.qkv = nn.Linear(config.width, (self.heads + 2 * self.kv_heads) * self.head_dim, bias=bias)
        self.output = nn.Linear(self.heads * self.head_dim, config.width, bias=bias)

    def forward(self, x: Tensor, rotation: Rotation | None, cache: LayerCache | None = None) -> Tensor:
        """[batch, length, width] to the same; with ``cache``, ``x`` continues what is stored there."""
        queries, keys, values = split_heads(self.qkv(x), self.heads, self.kv_heads, rotation)
        if cache is not None:
            keys, values = cache.append(keys, values)
        mixed = attend(queries, keys, values, self.dropout if self.training else 0.0)
        return self.output(mixed.transpose(1, 2).flatten(2))


def attend(queries: Tensor, keys: Tensor, values: Tensor, dropout: float = 0.0) -> Tensor:
    """Causal attention of the last ``length`` positions to all: softmax(queries · keysᵀ / sqrt(features)) · values.

    ``queries`` is [batch, heads, length, features]; ``keys`` and ``values`` are [batch, kv_heads, positions, features]
    with positions >= length, and each key head serves heads / kv_heads consecutive query heads. Returns the shape of
    ``queries``. ``dropout`` is the probability with which an attention weight is dropped.
    """
    length, positions = queries.shape[2], keys.shape[2]
    if length == positions and not dropout and _blocked_is_faster(queries):
        return blocked_causal_attention(queries, keys, values)
    grouped = queries.shape[1] != keys.shape[1]
    if grouped and queries.device.type == "cuda" and queries.dtype == torch.float32:
        # Of the fused kernels on CUDA only those for 16 bits share a key head; fp32 would fall back to the unfused one.
        repeats = queries.shape[1] // keys.shape[1]
        keys, values = (part.repeat_interleave(repeats, dim=1) for part in (keys, values))
        grouped = False
    mask, causal = None, False
    if length == positions:
        causal = True
    elif length > 1:
        # PyTorch aligns its causal mask with the first key, not with the last.
        mask = torch.ones(length, positions, dtype=torch.bool, device=queries.device).tril(positions - length)
    return F.scaled_dot_product_attention(
        queries, keys, values, attn_mask=mask, dropout_p=dropout, is_causal=causal, enable_gqa=grouped
    )


def _blocked_is_faster(queries: Tensor) -> bool:
    """In training on a CPU in bf16 the blocks beat PyTorch's fused kernel 2 to 5 times; in fp32 they do not."""
    return queries.device.type == "cpu" and queries.dtype == torch.bfloat16 and queries.requires_grad
