"""Other libraries around a run: DeepSpeed's engine, and the training loops of transformers and Lightning."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from quintet.config.schema import RunConfig
from quintet.config.trainer import LightningTrainerConfig, TransformersTrainerConfig

if TYPE_CHECKING:
    from quintet.train.callbacks import StopSignal
    from quintet.train.run import Run
    from quintet.train.validation import ValidationResult

Steps = Callable[["Run", "StopSignal"], "ValidationResult | None"]


def trainer_steps(config: RunConfig) -> Steps | None:
    """Return the library's loop that takes the steps of ``config``, None for Quintet's own.

    Raises UserError when the library is not installed or does not know one of the arguments, before anything is built.
    """
    match config.trainer:
        case TransformersTrainerConfig(arguments=arguments):
            from quintet.train.integrations import transformers

            transformers.check_trainer(arguments)
            return transformers.take_steps
        case LightningTrainerConfig(arguments=arguments):
            from quintet.train.integrations import lightning

            lightning.check_trainer(arguments)
            return lightning.take_steps
        case _:
            return None
