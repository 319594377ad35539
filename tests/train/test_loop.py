from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from tests.helpers import PEAK, measured, records, run_config, write_corpus

from quintet.config.documents import IGNORED
from quintet.config.schema import RunConfig
from quintet.config.train import TrainConfig, total_steps
from quintet.data.batch import Batch
from quintet.errors import UserError
from quintet.track.console import Reporter
from quintet.train import callbacks, checkpoint, loop
from quintet.train.callbacks import StopSignal
from quintet.train.run import Run
from quintet.train.setup import set_up


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    write_corpus(tmp_path / "corpus", "to be or not to be, that is the question. " * 60)
    return run_config(tmp_path, name="loop", train={"steps": 6, "log_every": 2})


class WithMaskedBatch:
    """The data of a run, but no target of step 3 (counted from 1) is valid."""

    def __init__(self, data) -> None:
        self.data = data

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        batch = self.data.batch(step, rank, world)
        if step != 2:
            return batch
        return dataclasses.replace(batch, targets=np.full_like(batch.targets, IGNORED), valid=0)


def test_a_batch_without_valid_targets_is_skipped_and_counted(config: RunConfig) -> None:
    run = set_up(config, Reporter(), peak_flops=PEAK)
    run.data = WithMaskedBatch(run.data)
    loop.take_steps(run, StopSignal())
    run.tracker.close()
    run.checkpointer.close()
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}
    assert sorted(losses) == [1, 2, 4, 5, 6]
    assert all(math.isfinite(loss) for loss in losses.values())
    assert rows[-2]["train/skipped_steps"] == run.progress.skipped_steps == 1


def test_the_peak_is_what_the_share_refers_to(config: RunConfig) -> None:
    outcome = loop.train(config, Reporter())
    rows = [json.loads(line) for line in (outcome.run.folder / "metrics.jsonl").read_text().splitlines()]
    speed = next(row for row in rows if "speed/mfu" in row)
    peak = speed["speed/tokens_per_second"] * outcome.run.flops_per_token / speed["speed/mfu"]
    assert 0 < speed["speed/mfu"] < 1
    assert peak <= outcome.run.peak_flops * (1 + 1e-9)


def test_metrics_of_a_step_do_not_depend_on_when_they_are_logged(config: RunConfig, tmp_path: Path) -> None:
    def losses(name: str, every: int) -> list[float]:
        changed = config.model_copy(
            update={"name": name, "train": config.train.model_copy(update={"log_every": every})}
        )
        outcome = loop.train(changed, Reporter(), peak_flops=PEAK)
        return measured(outcome.run.folder)

    assert losses("often", 1) == losses("seldom", 5)


