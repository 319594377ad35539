"""Simulated power loss: folders are rebuilt as a loss of power may leave them after each write, sync and rename of a
run.

A recorder replaces the functions of `os` that sync, rename, create and remove. After each call it reads the whole
folder; after a sync it notes what became durable: the content of a file, or the names in a folder. Three kinds of file
system lose power:

    strict    everything not synced is lost: names are those of the last sync of their folder, and a file has the
              content of its last sync, or none; the parent folders of something synced exist
    journal   names survive, and content that was not synced is NULs, as after a delayed allocation
    mixed     each name and each content survives or is lost at random
"""

from __future__ import annotations

import atexit
import os
import pickle
import random
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from command import Workspace
from compare import differences
from rows import EQUAL, evenly, uninterrupted

Node = tuple[int, int]  # an inode, and how often its number was used before
KINDS = ("strict", "journal", "mixed")


@dataclass(frozen=True)
class Moment:
    """The state after an event, by node: the names in each folder and the content of each file, now and at the last
    sync.

    ``links`` holds the targets of symbolic links.
    """

    event: str
    root: Node
    names: dict[Node, dict[str, Node]]
    content: dict[Node, bytes]
    links: dict[Node, str]
    synced_names: dict[Node, dict[str, Node]]
    synced_content: dict[Node, bytes]


