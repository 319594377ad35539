"""Servers of trackers: reachability, sending in the background, and reports of failures during a run."""

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

_CLOSING_SECONDS = 60.0  # a server that has stopped answering must not block a finished run
_CONNECTING_SECONDS = 5.0
_STARTING_SECONDS = 14.0  # a server that accepts connections and never answers must not block the start of a run
Result = TypeVar("Result")


def within_start(action: Callable[[], Result]) -> Result:
    """Return the result of ``action``, with a time limit for the start of a run.

    Raises TimeoutError after that time, whatever the limits of the library are; the action then continues in its
    thread.
    """
    results: list[Result] = []
    errors: list[BaseException] = []

    def act() -> None:
        try:
            results.append(action())
        except BaseException as error:  # raised again below
            errors.append(error)

    thread = threading.Thread(target=act, name="tracker-start", daemon=True)
    thread.start()
    thread.join(_STARTING_SECONDS)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"the server has not answered all requests within {_STARTING_SECONDS:.0f} s")
    return results[0]


def check_reachable(address: str) -> None:
    """Raise OSError if no server answers at the http ``address``: libraries would try for minutes.

    Other addresses and those with a proxy are not checked.
    """
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.scheme in getproxies():
        return
    if parts.scheme == "https":
        unverified = ssl._create_unverified_context()  # pyright: ignore[reportPrivateUsage]  (the library itself verifies the server)
        server = HTTPSConnection(parts.hostname, parts.port, timeout=_CONNECTING_SECONDS, context=unverified)
    else:
        server = HTTPConnection(parts.hostname, parts.port, timeout=_CONNECTING_SECONDS)
    with closing(server), suppress(HTTPException):  # any answer is one
        server.request("HEAD", "/")
        server.getresponse()


class BackgroundQueue:
    """A queue that a thread empties with ``send``, in order and at most ``at_once`` items per call.

    Items that could not be sent are tried again when new ones come or the queue is closed.
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
        self._items: list[Any] = []
        self._last: Callable[[], None] | None = None
        self._changed = self._closed = False
        self._condition = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="tracker", daemon=True)
        self._thread.start()

    def put(self, items: Iterable[Any]) -> None:
        """Queue ``items`` and return at once."""
        with self._condition:
            self._items.extend(items)
            self._changed = True
            self._condition.notify()

    def close(self, last: Callable[[], None] | None = None) -> None:
        """Send the remaining items, then call ``last``; give up with a report after ``seconds``."""
        with self._condition:
            self._closed, self._last = True, last
            self._condition.notify()
        self._thread.join(self._closing)
        if self._thread.is_alive():
            self._failures.tell(TimeoutError(f"no answer within {self._closing:.0f} s at the end"))
        if self._items:
            self._failures.lost(len(self._items))

    def _work(self) -> None:
        closing = False
        while not closing:
            with self._condition:
                self._condition.wait_for(lambda: self._changed or self._closed)
                self._changed, closing = False, self._closed
            self._deliver()
        if self._last is not None:
            self._do(self._last)

    def _deliver(self) -> None:
        """Send until the queue is empty or a call fails."""
        while True:
            with self._condition:
                batch = self._items[: self._at_once]
            if not batch or not self._do(lambda batch=batch: self._send(batch)):
                return
            with self._condition:
                del self._items[: len(batch)]

    def _do(self, action: Callable[[], None]) -> bool:
        try:
            action()
        except Exception as error:  # training continues whatever a server does
            self._failures.tell(error)
            return False
        return True


class FailureReporter:
    """Reports the first failure of ``tracker``; later ones are usually the same."""

    def __init__(self, tracker: str, say: Callable[[str], None]) -> None:
        self._tracker, self._say = tracker, say
        self._reported = False

    def tell(self, error: BaseException) -> None:
        """Report ``error`` if it is the first."""
        if not self._reported:
            self._reported = True
            self._say(f"{self._tracker} fails: {one_line(error)}; training goes on, metrics.jsonl has all metrics")

    def lost(self, count: int) -> None:
        """Report at the end that ``count`` records were not sent."""
        self.at_end(f"{count:,} records were not sent; metrics.jsonl and samples/ have them")

    def at_end(self, line: str) -> None:
        """Print a ``line`` about the tracker."""
        self._say(f"{self._tracker}: {line}")
