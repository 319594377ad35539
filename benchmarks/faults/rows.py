"""Rows of the campaign: kills, signals, full disks, two commands at once, and failing trackers and servers."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from command import STEPS, Ended, Workspace, at_event, kill_after, kill_at
from compare import damaged_checkpoints, differences
from servers import FAILURES, MLFLOW, SLOW, WANDB, failing_server

Outcomes = Iterator[str]  # one per try; a fault of Quintet starts with FAULT
EQUAL, REFUSED = "continued, equal bit for bit", "refused in one line"


def uninterrupted(work: Workspace, name: str = "whole", *overrides: str) -> Path:
    """Return the folder of the reference run without faults, trained on the first call."""
    if not work.run(name).is_dir():
        ended = work.train(name, *overrides)
        assert ended.code == 0, ended.said
    return work.run(name)


def continued(work: Workspace, name: str, *overrides: str) -> str:
    """Run the same command again, compare the result with the reference, and return the outcome."""
    ended = work.train(name, *overrides)
    if ended.code != 0 or ended.problem:
        return f"FAULT: does not continue ({ended.code}): {ended.problem or ended.said.strip()[-300:]}"
    problems = differences(work.run(name), uninterrupted(work))
    for folder in (work.run(name), work.folder / f"cache-{name}"):
        shutil.rmtree(folder, ignore_errors=bool(problems))
    return f"FAULT: {'; '.join(problems)}" if problems else EQUAL


def count_events(work: Workspace) -> list[str]:
    """Return the file events of a whole run in order."""
    file = work.folder / "events"

    def note(_: int, event: str) -> None:
        with file.open("a", encoding="utf-8") as out:
            out.write(event.replace("\n", " ") + "\n")

    file.unlink(missing_ok=True)
    ended = work.train("counted", fault=lambda: at_event(note))
    assert ended.code == 0, ended.said
    return file.read_text(encoding="utf-8").splitlines()


def _killed(work: Workspace, name: str, ended: Ended) -> list[str]:
    """Return the problems after a kill: an unexpected exit code, or a damaged checkpoint."""
    if ended.code in (0, -signal.SIGKILL, -signal.SIGPROF) and not ended.problem:
        return damaged_checkpoints(work.run(name))
    return [f"({ended.code}) {ended.problem or ended.said.strip()[-300:]}"]


def kills(work: Workspace, tries: int) -> Outcomes:
    """Up to five kills of a run, each at a random file event or CPU time, then the same command."""
    events = len(count_events(work))
    for number in range(tries):
        name, problems = f"kills-{number}", list[str]()
        for _ in range(work.draw.randint(1, 5)):
            fault = _random_kill(work.draw, events)
            problems += _killed(work, name, work.train(name, fault=fault))
        found = continued(work, name)
        yield f"FAULT: {'; '.join(problems)}" if problems else found


def _random_kill(draw: random.Random, events: int) -> Callable[[], None]:
    number, seconds = draw.randint(1, events), draw.uniform(0.02, 1.2)
    return (lambda: kill_at(number)) if draw.random() < 0.5 else (lambda: kill_after(seconds))


def kills_two(work: Workspace, tries: int) -> Outcomes:
    """Up to four kills of one of two processes, or of both, then the same command in two processes."""
    whole = work.run("whole-two")
    assert all(ended.code == 0 for ended in work.train_two("whole-two"))
    events = len(count_events(work))
    for number in range(tries):
        name, problems = f"two-{number}", list[str]()
        for _ in range(work.draw.randint(1, 4)):
            victims = work.draw.choice([(0,), (1,), (0, 1)])
            ended = work.train_two(name, victims, _random_kill(work.draw, events))
            problems += [f"{one.problem}" for one in ended if one.code in (0, 2) and one.problem]
            problems += damaged_checkpoints(work.run(name))
        last = work.train_two(name)
        if any(one.code for one in last):
            problems.append(f"does not continue: {[one.said.strip()[-300:] for one in last]}")
        else:
            problems += differences(work.run(name), whole)
        yield f"FAULT: {'; '.join(problems)}" if problems else EQUAL


def events(work: Workspace, tries: int) -> Outcomes:
    """A kill before each file event of a run, or before evenly spaced ones; then the same command."""
    there = count_events(work)
    for number in evenly(len(there), tries):
        name = f"event-{number}"
        problems = _killed(work, name, work.train(name, fault=lambda number=number: kill_at(number + 1)))
        found = f"FAULT: {'; '.join(problems)}" if problems else continued(work, name)
        yield f"{found} (event {number + 1}: {there[number]})" if found.startswith("FAULT") else found


def evenly(count: int, tries: int) -> list[int]:
    """Return at most ``tries`` evenly spaced numbers below ``count``."""
    return sorted({at * count // tries for at in range(tries)})


def first_moments(work: Workspace, tries: int) -> Outcomes:
    """Three kills at random file events before the first record; then the same command."""
    before = next(number for number, event in enumerate(count_events(work), start=1) if "metrics.jsonl" in event)
    for number in range(tries):
        name, problems = f"first-{number}", list[str]()
        for _ in range(3):
            at = work.draw.randint(1, before)
            problems += _killed(work, name, work.train(name, fault=lambda at=at: kill_at(at)))
        found = continued(work, name)
        yield f"FAULT: {'; '.join(problems)}" if problems else found


def stop_signals(work: Workspace, tries: int) -> Outcomes:
    """SIGTERM, SIGHUP, SIGINT or SIGUSR1 after a random step: exit code 128 + signal, a checkpoint; then the same
    command."""
    asked = [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1]
    for number in range(tries):
        name, one = f"signal-{number}", asked[number % len(asked)]
        started = work.start(name)
        ended = started.after_records(work.run(name), work.draw.randint(1, STEPS - 4))
        if ended is None:
            started.signal(one)
            ended = started.wait()
        if ended.code not in (0, 128 + one) or ended.problem or (ended.code and "stopped after step" not in ended.said):
            yield f"FAULT: {one.name}: exit code {ended.code}: {ended.problem or ended.said.strip()[-300:]}"
        else:
            found = continued(work, name)
            yield f"FAULT: {one.name}: {found}" if found.startswith("FAULT") else found


def two_at_once(work: Workspace, tries: int) -> Outcomes:
    """The same command twice, at the same moment or one after the other: one is refused, and the other is not
    disturbed. In a quarter of the tries the first is then killed, and the same command continues it."""
    for number in range(tries):
        name = f"both-{number}"
        first = work.start(name)
        if number % 2:
            first.after_records(work.run(name), 1)
            first.signal(signal.SIGSTOP)  # alive, but stopped
            second = work.train(name)
            first.signal(signal.SIGKILL if number % 4 == 1 else signal.SIGCONT)
            ended = [first.wait(), second]
            refused = [second.code]
        else:
            second_started = work.start(name)
            ended = [first.wait(), second_started.wait()]
            refused = [one.code for one in ended if one.code]
        told = any("is being trained by process" in one.said for one in ended)
        odd = [one.problem for one in ended if one.problem]
        if odd or any(code != 2 for code in refused) or (refused and not told):
            yield f"FAULT: {odd} {[(one.code, one.said[-200:]) for one in ended]}"
        else:
            yield continued(work, name)


def full_disk(work: Workspace, tries: int) -> Outcomes:
    """A file system of random size that fills up; then it grows, and the same command runs."""
    whole = uninterrupted(work)
    for number in range(tries):
        size = work.draw.randint(60, 700)
        mounted = tempfile.mkdtemp(prefix="faults-")
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", mounted]
        if subprocess.run(mount, check=False, capture_output=True).returncode:
            os.rmdir(mounted)
            yield "not tried: mounting a tmpfs needs privileges; the row `quota` does not"
            return
        try:
            there = (f"runs_dir={mounted}/runs", f"data.cache_dir={mounted}/cache")
            ended = work.train(f"disk-{number}", *there)
            subprocess.run(["mount", "-o", "remount,size=64m", mounted], check=True)
            yield _room_again(work, f"disk-{number}", ended, whole, *there)
        finally:
            subprocess.run(["umount", "-l", mounted], check=False)
            os.rmdir(mounted)


def quota(work: Workspace, tries: int) -> Outcomes:
    """A random limit on the size of files (RLIMIT_FSIZE); then the same command without it."""

    def limit(size: int) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        # Only the soft limit: the output of the command is a file too.
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    whole = uninterrupted(work)
    for number in range(tries):
        size = work.draw.randint(2, 60) << 10
        ended = work.train(f"quota-{number}", fault=lambda size=size: limit(size))
        yield _room_again(work, f"quota-{number}", ended, whole)


def _room_again(work: Workspace, name: str, ended: Ended, whole: Path, *overrides: str) -> str:
    if ended.problem or ended.code not in (0, 2):
        return f"FAULT: exit code {ended.code}: {ended.problem or ended.said.strip()[-300:]}"
    again = work.train(name, *overrides)
    if again.code:
        return f"FAULT: does not continue: {again.problem or again.said.strip()[-300:]}"
    runs = dict(one.split("=", 1) for one in overrides).get("runs_dir", str(work.folder / "runs"))
    problems = differences(Path(runs) / name, whole)
    return f"FAULT: {'; '.join(problems)}" if problems else EQUAL


def trackers(work: Workspace, tries: int) -> Outcomes:
    """TensorBoard that fails from a random call on, or a console whose reader exits: training goes on."""

    def fail_from(call: int) -> None:
        from quintet.track.tensorboard import TensorBoardTracker

        left = call

        def log(*_: object, **__: object) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError(5, "the tracker is gone")

        for name in ("log", "text", "close"):
            setattr(TensorBoardTracker, name, log)

    def close_console() -> None:
        read, write = os.pipe()
        os.dup2(write, 1)
        os.close(read)
        sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)

    each = "train.log_every=1"
    whole = uninterrupted(work, "whole-logged", each)
    for number in range(tries):
        name, call = f"tracker-{number}", work.draw.randint(0, 20)
        fault = close_console if number % 3 == 2 else (lambda call=call: fail_from(call))
        ended = work.train(name, "track=[{kind: tensorboard}]", each, fault=fault)
        told = "printing has stopped" if number % 3 == 2 else "fails: "
        problems = [] if ended.code == 0 else [f"exit code {ended.code}: {ended.problem or ended.said[-300:]}"]
        problems += [] if told in ended.said else ["its failure is not reported"]
        problems += differences(work.run(name), whole)
        yield f"FAULT: {'; '.join(problems)}" if problems else "trained to its end, equal bit for bit, reported"


def servers(work: Workspace, tries: int) -> Outcomes:
    """A server of Weights & Biases or MLflow that works at the start, then dies, hangs, slows down or returns errors:
    training goes on, waits a bounded time at the end, and reports the failure in one or two lines."""
    each, limit = "train.log_every=1", 6
    whole = uninterrupted(work, "whole-logged", each)
    for number in range(tries):
        kind, failure = (WANDB, MLFLOW)[number % 2], FAILURES[number // 2 % len(FAILURES)]
        # The start sends 7 (W&B) or 13 (MLflow) requests, and a whole run about 16 or 40.
        name, after = f"server-{number}", work.draw.randint(*((8, 11) if kind == WANDB else (14, 24)))
        with failing_server(kind, failure, after, str(work.folder / f"artifacts-{number}")) as address:
            own = f"tracking_uri: {address}"
            if kind == WANDB:
                own = f"arguments: {{project: tests, settings: {{base_url: {address}}}}}"
            environment = {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": address, "NO_PROXY": "*"}
            environment |= {"WANDB_FINISH_TIMEOUT": str(limit), "MLFLOW_HTTP_REQUEST_TIMEOUT": "2"}
            track = f"track=[{{kind: {kind}, {own}}}]"
            ended = work.start(name, track, each, fault=lambda: _in_time(limit), **environment).wait()
        problems = [] if ended.code == 0 else [f"exit code {ended.code}: {ended.problem or ended.said[-300:]}"]
        told = [line for line in ended.said.splitlines() if line.startswith(f"track[0]: {kind}")]
        # The first failure and, at the end, what was lost; a slow server may have received everything.
        if not (0 if failure == "slow" else 1) <= len(told) <= 2:
            problems.append(f"reported in {len(told)} lines: {told}")
        problems += [] if ended.problem is None else [ended.problem]
        problems += differences(work.run(name), whole)
        there = f"{kind} {failure} after {after}: "
        yield f"FAULT: {there}{'; '.join(problems)}" if problems else "trained to its end, equal bit for bit, reported"


def _in_time(limit: float) -> None:
    """Limit the wait at the end to ``limit`` seconds, and slow the steps down so that a server fails between them."""
    from quintet.track import background
    from quintet.train.engine import TorchEngine

    background.BackgroundQueue.__init__.__defaults__ = (limit,)
    taken = TorchEngine.update

    def update(self: TorchEngine, rate: float, step: int) -> object:
        time.sleep(SLOW / 4)
        return taken(self, rate, step)

    TorchEngine.update = update  # pyright: ignore[reportAttributeAccessIssue]
