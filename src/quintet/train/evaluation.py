"""Measurements after a step: validation, samples, text modelling, text generation and benchmarks.

The checkpoint of a step is written before its measurements and names those that are due, so that a run that is killed
meanwhile makes them when it continues. After each measurement the checkpoint is updated with its result.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from quintet.config.documents import IGNORED
from quintet.config.evaluate import EvaluateConfig
from quintet.config.schedule import PlateauConfig
from quintet.config.schema import RunConfig
from quintet.config.train import steps_of
from quintet.data.batch import Batch, conditional_entropy, context_ids
from quintet.errors import UserError, named, one_line
from quintet.evaluate.harness.run import Benchmarks, EvalOptions, run_benchmarks, try_benchmarks
from quintet.evaluate.model_and_tokenizer import check_likelihood, check_text_model
from quintet.evaluate.text_generation import WrittenTexts, check_writing, write_and_measure
from quintet.evaluate.text_modeling import TextModeling, model_text
from quintet.evaluate.topics import text_topics
from quintet.model.dropout import evaluation_mode
from quintet.processes import FailedElsewhere, all_gather, broadcast_from_rank0
from quintet.train.compute import measure_peak_flops
from quintet.train.run import Run
from quintet.train.samples import check_prompts, write_samples
from quintet.train.schedule import after_validation
from quintet.train.validation import ValidationResult, rows_of, summed_loss, validate

VALIDATION, SAMPLES, TEXT, WRITING = "validation", "samples", "text modelling", "text generation"
BENCHMARKS = "benchmarks"


def due_after(run: Run, step: int) -> list[str]:
    """Return the names of the measurements that are due after ``step``, in order."""
    asked = asks_benchmarks(run.config, step, run.steps)
    evaluate = run.config.evaluate
    due = {
        VALIDATION: run.intervals.validates(step) and run.validation is not None,
        SAMPLES: run.intervals.samples(step),
        TEXT: asked and evaluate.text_modeling is not None,
        WRITING: asked and evaluate.text_generation is not None,
        BENCHMARKS: asked and bool(evaluate.tasks),
    }
    return [name for name, is_due in due.items() if is_due]


def asks_benchmarks(config: RunConfig, step: int, steps: int) -> bool:
    """True if the benchmarks, text modelling and text generation of ``config`` are due after ``step`` of ``steps``."""
    every = config.evaluate.tasks_every
    if not config.evaluate.measures:
        return False
    return step == steps or (every is not None and step % steps_of(every, steps) == 0)


def measure_due(run: Run) -> ValidationResult | None:
    """Make the measurements that are due after the current step; return the validation if it is among them.

    A validation that fails ends the run, because the best checkpoint and the learning rate may depend on it. Any other
    failure is reported and counted, or raised with `evaluate.required`.
    """
    validation = None
    if VALIDATION in run.progress.due:
        with run.engine.unsharded():
            validation = validate_run(run)
        _done(run, VALIDATION)
        if run.config.checkpoint.keep_best and run.progress.best_step == run.progress.step:
            run.checkpointer.save(run.progress, run.engine.state())
    if run.progress.due:
        with run.engine.unsharded():
            for name in run.progress.due:
                _attempt(run, name)
                _done(run, name)
    return validation


def measure_weights(run: Run) -> ValidationResult | None:
    """Make all measurements of the section `evaluate` with the current weights; return the validation, if any."""
    with run.engine.unsharded():
        validation = validate_run(run)
        measure_text(run)
        measure_writing(run)
        measure_benchmarks(run)
    return validation


def look_at_start(run: Run) -> None:
    """Validate before the first step, and write samples if they accompany validations."""
    with run.engine.unsharded():
        validate_run(run)
        if run.intervals.sample_every is None:
            _attempt(run, SAMPLES)


def _done(run: Run, name: str) -> None:
    run.progress = replace(run.progress, due=[other for other in run.progress.due if other != name])
    run.checkpointer.amend(run.progress)


def _attempt(run: Run, name: str) -> None:
    """Make the measurement ``name``. All processes learn of a failure in one, so that they continue or end together."""
    required = run.config.evaluate.required
    try:
        _MEASURES[name](run)
    except Exception as error:  # a failed measurement must not end the run
        failure = one_line(error, typed=not isinstance(error, UserError))
        all_gather(failure)
        if required:
            raise
    else:
        failure = next((text for text in all_gather("") if text), None)
        if failure is None:
            return
        if required:
            raise FailedElsewhere(failure)
    _count_failures(run, name, 1)
    line = f"step {run.progress.step}: {name} failed: {failure}; the run goes on (see evaluate.required)"
    run.reporter.failure(name, failure, line)


def _count_failures(run: Run, name: str, count: int) -> None:
    failed = run.progress.failed
    run.progress = replace(run.progress, failed={**failed, name: failed.get(name, 0) + count})


def _report(
    run: Run, heading: str, result: ValidationResult | TextModeling | WrittenTexts | Benchmarks, indent: str = ""
) -> None:
    """Track and print ``result``, which was measured after the current step."""
    run.tracker.log(run.progress.step, result.metrics())
    run.reporter.say(f"step {run.progress.step}: {heading}")
    for line in result.lines():
        run.reporter.say(f"{indent}{line}")


def validate_run(run: Run) -> ValidationResult | None:
    """Validate, print and track the result, and update the progress; return None if no data is held out."""
    if run.validation is None:
        return None
    result = validate(
        run.model,
        run.objective,
        run.validation.batches(run.config.validation_batch_size, run.evaluate.samples),
        run.compute,
        bytes_per_token=run.bytes_per_token,
        labels=run.validation.labels,
    )
    if run.progress.step:
        _note_validation(run, result.of(run.config.evaluate.best_by))
    if run.peak_flops_is_measured:  # other work on the machine may have made the first figure too low
        run.peak_flops = max(run.peak_flops, measure_peak_flops(run.compute, 0.1))
    _report(run, f"validation: {result}", result)
    return result


def _note_validation(run: Run, result: ValidationResult) -> None:
    """Update the best checkpoint and the state of the learning rate after a validation."""
    if not result.tokens:
        return
    progress = run.progress.validated(result.loss)
    schedule, highest = run.config.schedule, run.config.optimizer.lr
    if isinstance(schedule, PlateauConfig):
        state = after_validation(schedule, highest, progress.step, run.schedule_steps, progress.plateau, result.loss)
        progress = replace(progress, plateau=state)
    run.progress = progress


def measure_text(run: Run) -> TextModeling | None:
    """Measure, print and track `evaluate.text_modeling`; return None if the run file has no such section.

    Raises UserError if there is no text.
    """
    section = run.evaluate.text_modeling
    if section is None:
        return None
    topics = text_topics(section, run.tokenizer, run.validation, "evaluate.text_modeling", run.reporter.say)
    result = model_text(run, topics, section.stride)
    _report(run, "text modelling", result, indent="  ")
    return result


def measure_writing(run: Run) -> WrittenTexts | None:
    """Generate texts after the prompts of `evaluate.text_generation`, measure, print and track them.

    Returns None if the run file has no such section.
    """
    section = run.evaluate.text_generation
    if section is None:
        return None
    result = write_and_measure(run, section, run.config.seed)
    for index, (prompt, text) in enumerate(zip(section.prompts, result.texts, strict=True)):
        run.tracker.text(run.progress.step, f"generation {index}", prompt + text)
    _report(run, "text generation", result, indent="  ")
    return result


def measure_benchmarks(run: Run) -> Benchmarks | None:
    """Measure, print and track the benchmarks of `evaluate.tasks`; return None if there are none.

    A benchmark that cannot be measured is reported, counted and skipped. Raises UserError for a model that gives texts
    no likelihood, and with `evaluate.required` for a benchmark that cannot be measured.
    """
    config = run.evaluate
    if not config.tasks:
        return None
    check_likelihood(run, masked=run.config.loss.kind == "masked")
    result = run_benchmarks(run, eval_options(run.config, config))
    _report(run, "benchmarks", result)
    if result.missing:
        if config.required:
            raise UserError(*(f"evaluate.tasks: {name}: not measured: {why}" for name, why in result.missing.items()))
        for name, why in result.missing.items():
            run.reporter.failure(BENCHMARKS, f"evaluate.tasks: {name}: not measured: {why}")
        _count_failures(run, BENCHMARKS, len(result.missing))
    return result


def eval_options(config: RunConfig, part: EvaluateConfig) -> EvalOptions:
    """Return the options of the benchmarks in ``part``, the section `evaluate` of ``config`` or its trial."""
    return EvalOptions(
        tasks=part.tasks,
        samples=part.task_samples,
        shots=part.few_shot,
        data_dir=part.data_dir,
        batch_size=config.validation_batch_size,
    )


_MEASURES: dict[str, Callable[[Run], object]] = {
    SAMPLES: write_samples,
    TEXT: measure_text,
    WRITING: measure_writing,
    BENCHMARKS: measure_benchmarks,
}


def try_measurements(run: Run) -> None:
    """Check the inputs of all measurements before the first step.

    Raises UserError for sample prompts, texts and benchmark items that the tokenizer cannot encode, for a run without a
    valid target, and for a best loss that no sample contributes to.
    """
    if run.progress.step == 0:
        _check_targets(run)
    if not run.config.evaluate.never:
        _check_validation(run)
    check_prompts(run)
    section = run.config.evaluate.text_modeling
    if section is not None:
        check_text_model(run, "evaluate.text_modeling")
        with named("evaluate.text_modeling"):
            text_topics(section, run.tokenizer, run.validation, "evaluate.text_modeling", lambda _: None)
    if run.config.evaluate.text_generation is not None:
        check_writing(run, run.config.evaluate.text_generation)
    if run.config.evaluate.tasks:
        check_likelihood(run, masked=run.config.loss.kind == "masked")
        with named("evaluate.tasks"):
            try_benchmarks(run, eval_options(run.config, run.config.evaluate))


def _check_targets(run: Run) -> None:
    """Raise UserError if no step has a valid target. Usually the first batch has one, and no other is read."""
    steps = run.schedule_steps
    tried = 1 if run.config.data.fixed_batch else steps
    if not broadcast_from_rank0(lambda: any(run.whole_batch(step).valid for step in range(1, tried + 1))):
        raise UserError(
            f"data: none of the targets of the {steps:,} steps has a loss, so that there is nothing to learn: all "
            "of them are prompts, padding or ids that `loss` leaves out; a longer data.sequence_length may reach the "
            "answers (`quintet show-batch` shows what has a loss)"
        )


def _check_validation(run: Run) -> None:
    """Report if no held-out sample has a valid target.

    Raises UserError if the schedule or the best checkpoint depends on that loss.
    """
    if run.validation is None:
        return
    evaluate, measured, rows = run.config.evaluate, set[str](), 0
    for plain in run.validation.batches(run.config.validation_batch_size, evaluate.samples):
        batch = run.objective.prepare(plain, "validation", first_row=rows)
        rows += len(batch.inputs)
        sources = batch.sources[(batch.targets != IGNORED).any(1)]
        measured |= {run.validation.labels[source] for source in sources.tolist()}
        if evaluate.best_by in measured or (measured and evaluate.best_by is None):
            return
    mend = "take more samples (evaluate.samples), hold more out (data.validation), or lengthen data.sequence_length"
    nothing = "has a target with a loss"
    if evaluate.best_by is not None:
        raise UserError(
            f"evaluate.best_by: of the {rows:,} samples to validate on none of {evaluate.best_by!r} {nothing}, so that "
            f"there is no best; {mend}"
        )
    nothing = f"none of the {rows:,} samples to validate on {nothing}"
    if run.config.schedule.kind == "plateau":
        raise UserError(f"schedule.kind: plateau follows the validation loss, and {nothing}; {mend}")
    line = f"evaluate: {nothing}: there is no validation loss and no best checkpoint; {mend}"
    run.reporter.failure(VALIDATION, line, line)


def lowest_loss(config: RunConfig, batch: Batch) -> float:
    """Return the lowest loss, in nats a token, that any model of ``config`` can reach on ``batch``.

    A model with an attention window or without positions sees less than is counted here, and may not reach it.
    """
    model = config.model
    if model.kind == "huggingface":
        seen = context_ids(batch.inputs, ahead=config.loss.kind == "masked")
        return conditional_entropy(batch.targets, seen)
    attention = model.attention
    prompts = batch.prompts if model.tells_prompts else None
    positions = not attention.restart_positions and (model.learns_positions or model.position.kind == "sinusoidal")
    documents = batch.documents if model.tells_documents else None
    seen = context_ids(batch.inputs, documents, prompts, ahead=attention.kind == "bidirectional", positions=positions)
    return conditional_entropy(batch.targets, seen)


def introduction(config: RunConfig, batch: Batch) -> str:
    """Return a line about the only ``batch`` of a run. Raises UserError if it has no valid target."""
    if not batch.valid:
        raise UserError("data.fixed_batch: no target of the first batch has a loss; change `seed`, or set it to false")
    return (
        f"data.fixed_batch: each step has the batch of step 1. Given what each position sees, its {batch.valid:,} "
        f"targets have an entropy of {lowest_loss(config, batch):.4f} nats a token: no loss on it can be lower"
    )


def conclusion(run: Run) -> str:
    """Return a line about the final loss of a run on its only batch."""
    batch = run.whole_batch(1)
    loss, lowest = fixed_loss(run, batch), lowest_loss(run.config, batch)
    return (
        f"data.fixed_batch: loss {loss:.4f} nats a token, {loss - lowest:.4f} above the entropy of its targets, "
        f"{lowest:.4f}"
    )


@torch.no_grad()
def fixed_loss(run: Run, batch: Batch) -> float:
    """Return the mean cross-entropy on ``batch``, in nats a token, without dropout and smoothing."""
    parts = np.arange(len(batch.inputs)) // run.config.batch.micro_batch_size
    with evaluation_mode(run.model):
        losses = [
            summed_loss(run.model, run.objective, rows_of(batch, parts == part), run.compute)
            for part in range(parts[-1] + 1)
        ]
    return sum(losses) / max(batch.valid, 1)