def test_checkpoints_are_also_written_when_the_last_is_long_ago(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every look at the clock takes a second: one at the start, one a step, one after each checkpoint."""
    clock = iter(range(100))
    for module in (callbacks, checkpoint):
        monkeypatch.setattr(module, "monotonic", lambda: next(clock))
    values = config.model_dump(mode="json")
    values["checkpoint"] = {"every": None, "every_seconds": 2, "keep": 10, "keep_best": False}
    run = loop.train(RunConfig.model_validate(values), Reporter(), peak_flops=PEAK).run
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


def varied(config: RunConfig, name: str, **sections: dict[str, Any]) -> RunConfig:
    """``config`` under another name, with keys of its sections changed."""
    values = config.model_dump(mode="json")
    for section, keys in sections.items():
        values[section] = keys if "kind" in keys else values[section] | keys
    return RunConfig.model_validate(values | {"name": name})


def losses_of(run: Run, key: str = "train/loss") -> dict[int, float]:
    return {int(row["step"]): row[key] for row in records(run.folder) if key in row}


def checkpoints_of(run: Run) -> list[str]:
    return sorted(path.name for path in (run.folder / "checkpoints").iterdir())


def test_a_validation_before_the_first_step_is_of_the_untrained_weights(config: RunConfig) -> None:
    asked = varied(config, "start", evaluate={"every": 3, "at_start": True, "offset": 1}, optimizer={"lr": 1e-9})
    run = loop.train(asked, Reporter(), peak_flops=PEAK).run
    found = losses_of(run, "validation/loss")
    assert sorted(found) == [0, 1, 4, 6]
    assert found[0] == pytest.approx(found[6], rel=1e-4)  # nothing is learnt at this rate
    assert found[0] == pytest.approx(math.log(256), rel=0.1)
    assert run.progress.best_step != 0  # there is no checkpoint of it


def test_a_run_that_begins_anew_does_not_keep_the_records_of_step_0(config: RunConfig) -> None:
    asked = varied(
        config,
        "anew",
        evaluate={"at_start": True},
        checkpoint={"every": None, "at_end": False, "keep_best": False},
    )
    for _ in range(2):
        run = loop.train(asked, Reporter(), peak_flops=PEAK).run
    assert [row["step"] for row in records(run.folder) if "validation/loss" in row] == [0, 6]


def test_without_any_checkpoint_a_run_finishes_and_says_so(
    config: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing = {"every": None, "at_end": False, "keep_best": False}
    run = loop.train(varied(config, "none", checkpoint=nothing), Reporter(), peak_flops=PEAK).run
    assert (run.progress.step, checkpoints_of(run)) == (6, [])
    assert "no checkpoint was kept" in " ".join("".join(capsys.readouterr()).split())
    loop.train(varied(config, "some"), Reporter(), peak_flops=PEAK)
    assert "no checkpoint was kept" not in " ".join("".join(capsys.readouterr()).split())


def test_a_run_that_is_stopped_keeps_a_checkpoint_whatever_it_keeps_at_its_end(config: RunConfig) -> None:
    nothing = {"every": None, "at_end": False, "keep_best": False}
    run = set_up(varied(config, "stopped", checkpoint=nothing), Reporter(), peak_flops=PEAK)
    stop_signal = StopSignal()
    made = callbacks.Callbacks(run, stop_signal)
    assert not made.end(1)
    stop_signal.signal = 15
    assert made.end(2)
    run.tracker.close()
    run.checkpointer.close()
    assert checkpoints_of(run) == ["step-000002"]


def test_all_checkpoints_are_kept_when_none_is_to_go(config: RunConfig) -> None:
    run = loop.train(varied(config, "all", checkpoint={"every": 0.3, "keep": None}), Reporter(), peak_flops=PEAK).run
    assert checkpoints_of(run) == ["step-000002", "step-000004", "step-000006"]


def test_where_nothing_is_validated_too_little_held_out_is_no_mistake(config: RunConfig) -> None:
    little = {"validation": 5}
    with pytest.raises(UserError, match=r"data.validation: 5 tokens"):
        loop.train(varied(config, "little", data=little), Reporter(), peak_flops=PEAK)
    never = {"every": None, "at_end": False}
    run = loop.train(varied(config, "never", data=little, evaluate=never), Reporter(), peak_flops=PEAK).run
    assert losses_of(run, "validation/loss") == {}
    assert run.progress.step == 6


@pytest.mark.parametrize(
    "sections",
    [
        {"optimizer": {"kind": "torch", "name": "SGD", "lr": 0.1}},
        {"optimizer": {"kind": "torch", "name": "SGD", "lr": 0.1, "arguments": {"momentum": 0.9}}},
        *(
            {"optimizer": {"kind": "torch", "name": name, "lr": 0.01}}
            for name in (
                "Adam",
                "Adagrad",
                "RMSprop",
                "Adamax",
                "NAdam",
                "RAdam",
                "Adadelta",
                "Rprop",
                "ASGD",
                "Adafactor",
            )
        ),
        {"optimizer": {"state_precision": "bf16", "decay": "all"}},
        {"schedule": {"kind": "torch", "name": "ExponentialLR", "arguments": {"gamma": 0.5}}},
        {"schedule": {"kind": "deepspeed", "name": "WarmupLR", "arguments": {"warmup_num_steps": 4}}},
        {"schedule": {"kind": "transformers", "name": "inverse_sqrt", "warmup_steps": 3}},
        # Every validation that is not a fifth better halves the rate, so that it has moved before the run is stopped.
        {
            "schedule": {"kind": "plateau", "factor": 0.5, "patience": 0, "threshold": 0.2},
            "evaluate": {"every": 1, "samples": 2},
            "optimizer": {"lr": 0.01},
        },
    ],
    ids=lambda sections: "-".join(str(value) for part in sections.values() for value in part.values())[:40],
)
def test_a_continued_run_has_the_losses_of_one_that_was_not_stopped(
    config: RunConfig, sections: dict[str, dict[str, Any]]
) -> None:
    schedule = {"schedule": {"kind": "constant"}} | sections
    whole = loop.train(varied(config, "whole", **schedule), Reporter(), peak_flops=PEAK).run
    loop.train(varied(config, "parts", **schedule, train={"steps": 3}), Reporter(), peak_flops=PEAK)
    continued = loop.train(varied(config, "parts", **schedule), Reporter(), peak_flops=PEAK).run
    for key in ("train/loss", "train/lr"):
        assert losses_of(continued, key) == losses_of(whole, key)
    assert len(losses_of(whole)) == 6
    if sections.get("schedule", {}).get("kind") == "plateau":
        rates = losses_of(whole, "train/lr")
        assert rates[1] > rates[4] > rates[6]


def test_what_decides_a_plateau_may_not_change_when_a_run_continues(config: RunConfig) -> None:
    plateau = {"schedule": {"kind": "plateau"}, "evaluate": {"every": 2}}
    loop.train(varied(config, "fixed", **plateau), Reporter(), peak_flops=PEAK)
    with pytest.raises(UserError, match=r"evaluate.every: 2, not 3"):
        loop.train(varied(config, "fixed", **plateau | {"evaluate": {"every": 3}}), Reporter(), peak_flops=PEAK)
    loop.train(
        varied(config, "fixed", **plateau | {"evaluate": {"every": 2, "at_start": True}}), Reporter(), peak_flops=PEAK
    )
    loop.train(varied(config, "free", evaluate={"every": 2}), Reporter(), peak_flops=PEAK)
    loop.train(varied(config, "free", evaluate={"every": 3}), Reporter(), peak_flops=PEAK)
    with pytest.raises(UserError, match=r"schedule.kind"):
        loop.train(varied(config, "free", schedule={"kind": "constant"}), Reporter(), peak_flops=PEAK)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"evaluate": {"every": None}}, "evaluate.every"),
        ({"data": {"validation": 0}}, "data.validation"),
    ],
)
def test_a_plateau_needs_validations(config: RunConfig, sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as refused:
        varied(config, "plateau", schedule={"kind": "plateau"}, **sections)
    [error] = refused.value.errors()
    assert error["ctx"]["key"] == message
