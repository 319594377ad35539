"""Rates and momenta of generated schedules against the classes of torch, transformers and DeepSpeed, stepped beside an
optimizer as a training loop does."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from torch.optim import lr_scheduler

from quintet.config.schedule import PlateauConfig, ScheduleConfig
from quintet.config.train import steps_of
from quintet.errors import UserError
from quintet.train.library_schedules import check_deepspeed_schedule, check_torch_schedule
from quintet.train.schedule import after_validation, learning_rate, momentum, plateau_rate

RATE = st.floats(1e-6, 10)
LENGTH = st.integers(1, 60)
PART = st.floats(0, 1)


def optimizer(lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=lr, momentum=0.9)


def stepped(beside: torch.optim.Optimizer, scheduler: Any, steps: int) -> list[tuple[float, float]]:
    """Rate and momentum of each step."""
    found = []
    for step in range(steps):
        group = beside.param_groups[0]
        found.append((float(group["lr"]), float(group["momentum"])))
        if step < steps - 1:
            scheduler.step()
    return found


def schedule(kind: str, **values: Any) -> Any:
    return TypeAdapter(ScheduleConfig).validate_python({"kind": kind, **values})


def rates(config: Any, highest: float, steps: int) -> list[float]:
    return [learning_rate(config, highest, step, steps) for step in range(1, steps + 1)]


WARMUP = {"warmup_num_steps": st.integers(1, 40), "warmup_type": st.sampled_from(["log", "linear"])}
LIMITS = {"warmup_min_lr": st.floats(0, 1), "warmup_max_lr": st.floats(0, 2)}
DEEPSPEED = {
    "WarmupLR": st.fixed_dictionaries({}, optional=WARMUP | {"warmup_min_lr": st.floats(0, 1), "warmup_max_lr": RATE}),
    "WarmupDecayLR": st.fixed_dictionaries({"total_num_steps": LENGTH}, optional=WARMUP | LIMITS),
    "WarmupCosineLR": st.fixed_dictionaries(
        {"total_num_steps": LENGTH}, optional=WARMUP | {"warmup_min_ratio": PART, "cos_min_ratio": PART}
    ),
    "OneCycle": st.fixed_dictionaries(
        {"cycle_min_lr": RATE, "cycle_max_lr": RATE, "cycle_momentum": st.just(False)},
        optional={
            "cycle_first_step_size": st.integers(1, 30),
            "cycle_second_step_size": st.integers(0, 30),
            "cycle_first_stair_count": st.integers(0, 6),
            "cycle_second_stair_count": st.integers(0, 6),
            "decay_step_size": st.integers(0, 9),
            "decay_lr_rate": st.floats(0, 3),
        },
    ),
    "LRRangeTest": st.fixed_dictionaries(
        {},
        optional={
            "lr_range_test_min_lr": RATE,
            "lr_range_test_step_size": st.integers(1, 30),
            "lr_range_test_step_rate": st.floats(0, 4),
            "lr_range_test_staircase": st.booleans(),
        },
    ),
}


@given(st.sampled_from(sorted(DEEPSPEED)).flatmap(lambda name: st.tuples(st.just(name), DEEPSPEED[name])), RATE, LENGTH)
@example(("WarmupCosineLR", {"total_num_steps": 9, "warmup_min_ratio": 0.5, "warmup_num_steps": 4}), 1.0, 20)
@example(
    (
        "OneCycle",
        {
            "cycle_min_lr": 0.1,
            "cycle_max_lr": 1.0,
            "cycle_momentum": False,
            "cycle_first_step_size": 6,
            "cycle_first_stair_count": 3,
        },
    ),
    1.0,
    20,
)
def test_rates_are_those_of_deepspeeds_classes(chosen: tuple[str, dict[str, Any]], highest: float, steps: int) -> None:
    lr_schedules = pytest.importorskip("deepspeed.runtime.lr_schedules")
    name, arguments = chosen
    config = schedule("deepspeed", name=name, arguments=arguments)
    check_deepspeed_schedule(config)
    beside = optimizer(highest)
    expected = stepped(beside, getattr(lr_schedules, name)(beside, **arguments), steps)
    # A stair is as wide as a rounding where a step stands on its edge.
    assert rates(config, highest, steps) == pytest.approx([rate for rate, _ in expected], rel=1e-9, abs=1e-12)


TORCH = {
    "StepLR": st.fixed_dictionaries({"step_size": st.integers(1, 20)}, optional={"gamma": PART}),
    "MultiStepLR": st.fixed_dictionaries(
        {"milestones": st.lists(st.integers(0, 60), max_size=4).map(sorted)}, optional={"gamma": PART}
    ),
    "ConstantLR": st.fixed_dictionaries({}, optional={"factor": PART, "total_iters": LENGTH}),
    "LinearLR": st.fixed_dictionaries(
        {}, optional={"start_factor": st.floats(0.01, 1), "end_factor": PART, "total_iters": LENGTH}
    ),
    "ExponentialLR": st.fixed_dictionaries({"gamma": PART}),
    "PolynomialLR": st.fixed_dictionaries({}, optional={"total_iters": LENGTH, "power": st.floats(0.1, 3)}),
    "CosineAnnealingLR": st.fixed_dictionaries({"T_max": LENGTH}, optional={"eta_min": PART}),
    "CosineAnnealingWarmRestarts": st.fixed_dictionaries(
        {"T_0": st.integers(1, 20)}, optional={"T_mult": st.integers(1, 3), "eta_min": PART}
    ),
    "CyclicLR": st.fixed_dictionaries(
        {"base_lr": RATE, "max_lr": RATE},
        optional={
            "step_size_up": st.integers(1, 20),
            "step_size_down": st.integers(1, 20),
            "mode": st.sampled_from(["triangular", "triangular2", "exp_range"]),
            "gamma": st.floats(0.5, 1),
            "cycle_momentum": st.booleans(),
            "base_momentum": PART,
            "max_momentum": PART,
        },
    ),
    "OneCycleLR": st.fixed_dictionaries(
        {"max_lr": RATE},
        optional={
            "pct_start": PART,
            "anneal_strategy": st.sampled_from(["cos", "linear"]),
            "cycle_momentum": st.booleans(),
            "base_momentum": PART,
            "max_momentum": PART,
            "div_factor": st.floats(1, 50),
            "final_div_factor": st.floats(1, 1e4),
            "three_phase": st.booleans(),
        },
    ),
}


@given(st.sampled_from(sorted(TORCH)).flatmap(lambda name: st.tuples(st.just(name), TORCH[name])), RATE, LENGTH, PART)
@example(("OneCycleLR", {"max_lr": 0.5}), 0.4, 30, 0.0)
def test_rates_and_momenta_are_those_of_torchs_classes(
    chosen: tuple[str, dict[str, Any]], highest: float, steps: int, warmup: float
) -> None:
    name, arguments = chosen
    config = schedule("torch", name=name, warmup_steps=warmup, arguments=arguments)
    check_torch_schedule(config)
    first = steps_of(warmup, steps)
    beside = optimizer(highest)
    total = {"total_steps": max(steps - first, 1)} if name == "OneCycleLR" else {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scheduler = getattr(lr_scheduler, name)(beside, **arguments, **total)
            if first:
                before = lr_scheduler.LinearLR(beside, start_factor=0.01, total_iters=first)
                scheduler = lr_scheduler.SequentialLR(beside, [before, scheduler], milestones=[first])
            expected = stepped(beside, scheduler, steps)
    except (ValueError, ZeroDivisionError, TypeError):
        with pytest.raises(UserError):
            rates(config, highest, steps)
        return
    np.testing.assert_array_equal(rates(config, highest, steps), [rate for rate, _ in expected])  # NaN is NaN
    found = [momentum(config, highest, step, steps) for step in range(1, steps + 1)]
    cycled = name in ("CyclicLR", "OneCycleLR") and arguments.get("cycle_momentum", True)
    assert found == ([one for _, one in expected] if cycled else [None] * steps)


TRANSFORMERS = {
    "linear": st.just({}),
    "cosine": st.fixed_dictionaries({}, optional={"num_cycles": st.floats(0, 3)}),
    "cosine_with_restarts": st.fixed_dictionaries({}, optional={"num_cycles": st.integers(1, 5)}),
    "polynomial": st.fixed_dictionaries({}, optional={"lr_end": st.floats(0, 1e-7), "power": st.floats(0.1, 3)}),
    "constant": st.just({}),
    "constant_with_warmup": st.just({}),
    "inverse_sqrt": st.fixed_dictionaries({}, optional={"timescale": st.integers(1, 50)}),
    "cosine_with_min_lr": st.fixed_dictionaries({"min_lr_rate": PART}, optional={"num_cycles": st.floats(0, 2)}),
    "cosine_warmup_with_min_lr": st.fixed_dictionaries({"min_lr_rate": PART}),
    "warmup_stable_decay": st.fixed_dictionaries(
        {"num_decay_steps": st.integers(1, 20)},
        optional={
            "decay_type": st.sampled_from(["linear", "cosine", "1-sqrt"]),
            "warmup_type": st.sampled_from(["linear", "cosine", "1-sqrt"]),
            "min_lr_ratio": PART,
        },
    ),
}


@given(
    st.sampled_from(sorted(TRANSFORMERS)).flatmap(lambda name: st.tuples(st.just(name), TRANSFORMERS[name])),
    RATE,
    LENGTH,
    PART,
)
def test_rates_are_those_of_the_functions_of_transformers(
    chosen: tuple[str, dict[str, Any]], highest: float, steps: int, warmup: float
) -> None:
    from transformers import get_scheduler

    name, arguments = chosen
    assume(name != "constant" or warmup == 0)
    first, beside = steps_of(warmup, steps), optimizer(highest)
    config = schedule("transformers", name=name, warmup_steps=warmup, arguments=arguments)
    try:
        scheduler = get_scheduler(name, beside, first, steps, dict(arguments))
        expected = [rate for rate, _ in stepped(beside, scheduler, steps)]
    except (ValueError, ZeroDivisionError, TypeError):
        with pytest.raises(UserError):
            rates(config, highest, steps)
        return
    assert rates(config, highest, steps) == pytest.approx(expected, rel=1e-12)
    if name in ("linear", "cosine") and not arguments:  # our own, which count as transformers does with `first: 0`
        own = schedule(name, warmup_steps=warmup, first=0)
        assert rates(own, highest, steps) == pytest.approx(expected, rel=1e-9, abs=1e-12)


LOSSES = st.lists(st.floats(0, 10) | st.sampled_from([1.0, 2.0, math.nan, math.inf]), min_size=1, max_size=40)


@given(
    LOSSES,
    RATE,
    st.fixed_dictionaries(
        {},
        optional={
            "factor": st.floats(0.01, 0.99),
            "patience": st.integers(0, 5),
            "threshold": st.floats(0, 0.9),
            "cooldown": st.integers(0, 4),
            "min_lr": st.floats(0, 1e-3),
        },
    ),
)
@example([math.nan, 1.0, 2.0, 2.0], 1.0, {"patience": 0})
def test_a_plateau_lowers_the_rate_when_torch_does(losses: list[float], highest: float, keys: dict[str, Any]) -> None:
    config = PlateauConfig.model_validate({"kind": "plateau", **keys})
    assume(config.min_lr <= highest)
    beside, state = optimizer(highest), {}
    scheduler = lr_scheduler.ReduceLROnPlateau(
        beside,
        factor=config.factor,
        patience=config.patience,
        threshold=config.threshold,
        cooldown=config.cooldown,
        min_lr=config.min_lr,
    )
    for step, loss in enumerate(losses, 1):
        assert plateau_rate(config, highest, step, len(losses), state) == beside.param_groups[0]["lr"]
        scheduler.step(loss)
        state = after_validation(config, highest, step, len(losses), state, loss)
    assert state["rate"] == beside.param_groups[0]["lr"]
