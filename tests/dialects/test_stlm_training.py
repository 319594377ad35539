"""STLM: each key of the schedule, the trainer and the run folder changes what its document says, in the run."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tests.dialects.conftest import Make, Said, changes, each_changes
from tests.dialects.stlm_runs import EXPERIMENT, own, rates, refused
from tests.dialects.stlm_runs import base as base  # a fixture
from tests.dialects.stlm_runs import place as place  # a fixture

from quintet.train.schedule import dropout_rate

DIALECT = "stlm"


@changes("trainer.decay_lr")
def test_decay(make: Make) -> None:
    made = make({"trainer.decay_lr": False, "trainer.warmup_iters": 2})
    assert rates(made) == pytest.approx([0.0, 3e-4, 6e-4, 6e-4])


@changes("trainer.lr_decay_iters")
def test_decay_iters(make: Make) -> None:
    made = make({"trainer.lr_decay_iters": 2, "trainer.optimizer.min_lr": 0.0})
    assert rates(made) == pytest.approx([6e-4, 3e-4, 0.0, 0.0])


@changes("trainer.optimizer.min_lr")
def test_min_lr(make: Make) -> None:
    assert rates(make({"trainer.optimizer.min_lr": 1e-4, "trainer.lr_decay_iters": 2}))[-2:] == pytest.approx(
        [1e-4] * 2
    )


@changes("trainer.warmup_iters")
def test_warmup(make: Make) -> None:
    made = make({"trainer.warmup_iters": 2, "trainer.optimizer.min_lr": 0.0})
    expected = [0.0, 3e-4, 6e-4, 3e-4 * (1 + math.cos(math.pi / 4))]
    assert rates(made) == pytest.approx(expected)
    assert made.rates == pytest.approx(expected)  # those that the trained run had


@changes("trainer.optimizer.warmup_iters")
def test_unread_warmup(make: Make) -> None:
    alone = make({"trainer.optimizer.warmup_iters": 2})
    assert rates(alone)[:2] == pytest.approx([0.0, 3e-4])
    both = make({"trainer.optimizer.warmup_iters": 3, "trainer.warmup_iters": 2})
    assert rates(both) == rates(make({"trainer.warmup_iters": 2}))
    assert any("STLM reads the 2 of trainer.warmup_iters" in note for note in both.loaded.notes)


@changes("trainer.lr_scheduler.name")
def test_scheduler(make: Make) -> None:
    assert rates(make({"trainer.lr_scheduler": "constant", "trainer.warmup_iters": 2})) == [6e-4] * 4
    assert rates(make({"trainer.lr_scheduler": "cosine"})) == rates(make())
    assert "did you mean 'cosine'" in refused(make, {"trainer.lr_scheduler.name": "cosin"})


@changes("trainer.lr_scheduler.params")
def test_scheduler_params(make: Make) -> None:
    made = make({"trainer.lr_scheduler": {"name": "ExponentialLR", "params": {"gamma": 0.5}}})
    assert rates(made) == pytest.approx([6e-4, 3e-4, 1.5e-4, 7.5e-5])
    assert "for PyTorch's schedulers" in refused(make, {"trainer.lr_scheduler.params": {"gamma": 0.5}})


DROPOUT = (
    *("dropout_type", "dropout", "start_dropout_p", "end_dropout_p", "start_iter", "end_iter"),
    *("dropout_trough", "dropout_peak", "num_iterations", "num_cycles"),
)


@changes(*(f"trainer.dropout_scheduler.{name}" for name in DROPOUT))
def test_dropout_schedule(make: Make) -> None:
    def rates_of(**keys: Any) -> list[float]:
        config = make({f"trainer.dropout_scheduler.{name}": value for name, value in keys.items()}).config
        rates = [dropout_rate(config.dropout_schedule, step, 4) for step in range(1, 5)]
        assert None not in rates
        return rates  # pyright: ignore[reportReturnType]

    assert rates_of(dropout_type="constant", dropout=0.1) == [0.1] * 4
    line = rates_of(dropout_type="linear", start_dropout_p=0.0, end_dropout_p=0.2, start_iter=1, end_iter=3)
    assert line == pytest.approx([0.0, 0.0, 0.1, 0.2])
    whole = rates_of(dropout_type="linear", start_dropout_p=0.0, end_dropout_p=1.0, start_iter=1, end_iter=3)
    assert whole == [0.0, 0.0, 0.5, 1.0]  # steps count from 0
    up = rates_of(dropout_type="triangle", dropout_trough=0.1, dropout_peak=0.3, num_iterations=4, num_cycles=2)
    assert up == pytest.approx([0.1, 0.3, 0.1, 0.3])
    beside = make({f"trainer.dropout_scheduler.{name}": value for name, value in BESIDE.items()})
    schedule: Any = beside.config.dropout_schedule
    assert (schedule.kind, schedule.rate) == ("constant", 0.1)
    others = [note for note in beside.loaded.notes if "STLM does not read it with dropout_type: constant" in note]
    assert len(others) == len(BESIDE) - 2


BESIDE = {
    "dropout_type": "constant",
    "dropout": 0.1,
    "start_dropout_p": 0.2,
    "end_dropout_p": 0.4,
    "start_iter": 1,
    "end_iter": 3,
    "dropout_peak": 0.3,
}


@changes("trainer.max_iters")
def test_max_iters(make: Make) -> None:
    assert make({"trainer.max_iters": 7}).run.steps == 7


@changes("trainer.trainer_type")
def test_trainer_type(make: Make) -> None:
    assert make({"trainer.trainer_type": "mock_trainer"}).config.evaluate.only
    assert EXPERIMENT in refused(make, {"trainer.trainer_type": "cascade_trainer"})


@changes("general.seed")
def test_seed(make: Make) -> None:
    first, again, different = (own(make({"general.seed": number})).embedding.weight for number in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, different)


@changes("general.device")
def test_device(make: Make) -> None:
    without = ["quintet.train.device"]
    assert make({"general.device": "cpu"}, without=without).run.compute.device.type == "cpu"
    assert make({"general.device": "cuda:0"}, without=without).config.train.device == "cuda"
    assert make({}, without=without).config.train.device == "auto"
    assert "CUDA_VISIBLE_DEVICES=1" in refused(make, {"general.device": "cuda:1"})


@changes("trainer.checkpoint_interval")
def test_checkpoints(make: Make) -> None:
    assert make({"trainer.checkpoint_interval": 1}).checkpoints == [1, 2, 3, 4]
    assert make({"trainer.checkpoint_interval": 1e9}).checkpoints == [4]


@changes("trainer.log_interval")
def test_logging_interval(make: Make) -> None:
    assert make({"trainer.log_interval": 2}).config.train.log_every == 2
    assert make().config.train.log_every == 10


@changes("general.logging.wandb_log")
def test_wandb_log(make: Make) -> None:
    logged = make({"general.logging.wandb_log": True}).config.track
    assert [track.kind for track in logged] == ["wandb"]
    assert logged[0].arguments == {"project": "SuperTinyLanguageModels"}  # pyright: ignore
    assert make().config.track == ()


@each_changes(
    "argument",
    ("general.logging.wandb_project", "project"),
    ("general.logging.wandb_run_name", "name"),
    ("general.logging.group_name", "group"),
)
def test_an_argument_of_wandb(make: Make, key: str, argument: str) -> None:
    logged = make({"general.logging.wandb_log": True, key: "mine"}).config.track[0]
    assert logged.arguments[argument] == "mine"  # pyright: ignore


@changes("general.logging.wandb_run_name")
def test_run_name(make: Make) -> None:
    made = make({"general.logging.wandb_run_name": 'NonVocab: 1M / "tied"'})
    assert made.trained.name == "NonVocab-1M-tied"


@changes("general.paths.output_dir")
def test_output_dir(make: Make) -> None:
    made = make({"general.paths.output_dir": "outputs"})
    assert made.trained == made.file.parent / "outputs" / made.config.name
    assert (made.trained / "metrics.jsonl").is_file()


@changes("general.paths.checkpoint_dir")
def test_checkpoint_dir(make: Make) -> None:
    made = make({"general.paths.checkpoint_dir": "kept", "trainer.checkpoint_interval": 2})
    assert made.checkpoints == [2, 4]
    there = made.file.parent / "kept" / made.config.name
    assert (made.trained / "checkpoints").resolve() == there.resolve()
    assert len(list(there.iterdir())) >= 2


@pytest.mark.parametrize(
    ("verb", "changes", "message"),
    [
        *(
            (verb, {"model.context_window": 100000}, "trainer.dataset: jsonl")
            for verb in ("prepare", "show-batch", "train")
        ),
        ("train", {"quintet.train.device": "mps"}, "quintet.train.device: this machine has no mps device"),
    ],
)
def test_every_command_names_the_keys_of_the_file(verb: str, changes: dict[str, Any], message: str, said: Said) -> None:
    assert [line for line in said(verb, changes) if line.startswith(message)]
