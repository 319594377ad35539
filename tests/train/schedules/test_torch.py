from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

from quintet.config.optimizer import TorchOptimizerConfig
from quintet.config.schedule import TorchScheduleConfig
from quintet.errors import UserError
from quintet.train.library_schedules import check_torch_schedule
from quintet.train.optimizer import set_momentum
from quintet.train.schedule import learning_rate, momentum

STEPS = 30


def config_of(name: str, warmup: float, arguments: dict[str, Any]) -> TorchScheduleConfig:
    values = {"kind": "torch", "name": name, "warmup_steps": warmup, "arguments": arguments}
    config = TorchScheduleConfig.model_validate(values)
    check_torch_schedule(config)
    return config


def rates(name: str, warmup: float = 0, **arguments: Any) -> list[float]:
    config = config_of(name, warmup, arguments)
    return [learning_rate(config, 0.4, step, STEPS) for step in range(1, STEPS + 1)]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("StepLR", {"step_size": 7, "gamma": 0.5}),
        ("MultiStepLR", {"milestones": [3, 20]}),
        ("ExponentialLR", {"gamma": 0.9}),
        ("CosineAnnealingLR", {"T_max": 20, "eta_min": 0.01}),
        ("CosineAnnealingWarmRestarts", {"T_0": 4, "T_mult": 2}),
        ("LinearLR", {"total_iters": 12}),
        ("ConstantLR", {"total_iters": 12}),
        ("PolynomialLR", {"total_iters": 25, "power": 2.0}),
        ("CyclicLR", {"base_lr": 0.1, "max_lr": 0.5, "step_size_up": 5}),
        ("OneCycleLR", {"max_lr": 0.5, "total_steps": 30}),
    ],
)
def test_rates_are_those_of_the_class(name: str, arguments: dict[str, Any]) -> None:
    """Stepped beside a real optimizer that has a momentum, as a training loop would."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.4, momentum=0.9)
    scheduler = getattr(lr_scheduler, name)(optimizer, **arguments)
    expected = []
    for _ in range(STEPS):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(expected) < STEPS:
            scheduler.step()
    assert rates(name, **arguments) == pytest.approx(expected)
    assert len(set(expected)) > 1


def test_a_warm_up_goes_in_front_from_a_hundredth() -> None:
    found = rates("ExponentialLR", warmup=0.2, gamma=0.5)
    assert found[:6] == pytest.approx([0.4 * (0.01 + 0.99 * n / 6) for n in range(6)])
    assert found[6:] == pytest.approx([0.4 * 0.5**n for n in range(24)])


@pytest.mark.parametrize("name", ["OneCycleLR", "CyclicLR"])
@pytest.mark.parametrize("optimizer", ["AdamW", "SGD", "RMSprop"])
def test_the_momentum_is_cycled_unless_it_is_not_to_be(name: str, optimizer: str) -> None:
    arguments = {"max_lr": 0.5} | ({"base_lr": 0.1, "step_size_up": 5} if name == "CyclicLR" else {})
    config = config_of(name, 0, arguments)
    beside = getattr(torch.optim, optimizer)([torch.nn.Parameter(torch.ones(1))], lr=0.4)
    own = getattr(torch.optim, optimizer)([torch.nn.Parameter(torch.ones(1))], lr=0.4)
    total = {"total_steps": STEPS} if name == "OneCycleLR" else {}
    scheduler = getattr(lr_scheduler, name)(beside, **arguments, **total)
    for step in range(1, STEPS + 1):
        found = momentum(config, 0.4, step, STEPS)
        assert found is not None
        set_momentum(own, found)
        for key in ("betas", "momentum"):
            assert own.param_groups[0].get(key) == pytest.approx(beside.param_groups[0].get(key))
        beside.step()
        if step < STEPS:
            scheduler.step()
    assert momentum(config_of(name, 0, arguments | {"cycle_momentum": False}), 0.4, 1, STEPS) is None
    assert momentum(config_of("StepLR", 0, {"step_size": 3}), 0.4, 1, STEPS) is None


def test_an_optimizer_without_a_momentum_to_cycle_is_refused() -> None:
    config = config_of("OneCycleLR", 0, {"max_lr": 0.5})
    adagrad = TorchOptimizerConfig(kind="torch", name="Adagrad")
    with pytest.raises(UserError, match=r"schedule.arguments.cycle_momentum: .* Adagrad has none; set it to false"):
        check_torch_schedule(config, adagrad)
    check_torch_schedule(config_of("OneCycleLR", 0, {"max_lr": 0.5, "cycle_momentum": False}), adagrad)


def test_one_cycle_takes_the_steps_of_the_run_when_none_are_given() -> None:
    assert rates("OneCycleLR", max_lr=0.5) == rates("OneCycleLR", max_lr=0.5, total_steps=STEPS)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("StepLr", {}, r"^schedule.name: .* did you mean StepLR\?"),
        ("LambdaLR", {}, r"^schedule.name: torch.optim.lr_scheduler has no 'LambdaLR' for a run"),
        ("ReduceLROnPlateau", {}, r"^schedule.name: .* schedule.kind: plateau"),
        ("StepLR", {"step_size": 3, "verbose": True}, r"^schedule.arguments.verbose: .* it has step_size, gamma$"),
        ("StepLR", {}, r"^schedule.arguments: StepLR needs step_size$"),
        ("OneCycleLR", {"max_lr": 1, "total_steps": 9}, r"^schedule.arguments: OneCycleLR refuses them: Tried to step"),
        ("OneCycleLR", {"max_lr": 1, "pct_start": 7}, r"^schedule.arguments: OneCycleLR refuses them: .*pct_start"),
    ],
)
def test_what_torch_does_not_know_is_refused(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        rates(name, **arguments)
