"""Benchmarks of a model in training."""

from __future__ import annotations

from quintet.config.duration import steps_of
from quintet.config.schema import RunConfig
from quintet.evaluate.harness.figures import Benchmarks
from quintet.evaluate.harness.run import Asking, run_benchmarks
from quintet.evaluate.subject import check_subject
from quintet.train.setup import Run


def asks_benchmarks(config: RunConfig, step: int, steps: int) -> bool:
    """Whether the benchmarks and the text of ``config`` are due after ``step`` of ``steps``."""
    every = config.evaluate.tasks_every
    if not config.evaluate.tasks and config.evaluate.text_modeling is None:
        return False
    return step == steps or (every is not None and step % steps_of(every, steps) == 0)


def measure_benchmarks(run: Run) -> Benchmarks | None:
    """Measure `evaluate.tasks`, say and track the figures; None where there are none to measure.

    A benchmark whose data cannot be had is said and left out. Raises UserError for a model that gives texts no
    likelihood.
    """
    config = run.config.evaluate
    if not config.tasks:
        return None
    check_subject(run, masked=run.config.loss.kind == "masked")
    result = run_benchmarks(run, asking(run.config))
    for tracker in run.trackers:
        tracker.log(run.progress.step, result.metrics())
    run.reporter.say(f"step {run.progress.step}: benchmarks")
    for line in result.lines():
        run.reporter.say(line)
    return result


def asking(config: RunConfig) -> Asking:
    """What ``config`` asks of benchmarks."""
    part = config.evaluate
    return Asking(
        tasks=part.tasks,
        samples=part.task_samples,
        shots=part.few_shot,
        data_dir=part.data_dir,
        batch_size=config.validation_batch_size,
    )
