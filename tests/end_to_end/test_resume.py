from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import chdir
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.end_to_end.conftest import write_run
from tests.helpers import QUICK, records
from tests.processes import quintet_apart

from quintet.cli import main


def interrupt(folder: Path, run: Path, number: signal.Signals, *arguments: str, **how: Any) -> int:
    """Start training and send a signal as soon as the checkpoint of step 4 is whole; returns the exit code."""
    with quintet_apart(folder, "train", "run.yaml", *arguments, **how) as process:
        while not (run / "checkpoints" / "step-000004" / "state.json").exists():
            assert process.poll() is None, "the run ended before it could be interrupted"
            time.sleep(0.002)
        process.send(number)
        return process.wait()


# Enough steps that a signal after the checkpoint of step 4 always comes before the last one.
LONG = ("train.steps=60", "evaluate.every=20", "checkpoint.every=4")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """The runs of this process compute with one thread, as those in processes of their own do."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[dict[str, float]]]:
    """The records of a run of a precision that nothing interrupts."""

    @cache
    def call(precision: str) -> list[dict[str, float]]:
        folder = write_run(tmp_path_factory.mktemp("whole"))
        with chdir(folder), pytest.raises(SystemExit) as left:
            main(["train", *QUICK, "run.yaml", "name=whole", *LONG, f"train.precision={precision}"])
        assert left.value.code == 0
        return records(folder / "runs/whole")

    return call


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_a_killed_run_continues_bit_for_bit(folder: Path, quintet, whole, precision: str) -> None:
    settings = (*LONG, f"train.precision={precision}")
    assert interrupt(folder, folder / "runs/killed", signal.SIGKILL, "name=killed", *settings) == -signal.SIGKILL
    continued = quintet("train", "run.yaml", "name=killed", *settings)
    assert continued.returncode == 0, continued.stderr
    assert "continuing from step" in continued.stdout
    assert len(whole(precision)) == 60 + 3
    # Losses, norms, rates and validation, to the last bit; dropout is on.
    assert records(folder / "runs/killed") == whole(precision)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no terminal of this system sends SIGHUP")
def test_a_terminal_that_closes_ends_a_run_with_a_checkpoint_unless_nohup_started_it(folder: Path) -> None:
    hangup = signal.SIGHUP
    shell, nohup = {hangup: signal.SIG_DFL}, {hangup: signal.SIG_IGN}
    assert interrupt(folder, folder / "runs/hung", hangup, *LONG, "name=hung", handlers=shell) == 128 + hangup
    assert interrupt(folder, folder / "runs/kept", hangup, *LONG, "name=kept", handlers=nohup) == 0


def test_sigterm_ends_with_a_checkpoint_and_the_same_command_continues(folder: Path, quintet, whole) -> None:
    asked = (*LONG, "name=asked", "checkpoint.every=4")
    assert interrupt(folder, folder / "runs/asked", signal.SIGTERM, *asked) == 128 + signal.SIGTERM
    stopped = max(int(path.name[5:]) for path in (folder / "runs/asked/checkpoints").glob("step-*"))
    assert 4 <= stopped < 60
    assert quintet("train", "run.yaml", *asked).returncode == 0
    assert records(folder / "runs/asked") == whole("fp32")


def test_a_finished_run_is_left_as_it_is(folder: Path, quintet) -> None:
    assert quintet("train", "run.yaml").returncode == 0
    before = (folder / "runs/tiny/metrics.jsonl").read_bytes()
    again = quintet("train", "run.yaml")
    assert (again.returncode, "continuing from step 16" in again.stdout) == (0, True)
    assert (folder / "runs/tiny/metrics.jsonl").read_bytes() == before


def test_a_run_folder_continues_itself_and_may_become_longer(folder: Path, quintet) -> None:
    assert quintet("train", "run.yaml").returncode == 0
    longer = quintet("train", "runs/tiny", "train.steps=20")
    assert longer.returncode == 0, longer.stderr
    assert "changed since the run began: train.steps: 16 → 20" in longer.stdout
    assert max(record["step"] for record in records(folder / "runs/tiny")) == 20


def test_another_run_in_the_same_folder_is_refused_key_by_key(folder: Path, quintet) -> None:
    assert quintet("train", "run.yaml").returncode == 0
    refused = quintet("train", "run.yaml", "optimizer.lr=0.5", "model.layers=3")
    assert refused.returncode == 2
    assert "optimizer.lr: 0.001, not 0.5" in refused.stderr
    assert "model.layers: 2, not 3" in refused.stderr
    assert "choose another name" in refused.stderr


def test_a_corpus_that_changed_is_refused(folder: Path, quintet) -> None:
    assert quintet("train", "run.yaml").returncode == 0
    (folder / "corpus/00.txt").write_text("something else " * 50)
    refused = quintet("train", "run.yaml", "train.steps=20")
    assert refused.returncode == 2
    assert "the corpus is not the one it was trained with" in refused.stderr
