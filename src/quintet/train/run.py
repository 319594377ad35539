"""A run that is ready to train: what it consists of, its batches, and the rates of its steps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from quintet.config.evaluate import EvaluateConfig
from quintet.config.schema import RunConfig
from quintet.data.batch import Batch, TrainData, ValidationData
from quintet.model import Model
from quintet.model.dropout import set_dropout
from quintet.processes import rank, world_size
from quintet.tokenize import Tokenizer
from quintet.tokenize.bounds import TextBounds
from quintet.track.composite import CompositeTracker
from quintet.track.console import Reporter
from quintet.train.checkpoint import Checkpointer, Progress
from quintet.train.compute import (
    Compute,
)
from quintet.train.engine import Engine
from quintet.train.intervals import Intervals, Trial
from quintet.train.model import run_bounds
from quintet.train.objective import Objective
from quintet.train.optimizer import set_momentum
from quintet.train.schedule import dropout_rate, learning_rate, momentum


@dataclass
class Run:
    """A run that is ready to train, and how far it is.

    It ends after ``steps``. Learning rate and dropout follow ``schedule_steps``, which are more where a ``trial`` ends
    early.
    """

    config: RunConfig
    folder: Path
    steps: int
    schedule_steps: int
    compute: Compute
    tokenizer: Tokenizer
    data: TrainData
    validation: ValidationData | None
    objective: Objective
    model: Model
    loss_module: nn.Module
    engine: Engine
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    checkpointer: Checkpointer
    tracker: CompositeTracker
    reporter: Reporter
    bytes_per_token: np.ndarray
    flops_per_token: int
    peak: float
    progress: Progress
    intervals: Intervals
    trial: Trial | None = None

    @property
    def evaluate(self) -> EvaluateConfig:
        """What this run measures: `evaluate` of the run file, with the counts of the trial where it is one."""
        return self.config.evaluate if self.trial is None else self.trial.shortened(self.config.evaluate)

    @property
    def bounds(self) -> TextBounds:
        """Where the texts of this run begin and end."""
        return run_bounds(self.config, self.tokenizer)

    def batch(self, step: int) -> Batch:
        """This process's part of the batch of ``step``, counted from 0, as the model gets it."""
        step = self.config.data.batch_index(step)
        part = self.data.batch(step, rank(), world_size())
        return self.objective.prepare(part, "train", step, rank() * self.config.batch.samples // world_size())

    def whole_batch(self, step: int) -> Batch:
        """The batch of ``step`` with the parts of all processes."""
        step = self.config.data.batch_index(step)
        return self.objective.prepare(self.data.batch(step), "train", step)


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
