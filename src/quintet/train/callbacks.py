"""The work after each step: metrics, validations, samples and checkpoints, and the end of a run by a signal."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from time import monotonic
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from quintet.data.batch import Batch
from quintet.model.typed import as_list
from quintet.processes import all_reduce, is_rank_zero, world_size
from quintet.system import STOP_SIGNALS
from quintet.train.evaluation import due_after, measure_due
from quintet.train.metrics import MetricsBuffer, log_metrics
from quintet.train.parallel.failures import dump_stacks_on_sigterm
from quintet.train.run import Run
from quintet.train.spikes import roll_back
from quintet.train.validation import ValidationResult


class Callbacks:
    """Logs, validates, writes samples and saves when it is due after a step of ``run``, under any trainer."""

    def __init__(self, run: Run, stop_signal: StopSignal) -> None:
        self.run, self._stop_signal = run, stop_signal
        self.validation: ValidationResult | None = None
        self._buffer = MetricsBuffer()
        self.rolled_back = False
        self.rank_sync = RankSync(lambda: stop_signal.signal, self._overdue)

    def add(self, step: int, rate: float, loss: Tensor, norm: Tensor, skipped: Tensor) -> None:
        """Record the figures of ``step``, fp32 scalars on the device (see `MetricsBuffer.add`)."""
        self._buffer.add(step, rate, loss, norm, skipped, self.run.config.batch.tokens)

    def add_without_target(self) -> None:
        """Record a step whose batch has no valid target."""
        self._buffer.add_without_target()

    def end(self, step: int) -> bool:
        """Do the work after ``step``; return True at the end of the run, after a signal and after a rollback.

        After a loss spike (`train.on_spike`) the run goes back to its last checkpoint, and no other work is done.
        Unless there was a signal, ``rolled_back`` is then True and the steps after that checkpoint are to be taken.

        Raises UserError if a checkpoint cannot be written, and the errors of a validation.
        """
        run = self.run
        run.progress = replace(run.progress, step=step, tokens=run.progress.tokens + run.config.batch.tokens)
        stopped = self.rank_sync.signal is not None
        if stopped:  # a signal that reached one process stops all
            self._stop_signal.signal = self.rank_sync.signal
        last = step == run.steps or stopped
        due = due_after(run, step)
        # A stopped run always saves a checkpoint, whatever `checkpoint` says.
        saving = stopped or run.intervals.saves(step) or self.rank_sync.overdue
        if last or due or saving or run.intervals.logs(step):
            spike = log_metrics(run, self._buffer)
            if spike is not None:
                roll_back(run, spike)
                self._buffer.restart()
                self.rolled_back = not stopped
                return True
        run.progress = replace(run.progress, due=due)
        if (saving or due) and run.scaler.is_enabled():  # reading its state waits for the device
            run.progress = replace(run.progress, scaler=run.scaler.state_dict())
        if saving:  # before measurements, which may fail or take an hour
            run.checkpointer.save(run.progress, run.engine.state())
        # A stopped run does not wait for its measurements; they are made when it continues.
        if due and not (stopped and step < run.steps):
            self.validation = measure_due(run) or self.validation
        if due or saving:
            self._buffer.restart()
        return last

    def _overdue(self) -> bool:
        seconds = self.run.config.checkpoint.every_seconds
        return seconds is not None and monotonic() - self.run.checkpointer.saved_at >= seconds


# Processes may get a signal before different steps, or different signals: the first in this order counts.
SIGNALS = tuple(map(int, STOP_SIGNALS))


class RankSync:
    """Lets all processes take the same decisions after a step.

    With each batch every process sends the others its number of valid targets and the signal that it got, and rank 0
    sends whether a checkpoint is overdue. This happens one step ahead, so that no process waits.
    """

    def __init__(self, asked: Callable[[], int | None], overdue: Callable[[], bool]) -> None:
        self._asked, self._overdue = asked, overdue
        self._signal: int | None = None
        self._saving = False

    @property
    def signal(self) -> int | None:
        """The signal that stops the run after the current step, None if there is none."""
        return self._asked() if world_size() == 1 else self._signal

    @property
    def overdue(self) -> bool:
        """True if a checkpoint is due after the current step because of the time that has passed."""
        return self._overdue() if world_size() == 1 else self._saving

    def over(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield ``batches``, the parts of this process, with ``valid`` of the whole batch."""
        if world_size() == 1:
            yield from batches
            return
        before: tuple[Batch, Tensor, Any] | None = None
        for batch in batches:
            counts = torch.tensor([batch.valid, *self._requests()])
            following = (batch, counts, all_reduce(counts, later=True))
            if before is not None:
                yield self._agreed(*before)
            before = following
        if before is not None:
            yield self._agreed(*before)

    def _requests(self) -> list[int]:
        asked = self._asked()
        return [*(int(asked == number) for number in SIGNALS), int(is_rank_zero() and self._overdue())]

    def _agreed(self, batch: Batch, counts: Tensor, work: Any) -> Batch:
        """Return ``batch`` with ``valid`` of all processes. ``counts`` are sums, int64 [valid, signals, overdue]."""
        work.wait()
        valid, *signals, overdue = as_list(counts)
        self._signal = next((number for number, count in zip(SIGNALS, signals, strict=True) if count), None)
        self._saving = bool(overdue)
        return replace(batch, valid=valid)


# Seconds. A scheduler signals every process of a job, and torchrun passes that signal on to the processes it started.
_ONE_REQUEST = 2.0


@dataclass
class StopSignal:
    """The signal that asks the run to stop, None if there was none."""

    signal: int | None = None


def _is_ignored(number: signal.Signals) -> bool:
    """Return True for the signal of a closed terminal if `nohup` has it ignored."""
    return number.name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN


@contextmanager
def watch_signals() -> Generator[StopSignal]:
    """Record the first of `STOP_SIGNALS` within the context.

    A later signal has its usual effect, unless it comes within two seconds: SIGTERM may reach the processes of torchrun
    twice.
    """
    asked = StopSignal()
    if threading.current_thread() is not threading.main_thread():  # Python handles signals in the main thread only
        yield asked
        return
    before = {int(number): signal.getsignal(number) for number in STOP_SIGNALS if not _is_ignored(number)}
    asked_at: float | None = None

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal asked_at
        if asked_at is None:
            asked.signal, asked_at = number, monotonic()
        elif number == signal.SIGINT or monotonic() - asked_at > _ONE_REQUEST:
            signal.signal(number, before[number])
            signal.raise_signal(number)  # os.kill would end the process on Windows, whatever the signal

    for number in before:
        signal.signal(number, note)
    try:
        with dump_stacks_on_sigterm():
            yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
