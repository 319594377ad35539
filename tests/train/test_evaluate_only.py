"""`evaluate.only`: the validation loss of the weights that there are, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.helpers import Command, Train, records, run_config

from quintet.errors import UserError
from quintet.train.checkpoint_files import checkpoint_steps


def test_the_start_and_then_the_last_checkpoint_are_validated_and_left_as_they_are(
    train: Train, command: Command
) -> None:
    train(model={}, evaluate={"only": True, "samples": 4})
    [start] = [line for line in records("runs/tiny") if "validation/loss" in line]
    assert start["step"] == 0
    assert checkpoint_steps(Path("runs/tiny/checkpoints")) == []
    code, out, err = command("train", "tiny.yaml", "evaluate.only=false", "evaluate.at_start=true")
    assert (code, err) == (0, ""), err
    losses = {line["step"]: line["validation/loss"] for line in records("runs/tiny") if "validation/loss" in line}
    assert losses[0] == start["validation/loss"]
    assert set(losses) == {0, 3}
    checkpoint = sorted(Path("runs/tiny/checkpoints").rglob("*"))
    code, out, err = command("train", "tiny.yaml")
    assert code == 0, err
    assert "evaluated at step 3: " in out
    assert f"{losses[3]:.4f} nats" in out
    assert records("runs/tiny")[-1]["validation/loss"] == pytest.approx(losses[3], rel=1e-6)
    assert sorted(Path("runs/tiny/checkpoints").rglob("*")) == checkpoint


def test_all_that_is_asked_for_is_measured(train: Train) -> None:
    train(
        model={},
        evaluate={
            "only": True,
            "samples": 4,
            "text_modeling": {"max_bytes": 200},
            "text_generation": {"prompts": ["one", "two"], "max_tokens": 4},
        },
    )
    names = {name.split("/")[0] for line in records("runs/tiny") for name in line}
    assert {"validation", "text", "generation"} <= names


def test_there_must_be_something_held_out() -> None:
    with pytest.raises((UserError, ValueError), match="needs held-out data"):
        run_config(data={"validation": 0}, evaluate={"only": True})
