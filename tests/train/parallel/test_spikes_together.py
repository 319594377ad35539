"""A spike of the loss in two processes: both go back to the same checkpoint and leave the same batches out."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.helpers import measured, records
from tests.processes import run_several
from tests.train.parallel.conftest import Finished, surroundings, write_run_file
from tests.train.parallel.several_runs import train_cases

from quintet.train.checkpoint import checkpoint_steps

pytestmark = pytest.mark.timeout(900)
BAD = [14, 19]  # as in tests/train/test_spikes.py: checkpoints come each 4 steps, and losses are known from step 6 on
STEPS = 24
DDP, FSDP, PLAIN = "parallel.kind=ddp", "parallel.kind=fsdp", "train.on_spike=null"
# Run by each process as it starts: the batches of BAD have other targets, or none where no spike is looked for; and
# one process is killed as it comes to KILL, the first time.
PATCH = """\
import dataclasses, os, signal
from pathlib import Path

if "RANK" in os.environ:
    import numpy as np
    import torch

    from quintet.config.documents import IGNORED
    from quintet.train import spikes
    from quintet.train.checkpoint import Checkpointer
    from quintet.track.composite import CompositeTracker
    from quintet.train.run import Run

    whole, scaler = Run.batch, torch.amp.GradScaler

    def batch(self, step):
        found = whole(self, step)
        if step not in {bad}:
            return found
        if self.config.train.on_spike is None:
            return dataclasses.replace(found, targets=np.full_like(found.targets, IGNORED), valid=0)
        return dataclasses.replace(found, targets=np.full_like(found.targets, 7))

    def killed_first(function):
        def call(*arguments):
            mark = Path({mark!r})
            if os.environ["RANK"] == os.environ["KILLED"] and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments)
        return call

    Run.batch = batch
    homes = {{"load_training": spikes, "go_back": CompositeTracker, "_amend": Checkpointer}}
    if kill := os.environ.get("KILL"):
        setattr(homes[kill], kill, killed_first(getattr(homes[kill], kill)))
    if "SCALED" in os.environ:
        class Scaled(scaler):
            def __init__(self, device, enabled):
                super().__init__(device, 4.0, growth_interval=3)

        torch.amp.GradScaler = Scaled
"""


@pytest.fixture
def patched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment in which processes read PATCH."""
    folder = tmp_path / "patch"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(PATCH.format(bad=BAD, mark=str(tmp_path / "killed")))
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    monkeypatch.setenv("PYTHONPATH", path)


def spiking(corpus: Path, folder: Path, **sections: Any) -> Path:
    """Write the file of a run that looks for spikes."""
    values: dict[str, Any] = {
        "model": {"layers": 2, "width": 32, "residual_dropout": 0.1},
        "train": {"steps": STEPS, "batch_size": 8, "log_every": 5, "on_spike": {"window": 5, "threshold": 6}},
        "evaluate": {"every": 8},
        "checkpoint": {"every": 4},
        "sample": {"prompts": []},
        "optimizer": {"kind": "adamw", "lr": 0.01},
    }
    return write_run_file(corpus, folder, **values | sections)


def progress(run: Path) -> dict[str, Any]:
    """The facts in the last checkpoint."""
    last = run / f"checkpoints/step-{checkpoint_steps(run / 'checkpoints')[-1]:06d}"
    return json.loads((last / "state.json").read_text("utf-8"))["progress"]


def weights(run: Path) -> dict[str, str]:
    """The hashes of the files of the last checkpoint: weights and averages."""
    last = run / f"checkpoints/step-{checkpoint_steps(run / 'checkpoints')[-1]:06d}"
    files = json.loads((last / "state.json").read_text("utf-8"))["files"]
    return {name: one["sha256"] for name, one in files.items() if name.endswith(".distcp")}


def train_patched(patch: str, file: Path, cases: dict[str, list[str]]) -> None:
    """Train ``cases`` of ``file`` in this process, after ``patch``."""
    exec(patch, {})
    train_cases(file, cases)


def without_rollbacks(run: Path) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "train/rollbacks"} for row in records(run)]


@pytest.mark.parametrize("kind", [DDP, pytest.param(FSDP, marks=pytest.mark.slow)])
def test_two_processes_go_back_as_one_and_leave_the_same_batches_out(corpus: Path, tmp_path: Path, kind: str) -> None:
    cases, patch = {"back": [kind], "masked": [kind, PLAIN]}, PATCH.format(bad=BAD, mark="")
    done = run_several(2, tmp_path, surroundings(), train_patched, patch, spiking(corpus, tmp_path), cases)
    assert all(one.returncode == 0 for one in done), done[0].stderr[-3000:]
    back, masked = (tmp_path / "runs" / name for name in cases)
    assert progress(back)["spikes"] == BAD
    assert measured(back, "train/rollbacks")[-1] == 2
    steps = [row["step"] for row in records(back) if "train/loss" in row]
    assert steps == [step for step in range(1, STEPS + 1) if step not in BAD]
    # Bit for bit as if the batches had no target, in each process's part.
    assert without_rollbacks(back) == records(masked)
    assert json.loads((back / "digests.json").read_text()) == json.loads((masked / "digests.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "kill", "rank"),
    [(DDP, "load_training", 1), (DDP, "_amend", 0), (FSDP, "load_training", 0), (FSDP, "go_back", 0)],
)
def test_a_kill_while_two_processes_go_back_changes_nothing(
    corpus: Path,
    tmp_path: Path,
    patched: None,
    torchrun: Callable[..., Finished],
    kind: str,
    kill: str,
    rank: int,
) -> None:
    scaled = {"SCALED": "1"} if kind == DDP else {}
    file = spiking(corpus, tmp_path)
    killed = torchrun(2, "train", file, kind, "name=killed", KILL=kill, KILLED=str(rank), **scaled)
    assert killed.returncode != 0
    assert (tmp_path / "killed").exists()
    assert "Traceback" not in killed.stdout
    whole = torchrun(2, "train", file, kind, "name=whole", **scaled)
    again = torchrun(2, "train", file, kind, "name=killed", **scaled)
    assert (whole.returncode, again.returncode) == (0, 0), again.stderr[-3000:]
    whole_run, killed_run = tmp_path / "runs/whole", tmp_path / "runs/killed"
    assert records(killed_run) == records(whole_run)
    assert weights(killed_run) == weights(whole_run)
    found, expected = progress(killed_run), progress(whole_run)
    assert found["spikes"] == BAD
    assert found["scaler"] == expected["scaler"]
    assert (found["scaler"] is not None) == (kind == DDP)
    assert (found["losses"], found["skipped_steps"]) == (expected["losses"], expected["skipped_steps"])
