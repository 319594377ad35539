"""`quintet train`: train a run, or continue it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from quintet.cli.inputs import Inputs, load

if TYPE_CHECKING:
    from quintet.train.loop import Outcome


def train(inputs: Inputs) -> None:
    """Train the run of one or more run files, or continue the one in a run folder.

    The same command continues a run that was interrupted; on a finished run it does nothing.
    """
    config = load(inputs).config
    from quintet.track.console import Reporter
    from quintet.train.loop import train as train_run

    reporter = Reporter()
    try:
        outcome = train_run(config, reporter)
    finally:
        reporter.close()
    run = outcome.run
    if outcome.signal is not None and run.progress.step < run.steps:
        reporter.say(f"stopped after step {run.progress.step} of {run.steps}; the same command continues from there")
        raise typer.Exit(128 + outcome.signal)
    for line in _summary(outcome):
        reporter.say(line)


def _summary(outcome: Outcome) -> list[str]:
    """What the run reached, a text it wrote, and what to do next."""
    run, progress = outcome.run, outcome.run.progress
    speed = f"{progress.tokens / max(progress.seconds, 1e-9):,.0f} tokens/s over {progress.seconds:,.0f} s of training"
    lines = [f"finished: {progress.step} steps, {speed}"]
    if progress.skipped_steps:
        lines.append(
            f"skipped: {progress.skipped_steps} steps without a valid target or with a gradient that was not finite"
        )
    if outcome.validation is not None:
        result = outcome.validation
        lines.append(
            f"validation: {result.bits_per_byte:.4f} bits per byte ({result.loss:.4f} nats a token, perplexity "
            f"{result.perplexity:.2f}; best {progress.best_loss:.4f} at step {progress.best_step})"
        )
    sample = run.folder / "samples" / f"step-{progress.step:06d}.txt"
    if sample.exists():
        lines += ["", *sample.read_text(encoding="utf-8").splitlines(), ""]
    lines += [
        "next:",
        f"  quintet generate {run.folder} --prompt '…'",
        f"  quintet evaluate {run.folder}",
        "  quintet runs",
    ]
    return lines
