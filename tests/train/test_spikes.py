"""A run that goes back to its last checkpoint when the loss leaps, and goes on without the batch at fault."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from tests.helpers import PEAK, measured, records, run_config, write_corpus

from quintet.config.documents import IGNORED
from quintet.config.schema import RunConfig
from quintet.config.train import SpikeConfig
from quintet.data.batch import Batch
from quintet.errors import UserError
from quintet.track.console import Reporter
from quintet.train import loop
from quintet.train.callbacks import StopSignal
from quintet.train.checkpoint import trained_weights
from quintet.train.checkpoint_files import checkpoint_steps, read_progress
from quintet.train.run import Run
from quintet.train.setup import set_up
from quintet.train.spikes import find_spike

BAD = (14, 19)  # steps, of which checkpoints come each 4 and losses are known from step 6 on
STEPS = 24


class Said(Reporter):
    """Keeps the lines."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        """A line."""
        self.lines.append(text)


class Data:
    """The data of a run; the batches of ``BAD`` have other targets, or none at all, and that of ``killed`` ends it."""

    def __init__(self, data: Any, masked: bool = False, killed: int | None = None) -> None:
        self._data, self._masked, self._killed = data, masked, killed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._data, name)

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """The batch of ``step``, counted from 0."""
        if step + 1 == self._killed:
            raise KeyboardInterrupt
        batch = self._data.batch(step, rank, world)
        if step + 1 not in BAD:
            return batch
        if self._masked:
            return dataclasses.replace(batch, targets=np.full_like(batch.targets, IGNORED), valid=0)
        return dataclasses.replace(batch, targets=np.full_like(batch.targets, 7))  # a byte that no text has


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., RunConfig]:
    """The config of a run under a name, with these keys of `train`."""
    write_corpus(tmp_path / "corpus", "to be or not to be, that is the question. " * 60)

    def call(name: str, **train: Any) -> RunConfig:
        keys = {"steps": STEPS, "log_every": 5, "on_spike": {"window": 5, "threshold": 6}} | train
        return run_config(
            tmp_path,
            name=name,
            train=keys,
            checkpoint={"every": 4},
            evaluate={"every": 8},
            model={"residual_dropout": 0.1},
            optimizer={"kind": "adamw", "lr": 0.01},
        )

    return call


def trained(config: RunConfig, **data: Any) -> tuple[Run, list[str]]:
    """The run of ``config`` with the bad batches, trained to its end, and what it said."""
    said = Said()
    run = set_up(config, said, peak_flops=PEAK)
    run.data = Data(run.data, **data)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        loop.take_steps(run, StopSignal())
    finally:
        run.checkpointer.close()
        run.tracker.close()
    return run, [line for line in said.lines if line.startswith("loss spike")]


def same_weights(run: Run, other: Run) -> bool:
    ours, theirs = trained_weights(run.model), trained_weights(other.model)
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_run_that_goes_back_ends_as_one_whose_bad_batches_have_no_target(config: Callable[..., RunConfig]) -> None:
    run, said = trained(config("back"))
    masked, none = trained(config("masked", on_spike=None), masked=True)
    assert [step for step in range(1, STEPS + 1) if step not in BAD] == [
        row["step"] for row in records(run.folder) if "train/loss" in row
    ]
    rows = [{name: value for name, value in row.items() if name != "train/rollbacks"} for row in records(run.folder)]
    assert rows == records(masked.folder)
    assert measured(run.folder, "train/rollbacks")[-1] == 2
    assert same_weights(run, masked)
    assert (run.progress.spikes, none) == (list(BAD), [])
    assert [line.partition(" is ")[0] for line in said] == [f"loss spike: the loss of step {step}" for step in BAD]
    assert "back to step 12, from where the run goes on without the batch of step 14 (1 of at most 10)" in said[0]
    assert f"`quintet show-batch {run.folder} --step 14` shows them" in said[0]
    assert "back to step 16" in said[1]


def test_without_the_key_nothing_is_left_out(config: Callable[..., RunConfig]) -> None:
    run, said = trained(config("plain", on_spike=None))
    assert (len(measured(run.folder)), run.progress.spikes, run.progress.losses, said) == (STEPS, [], [], [])


@pytest.mark.parametrize("log_every", [1, pytest.param(50, marks=pytest.mark.slow)])
def test_it_does_not_matter_when_the_losses_are_looked_at(config: Callable[..., RunConfig], log_every: int) -> None:
    run, _ = trained(config("often", log_every=log_every))
    other, _ = trained(config("other"))
    assert measured(run.folder) == measured(other.folder)
    assert same_weights(run, other)


# Before the first spike, between it and the log point that finds it, on the way back, and after the second one.
@pytest.mark.parametrize(
    "killed", [pytest.param(11, marks=pytest.mark.slow), 15, 18, pytest.param(23, marks=pytest.mark.slow)]
)
def test_a_run_that_is_killed_goes_back_as_one_that_is_not(config: Callable[..., RunConfig], killed: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        trained(config("killed"), killed=killed)
    run, _ = trained(config("killed"))
    whole, _ = trained(config("whole"))
    assert measured(run.folder) == measured(whole.folder)
    assert measured(run.folder, "validation/loss") == measured(whole.folder, "validation/loss")
    assert (run.progress.spikes, run.progress.losses) == (whole.progress.spikes, whole.progress.losses)
    assert same_weights(run, whole)


@pytest.fixture
def scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss scaling as fp16 has it on a GPU, by powers of two, of which each third step makes the next."""

    class Scaled(torch.amp.GradScaler):
        def __init__(self, device: str, enabled: bool) -> None:
            super().__init__(device, 4.0, growth_interval=3)

    monkeypatch.setattr(torch.amp, "GradScaler", Scaled)


