"""The steps of a run in the `Trainer` of the transformers library."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.nn import ModuleDict
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from quintet.config.trainer import own_arguments
from quintet.errors import UserError
from quintet.libraries import check_arguments, require
from quintet.train.callbacks import Callbacks, StopSignal
from quintet.train.integrations.trainers import MicroBatches, Stepper
from quintet.train.run import Run
from quintet.train.validation import ValidationResult


def check_trainer(arguments: Mapping[str, Any]) -> None:
    """Raise NotHere if a library is missing, and UserError if TrainingArguments lacks one of ``arguments``."""
    require("accelerate", "hf", "trainer.kind: transformers")
    library = require("transformers", "hf", "trainer.kind: transformers")
    known = {field.name for field in dataclasses.fields(library.TrainingArguments) if field.init}
    check_arguments("trainer.arguments", "transformers.TrainingArguments", known, arguments)


def take_steps(run: Run, stop_signal: StopSignal) -> ValidationResult | None:
    """Take the steps of ``run`` in the library's loop; return the last validation.

    Raises UserError if `trainer.arguments` names a tracker that is not installed.
    """
    from transformers import PrinterCallback

    callbacks = Callbacks(run, stop_signal)
    if run.progress.step < run.steps:
        try:
            trainer = _trainer(run, Stepper(run, callbacks))
        except RuntimeError as error:
            if "requires" not in str(error):  # a tracker that is not installed
                raise
            raise UserError(f"trainer.arguments.report_to: {error}") from error
        trainer.remove_callback(PrinterCallback)  # the run reports its own progress
        trainer.train()
        folder = Path(trainer.args.output_dir)
        if not any(folder.iterdir()):
            folder.rmdir()
    run.checkpointer.wait()
    return callbacks.validation


def _trainer(run: Run, stepper: Stepper) -> Any:
    """Build a Trainer with the data, the loss and the optimizer of ``run``."""
    from transformers import Trainer, TrainerCallback

    class Callback(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            state.global_step = first

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop |= stepper.end()

    class RunTrainer(Trainer):
        loss_is_scaled_for_ga = True

        def get_train_dataloader(self) -> DataLoader[dict[str, Any]]:
            return MicroBatches(run).loader()

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            loss = stepper.loss(inputs)
            return (loss, {}) if return_outputs else loss

        def _get_learning_rate(self) -> float:
            return stepper.rate  # for the library's own log

        def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> None:
            """Return no norm, because the stepper measures it."""

    first = run.progress.step
    return RunTrainer(
        model=ModuleDict({"model": run.model}),  # a Trainer would change the config of a model that has one
        args=_arguments(run),
        train_dataset=MicroBatches(run),
        optimizers=(stepper, LambdaLR(stepper, lambda _: 1.0)),
        callbacks=[Callback()],
    )


def _arguments(run: Run) -> Any:
    """Return the arguments of the user and of the run. Raises UserError if the library refuses them."""
    from transformers import TrainingArguments

    config, asked = run.config, own_arguments(run.config.trainer)
    values: dict[str, Any] = {
        "output_dir": str(run.folder / "transformers"),
        "run_name": config.name,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "steps" if {"report_to", "logging_steps"} & set(asked) else "no",
        "logging_steps": run.intervals.log_every,
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
    } | asked
    fixed: dict[str, Any] = {
        "max_steps": run.steps,
        "seed": config.seed % 2**32,
        "per_device_train_batch_size": config.batch.micro_batch_size,
        "gradient_accumulation_steps": config.batch.accumulation,
        "learning_rate": config.optimizer.lr,
        "max_grad_norm": 0.0,
        "use_cpu": run.compute.device.type == "cpu",
        "eval_strategy": "no",
    }
    try:
        arguments = TrainingArguments(**(values | fixed))
    except (TypeError, ValueError, ImportError) as error:
        raise UserError(f"trainer.arguments: transformers.TrainingArguments refuses them: {error}") from error
    _ = arguments.device
    # Otherwise each visible GPU gets a copy of the model.
    arguments._n_gpu = 1  # pyright: ignore[reportPrivateUsage]
    return arguments
