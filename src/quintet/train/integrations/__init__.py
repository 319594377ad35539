"""Other libraries that train a run: DeepSpeed's engine, and the training loops of transformers and Lightning."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

from quintet.config.schema import RunConfig
from quintet.config.trainer import QuintetTrainerConfig

if TYPE_CHECKING:
    from quintet.train.callbacks import StopSignal
    from quintet.train.run import Run
    from quintet.train.validation import ValidationResult

Steps = Callable[["Run", "StopSignal"], "ValidationResult | None"]

TRAINERS = {
    "quintet": "quintet.train.loop",
    "transformers": "quintet.train.integrations.transformers",
    "lightning": "quintet.train.integrations.lightning",
}
"""The module of each kind, by name, so that its library is imported when it is used and not before. It has
``take_steps``, and for a library ``check_trainer`` for the arguments that its trainer gets."""


def trainer_steps(config: RunConfig) -> Steps:
    """Return the loop that takes the steps of ``config``.

    Raises UserError when the library is not installed or does not know one of the arguments, before anything is built.
    """
    trainer = import_module(TRAINERS[config.trainer.kind])
    if not isinstance(config.trainer, QuintetTrainerConfig):
        trainer.check_trainer(config.trainer.arguments)
    return trainer.take_steps
