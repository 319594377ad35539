"""The steps of a run in the `Trainer` of Lightning."""

import logging
import signal
import threading
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from quintet.config.trainer import own_arguments
from quintet.errors import UserError
from quintet.libraries import check_arguments, require
from quintet.track.tracker import RunStatus
from quintet.train.callbacks import Callbacks, StopSignal
from quintet.train.integrations.trainers import MicroBatches, Stepper
from quintet.train.run import Run
from quintet.train.validation import ValidationResult


def check_trainer(arguments: Mapping[str, Any]) -> None:
    """Raise NotHere if Lightning is missing, and UserError if its Trainer lacks one of ``arguments``."""
    library = require("lightning.pytorch", "lightning", "trainer.kind: lightning")
    check_arguments("trainer.arguments", "lightning.pytorch.Trainer", library.Trainer, arguments)


def take_steps(run: Run, stop_signal: StopSignal) -> ValidationResult | None:
    """Take the steps of ``run`` in Lightning's loop; return the last validation."""
    callbacks = Callbacks(run, stop_signal)
    if run.progress.step < run.steps:
        logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
        with warnings.catch_warnings():
            # A thread of the run prepares the batches, so workers would have nothing to do.
            warnings.filterwarnings("ignore", message=".*does not have many workers")
            warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated")
            trainer = _trainer(run, stepper := Stepper(run, callbacks))
            run.tracker.trackers.append(LoggerTracker(trainer.loggers))
            trainer.fit(_module(run, stepper), MicroBatches(run).loader())
    run.checkpointer.wait()
    return callbacks.validation


@dataclass(frozen=True)
class LoggerTracker:
    """A tracker that passes the run's metrics to the user's Lightning loggers."""

    every_step: ClassVar[bool] = False
    loggers: list[Any]

    def log(self, step: int, metrics: dict[str, float]) -> None:
        for logger in self.loggers:
            logger.log_metrics(metrics, step)

    def text(self, step: int, name: str, text: str) -> None:
        """Do nothing: Lightning's loggers have no common call for texts."""

    def files(self, step: int, name: str, files: Mapping[str, bytes]) -> None:
        """Do nothing: Lightning's loggers have no common call for files."""

    def close(self, status: RunStatus = "finished", checkpoint: Path | None = None) -> None:
        for logger in self.loggers:
            logger.save()


def _module(run: Run, stepper: Stepper) -> Any:
    """Return the model of ``run`` as a LightningModule."""
    from lightning.pytorch import LightningModule

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = run.model

        def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
            """Return the share of a micro-batch in the loss of its batch, an fp32 scalar."""
            return stepper.loss(batch)

        def configure_optimizers(self) -> Stepper:
            return stepper

    return Module()


def _trainer(run: Run, stepper: Stepper) -> Any:
    """Build a Trainer with the arguments of the user and of the run. Raises UserError if it refuses them."""
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from lightning.pytorch import Callback, Trainer

    handler = signal.getsignal(signal.SIGTERM)
    accumulation = run.config.batch.accumulation

    class Bookkeeping(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            # Lightning's own handler would end the run in the middle of a step.
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, handler)

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if (batch_idx + 1) % accumulation == 0:
                trainer.should_stop |= stepper.end()

    device = run.compute.device.type
    values: dict[str, Any] = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": str(run.folder / "lightning"),
    } | own_arguments(run.config.trainer)
    fixed: dict[str, Any] = {
        "max_epochs": 1,
        "min_epochs": 0,
        "accumulate_grad_batches": accumulation,
        "accelerator": "gpu" if device == "cuda" else device,
        "devices": 1,
        "callbacks": [Bookkeeping()],
        "plugins": [LightningEnvironment()],  # one process, also in a job of SLURM
    }
    try:
        return Trainer(**(values | fixed))
    except (TypeError, ValueError, ImportError, MisconfigurationException) as error:
        raise UserError(f"trainer.arguments: lightning.pytorch.Trainer refuses them: {error}") from error
