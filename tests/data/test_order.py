from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.helpers import MakeConfig

from quintet.config.schema import RunConfig
from quintet.data.mixture import EpochOrder, MixtureStage, WeightedOrder, build_order, stage_facts, stage_lines


def sources(*labels: str, **keys: Any) -> list[dict[str, Any]]:
    return [{"kind": "text", "path": "there", "label": label, **keys} for label in labels]


def staged(make_config: MakeConfig, steps: dict[str, Any], *untils: float) -> RunConfig:
    """Batches of 10 samples of 8 tokens, in stages that draw from a and b in turns."""
    stages: list[dict[str, Any]] = [{"until": until, "weights": {"ab"[i % 2]: 1}} for i, until in enumerate(untils)]
    stages.append({"weights": {"a": 1, "b": 3}})
    config = make_config(*sources("a", "b"), batch=10, stages=stages)
    return RunConfig.model_validate(config.model_dump() | {"train": {"batch_size": 10, **steps}})


@pytest.mark.parametrize(
    ("steps", "untils", "ends"),
    [
        ({"steps": 100}, [0.07, 0.5], [7, 50]),  # 0.07 · 100 is more than 7 in floating point
        ({"steps": 3}, [0.1, 0.5], [1, 2]),
        ({"steps": 3}, [0.1, 0.2], [1, 1]),  # a stage without a step
        ({"tokens": 8001}, [0.5], [51]),
        ({"epochs": 2}, [0.25], [30]),  # of 2 · 600 samples
        ({"steps": 100}, [3, 70], [3, 70]),
        ({"steps": 10}, [20], [20]),  # ahead of a run that may become longer
    ],
)
def test_stages_end_at_steps_or_at_fractions_of_them_rounded_up(
    make_config: MakeConfig, steps: dict[str, Any], untils: list[float], ends: list[int]
) -> None:
    config = staged(make_config, steps, *untils)
    order = build_order(config, (400, 200))
    assert isinstance(order, WeightedOrder)
    assert [stage.start for stage in order.later] == [10 * end for end in ends]
    assert [fact[0] for fact in stage_facts(config, order)] == [0, *ends]
    assert len(stage_lines(config, order)) == len(ends) + 1


def test_stages_are_said_in_steps_counted_from_one(make_config: MakeConfig) -> None:
    config = staged(make_config, {"steps": 5000}, 0.8)
    assert stage_lines(config, build_order(config, (400, 200))) == [
        "from step 1 to 4,000: a 1",
        "from step 4,001 on: a 1, b 3",
    ]


def test_sources_of_one_label_share_its_weight_by_their_size(make_config: MakeConfig) -> None:
    stages = [{"until": 1, "weights": {"a": 3, "b": 1}}, {"weights": {"b": 2}}]
    order = build_order(make_config(*sources("a", "b", "a"), stages=stages), (100, 7, 300))
    assert isinstance(order, WeightedOrder)
    assert order.stages == (MixtureStage(0, (0.75, 1.0, 2.25)), MixtureStage(4, (0.0, 2.0, 0.0)))
    drawn = np.bincount(order.at(np.arange(4, 4 + 4096))[0], minlength=3)
    assert drawn.tolist() == [0, 4096, 0]


def test_the_run_file_says_how_sources_are_mixed(make_config: MakeConfig) -> None:
    counts = (10, 20)
    a, b = sources("a", "b")
    assert build_order(make_config(a, b), counts) == EpochOrder(counts, 1337, True, (1.0, 1.0))
    repeated = make_config(a, b | {"repeat": 1.5}, mixing="sequential", shuffle=False)
    assert build_order(repeated, counts) == EpochOrder(counts, 1337, False, (1.0, 1.5), True)
    weighted = make_config(a | {"weight": 2}, b | {"weight": 1})
    assert build_order(weighted, counts) == WeightedOrder(counts, (2.0, 1.0), 1337, True)
    assert stage_facts(weighted, build_order(weighted, counts)) == []
