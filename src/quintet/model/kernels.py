"""Attention kernels: the choice of one for a mask and a device, the calls of each, and a kernel of our own for CPUs."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from quintet.config.model import AttentionConfig
from quintet.errors import UserError
from quintet.model.dropout import WeightDropout
from quintet.model.mask import KeyRanges
from quintet.model.typed import apply, as_list, compiled, never_compiled

FLEX_FEATURES = 16
"""The fewest features per head with which PyTorch compiles FlexAttention."""

Kernel = Literal["sdpa", "flash", "flex", "blocked", "chunked"]


@dataclass(frozen=True)
class AttentionMask:
    """``ranges`` in the form that ``kernel`` takes, built once for all blocks of a forward pass."""

    ranges: KeyRanges
    kernel: Kernel
    dense: Tensor | None = None
    blocks: BlockMask | None = None
    spans: tuple[Span, ...] = ()


def choose_kernel(
    config: AttentionConfig,
    ranges: KeyRanges,
    device: torch.device,
    dtype: torch.dtype,
    *,
    cached: bool,
    dropping: bool,
    features: int = 64,
) -> Kernel:
    """Return the kernel for ``ranges`` on ``device`` with matrix products in ``dtype`` and ``features`` per head.

    ``cached`` queries continue a text; with ``dropping``, attention weights are dropped in this pass. Raises UserError
    for a backend that the run file asks for and that does not work here.
    """
    training = torch.is_grad_enabled()
    # Compiled code has fixed lengths and needs the whole mask. Code that is not compiled and stores nothing for a
    # backward pass needs a mask for a part of its queries at a time.
    whole = training or dropping or ranges.simple or ranges.length <= CHUNK or torch.compiler.is_compiling()
    plain: Kernel = "sdpa" if whole else "chunked"
    if config.backend == "flex" and not cached and (whole or device.type != "cuda"):
        if device.type == "cpu" and training:
            raise UserError(
                "model.attention.backend: FlexAttention cannot train on a CPU in this PyTorch; leave it out to take "
                "the fastest that can"
            )
        if device.type == "cuda" and features < FLEX_FEATURES:
            raise UserError(
                f"model.attention.backend: FlexAttention on a GPU takes heads of {FLEX_FEATURES} features at least "
                f"and these have {features}; leave it out"
            )
        return "flex"
    # PyTorch's flash kernel for CPUs has no dropout, and mps has no flash kernel; the plain one computes the same.
    has_flash = device.type == "cuda" or (device.type == "cpu" and not dropping)
    if config.backend == "flash" and ranges.simple and has_flash:
        if device.type == "cuda" and dtype == torch.float32:
            raise UserError(
                "model.attention.backend: FlashAttention needs 16 bits on a GPU; set train.precision to bf16 or fp16"
            )
        return "flash"
    if config.backend != "auto" or cached:
        return plain
    if device.type == "cpu":
        # In bf16 training the blocked kernel is 2 to 5 times as fast as PyTorch's fused kernel, in fp32 it is not. But
        # it skips blocks that a mask hides, which the fused kernel cannot.
        faster = ranges.first is not None or (dtype == torch.bfloat16 and training)
        return "blocked" if faster and not dropping and not torch.compiler.is_compiling() else plain
    # On CUDA no fused kernel skips what a dense mask hides. FlexAttention skips it, but only if it is
    # compiled, which it is not for texts of varying lengths.
    flexible = device.type == "cuda" and not ranges.simple and not dropping and whole and features >= FLEX_FEATURES
    return "flex" if flexible else plain


def prepare_mask(ranges: KeyRanges, kernel: Kernel, device: torch.device) -> AttentionMask:
    """Return ``ranges`` in the form that ``kernel`` takes."""
    if kernel in ("blocked", "chunked"):
        return AttentionMask(ranges, kernel, spans=cut(ranges, BLOCK if kernel == "blocked" else CHUNK))
    if kernel == "flex":
        return AttentionMask(ranges, kernel, blocks=_block_mask(ranges, device))
    return AttentionMask(ranges, kernel, dense=None if ranges.simple else ranges.dense(device))


def attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: AttentionMask,
    *,
    dropout: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """Return softmax(queries · keysᵀ · scale + mask) · values, in the shape of ``queries``.

    ``queries`` is [batch, heads, length, features]; ``keys`` and ``values`` are [batch, kv_heads, positions, features],
    and each key head serves heads / kv_heads consecutive query heads. Arguments and result have one float dtype.
    ``dropout`` is the probability with which an attention weight is dropped; ``scale`` is 1 / sqrt(features) if None.
    """
    if mask.kernel == "blocked":
        factor = queries.shape[-1] ** -0.5 if scale is None else scale
        return blocked_attention(queries, keys, values, mask.ranges, mask.spans, factor)
    grouped = queries.shape[1] != keys.shape[1]
    if mask.kernel == "flex":
        assert not dropout
        compiles = queries.device.type != "cpu" and not torch.compiler.is_compiling()
        attention = _compiled_flex() if compiles else flex_attention
        return attention(queries, keys, values, block_mask=mask.blocks, scale=scale, enable_gqa=grouped)
    if grouped and _unfused_where_shared(queries, mask):
        repeats = queries.shape[1] // keys.shape[1]
        if mask.ranges.length == 1:  # the query heads of one key head can be the queries of one head
            together = queries.reshape(*keys.shape[:2], repeats, -1)
            options: dict[str, Any] = {"attn_mask": mask.dense, "dropout_p": dropout, "scale": scale}
            return F.scaled_dot_product_attention(together, keys, values, **options).reshape(queries.shape)
        keys, values = (part.repeat_interleave(repeats, dim=1) for part in (keys, values))
        grouped = False
    if mask.kernel == "chunked":
        return _chunked_attention(queries, keys, values, mask, scale, grouped)
    causal = mask.dense is None and mask.ranges.causal and mask.ranges.length > 1
    arguments: dict[str, Any] = {"attn_mask": mask.dense, "dropout_p": dropout, "is_causal": causal}
    if mask.kernel == "flash":
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return F.scaled_dot_product_attention(queries, keys, values, **arguments, scale=scale, enable_gqa=grouped)
    return F.scaled_dot_product_attention(queries, keys, values, **arguments, scale=scale, enable_gqa=grouped)


def _unfused_where_shared(queries: Tensor, mask: AttentionMask) -> bool:
    """Return True if no fused kernel serves query heads, floats [batch, heads, length, features], with shared key
    heads.

    On CUDA only the fused kernels for 16 bits without a mask do; the unfused one stores length² weights in fp32.
    """
    masked = mask.kernel == "chunked" or mask.dense is not None
    return queries.device.type == "cuda" and (masked or queries.dtype == torch.float32)


def _chunked_attention(
    queries: Tensor, keys: Tensor, values: Tensor, mask: AttentionMask, scale: float | None, grouped: bool
) -> Tensor:
    """``attend`` for ``CHUNK`` queries at a time, with a mask of the keys that they see, in the same shapes and dtypes.

    A mask for all queries, and the weights of an unfused kernel, would grow with the square of the length.
    """
    out = torch.empty_like(queries, memory_format=torch.contiguous_format)
    for span in mask.spans:
        start, stop, low, high = span
        out[:, :, start:stop] = F.scaled_dot_product_attention(
            queries[:, :, start:stop],
            keys[:, :, low:high],
            values[:, :, low:high],
            attn_mask=~_hidden(span, mask.ranges, queries.device)[:, None],
            scale=scale,
            enable_gqa=grouped,
        )
    return out


@contextmanager
def varying_lengths() -> Generator[None]:
    """Compile and plan nothing for the length of a text inside the context, because each text has another length.

    cuDNN's attention makes a plan for each new length, which takes longer than the attention itself.
    """
    fused = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    with torch.compiler.set_stance("force_eager"), sdpa_kernel(fused):
        yield


def attend_dropping(
    dropout: WeightDropout, queries: Tensor, keys: Tensor, values: Tensor, mask: AttentionMask, scale: float | None
) -> Tensor:
    """`attend` with the rate of ``dropout`` in training; ``queries`` and the result are floats [batch, heads, length,
    features], ``keys`` and ``values`` as in `attend`."""
    if dropout.scheduled and dropout.training:
        return _attend_at_rate(dropout, queries, keys, values, mask, scale)
    rate = dropout.p if dropout.training else 0.0
    return attend(queries, keys, values, mask, dropout=rate, scale=scale)


@never_compiled
def _attend_at_rate(
    dropout: WeightDropout, queries: Tensor, keys: Tensor, values: Tensor, mask: AttentionMask, scale: float | None
) -> Tensor:
    """`attend` outside of a compiled pass, because the kernel takes the rate as a Python number, and each new rate
    would recompile the pass."""
    return attend(queries, keys, values, mask, dropout=dropout.p, scale=scale)


def _block_mask(ranges: KeyRanges, device: torch.device) -> BlockMask:
    first, last, offset = ranges.first, ranges.last, ranges.keys - ranges.length

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """True where ``query`` sees ``key``: bool of the shape of these integers, scalars or vmap's batches of them."""
        seen = key >= 0
        if first is not None:
            seen = seen & (key >= first[batch if first.shape[0] > 1 else 0, query])
        if last is not None:
            return seen & (key <= last[batch if last.shape[0] > 1 else 0, query])
        return seen & (key <= query + offset) if ranges.causal else seen

    batches = {part.shape[0] for part in (first, last) if part is not None}
    batch = max(batches, default=1)
    # The compiled function does not build the whole matrix first.
    make = _compiled_block_mask() if device.type == "cuda" else create_block_mask
    return make(sees, batch if batch > 1 else None, None, ranges.length, ranges.keys, device=device)


