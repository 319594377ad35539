"""Processes of their own that start in a moment: forks of one that has imported Quintet and PyTorch.

To start Python and to import both takes seconds, more than most runs of the tests. What is about the start itself, as
the command's own launcher, starts Python.
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

LONGEST = 300  # seconds; no run here takes a tenth of it on a machine that does nothing else


class Forked:
    """A process that calls ``call(*arguments)`` in ``folder``, with ``environment`` and one thread.

    It writes to the files `out` and `err`, and has the ``handlers`` of signals. Leaving it as a context kills it.
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
        given = (call, arguments, folder, own, (self.out, self.err), dict(handlers or {}))
        self._process = _context().Process(target=_call, args=given)
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    def __enter__(self) -> Forked:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.join()

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it goes on."""
        return self._process.exitcode

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    @property
    def ended(self) -> int:
        """What `multiprocessing.connection.wait` waits for."""
        return self._process.sentinel

    def wait(self) -> int:
        """The exit code, once it has ended."""
        self._process.join(LONGEST)
        code = self._process.exitcode
        assert code is not None, f"it goes on after {LONGEST} s:\n{self.err.read_text('utf-8')[-3000:]}"
        return code

    def finished(self) -> subprocess.CompletedProcess[str]:
        """Its exit code and what it has written, once it has ended."""
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
    for number, file in enumerate(streams, start=1):
        opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(opened, number)
        os.close(opened)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for one, handler in handlers.items():
        signal.signal(one, handler)
    torch.set_num_threads(1)
    call(*arguments)


@cache
def _context() -> Any:
    # Only Linux forks safely what has imported PyTorch.
    context = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
    context.set_forkserver_preload(["quintet.cli", "quintet.train.setup", "quintet.train.loop", "transformers"])
    return context


def quintet_apart(folder: Path, *arguments: str, **how: Any) -> Forked:
    """The command in a process of its own in ``folder``; a training with the options QUICK. ``how`` is for `Forked`."""
    verb, *rest = arguments
    line = [verb, *(QUICK if verb == "train" else ()), *rest]
    return Forked(main, line, folder=folder, **how)


def run_several(
    processes: int, folder: Path, environment: dict[str, str], call: Callable[..., object], *arguments: Any
) -> list[subprocess.CompletedProcess[str]]:
    """Call ``call(*arguments)`` in so many processes, which know of each other as torchrun tells them, to their end."""
    port, size = str(free_port()), str(processes)
    around = environment | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": size}
    around |= {"LOCAL_WORLD_SIZE": size}
    with ExitStack() as ending:
        started: list[Forked] = []
        for rank in map(str, range(processes)):
            own = around | {"RANK": rank, "LOCAL_RANK": rank} if processes > 1 else environment
            started.append(ending.enter_context(Forked(call, *arguments, folder=folder, environment=own)))
        going = {one.ended: one for one in started}
        failed = False
        while going and not failed:  # one that fails may leave the others waiting for it, which are then killed
            for ended in wait(list(going)):
                failed |= going.pop(ended).wait() != 0
    return [one.finished() for one in started]
