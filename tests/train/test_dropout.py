from __future__ import annotations

import pytest
import torch
from torch import nn

from quintet.config.model import TransformerConfig
from quintet.config.schedule import (
    ConstantDropoutConfig,
    LinearDropoutConfig,
    NoDropoutScheduleConfig,
    TriangleDropoutConfig,
)
from quintet.model import build_model
from quintet.model.dropout import set_dropout
from quintet.train.dropout import dropout_rate


def rates(config, steps: int, shown: list[int]) -> list[float | None]:
    return [dropout_rate(config, step, steps) for step in shown]


def test_a_constant_rate_is_constant_and_without_a_schedule_there_is_none() -> None:
    assert rates(ConstantDropoutConfig(kind="constant", rate=0.2), 10, [1, 10]) == [0.2, 0.2]
    assert rates(NoDropoutScheduleConfig(), 10, [1, 10]) == [None, None]


def test_a_line_runs_between_its_steps_and_is_flat_outside() -> None:
    line = LinearDropoutConfig(kind="linear", start=0.1, end=0.5, first_step=10, last_step=30)
    assert rates(line, 100, [1, 10, 15, 20, 30, 100]) == pytest.approx([0.1, 0.1, 0.2, 0.3, 0.5, 0.5])
    whole = LinearDropoutConfig(kind="linear", start=0.4, end=0.0)
    assert rates(whole, 8, [0, 2, 8]) == pytest.approx([0.4, 0.3, 0.0])


def test_a_triangle_goes_up_and_down_in_each_cycle_and_stays_low_after_them() -> None:
    triangle = TriangleDropoutConfig(kind="triangle", low=0.1, high=0.5, cycles=2, steps=17)
    # Two cycles of 8 steps, the half step that is left over being flat.
    assert rates(triangle, 40, [0, 2, 4, 6, 8, 10, 12, 16, 17, 40]) == pytest.approx(
        [0.1, 0.3, 0.5, 0.3, 0.1, 0.3, 0.5, 0.1, 0.1, 0.1]
    )
    assert rates(TriangleDropoutConfig(kind="triangle", high=0.4), 8, [4, 8]) == pytest.approx([0.4, 0.0])


def test_every_dropout_of_the_model_gets_the_rate() -> None:
    config = TransformerConfig.model_validate({"layers": 2, "width": 32, "residual_dropout": 0.3})
    model = build_model(config, 20, 8, seed=0)
    set_dropout(model, 0.45)
    found = [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
    # In each block: into attention, its weights, the residual, into the feed-forward network, its hidden features.
    assert found == [0.45] * (2 * 5 + 2)
    ids = torch.arange(8)[None]
    assert not torch.equal(model(ids), model(ids))
