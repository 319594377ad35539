"""`quintet train`, started many times by a process that has imported everything, with a fault in it or without.

A start is a forked process with a session, signals and output of its own that calls the command line's `main`: what it
does is what the command does, without the seconds of importing.
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
    """A run of two layers with dropout, checkpoints, validations and samples on the way, on a CPU in a second."""
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
    """The end of a process: its exit code, the signal as a negative number, or None if it hung; and what it printed."""

    code: int | None
    said: str

    @property
    def problem(self) -> str | None:
        """The end of a traceback or of a hang, None where neither is."""
        if self.code is None:
            return "it hangs"
        if "Traceback (most recent call last)" in self.said:
            return f"traceback: {self.said.strip().splitlines()[-1][:200]}"
        return None


@dataclass
class Workspace:
    """A folder in which runs are trained, each with a cache of its own, and the random numbers of a row."""

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
        """The folder of a run."""
        return self.folder / "runs" / name

    def arguments(self, name: str, *overrides: str) -> list[str]:
        """The command of the run ``name``."""
        own = (f"name={name}", f"data.cache_dir=cache-{name}")
        return ["train", "--no-report", "--peak-flops=1e12", "run.yaml", *own, *overrides]

    def start(self, name: str, *overrides: str, fault: Fault | None = None, **environment: str) -> Started:
        """Start the command of the run ``name``; ``fault`` is called in its process first."""
        self._made += 1
        log = self.folder / f"log-{name}-{self._made}"
        return Started.forked(self.arguments(name, *overrides), self.folder, log, fault, environment)

    def train(self, name: str, *overrides: str, fault: Fault | None = None) -> Ended:
        """Train the run ``name`` to its end, or to that of its process."""
        return self.start(name, *overrides, fault=fault).wait()

    def train_two(self, name: str, victims: tuple[int, ...] = (), fault: Fault | None = None) -> list[Ended]:
        """Train the run ``name`` in two processes as torchrun starts them; those of ``victims`` have the ``fault``."""
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
                end = min(end, time.monotonic() + 5.0)  # as torchrun ends those that are left
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
        """Start ``quintet`` with ``arguments`` in ``folder``; what it prints goes to ``log``."""
        sys.stdout.flush()
        if (pid := os.fork()) == 0:
            _command(arguments, folder, log, fault, environment)
        return cls(pid, log)

    def poll(self) -> Ended | None:
        """The end of it, None while it goes on."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        return self._ended(os.waitstatus_to_exitcode(status)) if pid else None

    def wait(self) -> Ended:
        """Its end; a command that does not end is killed."""
        deadline = time.monotonic() + LIMIT
        while time.monotonic() < deadline:
            if (found := self.poll()) is not None:
                return found
            time.sleep(0.01)
        return self.end()

    def end(self) -> Ended:
        """Kill it."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        return self._ended(None)

    def signal(self, number: int) -> None:
        """Send a signal to it."""
        os.kill(self.pid, number)

    def after_records(self, run: Path, count: int) -> Ended | None:
        """Return None as soon as ``run`` has so many records, or the end of this command if that comes first."""
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
    """Be the command, to the end of this process."""
    code = 1
    try:
        atexit._clear()  # what this program has to do at its own end
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
    """Import what the command needs, before the first fork."""
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
    """Have this process killed when it has computed for so long, which is the same moment on a busy machine."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends it at once, as SIGKILL does
    signal.setitimer(signal.ITIMER_PROF, seconds)


def at_event(act: Callable[[int, str], object]) -> None:
    """Call ``act`` ahead of each file event of this process below a run's folder or its cache, with its number from 1
    on and what it is: a file opened to write, made, renamed or removed."""
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
    """Have this process killed ahead of the file event of this number."""
    at_event(lambda count, _: os.kill(os.getpid(), signal.SIGKILL) if count == number else None)