def test_the_scale_of_the_loss_goes_back_too(
    config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch, scaled: None
) -> None:
    run, _ = trained(config("scaled"))
    with pytest.raises(KeyboardInterrupt):
        trained(config("killed"), killed=18)
    killed, _ = trained(config("killed"))
    # Of the 24 steps two are left out, and after each third of those that are taken the scale doubles.
    assert run.scaler.get_scale() == killed.scaler.get_scale() == 4 * 2 ** ((STEPS - len(BAD)) // 3)
    assert run.progress.scaler == killed.progress.scaler
    assert same_weights(run, killed)
    monkeypatch.undo()
    plain, _ = trained(config("plain"))
    assert same_weights(run, plain)
    assert measured(run.folder) == measured(plain.folder)


def test_what_is_left_out_is_in_the_checkpoint_that_the_run_went_back_to(config: Callable[..., RunConfig]) -> None:
    with pytest.raises(KeyboardInterrupt):
        trained(config("kept"), killed=18)
    run = set_up(config("kept"), Reporter(), peak_flops=PEAK)
    run.checkpointer.close()
    run.tracker.close()
    last = checkpoint_steps(run.checkpointer.folder)[-1]
    assert read_progress(run.checkpointer.folder / f"step-{last:06d}").spikes == [14]
    assert run.progress.spikes == [14]


def test_so_many_times_and_no_more(config: Callable[..., RunConfig]) -> None:
    with pytest.raises(UserError, match=r"gone back 1 times \(max_rollbacks\).*show-batch .* --step 19"):
        trained(config("once", on_spike={"window": 5, "threshold": 6, "max_rollbacks": 1}))
    run, _ = trained(config("once", on_spike={"window": 5, "threshold": 6, "max_rollbacks": 2}))
    assert run.progress.spikes == list(BAD)


def test_a_spike_is_what_stands_out_of_the_median_deviation() -> None:
    config = SpikeConfig(window=5, threshold=3)
    before = [1.0, 1.2, 1.1, 0.9, 1.0]  # median 1.0, median deviation 0.1: a spike is above 1.0 + 3 · 0.14826
    limit = 1.0 + 3 * 1.4826 * 0.1
    assert find_spike(config, before, [(9, limit - 1e-9)], 0)[0] is None
    spike, known = find_spike(config, before, [(8, float("nan")), (9, limit + 1e-9), (10, 0.5)], 0)
    assert spike is not None
    assert (spike.step, known) == (9, before)
    assert spike.deviations == pytest.approx(3)
    assert find_spike(config, before, [(9, 5.0)], 9) == (None, [1.2, 1.1, 0.9, 1.0, 5.0])  # no checkpoint yet
    assert find_spike(config, before[:4], [(9, 5.0)], 0)[0] is None  # too few losses
    assert find_spike(config, [1.0] * 5, [(9, 1.029)], 0)[0] is None  # 1 % of the median is no spike
    assert find_spike(config, [1.0] * 5, [(9, 1.031)], 0)[0] is not None


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"checkpoint": {"every": None}}, "none is written; set checkpoint.every"),
        ({"checkpoint": {"every": 30}}, "which train.steps = 24 does not reach; lower checkpoint.every"),
        (
            {"on_spike": {}},
            "100 losses before it can judge a step, which train.steps = 24 does not reach",
        ),
        ({"data": {"fixed_batch": True}}, "with data.fixed_batch all steps have the same"),
        ({"trainer": {"kind": "transformers"}}, "is not supported by trainer.kind: transformers"),
        ({"parallel": {"kind": "deepspeed"}}, "is not supported by parallel.kind: deepspeed"),
    ],
)
def test_what_cannot_be_undone_is_refused(tmp_path: Path, sections: dict[str, Any], said: str) -> None:
    on_spike = sections.get("on_spike", {"window": 5})
    rest = {name: value for name, value in sections.items() if name != "on_spike"}
    whole = {"checkpoint": {"every": 4}, "train": {"steps": STEPS, "on_spike": on_spike}} | rest
    with pytest.raises(ValidationError) as error:
        run_config(tmp_path, **whole)
    assert [one["ctx"]["key"] for one in error.value.errors() if said in one["msg"]] == ["train.on_spike"]
