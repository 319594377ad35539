"""What one step does to the weights, whoever leads the loop: its rate and dropout, and the update."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from quintet.model.dropout import set_dropout
from quintet.train.dropout import dropout_rate
from quintet.train.optimizer import set_momentum
from quintet.train.schedule import learning_rate, momentum
from quintet.train.setup import Run


def begin_step(run: Run, step: int) -> float:
    """Set the dropout and the momentum of ``step``, counted from 1, where schedules say them, and return its learning
    rate."""
    dropout = dropout_rate(run.config.dropout_schedule, step, run.schedule_steps)
    if dropout is not None:
        set_dropout(run.model, dropout)
    cycled = momentum(run.config.schedule, run.config.optimizer.lr, step, run.schedule_steps)
    if cycled is not None:
        set_momentum(run.optimizer, cycled)
    return rate_of(run, step)


def rate_of(run: Run, step: int) -> float:
    """The learning rate of ``step``, counted from 1, as far as the validations so far decide it."""
    return learning_rate(run.config.schedule, run.config.optimizer.lr, step, run.schedule_steps, run.progress.plateau)


def apply_gradients(run: Run, rate: float) -> tuple[Tensor, Tensor]:
    """Clip and step; returns the gradient's norm before clipping and 1.0 if the step was left out, on the device."""
    measured = run.engine.update(rate)
    if run.scaler.is_enabled():
        run.progress = replace(run.progress, scaler=run.scaler.state_dict())
    return measured
