"""The arithmetic of cross-entropy, without the logits of all tokens in memory at once.

Tensors in, a scalar out: what is a target and what is hidden is decided in ``quintet.train.loss``.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from quintet.config.documents import IGNORED
from quintet.model.typed import apply

# A GPU is fastest with few large products, a CPU with chunks that stay near its caches (7 % of a step, 4096 ids).
LOGITS_BYTES = {"cpu": 32 * 2**20}
OTHER_LOGITS_BYTES = 256 * 2**20
# oneDNN keeps a kernel of 2 MB for each number of rows, so that batches of all lengths would fill the memory.
_ROWS = 64


def default_chunk(vocab_size: int, device: str) -> int:
    """Return the number of tokens whose fp32 logits fill 256 MB (32 MB on a CPU), at least 128."""
    return max(128, LOGITS_BYTES.get(device, OTHER_LOGITS_BYTES) // (4 * vocab_size))


@dataclass(frozen=True)
class Smoothing:
    """The terms that are added to cross-entropy.

    The fraction ``labels`` of each target is spread evenly over all ids (Szegedy et al. 2016). ``z`` is the weight of
    the squared log of the softmax's denominator (Chowdhery et al. 2022, section 5).
    """

    labels: float = 0.0
    z: float = 0.0


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    *,
    ids: int | None = None,
    smoothing: Smoothing = Smoothing(),
    chunk: int | None = None,
) -> Tensor:
    """Return the sum over the valid tokens of −log softmax(hidden · weightᵀ + bias)[target]: an fp32 scalar in nats.

    ``hidden`` is [..., width], ``weight`` [rows, width], ``bias`` [rows] or None, all floats. ``targets``, int64 [...],
    are ``IGNORED`` where there is no loss. The softmax is over the first ``ids`` rows (all if None); the others pad
    the matrix. ``chunk`` tokens are computed at a time.

    The gradient of softmax has a closed form (p − onehot), so the gradients of a chunk are computed while its logits
    are in memory, as in the fused losses of Liger (Hsu et al. 2024) and Cut Your Losses (Wijmans et al. 2024). This
    needs no second forward pass, and one chunk of logits instead of all. The softmax is computed in fp32.
    """
    hidden, targets = hidden.flatten(0, -2), targets.flatten()
    if hidden.device.type == "cpu":
        # If most tokens have no loss, their logits cost most of the step. A GPU would have to wait for their number.
        valid = int((targets != IGNORED).sum())
        if valid < 0.75 * len(targets):
            first = (targets == IGNORED).argsort(stable=True)[: -(-valid // _ROWS) * _ROWS]
            hidden, targets = hidden[first], targets[first]
    return apply(
        _LinearCrossEntropy,
        hidden,
        weight,
        bias,
        targets,
        _Terms(
            ids=weight.shape[0] if ids is None else ids,
            smoothing=smoothing,
            chunk=chunk or default_chunk(weight.shape[0], hidden.device.type),
            training=torch.is_grad_enabled(),
        ),
    )


def cross_entropy(logits: Tensor, targets: Tensor, smoothing: Smoothing = Smoothing()) -> Tensor:
    """Return the sum of `linear_cross_entropy`, an fp32 scalar, from the float ``logits`` [..., ids] of int64
    ``targets`` [...]. It serves heads that are more than a product with a matrix.

    >>> logits, targets = torch.zeros(3, 2), torch.tensor([0, 1, IGNORED])
    >>> round(cross_entropy(logits, targets).item(), 4)  # 2 log 2
    1.3863
    """
    logits, targets = logits.flatten(0, -2).float(), targets.flatten()
    total = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum", label_smoothing=smoothing.labels)
    if smoothing.z:
        total = total + smoothing.z * (logits.logsumexp(-1).square() * (targets != IGNORED)).sum()
    return total


@dataclass(frozen=True)
class _Terms:
    ids: int
    smoothing: Smoothing
    chunk: int
    training: bool


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, terms: _Terms
    ) -> Tensor:
        """Return `linear_cross_entropy` of ``hidden`` [n, width] and int64 ``targets`` [n]: an fp32 scalar."""
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        needs_grad = tuple(needed and terms.training for needed in ctx.needs_input_grad)
        with torch.autocast(device, enabled=False):
            loss, *gradients = _loss_and_gradients(hidden, weight, bias, targets, terms, dtype, needs_grad)
        ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> Any:
        """Return the gradients that `forward` kept times an fp32 scalar, in the shapes and dtypes of its arguments."""
        scale = outputs[0]
        return *(None if g is None else g * scale.to(g.dtype) for g in ctx.saved_tensors), None, None


def _loss_and_gradients(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    terms: _Terms,
    dtype: torch.dtype,
    needs_grad: tuple[bool, ...],
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Return the summed loss, an fp32 scalar, and the gradients of ``hidden`` [n, width], ``weight`` [rows, width] and
    ``bias`` [rows] in their dtypes, or None. The matrix products are in ``dtype``."""
    narrow_weight = weight.to(dtype)
    loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
    d_hidden = torch.empty_like(hidden) if needs_grad[0] else None
    d_weight = torch.zeros_like(weight) if needs_grad[1] else None
    d_bias = torch.zeros_like(bias) if bias is not None and needs_grad[2] else None
    for start in range(0, len(hidden), terms.chunk):
        rows = slice(start, start + terms.chunk)
        narrow_hidden, target = hidden[rows].to(dtype), targets[rows]
        # The padded rows are multiplied too: the padding makes the product fast.
        logits = F.linear(narrow_hidden, narrow_weight).float()
        if bias is not None:
            logits += bias
        part, d_logits = _softmax(logits[:, : terms.ids], target, terms.smoothing, gradient=any(needs_grad[:3]))
        loss += part
        if d_logits is None:
            continue
        logits[:, terms.ids :] = 0
        if d_bias is not None:
            d_bias += logits.sum(0)
        narrow = logits.to(dtype)
        if d_hidden is not None:
            d_hidden[rows] = narrow @ narrow_weight
        if d_weight is not None:
            d_weight += narrow.T @ narrow_hidden
    return loss, d_hidden, d_weight, d_bias


def _softmax(logits: Tensor, target: Tensor, smoothing: Smoothing, *, gradient: bool) -> tuple[Tensor, Tensor | None]:
    """Return the summed loss of fp32 ``logits`` [n, ids] with int64 ``target`` [n], and its gradient.

    The gradient replaces the logits, which are the largest tensor of a step. One exponential serves both.
    """
    valid, column = (target != IGNORED)[:, None], target.clamp(min=0)[:, None]
    target_logits = logits.gather(1, column)
    mean_logits = logits.mean(-1, keepdim=True) if smoothing.labels else None
    highest = logits.amax(dim=-1, keepdim=True)
    weights = logits.sub_(highest).exp_()
    total = weights.sum(dim=-1, keepdim=True)
    denominator = highest + total.log()
    loss = denominator - (1 - smoothing.labels) * target_logits
    if mean_logits is not None:
        loss -= smoothing.labels * mean_logits
    if smoothing.z:
        loss += smoothing.z * denominator.square()
    loss = (loss * valid).sum()
    if not gradient:
        return loss, None
    scale = valid / total
    if smoothing.z:
        scale = scale * (1 + 2 * smoothing.z * denominator)
    d_logits = weights.mul_(scale)
    if smoothing.labels:
        d_logits -= valid * (smoothing.labels / logits.shape[1])
    return loss, d_logits.scatter_add_(1, column, (smoothing.labels - 1) * valid.float())
