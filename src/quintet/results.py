"""`Run`, the result of `quintet.train`: a run folder with its metrics, curve and models. PyTorch is not imported."""

from __future__ import annotations

from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quintet.config.names import find_run
from quintet.config.packing import MusicPackingConfig
from quintet.config.schema import RunConfig
from quintet.libraries import is_installed, require
from quintet.report.facts import RunFacts, read_facts
from quintet.track.jsonl import read_metrics
from quintet.train.checkpoint_files import Progress, checkpoint_steps, newest_whole

if TYPE_CHECKING:
    from quintet.evaluate.language_model import LanguageModel
    from quintet.track.console import Reporter
    from quintet.train.loop import Outcome


class Run:
    """A run folder: its run file, metrics, curve and models. A notebook shows the curve.

    ``folder`` is a run folder or the name of a run under runs/. ``signal`` is the signal that stopped the training,
    None if none did. Raises UserError if there is no run.
    """

    def __init__(self, folder: str | Path, signal: int | None = None) -> None:
        self.folder = find_run(str(folder))
        self.signal = signal

    @classmethod
    def ended(cls, outcome: Outcome, reporter: Reporter) -> Run:
        """Print how a training ended, and return its run."""
        run, progress = outcome.run, outcome.run.progress
        if run.config.evaluate.only:
            reporter.say(f"evaluated at step {progress.step}: {outcome.validation or 'nothing is held out'}")
        elif outcome.signal is not None and progress.step < run.steps:
            reporter.say(f"stopped after step {progress.step} of {run.steps}; the same command continues from there")
            return cls(run.folder, outcome.signal)
        else:
            for line in _summary(outcome):
                reporter.say(line)
        return cls(run.folder)

    def __repr__(self) -> str:
        figures = {"validation loss": "validation/loss", "training loss": "train/loss"}
        last = {name: self.facts.series(metric).last for name, metric in figures.items()}
        shown = "".join(f", {name} {value:.4f}" for name, value in last.items() if value is not None)
        return f"Run({self.folder}: step {self.step:,}{shown})"

    @property
    def facts(self) -> RunFacts:
        """The run file and the recorded metrics, as they are in the folder now."""
        return read_facts(self.folder)

    @cached_property
    def config(self) -> RunConfig:
        """The run file, resolved."""
        return self.facts.config

    @property
    def step(self) -> int:
        """The last step that was recorded."""
        return self.facts.step

    @property
    def checkpoints(self) -> list[int]:
        """The steps of the checkpoints in the folder."""
        return checkpoint_steps(self.folder / "checkpoints")

    @property
    def progress(self) -> Progress | None:
        """The progress of the last whole checkpoint: its step, and the best loss so far; None if there is none."""
        return newest_whole(self.folder / "checkpoints", lambda _: None)

    @property
    def metrics(self) -> Any:
        """Every metric by step: a pandas DataFrame with a row per step if pandas is installed, else a list of dicts.

        Losses are in nats per token. A metric that was not recorded at a step is NaN, or is not in the dict.
        """
        steps: dict[int, dict[str, float]] = {}
        for record in read_metrics(self.folder / "metrics.jsonl"):
            steps.setdefault(int(record["step"]), {}).update(record)
        rows = [steps[step] | {"step": step} for step in sorted(steps)]
        if not is_installed("pandas"):
            return rows
        names = dict.fromkeys(name for row in rows for name in row if name != "step")
        pandas: Any = require("pandas", "report", "a table")
        return pandas.DataFrame(rows, columns=["step", *names]).set_index("step")

    def curve(self) -> str:
        """Return an SVG of the training and validation losses over tokens, as in the report. Raises UserError without
        matplotlib."""
        from quintet.report.plots import LOSS_TITLE, loss_curves, svg

        return svg(LOSS_TITLE, loss_curves(self.facts))

    def _repr_html_(self) -> str:
        heading = f"<p>{escape(repr(self))}</p>"
        if not is_installed("matplotlib") or not self.facts.series("train/loss").values.size:
            return heading
        return f'<div style="max-width: 40em">{heading}{self.curve()}</div>'

    def load(self, checkpoint: str | int = "latest") -> LanguageModel:
        """Return the model of the run at ``checkpoint``: latest, best or a step; see `quintet.load`."""
        from quintet.train.trained import load_model

        return load_model(str(self.folder), str(checkpoint))

    def report(self, file: str | Path | None = None, *, sound: bool = False) -> Path:
        """Write the report of the run to ``file`` (None: report.html in its folder) and return its path."""
        from quintet.report.page import write_report

        return write_report(self.folder, None if file is None else Path(file), sound=sound)


def _best(progress: Progress, label: str | None) -> str:
    """Return the best validation loss as text; of ``label``, if that decides."""
    if progress.best_loss is None:
        return "no best"
    return f"best{f' of {label}' if label else ''} {progress.best_loss:.4f} nats at step {progress.best_step}"


def _summary(outcome: Outcome) -> list[str]:
    """Return lines on the results of the run, a text that it wrote, and the next commands."""
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
    prompt = "--midi piece.mid -o longer.mid" if music else "--prompt '…'"
    lines += [
        "next:",
        f"  quintet generate {run.folder} {prompt}",
        f"  quintet evaluate {run.folder}",
        "  quintet runs",
    ]
    return lines
