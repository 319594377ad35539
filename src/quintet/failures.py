"""The message of a process that torchrun started when it fails: one of all processes, and which of them it was.

Each process writes why it ends into the file that torchrun gave it, in the form of torch.distributed.elastic's
ErrorHandler. `quintet train --nproc` reads these files and speaks for all; under another torchrun the process at fault
speaks itself.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

from quintet.errors import one_line, printable, without_secrets
from quintet.processes import FailedElsewhere, rank

_PR_SET_PDEATHSIG = 1  # of linux/prctl.h

# The role that `quintet train --nproc` gives to its processes, which is how they know it.
ROLE = "quintet"

# user: somebody can mend it. bug: nobody but a programmer can. lost: another process was gone or did not answer.
# elsewhere: another process has the error.
Kind = Literal["user", "bug", "lost", "elsewhere"]

# Another process may have the same to say; the first one says it, and torchrun ends the others while they wait. A
# process is lost when it has ended, which torchrun sees before a second is over.
_SECONDS = {"user": 2.0, "bug": 0.0, "lost": 1.0, "elsewhere": 3.0}

# How gloo, NCCL and the store say that somebody else is gone or silent.
_LOST = (
    "connection closed by peer",
    "connection reset by peer",
    "connection was closed by remote peer",
    "broken pipe",
    "timed out waiting",
    "timed out after",
    "wait timeout",
    "connectfullmesh failed",
    "failed to recv",
    "failed to send",
    "remote process exited",
    "nccl communicator was aborted",
    "socket timeout",
    "application timeout caused pair closure",
)


@dataclass(frozen=True)
class Failure:
    """Why one process ended: its ``kind``, what there is to say, a line each, the traceback, and the time in seconds
    since 1970."""

    kind: Kind
    problems: list[str]
    trace: str = ""
    at: float = field(default_factory=time.time)


def is_launched() -> bool:
    """True if torchrun started this process."""
    return "TORCHELASTIC_ERROR_FILE" in os.environ


def end_with_launcher() -> None:
    """Have this process killed when the `quintet train --nproc` that started it is, so that nobody trains unseen. Linux
    alone can do this."""
    if os.environ.get("ROLE_NAME") != ROLE or not sys.platform.startswith("linux"):
        return
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@contextmanager
def stacks_told() -> Generator[None]:
    """Within the context, have this process, if torchrun started it, write where each of its threads stands as soon as
    it gets SIGTERM, by which torchrun asks those to end who are left when another has failed.

    That works also where the main thread hangs. Whoever handles the signal is called too; nobody else may begin to
    handle it within the context.
    """
    if not is_launched() or not hasattr(faulthandler, "register"):  # on Windows
        yield
        return
    with open(f"{os.environ['TORCHELASTIC_ERROR_FILE']}.stacks", "w", encoding="utf-8") as file:
        faulthandler.register(signal.SIGTERM, file=file, all_threads=True, chain=True)
        try:
            yield
        finally:
            faulthandler.unregister(signal.SIGTERM)


def read_stacks(folder: Path) -> dict[int, list[str]]:
    """The lines that `stacks_told` has written, by the number of the process; torchrun had ``folder`` for its logs."""
    found = {file: file.read_text(encoding="utf-8", errors="replace") for file in folder.rglob("*.stacks")}
    return {int(file.parent.name): text.splitlines() for file, text in found.items()}


def kind_of(error: BaseException, mendable: bool) -> Kind:
    """The kind of failure that ``error``, which ends this process, is; ``mendable``: the user can mend it."""
    if isinstance(error, FailedElsewhere):
        return "elsewhere"
    if mendable:
        return "user"
    first = error
    while (before := first.__cause__ or first.__context__) is not None:
        first = before
    return "lost" if _is_lost(first) else "bug"


def leave(error: BaseException, problems: list[str], code: int) -> NoReturn:
    """End this process, one of several, with ``code`` after the ``error`` that is told by ``problems``, or by its
    traceback when there are none.

    It neither unwinds further nor waits for anybody, since those it could wait for may be gone.
    """
    kind = kind_of(error, bool(problems))
    if kind == "lost":
        problems = [
            f"another process is gone or has not answered in parallel.timeout_seconds ({one_line(error, typed=True)})"
        ]
    failure = Failure(kind, problems or [one_line(error, typed=True)], traceback.format_exc())
    _record(error, failure)
    alone = os.environ.get("ROLE_NAME") != ROLE
    if alone and failure.kind == "user" and rank() == 0:
        _say(failure)
    elif alone and failure.kind == "bug":
        print(f"process {rank()} failed:\n{failure.trace}", file=sys.stderr)
    if rank() or failure.kind != "user":
        time.sleep(_SECONDS[failure.kind])
    if alone and failure.kind in ("user", "lost") and (rank() or failure.kind == "lost"):
        _say(failure)
    end(code)


def end(code: int | str | None) -> NoReturn:
    """End this process as sys.exit does; one of several that has not finished does so without waiting for anybody."""
    if not is_launched() or not isinstance(code, int) or code == 0:
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def read_failure(message: str | dict[str, Any]) -> Failure | None:
    """The failure that `leave` has written, from the message of torchelastic's ProcessFailure; None for another's."""
    if not isinstance(message, dict):
        return None
    told: dict[str, Any] | None = message.get("extraInfo", {}).get("quintet")
    return None if told is None else Failure(**told)


def _record(error: BaseException, failure: Failure) -> None:
    """Write ``failure`` where torchrun, which shows the traceback, and `quintet train --nproc` find it."""
    callstack = failure.trace if failure.kind == "bug" else "\n".join(failure.problems)
    told = {"kind": failure.kind, "problems": failure.problems, "trace": failure.trace, "at": failure.at}
    info = {"py_callstack": callstack, "timestamp": str(int(failure.at)), "quintet": told}
    record = {"message": {"message": f"{type(error).__name__}: {error}", "extraInfo": info}}
    file = os.environ["TORCHELASTIC_ERROR_FILE"]
    # Whole or not at all: torchrun may end this process at any moment, and fails on half a file.
    with open(f"{file}.new", "w", encoding="utf-8") as out:
        json.dump(record, out)
    os.replace(f"{file}.new", file)


def _say(failure: Failure) -> None:
    for problem in failure.problems:
        print(f"error: {f'process {rank()}: ' if rank() else ''}{printable(without_secrets(problem))}", file=sys.stderr)


def _is_lost(error: BaseException) -> bool:
    # A CheckpointException tells the errors of all processes, and is no Exception.
    by_network = isinstance(error, RuntimeError) or type(error).__name__ == "CheckpointException"
    return by_network and any(sign in str(error).lower() for sign in _LOST)
