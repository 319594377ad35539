from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from quintet.config.evaluate import EvaluateConfig
from quintet.train.intervals import Trial, intervals_of


def steps_with(make_config: Callable[..., Any], event: str, steps: int = 20, **sections: Any) -> list[int]:
    config = make_config(train={"steps": steps, "batch_size": 4, **sections.pop("train", {})}, **sections)
    intervals = intervals_of(config, steps, epoch_samples=30)
    return [step for step in range(1, steps + 1) if getattr(intervals, event)(step)]


@pytest.mark.parametrize(
    ("evaluate", "expected"),
    [
        ({"every": 8}, [8, 16, 20]),
        ({"every": 8, "at_end": False}, [8, 16]),
        ({"every": 0.3}, [6, 12, 18, 20]),
        ({"every": 8, "offset": 1}, [1, 9, 17, 20]),
        ({"every": 8, "offset": 10, "at_end": False}, [10, 18]),
        ({"every": 8, "offset": 8, "at_end": False}, [8, 16]),
        ({"every": None}, [20]),
        ({"every": None, "at_end": False}, []),
        ({"every": 1.0, "at_end": False}, [20]),
        ({"every": 1, "at_end": False}, list(range(1, 21))),
    ],
)
def test_validations(make_config, evaluate: dict[str, Any], expected: list[int]) -> None:
    assert steps_with(make_config, "validates", evaluate=evaluate) == expected
    assert steps_with(make_config, "samples", evaluate=evaluate) == expected  # with each validation


@pytest.mark.parametrize(
    ("checkpoint", "expected"),
    [
        ({"every": 8}, [8, 16, 20]),
        ({"every": 0.25, "at_end": False}, [5, 10, 15, 20]),
        ({"every": 0.4, "at_end": False}, [8, 16]),
        ({"every": None}, [20]),
        ({"every": None, "at_end": False}, []),
        # An epoch is 30 samples, 7.5 steps.
        ({"every": None, "every_epochs": 1.0}, [7, 14, 20]),
        ({"every": None, "every_epochs": 0.5, "at_end": False}, [3, 6, 9, 12, 15, 18]),
        ({"every": None, "every_epochs": 0.01, "at_end": False}, list(range(1, 21))),
        ({"every": 10, "every_epochs": 1.0, "at_end": False}, [7, 10, 14, 20]),
    ],
)
def test_checkpoints(make_config, checkpoint: dict[str, Any], expected: list[int]) -> None:
    assert steps_with(make_config, "saves", checkpoint=checkpoint) == expected
    config = make_config(train={"steps": 20, "batch_size": 4}, checkpoint=checkpoint)
    assert intervals_of(config, 20, epoch_samples=30).saved() == len(expected)


def test_samples_and_progress_lines_may_have_a_period_of_their_own(make_config) -> None:
    quiet = {"every": None, "at_end": False}
    assert steps_with(make_config, "samples", evaluate=quiet, sample={"every": 0.3}) == [6, 12, 18, 20]
    assert steps_with(make_config, "logs", train={"log_every": 0.22}) == [5, 10, 15, 20]


@pytest.mark.parametrize(
    ("asked", "samples", "items", "size"),
    [
        ({"samples": 100, "task_samples": 50, "text_modeling": {"max_bytes": 9000}}, 8, 2, 2000),
        ({"samples": None, "task_samples": None, "text_modeling": {}}, 8, 2, 2000),
        ({"samples": 3, "task_samples": 1, "text_modeling": {"max_bytes": 70}}, 3, 1, 70),
        ({"samples": 7, "task_samples": 2}, 7, 2, None),
    ],
)
def test_a_trial_measures_no_more_than_its_counts_and_than_the_run(
    asked: dict[str, Any], samples: int, items: int, size: int | None
) -> None:
    evaluate = EvaluateConfig.model_validate({"every": 5, **asked})
    found = Trial(steps=2).shortened(evaluate)
    assert (found.samples, found.task_samples, found.every) == (samples, items, 5)
    assert (found.text_modeling and found.text_modeling.max_bytes) == size
