"""`quintet train --nproc`: torchrun's own agent, started in this process, and what it says when a run fails.

``python -m quintet.train.parallel.launch`` is torchrun itself, which after a signal waits for its processes as long as
TORCH_ELASTIC_SHUTDOWN_TIMEOUT says, also in versions of PyTorch that do not know it.
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

# A checkpoint may take long; whoever cannot wait sends a second signal.
_GRACE = 24 * 3600
# Seconds between the first failure and torchrun's killing of who is left are 30.
_PATIENCE = 20
_ASKED = {128 + number for number in STOP_SIGNALS}
_HANDLED = [name for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1") if hasattr(signal, name)]
_KILLED = -9  # SIGKILL, which Windows does not have


@dataclass(frozen=True)
class Fault:
    """The cause of a run's end: ``lines`` to print, an exit ``code``, and ``again`` if a new start may go better."""

    lines: list[str]
    code: int
    again: bool


def count_processes(wanted: str, device: str) -> int:
    """Return the number of processes that ``wanted`` means: a number, or auto for one per GPU. Raises UserError if that
    is none, or more than there are GPUs for ``device``, the value of `train.device`."""
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
    """Run `quintet` with ``arguments`` in so many ``processes`` of this machine, again from its last checkpoint up to
    ``restarts`` times when it fails, and return the exit code.

    Raises UserError when the run ends with what the user can mend.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    if is_launched():
        raise UserError("--nproc: torchrun has started this process already; leave --nproc out")
    # What torch logs about its processes is said below, in fewer words.
    logging.disable(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // processes)))
    # torch takes $ for the beginning of a name of its own.
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
    """torchrun --standalone for one start of the run; each has a store of its own, so that none finds another's."""
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
    known = {one.name for one in fields(LaunchConfig)}
    _let_wait(_GRACE)
    return LaunchConfig(**{name: value for name, value in settings.items() if name in known})


def _let_wait(seconds: int) -> None:
    """Have the agent wait ``seconds`` for its processes after a signal, where it cannot be told: shutdown_timeout came
    with torch 2.13, and an agent before that kills them after 30."""
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
    from torch.distributed.launcher.api import LaunchConfig

    if all(one.name != "shutdown_timeout" for one in fields(LaunchConfig)):
        outwait(LocalElasticAgent, seconds)


def outwait(agent: type[Any], seconds: int) -> None:
    """Change the class ``agent`` so that after a signal it waits ``seconds`` for its processes before it kills them.

    It names the signal then; where it ends them because one has failed it does not, and kills them as before.
    """
    whole: Callable[..., None] = agent._shutdown

    def shut_down(self: Any, *asked: Any, **named: Any) -> None:
        if asked and self._pcontext:
            self._pcontext.close(asked[0], seconds)
        whole(self, *asked, **named)

    agent._shutdown = shut_down


def find_fault(failures: dict[int, ProcessFailure], stacks: Mapping[int, list[str]]) -> Fault:
    """Return what went wrong first in a run whose processes have ``failures``, by their numbers, and ``stacks`` where
    they stood when they were asked to end."""
    told = {number: read_failure(failure.message) for number, failure in failures.items()}
    by_user = {number: failure for number, failure in told.items() if failure and failure.kind == "user"}
    if by_user:
        return Fault(_user_lines(by_user), 2, again=False)
    if all(failure.exitcode in _ASKED for failure in failures.values()):
        return Fault([], next(iter(failures.values())).exitcode, again=False)
    return Fault(_first_of(told, failures, stacks), 1, again=True)


def _user_lines(told: dict[int, Failure]) -> list[str]:
    """Return the messages about mistakes of the user, each once, with the number of any process but the first."""
    said: dict[str, int] = {}
    for number in sorted(told):
        for problem in told[number].problems:
            said.setdefault(problem, number)
    return [f"process {number}: {problem}" if number else problem for problem, number in said.items()]


def _first_of(
    told: dict[int, Failure | None], failures: dict[int, ProcessFailure], stacks: Mapping[int, list[str]]
) -> list[str]:
    """Return in words the one of ``failures`` from which the others follow."""
    begun = min(failure.timestamp for failure in failures.values())
    unsaid = {number: failure for number, failure in failures.items() if told[number] is None}
    # torchrun asks by SIGTERM whoever is left, and kills half a minute later whoever has not gone.
    killed = [n for n, one in unsaid.items() if one.exitcode == _KILLED]
    silent = [n for n in killed if failures[n].timestamp >= begun + _PATIENCE]
    early = [n for n in killed if n not in silent]
    if early:
        return [f"process {early[0]} was killed (SIGKILL); if nobody did it, the memory of this machine was used up"]
    by_kind = {
        kind: [n for n, one in told.items() if one and one.kind == kind] for kind in ("bug", "lost", "elsewhere")
    }
    bugs = sorted(by_kind["bug"], key=lambda number: getattr(told[number], "at", 0.0))
    if bugs:
        return [f"process {bugs[0]} failed:", *getattr(told[bugs[0]], "trace", "").rstrip().splitlines()]
    ended = [n for n, one in unsaid.items() if n not in killed and one.exitcode != -signal.SIGTERM]
    if ended:
        return [f"process {ended[0]} {_ending(failures[ended[0]])}"]
    if silent:
        numbers = ", ".join(str(number) for number in silent)
        line = f"process {numbers} did not answer the others for parallel.timeout_seconds, and was killed"
        return [line, *_where_each_stood(told, stacks, silent)]
    for number in [*by_kind["lost"], *by_kind["elsewhere"]]:
        lines = [f"process {number}: {problem}" for problem in getattr(told[number], "problems", [])]
        return [*lines, *(_where_each_stood(told, stacks) if len(by_kind["lost"]) == len(failures) else [])]
    return [f"process {min(unsaid)} {_ending(unsaid[min(unsaid)])}"]


def _where_each_stood(
    told: dict[int, Failure | None], stacks: Mapping[int, list[str]], first: Sequence[int] = ()
) -> Iterator[str]:
    """Yield lines with the stack of every process, that of the ``first`` ones before the others."""
    for number in [*first, *(number for number in told if number not in first)]:
        one = told[number]
        lines = one.trace.rstrip().splitlines() if one else stacks.get(number, [])
        yield f"process {number} stood here:" if lines else f"process {number} left no sign of where it stood"
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
