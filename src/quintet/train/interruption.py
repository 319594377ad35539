"""Ctrl-C and SIGTERM end a run after the step at hand, with a checkpoint."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass
class Interruption:
    """Whether somebody asked the run to stop, and by which signal."""

    signal: int | None = None


@contextmanager
def watch_signals() -> Iterator[Interruption]:
    """Note the first SIGINT or SIGTERM; the second one does what it always does."""
    asked = Interruption()
    if threading.current_thread() is not threading.main_thread():  # only there may Python handle signals
        yield asked
        return
    before = {int(number): signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: FrameType | None) -> None:
        asked.signal = number
        signal.signal(number, before[number])

    for number in before:
        signal.signal(number, note)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
