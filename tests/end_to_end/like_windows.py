"""Run `quintet` in a process that lacks what Windows lacks: python like_windows.py FOLDER ARGUMENTS.

Modules, functions and signals of Unix are taken away; the standard streams have the code page of Western Windows; files
that are open cannot be replaced, renamed or removed, a folder cannot replace another, and below FOLDER no file can have
a name that Windows refuses. An environment variable STOP_AT names a file: once it is there, Ctrl-C is pressed.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

MODULES = {"fcntl", "resource", "pwd", "grp", "termios", "readline", "tty", "pty"}
FUNCTIONS = {"fork", "forkpty", "sched_getaffinity", "sched_setaffinity", "sysconf", "getuid", "geteuid", "getgid"}
FUNCTIONS |= {"getegid", "setsid", "getpgid", "killpg", "getloadavg", "statvfs", "mkfifo", "pread", "pwrite"}
SIGNALS = {"SIGUSR1", "SIGUSR2", "SIGHUP", "SIGKILL", "SIGALRM", "SIGQUIT", "SIGCHLD", "SIGPIPE", "SIGTSTP", "SIGCONT"}
DEVICES = re.compile(r"(con|prn|aux|nul|com[1-9]|lpt[1-9])(\..*)?", re.IGNORECASE)


def _by_name(frame: FrameType) -> bool:
    """Whether who asks, by way of importlib or not, asks `sys.platform` first and then takes what that system has."""
    while frame.f_back is not None and "importlib" in frame.f_globals["__name__"]:
        frame = frame.f_back
    return frame.f_globals["__name__"].startswith(("psutil", "torch", "typer", "click", "huggingface_hub"))


class _NoUnix(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name in MODULES and not _by_name(sys._getframe(1)):
            raise ModuleNotFoundError(f"No module named {name!r} (as on Windows)", name=name)
        return None


class _Without(ModuleType):
    """A module from which `_unix` was taken away."""

    def __getattr__(self, name: str) -> Any:
        if name not in self._unix or not _by_name(sys._getframe(1)):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r} (as on Windows)")
        return self._unix[name]


def take_unix_away() -> None:
    for name in MODULES:
        sys.modules.pop(name, None)
    sys.meta_path.insert(0, _NoUnix())
    for module, names in ((os, FUNCTIONS), (signal, SIGNALS)):
        module._unix = {name: vars(module).pop(name) for name in names}  # type: ignore[attr-defined]
        module.__class__ = _Without
    multiprocessing.set_start_method("spawn")
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        stream.reconfigure(encoding="cp1252")  # type: ignore[union-attr]


def guard_files(folder: Path) -> None:
    """Have the operations below ``folder`` fail that Windows fails."""
    root = os.path.realpath(folder)

    def place(name: Any, directory: int = -1) -> str | None:
        """The whole path of ``name``, None where it is not below ``folder``."""
        if isinstance(name, int) or name is None:
            return None
        base = os.readlink(f"/proc/self/fd/{directory}") if directory >= 0 else os.getcwd()
        whole = os.path.abspath(os.path.join(base, os.fsdecode(name)))
        return whole if whole.startswith(root + os.sep) else None

    def check_name(whole: str | None) -> None:
        for part in Path(whole or "").relative_to(root).parts if whole else ():
            if re.search(r'[<>:"|?*\\\x00-\x1f]', part) or part[-1] in " ." or DEVICES.fullmatch(part):
                raise OSError(22, "The filename, directory name, or volume label syntax is incorrect", whole)

    def check_closed(whole: str | None) -> None:
        if whole is None:
            return
        for path in _open_files():
            if path == whole or path.startswith(whole + os.sep):
                raise PermissionError(13, "The process cannot access the file: it is being used", path)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str | bytes) and (arguments[2] or 0) & os.O_CREAT:
            check_name(place(arguments[0]))
        elif event == "os.mkdir":
            check_name(place(arguments[0], arguments[2]))
        elif event == "os.rename":
            source, target = place(arguments[0], arguments[2]), place(arguments[1], arguments[3])
            check_name(target)
            check_closed(source)
            check_closed(target)
            if target is not None and os.path.isdir(target):
                raise PermissionError(5, "Access is denied: a folder is there", target)
        elif event in ("os.remove", "os.rmdir"):
            check_closed(place(arguments[0], arguments[1]))

    sys.addaudithook(hook)


def _open_files() -> set[str]:
    """The files that this process has open or mapped into its memory."""
    found = set()
    for entry in os.listdir("/proc/self/fd"):
        try:
            found.add(os.readlink(f"/proc/self/fd/{entry}"))
        except FileNotFoundError:  # closed meanwhile
            continue
    with open("/proc/self/maps") as maps:
        return found | {line.split(maxsplit=5)[5].rstrip("\n") for line in maps if "/" in line}


def press_ctrl_c(once: Path) -> None:
    def watch() -> None:
        while not once.exists():
            time.sleep(0.002)
        signal.raise_signal(signal.SIGINT)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    working, *rest = sys.argv[1:]
    take_unix_away()
    guard_files(Path(working))
    if "STOP_AT" in os.environ:
        press_ctrl_c(Path(os.environ["STOP_AT"]))
    from quintet.cli import main

    main(rest)
