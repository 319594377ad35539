"""The training loop: batch, forward and backward, clip, step, bookkeeping."""

from contextlib import closing
from dataclasses import dataclass

from quintet.config.provenance import Original
from quintet.config.schema import RunConfig
from quintet.data.batch import prefetch
from quintet.track.console import Reporter
from quintet.track.tracker import RunStatus
from quintet.train.callbacks import Callbacks, StopSignal, watch_signals
from quintet.train.checkpoint_files import checkpoint_steps, last_checkpoint
from quintet.train.evaluation import (
    conclusion,
    look_at_start,
    measure_due,
    measure_weights,
    try_measurements,
)
from quintet.train.integrations.trainers import Steps, trainer_steps
from quintet.train.intervals import Trial
from quintet.train.parallel.group import process_group
from quintet.train.run import Run
from quintet.train.run_lock import RunLock
from quintet.train.setup import set_up
from quintet.train.validation import ValidationResult


@dataclass(frozen=True)
class Outcome:
    """The result of a run: its last validation if it holds data out, and the signal that stopped it, if any."""

    run: Run
    validation: ValidationResult | None
    signal: int | None


def train(
    config: RunConfig,
    reporter: Reporter,
    original: Original | None = None,
    trial: Trial | None = None,
    peak_flops: float | None = None,
) -> Outcome:
    """Train the run of ``config`` from its last checkpoint, if there is one, to its last step or a signal.

    With `evaluate.only` the run is evaluated and not changed. ``original`` is the dialect's file from which the run
    file was translated. A ``trial`` ends after its steps. Model FLOPs utilisation refers to ``peak_flops`` of a device,
    in FLOP/s, which is measured here if None. Raises UserError for each mistake that the user can fix.
    """
    steps = trainer_steps(config)
    with process_group(config), RunLock() as lock:
        run = set_up(config, reporter, original, trial, lock, peak_flops)
        status: RunStatus = "failed"
        try:
            with watch_signals() as stop_signal:
                outcome = _measure_or_train(run, stop_signal, steps)
            status = "stopped" if run.progress.step < run.steps and not config.evaluate.only else "finished"
            return outcome
        finally:
            try:
                run.checkpointer.close()
            finally:
                run.tracker.close(status, last_checkpoint(run.checkpointer.folder))


def _measure_or_train(run: Run, stop_signal: StopSignal, steps: Steps) -> Outcome:
    """Evaluate the weights of ``run`` with `evaluate.only`; otherwise train it."""
    config = run.config
    if config.evaluate.only:
        return Outcome(run, measure_weights(run), stop_signal.signal)
    if run.progress.step < run.steps or run.progress.due:
        try_measurements(run)
    if config.evaluate.at_start and run.progress.step == 0:
        look_at_start(run)
    validation = measure_due(run)  # what was due when the run was stopped
    validation = steps(run, stop_signal) or validation
    if run.progress.step == run.steps and not checkpoint_steps(run.checkpointer.folder):
        run.reporter.say("no checkpoint was kept, because `checkpoint` asks for none: the trained weights are lost")
    if config.data.fixed_batch and run.progress.step == run.steps:
        with run.engine.unsharded():
            run.reporter.say(conclusion(run))
    return Outcome(run, validation, stop_signal.signal)


def take_steps(run: Run, stop_signal: StopSignal) -> ValidationResult | None:
    """Take the steps of ``run`` in Quintet's own loop; return the last validation, None if there was none."""
    callbacks = Callbacks(run, stop_signal)
    while _take_steps_until_rollback(run, callbacks):
        callbacks.rolled_back = False
    run.checkpointer.wait()
    return callbacks.validation


def _take_steps_until_rollback(run: Run, callbacks: Callbacks) -> bool:
    """Take the remaining steps; return True if the run went back to a checkpoint, so that steps remain again."""
    first = run.progress.step
    with closing(prefetch(run.batch, first + 1, run.steps + 1)) as batches:
        for step, batch in enumerate(callbacks.rank_sync.over(batches), start=first + 1):
            if step in run.progress.spikes:
                pass  # its batch is skipped
            elif batch.valid:
                rate = run.begin_step(step)
                loss = run.engine.accumulate(batch, step)
                callbacks.add(step, rate, loss, *run.engine.update(rate, step))
            else:
                callbacks.add_without_target()
            if callbacks.end(step):
                break
    return callbacks.rolled_back
