"""A tracker that fails while a run goes on."""

from __future__ import annotations

from collections.abc import Callable

from quintet.errors import one_line


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
