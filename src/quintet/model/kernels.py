"""What computes attention: which kernel serves a mask on a device, and how each is called."""

from __future__ import annotations

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
from quintet.model.blocked_attention import Span, blocked_attention, cut
from quintet.model.mask import KeyRanges

Kernel = Literal["sdpa", "flash", "flex", "blocked"]


@dataclass(frozen=True)
class AttentionMask:
    """``ranges`` as ``kernel`` wants them, made once for all blocks of a forward pass."""

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
) -> Kernel:
    """The kernel for ``ranges`` on ``device`` with matrix products in ``dtype``.

    ``cached`` queries continue a text; ``dropping`` says whether attention weights are dropped now. Raises UserError
    for a backend that the run file asks for and that cannot be had here.
    """
    training = torch.is_grad_enabled()
    if config.backend == "flex" and not cached:
        if device.type == "cpu" and training:
            raise UserError(
                "model.attention.backend: FlexAttention cannot train on a CPU in this PyTorch; leave it out to take "
                "the fastest that can"
            )
        return "flex"
    # PyTorch's flash kernel for CPUs drops no weights, and mps has none; the plain one computes the same.
    has_flash = device.type == "cuda" or (device.type == "cpu" and not dropping)
    if config.backend == "flash" and ranges.simple and has_flash:
        if device.type == "cuda" and dtype == torch.float32:
            raise UserError(
                "model.attention.backend: FlashAttention needs 16 bits on a GPU; set train.precision to bf16 or fp16"
            )
        return "flash"
    if config.backend != "auto" or cached:
        return "sdpa"
    if device.type == "cpu":
        # In training in bf16 the blocks beat PyTorch's fused kernel 2 to 5 times, in fp32 they do not; but where a mask
        # hides whole blocks they leave those out, which that kernel cannot.
        faster = ranges.first is not None or (dtype == torch.bfloat16 and training)
        return "blocked" if faster and not dropping and not torch.compiler.is_compiling() else "sdpa"
    # On CUDA a dense mask would leave the fused kernels that skip what it hides.
    return "flex" if device.type == "cuda" and not ranges.simple and not dropping else "sdpa"


def prepare_mask(ranges: KeyRanges, kernel: Kernel, device: torch.device) -> AttentionMask:
    """``ranges`` in the form that ``kernel`` takes."""
    if kernel == "blocked":
        return AttentionMask(ranges, kernel, spans=cut(ranges))
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
    """softmax(queries · keysᵀ · scale + mask) · values.

    ``queries`` is [batch, heads, length, features]; ``keys`` and ``values`` are [batch, kv_heads, positions, features],
    and each key head serves heads / kv_heads consecutive query heads. Returns the shape of ``queries``. ``dropout`` is
    the probability with which an attention weight is dropped; ``scale`` is 1 / sqrt(features) when None.
    """
    if mask.kernel == "blocked":
        factor = queries.shape[-1] ** -0.5 if scale is None else scale
        return blocked_attention(queries, keys, values, mask.ranges, mask.spans, factor)
    grouped = queries.shape[1] != keys.shape[1]
    if mask.kernel == "flex":
        assert not dropout
        compiled = queries.device.type != "cpu" and not torch.compiler.is_compiling()
        attention = _compiled_flex() if compiled else flex_attention
        return attention(queries, keys, values, block_mask=mask.blocks, scale=scale, enable_gqa=grouped)
    if grouped and queries.device.type == "cuda" and queries.dtype == torch.float32:
        # Of the fused kernels on CUDA only those for 16 bits share a key head; fp32 would fall back to the unfused one.
        repeats = queries.shape[1] // keys.shape[1]
        keys, values = (part.repeat_interleave(repeats, dim=1) for part in (keys, values))
        grouped = False
    causal = mask.dense is None and mask.ranges.causal and mask.ranges.length > 1
    arguments: dict[str, Any] = {"attn_mask": mask.dense, "dropout_p": dropout, "is_causal": causal}
    if mask.kernel == "flash":
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return F.scaled_dot_product_attention(queries, keys, values, **arguments, scale=scale, enable_gqa=grouped)
    return F.scaled_dot_product_attention(queries, keys, values, **arguments, scale=scale, enable_gqa=grouped)


def _block_mask(ranges: KeyRanges, device: torch.device) -> BlockMask:
    first, last, offset = ranges.first, ranges.last, ranges.keys - ranges.length

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = key >= 0
        if first is not None:
            seen = seen & (key >= first[batch if first.shape[0] > 1 else 0, query])
        if last is not None:
            return seen & (key <= last[batch if last.shape[0] > 1 else 0, query])
        return seen & (key <= query + offset) if ranges.causal else seen

    batches = {part.shape[0] for part in (first, last) if part is not None}
    batch = max(batches, default=1)
    # Compiled, it does not write out the whole matrix first.
    make = _compiled_block_mask() if device.type == "cuda" else create_block_mask
    return make(sees, batch if batch > 1 else None, None, ranges.length, ranges.keys, device=device)


@cache
def _compiled_flex() -> Any:
    return torch.compile(flex_attention, dynamic=False)


@cache
def _compiled_block_mask() -> Any:
    return torch.compile(create_block_mask)