@cache
def _compiled_flex() -> Any:
    return compiled(flex_attention, dynamic=False)


@cache
def _compiled_block_mask() -> Any:
    return compiled(create_block_mask)


BLOCK = 128
"""Queries per block of our own kernel."""
CHUNK = 512
"""Queries per call of PyTorch's kernel if it is called for parts of the queries."""
# More attention weights than this are recomputed in the backward pass instead of being stored, so that memory grows
# with the length and not with its square.
KEPT_BYTES = 64 * 2**20

Span = tuple[int, int, int, int]
"""A block of queries and the keys that any of them sees: first query, one past the last, first key, one past the
last."""


def blocked_attention(
    queries: Tensor, keys: Tensor, values: Tensor, ranges: KeyRanges, spans: tuple[Span, ...], scale: float
) -> Tensor:
    """Return softmax(queries · keysᵀ · scale + mask) · values, in the shape of ``queries``.

    ``queries`` is [batch, heads, length, features]; ``keys`` and ``values`` are [batch, kv_heads, length, features],
    and each key head serves heads / kv_heads consecutive query heads. Attention weights and result have the inputs'
    dtype, so that in bf16 they are rounded as in any unfused attention.
    """
    return apply(_BlockedAttention, queries, keys, values, ranges, spans, scale)


