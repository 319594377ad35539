from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from quintet.config.length import total_steps
from quintet.config.schema import RunConfig
from quintet.config.training import TrainConfig
from quintet.data.batch import Batch
from quintet.track.console import Reporter
from quintet.train import loop
from quintet.train.interruption import Interruption
from quintet.train.loss import IGNORED
from quintet.train.setup import set_up


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    (tmp_path / "text.txt").write_text("to be or not to be, that is the question. " * 60)
    return RunConfig.model_validate(
        {
            "name": "loop",
            "runs_dir": str(tmp_path / "runs"),
            "data": {
                "sources": [{"kind": "text", "path": str(tmp_path / "text.txt")}],
                "validation": 0.1,
                "sequence_length": 16,
                "cache_dir": str(tmp_path / "cache"),
            },
            "tokenizer": {"kind": "byte"},
            "model": {"layers": 1, "width": 16, "attention": {"heads": 2}},
            "train": {"steps": 6, "batch_size": 4, "log_every": 2, "precision": "fp32"},
            "sample": {"prompts": []},
        }
    )


class WithMaskedBatch:
    """The data of a run, but no target of step 3 (counted from 1) is valid."""

    def __init__(self, data) -> None:
        self.data = data

    def batch(self, step: int) -> Batch:
        batch = self.data.batch(step)
        if step != 2:
            return batch
        return dataclasses.replace(batch, targets=np.full_like(batch.targets, IGNORED), valid=0)


def test_a_batch_without_valid_targets_is_skipped_and_counted(config: RunConfig) -> None:
    run = set_up(config, Reporter())
    run.data = WithMaskedBatch(run.data)
    loop._steps(run, Interruption())
    for tracker in run.trackers:
        tracker.close()
    run.checkpointer.close()
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}
    assert sorted(losses) == [1, 2, 4, 5, 6]
    assert all(math.isfinite(loss) for loss in losses.values())
    assert rows[-2]["train/skipped_steps"] == run.progress.skipped_steps == 1


def test_the_peak_is_what_the_share_refers_to(config: RunConfig) -> None:
    outcome = loop.train(config, Reporter())
    rows = [json.loads(line) for line in (outcome.run.folder / "metrics.jsonl").read_text().splitlines()]
    speed = next(row for row in rows if "speed/share_of_peak" in row)
    peak = speed["speed/tokens_per_second"] * outcome.run.flops_per_token / speed["speed/share_of_peak"]
    assert 0 < speed["speed/share_of_peak"] < 1
    assert peak <= outcome.run.peak * (1 + 1e-9)


def test_metrics_of_a_step_do_not_depend_on_when_they_are_logged(config: RunConfig, tmp_path: Path) -> None:
    def losses(name: str, every: int) -> list[float]:
        changed = config.model_copy(
            update={"name": name, "train": config.train.model_copy(update={"log_every": every})}
        )
        outcome = loop.train(changed, Reporter())
        rows = [json.loads(line) for line in (outcome.run.folder / "metrics.jsonl").read_text().splitlines()]
        return [row["train/loss"] for row in rows if "train/loss" in row]

    assert losses("often", 1) == losses("seldom", 5)


def test_checkpoints_are_also_written_when_the_last_is_long_ago(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every look at the clock takes a second: one at the start, one a step, one behind each checkpoint."""
    clock = iter(range(100))
    monkeypatch.setattr(loop, "monotonic", lambda: next(clock))
    values = config.model_dump(mode="json")
    values["checkpoint"] = {"every": None, "every_seconds": 2, "keep": 10, "keep_best": False}
    run = loop.train(RunConfig.model_validate(values), Reporter()).run
    assert sorted(path.name for path in (run.folder / "checkpoints").iterdir()) == [
        "step-000002",
        "step-000004",
        "step-000006",
    ]


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        ({"steps": 6}, 6),
        ({"tokens": 200}, 4),
        ({"epochs": 2}, 20),
        ({"epochs": 0.25, "steps": 9}, 3),
        ({"epochs": 2, "steps": 9}, 9),
        ({"epochs": 2, "steps": 9, "tokens": 128}, 2),
    ],
)
def test_of_several_lengths_the_one_that_ends_first_counts(length: dict[str, float], expected: int) -> None:
    train = TrainConfig.model_validate(length)
    assert total_steps(train, batch_samples=4, sequence_length=16, epoch_samples=40) == expected
