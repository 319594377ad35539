from __future__ import annotations

import inspect
import math
from typing import Any

import pytest

from quintet.config.schedule import DeepSpeedScheduleConfig
from quintet.errors import UserError
from quintet.train.library_schedules import _DEEPSPEED, check_deepspeed_schedule
from quintet.train.schedule import learning_rate


def schedule(name: str, **arguments: Any) -> DeepSpeedScheduleConfig:
    config = DeepSpeedScheduleConfig.model_validate({"kind": "deepspeed", "name": name, "arguments": arguments})
    check_deepspeed_schedule(config)
    return config


def rates(name: str, steps: int, highest: float = 7.0, **arguments: Any) -> list[float]:
    config = schedule(name, **arguments)
    return [learning_rate(config, highest, step, steps) for step in range(1, steps + 1)]


LINEAR = {"warmup_min_lr": 0.1, "warmup_max_lr": 1.1, "warmup_num_steps": 4, "warmup_type": "linear"}


def test_warmup_and_decay_are_as_deepspeed_itself_computed_them() -> None:
    """The row that a run of DeepSpeed gave for W = 4, T = 10, m = 0.1, M = 1.1: it is two steps late."""
    expected = [0.1, 0.1, 0.35, 0.6, 0.85, 1.1, 0.9333, 0.7667, 0.6, 0.4333]
    assert rates("WarmupDecayLR", 10, **LINEAR) == pytest.approx(expected, abs=5e-5)
    assert rates("WarmupDecayLR", 6, **LINEAR, total_num_steps=10) == pytest.approx(expected[:6], abs=5e-5)
    assert rates("WarmupDecayLR", 20, **LINEAR, total_num_steps=10)[12:] == pytest.approx([0.1] * 8)


def test_the_defaults_are_those_of_deepspeed_a_logarithm_over_a_thousand_steps_to_the_optimizers_rate() -> None:
    found = rates("WarmupLR", 1200, highest=7.0)
    for step in (3, 10, 500, 1001):
        assert found[step - 1] == pytest.approx(7 * math.log(step - 1, 1000))
    assert found[:2] == [0.0, 0.0]
    assert set(found[1001:]) == {7.0}
    assert rates("WarmupDecayLR", 1200, highest=7.0)[1001] == 1e-3
    assert rates("WarmupLR", 5, **LINEAR | {"warmup_num_steps": 1}) == pytest.approx([0.1, 0.1, 0.6, 1.1, 1.1])


def test_the_cosine_uses_the_rate_of_the_optimizer() -> None:
    found = rates("WarmupCosineLR", 24, highest=2.0, warmup_num_steps=4, warmup_type="linear", warmup_min_ratio=0.5)
    assert found[:6] == pytest.approx(
        [0.0, 1.0, 1.25, 1.5, 1.75, 2 * (1e-4 + 0.9999 * (1 + math.cos(math.pi / 20)) / 2)]
    )
    # Half-way, at s - W + 1 = 10 of T - W = 20.
    assert found[14] == pytest.approx(2 * (1e-4 + 0.9999 * 0.5))


def test_the_cooldown_falls_towards_the_end_of_all_steps_and_stays_where_it_ends() -> None:
    phases = {
        "warmup_max_lr": 1.0,
        "warmup_num_steps": 2,
        "warmup_patience_num_steps": 2,
        "decay_num_steps": 4,
        "decay_min_lr": 0.5,
        "decay_patience_num_steps": 2,
        "cooldown_num_steps": 4,
        "cooldown_min_lr": 0.0,
    }
    half = [1 + math.cos(math.pi * part / 4) for part in range(4)]
    falling = [0.5 + 0.25 * one for one in half]
    expected = [0, 0, 0.5, 1, 1, *falling, 0.5, 0.5, 0.5, 0.375, 0.25, 0.125, 0.125]
    assert rates("WarmupDecayCooldownLR", 16, total_num_steps=14, **phases) == pytest.approx(expected)
    # Phases that do not fill the run: the slope is that of all of it.
    frozen = rates("WarmupDecayCooldownLR", 26, total_num_steps=24, **phases)
    assert frozen[11:15] == pytest.approx([0.5 * (24 - s) / 14 for s in (10, 11, 12, 13)])
    assert frozen[15:] == pytest.approx([frozen[14]] * 11)
    roots = rates("WarmupDecayCooldownLR", 12, decay_type="inverse_square_root", **phases)
    assert roots[7] == pytest.approx(0.5 + 0.5 * (6**-0.5 - 8**-0.5) / (4**-0.5 - 8**-0.5))


def test_one_cycle_goes_up_and_down_and_decays() -> None:
    found = rates(
        "OneCycle",
        12,
        cycle_min_lr=0.1,
        cycle_max_lr=0.5,
        cycle_first_step_size=4,
        cycle_second_step_size=2,
        decay_lr_rate=0.5,
        decay_step_size=2,
        cycle_momentum=False,
    )
    cycle = [0.1, 0.2, 0.3, 0.4, 0.5, 0.3]
    assert found == pytest.approx(cycle + [0.1] + [0.1 / (1 + 0.25 * n) for n in range(1, 6)])