def cut(ranges: KeyRanges, block: int = BLOCK) -> tuple[Span, ...]:
    """Return the blocks of ``block`` queries of ``ranges``, each with the keys that its queries see."""
    first = None if ranges.first is None else as_list(ranges.first.amin(0))
    last = None if ranges.last is None else as_list(ranges.last.amax(0))
    spans: list[Span] = []
    for start in range(0, ranges.length, block):
        stop = min(start + block, ranges.length)
        low = 0 if first is None else min(first[start:stop])
        high = stop + ranges.keys - ranges.length if ranges.causal else ranges.keys
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
        """See ``blocked_attention`` for shapes and dtypes."""
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
        """Return the gradients of queries, keys and values, in their shapes and dtypes, from that of the result."""
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
    """Return the attention weights [groups, query heads × (stop − start), high − low] of the queries of ``span``.

    ``q`` is [groups, query heads, length, features], ``k`` [groups, length, features]; all have one float dtype.
    """
    start, stop, low, high = span
    groups, heads, _, features = q.shape
    scores = torch.bmm(q[:, :, start:stop].reshape(groups, -1, features), k[:, low:high].transpose(1, 2))
    if ranges.first is not None or ranges.last is not None:
        hidden = _hidden(span, ranges, q.device)
        by_row = scores.view(hidden.shape[0], -1, stop - start, high - low)
        by_row.masked_fill_(hidden[:, None], float("-inf"))
    elif ranges.causal:
        # Only the last square has keys that come after a query.
        square = scores.view(groups, heads, stop - start, high - low)[..., start - low :]
        square += torch.full((stop - start, stop - start), float("-inf"), dtype=q.dtype, device=q.device).triu_(1)
    return torch.softmax(scores, dim=-1)


def _hidden(span: Span, ranges: KeyRanges, device: torch.device) -> Tensor:
    """Return a mask, True where a query of ``span`` does not see a key: bool [batch or 1, stop − start, high − low]."""
    start, stop, low, high = span
    keys = torch.arange(low, high, device=device)
    hidden = torch.zeros(1, stop - start, high - low, dtype=torch.bool, device=device)
    if ranges.first is not None:
        hidden = hidden | (keys < ranges.first[:, start:stop, None])
    if ranges.last is not None:
        hidden = hidden | (keys > ranges.last[:, start:stop, None])
    elif ranges.causal:
        offset = ranges.keys - ranges.length
        hidden = hidden | (keys > torch.arange(start + offset, stop + offset, device=device)[:, None])
    return hidden
