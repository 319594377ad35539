from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.lr_scheduler import ReduceLROnPlateau

from quintet.config.schedule import PlateauConfig
from quintet.train.schedule import after_validation, learning_rate

HIGHEST, STEPS = 0.2, 100
losses = st.lists(st.sampled_from([1.0, 0.9999, 0.9998, 0.95, 1.05, 0.5, float("nan"), float("inf")]), max_size=40)


@given(
    losses=losses,
    factor=st.sampled_from([0.1, 0.5]),
    patience=st.integers(0, 3),
    cooldown=st.integers(0, 3),
    threshold=st.sampled_from([1e-4, 0.01]),
    min_lr=st.sampled_from([0.0, 0.01]),
)
def test_the_rate_after_each_validation_is_that_of_torch(losses: list[float], **chosen: Any) -> None:
    config = PlateauConfig.model_validate({"kind": "plateau", **chosen})
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=HIGHEST)
    theirs = ReduceLROnPlateau(optimizer, **chosen)
    state: dict[str, Any] = {}
    for step, loss in enumerate(losses, start=1):
        theirs.step(loss)
        state = after_validation(config, HIGHEST, step, STEPS, state, loss)
        assert learning_rate(config, HIGHEST, step + 1, STEPS, state) == optimizer.param_groups[0]["lr"]


def test_the_warm_up_comes_first_and_what_is_measured_in_it_counts_for_nothing() -> None:
    config = PlateauConfig(kind="plateau", warmup_steps=0.1, patience=0, factor=0.5)
    state: dict[str, Any] = {}
    for step in range(1, 10):
        assert learning_rate(config, HIGHEST, step, STEPS, state) == pytest.approx(HIGHEST * step / 10)
        state = after_validation(config, HIGHEST, step, STEPS, state, float(step))
    assert state == {}
    for step, expected in ((10, 1.0), (11, 0.5), (12, 0.25)):
        state = after_validation(config, HIGHEST, step, STEPS, state, 3.0)
        assert learning_rate(config, HIGHEST, step + 1, STEPS, state) == pytest.approx(HIGHEST * expected)
