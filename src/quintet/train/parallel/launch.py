"""`quintet train --nproc`: torchrun's agent, started in this process, and one error message when a run fails.

``python -m quintet.train.parallel.launch`` is torchrun itself. After a signal it waits for its processes for the
seconds in TORCH_ELASTIC_SHUTDOWN_TIMEOUT, also in versions of PyTorch that do not know that variable.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quintet.errors import UserError, printable
from quintet.system import STOP_SIGNALS, cores
from quintet.train.parallel.failures import ROLE, Failure, is_launched, read_failure, read_stacks

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
    from torch.distributed.launcher.api import LaunchConfig

_GRACE = 24 * 3600  # seconds; a checkpoint may take long, and a second signal ends a run at once
# Seconds. torchrun kills the remaining processes 30 s after the first failure.
_PATIENCE = 20
_STOPPED_CODES = {128 + number for number in STOP_SIGNALS}
_HANDLED = [name for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1") if hasattr(signal, name)]
_KILLED = -9  # SIGKILL, which Windows does not have


@dataclass(frozen=True)
class Fault:
    """The reason why a run ended: ``lines`` to print, an exit ``code``, and ``again`` if a new start may succeed."""

    lines: list[str]
    code: int
    again: bool


def count_processes(wanted: str, device: str) -> int:
    """Return the number of processes that ``wanted`` names: a number, or auto for one per GPU.

    Raises UserError if it is neither, or larger than the number of GPUs for ``device``, the value of `train.device`.
    """
    import torch

    gpus = torch.cuda.device_count() if device != "cpu" else 0
    if wanted == "auto":
        if gpus == 0:
            raise UserError("--nproc: auto takes one process a GPU, and there is none to use; give a number")
        return gpus
    if not wanted.isdecimal() or int(wanted) < 1:
        raise UserError(f"--nproc: {wanted} is neither a number of processes nor auto")
    if device == "cuda" or (device == "auto" and gpus):
        _check_gpus(int(wanted), gpus)
    return int(wanted)


def _check_gpus(wanted: int, gpus: int) -> None:
    if wanted > gpus:
        raise UserError(
            f"--nproc: {wanted} processes need as many GPUs, and this machine has {gpus}; start {gpus}, or set "
            "train.device=cpu"
        )


def launch(arguments: Sequence[str], processes: int, restarts: int) -> int:
    """Run `quintet` with ``arguments`` in ``processes`` of this machine; return the exit code.

    A run that fails is started again from its last checkpoint, at most ``restarts`` times. Raises UserError if the run
    ends with a mistake that the user can fix.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    if is_launched():
        raise UserError("--nproc: torchrun has started this process already; leave --nproc out")
    # torch's own log about its processes is longer than the message below.
    logging.disable(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // processes)))
    # torch expands names after $.
    line = ["-m", "quintet", *(argument.replace("$", "$$") for argument in arguments)]
    for left in range(restarts, -1, -1):
        with tempfile.TemporaryDirectory(prefix="quintet-", ignore_cleanup_errors=True) as folder:
            try:
                elastic_launch(_settings(processes, folder), sys.executable)(*line)
                return 0
            except SignalException as stopped:
                return 128 + int(stopped.sigval)
            except ChildFailedError as failed:
                fault = find_fault(failed.failures, read_stacks(Path(folder)))
        if not (fault.again and left):
            if fault.code == 2:
                raise UserError(*fault.lines)
            _say(*fault.lines)
            return fault.code
        _say(*fault.lines)
        print(f"starting again from the last checkpoint, {left} of {restarts} times left", file=sys.stderr, flush=True)
    raise AssertionError("the last attempt returns")


def _settings(processes: int, folder: str) -> LaunchConfig:
    """Return the settings of torchrun --standalone for one start of the run, with a store of its own."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.launcher.api import LaunchConfig

    settings: dict[str, Any] = {
        "min_nodes": 1,
        "max_nodes": 1,
        "nproc_per_node": processes,
        "run_id": os.path.basename(folder),
        "role": ROLE,
        "rdzv_backend": "c10d",
        "rdzv_endpoint": "localhost:0",
        "max_restarts": 0,
        "logs_specs": DefaultLogsSpecs(log_dir=folder),
        "signals_to_handle": ",".join(_HANDLED),
        "shutdown_timeout": _GRACE,
    }
    known = {field.name for field in fields(LaunchConfig)}
    _let_wait(_GRACE)
    return LaunchConfig(**{name: value for name, value in settings.items() if name in known})


def _let_wait(seconds: int) -> None:
    """Make the agent wait ``seconds`` for its processes after a signal, in torch before 2.13.

    That has no shutdown_timeout and kills them after 30 s.
    """
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
    from torch.distributed.launcher.api import LaunchConfig

    if all(field.name != "shutdown_timeout" for field in fields(LaunchConfig)):
        outwait(LocalElasticAgent, seconds)


def outwait(agent: type[Any], seconds: int) -> None:
    """Change the class ``agent`` so that after a signal it waits ``seconds`` for its processes before it kills them.

    After a signal it passes that to `_shutdown`. After a failure it passes none, and kills them as before.
    """
    original: Callable[..., None] = agent._shutdown

    def shut_down(self: Any, *asked: Any, **named: Any) -> None:
        if asked and self._pcontext:
            self._pcontext.close(asked[0], seconds)
        original(self, *asked, **named)

    agent._shutdown = shut_down


def find_fault(failures: dict[int, ProcessFailure], stacks: Mapping[int, list[str]]) -> Fault:
    """Return the first fault of a run from the ``failures`` of its processes, by number, and their ``stacks``.

    ``stacks`` show where the processes were when they were asked to end.
    """
    reports = {number: read_failure(failure.message) for number, failure in failures.items()}
    by_user = {number: failure for number, failure in reports.items() if failure and failure.kind == "user"}
    if by_user:
        return Fault(_user_lines(by_user), 2, again=False)
    if all(failure.exitcode in _STOPPED_CODES for failure in failures.values()):
        return Fault([], next(iter(failures.values())).exitcode, again=False)
    return Fault(_first_of(reports, failures, stacks), 1, again=True)


def _user_lines(reports: dict[int, Failure]) -> list[str]:
    """Return each message about a mistake of the user once, with the process number unless it is 0."""
    first: dict[str, int] = {}
    for number in sorted(reports):
        for problem in reports[number].problems:
            first.setdefault(problem, number)
    return [f"process {number}: {problem}" if number else problem for problem, number in first.items()]


def _first_of(
    reports: dict[int, Failure | None], failures: dict[int, ProcessFailure], stacks: Mapping[int, list[str]]
) -> list[str]:
    """Describe the failure that caused the others."""
    start = min(failure.timestamp for failure in failures.values())
    unreported = {number: failure for number, failure in failures.items() if reports[number] is None}
    # torchrun sends SIGTERM to the remaining processes, and kills those that have not ended 30 s later.
    killed = [n for n, failure in unreported.items() if failure.exitcode == _KILLED]
    silent = [n for n in killed if failures[n].timestamp >= start + _PATIENCE]
    early = [n for n in killed if n not in silent]
    if early:
        return [f"process {early[0]} was killed (SIGKILL); if nobody did it, the memory of this machine was used up"]
    kinds = ("bug", "lost", "elsewhere")
    by_kind = {kind: [n for n, report in reports.items() if report and report.kind == kind] for kind in kinds}
    bugs = sorted(by_kind["bug"], key=lambda number: getattr(reports[number], "at", 0.0))
    if bugs:
        return [f"process {bugs[0]} failed:", *getattr(reports[bugs[0]], "trace", "").rstrip().splitlines()]
    ended = [n for n, failure in unreported.items() if n not in killed and failure.exitcode != -signal.SIGTERM]
    if ended:
        return [f"process {ended[0]} {_ending(failures[ended[0]])}"]
    if silent:
        numbers = ", ".join(str(number) for number in silent)
        line = f"process {numbers} did not answer the others for parallel.timeout_seconds, and was killed"
        return [line, *_stacks_of_all(reports, stacks, silent)]
    for number in [*by_kind["lost"], *by_kind["elsewhere"]]:
        lines = [f"process {number}: {problem}" for problem in getattr(reports[number], "problems", [])]
        return [*lines, *(_stacks_of_all(reports, stacks) if len(by_kind["lost"]) == len(failures) else [])]
    return [f"process {min(unreported)} {_ending(unreported[min(unreported)])}"]


def _stacks_of_all(
    reports: dict[int, Failure | None], stacks: Mapping[int, list[str]], first: Sequence[int] = ()
) -> Iterator[str]:
    """Yield lines with the stack of every process, that of the ``first`` ones before the others."""
    for number in [*first, *(number for number in reports if number not in first)]:
        report = reports[number]
        lines = report.trace.rstrip().splitlines() if report else stacks.get(number, [])
        yield f"process {number} was here:" if lines else f"process {number} left no stack"
        yield from (f"  {line}" for line in lines)


def _ending(failure: ProcessFailure) -> str:
    if failure.exitcode < 0:
        return f"was ended by {failure.signal_name()}"
    return f"ended with exit code {failure.exitcode}"


def _say(*lines: str) -> None:
    for index, line in enumerate(lines):
        print(printable(f"error: {line}" if index == 0 else line, lines=True), file=sys.stderr, flush=True)


if __name__ == "__main__":
    _let_wait(int(os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "30")))
    import_module("torch.distributed.run").main()
