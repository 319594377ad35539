from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from quintet.config.schedule import ConstantConfig, CosineConfig, LinearConfig, ScheduleConfig, WSDConfig
from quintet.train.schedule import learning_rate

STEPS = 100


def curve(schedule, highest: float = 1.0, steps: int = STEPS) -> list[float]:
    return [learning_rate(schedule, highest, step, steps) for step in range(1, steps + 1)]


def test_warmup_rises_linearly_and_ends_at_the_highest_rate() -> None:
    rates = curve(ConstantConfig(kind="constant", warmup_steps=10), highest=2.0)
    assert rates[:10] == pytest.approx([0.2 * n for n in range(1, 11)])
    assert set(rates[9:]) == {2.0}


def test_cosine_is_half_a_cosine_from_highest_to_lowest() -> None:
    rates = curve(CosineConfig(warmup_steps=20, min_lr=0.1))
    assert rates[19] == 1.0
    assert rates[59] == pytest.approx(0.55)  # half-way, between 1 and 0.1
    assert rates[39] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert rates[-1] == pytest.approx(0.1)


def test_linear_is_a_straight_line() -> None:
    rates = curve(LinearConfig(kind="linear", min_lr=0.0))
    differences = {round(a - b, 12) for a, b in pairwise(rates)}
    assert differences == {0.01}
    assert rates[-1] == 0.0


@given(hundredths=st.integers(1, 100), steps=st.integers(1, 2000))
@example(hundredths=7, steps=100)
def test_the_decay_of_wsd_has_its_part_of_the_steps_rounded_up(hundredths: int, steps: int) -> None:
    schedule = WSDConfig(kind="wsd", decay_fraction=hundredths / 100)
    below = [step for step in range(1, steps + 1) if learning_rate(schedule, 1.0, step, steps) < 1.0]
    assert below == list(range(steps - -(-hundredths * steps // 100) + 1, steps + 1))


def test_wsd_is_stable_until_its_last_part() -> None:
    rates = curve(WSDConfig(kind="wsd", warmup_steps=10, decay_fraction=0.2, min_lr=0.2))
    assert set(rates[9:80]) == {1.0}
    assert rates[89] == pytest.approx(0.6)
    assert rates[-1] == pytest.approx(0.2)


def test_a_run_may_count_its_first_step_as_zero_as_nanogpt_does() -> None:
    """nanoGPT's get_lr, whose iteration 0 is the first step."""
    highest, lowest, warmup, last = 6e-4, 6e-5, 10, 80

    def nanogpt(iteration: int) -> float:
        if iteration < warmup:
            return highest * iteration / warmup
        if iteration > last:
            return lowest
        part = (iteration - warmup) / (last - warmup)
        return lowest + 0.5 * (1.0 + math.cos(math.pi * part)) * (highest - lowest)

    schedule = CosineConfig(warmup_steps=0.1, min_lr=lowest, decay_steps=last, first=0)
    assert curve(schedule, highest) == pytest.approx([nanogpt(iteration) for iteration in range(STEPS)])
    assert curve(schedule, highest)[0] == 0.0


@given(kind=st.sampled_from(["cosine", "linear", "constant", "wsd"]), warmup=st.integers(0, 60))
def test_counting_from_zero_is_the_same_curve_a_step_later(kind: str, warmup: int) -> None:
    def of(first: int) -> list[float]:
        values = {"kind": kind, "warmup_steps": warmup, "first": first}
        return curve(TypeAdapter(ScheduleConfig).validate_python(values))

    assert of(0)[1:] == of(1)[:-1]
    assert of(0)[0] == (0.0 if warmup else 1.0)


def test_decay_steps_end_the_decay_before_the_run_ends() -> None:
    rates = curve(CosineConfig(decay_steps=50, min_lr=0.3))
    assert rates[48] > 0.3
    assert rates[49:] == pytest.approx([0.3] * 51)


@given(
    kind=st.sampled_from([CosineConfig, LinearConfig, WSDConfig]),
    warmup=st.integers(0, 60),
    lowest=st.floats(0, 1),
    steps=st.integers(60, 200),
)
def test_every_schedule_rises_then_falls_and_stays_within_bounds(kind, warmup, lowest, steps) -> None:
    kinds = {CosineConfig: "cosine", LinearConfig: "linear", WSDConfig: "wsd"}
    rates = curve(kind(kind=kinds[kind], warmup_steps=warmup, min_lr=lowest), steps=steps)
    top = max(warmup - 1, 0)
    assert all(a <= b + 1e-12 for a, b in pairwise(rates[: top + 1]))
    assert all(a >= b - 1e-12 for a, b in pairwise(rates[top:]))
    assert all(lowest - 1e-12 <= rate <= 1 + 1e-12 for rate in rates[top:])
