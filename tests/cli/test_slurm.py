"""The script for sbatch, run under commands that only look like SLURM's."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from tests.helpers import QUICK, Command, measured, run_values, wait_until, write_corpus

# Two "machines" are two processes of this one; a signal goes to both, as with srun.
SRUN = """#!/bin/bash
while [[ "$1" == --* ]]; do shift; done
"$@" & a=$!
"$@" & b=$!
trap 'kill -USR1 $a $b' USR1
await() { while :; do wait $1; code=$?; kill -0 $1 2>/dev/null || return $code; done; }
await $a; first=$?
await $b || exit $?
exit $first
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then printf 'localhost\\nlocalhost\\n'; else echo "$@" >> scontrol.log; fi
"""
SBATCH = """#!/bin/bash
SLURM_JOB_ID=4711 SLURM_JOB_NODELIST='host[1-2]' SLURM_CPUS_PER_TASK=1 exec bash "$1"
"""
# Stands for our torchrun: it notes how it was called and stops when it is asked, or by itself.
STEP = """#!/bin/bash
echo "$@" >> step.log
echo "$OMP_NUM_THREADS $TORCH_DISABLE_SHARE_RDZV_TCP_STORE" >> env.log
trap 'echo asked >> asked.log; exit 1' USR1
for i in {1..100}; do [ -e finish ] && exit 0; sleep 0.05; done
"""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of a user of SLURM, in a working directory of its own."""
    (tmp_path / "bin").mkdir()
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "sbatch": SBATCH, "step": STEP}.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    write_corpus(tmp_path / "corpus", "the cat sat under the mat and saw a dog " * 100)
    train = {"steps": 400, "batch_size": 8, "log_every": 1}
    values = run_values(name="job", train=train, evaluate={"every": 400}, checkpoint={"every": 400})
    values["data"]["sequence_length"] = 32
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    monkeypatch.chdir(tmp_path)
    return os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}


@pytest.fixture
def written(cluster: dict[str, str], command: Command) -> Callable[..., str]:
    """Write a script and return it."""

    def call(*options: str) -> str:
        code, out, err = command("slurm", "run.yaml", *options, "-o", "job.sbatch")
        assert (code, err) == (0, ""), err
        assert out == "wrote job.sbatch; sbatch job.sbatch\n"
        return Path("job.sbatch").read_text()

    return call


def test_the_script_says_what_was_asked_for(written) -> None:
    options = ("--nodes", "2", "--gpus-per-node", "4", "--time", "1-12:00:00", "--partition", "gpu", "--account", "me")
    script = written(*options, 'name=it\'s "one"', "train.device=auto")
    assert subprocess.run(["bash", "-n", "job.sbatch"], capture_output=True).returncode == 0
    asked = [line for line in script.splitlines() if line.startswith("#SBATCH")]
    for line in ("nodes=2", "ntasks-per-node=1", "gpus-per-node=4", "cpus-per-task=32", "time=1-12:00:00"):
        assert f"#SBATCH --{line}" in asked
    for line in ("partition=gpu", "account=me", "requeue", "signal=B:USR1@120", f"chdir={Path.cwd()}"):
        assert f"#SBATCH --{line}" in asked
    assert "--nnodes=2 --nproc-per-node=4" in script


def test_nothing_is_asked_for_that_was_not(written) -> None:
    script = written("--gpus-per-node", "2")
    assert "partition" not in script
    assert "--time" not in script
    assert "#SBATCH --gpus" not in script  # train.device is cpu


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--nodes", "3"), "train.batch_size: 8 samples cannot be spread evenly over 3"),
        (("--time", "tomorrow"), "--time: 'tomorrow'"),
        (("--account", "me; rm"), "--account: 'me; rm'"),
        (("train.batch_sze=1",), "batch_sze"),
    ],
)
def test_what_cannot_run_is_refused(cluster, command, options: tuple[str, ...], told: str) -> None:
    code, _, err = command("slurm", "run.yaml", *options)
    assert code == 2
    assert err.count("error:") == 1
    assert told in err
    assert not list(Path().glob("*.sbatch"))


def test_a_script_that_was_changed_by_hand_is_kept(written, command) -> None:
    script = written()
    assert written() == script
    Path("job.sbatch").write_text(script + "# mine\n")
    code, _, err = command("slurm", "run.yaml", "-o", "job.sbatch")
    assert code == 2
    assert "job.sbatch: exists" in err
    assert Path("job.sbatch").read_text().endswith("# mine\n")


