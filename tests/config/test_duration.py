from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from quintet.config.duration import steps_of
from quintet.config.evaluate import EvaluateConfig
from quintet.config.load import load_run_config
from quintet.config.schedule import CosineConfig
from quintet.config.training import CheckpointConfig, SampleConfig, TrainConfig
from quintet.errors import UserError


@given(hundredths=st.integers(1, 100), steps=st.integers(1, 10**7))
def test_a_fraction_is_rounded_up_and_taken_as_it_is_written(hundredths: int, steps: int) -> None:
    found = steps_of(float(f"{hundredths / 100:.2f}"), steps)
    assert found - 1 < Fraction(hundredths * steps, 100) <= found
    assert 1 <= found <= steps


def test_a_whole_number_is_steps_and_a_number_with_a_point_a_fraction() -> None:
    assert [steps_of(1, 300), steps_of(1.0, 300), steps_of(0.07, 100), steps_of(0.0, 9)] == [1, 300, 7, 0]


@pytest.mark.parametrize(("written", "found"), [("1", 1), ("1.0", 1.0), ("0.2", 0.2), ("7", 7)])
def test_yaml_tells_the_two_apart(tmp_path, written: str, found: float) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(
        f"data: {{sources: [{{kind: python_stdlib}}]}}\ntrain: {{steps: 50}}\nevaluate: {{every: {written}}}\n"
    )
    every = load_run_config([file]).config.evaluate.every
    assert (type(every), every) == (type(found), found)
    every = load_run_config([file], [f"checkpoint.every={written}"]).config.checkpoint.every
    assert (type(every), every) == (type(found), found)


@pytest.mark.parametrize("part", [EvaluateConfig, CheckpointConfig, SampleConfig])
@pytest.mark.parametrize("bad", [0, 0.0, 1.5, -1, True, "x"])
def test_what_is_neither_is_refused(part, bad: object) -> None:
    with pytest.raises(ValidationError):
        part.model_validate({"every": bad})
    with pytest.raises(ValidationError):
        TrainConfig.model_validate({"steps": 5, "log_every": bad})


def test_a_warm_up_may_be_nothing_but_not_more_than_the_run(tmp_path) -> None:
    assert CosineConfig.model_validate({"warmup_steps": 0.0}).warmup_steps == 0
    file = tmp_path / "a.yaml"
    file.write_text("data: {sources: [{kind: python_stdlib}]}\ntrain: {steps: 50}\nschedule:\n  warmup_steps: 2.5\n")
    with pytest.raises(UserError, match=r"a.yaml:4: schedule.warmup_steps: 2.5 is no fraction of the run; write a"):
        load_run_config([file])
    with pytest.raises(UserError, match=r"schedule.warmup_steps: is more than the 50 steps"):
        load_run_config([file], ["schedule.warmup_steps=51"])
