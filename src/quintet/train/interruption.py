"""Ctrl-C, SIGTERM and SIGUSR1 end a run after the step at hand, with a checkpoint."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic
from types import FrameType

# SLURM sends SIGUSR1 ahead of a time limit where it is told to.
WATCHED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
# A scheduler signals every process of a job, and torchrun hands the same signal on to those it started.
_ONE_REQUEST = 2.0


@dataclass
class Interruption:
    """Whether somebody asked the run to stop, and by which signal."""

    signal: int | None = None


@contextmanager
def watch_signals() -> Iterator[Interruption]:
    """Note the first of the signals `WATCHED`. A later one does what it always does, unless it came so soon that it is
    the first one by another way, as SIGTERM does to the processes of torchrun."""
    asked = Interruption()
    if threading.current_thread() is not threading.main_thread():  # only there may Python handle signals
        yield asked
        return
    before = {int(number): signal.getsignal(number) for number in WATCHED}
    asked_at: float | None = None

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal asked_at
        if asked_at is None:
            asked.signal, asked_at = number, monotonic()
        elif number == signal.SIGINT or monotonic() - asked_at > _ONE_REQUEST:
            signal.signal(number, before[number])
            os.kill(os.getpid(), number)

    for number in before:
        signal.signal(number, note)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
