"""The lock of a folder, which one process holds alone or several share."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from quintet.data import locks
from quintet.data.locks import locked


@pytest.fixture(params=["flock", "files"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How locks are held: as here, or as on a system without `flock`."""
    if request.param == "files":
        monkeypatch.setattr(locks, "fcntl", None)
    return request.param


def held(folder: Path, *, alone: bool) -> bool:
    with locked(folder, alone=alone, wait=False) as found:
        return found


@pytest.mark.usefixtures("way")
def test_a_lock_is_shared_or_held_alone(tmp_path: Path) -> None:
    with locked(tmp_path, alone=True) as first:
        assert first
        assert not held(tmp_path, alone=True)
        assert not held(tmp_path, alone=False)
    with locked(tmp_path, alone=False), locked(tmp_path, alone=False, wait=False) as second:
        assert second
        assert not held(tmp_path, alone=True)
    assert held(tmp_path, alone=True)


@pytest.mark.usefixtures("way")
def test_a_lock_is_let_go_after_an_error(tmp_path: Path) -> None:
    def fail(alone: bool) -> None:
        with locked(tmp_path, alone=alone):
            raise KeyError

    for alone in (True, False):
        with pytest.raises(KeyError):
            fail(alone)
        assert held(tmp_path, alone=True)


@pytest.mark.usefixtures("way")
def test_nobody_is_beside_one_who_is_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_PAUSE", 0.001)
    inside: list[bool] = []
    wrong: list[list[bool]] = []

    def work(alone: bool) -> None:
        for _ in range(10):
            with locked(tmp_path, alone=alone):
                inside.append(alone)
                now = list(inside)
                if len(now) > 1 and any(now):
                    wrong.append(now)
                time.sleep(0.001)
                inside.remove(alone)

    threads = [threading.Thread(target=work, args=(alone,)) for alone in (True, True, False, False, False)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert not inside


HOLDS = """
import sys, time
from pathlib import Path
from quintet import files
from quintet.data import locks
locks.fcntl = None if sys.argv[2] == "files" else locks.fcntl
files.BEAT = 0.05
with locks.locked(Path(sys.argv[1]), alone=sys.argv[3] == "alone"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("kind", ["alone", "shared"])
def test_a_lock_goes_with_a_process_that_is_killed(
    tmp_path: Path, way: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "GONE", 1.0)
    holder = subprocess.Popen([sys.executable, "-c", HOLDS, tmp_path, way, kind], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    taken = threading.Event()

    def take() -> None:
        with locked(tmp_path, alone=True):
            taken.set()

    other = threading.Thread(target=take)
    other.start()
    assert not taken.wait(2.0), "a process that lives keeps its lock"
    holder.kill()
    holder.wait()
    other.join(60)
    assert taken.is_set()
    holder.stdout.close()
    assert {file.name for file in tmp_path.iterdir()} == ({".lock"} if way == "flock" else set())
