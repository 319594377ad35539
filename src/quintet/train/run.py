"""A run that is ready to train: its parts, and the batch and the rates of each step."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

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
from quintet.train.checkpoint import Checkpointer
from quintet.train.checkpoint_files import Progress
from quintet.train.compute import Compute, pinned
from quintet.train.engine import Engine
from quintet.train.intervals import Intervals, Trial
from quintet.train.loss import Objective
from quintet.train.model import run_bounds
from quintet.train.optimizer import set_momentum
from quintet.train.schedule import dropout_rate, learning_rate, momentum


@dataclass
class Run:
    """A run that is ready to train, and its progress.

    It ends after ``steps``. Learning rate and dropout follow ``schedule_steps``, which is larger if a ``trial`` ends
    early. Steps count from 1, and ``progress.step`` is the last step taken. The batches of the data count from 0, so
    step s gets batch s - 1.
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
    peak_flops: float
    peak_flops_is_measured: bool
    progress: Progress
    intervals: Intervals
    trial: Trial | None = None

    @property
    def evaluate(self) -> EvaluateConfig:
        """The section `evaluate` of the run file, shortened if this is a trial."""
        return self.config.evaluate if self.trial is None else self.trial.shortened(self.config.evaluate)

    @property
    def bounds(self) -> TextBounds:
        """The ids before and after the texts of this run."""
        return run_bounds(self.config, self.tokenizer)

    def batch(self, step: int) -> Batch:
        """Return this process's part of the batch of ``step``, in pinned memory for a GPU.

        The objective hides and masks tokens here, on the host and before the step: every process must know the number
        of targets of the whole batch before it divides the loss by it.
        """
        index = self.config.data.batch_index(step - 1)
        first_row = rank() * self.config.batch.samples // world_size()
        batch = self.objective.prepare(self.data.batch(index, rank(), world_size()), "train", index, first_row)
        if self.compute.device.type != "cuda":
            return batch
        # The thread that prefetches batches pins them, so the thread that launches kernels does not wait for it.
        arrays = {name: getattr(batch, name) for name in ("inputs", "targets", "documents", "prompts")}
        on_host = {name: pinned(array, self.compute.device) for name, array in arrays.items() if array is not None}
        return replace(batch, **on_host)

    def whole_batch(self, step: int) -> Batch:
        """Return the batch of ``step`` with the parts of all processes."""
        index = self.config.data.batch_index(step - 1)
        return self.objective.prepare(self.data.batch(index), "train", index)

    def samples_line(self, step: int) -> str:
        """Return a line with the samples of the batch of ``step`` and the command that shows them."""
        batch = self.config.batch.samples
        first = self.config.data.batch_index(step - 1) * batch
        sources, samples = self.data.order.at(np.arange(first, first + batch))
        pairs = zip(sources[:8], samples[:8], strict=True)
        shown = ", ".join(f"{self.data.labels[source]} {sample}" for source, sample in pairs)
        return (
            f"Step {step} has the samples {shown}{' …' if batch > 8 else ''}: "
            f"`quintet show-batch {self.folder} --step {step}` shows them"
        )

    def begin_step(self, step: int) -> float:
        """Set the dropout and the momentum of ``step`` if they have a schedule; return its learning rate."""
        schedule, highest, steps = self.config.schedule, self.config.optimizer.lr, self.schedule_steps
        dropout = dropout_rate(self.config.dropout_schedule, step, steps)
        if dropout is not None:
            set_dropout(self.model, dropout)
        scheduled = momentum(schedule, highest, step, steps)
        if scheduled is not None:
            set_momentum(self.optimizer, scheduled)
        return learning_rate(schedule, highest, step, steps, self.progress.plateau)
