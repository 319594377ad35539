from __future__ import annotations

import math
import re
import time
from pathlib import Path

import pytest
import torch
from tests.helpers import PEAK, measured, refused, run_config, write_corpus

from quintet.track.console import Reporter
from quintet.train.loop import train
from quintet.train.metrics import LogWindow, MetricsBuffer
from quintet.train.run_folder import run_folder


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
    buffer.add_without_target()
    assert buffer.read().skipped_steps == 2


def test_the_steps_at_the_end_that_were_not_finite_are_counted() -> None:
    buffer = MetricsBuffer()
    for step, skipped in enumerate([1.0, 0.0, 1.0, 1.0], start=1):
        add(buffer, step, float("nan"), skipped=skipped)
    window = buffer.read()
    assert (window.last_skipped, window.skipped_steps) == (2, 3)


@pytest.mark.parametrize("log_every", [1, 3, 1000])
@pytest.mark.parametrize("save_every", [1, 1000])
def test_a_run_that_diverges_ends_whatever_it_logs_and_saves(tmp_path: Path, log_every: int, save_every: int) -> None:
    """A rate of 1e30 makes the weights so large that from step 2 on no gradient is finite."""
    write_corpus(tmp_path / "corpus")
    config = run_config(
        tmp_path,
        optimizer={"lr": 1e30, "weight_decay": 0.0},
        schedule={"kind": "constant"},
        train={"steps": 40, "log_every": log_every, "max_skipped": 5, "clip_norm": None},
        checkpoint={"every": save_every},
    )
    message = refused(train, config, Reporter(), peak_flops=PEAK)
    assert "finite in the last" in message
    step = int(re.search(r"show-batch \S+ --step (\d+)", message)[1])
    norms = measured(run_folder(config), "train/grad_norm")  # null stands for a figure that is not finite
    assert [norm for norm in norms[step - 1 :] if norm is not None] == []
    assert norms[step - 2] is not None
    if save_every == 1 or log_every <= 3:
        assert len(norms) <= 10
    samples = re.search(r"has the samples (.*?):", message)[1]
    assert samples.count(",") == min(8, config.batch.samples) - 1


def test_a_single_step_that_is_not_finite_is_counted_and_nothing_is_left_for_the_next_look() -> None:
    buffer = MetricsBuffer()
    buffer.add_without_target()
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
