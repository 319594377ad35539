"""The work after each step: metrics, validations, samples and checkpoints when they are due, and the run's end."""

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
    """Does what is due after each step of ``run``, whoever took it: metrics, validation, samples and checkpoints."""

    def __init__(self, run: Run, stop_signal: StopSignal) -> None:
        self.run, self._stop_signal = run, stop_signal
        self.validation: ValidationResult | None = None
        self._buffer = MetricsBuffer()
        self.rolled_back = False
        self.rank_sync = RankSync(lambda: stop_signal.signal, self._overdue)

    def add(self, step: int, rate: float, loss: Tensor, norm: Tensor, skipped: Tensor) -> None:
        """Note what ``step`` measured, fp32 scalars on the device, as ``MetricsBuffer.add`` does."""
        self._buffer.add(step, rate, loss, norm, skipped, self.run.config.batch.tokens)

    def add_without_target(self) -> None:
        """Note a step whose batch has no valid target."""
        self._buffer.add_without_target()

    def end(self, step: int) -> bool:
        """Do what is due after ``step``; returns True if it is the last, by its number or because of a signal.

        With a spike of the loss (`train.on_spike`) the run goes back to its last checkpoint, and nothing else is done;
        then too it returns True, and unless there is a signal ``rolled_back`` is True: the steps from there on follow.

        Raises UserError when a checkpoint cannot be written, and what a validation raises.
        """
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
            spike = log_metrics(run, self._buffer)
            if spike is not None:
                roll_back(run, spike)
                self._buffer.restart()
                self.rolled_back = not stopped
                return True
        run.progress = replace(run.progress, due=due)
        if (saving or due) and run.scaler.is_enabled():  # reading it waits for the device
            run.progress = replace(run.progress, scaler=run.scaler.state_dict())
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


# A signal may reach the processes before different steps, and they may get different ones: the first of these counts.
SIGNALS = tuple(map(int, STOP_SIGNALS))


class RankSync:
    """Makes all processes decide alike.

    With each batch, one step ahead so that none waits, every process tells the others how many targets its part has and
    which signal it got; rank 0 also tells them if a checkpoint is overdue.
    """

    def __init__(self, asked: Callable[[], int | None], overdue: Callable[[], bool]) -> None:
        self._asked, self._overdue = asked, overdue
        self._signal: int | None = None
        self._saving = False

    @property
    def signal(self) -> int | None:
        """The signal because of which the run stops after the current step."""
        return self._asked() if world_size() == 1 else self._signal

    @property
    def overdue(self) -> bool:
        """True if so much time has passed that the current step ends with a checkpoint."""
        return self._overdue() if world_size() == 1 else self._saving

    def over(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """``batches``, this process's parts, with ``valid`` of the whole batch."""
        if world_size() == 1:
            yield from batches
            return
        before: tuple[Batch, Tensor, Any] | None = None
        for batch in batches:
            told = torch.tensor([batch.valid, *self._wishes()])
            following = (batch, told, all_reduce(told, later=True))
            if before is not None:
                yield self._agreed(*before)
            before = following
        if before is not None:
            yield self._agreed(*before)

    def _wishes(self) -> list[int]:
        asked = self._asked()
        return [*(int(asked == one) for one in SIGNALS), int(is_rank_zero() and self._overdue())]

    def _agreed(self, batch: Batch, told: Tensor, work: Any) -> Batch:
        """``batch`` with what all processes say in ``told``, int64 [targets, a count a signal, overdue]."""
        work.wait()
        counts: list[int] = as_list(told)
        valid, *asked, overdue = counts
        self._signal = next((one for one, count in zip(SIGNALS, asked, strict=True) if count), None)
        self._saving = bool(overdue)
        return replace(batch, valid=valid)


# A scheduler signals every process of a job, and torchrun hands the same signal on to those it started.
_ONE_REQUEST = 2.0


@dataclass
class StopSignal:
    """The signal by which somebody asked the run to stop, None if nobody did."""

    signal: int | None = None


def _left_alone(number: signal.Signals) -> bool:
    """True for the signal of a closed terminal where `nohup` has it ignored."""
    return number.name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN


@contextmanager
def watch_signals() -> Generator[StopSignal]:
    """Note the first of `STOP_SIGNALS`. A later one has its usual effect, unless it comes so soon that it is the same
    request by another way, as SIGTERM may reach the processes of torchrun twice."""
    asked = StopSignal()
    if threading.current_thread() is not threading.main_thread():  # only there may Python handle signals
        yield asked
        return
    before = {int(number): signal.getsignal(number) for number in STOP_SIGNALS if not _left_alone(number)}
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
