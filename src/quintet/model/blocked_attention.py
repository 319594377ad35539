"""Attention for training on a CPU, as a few large matrix products.

PyTorch's fused CPU attention reaches about 150 GFLOP/s in bf16 where this CPU's matrix products reach 900. Cutting the
queries into blocks, multiplying each block with the keys that one of it may see, and writing the backward pass by hand
keeps everything in such products, and leaves out what the mask would throw away: half of a causal mask, most of packed
documents. In bf16, forward and backward of 16 × 6 heads, 256 positions, 64 features take 12 ms instead of 34
(`benchmarks/attention_cpu.py`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from quintet.model.mask import KeyRanges

BLOCK = 128
# Above this the weights are computed a second time in the backward pass instead of being kept: memory then grows with
# the length and not with its square.
KEPT_BYTES = 64 * 2**20

Span = tuple[int, int, int, int]
"""A block of queries and the keys that one of them sees: first query, behind the last, first key, behind the last."""


def blocked_attention(
    queries: Tensor, keys: Tensor, values: Tensor, ranges: KeyRanges, spans: tuple[Span, ...], scale: float
) -> Tensor:
    """softmax(queries · keysᵀ · scale + mask) · values.

    ``queries`` is [batch, heads, length, features]; ``keys`` and ``values`` are [batch, kv_heads, length, features],
    where kv_heads divides heads and each serves heads / kv_heads consecutive query heads. Returns the shape of
    ``queries``. The weights are in the inputs' type, so in bf16 they are rounded as those of any unfused attention are.
    """
    return _BlockedAttention.apply(queries, keys, values, ranges, spans, scale)  # pyright: ignore[reportReturnType]


def cut(ranges: KeyRanges) -> tuple[Span, ...]:
    """The blocks of queries of ``ranges``, each with the keys that matter to it."""
    first = None if ranges.first is None else ranges.first.amin(0).tolist()
    last = None if ranges.last is None else ranges.last.amax(0).tolist()
    spans = []
    for start in range(0, ranges.length, BLOCK):
        stop = min(start + BLOCK, ranges.length)
        low = 0 if first is None else min(first[start:stop])
        high = stop if ranges.causal else ranges.keys
        if last is not None:
            high = min(max(last[start:stop]) + 1, ranges.keys)
        spans.append((start, stop, low, high))
    return tuple(spans)


class _BlockedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        ranges: KeyRanges,
        spans: tuple[Span, ...],
        scale: float,
    ) -> Tensor:
        batch, heads, length, features = queries.shape
        groups = batch * keys.shape[1]
        # [groups, query heads of one group, length, features]; the scale is applied once, to the smaller factor.
        q = (queries * scale).reshape(groups, -1, length, features)
        k, v = keys.reshape(groups, length, features), values.reshape(groups, length, features)
        out = torch.empty_like(q)
        kept: list[Tensor] = []
        area = sum((stop - start) * (high - low) for start, stop, low, high in spans)
        keeping = heads * batch * area * q.element_size() <= KEPT_BYTES
        for span in spans:
            start, stop, low, high = span
            weights = _weights(q, k, span, ranges)
            out[:, :, start:stop] = torch.bmm(weights, v[:, low:high]).view(groups, -1, stop - start, features)
            if keeping:
                kept.append(weights)
        ctx.save_for_backward(q, k, v, *kept)
        ctx.shapes, ctx.ranges, ctx.spans, ctx.scale = (queries.shape, keys.shape), ranges, spans, scale
        return out.view(queries.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        q, k, v, *kept = ctx.saved_tensors
        query_shape, key_shape = ctx.shapes
        d_out = gradients[0].reshape(q.shape)
        d_q, d_k, d_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        groups, _, _, features = q.shape
        for index, span in enumerate(ctx.spans):
            start, stop, low, high = span
            weights = kept[index] if kept else _weights(q, k, span, ctx.ranges)
            d_block = d_out[:, :, start:stop].reshape(groups, -1, features)
            d_v[:, low:high] += torch.bmm(weights.transpose(1, 2), d_block)
            d_weights = torch.bmm(d_block, v[:, low:high].transpose(1, 2))
            d_scores = torch.ops.aten._softmax_backward_data(d_weights, weights, -1, weights.dtype)
            d_q[:, :, start:stop] = torch.bmm(d_scores, k[:, low:high]).view(groups, -1, stop - start, features)
            d_k[:, low:high] += torch.bmm(d_scores.transpose(1, 2), q[:, :, start:stop].reshape(groups, -1, features))
        return (d_q * ctx.scale).view(query_shape), d_k.view(key_shape), d_v.view(key_shape), None, None, None


def _weights(q: Tensor, k: Tensor, span: Span, ranges: KeyRanges) -> Tensor:
    """Attention weights [groups, query heads × (stop − start), high − low] of the queries of ``span``."""
    start, stop, low, high = span
    groups, heads, _, features = q.shape
    scores = torch.bmm(q[:, :, start:stop].reshape(groups, -1, features), k[:, low:high].transpose(1, 2))
    if ranges.first is not None or ranges.last is not None:
        hidden = _hidden(span, ranges, q.device)
        by_row = scores.view(hidden.shape[0], -1, stop - start, high - low)
        by_row.masked_fill_(hidden[:, None], float("-inf"))
    elif ranges.causal:
        # Only the last square holds keys that lie in a query's future.
        square = scores.view(groups, heads, stop - start, high - low)[..., start - low :]
        square += torch.full((stop - start, stop - start), float("-inf"), dtype=q.dtype, device=q.device).triu_(1)
    return torch.softmax(scores, dim=-1)


def _hidden(span: Span, ranges: KeyRanges, device: torch.device) -> Tensor:
    """True where a query of ``span`` does not see a key: bool [batch or 1, stop − start, high − low]."""
    start, stop, low, high = span
    keys = torch.arange(low, high, device=device)
    hidden = torch.zeros(1, stop - start, high - low, dtype=torch.bool, device=device)
    if ranges.first is not None:
        hidden = hidden | (keys < ranges.first[:, start:stop, None])
    if ranges.last is not None:
        hidden = hidden | (keys > ranges.last[:, start:stop, None])
    elif ranges.causal:
        hidden = hidden | (keys > torch.arange(start, stop, device=device)[:, None])
    return hidden
