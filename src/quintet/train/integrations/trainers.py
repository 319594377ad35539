"""The table of trainers, and the parts of a run that transformers and Lightning get: micro-batches and an optimizer."""

from collections.abc import Callable, Iterator
from contextlib import closing
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from quintet.config.schema import RunConfig
from quintet.config.trainer import QuintetTrainerConfig
from quintet.data.batch import prefetch
from quintet.model.typed import replace_gradient
from quintet.train.callbacks import Callbacks, StopSignal
from quintet.train.engine import MicroBatch, micro_batches, share_of_loss
from quintet.train.run import Run
from quintet.train.validation import ValidationResult

Steps = Callable[[Run, StopSignal], ValidationResult | None]

TRAINERS = {
    "quintet": "quintet.train.loop",
    "transformers": "quintet.train.integrations.transformers",
    "lightning": "quintet.train.integrations.lightning",
}
"""The name of each kind's module, which imports its library and is therefore imported only when it is used.

Each module has ``take_steps``; those for a library also have ``check_trainer``, which checks `trainer.arguments`."""


def trainer_steps(config: RunConfig) -> Steps:
    """Return the loop that takes the steps of ``config``.

    Raises NotHere if its library is not installed, and UserError if that refuses an argument, before anything is built.
    """
    trainer = import_module(TRAINERS[config.trainer.kind])
    if not isinstance(config.trainer, QuintetTrainerConfig):
        trainer.check_trainer(config.trainer.arguments)
    return trainer.take_steps


class MicroBatches(IterableDataset[dict[str, Any]]):
    """The micro-batches of the steps that ``run`` still has to take, in order, as mappings."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def __iter__(self) -> Iterator[dict[str, Any]]:
        run, first = self.run, self.run.progress.step
        size, device = run.config.batch.micro_batch_size, run.compute.device
        with closing(prefetch(run.batch, first + 1, run.steps + 1)) as batches:
            for step, batch in enumerate(batches, start=first + 1):
                for part in micro_batches(batch, step, size, device):
                    yield vars(part)

    def loader(self) -> DataLoader[dict[str, Any]]:
        """Return a loader in this process that passes the micro-batches on as they are."""
        return DataLoader(self, batch_size=None)


class Stepper(torch.optim.Optimizer):
    """The optimizer that the library gets. It computes the loss of micro-batches and steps as Quintet's loop does.

    It clips, sets the learning rate, scales the loss and skips steps that are not finite, so the library must do
    none of these. ``rate`` is the learning rate of the current step.
    """

    def __init__(self, run: Run, callbacks: Callbacks) -> None:
        super().__init__([p for p in run.model.parameters() if p.requires_grad], {"lr": run.config.optimizer.lr})
        self._run, self._callbacks = run, callbacks
        self._loss, self._last, self._masked = torch.zeros((), device=run.compute.device), 0, False
        self.rate = run.config.optimizer.lr

    def loss(self, values: dict[str, Any]) -> Tensor:
        """Return the share of a micro-batch, given by its fields, in the loss of its batch: an fp32 scalar."""
        run, part = self._run, MicroBatch(**values)
        if part.index == 0:
            self.rate = run.begin_step(part.step)
            self._loss, self._last, self._masked = torch.zeros_like(self._loss), part.step, not part.valid
        share = share_of_loss(run.loss_module, part, run.config, run.compute)
        self._loss += share.detach()
        # Each library divides the loss by the number of micro-batches in its own way. A gradient of 1 undoes that.
        replace_gradient(share, lambda gradient: run.scaler.scale(torch.ones_like(gradient)))
        return share

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Call ``closure``, which computes the gradients, then clip and step as Quintet's loop does."""
        result = None if closure is None else closure()
        if self._masked:
            self._run.optimizer.zero_grad(set_to_none=True)
            self._callbacks.add_without_target()
        else:
            measured = self._run.engine.update(self.rate, self._last)
            self._callbacks.add(self._last, self.rate, self._loss, *measured)
        return result

    def end(self) -> bool:
        """Validate, sample and save when due; return True if the run ends with this step."""
        return self._callbacks.end(self._last)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self._run.optimizer.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return self._run.optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do nothing: accelerate loads the state that it read before, and checkpoints are Quintet's."""
