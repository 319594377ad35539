"""Ctrl-C, SIGTERM, SIGUSR1 and, on Windows, Ctrl-Break end a run after the step at hand, with a checkpoint."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic
from types import FrameType

from quintet.system import STOP_SIGNALS

# A scheduler signals every process of a job, and torchrun hands the same signal on to those it started.
_ONE_REQUEST = 2.0


@dataclass
class StopSignal:
    """Whether somebody asked the run to stop, and by which signal."""

    signal: int | None = None


@contextmanager
def watch_signals() -> Iterator[StopSignal]:
    """Note the first of `STOP_SIGNALS`. A later one does what it always does, unless it came so soon that it is the
    first one by another way, as SIGTERM does to the processes of torchrun."""
    asked = StopSignal()
    if threading.current_thread() is not threading.main_thread():  # only there may Python handle signals
        yield asked
        return
    before = {int(number): signal.getsignal(number) for number in STOP_SIGNALS}
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
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
