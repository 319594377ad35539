"""Which of several failures is told, and what a process leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from quintet.errors import UserError
from quintet.processes import FailedElsewhere
from quintet.train.callbacks import watch_signals
from quintet.train.parallel.failures import Kind, kind_of
from quintet.train.parallel.launch import find_fault

GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:4242"


def failure(
    folder: Path, number: int, code: int, kind: Kind | None = None, problem: str = "", at: float = 0.0
) -> ProcessFailure:
    """What torchelastic knows of process ``number``, with the record that the process wrote, if any, ``at`` a time."""
    file = folder / f"{number}.json"
    if kind is not None:
        told = {"kind": kind, "problems": [problem], "trace": f"Traceback\n{problem}", "at": time.time() + at}
        info = {"py_callstack": "", "timestamp": str(int(told["at"])), "quintet": told}
        file.write_text(json.dumps({"message": {"message": problem, "extraInfo": info}}))
    found = ProcessFailure(local_rank=number, pid=1000 + number, exitcode=code, error_file=str(file))
    if kind is None:
        found.timestamp += int(at)
    return found


def test_what_the_user_can_mend_comes_before_all_that_follows_from_it(tmp_path: Path) -> None:
    failures = {
        0: failure(tmp_path, 0, 1, "lost", "gone", at=-3),
        1: failure(tmp_path, 1, -signal.SIGKILL, at=30),
        2: failure(tmp_path, 2, 2, "user", "disk: full"),
        3: failure(tmp_path, 3, 2, "user", "disk: full"),
    }
    fault = find_fault(failures, {})
    assert (fault.lines, fault.code, fault.again) == (["process 2: disk: full"], 2, False)


def test_the_first_process_speaks_for_those_that_say_the_same(tmp_path: Path) -> None:
    failures = {n: failure(tmp_path, n, 2, "user", "parallel.kind: none is for one process") for n in (1, 0)}
    assert find_fault(failures, {}).lines == ["parallel.kind: none is for one process"]


def test_a_killed_process_comes_before_those_that_lost_it(tmp_path: Path) -> None:
    failures = {0: failure(tmp_path, 0, 1, "lost", "gone", at=-2), 1: failure(tmp_path, 1, -signal.SIGKILL)}
    fault = find_fault(failures, {})
    assert fault.lines[0].startswith("process 1 was killed (SIGKILL)")
    assert fault.again


def test_a_process_that_torchrun_had_to_kill_is_the_one_that_hung(tmp_path: Path) -> None:
    failures = {
        0: failure(tmp_path, 0, 1, "lost", "timed out"),
        1: failure(tmp_path, 1, -signal.SIGTERM),
        2: failure(tmp_path, 2, -signal.SIGKILL, at=31),
    }
    stacks = {2: ["Thread 1 (most recent call first):", '  File "a.py", line 3 in wait']}
    assert find_fault(failures, stacks).lines == [
        "process 2 did not answer the others for parallel.timeout_seconds, and was killed",
        "process 2 was here:",
        "  Thread 1 (most recent call first):",
        '    File "a.py", line 3 in wait',
        "process 0 was here:",
        "  Traceback",
        "  timed out",
        "process 1 left no stack",
    ]


def test_where_all_have_waited_for_one_another_it_is_told_stacks_of_all(tmp_path: Path) -> None:
    failures = {n: failure(tmp_path, n, 1, "lost", f"timed out {n}") for n in (0, 1)}
    assert find_fault(failures, {}).lines == [
        "process 0: timed out 0",
        *("process 0 was here:", "  Traceback", "  timed out 0"),
        *("process 1 was here:", "  Traceback", "  timed out 1"),
    ]


def test_the_earliest_of_several_bugs_is_told(tmp_path: Path) -> None:
    failures = {
        0: failure(tmp_path, 0, 1, "bug", "KeyError: 1", at=0.4),
        1: failure(tmp_path, 1, 1, "bug", "KeyError: 0", at=0.1),
    }
    assert find_fault(failures, {}).lines == ["process 1 failed:", "Traceback", "KeyError: 0"]


def test_processes_that_were_asked_to_stop_have_not_failed(tmp_path: Path) -> None:
    fault = find_fault({n: failure(tmp_path, n, 143) for n in (0, 1)}, {})
    assert (fault.lines, fault.code, fault.again) == ([], 143, False)


def test_a_process_that_crashes_is_told_with_its_signal(tmp_path: Path) -> None:
    failures = {0: failure(tmp_path, 0, -signal.SIGTERM), 1: failure(tmp_path, 1, -signal.SIGSEGV)}
    assert find_fault(failures, {}).lines == ["process 1 was ended by SIGSEGV"]


@pytest.mark.parametrize(
    ("error", "mendable", "kind"),
    [
        (FailedElsewhere("x"), True, "elsewhere"),
        (UserError("x"), True, "user"),
        (RuntimeError(GLOO), False, "lost"),
        (ValueError(GLOO), False, "bug"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False, "bug"),
    ],
)
def test_errors_are_what_they_are_to_the_others(error: Exception, mendable: bool, kind: str) -> None:
    assert kind_of(error, mendable) == kind


def test_the_first_of_a_chain_of_errors_counts() -> None:
    late = RuntimeError(GLOO)
    late.__context__ = ValueError("a bug")  # as Python sets it for an error in `finally`
    assert kind_of(late, False) == "bug"


LEAVE = """
import sys
from quintet.cli import main
import quintet.cli
from quintet.errors import UserError
def app(*args, **kwargs):
    raise {error}
