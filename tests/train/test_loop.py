from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from quintet.config.schema import RunConfig
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
