"""Activation checkpointing (Chen et al. 2016): the backward pass computes again what a block had computed."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from quintet.config.training import ActivationCheckpointing

aten = torch.ops.aten
# What costs most to compute again: matrix products and attention. All else of a block is kept nowhere.
_KEPT = {
    aten.mm.default,
    aten.addmm.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
}


def checkpoint_activations(blocks: Iterable[nn.Module], how: ActivationCheckpointing) -> None:
    """Let ``blocks`` keep less in training: with a number n each n-th of them only its input, with "selective" each of
    them its matrix products and attention; gradients stay the same bit for bit.

    The forward method is replaced and no module put around the block, so that parameters keep their names.
    """
    if how == "none":
        return
    for index, block in enumerate(blocks):
        if how == "selective" or index % how == 0:
            block.forward = _Checkpointed(block.forward, selective=how == "selective")


class _Checkpointed:
    def __init__(self, forward: Any, *, selective: bool) -> None:
        self._forward = forward
        contexts = {"context_fn": partial(create_selective_checkpoint_contexts, _policy)} if selective else {}
        self._checkpoint = partial(checkpoint, forward, use_reentrant=False, **contexts)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return self._forward(*arguments, **named)
        return self._checkpoint(*arguments, **named)


def _policy(context: Any, operation: Any, *arguments: Any, **named: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in _KEPT else CheckpointPolicy.PREFER_RECOMPUTE
