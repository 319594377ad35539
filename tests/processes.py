"""Processes that start in a moment: forks of a server that has imported Quintet and PyTorch.

Python takes seconds to start and to import both, longer than most runs of the tests. Only tests of the start itself,
such as those of the launcher, start Python.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
from tests.helpers import QUICK, free_port

from quintet.cli import main

LONGEST = 300  # seconds; on an idle machine no run takes a tenth of it


class Forked:
    """A process that calls ``call(*arguments)`` in ``folder``, with ``environment`` and one thread.

    Its output goes to the files `out` and `err`. ``handlers`` are its signal handlers. As a context manager it kills
    the process on exit.
    """

    def __init__(
        self,
        call: Callable[..., object],
        *arguments: Any,
        folder: Path,
        environment: dict[str, str] | None = None,
        handlers: Mapping[signal.Signals, signal.Handlers] | None = None,
    ) -> None:
        number = len(list(folder.glob(".*.err")))
        self.out, self.err = folder / f".{number}.out", folder / f".{number}.err"
        own = dict(os.environ if environment is None else environment)
        options = (folder, own, (self.out, self.err), dict(handlers or {}))
        self._process = _context().Process(target=_call, args=(call, arguments, *options))
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    def __enter__(self) -> Forked:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.join()

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while the process runs."""
        return self._process.exitcode

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process."""
        os.kill(self.pid, number)

    @property
    def ended(self) -> int:
        """The handle for which `multiprocessing.connection.wait` can wait."""
        return self._process.sentinel

    def wait(self) -> int:
        """Wait for the end and return the exit code."""
        self._process.join(LONGEST)
        code = self._process.exitcode
        assert code is not None, f"still running after {LONGEST} s:\n{self.err.read_text('utf-8')[-3000:]}"
        return code

    def finished(self) -> subprocess.CompletedProcess[str]:
        """Wait for the end and return the exit code and the output."""
        code = self.wait()
        return subprocess.CompletedProcess((), code, self.out.read_text("utf-8"), self.err.read_text("utf-8"))


def _call(
    call: Callable[..., object],
    arguments: Sequence[Any],
    folder: Path,
    environment: dict[str, str],
    streams: tuple[Path, Path],
    handlers: Mapping[signal.Signals, signal.Handlers],
) -> None:
    for descriptor, file in enumerate(streams, start=1):
        opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    torch.set_num_threads(1)
    call(*arguments)


@cache
def _context() -> Any:
    # Only on Linux can a process that has imported PyTorch fork safely.
    context = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
    context.set_forkserver_preload(["quintet.cli", "quintet.train.setup", "quintet.train.loop", "transformers"])
    return context


def quintet_apart(folder: Path, *arguments: str, **how: Any) -> Forked:
    """Start the command in a process in ``folder``, ``train`` with the options QUICK. ``how`` goes to `Forked`."""
    verb, *rest = arguments
    line = [verb, *(QUICK if verb == "train" else ()), *rest]
    return Forked(main, line, folder=folder, **how)


def run_several(
    processes: int, folder: Path, environment: dict[str, str], call: Callable[..., object], *arguments: Any
) -> list[subprocess.CompletedProcess[str]]:
    """Call ``call(*arguments)`` in ``processes`` processes with torchrun's variables, and wait for them."""
    size = str(processes)
    shared = environment | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    shared |= {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    with ExitStack() as stack:
        ranks: list[Forked] = []
        for rank in map(str, range(processes)):
            own = shared | {"RANK": rank, "LOCAL_RANK": rank} if processes > 1 else environment
            ranks.append(stack.enter_context(Forked(call, *arguments, folder=folder, environment=own)))
        running = {process.ended: process for process in ranks}
        failed = False
        while running and not failed:  # the others may wait for one that failed, and are then killed
            for ended in wait(list(running)):
                failed |= running.pop(ended).wait() != 0
    return [process.finished() for process in ranks]
