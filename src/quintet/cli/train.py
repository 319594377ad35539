"""`quintet train`: train a run, or continue it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quintet.cli.inputs import Inputs, in_words, load
from quintet.config.packing import MusicPackingConfig
from quintet.errors import UserError, one_line
from quintet.libraries import is_installed
from quintet.processes import is_rank_zero

if TYPE_CHECKING:
    from quintet.track.console import Reporter
    from quintet.train.checkpoint import Progress
    from quintet.train.loop import Outcome


def train(
    inputs: Inputs,
    nproc: Annotated[
        str | None,
        typer.Option(help="start torchrun with so many processes on this machine; auto: one a GPU", show_default=False),
    ] = None,
    restarts: Annotated[
        int, typer.Option(min=0, help="with --nproc: start again so often from the last checkpoint when it fails")
    ] = 0,
) -> None:
    """Train the run of one or more run files, or continue the one in a run folder.

    The same command continues a run that was interrupted; on a finished run it does nothing.
    """
    loaded = load(inputs)
    config = loaded.config
    if nproc is not None:
        from quintet.train.parallel.launch import count_processes, launch

        processes = count_processes(nproc, config.train.device)
        raise typer.Exit(launch(["train", *inputs], processes, restarts))
    if restarts:
        raise UserError("--restarts: goes with --nproc; torchrun's own is --max-restarts")
    from rich.console import Console

    from quintet.track.console import Reporter
    from quintet.train.check import check_training
    from quintet.train.loop import train as train_run

    try:
        check_training(config)
    except UserError as error:
        raise loaded.located(error) from None
    # Of several processes one speaks; the others do when something is wrong with them.
    reporter = Reporter(words=in_words) if is_rank_zero() else Reporter(Console(quiet=True))
    for note in loaded.notes if is_rank_zero() else ():  # in the words of the file
        reporter.console.print(f"note: {note}", markup=False)
    try:
        outcome = train_run(config, reporter, loaded.original)
    finally:
        reporter.close()
    run = outcome.run
    if config.evaluate.only:
        reporter.say(f"evaluated at step {run.progress.step}: {outcome.validation or 'nothing is held out'}")
        return
    if outcome.signal is not None and run.progress.step < run.steps:
        reporter.say(f"stopped after step {run.progress.step} of {run.steps}; the same command continues from there")
        raise typer.Exit(128 + outcome.signal)
    for line in _summary(outcome):
        reporter.say(line)
    if is_rank_zero():
        _report(outcome.run.folder, reporter)


def _report(folder: Path, reporter: Reporter) -> None:
    """Write the page about the run, where what draws it is installed."""
    if not is_installed("matplotlib"):
        return
    from quintet.report.page import write_report

    try:
        reporter.say(f"report: {write_report(folder)}")
    except Exception as error:  # the training is done, and no page is worth its exit code
        reporter.say(f"no report: {one_line(error)}; quintet report {folder}")


def _best(progress: Progress, label: str | None) -> str:
    """The best validation, of ``label`` where that decides; one that is not finite is none."""
    if progress.best_loss is None:
        return "no best"
    return f"best{f' of {label}' if label else ''} {progress.best_loss:.4f} nats at step {progress.best_step}"


def _summary(outcome: Outcome) -> list[str]:
    """What the run reached, a text it wrote, and what to do next."""
    from quintet.train.checkpoint import checkpoint_steps

    run, progress = outcome.run, outcome.run.progress
    speed = f"{progress.tokens / max(progress.seconds, 1e-9):,.0f} tokens/s over {progress.seconds:,.0f} s of training"
    lines = [f"finished: {progress.step} steps, {speed}"]
    if progress.skipped_steps:
        lines.append(
            f"skipped: {progress.skipped_steps} steps without a valid target or with a gradient that was not finite"
        )
    if progress.failed:
        counts = ", ".join(f"{name} {count}" for name, count in progress.failed.items())
        lines.append(f"failed, and left out: {counts} (evaluate.required: true ends a run that cannot measure them)")
    if outcome.validation is not None:
        lines.append(f"validation: {outcome.validation} ({_best(progress, run.config.evaluate.best_by)})")
    sample = run.folder / "samples" / f"step-{progress.step:06d}.txt"
    if sample.exists():
        lines += ["", *sample.read_text(encoding="utf-8").splitlines(), ""]
    if not checkpoint_steps(run.checkpointer.folder):
        return lines
    music = isinstance(run.config.data.packing, MusicPackingConfig)
    asking = "--midi piece.mid -o longer.mid" if music else "--prompt '…'"
    lines += [
        "next:",
        f"  quintet generate {run.folder} {asking}",
        f"  quintet evaluate {run.folder}",
        "  quintet runs",
    ]
    return lines
