"""Servers: whether one is there, sending in the background, and what is said of a failure while a run goes on."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies

from quintet.errors import one_line

_CLOSING_SECONDS = 60.0  # a server that answers no more must not hold a finished run
_CONNECTING_SECONDS = 5.0
_STARTING_SECONDS = 14.0  # a server that takes connections and answers nothing must not hold the start of a run
Found = TypeVar("Found")


def within_start(action: Callable[[], Found]) -> Found:
    """Return what ``action`` returns. Raises TimeoutError where it takes longer than a start may wait for a server,
    whatever the library's own limits are; what it is doing then goes on without anybody who waits for it."""
    done: list[Found] = []
    failed: list[BaseException] = []

    def act() -> None:
        try:
            done.append(action())
        except BaseException as error:  # raised again by who waits
            failed.append(error)

    thread = threading.Thread(target=act, name="tracker-start", daemon=True)
    thread.start()
    thread.join(_STARTING_SECONDS)
    if failed:
        raise failed[0]
    if not done:
        raise TimeoutError(f"the server has not answered all that was asked within {_STARTING_SECONDS:.0f} s")
    return done[0]


def check_reachable(address: str) -> None:
    """Raise OSError where nobody answers at ``address``, if it is one of http: libraries try for minutes, and hold the
    start of a run up. A proxy, which only they know, is left to them."""
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.scheme in getproxies():
        return
    if parts.scheme == "https":
        unverified = ssl._create_unverified_context()  # pyright: ignore[reportPrivateUsage]  (the library verifies whom it tells something)
        server = HTTPSConnection(parts.hostname, parts.port, timeout=_CONNECTING_SECONDS, context=unverified)
    else:
        server = HTTPConnection(parts.hostname, parts.port, timeout=_CONNECTING_SECONDS)
    with closing(server), suppress(HTTPException):  # any answer is one
        server.request("HEAD", "/")
        server.getresponse()


class BackgroundQueue:
    """A queue that a thread empties through ``send``, in order and at most ``at_once`` things a call.

    What could not be sent waits and is tried again when more comes or the outbox is closed.
    """

    def __init__(
        self,
        send: Callable[[list[Any]], None],
        failures: FailureReporter,
        at_once: int,
        seconds: float = _CLOSING_SECONDS,
    ) -> None:
        self._send, self._failures, self._at_once = send, failures, at_once
        self._closing = seconds
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
        """Send what waits, then do ``last``; gives up, and says so, after ``seconds``."""
        with self._news:
            self._closed, self._last = True, last
            self._news.notify()
        self._thread.join(self._closing)
        if self._thread.is_alive():
            self._failures.tell(TimeoutError(f"no answer within {self._closing:.0f} s at the end"))
        if self._waiting:
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
        self.at_end(f"{count:,} records were not sent; metrics.jsonl and samples/ have them")

    def at_end(self, line: str) -> None:
        """Say a ``line`` about the tracker."""
        self._say(f"{self._tracker}: {line}")
