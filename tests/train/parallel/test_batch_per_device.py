"""A batch that is counted for each device: settled when the run starts, and kept when it continues on others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.helpers import QUICK, Command, measured
from tests.processes import run_several
from tests.train.parallel.conftest import surroundings, train_several

from quintet.cli import main
from quintet.config.load import load_run_config, read_run_config
from quintet.errors import UserError
from quintet.train.parallel.strategy import share_of_batch

EACH = {"batch_size": None, "batch_size_per_device": 4, "micro_batch_size": 2}


def test_two_processes_take_twice_the_batch_and_one_that_continues_keeps_it(
    run_file: Callable[..., Path],
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flat = {"kind": "constant"}  # the rate of a step is the same however long the run is
    each = run_file("each", train=EACH, schedule=flat)
    whole = run_file("whole", train={"batch_size": 8, "micro_batch_size": 2}, schedule=flat)
    line = ["train", *QUICK, str(each), "train.steps=3"]
    first, second = run_several(2, each.parent, surroundings(), main, line)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert "batch: 8 samples a step, 4 on each of 2 devices" in first.stdout
    monkeypatch.chdir(each.parent)
    code, said, error = command("train", str(each), "train.steps=6")
    assert code == 0, error
    assert "4 on each of the 2 devices of train.batch_devices; the one that there is does the same batch" in said
    train_several(1, whole, {"whole": ["train.steps=6"]})
    kept = read_run_config(each.parent / "runs" / "each")
    assert (kept.batch.samples, kept.train.batch_size_per_device, kept.train.batch_devices) == (8, 4, 2)
    losses = {name: measured(each.parent / "runs" / name) for name in ("each", "whole")}
    assert losses["each"] == pytest.approx(losses["whole"], abs=1e-5)
    assert len(losses["whole"]) == 6


def test_the_batch_is_settled_by_the_devices(run_file: Callable[..., Path]) -> None:
    config = load_run_config([run_file(train=EACH)]).config
    assert config.batch.samples == 4
    for devices in (1, 2, 8):
        settled = config.on_devices(devices)
        assert settled.batch.samples == 4 * devices
        assert settled.on_devices(3) == settled
        own = share_of_batch(settled.batch, devices)
        assert (own.samples, own.micro_batch_size, own.accumulation) == (4, 2, 2)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"batch_size": 8, "batch_size_per_device": 4}, "train.batch_size_per_device: give batch_size or"),
        ({"batch_devices": 2}, "train.batch_devices: needs batch_size_per_device"),
        ({**EACH, "accumulation": 3}, "train.accumulation: micro-batches of 2 × 3 passes"),
    ],
)
def test_contradictions_are_refused(run_file: Callable[..., Path], train: dict[str, int], message: str) -> None:
    file = run_file(train=train)
    with pytest.raises(UserError, match=message.split(":")[1][:20]) as error:
        load_run_config([file])
    assert any(message in problem for problem in error.value.problems)


def test_a_run_of_the_same_batch_in_other_words_is_continued(
    run_file: Callable[..., Path], train: Callable[..., str], tmp_path: Path
) -> None:
    del train  # it stands for the folder of the test
    from quintet.train.run_folder import find_run_folder, settle_batch, write_run_file

    runs = f"runs_dir={tmp_path / 'runs'}"
    old = load_run_config(
        [run_file("same", train={"batch_size": None, "micro_batch_size": 2, "accumulation": 4})], [runs]
    )
    write_run_file(old.config, tmp_path / "runs" / "same", None, "fp32")
    now = settle_batch(load_run_config([run_file("same", train=EACH)], [runs]).config, devices=1)
    assert now.batch.samples == 8
    folder, changes = find_run_folder(now)
    assert folder == tmp_path / "runs" / "same"
    assert any(change.startswith("train.batch_size_per_device") for change in changes)


def test_deepspeeds_settings_without_a_batch_are_those_of_each_device(run_file: Callable[..., Path]) -> None:
    ds = {"train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 3}
    config = load_run_config(
        [run_file(train={"batch_size": None}, parallel={"kind": "deepspeed", "config": ds})]
    ).config
    assert config.on_devices(4).batch.samples == 2 * 3 * 4
