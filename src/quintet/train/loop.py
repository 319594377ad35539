"""The training loop: batch, forward and backward, clip, step, bookkeeping."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace
from time import monotonic

import torch
from torch import Tensor

from quintet.config.schema import RunConfig
from quintet.data.batch import prefetch
from quintet.model.dropout import set_dropout
from quintet.track.console import Reporter
from quintet.train.compute import measure_peak, peak_memory
from quintet.train.dropout import dropout_rate
from quintet.train.interruption import Interruption, watch_signals
from quintet.train.meter import Meter
from quintet.train.optimizer import set_learning_rate, step_if_finite
from quintet.train.samples import write_samples
from quintet.train.schedule import learning_rate
from quintet.train.setup import Run, set_up
from quintet.train.step import accumulate_gradients
from quintet.train.validation import ValidationResult, validate


@dataclass(frozen=True)
class Outcome:
    """How a run ended: its last validation if there is held-out data, and the signal that stopped it, if any."""

    run: Run
    validation: ValidationResult | None
    signal: int | None


def train(config: RunConfig, reporter: Reporter) -> Outcome:
    """Train the run of ``config``, from its last checkpoint if there is one, to its last step or until interrupted."""
    run = set_up(config, reporter)
    try:
        with watch_signals() as interruption:
            validation = _steps(run, interruption)
        return Outcome(run, validation, interruption.signal)
    finally:
        for tracker in run.trackers:
            tracker.close()
        run.checkpointer.close()


def _steps(run: Run, interruption: Interruption) -> ValidationResult | None:
    config, steps, first = run.config, run.steps, run.progress.step
    validation = None
    meter, saved_at = Meter(), monotonic()
    with closing(prefetch(run.batch, first, steps)) as batches:
        for step, batch in enumerate(batches, start=first + 1):
            if batch.valid:
                rate = learning_rate(config.schedule, config.optimizer.lr, step, steps)
                dropout = dropout_rate(config.dropout_schedule, step, steps)
                if dropout is not None:
                    set_dropout(run.model, dropout)
                loss = accumulate_gradients(run.model, run.objective, batch, step, config, run.compute, run.scaler)
                norm, skipped = _apply_gradients(run, rate)
                meter.add(step, rate, loss, norm, skipped, config.batch.tokens)
            else:
                meter.add_masked()
            run.progress = replace(run.progress, step=step, tokens=run.progress.tokens + config.batch.tokens)

            last = step == steps or interruption.signal is not None
            validating = step == steps or due(step, config.evaluate.every)
            sampling = step == steps or due(step, config.sample.every or config.evaluate.every)
            saving = last or due(step, config.checkpoint.every) or _overdue(saved_at, config.checkpoint.every_seconds)
            if validating or sampling or saving or due(step, config.train.log_every):
                _log(run, meter)
            if validating:
                validation = _validate(run)
                saving |= config.checkpoint.keep_best and run.progress.best_step == step
            if sampling:
                write_samples(run)
            if saving:
                run.checkpointer.save(run.progress, run.model, run.optimizer)
                saved_at = monotonic()
            if validating or sampling or saving:
                meter.restart()
            if last:
                break
    run.checkpointer.wait()
    return validation


def due(step: int, every: int | None) -> bool:
    """Whether something that happens each ``every`` steps happens after ``step``."""
    return every is not None and step % every == 0


def _overdue(saved_at: float, seconds: float | None) -> bool:
    return seconds is not None and monotonic() - saved_at >= seconds


def _apply_gradients(run: Run, rate: float) -> tuple[Tensor, Tensor]:
    """Clip and step; returns the gradient's norm before clipping and 1.0 if the step was left out, on the device."""
    parameters = [p for p in run.model.parameters() if p.grad is not None]
    run.scaler.unscale_(run.optimizer)
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if run.config.train.clip_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, run.config.train.clip_norm, norm)
    set_learning_rate(run.optimizer, rate)
    if run.scaler.is_enabled():
        skipped = (~torch.isfinite(norm)).float()
        run.scaler.step(run.optimizer)
        run.scaler.update()
        run.progress = replace(run.progress, scaler=run.scaler.state_dict())
    else:
        skipped = step_if_finite(run.optimizer, norm)
    run.optimizer.zero_grad(set_to_none=True)
    return norm, skipped


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
        "speed/share_of_peak": interval.tokens_per_second * run.flops_per_token / run.peak,
        "speed/memory_bytes": float(peak_memory(run.compute.device)),
        "train/skipped_steps": float(run.progress.skipped_steps),
    }
    for tracker in run.trackers:
        for step, metrics in interval.records:
            tracker.log(step, metrics | (speed if step == progress.step else {}))
    run.reporter.step(progress.step, run.steps, interval.loss, speed)


def _validate(run: Run) -> ValidationResult | None:
    if run.validation is None:
        return None
    size = run.config.evaluate.batch_size or run.config.batch.micro_batch_size
    result = validate(
        run.model,
        run.objective,
        run.validation.batches(size, run.config.evaluate.samples),
        run.compute,
        bytes_per_token=run.bytes_per_token,
        labels=run.validation.labels,
    )
    run.progress = run.progress.validated(result.loss)
    # A busy neighbour at the start would make the peak too low for the whole run.
    run.peak = max(run.peak, measure_peak(run.compute, 0.1))
    for tracker in run.trackers:
        tracker.log(run.progress.step, result.metrics())
    run.reporter.say(
        f"step {run.progress.step}: validation loss {result.loss:.4f} nats, perplexity {result.perplexity:.2f}, "
        f"{result.bits_per_byte:.4f} bits per byte"
    )
    for line in result.lines():
        run.reporter.say(line)
    return result
