"""`quintet train`, forked many times from a process that has imported everything, with or without a fault.

Each fork has its own session, signals and output, and calls the command line's `main`. It does what the command does,
without the seconds of importing.
"""

from __future__ import annotations

import atexit
import os
import random
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import yaml

STEPS = 24
LIMIT = 300.0  # seconds; a start takes one or two
WORDS = ["the", "a", "cat", "dog", "saw", "small", "big", "and", "then", "it", "sat", "under", "mat", "naïve", "to"]
_WRITES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "shutil.rmtree", "os.symlink", "os.link")
Fault = Callable[[], object]


def run_file() -> dict[str, object]:
    """Return a run file of two layers with dropout, checkpoints, validations and samples; a CPU trains it in a
    second."""
    return {
        "name": "tiny",
        "seed": 7,
        "data": {"sources": [{"kind": "text", "path": "corpus"}], "validation": 0.05, "sequence_length": 16},
        "tokenizer": {"kind": "byte"},
        "model": {"layers": 2, "width": 16, "residual_dropout": 0.1, "attention": {"heads": 2, "dropout": 0.1}},
        "train": {"steps": STEPS, "batch_size": 4, "micro_batch_size": 2, "device": "cpu", "precision": "fp32"},
        "evaluate": {"every": 6, "samples": 8},
        "sample": {"every": 8, "prompts": ["the cat"], "max_tokens": 6},
        "checkpoint": {"every": 3, "keep": 2},
    }


@dataclass(frozen=True)
class Ended:
    """The end of a process: its exit code (a negative signal number, or None if it hung), and its output."""

    code: int | None
    said: str

    @property
    def problem(self) -> str | None:
        """The last line of a traceback, or that the process hung; None if neither."""
        if self.code is None:
            return "it hangs"
        if "Traceback (most recent call last)" in self.said:
            return f"traceback: {self.said.strip().splitlines()[-1][:200]}"
        return None


@dataclass
class Workspace:
    """A folder for runs, each with its own cache, and the random numbers of a row."""

    folder: Path
    draw: random.Random
    _made: int = field(default=0)

    def __post_init__(self) -> None:
        (self.folder / "corpus").mkdir(parents=True, exist_ok=True)
        words = random.Random(5)
        for number in range(6):
            text = " ".join(words.choices(WORDS, k=900))
            (self.folder / f"corpus/{number}.txt").write_text(text, encoding="utf-8")
        (self.folder / "run.yaml").write_text(yaml.safe_dump(run_file()), encoding="utf-8")

    def run(self, name: str) -> Path:
        """Return the folder of a run."""
        return self.folder / "runs" / name

    def arguments(self, name: str, *overrides: str) -> list[str]:
        """Return the command-line arguments of the run ``name``."""
        own = (f"name={name}", f"data.cache_dir=cache-{name}")
        return ["train", "--no-report", "--peak-flops=1e12", "run.yaml", *own, *overrides]

    def start(self, name: str, *overrides: str, fault: Fault | None = None, **environment: str) -> Started:
        """Start the command of the run ``name``, calling ``fault`` in its process first."""
        self._made += 1
        log = self.folder / f"log-{name}-{self._made}"
        return Started.forked(self.arguments(name, *overrides), self.folder, log, fault, environment)

    def train(self, name: str, *overrides: str, fault: Fault | None = None) -> Ended:
        """Train the run ``name`` until its process ends."""
        return self.start(name, *overrides, fault=fault).wait()

    def train_two(self, name: str, victims: tuple[int, ...] = (), fault: Fault | None = None) -> list[Ended]:
        """Train the run ``name`` in two processes as torchrun does, with the ``fault`` in the ranks ``victims``."""
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            port = str(one.getsockname()[1])
        common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        started = []
        for rank in range(2):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            own["TORCHELASTIC_ERROR_FILE"] = str(self.folder / f"error-{name}-{rank}.json")
            more = common | own | {"GLOO_SOCKET_IFNAME": "lo"}
            started.append(self.start(name, fault=fault if rank in victims else None, **more))
        end, found = time.monotonic() + LIMIT, [None, None]
        while None in found and time.monotonic() < end:
            found = [one if one is not None else each.poll() for one, each in zip(found, started, strict=True)]
            if any(one is not None and one.code for one in found):
                end = min(end, time.monotonic() + 5.0)  # torchrun ends the others, too
            time.sleep(0.01)
        return [one if one is not None else each.end() for one, each in zip(found, started, strict=True)]


