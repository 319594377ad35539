"""What follows each step: metrics, validations, samples and checkpoints, when they are due."""

from __future__ import annotations

from dataclasses import replace
from time import monotonic

from torch import Tensor

from quintet.processes import world_size
from quintet.train.compute import peak_memory
from quintet.train.measure import due_after, measure_due
from quintet.train.metrics_buffer import MetricsBuffer
from quintet.train.parallel.rank_sync import RankSync
from quintet.train.setup import Run
from quintet.train.stop_signal import StopSignal
from quintet.train.validation import ValidationResult


class Callbacks:
    """What follows each step of ``run``, whoever took it: metrics, validation, samples and checkpoints when due."""

    def __init__(self, run: Run, stop_signal: StopSignal) -> None:
        self.run, self._stop_signal = run, stop_signal
        self.validation: ValidationResult | None = None
        self._buffer = MetricsBuffer()
        self.rank_sync = RankSync(lambda: stop_signal.signal, self._overdue)

    def add(self, step: int, rate: float, loss: Tensor, norm: Tensor, skipped: Tensor) -> None:
        """Note what ``step`` measured, as ``MetricsBuffer.add`` does."""
        self._buffer.add(step, rate, loss, norm, skipped, self.run.config.batch.tokens)

    def add_masked(self) -> None:
        """Note a step whose batch has no valid target."""
        self._buffer.add_masked()

    def end(self, step: int) -> bool:
        """Do what is due after ``step`` and say whether it is the last, by its number or because of a signal."""
        run = self.run
        run.progress = replace(run.progress, step=step, tokens=run.progress.tokens + run.config.batch.tokens)
        stopped = self.rank_sync.signal is not None
        if stopped:  # what reached one process holds for all
            self._stop_signal.signal = self.rank_sync.signal
        last = step == run.steps or stopped
        due = due_after(run, step)
        # A run that is stopped keeps what it has, whatever it keeps at its end.
        saving = stopped or run.intervals.saves(step) or self.rank_sync.overdue
        if last or due or saving or run.intervals.logs(step):
            _log(run, self._buffer)
        run.progress = replace(run.progress, due=due)
        if saving:  # before what may fail or take an hour
            run.checkpointer.save(run.progress, run.engine.state())
        # Who stops a run does not wait for a validation; it is made when the run continues.
        if due and not (stopped and step < run.steps):
            self.validation = measure_due(run) or self.validation
        if due or saving:
            self._buffer.restart()
        return last

    def _overdue(self) -> bool:
        seconds = self.run.config.checkpoint.every_seconds
        return seconds is not None and monotonic() - self.run.checkpointer.saved_at >= seconds


def _log(run: Run, buffer: MetricsBuffer) -> None:
    window = buffer.read()
    progress = run.progress
    run.progress = replace(
        progress,
        seconds=progress.seconds + window.seconds,
        skipped_steps=progress.skipped_steps + window.skipped_steps,
    )
    speed = {
        "speed/tokens_per_second": window.tokens_per_second,
        "speed/mfu": window.tokens_per_second * run.flops_per_token / (run.peak * world_size()),
        "train/skipped_steps": float(run.progress.skipped_steps),
    }
    if (memory := peak_memory(run.compute.device)) is not None:
        speed["speed/memory_bytes"] = float(memory)
    for tracker in run.trackers:
        for step, metrics in window.records:
            if tracker.every_step or run.intervals.logs(step):
                tracker.log(step, metrics | (speed if step == progress.step else {}))
    run.reporter.step(progress.step, run.steps, window.loss, speed)