def test_the_range_test_rises_without_end_smoothly_or_in_stairs() -> None:
    arguments = {"lr_range_test_min_lr": 0.1, "lr_range_test_step_size": 4, "lr_range_test_step_rate": 2.0}
    assert rates("LRRangeTest", 6, **arguments) == pytest.approx([0.1 + 0.05 * n for n in range(6)])
    stairs = rates("LRRangeTest", 9, **arguments, lr_range_test_staircase=True)
    assert stairs == pytest.approx([0.1] * 4 + [0.3] * 4 + [0.5])


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        (
            "WarmupLR",
            {"warmup_num_step": 3},
            r"^schedule.arguments.warmup_num_step: .* did you mean warmup_num_steps\?",
        ),
        (
            "WarmupLR",
            {"total_num_steps": 3},
            r"^schedule.arguments.total_num_steps: WarmupLR has no such argument; .* has",
        ),
        ("OneCycle", {"cycle_momentum": False}, r"^schedule.arguments: OneCycle needs cycle_min_lr, cycle_max_lr"),
        (
            "OneCycle",
            {"cycle_min_lr": 0.1, "cycle_max_lr": 1},
            r"^schedule.arguments.cycle_momentum: .* set it to false",
        ),
        (
            "OneCycle",
            {"cycle_min_lr": 0.1, "cycle_max_lr": 1, "cycle_momentum": False, "cycle_min_mom": 0.8},
            r"^schedule.arguments.cycle_min_mom: the momentum is not cycled",
        ),
        (
            "WarmupLR",
            {"warmup_type": "cubic"},
            r"^schedule.arguments.warmup_type: must be log or linear, found 'cubic'",
        ),
        ("WarmupLR", {"warmup_max_lr": "x"}, r"^schedule.arguments: WarmupLR refuses them"),
    ],
)
def test_what_deepspeed_does_not_know_is_refused_by_name(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        rates(name, 10, **arguments)


@pytest.mark.parametrize("name", ["WarmupLR", "WarmupDecayLR", "WarmupCosineLR", "OneCycle", "LRRangeTest"])
def test_what_is_not_given_is_what_deepspeeds_class_takes(name: str) -> None:
    theirs = inspect.signature(getattr(pytest.importorskip("deepspeed.runtime.lr_schedules"), name)).parameters
    for argument, ours in inspect.signature(_DEEPSPEED[name]).parameters.items():
        if argument in theirs and argument != "total_num_steps":  # here the run's, where it is not given
            assert ours.default == theirs[argument].default, argument


def test_without_its_later_phases_the_cooldown_schedule_warms_up_and_stays() -> None:
    found = rates("WarmupDecayCooldownLR", 3000)
    assert found[:2] == [0, 0]
    assert [found[step - 1] for step in (3, 502, 1001)] == pytest.approx([1e-6, 5e-4, 999e-6])
    assert set(found[1001:]) == {1e-3}
    assert rates("WarmupDecayCooldownLR", 7, warmup_min_lr=1.0, warmup_max_lr=3.0, warmup_num_steps=4) == [
        *(1, 1, 1.5, 2, 2.5, 3, 3)
    ]
    given = {"warmup_max_lr": 2.0, "warmup_num_steps": 2, "decay_num_steps": 10}
    decayed = rates("WarmupDecayCooldownLR", 20, **given)
    assert decayed[3:14] == pytest.approx([1 + math.cos(math.pi * part / 10) for part in range(11)])  # half a cosine
    assert set(decayed[14:]) == {0.0}
    cycles = rates("WarmupDecayCooldownLR", 20, **given, decay_cycles=1.0, decay_min_lr=1.0)
    assert cycles[3:13] == pytest.approx([1.5 + 0.5 * math.cos(2 * math.pi * part / 10) for part in range(10)])


def test_a_cycle_may_go_in_stairs() -> None:
    shape = {"cycle_min_lr": 1.0, "cycle_max_lr": 5.0, "cycle_first_step_size": 4, "cycle_momentum": False}
    up, down = [1.0, 1.0, 3.0, 3.0], [5.0, 3.0, 3.0, 1.0]
    assert rates("OneCycle", 10, **shape, cycle_first_stair_count=2) == [*up, *down, 1.0, 1.0]
    assert rates("OneCycle", 8, **shape, cycle_first_stair_count=2, cycle_second_stair_count=1) == [*up, 5, 1, 1, 1]
    assert rates("OneCycle", 8, **shape, cycle_second_stair_count=1) == [1, 2, 3, 4, 5, 1, 1, 1]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("WarmupLR", {"warmup_num_steps": 0}),
        ("WarmupLR", {"warmup_num_steps": 2.0}),
        ("OneCycle", {"cycle_min_lr": 1, "cycle_max_lr": 2, "cycle_momentum": False, "cycle_first_step_size": 0}),
        ("OneCycle", {"cycle_min_lr": 1, "cycle_max_lr": 2, "cycle_momentum": False, "cycle_second_step_size": -1}),
        ("LRRangeTest", {"lr_range_test_step_size": 0}),
        ("LRRangeTest", {"lr_range_test_step_size": 2.0}),
    ],
)
def test_lengths_are_whole_numbers_above_nothing(name: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"^schedule.arguments: {name} refuses them"):
        rates(name, 3, **arguments)
