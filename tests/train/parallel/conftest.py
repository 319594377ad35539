"""Runs in several processes, on gloo, as a user starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import chdir
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.helpers import QUICK, free_port, merge_sections, run_values, write_corpus
from tests.processes import run_several
from tests.train.parallel.several_runs import train_cases

Finished = subprocess.CompletedProcess[str]
LONGEST = 240  # seconds; no run here takes a tenth of it on a machine that does nothing else


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a few files of words; their token stores are in ``cache`` beside it."""
    return write_corpus(tmp_path_factory.mktemp("parallel") / "corpus", words=600)


@pytest.fixture
def run_file(corpus: Path, tmp_path: Path) -> Callable[..., Path]:
    """`write_run_file` in the folder of the test, which is that of `torchrun` and `launch`."""
    return partial(write_run_file, corpus, tmp_path)


def write_run_file(corpus: Path, folder: Path, name: str = "tiny", **sections: Any) -> Path:
    """Write ``NAME.yaml`` of a tiny run, with ``sections`` merged as in `merge_sections`, and return its path."""
    tiny: dict[str, Any] = {
        "data": {"sequence_length": 32},
        "model": {"layers": 2, "width": 32},
        "train": {"steps": 6, "batch_size": 8, "log_every": 1},
        "evaluate": {"every": 6},
        "checkpoint": {"every": 2},
        "sample": {"prompts": [""], "max_tokens": 8},
    }
    values = run_values(corpus.parent, name=name, runs_dir="runs", **merge_sections(tiny, sections))
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values), "utf-8")
    return path


def surroundings(**more: str) -> dict[str, str]:
    """Return the environment of a command: that of the tests without torchrun's variables, one thread a process."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    kept = {name: value for name, value in os.environ.items() if name not in names and not name.startswith("TORCHEL")}
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"} | more


def train_several(
    processes: int, file: Path, cases: dict[str, list[str]], apart: bool = False, gloo: bool = False
) -> str:
    """Train the run of ``file`` in its folder with each of ``cases`` (name: overrides) in ``processes`` processes.

    A single process is that of the test unless ``apart``; ``gloo`` goes to `train_cases`. Returns what other processes
    printed.
    """
    if processes == 1 and not apart:
        with chdir(file.parent):
            train_cases(file, cases)
        return ""
    done = run_several(processes, file.parent, surroundings(), train_cases, file, cases, gloo)
    assert all(one.returncode == 0 for one in done), "\n".join(one.stderr[-3000:] for one in done)
    return "".join(one.stdout + one.stderr for one in done)


def torchrun_command(processes: int, *options: str) -> list[str]:
    """Return the command line of torchrun for ``processes`` of this machine, up to the program's name."""
    own = ("--nproc_per_node", str(processes), "--master_port", str(free_port()))
    return [sys.executable, "-m", "torch.distributed.run", *own, *options]


@pytest.fixture
def torchrun(tmp_path: Path) -> Callable[..., Finished]:
    """``torchrun(2, "train", file, …)`` runs the command of Quintet in two processes. ``options`` are torchrun's own;
    ``env`` is added to the environment."""

    def call(processes: int, *arguments: str | Path, options: tuple[str, ...] = (), **env: str) -> Finished:
        quick = QUICK if arguments[0] == "train" else ()
        line = [*torchrun_command(processes, *options), "-m", "quintet", arguments[0], *quick, *map(str, arguments[1:])]
        return subprocess.run(
            line, cwd=tmp_path, env=surroundings(**env), capture_output=True, text=True, timeout=LONGEST
        )

    return call


@pytest.fixture
def launch(tmp_path: Path) -> Callable[..., Finished]:
    """``launch(2, file, "train.steps=3", …)`` runs `quintet train FILE --nproc 2 …`."""

    def call(processes: int | str, file: Path, *overrides: str, **env: str) -> Finished:
        line = [sys.executable, "-m", "quintet", "train", *QUICK, str(file), "--nproc", str(processes), *overrides]
        return subprocess.run(
            line, cwd=tmp_path, env=surroundings(**env), capture_output=True, text=True, timeout=LONGEST
        )

    return call


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """``start(line, …)`` starts a command and returns; after the test it is killed with all that it has started."""
    begun: list[subprocess.Popen[str]] = []
    mark = f"QUINTET_TEST={tmp_path}"

    def call(line: list[str], **env: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            line,
            cwd=tmp_path,
            env=surroundings(**env, QUINTET_TEST=str(tmp_path)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        begun.append(process)
        return process

    yield call
    end_marked(mark)
    for process in begun:
        process.communicate()


FAULT = """\
import os, signal, sys, time

if os.environ.get("RANK") == "{rank}":
    from quintet.train.engine import TorchEngine

    whole = TorchEngine.accumulate

    def accumulate(self, batch, step):
        if step == {step} and not os.path.exists("{mark}"):
            open("{mark}", "w").close()
            {what}
        return whole(self, batch, step)

    TorchEngine.accumulate = accumulate
"""


@pytest.fixture
def faulty(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """``faulty(1, 5, "raise ValueError()")`` returns the environment in which process 1 does this once before step 5;
    steps 1 and 2 are also those of the dry run."""

    def call(rank: int, step: int, what: str) -> dict[str, str]:
        folder = tmp_path / "faults"
        folder.mkdir(exist_ok=True)
        text = FAULT.format(rank=rank, step=step, what=what, mark=folder / f"{rank}-{step}.done")
        (folder / "sitecustomize.py").write_text(text)
        return {"PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])}

    return call


def end_marked(mark: str) -> None:
    """Kill every process with ``mark`` in its environment, whatever process group or session it is in."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if mark.encode() in (entry / "environ").read_bytes().split(b"\0"):
                    os.kill(int(entry.name), 9)
            except OSError:  # it has ended, or is another user's
                continue
