"""Real processes that are started, asked to stop, killed, and that fail."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.helpers import QUICK, measured, records, wait_until
from tests.train.parallel.conftest import train_several

from quintet.train.parallel.launch import outwait

# Checkpoints are written in the background, so that a step may end before that of the step ahead of it is whole.
KILL = """
            while not os.path.exists("runs/{run}/checkpoints/step-{saved:06d}/state.json"):
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)"""
LONG = {"train": {"steps": 12}, "checkpoint": {"every": 4}}


@pytest.mark.slow
def test_a_run_whose_process_is_killed_goes_on_from_its_last_checkpoint(run_file, launch, faulty, tmp_path) -> None:
    file = run_file("hit", **LONG)
    killed = launch(2, file, "--restarts", "1", **faulty(1, 9, KILL.format(run="hit", saved=8)))
    assert killed.returncode == 0, killed.stderr
    assert killed.stderr.count("process 1 was killed (SIGKILL)") == 1
    assert killed.stderr.count("starting again from the last checkpoint") == 1
    assert "continuing from step 8" in killed.stdout
    train_several(1, file, {"whole": []})
    assert measured(tmp_path / "runs/hit") == pytest.approx(measured(tmp_path / "runs/whole"), abs=2e-5)


@pytest.mark.slow
def test_a_run_that_is_stopped_and_then_killed_has_the_losses_of_one_that_is_not(
    run_file, launch, faulty, tmp_path
) -> None:
    assert launch(2, run_file("whole", **LONG)).returncode == 0
    file = run_file("hit", **LONG)
    # One process has torchrun's agent, its parent, asked to stop, and takes its time so that the agent can do so.
    stopped = launch(2, file, **faulty(1, 3, "os.kill(os.getppid(), signal.SIGTERM); time.sleep(2)"))
    assert stopped.returncode == 128 + signal.SIGTERM, stopped.stderr
    assert "the same command continues from there" in stopped.stdout
    killed = launch(2, file, "--restarts", "1", **faulty(1, 9, KILL.format(run="hit", saved=8)))
    assert killed.returncode == 0, killed.stderr
    assert killed.stderr.count("process 1 was killed (SIGKILL)") == 1
    assert killed.stderr.count("starting again from the last checkpoint") == 1
    assert "continuing from step 8" in killed.stdout
    assert records(tmp_path / "runs/hit") == records(tmp_path / "runs/whole")
    assert len(records(tmp_path / "runs/whole")) == 12 + 2  # a line a step and one a validation


def test_a_bug_in_one_process_is_told_once_with_its_number(run_file, launch, faulty) -> None:
    """`launch` gives up before the ten minutes that the other process would wait for this one."""
    failed = launch(2, run_file(), **faulty(1, 3, 'raise ValueError("planned")'))
    assert failed.returncode == 1
    assert failed.stderr.count("Traceback (most recent call last)") == 1, failed.stderr
    assert failed.stderr.count("error: process 1 failed:") == 1
    assert failed.stderr.rstrip().endswith("ValueError: planned")
    assert "elastic" not in failed.stderr


@pytest.mark.slow
def test_what_one_process_alone_cannot_do_is_one_line_with_its_number(run_file, launch, faulty) -> None:
    problem = 'from quintet.errors import UserError; raise UserError("train.here: planned; mend it")'
    failed = launch(2, run_file(), "--restarts", "2", **faulty(1, 3, problem))
    assert failed.returncode == 2
    assert errors(failed.stderr) == ["error: process 1: train.here: planned; mend it"]
    assert "starting again" not in failed.stderr  # it would fail again


@pytest.mark.slow
def test_what_no_process_can_do_is_one_line(run_file, launch) -> None:
    failed = launch(2, run_file(), "train.batch_size=7")
    assert failed.returncode == 2
    assert len(errors(failed.stderr)) == 1
    assert errors(failed.stderr)[0].startswith("error: train.batch_size: 7 samples cannot be spread evenly")


def test_what_is_wrong_in_the_run_file_is_said_before_anything_is_started(run_file, command) -> None:
    code, out, err = command("train", str(run_file()), "--nproc", "2", "train.batch_sze=7")
    assert (code, out) == (2, "")
    assert err.count("error:") == 1
    assert "batch_sze" in err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--nproc", "two"), "--nproc: two is neither"),
        (("--nproc", "0"), "--nproc: 0 is neither"),
        (("--nproc", "auto"), "give a number"),
        (("--restarts", "1"), "goes with --nproc"),
    ],
)
def test_options_that_mean_nothing_are_refused(run_file, command, options: tuple[str, ...], told: str) -> None:
    code, _, err = command("train", str(run_file()), *options)
    assert code == 2
    assert err.count("error:") == 1
    assert told in err


@pytest.mark.slow
def test_plain_torchrun_shows_the_line_and_restarts_from_the_last_checkpoint(
    run_file, torchrun, faulty, tmp_path
) -> None:
    assert torchrun(2, "train", run_file("whole", **LONG)).returncode == 0
    killed = torchrun(
        2,
        "train",
        run_file("hit", **LONG),
        options=("--standalone", "--max-restarts", "1"),
        TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1",
        **faulty(1, 6, KILL.format(run="hit", saved=4)),
    )
    assert killed.returncode == 0, killed.stderr
    assert "continuing from step 4" in killed.stdout
    assert records(tmp_path / "runs/hit") == records(tmp_path / "runs/whole")
    problem = 'from quintet.errors import UserError; raise UserError("train.here: planned; mend it")'
    failed = torchrun(2, "train", run_file("user"), **faulty(1, 3, problem))
    assert failed.returncode == 1
    assert errors(failed.stderr) == ["error: process 1: train.here: planned; mend it"]
    root = failed.stderr.partition("Root Cause")[2]
    assert "rank      : 1" in root
    assert "train.here: planned; mend it" in root


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "stands"), [("os.kill(os.getpid(), signal.SIGSTOP)", False), ("time.sleep(600)", True)]
)
def test_a_process_that_hangs_ends_the_run(run_file, launch, faulty, how: str, stands: bool) -> None:
    file = run_file(parallel={"kind": "ddp", "timeout_seconds": 5})
    failed = launch(2, file, **faulty(1, 3, how))
    assert failed.returncode == 1
    assert errors(failed.stderr) == [
        "error: process 1 did not answer the others for parallel.timeout_seconds, and was killed"
    ]
    hanging, _, waiting = failed.stderr.partition("process 0 was here:")
    assert ("process 1 was here:" in hanging, "sitecustomize.py" in hanging) == (stands, stands)
    assert "Timed out waiting" in waiting


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1])
def test_other_signals_stop_with_a_checkpoint_too(run_file, start, tmp_path: Path, number: signal.Signals) -> None:
    file = run_file("asked", train={"steps": 4000, "log_every": 10}, evaluate={"every": 4000})
    process = start([sys.executable, "-m", "quintet", "train", *QUICK, str(file), "--nproc", "2"])
    said = lines_until(process, "step 20/")
    process.send_signal(number)
    rest, _ = process.communicate(timeout=100)
    assert process.returncode == 128 + number
    assert (said + rest).count("stopped after step") == 1
    assert "Traceback" not in said + rest
    step = int(rest.partition("stopped after step ")[2].split()[0])
    assert (tmp_path / f"runs/asked/checkpoints/step-{step:06d}/state.json").exists()


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells a process of its parent's death")
def test_no_process_outlives_a_launcher_that_is_killed(run_file, start, tmp_path: Path) -> None:
    file = run_file("orphan", train={"steps": 100000, "log_every": 10}, evaluate={"every": 100000})
    process = start([sys.executable, "-m", "quintet", "train", *QUICK, str(file), "--nproc", "2"])
    lines_until(process, "step 20/")
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(workers) == 2
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)  # their output ends when the last of them does
    wait_until(lambda: not any(map(is_alive, workers)))


def is_alive(pid: str) -> bool:
    """Whether a process runs; one that has ended may wait for somebody to take notice."""
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def errors(stderr: str) -> list[str]:
    """The lines that tell the user what is wrong."""
    return [line for line in stderr.splitlines() if line.startswith("error:")]


def lines_until(process: subprocess.Popen[str], begin: str) -> str:
    """What ``process`` says up to a line that begins so."""
    said = ""
    assert process.stdout is not None
    for line in process.stdout:
        said += line
        if line.startswith(begin):
            return said
    raise AssertionError(f"no line begins with {begin!r}:\n{said}")


SLOW = """\
import os, signal, time

