"""What one step does to the weights, whoever leads the loop: its rate and dropout, and clipping and the update."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from quintet.model.dropout import set_dropout
from quintet.train.dropout import dropout_rate
from quintet.train.optimizer import set_learning_rate, step_if_finite
from quintet.train.schedule import learning_rate
from quintet.train.setup import Run


def begin_step(run: Run, step: int) -> float:
    """Set the dropout of ``step``, counted from 1, and return its learning rate."""
    dropout = dropout_rate(run.config.dropout_schedule, step, run.steps)
    if dropout is not None:
        set_dropout(run.model, dropout)
    return rate_of(run, step)


def rate_of(run: Run, step: int) -> float:
    """The learning rate of ``step``, counted from 1, as far as the validations so far decide it."""
    return learning_rate(run.config.schedule, run.config.optimizer.lr, step, run.steps, run.progress.plateau)


def apply_gradients(run: Run, rate: float) -> tuple[Tensor, Tensor]:
    """Clip and step; returns the gradient's norm before clipping and 1.0 if the step was left out, on the device."""
    parameters = [p for p in run.model.parameters() if p.grad is not None]
    run.scaler.unscale_(run.optimizer)
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if run.config.train.clip_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, run.config.train.clip_norm, norm)
    set_learning_rate(run.optimizer, rate)
    if run.scaler.is_enabled():
        skipped = (~torch.isfinite(norm)).float()
        run.scaler.step(run.optimizer)
        run.scaler.update()
        run.progress = replace(run.progress, scaler=run.scaler.state_dict())
    else:
        skipped = step_if_finite(run.optimizer, norm)
    run.optimizer.zero_grad(set_to_none=True)
    return norm, skipped