class Recorder:
    """Records the moments of the folder ``root``, and writes them to ``file`` when this process ends."""

    def __init__(self, root: Path, file: Path) -> None:
        self.root, self.moments = root, list[Moment]()
        self._lock = threading.RLock()
        self._given: dict[int, int] = {}
        self._there: set[int] = set()
        self._read: dict[tuple[Node, int, int], bytes] = {}
        self._synced_names: dict[Node, dict[str, Node]] = {}
        self._synced_content: dict[Node, bytes] = {}
        first = self._look("start")
        self._synced_names[first.root] = first.names[first.root]
        for name in ("rename", "replace", "unlink", "remove", "rmdir", "mkdir", "symlink"):
            setattr(os, name, self._noting(name, getattr(os, name)))
        self._fsync, os.fsync = os.fsync, self._sync
        atexit.register(lambda: file.write_bytes(pickle.dumps(self.moments)))

    def _noting(self, name: str, act: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            with self._lock:
                found = act(*arguments, **more)
                self.moments.append(self._look(f"{name} {' '.join(map(str, arguments))}"))
                return found

        return call

    def _sync(self, number: Any) -> None:
        number = number if isinstance(number, int) else number.fileno()
        with self._lock:
            self._fsync(number)
            moment = self._look("")
            node = self._node(os.fstat(number))
            path = os.readlink(f"/proc/self/fd/{number}")
            if node in moment.names:
                self._synced_names[node] = moment.names[node]
            elif node in moment.content:
                self._synced_content[node] = moment.content[node]
            else:
                return  # outside the folder
            self.moments.append(self._look(f"fsync {path}"))

    def _node(self, status: os.stat_result) -> Node:
        return status.st_ino, self._given.get(status.st_ino, 0)

    def _look(self, event: str) -> Moment:
        """Read the folder. An inode number that is used again is a new node."""
        found: list[tuple[Path, os.stat_result]] = []
        for place, folders, files in os.walk(self.root):
            for name in folders + files:
                try:
                    found.append((Path(place) / name, os.lstat(os.path.join(place, name))))
                except FileNotFoundError:  # removed by another thread
                    continue
        there = {status.st_ino for _, status in found}
        for number in there - self._there:
            self._given[number] = self._given.get(number, -1) + 1
        self._there = there
        root = self._node(os.stat(self.root))
        names, content, links = {root: dict[str, Node]()}, dict[Node, bytes](), dict[Node, str]()
        for path, status in found:
            node = self._node(status)
            parent = self._node(os.stat(path.parent)) if path.parent.exists() else None
            if parent is not None:
                names.setdefault(parent, {})[path.name] = node
            if stat.S_ISDIR(status.st_mode):
                names.setdefault(node, {})
            elif stat.S_ISLNK(status.st_mode):
                links[node] = os.readlink(path)
            else:
                content[node] = self._content(path, node)
        return Moment(event, root, names, content, links, dict(self._synced_names), dict(self._synced_content))

    def _content(self, path: Path, node: Node) -> bytes:
        try:
            status = os.stat(path)
            known = (node, status.st_mtime_ns, status.st_size)
            return self._read.setdefault(known, path.read_bytes())
        except FileNotFoundError:
            return b""


def read_moments(file: Path) -> list[Moment]:
    """Read the moments that a `Recorder` wrote in a process that this program started."""
    return pickle.loads(file.read_bytes())


def rebuild(moment: Moment, kind: str, folder: Path, draw: random.Random) -> None:
    """Create ``folder`` as a file system of this ``kind`` may leave it after a loss of power."""
    _Rebuilding(moment, kind, draw).folder(moment.root, folder)


class _Rebuilding:
    def __init__(self, moment: Moment, kind: str, draw: random.Random) -> None:
        self.moment, self.kind, self.draw = moment, kind, draw

    def folder(self, node: Node, place: Path) -> None:
        place.mkdir(parents=True)
        for name, inner in self._names(node).items():
            moment = self.moment
            if inner in moment.links:
                (place / name).symlink_to(moment.links[inner])
            elif inner in moment.content or inner in moment.synced_content:
                (place / name).write_bytes(self._content(inner))
            else:
                self.folder(inner, place / name)

    def _names(self, node: Node) -> dict[str, Node]:
        now = self.moment.names.get(node, {})
        if self.kind == "journal":
            return now
        before = self.moment.synced_names.get(node, {})
        found = {}
        for name in before.keys() | now.keys():
            choices = [before.get(name)] if self.kind == "strict" else [before.get(name), now.get(name)]
            if name in now and self._is_way(now[name]):
                choices = [now[name]]
            if (one := self.draw.choice(choices)) is not None:
                found[name] = one
        return found

    def _is_way(self, node: Node) -> bool:
        """Return True if ``node`` is a folder in or below which something was synced."""
        inside = self.moment.names.get(node)
        if inside is None:
            return False
        synced = self.moment.synced_names.keys() | self.moment.synced_content.keys()
        return node in self.moment.synced_names or any(one in synced or self._is_way(one) for one in inside.values())

    def _content(self, node: Node) -> bytes:
        durable = self.moment.synced_content.get(node, b"")
        now = self.moment.content.get(node, durable)
        if self.kind == "strict":
            return durable
        nuls = durable[: len(now)] + bytes(max(0, len(now) - len(durable)))
        if self.kind == "journal":
            return now if now == durable else nuls
        return self.draw.choice([durable, nuls, now, now[: self.draw.randint(min(len(durable), len(now)), len(now))]])


def lose(moment: Moment, kind: str, root: Path, draw: random.Random) -> None:
    """Replace ``root`` by what is left of it."""
    shutil.rmtree(root, ignore_errors=True)
    rebuild(moment, kind, root, draw)


def power(work: Workspace, tries: int) -> Iterator[str]:
    """A loss of power at evenly spaced moments of a run, on each of three kinds of file systems; then the same
    command."""
    root, file = work.folder / "there", work.folder / "moments"
    places = (f"runs_dir={root}/runs", f"data.cache_dir={root}/cache")
    root.mkdir()
    ended = work.train("struck", *places, fault=lambda: Recorder(root, file))
    assert ended.code == 0, ended.said
    whole, moments = uninterrupted(work), read_moments(file)
    for number in evenly(len(moments) * len(KINDS), tries):
        moment, kind = moments[number // len(KINDS)], KINDS[number % len(KINDS)]
        lose(moment, kind, root, work.draw)
        ended = work.train("struck", *places)
        if ended.code or ended.problem:
            yield f"FAULT: {kind}, after {moment.event}: {ended.problem or ended.said.strip()[-400:]}"
            continue
        problems = differences(root / "runs/struck", whole)
        yield f"FAULT: {kind}, after {moment.event}: {'; '.join(problems)}" if problems else EQUAL
