from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from quintet.config.schedule import TransformersScheduleConfig
from quintet.errors import UserError
from quintet.train.library_schedules import check_transformers_schedule
from quintet.train.schedule import learning_rate

STEPS, RATE = 40, 0.3
CASES: dict[str, list[dict[str, Any]]] = {
    "linear": [{}],
    "cosine": [{}, {"num_cycles": 1.5}],
    "cosine_with_restarts": [{"num_cycles": 3}],
    "polynomial": [{}, {"lr_end": 0.01, "power": 2.0}],
    "constant": [{}],
    "constant_with_warmup": [{}],
    "inverse_sqrt": [{}, {"timescale": 7}],
    "cosine_with_min_lr": [{"min_lr": 0.02}, {"min_lr_rate": 0.1}],
    "cosine_warmup_with_min_lr": [{"min_lr": 0.02, "warmup_lr_rate": 0.05}],
    "warmup_stable_decay": [
        {"num_decay_steps": 9},
        {"num_decay_steps": 9, "decay_type": "linear", "min_lr_ratio": 0.2},
    ],
}


def config_of(name: str, warmup: float, arguments: dict[str, Any]) -> TransformersScheduleConfig:
    values = {"kind": "transformers", "name": name, "warmup_steps": warmup, "arguments": arguments}
    config = TransformersScheduleConfig.model_validate(values)
    check_transformers_schedule(config)
    return config


def test_every_name_of_the_library_is_tried_but_for_those_that_follow_a_metric() -> None:
    names = {kind.value for kind in transformers.SchedulerType}
    assert names - set(CASES) == {"reduce_lr_on_plateau", "greedy"}


@pytest.mark.parametrize(("name", "arguments"), [(name, one) for name, some in CASES.items() for one in some])
def test_rates_are_those_that_the_library_sets_step_by_step(name: str, arguments: dict[str, Any]) -> None:
    warmup = 0 if name == "constant" else 6
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=RATE)
    scheduler = transformers.get_scheduler(name, optimizer, warmup, STEPS, arguments)
    expected = []
    for _ in range(STEPS):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    written = warmup / STEPS if warmup else 0
    config = config_of(name, written, arguments)
    assert [learning_rate(config, RATE, step, STEPS) for step in range(1, STEPS + 1)] == pytest.approx(expected)
    assert len(set(expected)) > 1 or name == "constant"


@pytest.mark.parametrize(
    ("name", "warmup", "arguments", "message"),
    [
        ("cosin", 0, {}, r"^schedule.name: .* did you mean cosine\? there are linear, cosine, "),
        ("reduce_lr_on_plateau", 0, {}, r"^schedule.name: .* schedule.kind: plateau"),
        ("cosine", 0, {"cycles": 2}, r"^schedule.arguments.cycles: .* did you mean num_cycles\? it has num_cycles$"),
        ("cosine", 0, {"num_training_steps": 2}, r"^schedule.arguments.num_training_steps: is the number of steps"),
        ("warmup_stable_decay", 0, {}, r"^schedule.arguments: warmup_stable_decay needs num_decay_steps$"),
        ("constant", 3, {}, r"^schedule.warmup_steps: constant has no warm-up; constant_with_warmup has"),
        ("cosine_with_min_lr", 0, {}, r"^schedule.arguments: cosine_with_min_lr refuses them: .*min_lr"),
    ],
)
def test_what_the_library_does_not_know_is_refused(
    name: str, warmup: int, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        learning_rate(config_of(name, warmup, arguments), RATE, 1, STEPS)