def test_the_notice_follows_from_the_bytes_of_a_checkpoint(written, command, monkeypatch) -> None:
    def notice(*options: str) -> tuple[int, int]:
        Path("job.sbatch").unlink(missing_ok=True)
        lines = written("--nodes", "1", *options).splitlines()
        asked = next(line for line in lines if "signal=B:USR1@" in line)
        waits = next(line for line in lines if line.startswith("export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="))
        return int(asked.partition("@")[2]), int(waits.partition("=")[2].partition(" ")[0])

    assert notice() == (120, 120)
    assert notice("--notice", "33") == (33, 33)
    large = ["model.layers=32", "model.width=4096", "model.attention.heads=32"]
    code, planned, _ = command("plan", "run.yaml", *large, "--json")
    assert code == 0
    size = json.loads(planned)["checkpoint_bytes"]
    assert size > 60e9
    found = notice(*large)
    assert found[0] == found[1] == 60 + math.ceil(size / 5e8)
    assert f"last checkpoint of {size / 1e9:.3g} GB" in Path("job.sbatch").read_text()


def stand_in(script: str) -> None:
    """Let the script start `step` in place of torchrun."""
    python = next(line for line in script.splitlines() if line.startswith("python="))
    Path("job.sbatch").write_text(script.replace(python, f"python={Path('bin/step').resolve()}"))


def until(path: str, lines: int) -> None:
    """Wait until a file has so many lines."""
    wait_until(lambda: Path(path).exists() and len(Path(path).read_text().splitlines()) >= lines)


def test_ahead_of_its_end_the_job_asks_the_run_to_stop_and_queues_again(cluster, written) -> None:
    stand_in(written("--nodes", "2", "--cpus-per-gpu", "3", "name=a b"))
    job = subprocess.Popen(["sbatch", "job.sbatch"], env=cluster | {"OMP_NUM_THREADS": ""})
    until("env.log", 2)
    job.send_signal(signal.SIGTERM)  # SLURM itself tells the processes of the run
    time.sleep(0.2)
    assert job.poll() is None
    job.send_signal(signal.SIGUSR1)
    assert job.wait(timeout=60) == 0
    assert Path("asked.log").read_text() == "asked\n" * 2
    assert Path("scontrol.log").read_text() == "requeue 4711\n"
    first, second = Path("step.log").read_text().splitlines()
    assert first == second
    assert "--rdzv-endpoint=localhost:24711 --rdzv-id=4711.0" in first
    assert first.endswith("-m quintet train run.yaml name=a b")
    assert Path("env.log").read_text().splitlines() == ["3 1", "3 1"]


@pytest.mark.parametrize(("ending", "code"), [("touch finish", 0), ("exit 5", 5)])
def test_a_run_that_ends_by_itself_is_not_queued_again(cluster, written, ending: str, code: int) -> None:
    stand_in(written("--nodes", "2"))
    step = Path("bin/step").read_text()
    Path("bin/step").write_text(step.replace("for i in", f"{ending}\nfor i in"))
    assert subprocess.run(["sbatch", "job.sbatch"], env=cluster).returncode == code
    assert not Path("scontrol.log").exists()


@pytest.mark.slow
def test_a_job_that_is_interrupted_has_the_losses_of_one_that_is_not(cluster, written, command) -> None:
    settings = ("train.steps=40", "evaluate.every=40")
    whole = subprocess.run(
        [sys.executable, "-m", "quintet", "train", *QUICK, "run.yaml", "name=whole", "--nproc", "2", *settings],
        env=cluster,
    )
    assert whole.returncode == 0
    # The run is slow enough to be interrupted, and takes the same steps.
    Path("sitecustomize.py").write_text(
        "import os, time\n"
        "if 'RANK' in os.environ:\n"
        "    from quintet.train.engine import TorchEngine\n"
        "    whole = TorchEngine.accumulate\n"
        "    TorchEngine.accumulate = lambda *args: (time.sleep(0.25), whole(*args))[1]\n"
    )
    written("--nodes", "2", *settings)
    slow = cluster | {"PYTHONPATH": str(Path.cwd()), "PYTHONUNBUFFERED": "1"}
    with Path("job.out").open("w") as out:
        job = subprocess.Popen(["sbatch", "job.sbatch"], env=slow, stdout=out, stderr=out)
        until("runs/job/metrics.jsonl", 3)
        job.send_signal(signal.SIGUSR1)
        assert job.wait(timeout=120) == 0
    assert "stopped after step" in Path("job.out").read_text()
    assert Path("scontrol.log").read_text() == "requeue 4711\n"
    again = subprocess.run(
        ["sbatch", "job.sbatch"], env=cluster | {"SLURM_RESTART_COUNT": "1"}, capture_output=True, text=True
    )
    assert again.returncode == 0, again.stderr
    assert "continuing from step" in again.stdout
    assert measured("runs/job") == measured("runs/whole")
    assert len(measured("runs/job")) == 40
