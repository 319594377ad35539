"""One error message for several processes: how a process that torchrun started reports why it fails.

Each process writes the reason into the file that torchrun gave it, in the format of torch.distributed.elastic's
ErrorHandler. `quintet train --nproc` reads these files and prints one message. Under another torchrun the process that
failed prints it.
"""

import faulthandler
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

from quintet.errors import one_line, printable, without_secrets
from quintet.processes import FailedElsewhere, rank

_PR_SET_PDEATHSIG = 1  # of linux/prctl.h

# The role that `quintet train --nproc` gives to its processes, by which they recognise it.
ROLE = "quintet"

# user: a mistake of the user's. bug: a fault of the program. lost: another process has ended or did not answer.
# elsewhere: another process has the error.
Kind = Literal["user", "bug", "lost", "elsewhere"]

# Seconds before a process ends. Several processes may have the same error: the first prints it, and torchrun ends the
# others while they wait. When a process is lost, torchrun notices its end within a second.
_SECONDS = {"user": 2.0, "bug": 0.0, "lost": 1.0, "elsewhere": 3.0}

# Messages of gloo, NCCL and the store about another process that has ended or does not answer.
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
    """The end of one process: its ``kind``, a line for each problem, the traceback, and the time in seconds since
    1970."""

    kind: Kind
    problems: list[str]
    trace: str = ""
    at: float = field(default_factory=time.time)


def is_launched() -> bool:
    """True if torchrun started this process."""
    return "TORCHELASTIC_ERROR_FILE" in os.environ


def end_with_launcher() -> None:
    """Have Linux kill this process when the `quintet train --nproc` that started it ends, so that it does not train
    on unseen. Other systems cannot do this."""
    if os.environ.get("ROLE_NAME") != ROLE or not sys.platform.startswith("linux"):
        return
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@contextmanager
def dump_stacks_on_sigterm() -> Generator[None]:
    """Within the context, write the stacks of all threads when this process receives SIGTERM, if torchrun started it.

    torchrun sends SIGTERM to the processes that are left after one has failed. The stacks are written also if the main
    thread hangs. An earlier handler of the signal is called too; none may be set within the context.
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
    """Return the lines that `dump_stacks_on_sigterm` has written, by rank; ``folder`` holds torchrun's logs."""
    texts = {file: file.read_text(encoding="utf-8", errors="replace") for file in folder.rglob("*.stacks")}
    return {int(file.parent.name): text.splitlines() for file, text in texts.items()}


def kind_of(error: BaseException, mendable: bool) -> Kind:
    """Return the kind of failure of ``error``, which ends this process; ``mendable``: the user can mend it."""
    if isinstance(error, FailedElsewhere):
        return "elsewhere"
    if mendable:
        return "user"
    first = error
    while (before := first.__cause__ or first.__context__) is not None:
        first = before
    return "lost" if _is_lost(first) else "bug"


def leave(error: BaseException, problems: list[str], code: int) -> NoReturn:
    """Report ``error`` by its ``problems``, or by its traceback if there are none, and end this process with ``code``.

    The process is one of several. It neither unwinds nor waits for the others, which may have ended.
    """
    kind = kind_of(error, bool(problems))
    if kind == "lost":
        problems = [
            f"another process is gone or has not answered in parallel.timeout_seconds ({one_line(error, typed=True)})"
        ]
    failure = Failure(kind, problems or [one_line(error, typed=True)], traceback.format_exc())
    _record(error, failure)
    prints = os.environ.get("ROLE_NAME") != ROLE  # else `quintet train --nproc` does
    if prints and failure.kind == "user" and rank() == 0:
        _print(failure)
    elif prints and failure.kind == "bug":
        print(f"process {rank()} failed:\n{failure.trace}", file=sys.stderr)
    if rank() or failure.kind != "user":
        time.sleep(_SECONDS[failure.kind])
    if prints and failure.kind in ("user", "lost") and (rank() or failure.kind == "lost"):
        _print(failure)
    end(code)


def end(code: int | str | None) -> NoReturn:
    """End this process as sys.exit does; one of several that has failed does not wait for the others."""
    if not is_launched() or not isinstance(code, int) or code == 0:
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def read_failure(message: str | dict[str, Any]) -> Failure | None:
    """Return the failure that `leave` wrote, from the message of torchelastic's ProcessFailure; None for other
    messages."""
    if not isinstance(message, dict):
        return None
    fields: dict[str, Any] | None = message.get("extraInfo", {}).get("quintet")
    return None if fields is None else Failure(**fields)


def _record(error: BaseException, failure: Failure) -> None:
    """Write ``failure`` where torchrun, which shows the traceback, and `quintet train --nproc` find it."""
    callstack = failure.trace if failure.kind == "bug" else "\n".join(failure.problems)
    info = {"py_callstack": callstack, "timestamp": str(int(failure.at)), "quintet": asdict(failure)}
    record = {"message": {"message": f"{type(error).__name__}: {error}", "extraInfo": info}}
    file = os.environ["TORCHELASTIC_ERROR_FILE"]
    # Renamed when complete: torchrun may end this process at any moment, and fails on half a file.
    with open(f"{file}.new", "w", encoding="utf-8") as out:
        json.dump(record, out)
    os.replace(f"{file}.new", file)


def _print(failure: Failure) -> None:
    for problem in failure.problems:
        print(f"error: {f'process {rank()}: ' if rank() else ''}{printable(without_secrets(problem))}", file=sys.stderr)


def _is_lost(error: BaseException) -> bool:
    # A CheckpointException holds the errors of all processes, and does not derive from Exception.
    by_network = isinstance(error, RuntimeError) or type(error).__name__ == "CheckpointException"
    return by_network and any(sign in str(error).lower() for sign in _LOST)