class Started:
    """A forked command."""

    def __init__(self, pid: int, log: Path) -> None:
        self.pid, self._log = pid, log

    @classmethod
    def forked(
        cls, arguments: list[str], folder: Path, log: Path, fault: Fault | None, environment: dict[str, str]
    ) -> Started:
        """Start ``quintet`` with ``arguments`` in ``folder`` and its output in ``log``."""
        sys.stdout.flush()
        if (pid := os.fork()) == 0:
            _command(arguments, folder, log, fault, environment)
        return cls(pid, log)

    def poll(self) -> Ended | None:
        """Return its end, or None if it is running."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        return self._ended(os.waitstatus_to_exitcode(status)) if pid else None

    def wait(self) -> Ended:
        """Wait for its end. A command that does not end is killed."""
        deadline = time.monotonic() + LIMIT
        while time.monotonic() < deadline:
            if (found := self.poll()) is not None:
                return found
            time.sleep(0.01)
        return self.end()

    def end(self) -> Ended:
        """Kill the process."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        return self._ended(None)

    def signal(self, number: int) -> None:
        """Send a signal to the process."""
        os.kill(self.pid, number)

    def after_records(self, run: Path, count: int) -> Ended | None:
        """Return None once ``run`` has ``count`` records, or the end of this command if that comes first."""
        file = run / "metrics.jsonl"
        while (ended := self.poll()) is None:
            if count == 0 or (file.is_file() and file.read_bytes().count(b"\n") >= count):
                return None
            time.sleep(0.002)
        return ended

    def _ended(self, code: int | None) -> Ended:
        return Ended(code, self._log.read_text(encoding="utf-8", errors="replace"))


def _command(
    arguments: list[str], folder: Path, log: Path, fault: Fault | None, environment: dict[str, str]
) -> NoReturn:
    """Run the command in this process, and exit."""
    code = 1
    try:
        atexit._clear()  # the exit handlers of the parent
        os.setsid()
        os.chdir(folder)
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for stream in (1, 2):
            os.dup2(out, stream)
        sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        os.environ.update(environment)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if fault is not None:
            fault()
        from quintet.cli import main

        main(arguments)
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 1
        with _told():
            threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]
            atexit._run_exitfuncs()
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except BaseException:
        traceback.print_exc()


def preload() -> None:
    """Import the modules of the command before the first fork."""
    import torch
    import torch._dynamo
    import torch.distributed.checkpoint.state_dict
    import torch.distributed.fsdp
    import torch.utils.tensorboard

    import quintet.api
    import quintet.cli
    import quintet.model.generate
    import quintet.report.page
    import quintet.results
    import quintet.train.loop
    import quintet.train.trained  # noqa: F401

    torch.set_num_threads(1)


def kill_after(seconds: float) -> None:
    """Kill this process after ``seconds`` of CPU time, which is the same moment on a busy machine."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process at once, as SIGKILL does
    signal.setitimer(signal.ITIMER_PROF, seconds)


def at_event(act: Callable[[int, str], object]) -> None:
    """Call ``act`` before each file event in a run folder or cache, with its number from 1 and its description.

    An event opens a file for writing, or creates, renames or removes a file or folder.
    """
    count, inside = 0, False

    def hook(event: str, values: tuple[object, ...]) -> None:
        nonlocal count, inside
        if inside or not (event in _WRITES or (event == "open" and _writes(values))):
            return
        text = " ".join(os.fsdecode(one) if isinstance(one, bytes | os.PathLike) else str(one) for one in values)
        if ("runs/" not in text and "cache-" not in text) or "tfevents" in text:
            return
        count, inside = count + 1, True
        try:
            act(count, f"{event} {text}")
        finally:
            inside = False

    sys.addaudithook(hook)


def _writes(values: Sequence[object]) -> bool:
    flags = values[2] if len(values) > 2 and isinstance(values[2], int) else 0
    return isinstance(values[0], str | bytes) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def kill_at(number: int) -> None:
    """Kill this process before the file event with this number."""
    at_event(lambda count, _: os.kill(os.getpid(), signal.SIGKILL) if count == number else None)
