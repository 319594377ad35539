from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.helpers import PEAK, records, run_values

from quintet.config.load import read_run_config
from quintet.config.schema import RunConfig
from quintet.data.prepare import find_prepared
from quintet.errors import UserError
from quintet.track.console import Reporter
from quintet.train import loop
from quintet.train.engine import TorchEngine
from quintet.train.trained import load_trained, loss_on, own_data

WORDS = {"words": ["the", "cat", "dog", "sat", "mat"], "numbers": ["one", "two", "three"]}


class Lines(Reporter):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def values(tmp_path: Path) -> dict[str, Any]:
    """A run of two labels: both at first, and one of them from step 7 on."""
    draw = random.Random(3)
    for label, words in WORDS.items():
        (tmp_path / label).mkdir()
        for index in range(10):
            (tmp_path / label / f"{index}.txt").write_text(" ".join(draw.choice(words) for _ in range(100)))
    (tmp_path / "words" / "again.txt").write_text((tmp_path / "words" / "0.txt").read_text())
    stages = [{"until": 6, "weights": {"words": 3, "numbers": 1}}, {"weights": {"numbers": 1}}]
    sources = [{"kind": "text", "path": str(tmp_path / label), "label": label} for label in WORDS]
    return run_values(
        tmp_path,
        name="mixed",
        data={"sources": sources, "stages": stages, "validation": 0.3},
        model={"embedding_dropout": 0.1},
        schedule={"kind": "constant"},
        train={"steps": 12, "batch_size": 8, "log_every": 2},
        evaluate={"every": 4},
        checkpoint={"every": 4},
    )


def train(values: dict[str, Any], **changes: Any) -> tuple[loop.Outcome, list[str]]:
    reporter = Lines()
    return loop.train(RunConfig.model_validate(values | changes), reporter, peak_flops=PEAK), reporter.said


def test_a_staged_run_draws_as_its_stages_say_and_measures_each_label(values: dict[str, Any]) -> None:
    outcome, said = train(values)
    run = outcome.run
    drawn = [np.bincount(run.data.batch(step).sources, minlength=2).tolist() for step in range(12)]
    assert all(words for words, _ in drawn[:5])
    assert drawn[6:] == [[0, 8]] * 6
    assert "from step 1 to 6: words 3, numbers 1" in said
    assert "from step 7 on: numbers 1" in said

    rows = [row for row in records(run.folder) if "validation/loss" in row]
    assert [row["step"] for row in rows] == [4, 8, 12]
    trained = load_trained(str(run.folder))
    result = loss_on(trained, own_data(trained, Reporter()), None)
    assert result.metrics() == {name: value for name, value in rows[-1].items() if name != "step"}
    assert list(result.labels) == ["words", "numbers"]
    parts = result.labels.values()
    assert sum(part.loss * part.tokens for part in parts) == pytest.approx(result.loss * result.tokens, rel=1e-12)
    assert any(line.startswith("  numbers ") and "bits per byte" in line for line in said)


def test_a_staged_run_goes_on_bit_for_bit(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(values, name="whole")[0].run.folder
    with monkeypatch.context() as patch:
        patch.setattr(TorchEngine, "accumulate", stopping_at(6))
        with pytest.raises(KeyboardInterrupt):
            train(values, name="stopped")
    stopped, said = train(values, name="stopped")
    assert "continuing from step 4" in said
    assert records(stopped.run.folder) == records(whole)


def stopping_at(last: int) -> Any:
    accumulate = TorchEngine.accumulate

    def step(engine: TorchEngine, batch: Any, step: int) -> Any:
        if step == last:
            raise KeyboardInterrupt
        return accumulate(engine, batch, step)

    return step


def test_a_run_may_become_longer_and_have_other_stages_ahead(values: dict[str, Any]) -> None:
    whole = train(values, name="whole")[0].run.folder
    short = values["train"] | {"steps": 4}
    ahead = [{"until": 5, "weights": {"words": 3, "numbers": 1}}, {"weights": {"words": 1}}]
    train(values, name="longer", train=short, data=values["data"] | {"stages": ahead})
    longer = train(values, name="longer")[0].run.folder
    assert records(longer) == records(whole)
    with pytest.raises(UserError, match=r"data\.stages: .* with stages with until: 6"):
        train(values, name="longer", data=values["data"] | {"stages": ahead})


def test_fractions_that_would_move_a_stage_which_was_run_are_refused(values: dict[str, Any]) -> None:
    first, last = values["data"]["stages"]
    fractions = values["data"] | {"stages": [first | {"until": 0.5}, last]}
    train(values, data=fractions)
    longer = values["train"] | {"steps": 16}
    with pytest.raises(UserError, match=r"data\.stages: .* up to step 12 with stages with until: 6, .* in steps"):
        train(values, data=fractions, train=longer)
    kept = read_run_config(Path(values["runs_dir"]) / "mixed")
    assert (kept.train.steps, kept.data.stages[0].until) == (12, 0.5)  # what is refused is not written either
    outcome, said = train(values, train=longer)
    assert outcome.run.progress.step == 16
    assert "changed since the run began: data.stages[0].until: 0.5 → 6" in said


def test_a_run_without_stages_gets_none_afterwards(values: dict[str, Any]) -> None:
    plain = {name: value for name, value in values["data"].items() if name != "stages"}
    train(values, data=plain)
    with pytest.raises(UserError, match=r"data\.stages: .* with no stages"):
        train(values)


def test_what_is_left_out_is_said_before_the_first_step(values: dict[str, Any]) -> None:
    expected, found = [], []
    for seed in range(3):
        outcome, said = train(values, name=f"seed-{seed}", seed=seed, train=values["train"] | {"steps": 1})
        prepared = find_prepared(outcome.run.config)
        assert prepared is not None
        expected.append(prepared.left_out)
        found.append(int("left out of the training: 1 documents that are also validated on" in said))
    assert found == expected
    assert set(found) == {0, 1}