quintet.cli._command = lambda: app
main([])
"""


def left(error: str, tmp_path: Path, **env: str) -> tuple[subprocess.CompletedProcess[str], dict[str, object]]:
    """A process that ends with ``error``, as torchrun starts it, and what it has recorded."""
    file = tmp_path / "error.json"
    found = subprocess.run(
        [sys.executable, "-c", LEAVE.format(error=error)],
        env=os.environ | {"TORCHELASTIC_ERROR_FILE": str(file), "ROLE_NAME": "default"} | env,
        capture_output=True,
        text=True,
    )
    return found, json.loads(file.read_text())["message"]


def test_under_another_torchrun_the_first_process_says_what_is_wrong_and_records_it(tmp_path: Path) -> None:
    found, record = left("UserError('a: b', 'c: d')", tmp_path, RANK="0")
    assert (found.returncode, found.stderr) == (2, "error: a: b\nerror: c: d\n")
    assert record["extraInfo"]["py_callstack"] == "a: b\nc: d"  # which torchrun shows


def test_another_process_gives_its_number_and_one_that_has_none_is_silent(tmp_path: Path) -> None:
    found, _ = left("UserError('a: b')", tmp_path, RANK="3", WORLD_SIZE="4")
    assert (found.returncode, found.stderr) == (2, "error: process 3: a: b\n")
    found, _ = left("quintet.processes.FailedElsewhere('a: b')", tmp_path, RANK="3", WORLD_SIZE="4")
    assert (found.returncode, found.stderr) == (2, "")


def test_under_our_launcher_a_process_says_nothing(tmp_path: Path) -> None:
    found, record = left("ValueError('planned')", tmp_path, RANK="1", WORLD_SIZE="2", ROLE_NAME="quintet")
    assert (found.returncode, found.stderr, found.stdout) == (1, "", "")
    assert "ValueError: planned" in record["extraInfo"]["py_callstack"]


def test_a_signal_that_comes_twice_at_once_is_one_request_and_a_later_one_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr("quintet.train.callbacks.monotonic", lambda: now[0])
    seen: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(number))
    try:
        with watch_signals() as asked:
            signal.raise_signal(signal.SIGTERM)
            now[0] += 1
            signal.raise_signal(signal.SIGUSR1)
            assert (asked.signal, seen) == (signal.SIGTERM, [])
            signal.raise_signal(signal.SIGTERM)  # would end this process
            now[0] += 10
            signal.raise_signal(signal.SIGUSR1)
            assert seen == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Python's own handler, which a shell takes from what it starts in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_second_ctrl_c_ends_at_once(ctrl_c: None) -> None:
    with watch_signals() as asked:
        signal.raise_signal(signal.SIGINT)
        assert asked.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
