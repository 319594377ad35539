"""Cross-entropy of a linear head without the logits of all tokens in memory at once."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100
# On a GPU few large products are best; on a CPU a chunk that stays near the caches is (7 % of a step with 4096 ids).
LOGITS_BYTES = {"cpu": 32 * 2**20}
OTHER_LOGITS_BYTES = 256 * 2**20


def default_chunk(vocab_size: int, device: str) -> int:
    """Tokens whose fp32 logits fill 256 MB, 32 MB on a CPU, at least 128 so that the matrix products stay large."""
    return max(128, LOGITS_BYTES.get(device, OTHER_LOGITS_BYTES) // (4 * vocab_size))


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, *, chunk: int | None = None
) -> Tensor:
    """Sum over the valid tokens of −log softmax(hidden · weightᵀ + bias)[target], in nats, as an fp32 scalar.

    ``hidden`` is [..., width], ``weight`` [vocab, width], ``bias`` [vocab] or None, ``targets`` [...] with ``IGNORED``
    where there is no loss. ``chunk`` tokens are worked on at a time.

    With softmax's gradient known in closed form (p − onehot), each chunk's gradients are computed while its logits are
    still there, as the fused losses of Liger (Hsu et al. 2024) and Cut Your Losses (Wijmans et al. 2024) do: no second
    forward pass as with checkpointing, and one chunk of logits instead of all. The softmax is fp32 whatever the inputs.
    """
    return _LinearCrossEntropy.apply(  # pyright: ignore[reportReturnType]
        hidden.flatten(0, -2),
        weight,
        bias,
        targets.flatten(),
        chunk or default_chunk(weight.shape[0], hidden.device.type),
        torch.is_grad_enabled(),
    )


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, chunk: int, training: bool
    ) -> Tensor:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        wanted = tuple(needed and training for needed in ctx.needs_input_grad)
        with torch.autocast(device, enabled=False):
            loss, *gradients = _loss_and_gradients(hidden, weight, bias, targets, chunk, dtype, wanted)
        ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> Any:
        scale = outputs[0]
        return *(None if g is None else g * scale.to(g.dtype) for g in ctx.saved_tensors), None, None, None


def _loss_and_gradients(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    chunk: int,
    dtype: torch.dtype,
    wanted: tuple[bool, ...],
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """The summed loss and the gradients of hidden [n, width], weight and bias, where ``wanted``."""
    narrow_weight = weight.to(dtype)
    loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
    d_hidden = torch.empty_like(hidden) if wanted[0] else None
    d_weight = torch.zeros_like(weight) if wanted[1] else None
    d_bias = torch.zeros_like(bias) if bias is not None and wanted[2] else None
    for start in range(0, len(hidden), chunk):
        rows = slice(start, start + chunk)
        narrow_hidden, target = hidden[rows].to(dtype), targets[rows]
        valid = (target != IGNORED)[:, None]
        column = target.clamp(min=0)[:, None]
        logits = F.linear(narrow_hidden, narrow_weight).float()
        if bias is not None:
            logits += bias
        target_logits = logits.gather(1, column)
        # One exponential serves loss and gradient, in place: the logits are the largest tensor there is.
        highest = logits.amax(dim=-1, keepdim=True)
        weights = logits.sub_(highest).exp_()
        total = weights.sum(dim=-1, keepdim=True)
        loss += ((highest + total.log() - target_logits) * valid).sum()
        if not any(wanted[:3]):
            continue
        d_logits = weights.mul_(valid / total)
        d_logits.scatter_add_(1, column, -valid.float())
        if d_bias is not None:
            d_bias += d_logits.sum(0)
        d_logits = d_logits.to(dtype)
        if d_hidden is not None:
            d_hidden[rows] = d_logits @ narrow_weight
        if d_weight is not None:
            d_weight += d_logits.T @ narrow_hidden
    return loss, d_hidden, d_weight, d_bias
