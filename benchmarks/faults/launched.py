"""Rows of the campaign for `quintet train --nproc`: the launcher or a worker is killed, or a worker hangs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from command import Workspace
from compare import differences
from rows import EQUAL, Outcomes

PATIENCE = 8.0  # seconds of parallel.timeout_seconds in the row of a hanging process
# Two processes, with more steps than pass before the kill.
COMMON = ("parallel={kind: ddp, timeout_seconds: 600}", "train.steps=200", "evaluate.every=50", "sample.every=100")
# A file that Python runs at its start: it makes rank 1 wait forever in step 9.
HANGS = """\
import os

if os.environ.get("RANK") == "1" and os.environ.get("FAULT"):
    import threading

    from quintet.train.engine import TorchEngine

    accumulate = TorchEngine.accumulate

    def waiting_for_nothing(self, batch, step):
        if step == 9:
            threading.Event().wait()
        return accumulate(self, batch, step)

    TorchEngine.accumulate = waiting_for_nothing
"""


def _launch(work: Workspace, name: str, *overrides: str, **environment: str) -> subprocess.Popen[str]:
    """Start the run ``name`` with `--nproc 2`."""
    python = [str(work.folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, "-m", "quintet", *work.arguments(name, *COMMON, *overrides), "--nproc", "2"],
        cwd=work.folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(python)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _whole(work: Workspace) -> Path:
    if not work.run("whole").is_dir():
        process = _launch(work, "whole")
        said, _ = process.communicate()
        assert process.returncode == 0, said
    return work.run("whole")


def _strike(work: Workspace, name: str, process: subprocess.Popen[str], victim: str) -> list[int]:
    """Kill the launcher or one of its workers after a random step, and return the process ids of the workers."""
    file, after = work.run(name) / "metrics.jsonl", work.draw.randint(5, 120)
    while not file.is_file() or file.read_bytes().count(b"\n") < after:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="ascii")
    workers = [int(number) for number in children.split()]
    os.kill(process.pid if victim == "launcher" else work.draw.choice(workers), signal.SIGKILL)
    return workers


def _lives(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _killed(work: Workspace, tries: int, victim: str) -> Outcomes:
    whole = _whole(work)
    for number in range(tries):
        name = f"{victim}-{number}"
        process = _launch(work, name)
        workers = _strike(work, name, process, victim)
        said, _ = process.communicate(timeout=200)
        end = time.monotonic() + 20
        while any(map(_lives, workers)) and time.monotonic() < end:
            time.sleep(0.05)
        problems = [f"process {one} lives on" for one in workers if _lives(one)]
        if victim == "worker" and (process.returncode != 1 or "was killed (SIGKILL)" not in said):
            problems.append(f"exit code {process.returncode}: {said.strip()[-300:]}")
        again = _launch(work, name)
        said, _ = again.communicate()
        problems += [f"does not continue: {said.strip()[-300:]}"] if again.returncode else []
        problems += differences(work.run(name), whole) if not problems else []
        yield f"FAULT: {'; '.join(problems)}" if problems else EQUAL


def killed_launcher(work: Workspace, tries: int) -> Outcomes:
    """SIGKILL of `quintet train --nproc 2` after a random step: no worker lives on; then the same command."""
    yield from _killed(work, tries, "launcher")


def killed_worker(work: Workspace, tries: int) -> Outcomes:
    """SIGKILL of one of its two workers after a random step: exit code 1, the worker is named; then the same
    command."""
    yield from _killed(work, tries, "worker")


def hanging_worker(work: Workspace, tries: int) -> Outcomes:
    """A worker that waits forever in step 9: the run ends after `parallel.timeout_seconds` and reports where each
    process was; then the same command."""
    whole = _whole(work)
    (work.folder / "sitecustomize.py").write_text(HANGS, encoding="utf-8")
    for number in range(tries):
        name = f"hang-{number}"
        process = _launch(work, name, f"parallel.timeout_seconds={PATIENCE}", FAULT="1")
        said, _ = process.communicate(timeout=200)
        problems = [] if process.returncode == 1 else [f"exit code {process.returncode}"]
        for sign in ("process 1 did not answer", "waiting_for_nothing", "process 0 was here"):
            problems += [] if sign in said else [f"it does not say {sign!r}: {said.strip()[-300:]}"]
        again = _launch(work, name)
        said, _ = again.communicate()
        problems += [f"does not continue: {said.strip()[-300:]}"] if again.returncode else []
        problems += differences(work.run(name), whole) if not problems else []
        yield (
            f"FAULT: {'; '.join(problems)}"
            if problems
            else f"ended, with the position of each process reported; {EQUAL}"
        )
