"""The lines that a run prints."""

import math
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from quintet.errors import one_line, printable, without_secrets

_LINE_SECONDS = 30  # between two progress lines of data preparation without a terminal


class RunConsole(Console):
    """A console that stops printing if its pipe is closed or its file cannot be written, and never ends a run."""

    def on_broken_pipe(self) -> None:
        """Stop printing, also when Python flushes standard output at its end."""
        self.fall_silent(BrokenPipeError())

    def fall_silent(self, error: OSError) -> None:
        """Stop printing because of ``error``, with a line to standard error."""
        if self.quiet:
            return
        self.quiet = True
        with suppress(OSError, ValueError, AttributeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())
        with suppress(OSError, ValueError):
            print(f"printing has stopped ({one_line(error)}); training goes on", file=sys.stderr, flush=True)


class Reporter:
    """Prints lines, and a progress bar on a terminal; elsewhere a line at each log point.

    ``words`` rewrites each line before it is printed, so that a user of a dialect reads the keys of their own file.
    """

    def __init__(self, console: Console | None = None, words: Callable[[str], str] = str) -> None:
        self._words = words
        self.console = console or RunConsole(highlight=False, soft_wrap=True)
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._stage = ""
        self._first: tuple[float, int] | None = None
        self._printed = 0.0  # time of the last progress line

    def say(self, text: str) -> None:
        """Print a line."""
        try:
            self.console.print(printable(without_secrets(self._words(text)), lines=True), markup=False)
        except OSError as error:  # a full disk
            if not isinstance(self.console, RunConsole):
                raise
            self.console.fall_silent(error)

    def failure(self, name: str, why: str, line: str = "") -> None:
        """Report that ``name`` failed because of ``why``, with ``line``, which is "" if it was printed before."""
        if line:
            self.say(line)

    def preparing(self, stage: str, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` bytes of ``stage`` are read."""
        now = time.perf_counter()
        if stage != self._stage:
            self._stage, self._first, self._printed = stage, (now, done), now
            self._start_bar(f"{stage} ")
            if not self.console.is_terminal:
                self.say(f"{stage} ({total / 1e6:,.1f} MB)")
        assert self._first is not None
        began, first = self._first
        figures = f"{done / 1e6:,.1f} of {total / 1e6:,.1f} MB"
        if done > first:  # bytes before the first call do not count for the speed
            speed = (done - first) / max(now - began, 1e-9)
            figures += f" · {speed / 1e6:,.1f} MB/s · {_clock((total - done) / speed)} left"
        self._update(done, total, figures)
        if not self.console.is_terminal and done < total and now - self._printed >= _LINE_SECONDS:
            self._printed = now
            self.say(f"{stage}: {figures}")
        if done >= total:
            self.close()

    def step(self, step: int, steps: int, loss: float, speed: dict[str, float]) -> None:
        """Show that ``step`` of ``steps`` is done; ``loss`` is the mean since the last call."""
        now = time.perf_counter()
        if self._first is None or self._stage != "training":
            self._stage, self._first = "training", (now, step)
            self._start_bar("step")
        began, first = self._first
        left = (now - began) / max(step - first, 1) * (steps - step) if step > first else None
        shown = "no loss" if math.isnan(loss) and not speed["speed/tokens_per_second"] else f"loss {loss:.4f}"
        memory = f"{speed['speed/memory_bytes'] / 1e9:.2f} GB · " if "speed/memory_bytes" in speed else ""
        figures = (
            f"{shown} · {speed['speed/tokens_per_second']:,.0f} tokens/s · "
            f"{speed['speed/mfu']:.0%} of peak · {memory}{_clock(left)} left"
        )
        self._update(step, steps, figures)
        if not self.console.is_terminal:
            self.say(f"step {step}/{steps} · {figures}")

    def close(self) -> None:
        """End the progress bar as it is."""
        if self._progress is not None:
            self._progress.stop()
        self._progress, self._stage = None, ""

    def _start_bar(self, label: str) -> None:
        if self._progress is not None:
            self._progress.stop()
        if not self.console.is_terminal:
            return
        columns = [TextColumn("{task.fields[label]}", markup=False)]  # no markup: it may be the label of a source
        if label == "step":
            columns.append(TextColumn("{task.completed:.0f}/{task.total:.0f}"))
        figures = TextColumn("{task.description}", markup=False)
        self._progress = Progress(*columns, BarColumn(20), figures, console=self.console)
        self._task = self._progress.add_task("", label=printable(label))
        self._progress.start()

    def _update(self, done: int, total: int, text: str) -> None:
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, total=total, description=text)


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
