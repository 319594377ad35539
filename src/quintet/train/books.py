"""What follows each step: metrics, validations, samples and checkpoints, when they are due."""

from __future__ import annotations

from dataclasses import replace
from time import monotonic

from torch import Tensor

from quintet.config.schedule import PlateauConfig
from quintet.processes import world
from quintet.train.benchmarks import asks_benchmarks, measure_benchmarks
from quintet.train.compute import measure_peak, peak_memory
from quintet.train.interruption import Interruption
from quintet.train.meter import Meter
from quintet.train.parallel.agreement import Agreement
from quintet.train.samples import write_samples
from quintet.train.schedules.plateau import after_validation
from quintet.train.setup import Run
from quintet.train.text_modeling import measure_text
from quintet.train.validation import ValidationResult, validate


class Books:
    """What follows each step of ``run``, whoever took it: metrics, validation, samples and checkpoints when due."""

    def __init__(self, run: Run, interruption: Interruption) -> None:
        self.run, self._interruption = run, interruption
        self.validation: ValidationResult | None = None
        self._meter, self._saved_at = Meter(), monotonic()
        self.agreement = Agreement(lambda: interruption.signal, self._overdue)

    def add(self, step: int, rate: float, loss: Tensor, norm: Tensor, skipped: Tensor) -> None:
        """Note what ``step`` measured, as ``Meter.add`` does."""
        self._meter.add(step, rate, loss, norm, skipped, self.run.config.batch.tokens)

    def add_masked(self) -> None:
        """Note a step whose batch has no valid target."""
        self._meter.add_masked()

    def end(self, step: int) -> bool:
        """Do what is due after ``step`` and say whether it is the last, by its number or because of a signal."""
        run, config = self.run, self.run.config
        run.progress = replace(run.progress, step=step, tokens=run.progress.tokens + config.batch.tokens)
        stopped = self.agreement.signal is not None
        if stopped:  # what reached one process holds for all
            self._interruption.signal = self.agreement.signal
        last = step == run.steps or stopped
        validating, sampling = run.rhythm.validates(step), run.rhythm.samples(step)
        # A run that is stopped keeps what it has, whatever it keeps at its end.
        saving = stopped or run.rhythm.saves(step) or self.agreement.overdue
        asking = asks_benchmarks(config, step, run.steps)
        if last or validating or sampling or saving or asking or run.rhythm.logs(step):
            _log(run, self._meter)
        if validating or sampling or asking:
            with run.engine.gathered():
                self._look(validating, sampling, asking)
            saving |= validating and config.checkpoint.keep_best and run.progress.best_step == step
        if saving:
            run.checkpointer.save(run.progress, run.engine.state())
            self._saved_at = monotonic()
        if validating or sampling or saving or asking:
            self._meter.restart()
        return last

    def _look(self, validating: bool, sampling: bool, asking: bool) -> None:
        """See what the model can do."""
        if validating:
            self.validation = validate_run(self.run)
        if sampling:
            write_samples(self.run)
        if asking:
            measure_text(self.run)
            measure_benchmarks(self.run)

    def _overdue(self) -> bool:
        seconds = self.run.config.checkpoint.every_seconds
        return seconds is not None and monotonic() - self._saved_at >= seconds


def _log(run: Run, meter: Meter) -> None:
    interval = meter.read()
    progress = run.progress
    run.progress = replace(
        progress,
        seconds=progress.seconds + interval.seconds,
        skipped_steps=progress.skipped_steps + interval.skipped_steps,
    )
    speed = {
        "speed/tokens_per_second": interval.tokens_per_second,
        "speed/share_of_peak": interval.tokens_per_second * run.flops_per_token / (run.peak * world()),
        "speed/memory_bytes": float(peak_memory(run.compute.device)),
        "train/skipped_steps": float(run.progress.skipped_steps),
    }
    for tracker in run.trackers:
        for step, metrics in interval.records:
            tracker.log(step, metrics | (speed if step == progress.step else {}))
    run.reporter.step(progress.step, run.steps, interval.loss, speed)


def look_at_start(run: Run) -> None:
    """Validate, and write the samples that go with it, before the first step."""
    with run.engine.gathered():
        validate_run(run)
        if run.rhythm.sample_every is None:
            write_samples(run)


def _note_validation(run: Run, loss: float) -> None:
    """Remember what the validation behind a step says of the best checkpoint and of the learning rate."""
    progress = run.progress.validated(loss)
    schedule, highest = run.config.schedule, run.config.optimizer.lr
    if isinstance(schedule, PlateauConfig):
        state = after_validation(schedule, highest, progress.step, run.steps, progress.plateau, loss)
        progress = replace(progress, plateau=state)
    run.progress = progress


def validate_run(run: Run) -> ValidationResult | None:
    """Validate, say and track the result, and remember what follows from it; None where nothing is held out."""
    if run.validation is None:
        return None
    result = validate(
        run.model,
        run.objective,
        run.validation.batches(run.config.validation_batch_size, run.config.evaluate.samples),
        run.compute,
        bytes_per_token=run.bytes_per_token,
        labels=run.validation.labels,
    )
    if run.progress.step:
        _note_validation(run, result.labels.get(run.config.evaluate.best_by or "", result).loss)
    # A busy neighbour at the start would make the peak too low for the whole run.
    run.peak = max(run.peak, measure_peak(run.compute, 0.1))
    for tracker in run.trackers:
        tracker.log(run.progress.step, result.metrics())
    run.reporter.say(f"step {run.progress.step}: validation: {result}")
    for line in result.lines():
        run.reporter.say(line)
    return result
