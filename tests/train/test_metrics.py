from __future__ import annotations

import math
import time

import pytest
import torch

from quintet.errors import UserError
from quintet.train.metrics import LogWindow, MetricsBuffer


def add(buffer: MetricsBuffer, step: int, loss: float, *, skipped: float = 0.0, tokens: int = 10) -> None:
    buffer.add(step, 0.1 * step, torch.tensor(loss), torch.tensor(2.0), torch.tensor(skipped), tokens)


def test_records_hold_each_step_and_the_interval_their_mean() -> None:
    buffer = MetricsBuffer()
    add(buffer, 1, 4.0)
    add(buffer, 2, 2.0)
    window = buffer.read()
    assert window.records == [
        (1, {"train/loss": 4.0, "train/lr": 0.1, "train/grad_norm": 2.0}),
        (2, {"train/loss": 2.0, "train/lr": 0.2, "train/grad_norm": 2.0}),
    ]
    assert (window.loss, window.tokens, window.skipped_steps) == (3.0, 20, 0)
    assert buffer.read().records == []


def test_masked_batches_and_steps_that_were_not_finite_are_counted() -> None:
    buffer = MetricsBuffer()
    add(buffer, 1, 4.0)
    add(buffer, 2, float("nan"), skipped=1.0)
    buffer.add_masked()
    assert buffer.read().skipped_steps == 2


def test_nothing_but_steps_that_are_not_finite_stops_the_run() -> None:
    buffer = MetricsBuffer()
    add(buffer, 5, float("nan"), skipped=1.0)
    add(buffer, 6, float("inf"), skipped=1.0)
    with pytest.raises(UserError, match=r"steps 5 to 6.*lower optimizer\.lr"):
        buffer.read()


def test_a_single_step_that_is_not_finite_is_counted_and_nothing_is_left_for_the_next_look() -> None:
    buffer = MetricsBuffer()
    buffer.add_masked()
    add(buffer, 5, float("nan"), skipped=1.0)
    assert buffer.read().skipped_steps == 2
    empty = buffer.read()
    assert (empty.records, empty.skipped_steps, empty.tokens) == ([], 0, 0)
    assert math.isnan(empty.loss)


def test_the_speed_counts_from_the_last_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, buffer = [100.0], MetricsBuffer()
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    buffer.restart()
    clock[0] += 0.25
    add(buffer, 1, 4.0, tokens=30)
    add(buffer, 2, 4.0, tokens=20)
    window = buffer.read()
    assert (window.seconds, window.tokens, window.tokens_per_second) == (0.25, 50, 200.0)
    assert LogWindow([], math.nan, 0, 5, 0.0).tokens_per_second > 1e6  # a clock that has not moved
