"""Sending in the background, and what is said of a tracker that fails while a run goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

from quintet.errors import one_line

_CLOSING_SECONDS = 60.0  # a server that answers no more must not hold a finished run


class BackgroundQueue:
    """A queue that a thread empties through ``send``, in order and at most ``at_once`` things a call.

    What could not be sent waits and is tried again when more comes or the outbox is closed.
    """

    def __init__(self, send: Callable[[list[Any]], None], failures: FailureReporter, at_once: int) -> None:
        self._send, self._failures, self._at_once = send, failures, at_once
        self._waiting: list[Any] = []
        self._last: Callable[[], None] | None = None
        self._fresh = self._closed = False
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="tracker", daemon=True)
        self._thread.start()

    def put(self, things: Iterable[Any]) -> None:
        """Queue ``things``; returns at once."""
        with self._news:
            self._waiting.extend(things)
            self._fresh = True
            self._news.notify()

    def close(self, last: Callable[[], None] | None = None) -> None:
        """Send what waits, then do ``last``; gives up, and says so, after a minute."""
        with self._news:
            self._closed, self._last = True, last
            self._news.notify()
        self._thread.join(_CLOSING_SECONDS)
        if self._thread.is_alive():
            self._failures.tell(TimeoutError(f"no answer within {_CLOSING_SECONDS:.0f} s at the end"))
        elif self._waiting:
            self._failures.lost(len(self._waiting))

    def _work(self) -> None:
        closing = False
        while not closing:
            with self._news:
                self._news.wait_for(lambda: self._fresh or self._closed)
                self._fresh, closing = False, self._closed
            self._deliver()
        if self._last is not None:
            self._do(self._last)

    def _deliver(self) -> None:
        """Send until nothing waits or something fails."""
        fine = True
        while fine:
            with self._news:
                some = self._waiting[: self._at_once]
            if not some:
                return
            fine = self._do(lambda some=some: self._send(some))
            if fine:
                with self._news:
                    del self._waiting[: len(some)]

    def _do(self, action: Callable[[], None]) -> bool:
        try:
            action()
        except Exception as error:  # whatever a server does, training goes on
            self._failures.tell(error)
            return False
        return True


class FailureReporter:
    """Says the first failure of ``tracker``; those that follow are most often the same."""

    def __init__(self, tracker: str, say: Callable[[str], None]) -> None:
        self._tracker, self._say = tracker, say
        self._said = False

    def tell(self, error: BaseException) -> None:
        """Take note of ``error``."""
        if not self._said:
            self._said = True
            self._say(f"{self._tracker} fails: {one_line(error)}; training goes on, metrics.jsonl has all metrics")

    def lost(self, count: int) -> None:
        """Say at the end that ``count`` records were never taken."""
        self._say(f"{self._tracker}: {count} records were not sent; metrics.jsonl and samples/ have them")
