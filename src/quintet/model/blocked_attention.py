"""Causal attention for training on a CPU, as a few large matrix products.

PyTorch's fused CPU attention reaches about 150 GFLOP/s in bf16 where this CPU's matrix products reach 900. Cutting the
queries into blocks, multiplying each block with the keys that it may see, and writing the backward pass by hand keeps
everything in such products, and leaves out the half of them that the causal mask would throw away: in bf16, forward and
backward of 16 × 6 heads, 256 positions, 64 features take 12 ms instead of 34 (`benchmarks/attention_cpu.py`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

BLOCK = 128
# Above this the weights are computed a second time in the backward pass instead of being kept: memory then grows with
# the length and not with its square.
KEPT_BYTES = 64 * 2**20


def blocked_causal_attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """softmax(queries · keysᵀ / sqrt(features) + causal mask) · values.

    ``queries`` is [batch, heads, length, features]; ``keys`` and ``values`` are [batch, kv_heads, length, features],
    where kv_heads divides heads and each serves heads / kv_heads consecutive query heads. Returns the shape of
    ``queries``. The weights are in the inputs' type, so in bf16 they are rounded as those of any unfused attention are.
    """
    return _BlockedCausalAttention.apply(queries, keys, values)  # pyright: ignore[reportReturnType]


class _BlockedCausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        batch, heads, length, features = queries.shape
        groups = batch * keys.shape[1]
        # [groups, query heads of one group, length, features]; the scale is applied once, to the smaller factor.
        q = (queries * features**-0.5).reshape(groups, -1, length, features)
        k, v = keys.reshape(groups, length, features), values.reshape(groups, length, features)
        out = torch.empty_like(q)
        kept: list[Tensor] = []
        keeping = heads * batch * length * length * q.element_size() // 2 <= KEPT_BYTES
        for start in range(0, length, BLOCK):
            stop = min(start + BLOCK, length)
            weights = _weights(q, k, start, stop)
            out[:, :, start:stop] = torch.bmm(weights, v[:, :stop]).view(groups, -1, stop - start, features)
            if keeping:
                kept.append(weights)
        ctx.save_for_backward(q, k, v, *kept)
        ctx.shapes = queries.shape, keys.shape
        return out.view(queries.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        q, k, v, *kept = ctx.saved_tensors
        query_shape, key_shape = ctx.shapes
        d_out = gradients[0].reshape(q.shape)
        d_q, d_k, d_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        groups, _, length, features = q.shape
        for index, start in enumerate(range(0, length, BLOCK)):
            stop = min(start + BLOCK, length)
            weights = kept[index] if kept else _weights(q, k, start, stop)
            d_block = d_out[:, :, start:stop].reshape(groups, -1, features)
            d_v[:, :stop] += torch.bmm(weights.transpose(1, 2), d_block)
            d_weights = torch.bmm(d_block, v[:, :stop].transpose(1, 2))
            d_scores = torch.ops.aten._softmax_backward_data(d_weights, weights, -1, weights.dtype)
            d_q[:, :, start:stop] = torch.bmm(d_scores, k[:, :stop]).view(groups, -1, stop - start, features)
            d_k[:, :stop] += torch.bmm(d_scores.transpose(1, 2), q[:, :, start:stop].reshape(groups, -1, features))
        return (d_q * features**-0.5).view(query_shape), d_k.view(key_shape), d_v.view(key_shape)


def _weights(q: Tensor, k: Tensor, start: int, stop: int) -> Tensor:
    """Attention weights [groups, query heads × (stop − start), stop] of the queries from ``start`` to ``stop``."""
    groups, heads, _, features = q.shape
    scores = torch.bmm(q[:, :, start:stop].reshape(groups, -1, features), k[:, :stop].transpose(1, 2))
    # Only the last square holds keys that lie in a query's future.
    square = scores.view(groups, heads, stop - start, stop)[..., start:]
    square += torch.full((stop - start, stop - start), float("-inf"), dtype=q.dtype, device=q.device).triu_(1)
    return torch.softmax(scores, dim=-1)
