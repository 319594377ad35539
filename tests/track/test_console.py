"""What a person sees while data is prepared."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from quintet.track import console
from quintet.track.console import Reporter


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What is printed of a preparation on a terminal and elsewhere, ten seconds a call: 50 MB were there before."""
    clock = iter(range(0, 1_000, 10))
    monkeypatch.setattr(console.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(Reporter, "_update", lambda self, done, total, text: updates.append(text))
    updates: list[str] = []
    out = io.StringIO()
    reporter = Reporter(Console(file=out, width=200))
    for done in (50, 50, 60, 70, 80, 90, 100):
        reporter.preparing("tokenising books", done * 1_000_000, 100_000_000)
    return [("update", text) for text in updates] + [("line", text) for text in out.getvalue().splitlines()]


def test_speed_and_time_left_follow_from_what_this_call_has_done(said: list[tuple[str, str]]) -> None:
    updates = [text for kind, text in said if kind == "update"]
    assert updates[:2] == ["50.0 of 100.0 MB"] * 2
    assert updates[2] == "60.0 of 100.0 MB · 0.5 MB/s · 1:20 left"
    assert updates[5] == "90.0 of 100.0 MB · 0.8 MB/s · 0:12 left"


def test_where_no_line_can_move_one_is_printed_now_and_then(said: list[tuple[str, str]]) -> None:
    assert [text for kind, text in said if kind == "line"] == [
        "tokenising books (100.0 MB)",
        "tokenising books: 70.0 of 100.0 MB · 0.7 MB/s · 0:45 left",
    ]
