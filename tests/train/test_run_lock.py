"""The lock on a run's folder: one holder, who is named, and who is followed once he is gone."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.helpers import refused, source_environment, wait_until

from quintet import files
from quintet.train import run_lock
from quintet.train.run_lock import Holder, RunLock

HOLDS = """
import sys, time
from pathlib import Path
from quintet.train.run_lock import RunLock
RunLock().take(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def other(tmp_path: Path) -> Any:
    """A process that holds the folder ``run``."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(tmp_path / "run")],
        stdout=subprocess.PIPE,
        text=True,
        env=source_environment(),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_the_second_is_refused_and_told_who_holds_it(other: Any, tmp_path: Path) -> None:
    with RunLock() as lock:
        message = refused(lock.take, tmp_path / "run")
    assert message.startswith(
        f"{tmp_path / 'run'}: is being trained by process {other.pid} on {platform.node()} since 20"
    )
    assert (tmp_path / "run/.running").exists()


def test_one_that_was_killed_is_followed_at_once(other: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other.send_signal(signal.SIGKILL)
    other.wait()
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("it is known to be gone"))
    with RunLock() as lock:
        lock.take(tmp_path / "run")
        assert json.loads((tmp_path / "run/.running").read_text())["process"] == os.getpid()
    assert list((tmp_path / "run").iterdir()) == []


def test_a_copy_of_a_folder_that_is_held_is_free(other: Any, tmp_path: Path) -> None:
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    with RunLock() as lock:
        lock.take(tmp_path / "copy")
    assert (tmp_path / "run/.running").exists()


def elsewhere(folder: Path, beat: int) -> None:
    folder.mkdir(exist_ok=True)
    holder = Holder("another", "machine", 7, "1", "2026-01-01 12:00 UTC", "0" * 16, folder.stat().st_ino, f"{beat:012}")
    (folder / ".running").write_text(json.dumps(holder.__dict__))


def test_a_holder_on_another_machine_is_followed_when_it_gives_no_sign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited, said = [], []
    monkeypatch.setattr(time, "sleep", waited.append)
    elsewhere(tmp_path / "run", 3)
    with RunLock() as lock:
        lock.take(tmp_path / "run", said.append)
        assert sum(waited) == pytest.approx(30)
    assert said == [
        f"{tmp_path / 'run'}: process 7 on another since 2026-01-01 12:00 UTC has not released it; looking for a sign "
        "of life"
    ]


def test_a_holder_on_another_machine_that_gives_signs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere(tmp_path / "run", 3)
    monkeypatch.setattr(time, "sleep", lambda _: elsewhere(tmp_path / "run", 4))
    with RunLock() as lock:
        assert "is being trained by process 7 on another since 2026" in refused(lock.take, tmp_path / "run")
    assert json.loads((tmp_path / "run/.running").read_text())["beat"].endswith("4")


def test_a_file_that_names_nobody_is_followed_when_nobody_writes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    for name in ("run", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "run/.running").write_bytes(b"\0" * 9)
    (tmp_path / "other/.running").mkdir()
    for name in ("run", "other"):
        with RunLock() as lock:
            lock.take(tmp_path / name)
        assert not any((tmp_path / name).iterdir())


def _take_in_turn(folder: Path, inside: Path, count: int) -> None:
    for _ in range(count):
        with RunLock() as lock:
            try:
                lock.take(folder)
            except run_lock.UserError:
                continue
            os.close(os.open(inside, os.O_CREAT | os.O_EXCL))  # fails where two are inside
            inside.unlink()


def test_of_many_that_ask_at_once_one_holds_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    asking = [context.Process(target=_take_in_turn, args=(tmp_path / "run", tmp_path / "inside", 40)) for _ in range(4)]
    for process in asking:
        process.start()
    for process in asking:
        process.join()
    assert [process.exitcode for process in asking] == [0] * 4


def test_who_was_taken_over_ends_before_it_writes_more(other: Any, tmp_path: Path) -> None:
    elsewhere(tmp_path / "run2", 0)
    os.replace(tmp_path / "run2/.running", tmp_path / "run/.running")
    assert other.wait(timeout=60) == 2


def test_signs_of_life_are_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "BEAT", 0.001)
    with RunLock() as lock:
        lock.take(tmp_path / "run")
        before = (tmp_path / "run/.running").read_bytes()
        wait_until(lambda: (tmp_path / "run/.running").read_bytes() != before)
