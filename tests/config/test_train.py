from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from quintet.config.evaluate import EvaluateConfig
from quintet.config.generation import SampleConfig
from quintet.config.load import load_run_config
from quintet.config.schedule import CosineConfig
from quintet.config.train import CheckpointConfig, TrainConfig, fraction_of, steps_of, total_steps
from quintet.errors import UserError


@given(hundredths=st.integers(1, 100), steps=st.integers(1, 10**7))
def test_a_fraction_is_rounded_up_and_taken_as_it_is_written(hundredths: int, steps: int) -> None:
    found = steps_of(float(f"{hundredths / 100:.2f}"), steps)
    assert found - 1 < Fraction(hundredths * steps, 100) <= found
    assert 1 <= found <= steps


@given(part=st.integers(1, 400), whole=st.integers(1, 400), steps=st.integers(1, 10**6))
@example(part=5, whole=7, steps=700)
def test_a_quotient_as_a_fraction_is_rounded_up_to_what_the_quotient_is(part: int, whole: int, steps: int) -> None:
    part = min(part, whole)
    assert steps_of(fraction_of(part, whole), steps) == -(-part * steps // whole)


@given(part=st.integers(0, 2000), whole=st.sampled_from([1, 2, 5, 8, 10, 100, 1000]))
def test_a_quotient_that_can_be_written_is_the_fraction_and_one_above_the_run_is_the_run(part: int, whole: int) -> None:
    assert fraction_of(part, whole) == min(1.0, float(Fraction(part, whole)))


@given(hundredths=st.integers(1, 500), samples=st.integers(1, 10**7), batch=st.integers(1, 512))
@example(hundredths=7, samples=100, batch=1)
def test_epochs_and_tokens_are_rounded_up_to_whole_steps(hundredths: int, samples: int, batch: int) -> None:
    epochs = TrainConfig.model_validate({"epochs": hundredths / 100})
    assert total_steps(epochs, batch, 8, samples) == -(-hundredths * samples // (100 * batch))
    tokens = TrainConfig.model_validate({"tokens": samples**3})
    assert total_steps(tokens, batch, 8, samples) == -(-(samples**3) // (8 * batch))


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
    with pytest.raises(UserError, match=r"a.yaml:4: schedule.warmup_steps: 2.5 is not a fraction of the run; write a"):
        load_run_config([file])
    with pytest.raises(UserError, match=r"schedule.warmup_steps: is more than train.steps = 50"):
        load_run_config([file], ["schedule.warmup_steps=51"])