def mark(name):
    open(f'{name}-{os.environ["RANK"]}', "w").close()

asked = []
signal.signal(signal.SIGUSR1, lambda *_: asked.append(1))
mark("begun")
while not asked:
    time.sleep(0.01)
mark("asked")
while not os.path.exists("leave"):
    time.sleep(0.01)
mark("whole")
"""


class Context:
    """The processes of an agent, which end ``needed`` seconds after they were asked, or are killed."""

    def __init__(self, needed: int) -> None:
        self.needed, self.end = needed, ""

    def close(self, death_sig: signal.Signals | None = None, timeout: int = 30) -> None:
        """As PContext: ask, wait, kill whoever is left."""
        if not self.end:
            self.end = f"{death_sig} ended" if timeout >= self.needed else "killed"


class Agent:
    """As the agent up to torch 2.12 is, which cannot be told how long to wait."""

    def __init__(self, needed: int) -> None:
        self._pcontext = Context(needed)

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM) -> None:
        self._pcontext.close(death_sig)


def test_an_agent_that_knows_half_a_minute_alone_waits_for_a_checkpoint() -> None:
    def end(agent: type[Agent], *asked: signal.Signals) -> str:
        one = agent(needed=200)
        one._shutdown(*asked)
        return one._pcontext.end

    class Patient(Agent):
        pass

    outwait(Patient, 300)
    assert end(Agent, signal.SIGUSR1) == end(Agent) == "killed"
    assert end(Patient, signal.SIGUSR1) == f"{signal.SIGUSR1} ended"
    assert end(Patient) == "killed"  # the others of a process that failed wait for what never comes


@pytest.mark.slow
def test_torchrun_by_our_name_waits_as_long_as_the_environment_says(start, tmp_path) -> None:
    """It starts processes that, when they are asked to end, do so after the test has let them."""
    program = tmp_path / "slow.py"
    program.write_text(SLOW)
    options = ("--nproc-per-node=2", "--standalone", "--signals-to-handle=SIGUSR1,SIGTERM")

    def there(name: str) -> list[bool]:
        return [(tmp_path / f"{name}-{rank}").exists() for rank in (0, 1)]

    for seconds, whole in (("1", False), ("60", True)):
        for file in tmp_path.glob("*-[01]"):
            file.unlink()
        line = [sys.executable, "-m", "quintet.train.parallel.launch", *options, str(program)]
        process = start(line, TORCH_ELASTIC_SHUTDOWN_TIMEOUT=seconds)
        while not all(there("begun")):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGUSR1)
        while not all(there("asked")):
            time.sleep(0.01)
        if whole:
            (tmp_path / "leave").touch()
        process.communicate(timeout=120)
        assert there("whole") == [whole, whole], seconds
