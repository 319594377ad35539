"""The optimizer: which parameters decay, and how a step that is not finite leaves no trace."""

from __future__ import annotations

import torch
from torch import nn

from quintet.config.training import OptimizerConfig


def build_optimizer(config: OptimizerConfig, model: nn.Module) -> torch.optim.AdamW:
    """AdamW over the trainable parameters of ``model``, in two groups.

    What multiplies (matrices, embeddings: two dimensions or more) decays; what shifts or scales (biases, the gains of
    norms) does not, for pulling a gain to zero is no regulariser. The fused kernel is 5 times faster than the loop on a
    CPU and saves launches on a GPU.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=config.lr, betas=config.betas, eps=config.eps, fused=True
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group of ``optimizer`` the learning rate ``rate``."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def step_if_finite(optimizer: torch.optim.Optimizer, norm: torch.Tensor) -> torch.Tensor:
    """One optimizer step, unless the gradient's ``norm`` is not finite; returns 1.0 on the device if it was left out.

    The decision is made by the fused kernel from ``found_inf``, so that the host never waits for the norm.
    """
    found_inf = (~torch.isfinite(norm)).float()
    optimizer.found_inf = found_inf  # pyright: ignore[reportAttributeAccessIssue]
    optimizer.step()
    del optimizer.found_inf  # pyright: ignore[reportAttributeAccessIssue]
    return found_inf
